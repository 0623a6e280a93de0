"""SpecAugment: bands of a spectrogram hidden, and its time bent a little.

Park et al. (Interspeech 2019), with PolyViT's numbers: one band of at most 48 mel bins, four of at most 48 mel frames,
and a warp of at most one mel frame.

A spectrogram is float32 ``(T, F)``: T mel frames, F mel bins.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError

__all__ = ["SpecAugment"]

Spectrogram = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """What is hidden of a training spectrogram; the defaults are PolyViT's."""

    frequency_masks: int = 1
    frequency_width: int = 48  # mel bins, at most
    time_masks: int = 4
    time_width: int = 48  # mel frames, at most
    warp: int = 1  # mel frames that a point inside may move
    fill: float | None = None  # what is hidden becomes this; None: the spectrogram's mean

    def __post_init__(self) -> None:
        for name in ("frequency_masks", "frequency_width", "time_masks", "time_width", "warp"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be >= 0; use 0 for none")

    def __call__(self, spectrogram: Spectrogram, random: np.random.Generator) -> Spectrogram:
        """A changed copy."""
        out = _warped(spectrogram, self.warp, random)
        hidden = out.mean(dtype=np.float64) if self.fill is None else self.fill
        for _ in range(self.frequency_masks):
            first, last = _band(out.shape[1], self.frequency_width, random)
            out[:, first:last] = hidden
        for _ in range(self.time_masks):
            first, last = _band(out.shape[0], self.time_width, random)
            out[first:last] = hidden
        return out


def _band(length: int, width: int, random: np.random.Generator) -> tuple[int, int]:
    wide = int(random.integers(min(width, length) + 1))
    first = int(random.integers(length - wide + 1))
    return first, first + wide


def _warped(spectrogram: Spectrogram, amount: int, random: np.random.Generator) -> Spectrogram:
    """A point inside moves by up to ``amount`` mel frames and takes its neighbourhood along, linearly."""
    frames = len(spectrogram)
    if not amount or frames <= 2 * amount + 1:
        return spectrogram.copy()
    centre = int(random.integers(amount, frames - amount))
    moved = min(max(centre + int(random.integers(-amount, amount + 1)), 1), frames - 2)
    at = np.interp(np.arange(frames), [0, moved, frames - 1], [0, centre, frames - 1])
    low = np.floor(at).astype(int)
    share = (at - low)[:, None].astype(np.float32)
    high = np.minimum(low + 1, frames - 1)
    return (spectrogram[low] * (1 - share) + spectrogram[high] * share).astype(np.float32)
