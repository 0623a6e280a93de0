"""SGD with momentum whose buffer may be kept in bfloat16, as PolyViT is trained."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["SGD"]


class SGD(torch.optim.Optimizer):
    """``m = momentum * m + g; w = w - lr * m``; no Nesterov, no dampening.

    ``momentum_dtype`` is what m is *stored* in; the sum and the step are made in the weights' own precision.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        momentum_dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum {momentum} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.momentum_dtype = momentum_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient, such as other tasks' heads, are left alone."""
        assert closure is None, "no closure: the loop computes the loss"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = weight.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state = self.state[weight]
        if "momentum" in state:
            moved = state["momentum"].to(weight.dtype).mul_(group["momentum"]).add_(gradient) \
                if state["momentum"].dtype != weight.dtype \
                else state["momentum"].mul_(group["momentum"]).add_(gradient)  # fmt: skip
        else:
            moved = gradient.clone()
        weight.add_(moved, alpha=-group["lr"])
        state["momentum"] = moved.to(self.momentum_dtype or weight.dtype)
