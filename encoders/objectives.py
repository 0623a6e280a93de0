"""What a training step of a classifier is judged by: the task's loss of its logits, or losses that a model brings.

A model with an objective of its own has two methods, called one after the other at every step of `finetune`:

- ``training_outputs(seen, presence) -> dict[str, Tensor]``: the forward pass of training, in the run's precision. Of a
  model of one modality ``seen`` is its input and ``presence`` None; of a joint one see `encoders.readings`.
- ``training_losses(outputs, step) -> dict[str, Tensor]``: the losses by name, in float32; the step's loss is their sum,
  and each is logged under its name.

and, where some runs cannot be what it needs, ``check_run(config)``, which raises ConfigError before anything is read.
Tests and inference never call them.

Shapes: B batch, K class.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encoders.errors import ConfigError
from encoders.readings import answered, split_presence
from encoders.tasks import LabelTask

__all__ = ["StepTargets", "alike", "check_run", "losses_of"]

RESERVED = ("loss", "step", "epoch", "lr", "gradient_norm", "seconds")  # columns of the log that are taken


@dataclass(frozen=True, kw_only=True)
class StepTargets:
    """What the rows of a step's batch should be called."""

    task: LabelTask
    targets: Float[Tensor, "b k"]  # after mixup
    smoothing: float = 0.0
    repeats: int = 1  # rows in a row that are readings of one sample, each changed differently

    def loss_of(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """The task's loss, the mean over the batch."""
        return self.task.compute_loss(logits, self.targets, self.smoothing)


def alike(targets: Float[Tensor, "b k"], segments: tuple[slice, ...]) -> Bool[Tensor, "b b"]:
    """Whether two rows are of one category: a class in common, and of several softmaxes one in each.

    A row without any class is alike to itself alone.
    """
    same = torch.stack([targets[:, s] @ targets[:, s].T > 0 for s in segments]).all(0)
    return same | torch.eye(len(targets), dtype=torch.bool, device=targets.device)


def losses_of(model: Any, x: Any, step: StepTargets, *, bf16: bool = False) -> dict[str, Tensor]:
    """The losses of what `readings.prepared` gives, by name; their sum is what is learned from.

    The forward pass is in bfloat16 where ``bf16``, the losses never are.
    """
    device = step.targets.device.type
    with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
        if not hasattr(model, "training_losses"):
            outputs = answered(model, x)
        else:
            outputs = model.training_outputs(*((x, None) if isinstance(x, Tensor) else split_presence(x)))
    if isinstance(outputs, Tensor):
        return {"task": step.loss_of(outputs)}
    losses: Mapping[str, Tensor] = model.training_losses(outputs, step)
    assert losses and not set(losses) & set(RESERVED), losses.keys()
    return dict(losses)


def check_run(model: Any, config: Any) -> None:
    """Raises ConfigError where a run cannot be what the model's losses need, or cuts what is no picture."""
    modalities = tuple(getattr(model, "modalities", ("video",)))
    if config.cutmix and modalities != ("video",):
        raise ConfigError(
            f"cutmix {config.cutmix} cuts pictures, and preset {config.preset} takes {' and '.join(modalities)}; "
            "use 0, or mixup"
        )
    if hasattr(model, "check_run"):
        model.check_run(config)
