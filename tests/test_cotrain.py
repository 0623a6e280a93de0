"""Co-training: every schedule runs, resumes to the same bits, and a task without data or tokenizer is refused."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from encoders import cotrain as loop
from encoders.cotrain import cotrain, resumed, run_of
from encoders.cotrain_recipes import CotrainConfig
from encoders.cotraining import Turn
from encoders.errors import ConfigError, DataError
from encoders.media import AudioTrack, write_media
from encoders.settings import from_dict, to_dict
from encoders.training import Interrupted
from runtime.cli import run
from tests.checkpoints import same
from tests.moving import moving

TINY = {"model.dim": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tasks: which way a bar moves (video), how high a tone is (sound)."""
    video = moving(tmp_path_factory.mktemp("moving"))
    sounds = tmp_path_factory.mktemp("sounds")
    rows = ["file,speaker,label,split,fold"]
    (sounds / "clips").mkdir()
    for i in range(12):
        label, hertz = (("low", 300), ("high", 1500))[i % 2]
        tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000)[None]
        write_media(sounds / "clips" / f"{i}.wav", [AudioTrack(samples=tone.astype(np.float32), codec="pcm_s16le")])
        rows.append(f"clips/{i}.wav,{i},{label},{'train' if i < 8 else 'val'},1")
    (sounds / "labels.csv").write_text("\n".join(rows) + "\n")
    return [video, f"esc10:{sounds}"]


def small(data, **changes) -> CotrainConfig:
    few = {"batch": 4, "epochs": 2, "warmup": 0.25, "stride": 1, "lr": 0.05, "workers": 0, "views": "1x1"}
    return run_of("polyvit_tiny", data, **{**TINY, **few, "log_every": 1, **changes})


