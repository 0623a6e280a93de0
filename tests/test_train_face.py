"""``legato train`` shows faces to encoders that look at them: those that a bundle finds."""

from pathlib import Path
from typing import Any

import pytest

from encoders.recipes import FinetuneConfig
from runtime.bundle import SHIPPED
from runtime.cli import main
from tests.bundles import write_tiny_bundle


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs of the runs that would be made."""
    configs: list[Any] = []
    for module, name in (("encoders.finetune", "finetune"), ("encoders.cotrain", "cotrain")):
        monkeypatch.setattr(f"{module}.{name}", lambda config, out, **_: configs.append(config))
    return configs


def train(*arguments: str, out: Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments, "--out", str(out)])
    return int(stopped.value.code or 0)


def test_the_default_bundle_finds_the_faces(asked: list[Any], tmp_path: Path) -> None:
    assert train("vivit_tiny_fe", "--data", "grid_lips:x", out=tmp_path / "run") == 0
    (config,) = asked
    assert isinstance(config, FinetuneConfig)
    assert Path(config.face) == SHIPPED / "talk" / "face.safetensors"


def test_an_encoder_of_whole_frames_needs_none(asked: list[Any], tmp_path: Path) -> None:
    assert train("vivit_tiny_fe", "--data", "kinetics400:x", out=tmp_path / "run") == 0
    assert asked[0].face == ""


def test_a_file_that_is_named_is_taken(asked: list[Any], tmp_path: Path) -> None:
    assert train("vivit_tiny_fe", "--data", "grid_lips:x", "--set", "face=mine", out=tmp_path / "run") == 0
    assert asked[0].face == "mine"


def test_of_several_tasks_those_that_see_faces_get_them(asked: list[Any], tmp_path: Path) -> None:
    data = ("--data", "grid_digits:x", "--data", "audio=grid_digits:x")
    assert train("polyvit_tiny", *data, "--set", "model.video.region=face", out=tmp_path / "run") == 0
    video, audio = asked[0].tasks
    assert Path(video.face) == SHIPPED / "talk" / "face.safetensors"
    assert audio.face == ""


def test_a_bundle_without_a_face_finder_is_refused(
    asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    code = train("vivit_tiny_fe", "--data", "grid_lips:x", "--face", str(bundle.path), out=tmp_path / "run")
    assert code == 2 and not asked
    assert "has no face finder; name another with --face" in capsys.readouterr().err
