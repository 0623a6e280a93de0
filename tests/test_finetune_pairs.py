"""Training on pictures and sound at once: what is read, what is absent, views, resuming, and what is exported."""

import json
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from encoders.audio.log_mel import FRONTS
from encoders.audiovisual.mm_mix import PRESETS
from encoders.classifier import build_classifier, encoder_file, load_encoder
from encoders.datasets.augment import Augment
from encoders.datasets.labelled import Look
from encoders.datasets.labelled_pairs import Hearing, LabelledPairs, Span, Spectrograms, require_both
from encoders.datasets.mixup import mixup
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling, Views
from encoders.errors import ConfigError, DataError, OutputError
from encoders.finetune import finetune
from encoders.judge import encoder_of, few_shot_of
from encoders.judge import test_run as judged
from encoders.labelled_data import open_splits
from encoders.media import AudioTrack, VideoTrack, write_media
from encoders.multi_view import score_each
from encoders.readings import answered, as_tensors, only, prepared
from encoders.recipes import recipe, recipe_name, resumed
from encoders.training import Interrupted
from encoders.video.flow import FlowCache, FlowConfig, mirror_flow, optical_flow
from encoders.video.views import View
from runtime.cli import run as legato
from tests.checkpoints import same
from tests.moving import bar

PLAIN = Augment(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
STILL = {"augment.mirror": 0.0, "augment.colour": 0.0, "augment.grayscale": 0.0, "augment.scale": (1.0, 1.0)}
SECONDS = Fraction(8, 25)  # of a recording, and of the model's clip: 8 frames, 32 mel frames
TONES = {"left": 400, "right": 1500}  # Hz
RATE = 16_000
EARS = Hearing(front=FRONTS["log_mel_talk"], seconds=Fraction(2, 5))
SMALL = {  # the smallest model that sees, hears and follows
    "model.views": tuple(
        View(width=16, layers=2, heads=2, mlp=32, tubelet=8 if sees != "rgb" else 2, sees=sees, patch=patch)
        for sees, patch in (("flow", (16, 16)), ("audio", (8, 16)), ("rgb", (16, 16)))
    ),
    "model.clip_seconds": SECONDS, "model.frames": 8, "model.size": 32, "model.crop_share": 1.0,
    "model.fusion_layers": (1,), "model.global_layers": 1, "model.global_heads": 2, "model.global_mlp": 32,
    "model.global_width": 16,
}  # fmt: skip


def tone(label, seconds=float(SECONDS)):
    return (0.3 * np.sin(2 * np.pi * TONES[label] * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def heard(folder: Path, train=8, val=4, deaf=(), blind=(), broken=()) -> str:
    """Bars that move left or right, and a tone that says where; some files lack one of them, or are no files."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            label, direction = (("left", -1), ("right", 1))[i % 2]
            path = folder / split / label / f"{split}{i:08d}_000000_000010.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            if (split, i) in broken:
                path.write_bytes(b"this is no recording")
                continue
            tracks = [VideoTrack(frames=bar(direction, int(random.integers(40)))), AudioTrack(samples=tone(label))]
            write_media(path, [t for t, lacks in zip(tracks, (blind, deaf), strict=True) if (split, i) not in lacks])
    return f"kinetics400:{folder}"


def small(data: str, **changes):
    few = {"epochs": 2, "batch": 4, "warmup": 0.5, "workers": 0, "views": "1x1", "lr": 0.05, "log_every": 1}
    return recipe("mm_mix_tiny", data, **{**few, **SMALL, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("heard"), deaf={("train", 2), ("val", 0)}, blind={("train", 5)})


MIXED = {
    "mixup": 0.3, "smoothing": 0.1, "stochastic_depth": 0.3, "ema": 0.9, "sound.gain": 0.3, "sound.time_share": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Everything that draws: mixup, stochastic depth, lost modalities, masks, gain, and a running mean."""
    return finetune(small(data, **MIXED), tmp_path_factory.mktemp("runs") / "whole")




def log(run: Path):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "time")} for r in rows if "lr" in r]


