"""Mixup and label smoothing: targets that are not quite one class.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), as ViViT and MTV use it: *one* lambda for a
whole device batch, and the partner of a sample is the one at the mirrored place of the batch.

Shapes: B batch, K class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["mix", "mix_named", "mixup", "smooth", "unmixed"]

X = TypeVar("X", Tensor, "Mapping[str, Tensor]")


def mixup(x: X, targets: Tensor, alpha: float, random: np.random.Generator) -> tuple[X, Tensor]:
    """A batch and its targets ``(B, K)``, mixed with themselves reversed; lambda is Beta(alpha, alpha), 0: none.

    Of a batch by names everything is mixed alike, but its ``presence`` (see `mix_named`).
    """
    if alpha < 0:
        raise ConfigError(f"mixup {alpha} must be >= 0; use 0 for none")
    if not alpha:
        return x, targets
    share = float(random.beta(alpha, alpha))
    if isinstance(x, Tensor):
        return mix(x, targets, share)
    return cast(X, mix_named(x, share)), mix(targets, targets, share)[1]


def mix_named(x: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """As `mix`, but for ``presence`` (B, M) bool: a mixed clip has a modality where both clips have it.

    Where that would leave it none, it has what either has.
    """
    out = {name: torch.lerp(v.flip(0), v, share) for name, v in x.items() if name != "presence"}
    if "presence" in x:
        one, other = x["presence"], x["presence"].flip(0)
        both = one & other
        out["presence"] = torch.where(both.any(1, keepdim=True), both, one | other)
    return out


def mix(x: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``share`` of each row, the rest of the row at the mirrored place."""
    return torch.lerp(x.flip(0), x, share), torch.lerp(targets.flip(0), targets, share)


def unmixed(
    x: "Tensor | Mapping[str, Tensor]", targets_of: Callable[[Sequence[int]], Tensor], ids: Tensor
) -> tuple["Tensor | Mapping[str, Tensor]", Tensor]:
    """A batch as a model takes it, and its targets (B, K), of which ``targets_of`` gives those of samples by number.

    Where clips were mixed as they were read (`encoders.datasets.labelled_sounds`), their targets are so here.
    """
    targets = targets_of(ids.tolist())
    if isinstance(x, Tensor) or "partner" not in x:
        return x, targets
    return x["audio"], torch.lerp(targets_of(x["partner"][:, 0].tolist()), targets, x["share"].to(targets))


def smooth(targets: Tensor, amount: float) -> Tensor:
    """``(1 - amount) * target + amount / K`` for targets ``(B, K)``."""
    if not 0 <= amount < 1:
        raise ConfigError(f"label smoothing {amount} must lie in [0, 1); use 0 for none")
    return targets * (1 - amount) + amount / targets.shape[-1] if amount else targets
