"""Pre-training: exact resume, Ctrl-C, broken losses, learning, and two processes against one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from encoders import pretrain as loop
from encoders.audiovisual.avid_cma import AVIDCMA, Objective
from encoders.datasets.reader import PairSpec, open_pairs
from encoders.errors import ConfigError, DataError, UsageError
from encoders.pretrain import RECIPES, pretrain, recipe, resumed
from encoders.processes import processes
from encoders.training import Interrupted, NotFinite
from runtime.cli import run
from tests.checkpoints import same


def tiny(stage="avid", **changes):
    """8 synthetic instances, 2 batches an epoch."""
    few = {"batch": 4, "clips_per_video": 1, "objective.negatives": 4, "objective.within_negatives": 2}
    return recipe("avid_cma_tiny", stage, "synthetic:8", **{**few, "objective.positives": 2, **changes})


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in map(json.loads, (run / "log.jsonl").read_text().splitlines())]


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    return pretrain(tiny(epochs=4), tmp_path_factory.mktemp("runs") / "avid")


def test_two_epochs_and_two_more_are_four(stage_one, tmp_path):
    pretrain(tiny(epochs=2), tmp_path / "run")
    torch.manual_seed(1234)  # whatever happened in between
    pretrain(resumed(tmp_path / "run", epochs=4), tmp_path / "run", resume=True)
    assert same(stage_one, tmp_path / "run")
    assert losses(stage_one) == losses(tmp_path / "run")
    assert load_file(stage_one / "video.safetensors").keys() == load_file(tmp_path / "run/video.safetensors").keys()


def test_stage_two_goes_on_the_same_way(stage_one, tmp_path):
    """Resampling falls on the seam: the second half begins with a search."""
    pretrain(tiny("cma", epochs=3, resample_every=2), tmp_path / "whole", stage_one=stage_one)
    pretrain(tiny("cma", epochs=2, resample_every=2), tmp_path / "parts", stage_one=stage_one)
    pretrain(resumed(tmp_path / "parts", epochs=3), tmp_path / "parts", resume=True)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_stage_two_starts_from_model_memory_and_constant_of_stage_one(stage_one, tmp_path):
    seen = {}

    def look(run, batch, lr):
        seen.update({k: v.clone() for k, v in run.objective.state_dict().items()})
        seen.update({k: v.clone() for k, v in run.model.state_dict().items()})
        raise Interrupted("enough")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", look)
        pretrain(tiny("cma"), tmp_path / "cma", stage_one=stage_one)
    before = load_file(next(stage_one.glob("checkpoint-*.safetensors")))
    assert torch.equal(seen["nce_average.view1_mem"], before["objective.nce_average.view1_mem"])
    assert torch.equal(seen["criterion.avg_exp_score"], before["objective.criterion.avg_exp_score"])
    assert torch.equal(seen["video_proj.projection.4.weight"], before["model.video_proj.projection.4.weight"])
    assert seen["nce_average.positive_set"].shape == (8, 2)


def test_ctrl_c_in_the_middle_of_an_epoch_loses_nothing(stage_one, tmp_path):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after 3 steps; all is saved, go on with --resume"):
        pretrain(tiny(epochs=4), tmp_path / "run", progress=interrupt)
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.endswith(".part")]
    assert not (tmp_path / "run" / "video.safetensors").exists()
    pretrain(resumed(tmp_path / "run"), tmp_path / "run", resume=True)
    assert same(stage_one, tmp_path / "run")


def test_a_loss_that_becomes_nan_stops_before_it_spreads(tmp_path):
    def poison(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            with torch.no_grad():
                next(iter(alive["run"].model.parameters())).fill_(torch.nan)

    alive = {}
    step = loop.train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFinite, match="loss became nan in epoch 1, step 3"):
        patch.setattr(loop, "train_step", lambda run, *rest: step(alive.setdefault("run", run), *rest))
        pretrain(tiny(epochs=4), tmp_path / "run", progress=poison)
    saved = load_file(next((tmp_path / "run").glob("checkpoint-*.safetensors")))
    assert all(torch.isfinite(x).all() for x in saved.values() if x.is_floating_point())
    assert torch.isfinite(alive["run"].objective.nce_average.view1_mem).all()


def test_overfitting_a_batch_makes_picture_and_sound_find_each_other(tmp_path):
    """8 instances that share nothing but a hidden code; new readings of them are matched far above chance."""
    few = {"batch": 8, "clips_per_video": 1, "objective.negatives": 7}
    config = recipe("avid_cma_tiny", "avid", "synthetic:8", **{**few, "epochs": 100, "lr": 3e-3, "save_every": 100})
    out = pretrain(config, tmp_path / "run")
    model = AVIDCMA(config.model)
    untrained = retrieval(model)
    model.load_state_dict(load_file(out / "model.safetensors"))
    assert untrained < 0.4
    assert retrieval(model) >= 0.75  # chance is 1/8


def retrieval(model: AVIDCMA) -> float:
    """How often a picture is nearest to its own instance's sound, over four readings never trained on."""
    spec = PairSpec(
        video=model.video_model.spec,
        video_seconds=model.video_model.clip_seconds,
        audio=model.audio_model.spec,
        audio_seconds=model.audio_model.clip_seconds,
    )
    pairs, found = open_pairs("synthetic:8", spec), []
    for reading in range(4):
        clips = [pairs.read(i, np.random.default_rng([77, reading, i])) for i in range(8)]
        video, audio = (torch.from_numpy(np.stack(part)) for part in zip(*clips, strict=True))
        with torch.no_grad():
            v, a = model.eval()(video, audio)
        found += [(v @ a.T).argmax(1) == torch.arange(8)]
    return float(torch.cat(found).float().mean())


