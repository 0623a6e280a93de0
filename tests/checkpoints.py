"""Checkpoints of runs, compared."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def same(one: Path, other: Path) -> bool:
    """All tensors of two runs' checkpoints equal, bit for bit."""
    a, b = (load_file(next(p.glob("checkpoint-*.safetensors"))) for p in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
