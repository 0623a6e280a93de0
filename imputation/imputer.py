"""The contract every imputer keeps: (features, presence) in, Filled out.

Shape legend: B batch, N position (W window clips and up to F clips of lookahead), M modality (video, audio),
D feature width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

OBSERVED = "observed"


@dataclass(frozen=True)
class Filled:
    """Features with every absent place of an existing position filled.

    features: (B, N, M, D), equal to the input wherever presence is True; variance: (B, N, M), the expected
    mean squared error of a filled feature in units of the standardised features, 0 where observed;
    rung: the name of the method that filled.
    """

    features: Tensor
    variance: Tensor
    rung: str


class Imputer(Protocol):
    """features (B, N, M, D), presence (B, N, M) bool, exists (B, N) bool (None: all) -> Filled.

    ``presence`` True = the feature may be believed. Positions where ``exists`` is False are before the
    stream's start, after its end, or not closed yet: never filled, never attended to, never counted.
    """

    rung: str

    def __call__(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled: ...