# --- settings ---


@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize("stage", ["avid", "cma"])
def test_every_recipe_is_sound(preset, stage):
    assert recipe(preset, stage, "synthetic:8").objective.stage == stage


def test_recipes_are_the_paper_s():
    kinetics, audioset = (recipe(f"avid_cma_base{x}", "avid", "synthetic:8") for x in ("", "_audioset"))
    assert (kinetics.lr, kinetics.epochs, kinetics.clips_per_video, kinetics.batch) == (2e-4, 30, 10, 256)
    assert (audioset.lr, audioset.epochs, audioset.clips_per_video, audioset.batch) == (5e-4, 40, 5, 160)
    kinetics, audioset = (recipe(f"avid_cma_base{x}", "cma", "synthetic:8") for x in ("", "_audioset"))
    assert (kinetics.lr, kinetics.epochs, kinetics.resample_every) == (2e-4, 20, 5)
    assert (audioset.lr, audioset.epochs, audioset.resample_every) == (1e-4, 40, 10)
    assert (kinetics.weight_decay, kinetics.betas, kinetics.schedule) == (1e-5, (0.9, 0.999), "constant")
    objective = kinetics.objective
    assert (objective.temperature, objective.negatives, objective.momentum) == (0.07, 1024, 0.5)
    assert (objective.positives, objective.within_negatives) == (32, 64)


def test_a_resumed_run_may_grow_but_not_change(stage_one):
    assert resumed(stage_one, epochs=9).epochs == 9
    with pytest.raises(ConfigError, match=r"lr of the run in .* is fixed"):
        resumed(stage_one, lr=0.5)
    with pytest.raises(UsageError, match="setting 'epoch' is unknown; did you mean epochs"):
        resumed(stage_one, epoch=9)
    with pytest.raises(DataError, match="holds no run to resume"):
        resumed(stage_one / "nowhere")


def test_contradictions_stop_before_anything_is_built(stage_one, tmp_path):
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        pretrain(tiny(), stage_one)
    with pytest.raises(ConfigError, match="stage cma starts from a run of stage avid; name its folder with --init"):
        pretrain(tiny("cma"), tmp_path / "a")
    with pytest.raises(ConfigError, match="batch 9 is more than the 8 readings of an epoch"):
        pretrain(tiny(batch=9), tmp_path / "b")
    with pytest.raises(DataError, match="memory view1_mem of stage 1 is 8x16, this data needs 12x16"):
        config = recipe("avid_cma_tiny", "cma", "synthetic:12", **{"objective.negatives": 8})
        pretrain(config, tmp_path / "c", stage_one=stage_one)
    assert list(tmp_path.iterdir()) == []


# --- the command ---


def legato(*arguments):
    return run(["train", "avid-cma", *map(str, arguments)])


