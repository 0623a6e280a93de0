"""Training on sound alone: what is read, mixed and drawn, AST's schedule and mean of weights, and what is left."""

import json
import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoders.audio.filterbank import Filterbank
from encoders.audio.log_mel import zero_of
from encoders.classifier import Classifier, build_classifier, load_encoder
from encoders.cost import clip_macs
from encoders.datasets.balance import balanced_weights, drawn_order
from encoders.datasets.labelled_pairs import Hearing
from encoders.datasets.labelled_sounds import LabelledSounds, require_sound
from encoders.datasets.mixup import unmixed
from encoders.datasets.sample import Sample
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.views import Views
from encoders.ema import EpochMean
from encoders.errors import ConfigError, DataError
from encoders.finetune import finetune, make_schedule
from encoders.judge import encoder_of, few_shot_of
from encoders.judge import test_run as judged
from encoders.media import AudioTrack, write_media
from encoders.readings import answered, prepared
from encoders.recipes import FinetuneConfig, recipe, recipe_name, resumed
from encoders.registry import ENCODERS
from encoders.training import Interrupted
from runtime.cli import run as legato

RATE = 16_000
TONES = {"low": 300, "high": 2_500}  # Hz
SMALL = {"model.dim": 16, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 32}
PLAIN = Spectrograms(frequency_masks=0, time_masks=0, warp=0)
FRONT = Filterbank()


def tone(label, seconds=1.0, phase=0.0):
    return (0.3 * np.sin(2 * np.pi * TONES[label] * np.arange(round(seconds * RATE)) / RATE + phase)).astype(np.float32)


