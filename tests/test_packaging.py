"""The distribution: what a wheel holds, what it asks for, and scripts that a plain shell can read."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import runtime

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = ["demo", "test", "lint", "format", "protos", "_venv.sh"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints" / "ci.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for texts in lists for text in texts]


def test_the_constraints_pin_what_the_tests_install_within_the_ranges():
    for requirement in requirements("dev"):
        assert requirement.name in pins(), f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pins()[requirement.name])


def test_torch_is_a_range_without_an_index():
    (torch,) = [r for r in requirements() if r.name == "torch"]
    assert torch.specifier.contains("2.11.0+cu128")
    assert torch.specifier.contains("2.13.0+cpu")
    assert torch.url is None


def test_nothing_asks_for_what_replaces_torch():
    names = {r.name for r in requirements(*PROJECT["optional-dependencies"])}
    assert not names & {"torchvision", "torchaudio", "timm", "pytorchvideo", "asteroid", "pypots"}


def test_the_command_exists():
    module, function = PROJECT["scripts"]["legato"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_readme_and_the_licence_are_where_the_project_says():
    assert (ROOT / PROJECT["readme"]).is_file()
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("script", [f"scripts/{name}" for name in SCRIPTS] + [".ci/run"])
def test_a_script_can_be_read_by_its_shell(script):
    first = (ROOT / script).read_text().splitlines()[0]
    shell = "bash" if "bash" in first else "sh"
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    subprocess.run([shell, "-n", script], cwd=ROOT, check=True)


@pytest.mark.slow
def test_a_wheel_holds_the_packages_with_their_data_and_no_tests(tmp_path):
    setuptools = pytest.importorskip("setuptools", minversion="77")
    ignore = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    tree = Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore))
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, f"setuptools {setuptools.__version__}: {result.stderr}"

    (wheel,) = tmp_path.glob("legato-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]

    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"runtime", "imputation", "encoders", "protos"}
    for package in sorted(tops):
        modules = {str(path.relative_to(tree)) for path in (tree / package).rglob("*.py")}
        assert modules <= names
        assert f"{package}/py.typed" in names
    bundles = {str(p.relative_to(tree)) for p in (tree / "runtime" / "bundles").rglob("*") if p.is_file()}
    assert bundles <= names
    assert {"protos/stream.proto", "protos/stream_pb2.pyi"} <= names
    assert re.search(r"^legato ?= ?runtime\.cli:main$", entry, re.M)
    assert f"\nVersion: {runtime.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
