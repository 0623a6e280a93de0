"""Which places a training step hides: the paper's samplings, whole modalities, real loss profiles, or a mixture.

A sampling is written as names joined by ``+``; each step draws one of them:

    none         nothing
    curriculum   k(e) of L in both modalities, k growing with the epoch
    k=3          3 of L in both modalities (the fixed-rate autoencoder)
    uniform      k from 1 to L - 1, one for the whole batch
    all          k from 0 to L - 1, one for each row ("-ft-all")
    max          L - 1 of L ("-ft")
    independent  k from 0 to L - 1 for each row and modality by itself
    whole        one modality of each row entirely, the other as in ``all``
    profile=X    as the loss profile X would, through the presence rule

Only places that exist are hidden and counted, and ``curriculum``, ``k=``, ``uniform``, ``all``, ``max`` leave at
least one of them in each modality. The same k holds for both modalities, the places are drawn apart.

Shape legend: B batch, L position, M modality.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError, UsageError
from imputation.curriculum import Curriculum
from imputation.masks import network, paired_seed, uniform_k
from imputation.profiles import open_profile

KINDS = ("none", "curriculum", "uniform", "all", "max", "independent", "whole")
Bools = NDArray[np.bool_]


def hide(rng: np.random.Generator, exists: Bools, k: NDArray[np.integer]) -> Bools:
    """k (B, M) places per row and modality, uniformly chosen among the existing ones: (B, L, M), True = hidden."""
    scores = rng.random((*exists.shape, k.shape[1]))
    scores[~exists] = 2.0  # rank last
    ranks = scores.argsort(axis=1).argsort(axis=1)
    return (ranks < k[:, None, :]) & exists[:, :, None]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A parsed sampling; ``length`` is L, ``epochs`` and ``step`` shape the curriculum."""

    kinds: tuple[str, ...]
    length: int
    epochs: int = 50
    step: int = 5
    clip_seconds: float = 0.4

    @classmethod
    def parse(cls, text: str, *, length: int, epochs: int = 50, step: int = 5, clip_seconds: float = 0.4) -> "Sampling":
        """Raises UsageError on an unknown name, ConfigError on a k that leaves nothing to see."""
        kinds = tuple(part.strip() for part in text.split("+"))
        for kind in kinds:
            name, _, value = kind.partition("=")
            if name == "k":
                if not value.isdecimal() or not 0 <= int(value) < length:
                    raise ConfigError(
                        f"sampling {kind!r} needs a whole number from 0 to {length - 1} for windows of {length}"
                    )
            elif name == "profile":
                open_profile(value)
            elif kind not in KINDS:
                raise UsageError(f"sampling {kind!r} is unknown; use {', '.join(KINDS)}, k=N or profile=NAME")
        return cls(kinds=kinds, length=length, epochs=epochs, step=step, clip_seconds=clip_seconds)

    def draw(self, rng: np.random.Generator, epoch: int, exists: Bools) -> Bools:
        """What to hide in a batch: exists (B, L) -> (B, L, M) bool, True = hidden."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        name, _, value = kind.partition("=")
        if name == "profile":
            return self._network(rng, value, exists)
        if name == "whole":
            return self._whole(rng, exists)
        most = np.maximum(exists.sum(axis=1) - 1, 0)  # (B,)
        k = np.minimum(self._levels(rng, name, value, epoch, most), most[:, None])
        return hide(rng, exists, k)

    def _levels(
        self, rng: np.random.Generator, name: str, value: str, epoch: int, most: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """k of each row and modality, (B, M)."""
        shape = (len(most), 2)
        match name:
            case "none":
                return np.zeros(shape, np.int64)
            case "curriculum":
                return np.full(shape, Curriculum(length=self.length, epochs=self.epochs, step=self.step).k(epoch))
            case "k":
                return np.full(shape, int(value))
            case "uniform":
                return np.full(shape, int(rng.integers(1, self.length)))
            case "max":
                return np.full(shape, self.length - 1)
            case "all":
                return np.repeat(rng.integers(0, most + 1)[:, None], 2, axis=1)
            case _:
                return rng.integers(0, most[:, None] + 1, size=shape)

    def _whole(self, rng: np.random.Generator, exists: Bools) -> Bools:
        most = np.maximum(exists.sum(axis=1) - 1, 0)
        k = np.repeat(rng.integers(0, most + 1)[:, None], 2, axis=1)
        gone = rng.integers(0, 2, size=len(exists))
        k[np.arange(len(exists)), gone] = exists.shape[1]
        return hide(rng, exists, k)

    def _network(self, rng: np.random.Generator, name: str, exists: Bools) -> Bools:
        seed = int(rng.integers(2**31))
        batch, length = exists.shape
        mask = network(open_profile(name), seed, batch=batch, length=length, clip_seconds=self.clip_seconds)
        return mask & exists[:, :, None]


def paired_hidden(samples: Sequence[str], exists: Bools, k: int, draw: int) -> Bools:
    """k existing places of each row and modality, from the stored seed of (sample, k, draw): (B, L, M), True = hidden.

    A row with fewer than k + 1 existing places keeps one of them. Where all exist this is ``paired_uniform``.
    """
    hidden = np.zeros((*exists.shape, 2), bool)
    for row, sample in enumerate(samples):
        there = np.flatnonzero(exists[row])
        if len(there):
            rng = np.random.Generator(np.random.PCG64(paired_seed(sample, k, draw)))
            hidden[row, there] = uniform_k(rng, 1, len(there), min(k, len(there) - 1))[0]
    return hidden


def profile_hidden(name: str, exists: Bools, draw: int, clip_seconds: float) -> Bools:
    """Clip masks of a loss profile along one run of its link, the same for each draw: (B, L, M), True = hidden."""
    batch, length = exists.shape
    mask = network(
        open_profile(name), paired_seed(name, 0, draw), batch=batch, length=length, clip_seconds=clip_seconds
    )
    return mask & exists[:, :, None]
