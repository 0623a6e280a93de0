"""Weights and inputs that can be written down in one line, for golden vectors of the public Flax code.

The expected logits were computed by the public modules (google-research/scenic) on tiny configurations whose
parameters follow `filled`, so that a golden row needs no file.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from encoders.weights.rules import Rule, convert, invert


def filled(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter at a Flax path, in its Flax shape: 0.1 sin(0.7 k + c), and 1 more for a scale."""
    c = sum(path.encode("ascii")) % 97
    k = np.arange(np.prod(shape, dtype=int), dtype=np.float64)
    values = 0.1 * np.sin(0.7 * k + c) + (1.0 if path.endswith("/scale") else 0.0)
    return values.astype(np.float32).reshape(shape)


def fill(model: nn.Module, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Load the fill rule's weights into ``model`` through its table; returns the Flax tree they came from."""
    own = model.state_dict()
    tree = {path: filled(path, array.shape) for path, array in invert(own, rules).items()}
    model.load_state_dict(convert(tree, rules, own, what="the filled tree"))
    return tree


def wave(shape: tuple[int, ...], w: float = 0.013) -> Tensor:
    """An input in its Flax (channels-last) shape: element k is sin(w k)."""
    k = np.arange(np.prod(shape, dtype=int), dtype=np.float64)
    return torch.from_numpy(np.sin(w * k).astype(np.float32).reshape(shape))


def channels_first(x: Tensor) -> Tensor:
    """(B, ..., C) to (B, C, ...)."""
    return x.movedim(-1, 1).contiguous()


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())
