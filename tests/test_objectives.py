"""What a training step is judged by: the task's loss, or a model's own, whose parts are logged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.classifier import build_classifier
from encoders.errors import ConfigError
from encoders.finetune import finetune, micro_batches
from encoders.objectives import StepTargets, alike, check_run, losses_of
from encoders.recipes import recipe
from encoders.tasks import LabelTask
from encoders.video.vivit import ViViT
from tests.moving import moving, small

TASK = LabelTask(classes=("a", "b", "c"))


def step(rows, **changes):
    return StepTargets(task=TASK, targets=torch.eye(3)[rows], **changes)


def test_a_model_without_an_objective_has_the_task_s_loss():
    logits = torch.randn(2, 3)
    losses = losses_of(lambda x: x, logits, step([0, 2], smoothing=0.1))
    assert losses == {"task": TASK.compute_loss(logits, torch.eye(3)[[0, 2]], 0.1)}


def test_rows_are_alike_that_share_a_class_in_every_softmax():
    targets = torch.eye(3)[[0, 1, 0]]
    assert alike(targets, (slice(0, 3),)).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    pairs = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0.0]])  # noun, noun, verb, verb
    assert alike(pairs, (slice(0, 2), slice(2, 4))).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert alike(torch.zeros(2, 3), (slice(0, 3),)).tolist() == [[1, 0], [0, 1]]


def test_forward_passes_in_bf16_and_losses_do_not():
    class Own(torch.nn.Module):
        def training_outputs(self, seen, presence):
            return {"logits": seen @ torch.ones(3, 3)}

        def training_losses(self, outputs, step):
            return {"kind": (outputs["logits"] @ torch.ones(3, 1, dtype=torch.bfloat16)).float().sum()}

        def logits(self, seen):
            raise AssertionError

    x = torch.ones(2, 3)
    assert losses_of(Own(), x, step([0, 1]), bf16=True)["kind"].dtype == torch.float32


class Reading:
    """Numbers instead of clips: the sample, and one of chance."""

    samples = range(4)

    def train(self, index, random):
        return np.array([index, random.integers(10**9)])


def test_repeated_readings_lie_side_by_side_and_differ():
    parts = list(micro_batches(Reading(), seed=0, epoch=0, batch=2, accumulate=2, workers=0, repeats=2))
    assert [len(part.ids) for part in parts] == [2, 2, 2, 2]
    for ids, clips, asked in parts:
        assert ids[0] == ids[1] == asked[0] == clips[0, 0] and clips[0, 1] != clips[1, 1]
    once = micro_batches(Reading(), seed=0, epoch=0, batch=2, accumulate=2, workers=0)
    assert [int(p.ids[0]) for p in once] == [int(p.ids[0]) for p in parts]


def test_a_model_s_losses_are_summed_logged_and_checked(tmp_path, monkeypatch):
    def outputs(self, seen, presence):
        return {"logits": self(seen)}

    def losses(self, outputs, step):
        return {"class": step.loss_of(outputs["logits"]), "size": outputs["logits"].square().mean()}

    def check(self, config):
        if config.repeats < 2:
            raise ConfigError(f"repeats {config.repeats} is too few; use 2")

    for name, method in (("training_outputs", outputs), ("training_losses", losses), ("check_run", check)):
        monkeypatch.setattr(ViViT, name, method, raising=False)
    data = moving(tmp_path / "data")
    with pytest.raises(ConfigError, match="repeats 1 is too few"):
        finetune(small(data), tmp_path / "refused")
    run = finetune(small(data, repeats=2, epochs=1, accumulate=2), tmp_path / "run")
    row = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(row["class"] + row["size"], rel=1e-6)


def test_repeats_below_one_are_refused():
    with pytest.raises(ConfigError, match="repeats 0 must be at least 1"):
        small("kinetics400:nowhere", repeats=0)


def test_only_pictures_are_cut():
    config = recipe("mvitv2_tiny", "kinetics400:x")
    check_run(build_classifier("mvitv2_tiny", 2, {}), config)
    heard = replace(config, preset="mat_tiny")
    with pytest.raises(ConfigError, match=r"cutmix 1.0 cuts pictures, and preset mat_tiny takes audio; use 0"):
        check_run(build_classifier("mat_tiny", 2, {}), heard)
