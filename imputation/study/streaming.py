"""What a stream can know: every clip is filled when no more than F later clips have come, and stays so.

curri-MAE reads whole windows; the paper leaves streams as future work. Here the clip at position t is filled from
positions 0..t+F, so that an answer that waits for F clips is measured as it would be given.

Shapes: B batch, N position, M modality, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from imputation.imputer import Filled, checked

__all__ = ["Streaming"]


class Streaming(nn.Module):
    """An imputer that is shown ``lookahead`` clips after the one it fills."""

    def __init__(self, imputer: nn.Module, lookahead: int) -> None:
        super().__init__()
        if lookahead < 0:
            raise ConfigError(f"lookahead {lookahead} is negative; use 0 for none")
        self.imputer, self.lookahead = imputer, lookahead
        self.rung = str(imputer.rung)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        imputer: Any = self.imputer
        applies: Tensor = imputer.applies(presence, exists)
        return applies

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled, each position from what it could see."""
        present, exists = checked(features, presence, exists)
        filled, variance = features.clone(), torch.zeros(present.shape, device=features.device)
        length = features.shape[1]
        for t in range(length):
            if not (exists[:, t, None] & ~present[:, t]).any():
                continue
            seen = min(t + self.lookahead + 1, length)
            part: Filled = self.imputer(*(x[:, :seen] for x in (features, present, exists)))
            filled[:, t], variance[:, t] = part.features[:, t], part.variance[:, t].to(variance)
        return Filled(filled, variance, self.rung)
