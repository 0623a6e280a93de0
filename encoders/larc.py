"""LARC around Adam: no parameter moves far compared with its own length.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks" (arXiv 1708.03888), in the clipping form of
NVIDIA's public Apex, as CrissCross is trained. For each parameter w with gradient g, weight decay d and trust eta

    local = eta |w| / (|g| + d |w| + eps)          g' = (g + d w) min(local / lr, 1)

and Adam goes on with g' and without weight decay. A parameter or gradient of length zero, such as a fresh bias, is left
to Adam as it is, not even decayed.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["LARCAdam", "clip_to_trust"]


@torch.no_grad()
def clip_to_trust(
    parameters: Iterable[Tensor], *, lr: float, weight_decay: float, trust: float = 1e-3, eps: float = 1e-8
) -> None:
    """Replace each gradient by what the rule makes of it, decay included; parameters without one are left alone."""
    owners = [p for p in parameters if p.grad is not None]
    if not owners:
        return
    gradients = [p.grad for p in owners if p.grad is not None]
    weight = torch.stack(torch._foreach_norm(owners)).to(torch.float64)
    slope = torch.stack(torch._foreach_norm(gradients)).to(torch.float64)
    applies = (weight > 0) & (slope > 0)  # no branch, so that nothing waits for the device
    local = trust * weight / (slope + weight_decay * weight + eps)
    # Under a learning rate of zero, as warm-up begins, nothing needs to be held back.
    factor = (local / lr).clamp_max(1.0) if lr > 0 else torch.ones_like(local)
    decay = weight_decay * applies.to(local)
    factor = torch.where(applies, factor, 1.0)
    for p, gradient, d, f in zip(owners, gradients, decay.unbind(), factor.unbind(), strict=True):
        gradient.add_(p * d.to(p)).mul_(f.to(p))


class LARCAdam(torch.optim.Adam):
    """Adam behind LARC; its state and its groups are Adam's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        larc_eps: float = 1e-8,
    ) -> None:
        if not (trust > 0 and larc_eps >= 0):
            raise ConfigError(f"trust {trust} must be > 0 and eps {larc_eps} >= 0; CrissCross uses 0.001 and 1e-8")
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)
        self.trust, self.larc_eps = trust, larc_eps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; gradients are changed on the way."""
        assert closure is None, "no closure: the loop computes the loss"
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, decay in zip(self.param_groups, decays, strict=True):
                clip_to_trust(
                    group["params"], lr=float(group["lr"]), weight_decay=decay, trust=self.trust, eps=self.larc_eps
                )
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