def tones(folder: Path, train=8, val=4, silent=False, broken=()) -> str:
    """Tones that are low or high, in the layout of ESC-10."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = ["file,speaker,label,split,fold"]
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            label = ("low", "high")[i % 2]
            path = folder / "clips" / f"{split}{i}.wav"
            rows.append(f"clips/{path.name},{split}{i},{label},{split},1")
            sound = tone(label, phase=float(i)) * (not silent)
            if (split, i) in broken:
                path.write_bytes(b"this is no recording")
            else:
                write_media(path, [AudioTrack(samples=sound, codec="pcm_f32le")])
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return f"esc10:{folder}"


def small(data, preset="ast_tiny", **changes) -> FinetuneConfig:
    few = {"epochs": 2, "batch": 4, "warmup": 0.5, "views": "2x1", "log_every": 1}
    return recipe(preset, data, **{**few, **(SMALL if preset == "ast_tiny" else {}), **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("tones"))


def sounds(clips, seconds=Fraction(2, 5), augment=PLAIN, front=FRONT):
    """Samples that are read from a list."""
    samples = [Sample(path=Path(f"{i}.wav"), seconds=len(clip) / RATE) for i, clip in enumerate(clips)]
    return LabelledSounds(samples, seconds, RATE, front, augment, zero=zero_of(front), kept=list(clips))


def rng(seed=0):
    return np.random.default_rng(seed)


# --- readings ---------------------------------------------------------------------------------------------------


def test_a_reading_is_what_the_encoder_makes_of_a_clip_when_it_serves():
    clip = rng().standard_normal(6_400).astype(np.float32) / 10
    read = sounds([clip]).train(0, rng())
    np.testing.assert_allclose(read, FRONT(torch.from_numpy(clip)[None])[0].numpy(), atol=1e-6)


def test_hidden_parts_become_zero_before_the_front_standardises():
    hidden = Spectrograms(frequency_masks=0, time_masks=1, time_share=1.0, warp=0, fill="zero")
    for seed in range(5):
        read = sounds([tone("low", 0.4)], augment=hidden).train(0, rng(seed))
        plain = sounds([tone("low", 0.4)]).train(0, rng(seed))
        rows = (read != plain).any(1)
        np.testing.assert_allclose(read[rows], 4.2677393 / (2 * 4.5689974), rtol=1e-6)
        assert not rows.all() or rows.size == 38


def test_noise_is_added_and_time_turned_around():
    heard = np.arange(20, dtype=np.float32)[:, None].repeat(4, 1)
    noisy = Spectrograms(frequency_masks=0, time_masks=0, warp=0, noise=0.1).changed(heard, rng())
    assert 0 < (noisy - heard).min() < (noisy - heard).max() <= 0.1
    rolled = {int(Spectrograms(frequency_masks=0, time_masks=0, warp=0, roll=3).changed(heard, rng(s))[0, 0])
              for s in range(50)}  # fmt: skip
    assert rolled == {17, 18, 19, 0, 1, 2, 3}


def test_a_short_recording_begins_anew_or_is_filled_up_by_the_front():
    short, front = tone("low", 0.2), Filterbank(frames=38)
    again = sounds([short], front=front).train(0, rng())
    np.testing.assert_allclose(again, sounds([np.tile(short, 2)], front=front).train(0, rng()), atol=1e-6)
    once = Spectrograms(frequency_masks=0, time_masks=0, warp=0, repeat=False)
    filled = sounds([short], augment=once, front=front).train(0, rng())
    assert filled.shape == (38, 128) and (filled[18:] == np.float32(zero_of(front))).all()
    assert (sounds([short], augment=once, front=front).views(0, Views(clips=2))[1] == filled).all()


def test_waveforms_are_mixed_and_so_are_their_targets():
    clips = [tone("low", 0.4), tone("high", 0.4)]
    mixing = Spectrograms(frequency_masks=0, time_masks=0, warp=0, mixup=1.0)
    readings = [sounds(clips, augment=mixing).train(0, rng(seed)) for seed in range(20)]
    assert {int(r["partner"][0]) for r in readings} == {0, 1}  # any recording, this one too
    for r in readings:
        share, partner = float(r["share"][0]), int(r["partner"][0])
        mixed = share * (clips[0] - clips[0].mean()) + (1 - share) * (clips[partner] - clips[partner].mean())
        np.testing.assert_allclose(r["audio"], FRONT(torch.from_numpy(mixed)[None])[0].numpy(), atol=1e-4)
    assert 0.2 < np.mean([r["share"] for r in readings]) < 0.8
    batch = {k: torch.from_numpy(np.stack([r[k] for r in readings[:3]])) for k in readings[0]}
    x, targets = unmixed(batch, lambda at: torch.eye(2)[list(at)], torch.zeros(3, dtype=torch.int64))
    assert x is batch["audio"]
    for row, reading in zip(targets.numpy(), readings, strict=False):
        expected = np.eye(2)[0] * reading["share"] + np.eye(2)[reading["partner"][0]] * (1 - reading["share"])
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_some_clips_stay_unmixed():
    half = Spectrograms(frequency_masks=0, time_masks=0, warp=0, mixup=0.5)
    shares = [sounds([tone("low"), tone("high")], augment=half).train(0, rng(s))["share"][0] for s in range(60)]
    assert 15 < sum(s == 1 for s in shares) < 45


def test_rare_classes_are_drawn_as_often_as_common_ones():
    targets = np.zeros((100, 2), np.float32)
    targets[:90, 0] = targets[90:, 1] = 1
    weights = balanced_weights(targets)
    assert weights[:90].sum() == pytest.approx(0.5)
    drawn = np.concatenate([drawn_order(0, epoch, weights) for epoch in range(20)])
    assert 0.45 < (drawn >= 90).mean() < 0.55
    assert (drawn_order(0, 3, weights) == drawn_order(0, 3, weights)).all()
    both = balanced_weights(np.array([[1.0, 1], [1, 0], [0, 0]]))  # one over two, and one over one, of all
    np.testing.assert_allclose(both, [0.75, 0.25, 0])
    assert 2 not in drawn_order(0, 0, both)
    with pytest.raises(DataError, match="none of 2 samples has a label to balance by; use sampling uniform"):
        balanced_weights(np.zeros((2, 2)))


# --- AST's recipe -----------------------------------------------------------------------------------------------


def test_the_published_columns_are_chosen_by_dataset():
    assert recipe_name("ast_base_10", "audioset:x") == "ast_audioset"
    assert recipe_name("ast_base_16", "audioset_balanced:x") == "ast_audioset_balanced"
    assert recipe_name("ast_base_10", "vggsound:x") == "ast"
    assert recipe_name("ast_base_10", "esc10") == "ast_esc50"
    assert recipe_name("ast_tiny", "esc10") == recipe_name("mat_tiny", "esc10") == "esc10"
    full = recipe("ast_base_10", "audioset:x")
    assert (full.lr, full.batch, full.epochs, full.sampling, full.average) == (1e-5, 12, 5, "balanced", (1, 5))
    masks = full.sound.masks(1024, 128, 0.5)
    assert (masks.frequency_width, masks.time_width, masks.fill, full.sound.mixup) == (48, 192, 0.5, 0.5)
    speech = recipe("ast_base_10", "folder:x", name="ast_speech_commands")
    assert speech.sound.masks(128, 128).time_width == 48 and speech.sound.roll == 10


def test_the_learning_rate_rises_in_stairs_and_falls_by_epochs():
    config = recipe("ast_base_10", "audioset_balanced:x", epochs=25, lr=1.0)
    steps = 2_000
    schedule, total = make_schedule(config, steps), 25 * steps
    rising = [schedule(s / total) for s in (0, 49, 50, 99, 100, 999)]
    assert rising == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.95])
    falling = [schedule(s / total) for s in (1_000, 10 * steps - 1, 10 * steps, 15 * steps - 1, 15 * steps, 20 * steps)]
    assert falling == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_the_mean_of_epochs_is_their_plain_mean():
    layer = torch.nn.Linear(1, 1, bias=False)
    mean = EpochMean(layer)
    for value in (1.0, 4.0, 7.0):
        layer.weight.data.fill_(value)
        mean.update(layer)
    assert mean.model.weight.item() == pytest.approx(4.0) and int(mean.steps) == 3


def test_a_run_of_all_of_it_goes_on_to_the_same_bits(data, tmp_path):
    """Mixed waveforms, drawn samples, stairs, and the mean of two epochs' weights, interrupted in the third epoch."""
    asked = {"epochs": 3, "optimizer": "adam", "schedule": "step", "sampling": "balanced", "average": (2, 3),
             "warmup_steps": 2, "sound.mixup": 0.5, "sound.noise": 0.1, "loss": "sigmoid_mean"}  # fmt: skip
    whole = finetune(small(data, **asked), tmp_path / "whole")
    done = []

    def stop(epoch, batches, steps, loss):
        done.append(loss)
        if len(done) == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        finetune(small(data, **asked), tmp_path / "cut", progress=stop)
    cut = finetune(resumed(tmp_path / "cut"), tmp_path / "cut", resume=True)
    one, other = (load_file(run / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(one[k], other[k]) for k in one)
    saved = load_file(next(whole.glob("checkpoint-*.safetensors")))
    assert int(saved["ema.steps"]) == 2 and torch.equal(saved["ema.model.positions"], one["positions"])
    assert not torch.equal(saved["model.positions"], one["positions"])  # it is the mean that is kept


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["ast_tiny", pytest.param("conv2d_tiny", marks=pytest.mark.slow)])
def test_a_tone_is_learned_and_the_encoder_kept_by_itself(preset, data, tmp_path):
    said = []
    still = {"sound.mixup": 0.0, "sound.frequency_masks": 0, "sound.time_masks": 0, "lr": 0.01}
    run = finetune(small(data, preset, epochs=30, batch=8, **still), tmp_path / "run", say=said.append)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["top1"] == 1.0 and metrics["samples"] == 4 and "8 samples of 2 classes" in said[0]
    overrides = {k.removeprefix("model."): v for k, v in SMALL.items()} if preset == "ast_tiny" else {}
    encoder = load_encoder(preset, overrides, load_file(run / "audio.safetensors"))
    clip = torch.from_numpy(tone("low", float(encoder.clip_seconds)))[None]
    if encoder.spec.sample_rate == RATE:
        assert torch.isfinite(encoder.encode(clip)).all()
    assert judged(run)["top1"] == 1.0
    probe = few_shot_of(encoder_of(run=run), 2, train=("train",), splits=("val",))
    assert probe["top1"] >= 0.5


