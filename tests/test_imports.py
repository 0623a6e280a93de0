"""What may import what, read from the source of every module; and what starting up costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protos", "encoders", "imputation", "runtime")

# the packages that each may import besides itself
BELOW = {
    "protos": set(),
    "encoders": set(),
    "imputation": {"encoders"},
    "runtime": {"protos", "encoders", "imputation"},
    "bench": {*PACKAGES, "tests"},
    "tests": {*PACKAGES, "bench"},
}

# imputation sees features, never the model that made them
NAMED_MODELS = ("encoders.video", "encoders.audio", "encoders.audiovisual", "encoders.registry", "encoders.media")

# transport: pure, and quick to import
PURE = (
    *("packet", "clock", "rtp", "jitter", "damage", "bitstream", "impair", "clip", "recording", "receive", "metrics"),
    *("rtcp", "sdp", "payloads", "depacketize", "reorder", "recognise", "ssrc", "rtp_session", "datagrams"),
)
HEAVY = ("torch", "grpc", "av", "cv2", "sounddevice", "matplotlib", "transformers")


@dataclass(frozen=True)
class Import:
    """One imported name in one file."""

    file: str  # relative to the root
    line: int
    name: str  # dotted; for ``from a import b`` it is a.b
    relative: bool
    typing_only: bool  # under ``if TYPE_CHECKING``

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"

    def of(self, *modules: str) -> bool:
        return any(self.name == module or self.name.startswith(f"{module}.") for module in modules)


@cache
def trees() -> dict[str, ast.Module]:
    files = [path for package in BELOW for path in sorted((ROOT / package).rglob("*.py"))]
    own = [path for path in files if ".venv" not in str(path)]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(), str(path)) for path in own}


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for file, tree in trees().items() for found in _walk(file, tree, False))


def _walk(file: str, node: ast.AST, typing_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(file, node.lineno, alias.name, False, typing_only) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield Import(file, node.lineno, f"{node.module}.{alias.name}", node.level > 0, typing_only)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _walk(file, child, True)
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _walk(file, child, typing_only)


def shipped() -> list[Import]:
    return [found for found in imports() if found.file.split("/")[0] in PACKAGES]


def none(found: list[Import]) -> None:
    assert not found, "\n" + "\n".join(map(str, found))


def loaded_after(program: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running ``program``."""
    tail = "\nimport sys; print(); print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", program + tail], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_the_walk_sees_lazy_and_typing_imports():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    import a.b\n"
        "else:\n"
        "    import c\n"
        "def f():\n"
        "    from . import d\n"
    )
    found = {i.name: i for i in _walk("x.py", ast.parse(source), False)}
    assert found["a.b"].typing_only
    assert not found["c"].typing_only
    assert found["None.d"].relative


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_one_way(package):
    ours = [i for i in imports() if i.file.startswith(f"{package}/")]
    none([i for i in ours if i.of(*BELOW) and not i.of(package, *BELOW[package])])


def test_nothing_that_ships_imports_bench_or_tests():
    none([i for i in shipped() if i.of("bench", "tests")])


def test_imputation_imports_no_named_model():
    none([i for i in shipped() if i.file.startswith("imputation/") and i.of(*NAMED_MODELS)])


def test_imports_are_absolute():
    none([i for i in imports() if i.relative])


def test_only_media_opens_pyav():
    none([i for i in shipped() if i.of("av") and not i.file.startswith("encoders/media")])


def test_wire_types_stop_at_the_edge():
    edge = ("protos/", "runtime/serve/", "runtime/recording.py")
    none([i for i in shipped() if "_pb2" in i.name and not i.file.startswith(edge)])


def test_package_inits_import_nothing_heavy():
    none([i for i in shipped() if i.file.endswith("__init__.py") and i.of(*HEAVY) and not i.typing_only])


def test_transport_imports_neither_torch_nor_grpc_nor_pyav():
    files = {f"runtime/{name}.py" for name in PURE}
    none([i for i in imports() if i.file in files and i.of("torch", "grpc", "av") and not i.typing_only])


def test_transport_does_not_reach_torch_grpc_or_pyav_through_others():
    there = [name for name in PURE if (ROOT / "runtime" / f"{name}.py").exists()]
    assert {"packet", "jitter", "damage", "clip", "recording"} <= set(there)
    assert not loaded_after("\n".join(f"import runtime.{name}" for name in there)) & {"torch", "grpc", "av"}


@pytest.mark.parametrize("module", ["imputation.presence", "imputation.channel", "imputation.masks", "encoders.clips"])
def test_what_training_and_serving_share_needs_numpy_only(module):
    assert not loaded_after(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize(
    "program",
    [
        "import runtime; runtime.Bundle; runtime.LegatoError; runtime.Prediction",
        "from runtime.cli import run; assert run(['--help']) == 0",
        "from runtime.cli import run; assert run(['--version']) == 0",
    ],
)
def test_starting_up_imports_nothing_heavy(program):
    assert not loaded_after(program) & set(HEAVY)


def test_no_module_shadows_another():
    """A script's folder comes first on the path, so a file called like a library hides it."""
    forbidden = {"ast", "queue", "types", "grpc", "utils", "misc"}
    assert not [file for file in trees() if Path(file).stem in forbidden or Path(file).parent.name in forbidden]


def test_every_folder_of_modules_is_a_package_that_says_what_it_holds():
    folders = {str(Path(file).parent) for file in trees()}
    inits = {folder: trees().get(f"{folder}/__init__.py") for folder in folders}
    assert not [folder for folder, tree in inits.items() if tree is None and not folder.startswith("bench/peers")]
    packages = {folder: tree for folder, tree in inits.items() if tree and folder.split("/")[0] in PACKAGES}
    assert not [folder for folder, tree in packages.items() if not ast.get_docstring(tree)]


def test_nothing_reads_or_writes_a_pickle():
    none([i for i in imports() if i.of("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")])
    ours = {file: tree for file, tree in trees().items() if file.split("/")[0] in PACKAGES}
    assert not [f"{file}:{node.lineno}" for file, tree in ours.items() for node in ast.walk(tree) if _unpickles(node)]


def _unpickles(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in ("torch.load", "torch.save", "torch.jit.load", "torch.package")
    return isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
