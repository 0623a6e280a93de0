"""Where in a recording a clip lies: sampling for training, and the several views of a test (pure, numpy only).

A clip is ``frames`` pictures, ``stride`` apart at ``fps``. In training its start is uniform over the recording; a test
takes one in the middle, or several with linearly spaced starts, times one or three squares (ViViT: "4x3"). A recording
shorter than the clip is repeated.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from encoders.errors import ConfigError, UsageError

__all__ = ["ClipSampling", "Views", "starts_of", "views_of"]


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """How the frames of a clip are chosen."""

    frames: int = 32  # T
    stride: int = 2  # frames of the fps grid from one to the next; 0: spread evenly over the whole sample (ours)
    fps: Fraction = Fraction(25)

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 0 or self.fps <= 0:
            raise ConfigError(
                f"frames {self.frames} and fps {self.fps} must be positive, and stride {self.stride} >= 0 (0: spread)"
            )

    @property
    def seconds(self) -> Fraction:
        """The time a clip covers; 0 where it is spread over whatever there is."""
        return Fraction(self.frames * self.stride) / self.fps

    def steps(self, length: float) -> int:
        """Places of the fps grid in ``length`` seconds, at least one."""
        return max(1, round(length * self.fps))

    def indices(self, start: float, length: float) -> np.ndarray:
        """Which places of the fps grid a clip shows, (T,); past the end it begins anew."""
        steps = self.steps(length)
        middles = np.arange(self.frames) + 0.5  # of T equal parts, as `encoders.clips` samples them
        if not self.stride:
            return (middles * steps / self.frames).astype(int)
        return np.floor(start * float(self.fps) + middles * self.stride + 1e-6).astype(int) % steps

    def draw(self, length: float, random: np.random.Generator) -> float:
        """A start for training, in seconds: uniform, and 0 where the recording is too short."""
        return float(random.uniform(0, max(0.0, length - float(self.seconds)))) if self.stride else 0.0


@dataclass(frozen=True, kw_only=True)
class Views:
    """How many clips a test takes of a recording: in time, and in space."""

    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops not in (1, 3):
            raise ConfigError(f"views {self.clips}x{self.crops} cannot be taken; use some clips times 1 or 3 crops")

    @property
    def count(self) -> int:
        return self.clips * self.crops


def views_of(text: str) -> Views:
    """``"4x3"``: four clips in time, three squares of each; raises UsageError on anything else."""
    clips, times, crops = text.lower().partition("x")
    if not (times and clips.isdecimal() and crops.isdecimal()):
        raise UsageError(f"views {text!r} is not CLIPSxCROPS; write for example 4x3, or 1x1")
    return Views(clips=int(clips), crops=int(crops))


def starts_of(length: float, sampling: ClipSampling, clips: int) -> list[float]:
    """Where a test's clips begin: linearly spaced from the first to the last place; a single one in the middle."""
    last = max(0.0, length - float(sampling.seconds)) if sampling.stride else 0.0
    return [last / 2] if clips == 1 else [float(x) for x in np.linspace(0, last, clips)]
