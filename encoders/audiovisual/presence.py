"""Which modalities a clip has, while a model learns to do without one.

Shapes: B clip, M modality.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["lose_modality"]


def lose_modality(whole: Bool[Tensor, "b m"], share: float) -> Bool[Tensor, "b m"]:
    """``whole`` where ``share`` of the clips lose a modality, each as often, of those that have all of them: none is
    left with nothing. From torch's global generator."""
    batch, modalities = whole.shape
    loses = torch.rand(batch, 1, device=whole.device) < share
    lost = torch.randint(modalities, (batch, 1), device=whole.device) == torch.arange(modalities, device=whole.device)
    return whole & ~(loses & lost & whole.all(1, keepdim=True))
