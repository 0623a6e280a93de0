"""CrissCross's pre-training: recipe, rates, exact resume, learning, accumulation, several processes, the command."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import multiprocessing, nn

from encoders import pretrain_crisscross as loop
from encoders.audiovisual.crisscross import Agreement, AgreementConfig, CrissCross
from encoders.errors import ConfigError, DataError, UsageError
from encoders.larc import LARCAdam
from encoders.layers.shared_norm import SharedBatchNorm, share_batch_norm
from encoders.pretrain_crisscross import RECIPES, pretrain, recipe, resumed
from encoders.processes import processes
from encoders.registry import build
from encoders.training import Interrupted, NotFinite
from runtime.cli import run
from tests.checkpoints import same


def tiny(**changes):
    """8 synthetic instances, 2 batches an epoch."""
    few = {"batch": 4, "clips_per_video": 1, "model.width": 16, "model.bottleneck": 8}
    return recipe("crisscross_tiny", "synthetic:8", **{**few, **changes})


def told(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# --- the recipe ---


@pytest.mark.parametrize("preset", RECIPES)
def test_every_recipe_is_sound(preset):
    assert recipe(preset, "synthetic:8").synchrony == "overlapped"


def test_the_recipe_is_the_paper_s():
    config = recipe("crisscross_base", "kinetics400:PATH")
    assert (config.epochs, config.clips_per_video, config.batch, config.betas) == (100, 5, 2048, (0.9, 0.999))
    assert (config.lr, config.final_lr, config.warmup, config.predictor_lr) == (2e-4, 1e-4, 2.0, 2e-3)
    assert (config.weight_decay, config.trust, config.larc_eps) == (1e-4, 1e-3, 1e-8)
    assert config.objective == AgreementConfig() and (config.model.video_layers, config.model.audio_layers) == (3, 3)
    assert (config.model.video.frames, config.model.video.size) == (8, 112)
    assert (config.augment.frequency_masks, config.augment.frequency_width) == (2, 9)
    assert (config.augment.time_masks, config.augment.time_width, config.augment.cutout_side) == (2, 19, 20)


def test_rates_rise_then_fall_by_half_while_the_predictors_stays(tmp_path, monkeypatch):
    rates = []
    step = LARCAdam.step
    monkeypatch.setattr(
        LARCAdam, "step", lambda self: (rates.append({g["name"]: g["lr"] for g in self.param_groups}), step(self))[1]
    )
    pretrain(tiny(epochs=3, warmup=2.0), tmp_path / "run")
    base, predictor = ([r[f"{m} {part}"] for r in rates for m in ("video", "audio")] for part in ("base", "predictor"))
    base = base[::2]
    assert base[:5] == pytest.approx([0, 5e-4, 1e-3, 1.5e-3, 2e-3])
    assert base[5] == pytest.approx(1.5e-3)  # half of a half cosine, from 2e-3 down to 1e-3
    assert set(predictor) == {2e-3}
    assert told(tmp_path / "run")[0]["lr"] == pytest.approx(5e-4)


def test_groups_hold_every_parameter_once():
    model = CrissCross(tiny().model)
    groups = loop._groups(model)
    assert [g["name"] for g in groups] == ["video base", "video predictor", "audio base", "audio predictor"]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


# --- learning and going on ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return pretrain(tiny(epochs=2, seed=5), tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_epoch_loses_nothing(whole, tmp_path):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after 3 steps; all is saved, go on with --resume"):
        pretrain(tiny(epochs=2, seed=5), tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run" / "video.safetensors").exists()
    torch.manual_seed(1234)  # whatever happened in between
    pretrain(resumed(tmp_path / "run"), tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")
    assert [r["loss"] for r in told(whole)] == [r["loss"] for r in told(tmp_path / "run")]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"precision": "bf16"}, {"workers": 1}])
def test_resuming_is_exact_in_parts_in_bf16_and_with_workers(tmp_path, changes):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    pretrain(tiny(epochs=3, **changes), tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(tiny(epochs=3, **changes), tmp_path / "parts", progress=interrupt)
    pretrain(resumed(tmp_path / "parts"), tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_what_is_left_are_two_encoders_that_say_what_they_are(whole):
    for name, preset in (("video", "r2plus1d_tiny_average"), ("audio", "resnet2d_tiny")):
        with safe_open(whole / f"{name}.safetensors", "pt") as file:
            about = file.metadata()
        assert about["preset"] == preset
        build(preset, **json.loads(about["config"])).load_state_dict(load_file(whole / f"{name}.safetensors"))


def test_the_log_tells_six_agreements_and_whether_clips_collapse(whole):
    row = told(whole)[-1]
    parts = [row[name] for name in ("v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "a1v2")]
    assert row["loss"] == pytest.approx(sum(parts) / 6, abs=1e-6)
    assert 0 < row["video_spread"] < 2 and 0 < row["audio_spread"] < 2


def test_a_loss_that_becomes_nan_stops_before_it_spreads(tmp_path, monkeypatch):
    step, seen = loop.train_step, {}

    def poisoned(run, parts, lr):
        seen["run"] = run
        if run.step == 3:
            with torch.no_grad():
                run.model.video_projector.layer3[1].weight.fill_(torch.nan)
        return step(run, parts, lr)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(NotFinite, match="loss became nan in epoch 1, step 3"):
        pretrain(tiny(), tmp_path / "run")
    saved = load_file(next((tmp_path / "run").glob("checkpoint-*.safetensors")))
    assert all(torch.isfinite(x).all() for x in saved.values() if x.is_floating_point())


def test_overfitting_one_batch_brings_views_together_without_collapse():
    """Four clips whose views have nothing in common, again and again: they learn to agree, and clips stay apart."""
    torch.manual_seed(0)
    model = CrissCross(tiny(**{"model.width": 32}).model).train()
    video = torch.randint(0, 256, (4, 2, 4, 16, 16, 3), dtype=torch.uint8)
    batch = (video, torch.zeros(4, 2, 3, dtype=torch.int64), torch.randn(4, 2, 12, 40))
    optimizer = LARCAdam(loop._groups(model), lr=1e-2, trust=0.1)
    agreement = Agreement(AgreementConfig())
    first = agreement(model(*batch))["loss"].item()
    for _ in range(40):
        optimizer.zero_grad()
        outputs = model(*batch)
        losses = agreement(outputs)
        losses["loss"].backward()
        optimizer.step()
    assert abs(first) < 0.3
    assert losses["loss"].item() < -0.4
    assert losses["v1a2"].item() < -0.4  # also across time and modality
    assert loop.spread(outputs.z["v1"]) > 0.8 and loop.spread(outputs.z["a2"]) > 0.8


@pytest.mark.slow
def test_parts_of_a_batch_are_one_step(tmp_path, monkeypatch):
    """With batch norm frozen, two halves one after the other give the gradient of the whole."""
    monkeypatch.setattr(CrissCross, "train", lambda self, mode=True: nn.Module.train(self, False))
    one = pretrain(tiny(epochs=1), tmp_path / "one")
    two = pretrain(tiny(epochs=1, accumulate=2), tmp_path / "two")
    a, b = (load_file(p / "model.safetensors") for p in (one, two))
    assert all(torch.allclose(a[k], b[k], atol=2e-5) for k in a)
    assert [r["loss"] for r in told(one)] == pytest.approx([r["loss"] for r in told(two)], abs=1e-5)


def test_a_whole_model_can_be_gone_on_from(whole, tmp_path):
    weights = load_file(whole / "model.safetensors")
    seen = {}

    def look(run, parts, lr):
        seen.update({k: v.clone() for k, v in run.model.state_dict().items()})
        raise Interrupted("enough")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", look)
        pretrain(tiny(), tmp_path / "run", weights=weights)
    assert all(torch.equal(seen[k], v) for k, v in weights.items())


# --- contradictions ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"synchrony": "apart"}, "synchrony 'apart' is unknown; use one of same_timestamp, overlapped"),
        ({"warmup": 4.0}, "warmup 4 epochs must be less than the 4 of the run"),
        ({"final_lr": 1.0}, "final_lr 1.0 must lie between 0 and lr 0.002"),
        ({"predictor_lr": 0.0}, "predictor_lr 0.0 must lie in"),
        ({"trust": 0.0}, "trust 0.0 > 0"),
        ({"accumulate": 0}, "accumulate 0 must be at least 1"),
        ({"precision": "fp16"}, "precision 'fp16' is unknown"),
        ({"workers": -1}, "workers -1 must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas \(0.9, 1.0\) must lie in"),
        ({"epochs": 0}, "epochs 0 must be at least 1"),
    ],
)
def test_settings_that_contradict_are_one_sentence(changes, says):
    with pytest.raises(ConfigError, match=says):
        tiny(**changes)


def test_contradictions_stop_before_anything_is_written(whole, tmp_path):
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        pretrain(tiny(), whole)
    with pytest.raises(ConfigError, match="batch 9 is more than the 8 readings of an epoch"):
        pretrain(tiny(batch=9), tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be worked on in 3 parts"):
        pretrain(tiny(accumulate=3), tmp_path / "b")
    with pytest.raises(ConfigError, match="leaves 1 reading for batch norm; use 2 or more"):
        pretrain(tiny(accumulate=4), tmp_path / "c")
    with pytest.raises(DataError, match="the weights to start from lacks"):
        pretrain(tiny(), tmp_path / "d", weights={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_recordings_that_cannot_be_read_are_one_sentence_whoever_reads(tmp_path, capsys, workers):
    for name in "abcd":
        (tmp_path / f"{name}.mp4").write_text("no film")
    command = ["--data", f"folder:{tmp_path}", "--preset", "crisscross_tiny", "--set", f"workers={workers}"]
    assert legato(*command, "--batch", 4, "--device", "cpu", "--out", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "4 recordings in a row cannot be read, the first because" in err


def test_a_clip_too_short_to_be_heard_stops_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="an audio clip of 320 samples is too short for a window of 1024"):
        pretrain(tiny(**{"model.audio.clip_seconds": "1/50"}), tmp_path / "run")


def test_a_resumed_run_may_not_change(whole):
    with pytest.raises(ConfigError, match=r"epochs of the run in .* is fixed"):
        resumed(whole, epochs=9)
    with pytest.raises(ConfigError, match=r"synchrony of the run in .* is fixed"):
        resumed(whole, synchrony="random")
    with pytest.raises(UsageError, match="setting 'epoch' is unknown"):
        resumed(whole, epoch=9)
    assert resumed(whole, log_every=3).log_every == 3


# --- the command ---


def legato(*arguments):
    return run(["train", "crisscross", *map(str, arguments)])


def test_the_command_trains_and_starts_from_another_run(tmp_path, capsys):
    few = ["--preset", "crisscross_tiny", "--set", "clips_per_video=1", "--epochs", 1, "--synchrony", "far_apart"]
    assert legato("--data", "synthetic:8", "--out", tmp_path / "a", *few) == 0
    assert legato("--data", "synthetic:8", "--out", tmp_path / "b", "--init", tmp_path / "a", *few) == 0
    assert legato("--resume", "--out", tmp_path / "b") == 0  # it is done already
    assert capsys.readouterr().out.count("trained: ") == 3
    assert json.loads((tmp_path / "a" / "config.json").read_text())["synchrony"] == "far_apart"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no data to train on; give --data"),
        (["--data", "gird:x"], 2, "dataset 'gird' is unknown; did you mean grid"),
        (["--data", "synthetic:8", "--preset", "crisscros_base"], 2, "did you mean crisscross_base"),
        (["--data", "synthetic:8", "--synchrony", "overlaped"], 2, "synchrony 'overlaped' is unknown; use one of"),
        (["--data", "synthetic:8", "--set", "trust=much"], 2, "trust='much' is not of type float"),
        (["--data", "synthetic:8", "--set", "augment.blurr=0"], 2, "did you mean augment.blur"),
        (["--data", "synthetic:8", "--device", "kuda"], 2, "device 'kuda' cannot be used"),
        (["--data", "synthetic:8", "--init", "nowhere"], 1, "nowhere could not be read"),
        (["--init", "nowhere", "--resume"], 2, "--init nowhere is for a new run and --resume goes on with one"),
        (["--resume"], 1, "holds no run to resume"),
    ],
)
def test_the_command_fails_in_one_sentence(tmp_path, capsys, arguments, code, says):
    preset = [] if "--preset" in arguments else ["--preset", "crisscross_tiny"]
    assert legato(*arguments, *preset, "--out", tmp_path / "b") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("legato: ") and says in last
    assert not list(tmp_path.rglob("*.safetensors"))


# --- several processes ---


def test_shared_batch_norm_alone_is_torch_s_own():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144)))
    x = torch.randn(5, 3, 8, 8)
    wanted = plain.train()(x)
    names = list(plain.state_dict())
    with torch.no_grad():
        plain[1].running_mean.zero_()
    shared = share_batch_norm(plain)
    assert list(shared.state_dict()) == names and isinstance(shared[1], SharedBatchNorm)
    assert torch.equal(shared(x), wanted)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _norm_a_share(rank, port, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with processes():
        changes = {"epochs": 2, "lr": 1e-3, "final_lr": 1e-3}
        pretrain(tiny(**changes), out if rank == 0 else out.with_name("elsewhere"))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_batch_norm_over_both(tmp_path):
    share = (_free_port(), tmp_path / "two")
    multiprocessing.start_processes(_norm_a_share, args=share, nprocs=2, start_method="spawn")
    pretrain(tiny(epochs=2, lr=1e-3, final_lr=1e-3), tmp_path / "one")
    one, two = (told(tmp_path / n) for n in ("one", "two"))
    # Spread is measured in each share by itself; everything else is one batch.
    for name in ("loss", "v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "a1v2"):
        assert [r[name] for r in one] == pytest.approx([r[name] for r in two], abs=2e-3)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for name in a:
        if name.endswith("running_mean"):
            torch.testing.assert_close(a[name], b[name], atol=5e-3, rtol=5e-3)


@pytest.mark.slow
def test_torchrun_trains_and_resumes(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "runtime"]
    few = ["--preset", "crisscross_tiny", "--set", "clips_per_video=1", "--batch", "4", "--epochs", "1"]
    start = ["train", "crisscross", "--data", "synthetic:8", "--device", "cpu", *few, "--out"]
    env, quiet = {**os.environ, "OMP_NUM_THREADS": "1"}, {"capture_output": True, "text": True}
    done = subprocess.run([*torchrun, *start, str(tmp_path / "a")], env=env, **quiet)
    assert (done.returncode, done.stdout.count("trained: ")) == (0, 1)
    assert subprocess.run([*torchrun, *start, str(tmp_path / "b")], env=env, **quiet).returncode == 0
    assert same(tmp_path / "a", tmp_path / "b")