def test_the_command_trains_and_goes_on(tmp_path, capsys):
    few = ["--preset", "avid_cma_tiny", "--set", "objective.negatives=4", "--batch", 4]
    assert legato("--data", "synthetic:8", "--out", tmp_path / "a", "--epochs", 1, *few) == 0
    assert legato("--out", tmp_path / "a", "--resume", "--epochs", 2) == 0
    assert capsys.readouterr().out.count("trained: ") == 2
    assert json.loads((tmp_path / "a" / "config.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no data to train on; give --data"),
        (["--data", "gird:x"], 2, "dataset 'gird' is unknown; did you mean grid"),
        (["--data", "synthetic:8", "--preset", "avid_cma_bas"], 2, "did you mean avid_cma_base"),
        (["--data", "synthetic:8", "--set", "lr=fast"], 2, "lr='fast' is not of type float"),
        (["--data", "synthetic:8", "--set", "objective.negatves=3"], 2, "did you mean objective.negatives"),
        (["--data", "synthetic:8", "--device", "kuda"], 2, "device 'kuda' cannot be used"),
        (["--data", "synthetic:8", "--set", "objective.temperature=1e-30"], 1, "loss became inf in epoch 0, step 0"),
    ],
)
def test_the_command_fails_in_one_sentence(tmp_path, capsys, arguments, code, says):
    tiny_preset = [] if "--preset" in arguments else ["--preset", "avid_cma_tiny"]
    assert legato(*arguments, *tiny_preset, "--out", tmp_path / "b") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("legato: ")
    assert says in last
    assert not list(tmp_path.rglob("*.safetensors"))


# --- two processes ---


def _train_a_share(rank, port, out):
    """One of two processes: batch norm frozen, plain SGD, so that shared and whole batches must agree."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with processes():
        _train_a_few_steps(out if rank == 0 else out.with_name("elsewhere"))


def _train_a_few_steps(out: Path) -> None:
    losses = []
    for stage, one in (("avid", None), ("cma", out / "avid")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "Adam", lambda groups, lr, betas: torch.optim.SGD(groups, lr=lr))
            patch.setattr(AVIDCMA, "train", lambda self, mode=True: torch.nn.Module.train(self, False))
            first = Path(os.environ.get("FIRST_STAGE", out / "avid")) if one else None
            pretrain(
                tiny(stage, epochs=2, lr=0.05),
                out / stage,
                stage_one=first,
                progress=lambda *state: losses.append(state[-1]),
            )
    if out.name != "elsewhere":
        (out / "losses.json").write_text(json.dumps(losses))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_on_the_whole_batch(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("FIRST_STAGE", str(tmp_path / "two" / "avid"))
    multiprocessing.start_processes(_train_a_share, args=(port, tmp_path / "two"), nprocs=2, start_method="spawn")
    monkeypatch.delenv("FIRST_STAGE")
    _train_a_few_steps(tmp_path / "one")
    one, two = (json.loads((tmp_path / n / "losses.json").read_text()) for n in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5)
    for stage in ("avid", "cma"):
        a, b = (load_file(next((tmp_path / n / stage).glob("checkpoint-*"))) for n in ("one", "two"))
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4, msg=f"{stage} {name}")
    assert not (tmp_path / "elsewhere" / "avid" / "log.jsonl").exists()  # one process writes


@pytest.mark.slow
def test_torchrun_trains_and_resumes(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "runtime"]
    few = ["--preset", "avid_cma_tiny", "--set", "objective.negatives=4", "--set", "clips_per_video=1", "--batch", "4"]
    start = ["train", "avid-cma", "--data", "synthetic:8", "--device", "cpu", *few, "--out"]
    env, quiet = {**os.environ, "OMP_NUM_THREADS": "1"}, {"capture_output": True, "text": True}
    assert subprocess.run([*torchrun, *start, str(tmp_path / "a"), "--epochs", "1"], env=env, **quiet).returncode == 0
    go_on = ["train", "avid-cma", "--resume", "--device", "cpu", "--out", str(tmp_path / "a"), "--epochs", "2"]
    done = subprocess.run([*torchrun, *go_on], env=env, **quiet)
    assert (done.returncode, done.stdout.count("trained: ")) == (0, 1)
    assert subprocess.run([*torchrun, *start, str(tmp_path / "b"), "--epochs", "2"], env=env, **quiet).returncode == 0
    assert same(tmp_path / "a", tmp_path / "b")


def test_one_share_of_the_negatives_is_drawn_by_each_process(monkeypatch):
    """Four samples in one process draw what two processes with two samples each draw together."""
    objective = Objective(tiny().objective, 8, 4)
    ids = torch.tensor([3, 1, 7, 0])
    whole = objective.draw_negatives(ids, torch.Generator().manual_seed(2))
    for rank in (0, 1):
        monkeypatch.setattr("encoders.audiovisual.avid_cma.world", lambda rank=rank: (rank, 2))
        share = slice(2 * rank, 2 * rank + 2)
        drawn = objective.draw_negatives(ids[share], torch.Generator().manual_seed(2))
        assert torch.equal(drawn, whole[share])
