"""``legato bundle make|show|check``."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from runtime import cli
from tests.bundles import tiny_manifest, tiny_tensors, write_tiny_bundle


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe whose encoders lie in one file, as training leaves them."""
    parts = tiny_tensors()
    trained = {
        f"{name.removesuffix('.safetensors')}.{key}": value.contiguous()
        for name in ("video.safetensors", "audio.safetensors")
        for key, value in parts.pop(name).items()
    }
    save_file(trained, tmp_path / "trained.safetensors")
    weights: dict[str, object] = {
        f"{name}.safetensors": {"from": "trained.safetensors", "prefix": f"{name}."} for name in ("video", "audio")
    }
    for name, tensors in parts.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name)
        weights[name] = name
    (tmp_path / "card.md").write_text("# Tiny\n")
    plan = {"manifest": tiny_manifest().model_dump(mode="json"), "weights": weights, "files": {"CARD.md": "card.md"}}
    (tmp_path / "recipe.json").write_text(json.dumps(plan))
    return tmp_path / "recipe.json"


def test_a_made_bundle_is_whole_and_carries_its_card(recipe, tmp_path, capsys):
    assert cli.run(["bundle", "make", str(recipe), "--out", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "CARD.md").read_text() == "# Tiny\n"
    capsys.readouterr()
    assert cli.run(["bundle", "check", str(tmp_path / "made"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] and said["parameters"]["gru"] > 0


def test_show_says_what_it_is(tmp_path, capsys):
    write_tiny_bundle(tmp_path / "tiny")
    assert cli.run(["bundle", "show", str(tmp_path / "tiny")]) == 0
    shown = capsys.readouterr().out
    assert "silence, speech, music" in shown and "6 clips of 0.5 s" in shown and "curri_mae, lerp, zero" in shown
    assert cli.run(["bundle", "show", str(tmp_path / "tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["silence", "speech", "music"]


def test_an_altered_bundle_fails_its_check_in_one_sentence(tmp_path, capsys):
    path = write_tiny_bundle(tmp_path / "tiny").path / "gru.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cli.run(["bundle", "check", str(tmp_path / "tiny")]) == 1
    err = capsys.readouterr().err
    assert "gru.safetensors" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold manifest and weights"),
        ('{"manifest": {}, "weights": {}, "more": 1}', "must hold manifest and weights"),
        ('{"manifest": [], "weights": {}}', "manifest must be a JSON object"),
        ('{"manifest": {}, "weights": {}}', "is missing; correct bundle.json"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, capsys, text, sentence):
    (tmp_path / "recipe.json").write_text(text)
    assert cli.run(["bundle", "make", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "made")]) in (1, 2)
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not (tmp_path / "made").exists()


@pytest.mark.parametrize("source", ['"nowhere.safetensors"', '{"from": "trained.safetensors", "prefix": "x."}', "7"])
def test_weights_that_are_not_there_are_one_sentence(recipe, tmp_path, capsys, source):
    plan = json.loads(recipe.read_text())
    plan["weights"]["gru.safetensors"] = json.loads(source)
    recipe.write_text(json.dumps(plan))
    assert cli.run(["bundle", "make", str(recipe), "--out", str(tmp_path / "made")]) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1 and not (tmp_path / "made").exists()
