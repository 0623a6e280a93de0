"""Every transformer that runs in a moment, as a frozen encoder of a bundle: made by name, replayed with loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from encoders.adapters import adapted
from encoders.checkpoint import save_weights
from encoders.registry import ENCODERS, build
from encoders.serving import served
from runtime import cli
from runtime.bundle import SHIPPED, Bundle
from runtime.engine import blank
from runtime.forward import Forward
from runtime.packet import Packet
from runtime.recording import RecordingWriter
from runtime.sources import open_source

TRANSFORMERS = [name for name in ENCODERS if "tiny" in name and not name.startswith(("r2plus1d", "conv2d"))]
# One of each class at every change, the others with -m slow.
FIRST = {ENCODERS[name]: name for name in reversed(TRANSFORMERS)}.values()
PRESETS = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in TRANSFORMERS]
DEMO = SHIPPED / "talk" / "demo.legato"


def start_of_the_demo(path: Path, seconds: float) -> Path:
    """The first packets of the bundled demo, which lost some on its way, as a recording named after its file."""
    with open_source(DEMO) as source:
        info = replace(source.info, name=path.stem, duration=None)
        origin = float(info.origin or 0)
        with RecordingWriter(path, info) as recording:
            for packet in source.packets():
                if isinstance(packet, Packet) and packet.decode_seconds < origin + seconds:
                    recording.append(packet, packet.arrival)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    return start_of_the_demo(tmp_path_factory.mktemp("demo") / "start.legato", 5)


def make(out: Path, *options: object) -> int:
    return cli.run(["bundle", "make", "--out", str(out), *map(str, options)])


def replayed(bundle: Path, source: Path, capsys, *options: str) -> list[dict]:
    capsys.readouterr()
    command = ["replay", str(source), "--bundle", str(bundle), "--device", "cpu", "--json", "--no-timings"]
    assert cli.run([*command, *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def encoders_of(preset: str, weights: Path) -> list[object]:
    """The options that put a preset into a bundle: with a sound net beside it, or for both modalities."""
    encoder = build(preset)
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, weights)
    mine = [option for m in encoder.modalities for option in (f"--{m}", preset, f"--{m}-weights", weights)]
    other = {("video",): ["--audio", "conv2d_tiny"], ("audio",): ["--video", "vivit_tiny_fe"]}
    return mine + other.get(encoder.modalities, [])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tiny_transformer_replays_a_lossy_recording(preset, recording, tmp_path, capsys):
    options = [*encoders_of(preset, tmp_path / "w.safetensors"), "--labels", "a,b", "--imputer", "lerp"]
    assert make(tmp_path / "made", *options, "--window", 3) == 0
    said = replayed(tmp_path / "made", recording, capsys, "--loss", "wifi-poor", "--seed", "1")
    assert len(said) >= 8 and all(p["probabilities"].keys() == {"a", "b"} for p in said)
    rungs = {rung for p in said for clip in p["clips"] for rung in clip["rung"].values()}
    states = {state for p in said for clip in p["clips"] for state in clip["state"].values()}
    assert {"observed", "lerp"} <= rungs and "observed" in states and len(states) > 1
    assert all(p["bundle"] == Bundle.load(tmp_path / "made").hash for p in said)


def test_a_joint_encoder_is_one_file_and_one_network(tmp_path, capsys):
    joint = [name for name in TRANSFORMERS if build(name).modalities == ("video", "audio")]
    assert make(tmp_path / "made", *encoders_of(joint[0], tmp_path / "w.safetensors"), "--labels", "a,b") == 0
    bundle = Bundle.load(tmp_path / "made")
    assert {part.weights for part in bundle.manifest.encoders.values()} == {"encoder.safetensors"}
    models = bundle.models()
    assert models.video_encoder.encoder is models.audio_encoder.encoder
    capsys.readouterr()
    assert cli.run(["bundle", "check", str(tmp_path / "made"), "--json"]) == 0
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert parameters["video"] > 0 and parameters["audio"] == 0  # counted once


def test_draft_features_imputer_head_bundle_replay(recording, tmp_path, capsys):
    """The whole way by the commands, from an encoder to predictions on a lossy recording."""
    encoders = encoders_of("vivit_tiny_fe", tmp_path / "w.safetensors")
    audio = tmp_path / "audio.safetensors"
    save_weights(audio, build("conv2d_tiny", clip_seconds="2/5").state_dict())
    encoders += ["--audio-weights", audio]
    assert make(tmp_path / "draft", *encoders, "--labels", "no,yes", "--name", "first") == 0
    assert "draft" in Bundle.load(tmp_path / "draft").manifest.training
    media = tmp_path / "recordings"
    media.mkdir()
    rows = ["file,label,split"]
    for name, label, split in (("a", "no", "train"), ("b", "yes", "train"), ("c", "no", "validation")):
        start_of_the_demo(media / f"{name}.legato", 4)
        rows.append(f"{name}.legato,{label},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    features, mae, head = tmp_path / "f.safetensors", tmp_path / "mae", tmp_path / "head"
    command = ["features", str(media), "--bundle", str(tmp_path / "draft"), "--out", str(features), "--device", "cpu"]
    assert cli.run([*command, "--labels", str(tmp_path / "labels.csv")]) == 0
    train = ["--features", str(features), "--steps", "2", "--device", "cpu"]
    assert cli.run(["train", "curri-mae", *train, "--out", str(mae), "--preset", "curri_mae_tiny"]) == 0
    assert cli.run(["train", "head", *train, "--out", str(head), "--imputer", str(mae), "--sampling", "uniform"]) == 0

    options = [*encoders, "--features", features, "--imputer", mae, "--head", head]
    assert make(tmp_path / "made", *options) == 0
    bundle = Bundle.load(tmp_path / "made")
    assert bundle.manifest.labels == ("no", "yes") and "draft" not in bundle.manifest.training
    assert list(bundle.manifest.heads) == ["head"] and [r.rung for r in bundle.manifest.ladder] == ["curri_mae", "zero"]
    std = bundle.models().standardiser.std
    assert (std != 1).any()  # fitted on the training split, as training did
    said = replayed(tmp_path / "made", recording, capsys, "--loss", "wifi-poor", "--seed", "1")
    rungs = {rung for p in said for clip in p["clips"] for rung in clip["rung"].values()}
    assert "curri_mae" in rungs and any(p["confidence"] > 0.5 for p in said)


def test_an_encoder_of_32_frames_sees_a_clip_of_ten_sampled_by_time(recording, tmp_path, capsys):
    options = ["--video", "vivit_tiny_fe", "--set", "video.frames=32", "--clip-seconds", "2/5", "--labels", "a,b"]
    assert make(tmp_path / "made", *options) == 0
    bundle = Bundle.load(tmp_path / "made")
    assert bundle.models().video_encoder.spec.frames == 32
    assert len(replayed(tmp_path / "made", recording, capsys)) >= 4


def test_the_clip_of_a_published_model_sets_the_grid_and_the_sound_follows(recording, tmp_path, capsys):
    options = ["--video", "vivit_tiny_fe", "--audio", "conv2d_tiny", "--set", "video.frames=32", "--labels", "a,b"]
    assert make(tmp_path / "made", *options, "--clip-seconds", "64/25", "--window", 1) == 0
    manifest = Bundle.load(tmp_path / "made").manifest
    assert {part.overrides["clip_seconds"] for part in manifest.encoders.values()} == {"64/25"}
    assert replayed(tmp_path / "made", recording, capsys)


def test_a_trained_classifier_leaves_its_head_behind(tmp_path, capsys):
    model = build("vivit_tiny", classes=7)
    about = {"preset": "vivit_tiny", "config": json.dumps({"classes": 7, "crop_share": 0.5})}
    save_weights(tmp_path / "model.safetensors", model.state_dict(), about)
    options = ["--video", "vivit_tiny", "--video-weights", tmp_path / "model.safetensors", "--labels", "a,b"]
    assert make(tmp_path / "made", *options) == 0
    assert "video encoder vivit_tiny has fresh" not in capsys.readouterr().err
    bundle = Bundle.load(tmp_path / "made")
    assert bundle.manifest.encoders["video"].overrides == {"crop_share": 0.5}
    assert not any(name.startswith("head") for name in bundle.models().video_encoder.state_dict())


def test_a_face_preset_brings_the_face_finder(tmp_path):
    options = ["--video", "vivit_tiny_fe", "--set", "video.region=face", "--labels", "a,b"]
    assert make(tmp_path / "made", *options) == 0
    models = Bundle.load(tmp_path / "made").models()
    assert models.face is not None and models.video_encoder.no_face is not None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "a bundle needs an encoder; name one with --video or --audio, or give a recipe"),
        (["--video", "vivit_tiny_ef"], "encoder 'vivit_tiny_ef' is unknown; did you mean vivit_tiny_fe"),
        (["--video", "conv2d_tiny"], "conv2d_tiny is for audio; name another preset"),
        (["--audio", "vivit_tiny"], "vivit_tiny is for video; name another preset"),
        (["--video", "vivit_tiny"], "labels [] are fewer than two; give --labels a,b, or --head or --features"),
        (["--video", "vivit_tiny", "--labels", "a,a"], "labels ['a', 'a'] are not all different"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--set", "size=32"], "--set size=32 must begin with video. or"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--set", "video.sise=32"], "setting 'sise' is unknown"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--set", "video.frames=9"], "frames"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--set", "audio.x=1"], "--set audio.x has no encoder to go to"),
        (["--video-weights", "w"], "--video-weights w has no encoder to go to; name its preset with --video"),
        (["--video", "vivit_tiny", "--video-weights", "w", "--labels", "a,b"], "weights w could not be read: it does"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--head", "nowhere"], "nowhere holds no head"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--imputer", "nowhere"], "nowhere holds no imputer"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--features", "nowhere"], "nowhere is not a feature file"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--clip-seconds", "x"], "--clip-seconds 'x' is no length"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--clip-seconds", "-1"], "--clip-seconds -1 must be above 0"),
        (
            ["--video", "vivit_tiny", "--labels", "a,b", "--clip-seconds", "1/3333333333"],
            "is not a positive multiple of",
        ),
        (["--audio", "conv2d_tiny", "--labels", "a,b", "--clip-seconds", "1/44100"], "choose a clip length that gives"),
        (["--video", "vivit_tiny", "--labels", "a,b", "--name", "a b"], "a bundle cannot be called 'a b'; give --name"),
        (["--video", "vivit_tiny", "recipe.json"], "recipe recipe.json and --video or --audio are two ways"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(options, sentence, tmp_path, capsys):
    assert make(tmp_path / "made", *options) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "made").exists()


def test_weights_of_another_preset_are_refused_by_name(tmp_path, capsys):
    save_weights(tmp_path / "w.safetensors", build("vivit_tiny").state_dict(), {"preset": "vivit_tiny"})
    options = ["--video", "vivit_tiny_fe", "--labels", "a,b", "--video-weights", tmp_path / "w.safetensors"]
    assert make(tmp_path / "made", *options) == 1
    assert "holds weights of vivit_tiny, not vivit_tiny_fe; name that preset" in capsys.readouterr().err
    save_weights(tmp_path / "w.safetensors", build("vivit_tiny").state_dict())  # without a header
    assert make(tmp_path / "made", *options) == 1
    err = capsys.readouterr().err
    assert "lacks over_space" in err and err.count("\n") == 1


@pytest.mark.parametrize("preset", list(FIRST))
def test_a_batch_in_bfloat16_gives_the_features_of_one_clip_to_rounding(preset):
    torch.manual_seed(0)
    encoder = build(preset).eval()
    for modality in encoder.modalities:
        one = adapted(encoder, modality, encoder.dim)
        clips = [blank(one.spec, one.clip_seconds) for _ in range(3)]
        draws = np.random.default_rng(0)
        clips = [draws.integers(0, 255, c.shape, np.uint8) if c.dtype == np.uint8 else
                 draws.normal(0, 0.1, c.shape).astype(np.float32) for c in clips]  # fmt: skip
        cpu = torch.device("cpu")
        exact = np.concatenate([Forward(one, cpu, torch.float32)([clip]) for clip in clips])
        batch = Forward(served(one, dtype=torch.bfloat16, batched=True), cpu, torch.bfloat16)(clips)
        scale = np.abs(exact).max()
        assert np.abs(batch - exact).max() < 0.05 * scale
        np.testing.assert_allclose(Forward(one, cpu, torch.float32)(clips), exact, atol=1e-5 * scale)


@pytest.mark.slow
def test_the_whole_demo_replays_through_a_transformer(tmp_path, capsys):
    options = ["--video", "vivit_tiny_fe", "--audio", "conv2d_tiny", "--labels", "a,b", "--imputer", "lerp"]
    assert make(tmp_path / "made", *options) == 0
    said = replayed(tmp_path / "made", DEMO, capsys)
    assert said[-1]["end_seconds"] > 40 and said == replayed(tmp_path / "made", DEMO, capsys)
