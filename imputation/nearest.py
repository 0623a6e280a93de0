"""Filling from the training windows that look most alike at the places that were observed.

k nearest neighbours over both modalities: the distance to a stored window is the mean squared difference of
standardised features over the places that both have, and an absent place gets the mean of what stands there in the
nearest ones, weighed by how near they are. The bank is limited in size, and kept with the weights.

Shape legend: B batch, N position, M modality, D feature width, P place (N x M), S stored window, K neighbour.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from encoders.errors import ConfigError, DataError
from encoders.settings import override
from imputation.baselines import Baseline
from imputation.evaluate import fill_error
from imputation.features import FeatureSet
from imputation.sampling import paired_hidden
from imputation.windows import sizes, standardised_windows

NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100)  # what validation chooses from

__all__ = ["Nearest", "NearestConfig", "fit_nearest", "nearest"]


@dataclass(frozen=True, kw_only=True)
class NearestConfig:
    """Sizes; the bank takes 4 * bank * length * 2 * dim bytes."""

    dim: int = 512  # D, what an encoder gives per clip and modality
    length: int = 10  # positions of a stored window: the most that a window may have
    bank: int = 512  # stored windows, S
    k: int = 20  # neighbours, K

    def __post_init__(self) -> None:
        for name in ("dim", "length", "bank", "k"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} of a nearest fill is not positive; use 1 or more")
        if self.k > self.bank:
            raise ConfigError(f"k {self.k} neighbours cannot be found among {self.bank}; lower k, or raise bank")


class Nearest(Baseline):
    """The fill. Where nothing was observed, or no neighbour has the place, it is the mean."""

    rung = "nearest"
    windows: Tensor
    there: Tensor
    squares: Tensor

    def __init__(self, config: NearestConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("windows", torch.zeros(c.bank, c.length, 2, c.dim))  # (S, N, M, D), 0 where absent
        self.register_buffer("there", torch.zeros(c.bank, c.length, 2, dtype=torch.bool))  # (S, N, M)
        self.register_buffer("squares", torch.zeros(c.bank, c.length * 2), persistent=False)  # (S, P), of windows
        self.register_load_state_dict_post_hook(_refuse)

    def keep(self, windows: Tensor, there: Tensor) -> None:
        """Fill the bank: windows (S, N, M, D), 0 where absent; there (S, N, M)."""
        self.windows.copy_(windows)
        self.there.copy_(there)
        self.squares.copy_(self.windows.square().sum(dim=-1).flatten(1))

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        """The weighted mean of the neighbours at every place, (B, N, M, D); reads observed places only."""
        c, length = self.config, features.shape[1]
        if length > c.length or features.shape[3] != c.dim:
            raise DataError(
                f"features have {length} positions of width {features.shape[3]}; this nearest fill takes at most "
                f"{c.length} of width {c.dim}"
            )
        if not bool(self.there.any()):
            raise DataError("the bank of the nearest fill is empty; fit it again with `legato train fill`")
        clean = torch.where(present.unsqueeze(-1), features, 0).float()
        distance = self.distance(clean, present)
        near, index = distance.topk(c.k, dim=1, largest=False)  # (B, K)
        weight = torch.where(near.isfinite(), 1 / (near.clamp(min=1e-6)), 0)
        return self._mean(index, weight, length)

    def distance(self, clean: Tensor, present: Tensor) -> Tensor:
        """To every stored window, (B, S): the mean over common places and dimensions, infinite where there is none."""
        length = clean.shape[1]
        windows, there = self.windows[:, :length], self.there[:, :length].flatten(1).float()  # (S, P)
        seen = present.flatten(1).float()  # (B, P)
        own = clean.square().sum(dim=-1).flatten(1) @ there.T
        stored = seen @ self.squares[:, : 2 * length].T
        cross = clean.flatten(1) @ windows.flatten(1).T  # 0 wherever either is absent
        common = seen @ there.T
        mean = (own + stored - 2 * cross) / (common * self.config.dim).clamp(min=1)
        return mean.clamp(min=0).masked_fill(common == 0, torch.inf)

    def _mean(self, index: Tensor, weight: Tensor, length: int) -> Tensor:
        """Stored windows index (B, K), weighed by weight (B, K), where each has the place: (B, N, M, D)."""
        total = weight.new_zeros(len(index), length, 2, self.config.dim)
        mass = weight.new_zeros(len(index), length, 2)
        for own, share in zip(index.unbind(1), weight.unbind(1), strict=True):  # one at a time: B windows of room
            total += share.view(-1, 1, 1, 1) * self.windows[own, :length]
            mass += share.view(-1, 1, 1) * self.there[own, :length]
        return total / mass.clamp(min=1e-12).unsqueeze(-1)


def _refuse(module: Nearest, _: Any) -> None:
    if not bool(module.there.any()):
        raise DataError("the bank of the nearest fill is empty; fit it again with `legato train fill`")
    if not bool(torch.isfinite(module.windows).all()):
        raise DataError("the bank of the nearest fill is not finite; fit it again with `legato train fill`")
    module.keep(module.windows, module.there)


def nearest(**overrides: Any) -> Nearest:
    """A fill with an empty bank; ``overrides`` are NearestConfig's fields. Raises UsageError and ConfigError."""
    return Nearest(override(NearestConfig, overrides))


def fit_nearest(
    data: FeatureSet, validation: FeatureSet, *, choose: Sequence[int] = NEIGHBOURS, **options: Any
) -> Nearest:
    """The fill with a bank of these windows, as many of each speaker; ``options`` are its ``bank`` and ``k``.

    The bank is 512 windows at most unless told, and k is chosen by the error on validation. Its variance is not
    calibrated yet: see ``imputation.train.fit_variance``. Raises DataError where there are no
    windows with anything observed, or a number is not finite.
    """
    asked = override(NearestConfig, sizes(data, {"k": 1, **options}))
    features, there = standardised_windows(data)
    usable = there.flatten(1).any(dim=1).nonzero().flatten().tolist()
    if not usable:
        raise DataError("no training window has anything observed, so the bank would be empty; add recordings")
    rows = torch.tensor(usable)[_spread([data.speaker[i] for i in usable], asked.bank)]
    counts = [asked.k] if "k" in options else sorted({min(c, len(rows)) for c in choose})
    fills = []
    for count in counts:
        fill = Nearest(replace(asked, bank=len(rows), k=count))
        fill.keep(features[rows], there[rows])
        fills.append(fill)
    return fills[0] if len(fills) == 1 else min(fills, key=lambda fill: _error(fill, validation))


def _spread(speakers: Sequence[str], count: int) -> list[int]:
    """At most ``count`` rows, dealt among the speakers in turn and over each one's windows evenly; in their order."""
    rows = {s: [i for i, other in enumerate(speakers) if other == s] for s in sorted(set(speakers))}
    share = dict.fromkeys(rows, 0)
    left = min(count, len(speakers))
    while left:
        for speaker in rows:
            if left and share[speaker] < len(rows[speaker]):
                share[speaker] += 1
                left -= 1
    return sorted(own[i * len(own) // share[s]] for s, own in rows.items() for i in range(share[s]))


def _error(fill: Nearest, data: FeatureSet) -> float:
    """Mean squared error on validation, over all k that leave something to see."""
    features, exists = data.standardised(), data.exists
    total = count = 0.0
    for k in range(1, data.length):
        hidden = torch.from_numpy(paired_hidden(data.names, exists.numpy(), k, 0))
        error, filled = fill_error(fill, features, data.presence, exists, hidden)
        total, count = total + float(error[filled].double().sum()), count + int(filled.sum())
    return total / max(count, 1)
