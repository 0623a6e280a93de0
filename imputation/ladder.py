"""The fill ladder: an ordered list of imputers, of which each window takes the first that applies.

Shape legend: B batch, N position, M modality, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from imputation.baselines import Zero
from imputation.imputer import OBSERVED, Filled, checked


class Ladder(nn.Module):
    """Imputers in order of preference.

    A rung may ask for a least ``min_shares`` of the window's existing places to be observed; the order and the
    shares are measured on validation. A window with nothing absent is returned as it came (rung "observed");
    one that no rung takes, and every window of an empty ladder, is filled with zeros.
    """

    rung = "ladder"

    def __init__(self, imputers: Sequence[nn.Module] = (), min_shares: Sequence[float] | None = None) -> None:
        super().__init__()
        shares = [0.0] * len(imputers) if min_shares is None else list(min_shares)
        if len(shares) != len(imputers):
            raise ConfigError(f"min_shares has {len(shares)} values for {len(imputers)} rungs; give one for each")
        self.imputers = nn.ModuleList(imputers)
        self.min_shares = shares
        self.last = Zero()

    @property
    def rungs(self) -> tuple[str, ...]:
        """The rungs' names, best first."""
        return tuple(str(imputer.rung) for imputer in self.imputers)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        return presence.new_ones(presence.shape[0])

    def choose(self, presence: Tensor, exists: Tensor) -> Tensor:
        """The rung of each window: an index, len(imputers) for zeros, -1 where nothing is absent; (B,)."""
        places = exists.sum(dim=1) * presence.shape[2]
        observed = presence.flatten(1).sum(dim=1)
        choice = torch.full_like(places, len(self.imputers))
        for i in range(len(self.imputers) - 1, -1, -1):
            imputer: Any = self.imputers[i]
            takes = imputer.applies(presence, exists) & (observed >= self.min_shares[i] * places)
            choice = torch.where(takes, i, choice)
        return torch.where(observed == places, -1, choice)

    def names(self, presence: Tensor, exists: Tensor | None = None) -> list[str]:
        """The rung that would fill each window, without filling any; presence (B, N, M), exists (B, N)."""
        there = presence.new_ones(presence.shape[:2]) if exists is None else exists
        return [self._name(c) for c in self.choose(presence, there).tolist()]

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled, with a rung for each row."""
        present, exists = checked(features, presence, exists)
        choice = self.choose(present, exists).tolist()
        used = sorted(set(choice))
        if len(used) == 1:
            return self._fill(used[0], features, present, exists)
        filled, variance = features.clone(), torch.zeros(present.shape, device=features.device)
        for rung in used:
            rows = torch.tensor([i for i, c in enumerate(choice) if c == rung], device=features.device)
            part = self._fill(rung, features[rows], present[rows], exists[rows])
            filled[rows], variance[rows] = part.features, part.variance.to(variance)
        return Filled(filled, variance, self.rung, tuple(self._name(c) for c in choice))

    def _fill(self, rung: int, features: Tensor, present: Tensor, exists: Tensor) -> Filled:
        if rung < 0:
            return Filled(features, torch.zeros(present.shape, device=features.device), OBSERVED)
        imputer = self.imputers[rung] if rung < len(self.imputers) else self.last
        filled: Filled = imputer(features, present, exists)
        return filled

    def _name(self, rung: int) -> str:
        if rung < 0:
            return OBSERVED
        return self.rungs[rung] if rung < len(self.imputers) else self.last.rung
