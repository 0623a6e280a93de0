"""Counting what a model costs without computing it: torch's meta device holds shapes and no numbers."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that ``build`` makes, in eval mode, as shapes alone: a giant is made at once."""
    with torch.device("meta"):
        return build().eval()


def parameters(model: nn.Module) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, *inputs: Any) -> int:
    """Multiplications (each with its addition) of one forward pass: of products and convolutions, no others.

    ``inputs`` are tensors, or shapes of float tensors; the model should be on the meta device, and in eval mode.
    """
    device = next(model.parameters()).device
    tensors = [x if isinstance(x, Tensor) else torch.empty(x, device=device) for x in inputs]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*tensors)
    return cast(int, counter.get_total_flops()) // 2
