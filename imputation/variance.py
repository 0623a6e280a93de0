"""How far off a filled feature is expected to be, by what was observed around it.

A place's situation has three parts: the distance to the nearest observed place of its modality (1, 2, 3, 4 or
more), whether there is one on both sides or on one only, and whether the other modality was observed at the
same position. A modality with nothing observed has a situation of its own. Each imputer carries a table of
mean squared errors by situation, fitted on validation.

Shape legend: B batch, N position, M modality.
"""

import torch
from torch import Tensor, nn

FAR = 4  # distances from here on are one
CELLS = 2 * (2 * FAR) + 2  # (sides, distance) x other modality, then nothing observed x other modality
PRIOR = 20.0  # places that the overall error of the modality counts for, in each situation


def last_seen(present: Tensor) -> Tensor:
    """Index of the nearest observed position at or before each, -1 where there is none: (B, N, M)."""
    position = torch.arange(present.shape[1], device=present.device).view(1, -1, 1)
    return torch.where(present, position, -1).cummax(dim=1).values


def next_seen(present: Tensor) -> Tensor:
    """Index of the nearest observed position at or after each, N where there is none: (B, N, M)."""
    length = present.shape[1]
    position = torch.arange(length, device=present.device).view(1, -1, 1)
    return torch.where(present, position, length).flip(1).cummin(dim=1).values.flip(1)


def situation(present: Tensor) -> Tensor:
    """The cell of the table that each place falls in, (B, N, M) int64 in 0..CELLS-1."""
    length = present.shape[1]
    position = torch.arange(length, device=present.device).view(1, -1, 1)
    before, after = last_seen(present), next_seen(present)
    left = torch.where(before >= 0, position - before, length)
    right = torch.where(after < length, after - position, length)
    distance = torch.minimum(left, right).clamp(1, FAR) - 1
    one_sided = ((left == length) | (right == length)).long()
    nothing = (left == length) & (right == length)
    other = present.flip(2).long()
    return torch.where(nothing, 4 * FAR, 2 * (one_sided * FAR + distance)) + other


class VarianceTable(nn.Module):
    """Mean squared error by modality and situation; 1, the variance of a standardised feature, until fitted."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(2, CELLS))

    def forward(self, present: Tensor, exists: Tensor) -> Tensor:
        """present (B, N, M), exists (B, N) -> variance (B, N, M), 0 where observed or not there."""
        modality = torch.arange(2, device=present.device)
        variance = self.table[modality, situation(present)]
        return variance.masked_fill(present | ~exists.unsqueeze(-1), 0.0)

    def fit(self, errors: Tensor, present: Tensor, filled: Tensor) -> None:
        """Set the table from squared errors (B, N, M) of places that were hidden and then filled (bool).

        Rare situations lean on their modality's overall error, as if seen PRIOR times at it.
        """
        cells = situation(present)
        for m in range(2):
            chosen = filled[..., m]
            if not chosen.any():
                continue
            error, cell = errors[..., m][chosen].double(), cells[..., m][chosen]
            count = torch.zeros(CELLS, dtype=torch.double).index_add_(0, cell, torch.ones_like(error))
            total = torch.zeros(CELLS, dtype=torch.double).index_add_(0, cell, error)
            self.table[m] = ((total + PRIOR * error.mean()) / (count + PRIOR)).to(self.table)
