"""Means of a model's weights: what is evaluated and kept where a recipe asks for it."""

from copy import deepcopy

import torch
from torch import nn

from encoders.errors import ConfigError

__all__ = ["EMA", "EpochMean"]


class EMA(nn.Module):
    """``mean = decay * mean + (1 - decay) * weight`` after every step; buffers are copied.

    The decay rises with the first steps, ``min(decay, (1 + step) / (10 + step))``, so that the random start is soon
    forgotten (as TensorFlow's moving average does).
    """

    steps: torch.Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ConfigError(f"ema {decay} must lie between 0 and 1; use 0 for none")
        self.decay = decay
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        step = int(self.steps)
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.steps += 1


class EpochMean(nn.Module):
    """The plain mean of the weights at the ends of some epochs (AST, section 2.2); buffers are the last ones."""

    steps: torch.Tensor  # updates so far; before the first one there is no mean

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights at the end of an epoch."""
        self.steps += 1
        for mean, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(weight, 1 / int(self.steps))
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
