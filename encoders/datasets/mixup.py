"""Mixup and label smoothing: targets that are not quite one class.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), as ViViT and MTV use it: *one* lambda for a
whole device batch, and the partner of a sample is the one at the mirrored place of the batch.

Shapes: B batch, K class.
"""

import numpy as np
import torch
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["mix", "mixup", "smooth"]


def mixup(x: Tensor, targets: Tensor, alpha: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch and its targets ``(B, K)``, mixed with themselves reversed; lambda is Beta(alpha, alpha), 0: none."""
    if alpha < 0:
        raise ConfigError(f"mixup {alpha} must be >= 0; use 0 for none")
    return mix(x, targets, float(random.beta(alpha, alpha))) if alpha else (x, targets)


def mix(x: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``share`` of each row, the rest of the row at the mirrored place."""
    return torch.lerp(x.flip(0), x, share), torch.lerp(targets.flip(0), targets, share)


def smooth(targets: Tensor, amount: float) -> Tensor:
    """``(1 - amount) * target + amount / K`` for targets ``(B, K)``."""
    if not 0 <= amount < 1:
        raise ConfigError(f"label smoothing {amount} must lie in [0, 1); use 0 for none")
    return targets * (1 - amount) + amount / targets.shape[-1] if amount else targets
