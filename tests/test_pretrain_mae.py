"""Masked pre-training: exact resumption, learning, what is read, what is refused, two processes against one."""

import json
import os
import signal
import socket
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import multiprocessing

from encoders import pretrain_mae as loop
from encoders.audio.log_mel import FRONTS
from encoders.audiovisual.av_mae_decoder import MaskedAutoencoder
from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.checkpoint import load_weights
from encoders.datasets.labelled import Look
from encoders.datasets.labelled_pairs import Hearing, LabelledPairs, Span
from encoders.datasets.sample import Sample
from encoders.datasets.unlabelled import Reading, open_readings
from encoders.datasets.views import ClipSampling, views_of
from encoders.errors import ConfigError, DataError, UsageError
from encoders.media import AudioTrack, VideoTrack, write_media
from encoders.pretrain_mae import pretrain, recipe, resumed
from encoders.processes import processes
from encoders.recipe_tables.masked import RECIPES
from encoders.registry import build
from encoders.training import Interrupted, NotFinite
from runtime.cli import run as legato
from tests.checkpoints import same
from tests.moving import bar

SMALL = {  # 2 of 4 instances a batch, the smallest model that sees and hears
    "batch": 2, "warmup": 0.0, "workers": 0, "save_every": 1, "log_every": 1, "cache": "none",
    "model.dim": 16, "model.depth": 2, "model.joint_depth": 1, "model.heads": 2, "model.mlp_dim": 32,
    "decoder.dim": 16, "decoder.mlp_dim": 32, "decoder.heads": 2, "model.video.size": 32, "model.video.frames": 4,
}  # fmt: skip


def small(data="synthetic:4", **changes):
    return recipe("av_mae_tiny", data, **{**SMALL, **changes})


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return pretrain(small(epochs=3), tmp_path_factory.mktemp("runs") / "whole")


# --- runs ---


