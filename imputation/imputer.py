"""The contract every imputer keeps: (features, presence) in, Filled out; and the registry of imputers.

Shape legend: B batch, N position (W window clips and up to F clips of lookahead), M modality (video, audio),
D feature width.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from encoders.errors import DataError
from encoders.settings import pick

OBSERVED = "observed"
MODALITIES = ("video", "audio")  # the order on the M axis

# name -> where it is built; strings, so that naming an imputer imports nothing
IMPUTERS: dict[str, str] = {
    "zero": "imputation.baselines:Zero",
    "mean": "imputation.baselines:Mean",
    "hold": "imputation.baselines:Hold",
    "lerp": "imputation.baselines:Lerp",
    "observed_mean": "imputation.baselines:ObservedMean",
    "gaussian": "imputation.gaussian:gaussian",
    "nearest": "imputation.nearest:nearest",
    "residual": "imputation.residual:residual",
    "curri_mae_base": "imputation.curri_mae:curri_mae_base",
    "curri_mae_small": "imputation.curri_mae:curri_mae_small",
    "curri_mae_tiny": "imputation.curri_mae:curri_mae_tiny",
}


@dataclass(frozen=True)
class Filled:
    """Features with every absent place of an existing position filled.

    features: (B, N, M, D), equal to the input wherever presence is True; variance: (B, N, M), the expected
    mean squared error of a filled feature in units of the standardised features, 0 where observed;
    rung: the name of the method that filled; rungs: the same per row, where rows differ (a ladder), else ().
    """

    features: Tensor
    variance: Tensor
    rung: str
    rungs: tuple[str, ...] = ()

    def rung_of(self, row: int) -> str:
        """The method that filled this row."""
        return self.rungs[row] if self.rungs else self.rung


class Imputer(Protocol):
    """features (B, N, M, D), presence (B, N, M) bool, exists (B, N) bool (None: all) -> Filled.

    ``presence`` True = the feature may be believed. Positions where ``exists`` is False are before the
    stream's start, after its end, or not closed yet: never filled, never attended to, never counted.
    What stands at an absent place of the input is never read.
    """

    rung: str

    def __call__(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled: ...

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """(B,) bool: this imputer has what it needs to fill the window."""
        ...


def build(name: str, **options: Any) -> Any:
    """The imputer called ``name``; ``options`` are its config's fields. Raises UsageError."""
    module, _, attribute = pick(IMPUTERS, name, "imputer").partition(":")
    return getattr(import_module(module), attribute)(**options)


def checked(features: Tensor, presence: Tensor, exists: Tensor | None) -> tuple[Tensor, Tensor]:
    """(presence within existing positions, exists), both bool and of the right shape. Raises DataError."""
    if features.ndim != 4 or features.shape[2] != len(MODALITIES):
        raise DataError(f"features have shape {tuple(features.shape)}; give (batch, position, 2, width)")
    _check_mask("presence", presence, features.shape[:3])
    if exists is None:
        return presence, features.new_ones(features.shape[:2], dtype=torch.bool)
    _check_mask("exists", exists, features.shape[:2])
    return presence & exists.unsqueeze(-1), exists


def _check_mask(name: str, mask: Tensor, shape: torch.Size) -> None:
    if mask.shape != shape or mask.dtype != torch.bool:
        raise DataError(f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; give bool of shape {tuple(shape)}")


def blend(features: Tensor, predicted: Tensor, presence: Tensor, exists: Tensor) -> Tensor:
    """Predictions at absent places of existing positions; every other place bit for bit as it came."""
    keep = presence | ~exists.unsqueeze(-1)  # (B, N, M)
    return torch.where(keep.unsqueeze(-1), features, predicted.to(features.dtype))
