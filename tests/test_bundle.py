"""Bundles: whole or refused in one sentence, written whole or not at all, and models that are exactly the weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import runtime.bundle as bundles
from encoders import registry
from encoders.video import face_box
from runtime.bundle import Bundle
from runtime.errors import BundleError, LegatoError, OutputError, UsageError
from runtime.manifest import parse_manifest
from runtime.weights import check_weights
from tests.bundles import ENCODERS, LABELS, tiny_manifest, tiny_tensors, write_tiny_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(values | changes))


def reweigh(folder: Path, file: str, change) -> Bundle:
    """The bundle with one weight file changed, and its checksum with it."""
    tensors = {name: load_file(folder / name) for name in tiny_manifest().weights_files}
    change(tensors[file])
    return Bundle.write(folder, tiny_manifest(), tensors)


# -- loading --------------------------------------------------------------------------------------------------------


def test_a_bundle_that_was_written_is_read(folder):
    bundle = Bundle.load(folder)
    assert bundle.manifest.labels == LABELS
    assert bundle.manifest.clip_seconds * 2 == 1
    assert set(bundle.manifest.sha256) == {path.name for path in folder.glob("*.safetensors")}


def test_a_bundle_that_forgives_nothing_is_written_as_ever_and_one_that_does_says_so():
    plain, kind = tiny_manifest(), tiny_manifest(forgive={"video": 1.0, "audio": 0.5})
    assert plain.forgive == {} and '"forgive"' not in plain.to_json()
    assert parse_manifest(plain.to_json(), "it") == plain
    assert parse_manifest(kind.to_json(), "it").forgive == {"video": 1.0, "audio": 0.5}


def test_the_hash_follows_every_weight(folder):
    before = Bundle.load(folder).hash
    assert Bundle.load(folder).hash == before
    after = reweigh(folder, "gru.safetensors", lambda state: state["classifier.bias"].add_(1)).hash
    assert after != before


def test_loading_a_bundle_imports_no_torch(folder):
    program = "import sys; from runtime.bundle import Bundle; Bundle.load(sys.argv[1]); print('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", program, folder], cwd=root, capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "SHIPPED", tmp_path)
    for name in ("talk", "sign"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").touch()
    with pytest.raises(UsageError, match=r"bundle 'tlak' is unknown; did you mean talk\? known: sign, talk; or give"):
        Bundle.load("tlak")
    with pytest.raises(UsageError, match=r"bundle 'zzz' is unknown; known: sign, talk; or give a bundle's folder"):
        Bundle.load("zzz")


def test_a_shipped_bundle_is_found_by_name(original, monkeypatch):
    monkeypatch.setattr(bundles, "SHIPPED", original.parent)
    assert Bundle.load("tiny").path == original


def test_what_is_no_bundle_is_said_so(tmp_path, folder):
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no bundle\.json"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match="there is no folder"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(BundleError, match="is not a bundle but a file"):
        Bundle.load(folder / "bundle.json")


def test_a_missing_file_is_named(folder):
    (folder / "gru.safetensors").unlink()
    with pytest.raises(BundleError, match=r"gru\.safetensors is missing; restore the file"):
        Bundle.load(folder)


def test_truncated_weights_are_said_to_be_truncated(folder):
    file = folder / "video.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(BundleError, match=rf"video\.safetensors is truncated: {size - 1} bytes instead of {size}"):
        Bundle.load(folder)
    os.truncate(file, 100)
    with pytest.raises(BundleError, match=r"video\.safetensors is truncated inside its header"):
        Bundle.load(folder)
    os.truncate(file, 3)
    with pytest.raises(BundleError, match=r"video\.safetensors is no safetensors file"):
        Bundle.load(folder)


def test_an_altered_byte_is_found(folder):
    file = folder / "video.safetensors"
    data = bytearray(file.read_bytes())
    data[-8] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"video\.safetensors is not what the bundle was made with \(sha256"):
        Bundle.load(folder)


def test_a_weight_without_a_checksum_is_refused(folder):
    digests = Bundle.load(folder).manifest.sha256
    edit(folder, sha256={name: d for name, d in digests.items() if name != "gru.safetensors"})
    with pytest.raises(BundleError, match=r"bundle\.json has no sha256 for gru\.safetensors"):
        Bundle.load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_that_is_not_finite_is_refused(tmp_path, dtype):
    for value in (float("nan"), float("-inf")):
        weight = torch.ones(3, 4, dtype=dtype)
        save_file({"a": weight, "b": torch.ones(2)}, tmp_path / "good.safetensors")
        assert check_weights(tmp_path / "good.safetensors") == {"a": (3, 4), "b": (2,)}
        weight[1, 2] = value
        save_file({"a": weight, "b": torch.ones(2)}, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match="holds a number that is not finite in a"):
            check_weights(tmp_path / "bad.safetensors")


def test_a_newer_format_asks_for_an_update(folder):
    edit(folder, format_version=2, something_new=1)
    with pytest.raises(BundleError, match="has format 2 and this Legato reads up to 1; update Legato"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": None}, "has no format_version"),
        ({"window": 0}, "window is 0: input should be greater than or equal to 1"),
        ({"windows": 3}, "windows is no field of a bundle"),
        ({"min_clips": 7}, "min_clips 7 is above the window of 6 clips"),
        ({"clip_seconds": "a/0"}, "clip_seconds is 'a/0': input should be seconds like 0.4 or 2/5"),
        ({"clip_seconds": True}, "clip_seconds is True: input should be seconds like"),
        ({"labels": ["a", "a"]}, r"labels \['a', 'a'\] are not all different"),
        ({"forgive": {"video": 1.5}}, r"forgive\.video is 1\.5: input should be less than or equal to 1"),
        ({"forgive": {"smell": 0.5}}, "forgive.smell"),
        ({"thresholds": {"video": 1.0}}, r"thresholds\.video is 1\.0: input should be less than 1"),
        ({"thresholds": {"video": 0.5}}, "thresholds has no value for audio"),
        ({"content_policy": {"ugly": ["video"]}}, "content_policy names the flag 'ugly'; known: frozen"),
        ({"standardise": "../../etc/x.safetensors"}, "standardise is '../../etc/x.safetensors': string should match"),
        ({"standardise": "x.pt"}, "standardise is 'x.pt': string should match"),
        ({"ladder": ["lerp", "lerp"]}, "names a rung twice"),
        ({"heads": {}}, "heads is {}: dictionary should have at least 1 item"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(folder, change, sentence):
    edit(folder, **change)
    with pytest.raises(BundleError, match=sentence):
        Bundle.load(folder)


def test_a_missing_field_is_named(folder):
    values = json.loads((folder / "bundle.json").read_text())
    del values["encoders"]["audio"]["preset"]
    (folder / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"encoders\.audio\.preset is missing"):
        Bundle.load(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none_is_a_sentence(folder, text):
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"is not JSON|has no format_version|is not text"):
        Bundle.load(folder)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_weight_file_is_worse_than_a_sentence(tmp_path_factory, data):
    whole = bytearray(save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.int64)}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        whole[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(whole)
    try:
        shapes = check_weights(path)
    except ValueError as error:
        assert str(error)
    else:
        assert all(isinstance(shape, tuple) for shape in shapes.values())


# -- writing --------------------------------------------------------------------------------------------------------


def test_a_bundle_that_cannot_be_loaded_is_never_put_in_place(tmp_path):
    tensors = tiny_tensors()
    tensors["gru.safetensors"]["classifier.bias"][0] = float("nan")
    with pytest.raises(BundleError, match=r"gru\.safetensors holds a number that is not finite in classifier\.bias"):
        Bundle.write(tmp_path / "tiny", tiny_manifest(), tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_bundle_alone(folder, monkeypatch):
    before = Bundle.load(folder)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles, "_write_file", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        Bundle.write(folder, tiny_manifest(), tiny_tensors())
    assert Bundle.load(folder).hash == before.hash
    assert list(folder.parent.iterdir()) == [folder]


def test_replacing_a_bundle_keeps_its_card_and_leaves_nothing_behind(folder):
    (folder / "card.md").write_text("trained on nothing")
    (folder / "stale.safetensors").write_bytes(b"")
    Bundle.write(folder, tiny_manifest(description="new"), tiny_tensors(), {"notes.txt": "new"})
    assert Bundle.load(folder).manifest.description == "new"
    assert (folder / "card.md").read_text() == "trained on nothing"
    assert (folder / "notes.txt").read_text() == "new"
    assert not (folder / "stale.safetensors").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="holds something that is no bundle; choose another folder"):
        write_tiny_bundle(tmp_path)
    with pytest.raises(OutputError, match="is a file; choose another folder"):
        write_tiny_bundle(tmp_path / "holiday.jpg")


def test_tensors_and_manifest_must_name_the_same_files(tmp_path):
    tensors = tiny_tensors()
    head = tensors.pop("gru.safetensors")
    with pytest.raises(BundleError, match=r"there are no tensors for gru\.safetensors"):
        Bundle.write(tmp_path / "tiny", tiny_manifest(), tensors)
    with pytest.raises(BundleError, match=r"no part of the manifest names spare\.safetensors"):
        Bundle.write(tmp_path / "tiny", tiny_manifest(), {**tensors, "gru.safetensors": head, "spare.safetensors": {}})


# -- models ---------------------------------------------------------------------------------------------------------


def test_models_are_the_weights_frozen_and_fit_together(original):
    bundle = Bundle.load(original)
    models = bundle.models()
    tensors = tiny_tensors()
    for name, module in {"video": models.video_encoder, "audio": models.audio_encoder, **models.heads}.items():
        state = module.state_dict()
        assert all(torch.equal(state[key], value) for key, value in tensors[f"{name}.safetensors"].items())
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert list(models.heads) == ["gru", "linear"]
    assert models.ladder.rungs == ("curri_mae", "lerp", "zero")
    assert models.ladder.min_shares == [0.0, 0.1, 0.0]
    assert models.calibration["final"].temperatures == (2.0, 1.0)
    assert models.calibration["provisional"].temperatures == (1.0, 1.0)
    assert models.face is None

    features, presence = torch.randn(1, 8, 2, 16), torch.rand(1, 8, 2) > 0.5
    filled = models.ladder(models.standardiser(features), presence)
    assert models.heads["gru"](filled.features[:, :6], presence[:, :6], filled.variance[:, :6]).shape == (1, 3)


def test_building_models_leaves_the_random_generator_alone(original):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Bundle.load(original).models()
    assert torch.equal(torch.rand(3), expected)


def test_a_bundle_of_one_modality_has_no_other_encoder(tmp_path):
    tensors = tiny_tensors()
    del tensors["audio.safetensors"]
    manifest = tiny_manifest(encoders={"video": {"preset": "r2plus1d_tiny", "weights": "video.safetensors"}})
    models = Bundle.write(tmp_path / "tiny", manifest, tensors).models()
    assert models.audio_encoder is None
    assert models.video_encoder is not None


def test_half_precision_weights_serve_in_full_precision(folder):
    bundle = reweigh(folder, "gru.safetensors", lambda s: s.update({k: v.half() for k, v in s.items()}))
    head = bundle.models().heads["gru"]
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s.update({"classifier.bias": torch.zeros(4)}),
            r"classifier\.bias in gru\.safetensors has shape \(4,",
        ),
        (lambda s: s.pop("classifier.bias"), r"gru\.safetensors lacks classifier\.bias, which the head gru needs"),
        (lambda s: s.update(more=torch.zeros(1)), r"gru\.safetensors holds more, which the head gru has no place for"),
    ],
)
def test_a_weight_out_of_place_is_named(folder, change, sentence):
    with pytest.raises(BundleError, match=sentence):
        reweigh(folder, "gru.safetensors", change).models()


def face_parts() -> tuple[dict, dict, dict]:
    """Manifest fields and tensors of an encoder that looks at faces, and of what finds them."""
    video, face = registry.build("r2plus1d_tiny", region="face"), face_box.build("face_box_tiny")
    part = {"preset": "r2plus1d_tiny", "overrides": {"region": "face"}, "weights": "video.safetensors"}
    finder = {"preset": "face_box_tiny", "weights": "face.safetensors"}
    return part, finder, {"video.safetensors": video.state_dict(), "face.safetensors": face.state_dict()}


def test_an_encoder_that_looks_at_faces_gets_crops_of_its_size(tmp_path):
    part, finder, tensors = face_parts()
    manifest = tiny_manifest(encoders={**ENCODERS, "video": part}, face=finder)
    models = Bundle.write(tmp_path / "tiny", manifest, tiny_tensors() | tensors).models()
    assert models.face.size == models.video_encoder.spec.size
    assert not models.face.model.training


def test_a_face_finder_and_an_encoder_that_wants_faces_come_together(tmp_path):
    part, finder, tensors = face_parts()
    lone = tiny_tensors() | {"video.safetensors": tensors["video.safetensors"]}
    with pytest.raises(BundleError, match="looks at faces and the bundle has no face finder; add face"):
        Bundle.write(tmp_path / "a", tiny_manifest(encoders={**ENCODERS, "video": part}), lone).models()
    deaf = tiny_tensors() | {"face.safetensors": tensors["face.safetensors"]}
    del deaf["video.safetensors"]
    with pytest.raises(BundleError, match="there is a face finder and no video encoder"):
        Bundle.write(tmp_path / "b", tiny_manifest(encoders={"audio": ENCODERS["audio"]}, face=finder), deaf).models()


def one(preset: str, **overrides: object) -> dict[str, object]:
    return {"preset": preset, "overrides": overrides, "weights": "video.safetensors"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"encoders": {"video": one("r2plus1d_tniy")}},
            "the video encoder cannot be built: encoder 'r2plus1d_tniy' is",
        ),
        ({"encoders": {"video": one("r2plus1d_tiny", sizes=3)}}, "the video encoder cannot be built: .*'sizes'"),
        ({"encoders": {"audio": one("r2plus1d_tiny")}}, "the audio encoder r2plus1d_tiny is for video"),
        ({"clip_seconds": 0.4}, r"takes clips of 0\.5 s and clip_seconds is 0\.4; make them one"),
        ({"labels": ["a", "b"]}, "the head gru has 3 classes and there are 2 labels"),
        ({"window": 9}, "the imputer takes 8 clips and window \\+ lookahead is 11"),
        ({"ladder": ["spline"]}, "the rung spline cannot be built: imputer 'spline' is unknown"),
        ({"ladder": ["curri_mae_tiny"]}, "the rung curri_mae_tiny is trained and has no weights"),
        ({"calibration": {"final": {"warmth": 1}}}, "the final calibration cannot be built: .*'warmth'"),
        ({"calibration": {"final": {"offsets": [0, 0]}}}, "the final calibration has 2 offsets for 3 labels"),
    ],
)
def test_parts_that_do_not_fit_are_named(folder, change, sentence):
    edit(folder, **change)
    with pytest.raises(BundleError, match=sentence) as caught:
        Bundle.load(folder).models()
    assert isinstance(caught.value, LegatoError)