def test_several_labels_at_once_are_measured_by_mean_average_precision(tmp_path, capsys):
    folder = tmp_path / "audioset"
    folder.mkdir()
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/a,Low\n1,/m/b,High\n")
    for name, first in (("balanced_train", 0), ("eval", 6)):
        rows = ["# YTID, start_seconds, end_seconds, positive_labels"]
        for i in range(first, first + 6):
            which = [("low",), ("high",), ("low", "high")][i % 3]
            mids = ",".join({"low": "/m/a", "high": "/m/b"}[w] for w in which)
            rows.append(f'video{i:06d}, 0.000, 10.000, "{mids}"')
            write_media(folder / f"video{i:06d}.wav", [AudioTrack(samples=sum(map(tone, which)), codec="pcm_f32le")])
        (folder / f"{name}_segments.csv").write_text("\n".join(rows) + "\n")
    sets = [x for k, v in {**SMALL, "warmup_steps": 0, "sound.repeat": "true", "average": "0,0"}.items()
            for x in ("--set", f"{k}={v}")]  # fmt: skip
    command = ["train", "ast_tiny", "--data", f"audioset_balanced:{folder}", "--out", str(tmp_path / "run")]
    assert legato([*command, "--epochs", "2", "--batch", "3", "--workers", "0", "--device", "cpu", *sets]) == 0
    assert "audio.safetensors" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < metrics["map"] <= 1 and metrics["samples"] == 6
    assert json.loads((tmp_path / "run" / "classes.json").read_text())["kind"] == "multi"


