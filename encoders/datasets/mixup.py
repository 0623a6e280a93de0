"""Mixup, CutMix and label smoothing: targets that are not quite one class.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018), as ViViT and MTV use it: *one* lambda for a
whole device batch, and the partner of a sample is the one at the mirrored place of the batch. Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features" (ICCV 2019), as MViTv2 uses it: the same
box in all frames, and by an even chance either of the two for a batch.

Shapes: B batch, K class.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["cutmix", "mix", "mix_named", "mixed", "mixup", "smooth", "unmixed"]

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


def mixed(x: X, targets: Tensor, alpha: float, cut_alpha: float, random: np.random.Generator) -> tuple[X, Tensor]:
    """Mixup of ``alpha``, or CutMix of ``cut_alpha``; where both are set one of them, by an even chance."""
    if cut_alpha and (not alpha or random.random() < 0.5):
        if not isinstance(x, Tensor):
            raise ConfigError(f"cutmix {cut_alpha} cuts pictures of models that see alone; use 0, or mixup")
        return cutmix(x, targets, cut_alpha, random)
    return mixup(x, targets, alpha, random)


def cutmix(x: Tensor, targets: Tensor, alpha: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch (B, ..., H, W) with a box of the batch reversed in it, and its targets mixed by what of each is seen.

    The box is to cover 1 - Beta(alpha, alpha) of the picture, with its aspect; its centre lies anywhere, and what lies
    beyond an edge does not count.
    """
    if alpha < 0 or x.ndim < 4:
        raise ConfigError(f"cutmix {alpha} must be >= 0, and of pictures; use 0 for none")
    if not alpha:
        return x, targets
    side = (1 - float(random.beta(alpha, alpha))) ** 0.5
    edges = []
    for size in x.shape[-2:]:
        centre, half = int(random.integers(size)), int(size * side) // 2
        edges.append(slice(max(0, centre - half), min(size, centre + half)))
    rows, columns = edges
    out = x.clone()
    out[..., rows, columns] = x.flip(0)[..., rows, columns]
    seen = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (x.shape[-2] * x.shape[-1])
    return out, torch.lerp(targets.flip(0), targets, seen)


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

    Where clips were mixed as they were read (`encoders.datasets.labelled_sounds`, `labelled_pairs`), their targets are
    so here; sound alone is then a tensor again.
    """
    targets = targets_of(ids.tolist())
    if isinstance(x, Tensor) or "partner" not in x:
        return x, targets
    mixed = torch.lerp(targets_of(x["partner"][:, 0].tolist()), targets, x["share"].to(targets))
    rest = {name: v for name, v in x.items() if name not in ("partner", "share")}
    return (rest["audio"] if set(rest) == {"audio"} else rest), mixed


def smooth(targets: Tensor, amount: float) -> Tensor:
    """``(1 - amount) * target + amount / K`` for targets ``(B, K)``."""
    if not 0 <= amount < 1:
        raise ConfigError(f"label smoothing {amount} must lie in [0, 1); use 0 for none")
    return targets * (1 - amount) + amount / targets.shape[-1] if amount else targets
