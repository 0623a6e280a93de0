"""What is done to training sound: to samples before the front, and to the spectrogram that it makes.

Shapes: T mel frame, F mel bin, S sample.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from encoders.datasets.spec_augment import SpecAugment
from encoders.errors import ConfigError

__all__ = ["Spectrograms"]

Sound = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Spectrograms:
    """What is done to training sound. Widths are shares of a spectrogram; the defaults are PolyViT's 48 of 128 mel bins
    and 48 of 800 mel frames, for models whose clips are shorter. ``fill`` and what follows it are AST's; beside
    sound that is mixed pictures are mixed too, and only models of sound alone have it not repeated."""

    gain: float = 0.0  # louder or softer by up to this share (ours); fronts that remove loudness hardly notice
    frequency_masks: int = 1
    frequency_share: float = 48 / 128
    time_masks: int = 4
    time_share: float = 48 / 800
    warp: int = 1  # mel frames that a point inside may move
    fill: Literal["mean", "zero"] = "mean"  # what hidden parts become; zero: before the front standardises
    mixup: float = 0.0  # probability that a clip is mixed, sample by sample, with one of any other recording
    mixup_alpha: float = 10.0  # the share that is kept is Beta(alpha, alpha)
    noise: float = 0.0  # added to the spectrogram: uniform, of a strength that is drawn from 0 to this
    roll: int = 0  # mel frames that it may be turned around in time, either way
    repeat: bool = True  # a recording shorter than the clip begins anew; False: the front fills it up

    def __post_init__(self) -> None:
        for name in ("gain", "frequency_share", "time_share", "mixup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} of sound is no share; use 0 to 1")
        if self.mixup_alpha <= 0:
            raise ConfigError(f"mixup_alpha {self.mixup_alpha} of sound must be more than 0; mixup 0 mixes nothing")
        if self.noise < 0 or self.roll < 0:
            raise ConfigError(f"noise {self.noise} and roll {self.roll} of sound must be >= 0; use 0 for none")
        if self.fill not in ("mean", "zero"):
            raise ConfigError(f"fill {self.fill!r} of sound is unknown; use mean or zero")
        self.masks(1, 1)

    def masks(self, frames: int, bins: int, zero: float | None = None) -> SpecAugment:
        """What is hidden of a spectrogram of that many mel frames and bins; ``zero`` is what no energy looks like."""
        return SpecAugment(
            frequency_masks=self.frequency_masks, frequency_width=round(self.frequency_share * bins),
            time_masks=self.time_masks, time_width=round(self.time_share * frames), warp=self.warp,
            fill=zero if self.fill == "zero" else None,
        )  # fmt: skip

    def louder(self, sound: Sound, random: np.random.Generator) -> Sound:
        """Samples (S,), louder or softer."""
        return sound * np.float32(random.uniform(1 - self.gain, 1 + self.gain)) if self.gain else sound

    def changed(self, heard: Sound, random: np.random.Generator, zero: float = 0.0) -> Sound:
        """A changed copy of a spectrogram (T, F)."""
        frames, bins = heard.shape
        out = self.masks(frames, bins, zero)(heard, random)
        if self.noise:
            out += (random.random(out.shape, np.float32) * random.uniform(0, self.noise)).astype(np.float32)
        if self.roll:
            out = np.roll(out, int(random.integers(-self.roll, self.roll + 1)), 0)
        return out