def names(run: Path) -> list[list[str]]:
    """Which tasks each step logged."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [[k.removeprefix("loss_") for k in row if k.startswith("loss_")] for row in rows if "lr" in row]


@pytest.mark.parametrize("schedule", ["task_by_task", "alternating", "uniform", "weighted", "accumulated"])
def test_a_run_stopped_goes_on_to_the_same_bits_under_every_schedule(data, tmp_path, schedule):
    config = small(data, **{"plan.schedule": schedule})
    whole = cotrain(config, tmp_path / "whole")

    def interrupt(epoch, done, steps, loss):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    if schedule == "accumulated":  # 4 updates of both
        assert names(whole) == [["kinetics400", "esc10"]] * 4
    else:
        assert sorted(name for step in names(whole) for name in step) == ["esc10"] * 4 + ["kinetics400"] * 4
    with pytest.raises(Interrupted, match="stopped after 3 steps; all is saved"):
        cotrain(config, tmp_path / "run", progress=interrupt)
    torch.manual_seed(4321)
    cotrain(resumed(tmp_path / "run"), tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")
    assert set(json.loads((whole / "metrics.json").read_text())) == {"kinetics400", "esc10"}


def test_a_run_leaves_heads_trunk_and_classes_and_can_be_judged(data, tmp_path, capsys):
    out = cotrain(small(data), tmp_path / "run")
    heads = {k for k in load_file(out / "model.safetensors") if k.startswith("heads.")}
    assert heads == {f"heads.{task}.{part}" for task in ("kinetics400", "esc10") for part in ("weight", "bias")}
    assert not any(k.startswith("heads.") for k in load_file(out / "encoder.safetensors"))
    assert json.loads((out / "classes.json").read_text())["esc10"]["classes"] == ["high", "low"]
    assert run(["eval", "--run", str(out), "--split", "val", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "metrics.json").read_text())
    assert found["esc10"] == {k: pytest.approx(v) for k, v in kept["esc10"].items()}
    again = cotrain(small(data, **{"epochs": 1}), tmp_path / "again", init=out)
    assert (again / "model.safetensors").exists()


def test_a_recording_that_cannot_be_read_is_named_once_and_counted(data, tmp_path):
    import shutil

    sounds = tmp_path / "sounds"
    shutil.copytree(data[1].removeprefix("esc10:"), sounds)
    (sounds / "clips" / "2.wav").write_bytes(b"RIFF")
    said: list[str] = []
    cotrain(small([data[0], f"esc10:{sounds}"]), tmp_path / "run", say=said.append)
    assert [line.partition(" cannot be read")[0].endswith("2.wav") for line in said].count(True) == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["unreadable"] for row in rows if "lr" in row][-1] == 2  # once in either epoch


def test_a_step_moves_the_drawn_task_s_head_and_the_momentum_of_the_others(data, tmp_path):
    seen = []
    step = loop.train_step

    def look(run, turns, lr, device):
        before = {k: v.clone() for k, v in run.model.state_dict().items() if k.startswith("heads.")}
        losses = step(run, turns, lr, device)
        after = run.model.state_dict()
        seen.append((next(iter(losses)), {k.split(".")[1] for k in before if not torch.equal(before[k], after[k])}))
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", look)
        cotrain(small(data, **{"plan.schedule": "task_by_task", "warmup": 0.0}), tmp_path / "run")
    first, second = seen[0][0], seen[-1][0]
    assert all(moved == {first} for task, moved in seen if task == first)
    assert all(moved == {first, second} for task, moved in seen if task == second)  # what was rolling rolls on


def test_two_turns_of_an_update_are_weighed_and_summed(data, tmp_path):
    """A gradient from both tasks is the weighted sum of the two alone."""
    gradients = []

    class Look:
        def __init__(self, optimizer):
            self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

        def step(self):
            gradients.append([p.grad.clone() for p in self.param_groups[0]["params"]])

    calm = {"esc10.mixup": 0.0, "esc10.stochastic_depth": 0.0}  # or chance would follow the place in the step
    run = loop._set_up(small(data, **calm), tmp_path / "run", "cpu", False, None, lambda sentence: None)
    run.optimizer = Look(run.optimizer)
    loader = iter(loop._loader(run))
    batches = {int(batch[0][0]): batch for batch in loader}
    turns = [(Turn(task, 0, weight), batches[task]) for task, weight in ((0, 0.25), (1, 2.0))]
    alone = []
    for turn in turns:
        loop.train_step(run, [turn], 0.1, "cpu")
        alone.append(gradients.pop())
    loop.train_step(run, turns, 0.1, "cpu")
    for both, a, b in zip(gradients.pop(), *alone, strict=True):
        torch.testing.assert_close(both, 0.25 * a + 2.0 * b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 9}, "batch 9 of task kinetics400 is more than its 8 samples"),
        ({"model.video": None}, "task kinetics400 is one of video, which the model has no tokenizer for"),
        ({"warmup": 3.0}, "the warm-up of 12 steps takes all 8; shorten it or train longer"),
        ({"esc10.views": "4x3"}, "views 4x3 of task esc10 cut squares of sound"),
        ({"model.depth": 0}, "depth 0 must be at least 1"),
        ({"plan.schedule": "round_robin"}, "round_robin"),
    ],
)
def test_contradictions_stop_before_anything_is_trained(data, tmp_path, changes, says):
    with pytest.raises((ConfigError, DataError, ValueError), match=says):
        cotrain(small(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_task_presets_are_refused_and_a_config_is_read_back(data, tmp_path):
    config = small(data)
    assert from_dict(CotrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ConfigError, match="preset vivit_tiny learns one task; co-train a polyvit preset"):
        cotrain(run_of("vivit_tiny", data), tmp_path / "run")


def test_the_command_takes_several_datasets(data, tmp_path, capsys):
    few = ["--batch", 4, "--epochs", 1, "--workers", 0, "--views", "1x1", "--set", "warmup=0.25", "--device", "cpu"]
    sizes = [x for k, v in TINY.items() for x in ("--set", f"{k}={v}")]
    arguments = ["train", "polyvit_tiny", "--data", data[0], "--data", data[1], "--out", tmp_path / "run", *few, *sizes]
    assert run([str(a) for a in arguments]) == 0
    said = capsys.readouterr()
    assert "trained: " in said.out and "kinetics400 2 of 4, esc10 2 of 4" in " ".join(said.err.split())
    assert run(["train", "polyvit_tiny", "--out", str(tmp_path / "b")]) == 2
    assert "no data to train on; give --data once or more" in capsys.readouterr().err