def test_a_recording_that_is_none_is_replaced_and_counted(tmp_path):
    data = tones(tmp_path / "tones", broken=[("train", 2), ("val", 1)])
    run = finetune(small(data, cache="none", epochs=1), tmp_path / "run")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[1]["unreadable"] == 1 and json.loads((run / "metrics.json").read_text())["unreadable"] == 1


def test_what_a_clip_costs_is_told_without_computing_it():
    with torch.device("meta"):
        model = build_classifier("ast_tiny", 10)
    assert clip_macs(model, model.spec) / 1e6 == pytest.approx(32.5, rel=0.01)


@pytest.mark.parametrize("preset", [name for name, of in ENCODERS.items() if ".audio." in of and "tiny" in name])
def test_every_encoder_of_sound_takes_what_its_own_front_makes(preset):
    model = build_classifier(preset, 10).eval()
    clip = 0.1 * torch.randn(1, int(model.clip_seconds * model.front.sample_rate))
    if isinstance(model, Classifier):
        model.head.weight.data.normal_()  # or every answer would be zero
    logits = answered(model, prepared(model, model.front(clip)))
    assert logits.shape == (1, 10) and logits.std() > 0
    torch.testing.assert_close(answered(model, model.prepare(clip)), logits)


# --- what is refused --------------------------------------------------------------------------------------------


def test_recordings_that_are_all_silent_are_refused(tmp_path):
    with pytest.raises(DataError, match="all of 8 recordings looked at are silent; give recordings with sound"):
        finetune(small(tones(tmp_path / "tones", silent=True)), tmp_path / "run")
    require_sound(sounds([np.zeros(100, np.float32), tone("low")]))  # one that is not is enough


def test_pictures_alone_are_no_sound(tmp_path):
    class Deaf(LabelledSounds):
        def whole(self, index):
            raise DataError(f"{index}.mp4 has no sound; train on recordings that have one")

    with pytest.raises(DataError, match="none of 1 recordings looked at can be heard, the first because 0"):
        require_sound(Deaf([Sample(path=Path("0.mp4"))], Fraction(1), RATE, FRONT))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sound.mixup": 1.5}, "mixup 1.5 of sound is no share; use 0 to 1"),
        ({"sound.mixup_alpha": 0.0}, "mixup_alpha 0.0 of sound must be more than 0; mixup 0 mixes nothing"),
        ({"sound.noise": -0.1}, "noise -0.1 and roll 0 of sound must be >= 0; use 0 for none"),
        ({"sound.fill": "median"}, "fill"),
        ({"average": (2, 9)}, "average 2,9 must be epochs from 1 to 2, or 0,0 for none"),
        ({"average": (1, 2), "ema": 0.9}, "ema 0.9 and average 1,2 are two means of the weights; use one"),
        ({"decay": 0.0}, r"decay 0.0 of the learning rate must lie in \(0, 1\]"),
        ({"decay_every": 0}, "decay_every 0 must be at least 1"),
        ({"sound.repeat": False}, "repeat False needs a front that fills short sound up, which ast_tiny has not; set"),
        ({"flow_cache": "x"}, "preset ast_tiny sees no flow; leave out flow_cache x"),
        ({"model.clip_seconds": "1/8"}, "a spectrogram of 11 mel frames and 128 bins is smaller than a patch of 16"),
    ],
)
def test_contradictions_are_one_sentence(changes, sentence, data, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=sentence):
        finetune(small(data, **changes), tmp_path / "run")


def test_sound_beside_pictures_is_not_left_short():
    with pytest.raises(ConfigError, match=r"repeat False of sound is for models of sound alone"):
        Hearing(front=FRONT, seconds=Fraction(2, 5), augment=Spectrograms(repeat=False))