# --- what is read ---


def numbered(sample, start, seconds, frames):
    """Frames and samples that say which 25 Hz frame they are of."""
    at = [int((start + (i + 0.5) * float(seconds) / frames) * 25 + 1e-6) for i in range(frames)]
    sound = np.repeat(np.arange(round((start + float(seconds)) * 25)), RATE // 25)[round(start * RATE) :]
    return Span(np.stack([np.full((16, 24), t, np.uint8) for t in at]), sound.astype(np.float32))


def pairs(lengths=(4.0,), stride=1, frames=10, read=numbered, **changes):
    samples = [Sample(path=Path(f"{i}.mp4"), seconds=s, label="ab"[i % 2]) for i, s in enumerate(lengths)]
    look, sampling = Look(size=16, short_side=16, pixel_format="gray"), ClipSampling(frames=frames, stride=stride)
    return LabelledPairs(samples, sampling, look, EARS, PLAIN, read_span=read, **changes)


def moments(span):
    return span.frames[:, 0, 0].tolist(), span.sound[:: RATE // 25].astype(int).tolist()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("length", "start"), [(4.0, "1.6"), (4.0, "0"), (0.16, "0")])
def test_pictures_and_sound_are_of_the_same_moments(kept, length, start):
    data = pairs((length,))
    if kept:
        data.keep(1.0)
    seen, sounded = moments(data.span(0, Fraction(start)))
    first = round(float(start) * 25)
    assert seen == sounded == [(first + i) % round(length * 25) for i in range(10)]


def test_a_clip_spread_over_a_word_hears_the_whole_word():
    data = pairs((0.8,), stride=0)
    seen, sounded = moments(data.span(0, Fraction(0)))
    assert (seen, sounded) == ([1, 3, 5, 7, 9, 11, 13, 15, 17, 19], list(range(20)))
    assert data.train(0, np.random.default_rng(0))["audio"].shape == (40, 48)


def test_starts_lie_on_the_grid_of_frames():
    data, starts = pairs(), set()
    for seed in range(50):
        clip = data.train(0, np.random.default_rng(seed))["video"]
        assert clip.shape == (10, 16, 16)
        starts.add(int(clip[0, 0, 0]))
    assert min(starts) < 20 and max(starts) > 70


def test_a_span_as_long_as_the_clip_is_heard_as_a_stream_hears_it():
    sound = np.random.default_rng(0).normal(0, 0.1, 6400).astype(np.float32)
    front = FRONTS["log_mel_talk"]
    assert np.array_equal(EARS.hear(sound), front(torch.from_numpy(sound)[None])[0].numpy())
    twice = EARS.hear(np.concatenate([sound, sound]))
    assert twice.shape == (40, 48)
    assert EARS.hear(sound[:10]).shape == (40, 48)  # shorter than any window


def test_only_training_changes_sound():
    sound, random = tone("left", 0.4), np.random.default_rng(0)
    masked = replace(EARS, augment=Spectrograms(time_masks=1, time_share=0.5, frequency_masks=0, warp=0))
    quiet = masked.hear(sound)
    assert np.array_equal(quiet, EARS.hear(sound))
    assert any(not np.array_equal(masked.hear(sound, random), quiet) for _ in range(5))
    assert Spectrograms().masks(800, 128).time_width == 48
    assert Spectrograms().masks(40, 48).frequency_width == 18


@pytest.mark.parametrize(
    ("lacks", "presence"), [("frames", [False, True]), ("sound", [True, False]), ("", [True, True])]
)
def test_what_a_recording_lacks_is_said_and_zero(lacks, presence):
    def read(*asked):
        return replace(numbered(*asked), **({lacks: None} if lacks else {}))

    data = pairs(read=read, flow=FlowConfig())
    for reading, rows in ((data.train(0, np.random.default_rng(0)), ()), (data.views(0, Views(clips=2)), (2,))):
        assert np.array_equal(reading["presence"], np.broadcast_to(presence, (*rows, 2)))
        assert reading["video"].shape == (*rows, 10, 16, 16)
        assert reading["audio"].shape == (*rows, 40, 48)
        assert reading["flow"].shape == (*rows, 10, 16, 16, 2)
        assert bool(reading["video"].any()) == presence[0]
        assert bool(reading["audio"].any()) == presence[1]


def test_views_are_squares_with_the_same_sound():
    views = pairs().views(0, Views(clips=2, crops=3))
    assert views["video"].shape == (6, 10, 16, 16)
    assert views["audio"].shape == (6, 40, 48)
    assert [v[0, 0, 0] for v in views["video"]] == [0, 0, 0, 90, 90, 90]
    assert np.array_equal(views["audio"][0], views["audio"][2])


# --- flow ---


def moving_bar(*asked):
    return Span(np.stack([frame[..., 0] for frame in bar(1, 3)]), None)


def flowing(tmp_path, augment=PLAIN):
    path = tmp_path / "a.mp4"
    if not path.exists():  # another time of change would be another recording
        path.touch()
    look, sampling = Look(size=32, short_side=32, pixel_format="gray"), ClipSampling(frames=8, stride=1)
    cache = FlowCache(tmp_path / "flow", FlowConfig())
    samples = [Sample(path=path, seconds=0.32, label="a")]
    return LabelledPairs(samples, sampling, look, None, augment, FlowConfig(), cache, moving_bar)


def test_flow_moves_along_with_the_pictures_and_comes_from_the_cache(tmp_path, monkeypatch):
    plain = flowing(tmp_path).views(0, Views(crops=3))
    mirrored = flowing(tmp_path, replace(PLAIN, mirror=1.0)).train(0, np.random.default_rng(0))
    random = np.random.default_rng(0)
    fields = optical_flow(moving_bar().frames)
    random.uniform()  # where it starts: there is but one place
    left = int([random.integers(1), random.integers(9)][1])
    want = mirror_flow(fields[:, :, left : left + 32]).astype(np.float16)
    assert np.array_equal(mirrored["flow"], want)
    assert np.array_equal(mirrored["video"], moving_bar().frames[:, :, left : left + 32][:, :, ::-1])
    assert np.array_equal(plain["flow"][0], fields[:, :, :32].astype(np.float16))

    def never(*_):
        raise AssertionError("it is in the cache")

    monkeypatch.setattr("encoders.video.flow.optical_flow", never)
    again = flowing(tmp_path).views(0, Views(crops=3))
    assert np.array_equal(again["flow"], plain["flow"])


def test_a_larger_picture_moves_further():
    clip, flow = moving_bar().frames, optical_flow(moving_bar().frames)
    twice = replace(PLAIN, scale=(2.0, 2.0))
    _, moved = twice.with_flow(clip, flow, 32, 32, np.random.default_rng(0))
    assert moved.shape == (8, 32, 32, 2)
    assert np.abs(moved).max() == pytest.approx(2 * np.abs(flow).max(), rel=0.3)


# --- batches ---


def test_mixed_clips_have_what_both_have_or_else_either():
    presence = torch.tensor([[True, True], [True, False], [False, True], [False, True]])
    x = {"rgb": torch.arange(4.0)[:, None], "presence": presence}
    mixed, targets = mixup(x, torch.eye(4), 0.5, np.random.default_rng(0))
    share = float(np.random.default_rng(0).beta(0.5, 0.5))
    assert mixed["presence"].tolist() == [[False, True], [True, True], [True, True], [False, True]]
    torch.testing.assert_close(mixed["rgb"], torch.lerp(x["rgb"].flip(0), x["rgb"], share))
    torch.testing.assert_close(targets[0], torch.tensor([share, 0, 0, 1 - share]))


def test_scores_with_one_modality_are_those_of_clips_without_the_other(data):
    config = small(data)
    torch.manual_seed(0)
    model = build_classifier(config.preset, 2, config.encoder)
    torch.nn.init.normal_(model.head.weight)
    instances = open_splits(config)[2].open_for(model)
    each = score_each(model, instances, Views(clips=1, crops=3), 2, batch=5)
    assert [int(read.sum()) for _, read in each.values()] == [4, 4, 3]  # the first has no sound
    reading = as_tensors(instances.views(1, Views(clips=1, crops=3)))
    x = prepared(model.eval(), reading)
    with torch.no_grad():
        for present in ("video", "audio"):
            expected = answered(model, only(x, present)).mean(0)
            torch.testing.assert_close(each[present][0][1], expected)
    assert not torch.allclose(each["video"][0][1], each["audio"][0][1])


# --- a run ---


def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(data, whole, tmp_path):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        finetune(small(data, **MIXED), tmp_path / "run", progress=interrupt)
    torch.manual_seed(4321)
    flow = tmp_path / "flow"  # which changes nothing but the time it takes
    finetune(resumed(tmp_path / "run", flow_cache=str(flow)), tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")
    assert log(whole) == log(tmp_path / "run")
    assert (whole / "metrics.json").read_text() == (tmp_path / "run" / "metrics.json").read_text()
    assert list(flow.rglob("*.npz"))


def test_what_lacks_a_modality_is_counted_and_each_is_measured_alone(whole):
    assert [(r["unreadable"], r["without_video"], r["without_audio"]) for r in log(whole)][1::2] == [(0, 1, 1)] * 2
    metrics = json.loads((whole / "metrics.json").read_text())
    assert (metrics["samples"], metrics["video_samples"], metrics["audio_samples"]) == (4, 4, 3)
    assert {"top1", "video_top1", "audio_top1", "loss", "video_loss", "audio_loss"} <= metrics.keys()
    assert judged(whole)["audio_loss"] == pytest.approx(metrics["audio_loss"])


def test_the_encoder_is_one_file_that_stands_for_both(whole, tmp_path):
    overrides = {k.removeprefix("model."): v for k, v in SMALL.items()}
    file = whole / encoder_file("mm_mix_tiny", overrides)
    assert file.name == "encoder.safetensors"
    encoder = load_encoder("mm_mix_tiny", overrides, load_file(file))
    assert encoder.encode(torch.zeros(2, 8, 32, 32, dtype=torch.uint8), "video").shape == (2, 16)
    assert encoder.encode(torch.zeros(2, 5120), "audio").shape == (2, 16)
    with safe_open(str(file), "pt") as opened:
        assert opened.metadata()["preset"] == "mm_mix_tiny"
    one = ["--video", "mm_mix_tiny", "--audio", "mm_mix_tiny", "--video-weights", file, "--audio-weights", file]
    out = tmp_path / "bundle"
    assert legato(["bundle", "make", *map(str, one), "--labels", "left,right", "--out", str(out)]) == 0
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["encoders"]["video"] == manifest["encoders"]["audio"]
    assert load_file(out / "encoder.safetensors").keys() == encoder.state_dict().keys()


def test_a_probe_sees_and_hears(whole):
    found = few_shot_of(encoder_of(run=whole), 2, train=("train",), splits=("val",))
    assert found["samples"] == 4
    assert found["top1"] >= 0.5


def test_unreadable_recordings_are_replaced_counted_and_named_once(tmp_path):
    said = []
    data = heard(tmp_path / "data", broken={("train", 1), ("train", 4)})
    out = finetune(small(data), tmp_path / "run", say=said.append)
    assert [r["unreadable"] for r in log(out)][1::2] == [2, 2]
    told = [line for line in said if "cannot be read" in line]
    assert len(told) == 1
    assert "is taken instead; the log counts such recordings as unreadable" in told[0]
    said.clear()
    out = finetune(small(data, cache="memory"), tmp_path / "kept", say=said.append)
    assert [r["unreadable"] for r in log(out)] == [2] * len(log(out))
    assert any("2 of 8 samples cannot be read and are left out" in line for line in said)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_recordings_that_all_lack_the_same_are_refused(tmp_path, cache):
    deaf = heard(tmp_path / "deaf", 4, 0, deaf={("train", i) for i in range(4)})
    blind = heard(tmp_path / "blind", 4, 0, blind={("train", i) for i in range(4)})
    one = {"validation_splits": (), "cache": cache, "batch": 2}
    with pytest.raises(DataError, match="none of 4 recordings looked at has sound; give recordings with both"):
        finetune(small(deaf, **one), tmp_path / "run")
    with pytest.raises(DataError, match="none of 4 recordings looked at has a picture"):
        finetune(small(blind, **one), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_sound_among_many_is_enough():
    silent = pairs((4.0,) * 3, read=lambda *asked: replace(numbered(*asked), sound=None))
    with pytest.raises(DataError, match="none of 3 recordings looked at has sound"):
        require_both(silent)
    one = pairs((4.0,) * 3, read=lambda s, *a: numbered(s, *a) if s.path.stem == "2" else Span(None, None))
    require_both(one)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"augment.simclr": True}, ConfigError, "simclr turns time around, which sound and flow cannot follow"),
        ({"augment.area": (0.1, 1.0)}, ConfigError, "cuts boxes that flow cannot follow; use scale instead"),
        ({"sound.gain": 1.5}, ConfigError, r"gain 1.5 of sound is no share; use 0 to 1"),
        ({"sound.time_masks": -1}, ConfigError, "time_masks -1 must be >= 0"),
        ({"flow_cache": "/dev/null/flow"}, OutputError, "flow_cache /dev/null/flow cannot be made"),
        ({"model.clip_seconds": Fraction(1, 3)}, ConfigError, "cannot be"),
    ],
)
def test_contradictions_stop_before_anything_is_trained(data, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        finetune(small(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_of_flow_needs_a_view_of_it(data, tmp_path):
    config = recipe("vivit_tiny_fe", data, flow_cache=str(tmp_path), batch=4, warmup=0.5)
    with pytest.raises(ConfigError, match="preset vivit_tiny_fe sees no flow; leave out flow_cache"):
        finetune(config, tmp_path / "run")


# --- recipes ---


def test_recipes_of_mm_mix():
    assert recipe_name("mm_mix_base", "epic_kitchens:x") == "mm_mix_epic_kitchens"
    assert recipe_name("mm_mix_tiny", "kinetics400:x") == "mm_mix"
    epic = recipe("mm_mix_base", "epic_kitchens:x")
    mtv = recipe("mtv_b", "epic_kitchens:x")
    same = ("epochs", "batch", "lr", "smoothing", "stride", "views", "stochastic_depth", "augment", "schedule")
    assert all(getattr(epic, name) == getattr(mtv, name) for name in same)
    assert PRESETS["mm_mix_base"].frames == 64
    lips = recipe("mm_mix_tiny", "grid_lips:x")
    assert (lips.recipe, lips.stride, lips.sound.gain) == ("lips_sound", 0, 0.5)
    assert lips.encoder["motion"] and lips.encoder["region"] == "face"


@pytest.mark.slow
def test_the_tiny_model_learns_what_it_sees_and_what_it_hears(tmp_path):
    data = heard(tmp_path / "data", 16, 8)
    sizes = {"model.size": 32, "model.clip_seconds": Fraction(2, 5), "model.crop_share": 1.0}
    few = {"optimizer": "adamw", "lr": 1e-3, "epochs": 40, "batch": 8, "warmup": 2.0, "workers": 0, "views": "1x1",
           "cache": "memory", "eval_every": 40, "sound.time_masks": 0, "sound.frequency_masks": 0}  # fmt: skip
    out = finetune(recipe("mm_mix_tiny", data, **{**few, **STILL, **sizes}), tmp_path / "run")
    found = judged(out)
    assert found["audio_top1"] == found["top1"] == 1.0
    assert found["video_top1"] >= 0.75
