"""First values of weights that torch has no name for."""

import math

import torch
from torch import Tensor, nn

__all__ = ["lecun_normal_", "xavier_uniform_"]

TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal cut off at two


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """Normal, cut off at two deviations, of variance 1 / fan in; ``weight`` is (out, in, ...)."""
    fan_in = weight[0].numel()
    std = math.sqrt(1 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)


def xavier_uniform_(layer: nn.Linear, bias_std: float = 0.0) -> nn.Linear:
    """The layer with Xavier-uniform weights and a bias of zeros, or of normal values of ``bias_std``."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(layer.bias, std=bias_std) if bias_std else nn.init.zeros_(layer.bias)
    return layer