def test_ctrl_c_in_the_middle_of_an_epoch_loses_nothing(whole, tmp_path):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after 3 steps; all is saved, go on with --resume"):
        pretrain(small(epochs=3), tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    pretrain(resumed(tmp_path / "run"), tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")
    columns = ("step", "epoch", "lr", "loss", "video", "audio", "unreadable")
    assert [[r[c] for c in columns] for r in log(whole)] == [[r[c] for c in columns] for r in log(tmp_path / "run")]


def test_a_run_leaves_its_encoder_with_what_it_is_of(whole):
    with safe_open(whole / "encoder.safetensors", "pt") as file:
        about = file.metadata()
    assert about["preset"] == "av_mae_tiny"
    encoder = build(about["preset"], **json.loads(about["config"]))
    load_weights(encoder, load_file(whole / "encoder.safetensors"), what="the run's encoder")
    sizes = json.loads(about["config"])
    assert (sizes["dim"], sizes["video"]["size"], sizes["video"]["clip_seconds"]) == (16, 32, "2/5")
    kept = load_file(whole / "model.safetensors")
    assert all(torch.equal(v, kept[f"encoder.{k}"]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("alone", ["video", "audio"])
def test_one_modality_is_trained_alone(alone, tmp_path):
    other = "audio" if alone == "video" else "video"
    out = pretrain(small(epochs=1, **{f"model.{other}": None}), tmp_path / "run")
    assert set(log(out)[-1]) == {"step", "epoch", "lr", "unreadable", "seconds", "loss", alone}
    assert not [name for name in load_file(out / "model.safetensors") if f".{other}" in name]


def test_kernels_decay_and_nothing_else(tmp_path):
    config = small(epochs=1)
    model = MaskedAutoencoder(config.model, config.decoder, config.objective)
    kernels, others = config.optimizer(model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (kernels["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in kernels["params"])
    assert {"decoder.mask_tokens.video", "encoder.trunks.joint.norm.weight"} <= {names[id(p)] for p in others["params"]}
    assert len(kernels["params"]) + len(others["params"]) == len(names)


def test_a_loss_that_becomes_nan_stops_before_it_spreads(tmp_path):
    def poison(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            with torch.no_grad():
                alive["run"].model.decoder.mask_tokens["video"].fill_(torch.nan)

    alive = {}
    step = loop.train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFinite, match="loss became nan in epoch 1, step 3"):
        patch.setattr(loop, "train_step", lambda run, *rest: step(alive.setdefault("run", run), *rest))
        pretrain(small(epochs=3), tmp_path / "run", progress=poison)
    saved = load_file(next((tmp_path / "run").glob("checkpoint-*.safetensors")))
    assert all(torch.isfinite(x).all() for x in saved.values() if x.is_floating_point())


def test_masks_are_the_whole_batch_s_whoever_draws_them():
    config = small(batch=4)
    run = loop._Run(config, Path(), None, None)
    whole = loop._masks_of(run, 0, 1)
    halves = [loop._masks_of(run, place, 2) for place in range(2)]
    for m in ("video", "audio"):
        assert torch.equal(torch.cat([half.hidden[m] for half in halves]), whole.hidden[m])
    run.step = 1
    assert not torch.equal(loop._masks_of(run, 0, 1).hidden["video"], whole.hidden["video"])


@pytest.mark.slow
def test_parts_of_a_batch_give_what_the_batch_gives(tmp_path):
    for accumulate in (1, 2):
        pretrain(small(epochs=2, batch=4, accumulate=accumulate), tmp_path / str(accumulate))
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_it_learns_what_recordings_look_and_sound_like(tmp_path):
    out = pretrain(small("synthetic:8", batch=8, epochs=150, lr=3e-3, save_every=150), tmp_path / "run")
    losses = log(out)
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]


# --- what is read ---


def two_seconds(folder: Path, deaf=()) -> str:
    """Four recordings of 2 s: bars, and a tone that rises from second to second."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(4):
        t = np.arange(32_000) / 16_000
        sound = (0.3 * np.sin(2 * np.pi * np.where(t < 1, 400, 1500) * t)).astype(np.float32)
        tracks = [VideoTrack(frames=np.concatenate([bar(1, 3 + i)] * 7)[:50])]
        write_media(folder / f"{i}.mp4", tracks + ([] if i in deaf else [AudioTrack(samples=sound)]))
    return f"folder:{folder}"


VIDEO = VideoInput(frames=4, size=32, tubelet=(2, 16, 16), clip_seconds=Fraction(16, 25))
LONG = AudioInput(frames=160, bins=48, patch=(16, 16), clip_seconds=Fraction(8, 5), front="log_mel_talk")


def test_recordings_on_disk_are_read_and_those_without_sound_replaced(tmp_path):
    data = two_seconds(tmp_path / "data", deaf=(2,))
    out = pretrain(small(data, epochs=1, **{"objective.hidden_video": 0.5}), tmp_path / "run")
    assert log(out)[-1]["unreadable"] == 1
    silent = pretrain(small(data, epochs=1, **{"model.audio": None}), tmp_path / "seen")
    assert log(silent)[-1]["unreadable"] == 0


def test_recordings_that_all_lack_sound_are_refused_before_the_first_step(tmp_path):
    data = two_seconds(tmp_path / "data", deaf=range(4))
    with pytest.raises(DataError, match="none of 4 recordings looked at has sound; give recordings with both"):
        pretrain(small(data, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sound_may_last_longer_than_its_pictures(tmp_path):
    """Both begin as far along what there is of each: MBT and AV-MAE hear 8 s around the 2.56 s they see."""
    readings = open_readings(two_seconds(tmp_path / "data"), VIDEO, LONG, Reading(stride=4))
    found = readings.train(0, np.random.default_rng(0))
    assert found["video"].shape == (4, 32, 32, 3) and found["audio"].shape == (160, 48)
    readings.keep(1.0)
    again = readings.train(0, np.random.default_rng(0))
    np.testing.assert_array_equal(found["video"], again["video"])
    # In its last window the change of pitch, a second from the beginning, is heard after 0.6 of 1.6 s.
    last = readings.views(0, views_of("2x1"))["audio"][1]
    loudest = last.argmax(1)
    assert loudest[:55].max() < loudest[70:150].min()


def test_sound_apart_from_its_pictures_begins_as_far_along():
    hearing = Hearing(front=FRONTS["log_mel_talk"], seconds=Fraction(8), apart=True)
    assert [hearing.start(s, 2.56, 10.0) for s in (0.0, 3.72, 7.44)] == pytest.approx([0.0, 1.0, 2.0])
    assert hearing.start(1.0, 2.56, 5.0) == 0.0  # there is less than a clip of it: all, and again
    assert hearing.start(0.0, 2.56, 2.0) == 0.0


def test_a_sound_shorter_than_asked_for_is_repeated():
    rate = 16_000
    sound = np.arange(rate, dtype=np.float32)
    pairs = LabelledPairs(
        [Sample(path=Path("x.mp4"), seconds=1.0)],
        ClipSampling(frames=4, stride=4),
        Look(size=8, short_side=8),
        Hearing(front=FRONTS["log_mel_talk"], seconds=Fraction(2), apart=True),
        read_span=lambda sample, start, seconds, frames: Span(
            np.zeros((frames, 8, 8, 3), np.uint8), sound[: int(seconds * rate)]
        ),
    )
    for _ in range(2):
        heard = pairs.span(0, Fraction(0)).sound
        np.testing.assert_array_equal(heard, np.tile(sound, 2))
        pairs.keep(1.0)


# --- recipes ---


def test_recipes_are_the_paper_s():
    vgg, aud = recipe("av_mae_large", "vggsound:x"), recipe("av_mae_large_audioset", "audioset:x")
    assert (vgg.epochs, vgg.batch, vgg.lr, vgg.warmup) == (400, 512, 3e-4, 4)
    assert (vgg.betas, vgg.weight_decay) == ((0.9, 0.95), 0.05)
    assert (vgg.objective.hidden_video, vgg.objective.hidden_audio, vgg.clip) == (0.9, 0.5, 0)
    assert (vgg.model.encoder, vgg.decoder.kind) == ("separate", "shared")
    assert (aud.epochs, aud.lr, aud.objective.hidden_audio) == (120, 6e-4, 0.7)
    assert (aud.model.encoder, aud.model.joint_depth, aud.model.counts["audio"]) == ("mid", 2, 496)
    assert (vgg.decoder.dim, vgg.decoder.heads, vgg.decoder.mlp_dim, vgg.decoder.depth) == (512, 8, 2048, 4)
    assert (vgg.reading.stride, vgg.reading.augment.colour, vgg.reading.sound.time_masks) == (4, 0, 0)
    base = recipe("av_mae_base_shared", "vggsound:x")
    assert (base.decoder.kind, base.decoder.dim) == ("separate", 384)
    assert [recipe("av_mae_large", "vggsound:x", name=f"av_mae_vggsound_{n}").epochs for n in (200, 800, 1200)] == [
        200, 800, 1200
    ]  # fmt: skip
    assert recipe("av_mae_base_audio", "audioset:x").objective.targets == ("audio",)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name):
    assert recipe("av_mae_tiny", "synthetic:8", name=name).recipe == name


def test_a_resumed_run_may_not_change(whole):
    assert resumed(whole, workers=1).workers == 1
    with pytest.raises(ConfigError, match=r"lr of the run in .* is fixed"):
        resumed(whole, lr=0.5)
    with pytest.raises(DataError, match="holds no run to resume"):
        resumed(whole / "nowhere")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder.kind": "separate", "model.encoder": "separate"}, "two models that never meet"),
        ({"batch": 5}, "batch 5 is more than the 4 recordings; use a smaller one"),
        ({"accumulate": 3, "batch": 4}, "batch 4 cannot be shared by 1 processes in 3 parts each; use a multiple of 3"),
        ({"warmup": 5.0, "epochs": 5}, "the warm-up of 10 steps takes all 10; shorten it or train longer"),
        ({"lr": 0.0}, r"lr 0.0 must lie in \(0, 100\]"),
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"model.video.region": "face"}, "the model looks at faces; name a face net, --set reading.face="),
        ({"model.audio.front": ""}, "recordings bring samples, not spectrograms; name a front"),
    ],
)
def test_contradictions_stop_before_anything_is_built(changes, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        pretrain(small(**changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# --- the command ---


def test_the_command_trains_and_goes_on(tmp_path, capsys):
    few = [option for key, value in SMALL.items() if "." in key for option in ("--set", f"{key}={value}")]
    start = ["--batch", "2", "--workers", "0", "--cache", "none", "--set", "warmup=0", "--device", "cpu"]
    train = ["train", "av_mae_tiny", "--out", str(tmp_path / "a")]
    assert legato([*train, "--data", "synthetic:4", "--epochs", "1", *start, *few]) == 0
    assert legato([*train, "--resume", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("trained: ") == 2
    assert legato(["train", "av_mae_base", "--out", str(tmp_path / "a"), "--resume"]) == 2
    assert "holds a run of av_mae_tiny, not of av_mae_base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no data to train on; give --data"),
        (["--data", "gird:x"], 2, "dataset 'gird' is unknown; did you mean grid"),
        (["--data", "synthetic:x"], 2, "names no number of instances"),
        (["--data", "synthetic:8", "--train-split", "train"], 2, "has no split 'train'; leave the split out"),
        (["--data", "synthetic:8", "--data", "synthetic:9"], 2, "reads one dataset but 2 are given"),
        (["--data", "synthetic:8", "--views", "4x3"], 2, "--views is for labelled training"),
        (["--data", "synthetic:8", "--init", "x"], 2, "--init x is for fine-tuning"),
        (["--data", "synthetic:8", "--recipe", "av_mae_vgg"], 2, "did you mean av_mae_vggsound"),
        (["--data", "synthetic:8", "--set", "objective.inpant=true"], 2, "did you mean objective.inpaint"),
        (["--data", "synthetic:8", "--set", "objective.targets=sound"], 2, "targets"),
        (["--data", "synthetic:8", "--set", "model.encoder=late"], 2, "model.encoder='late' is not"),
    ],
)
def test_the_command_fails_in_one_sentence(tmp_path, capsys, arguments, code, says):
    assert legato(["train", "av_mae_tiny", *arguments, "--out", str(tmp_path / "b")]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("legato: ") and says in last
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_preset_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="preset vivit_tiny is no masked autoencoder; name one such as av_mae_tiny"):
        recipe("vivit_tiny", "synthetic:8")
    with pytest.raises(UsageError, match="recipe 'mae' is unknown"):
        recipe("av_mae_tiny", "synthetic:8", name="mae")


# --- two processes ---


def _train_a_share(rank, port, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with processes():
        pretrain(small(epochs=2, batch=4), out if rank == 0 else out.with_name("elsewhere"))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_on_the_whole_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_train_a_share, args=(port, tmp_path / "two"), nprocs=2, start_method="spawn")
    pretrain(small(epochs=2, batch=4), tmp_path / "one")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3, msg=name)
    losses = [[r["loss"] for r in log(tmp_path / n)] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert not (tmp_path / "elsewhere" / "log.jsonl").exists()  # one process writes
