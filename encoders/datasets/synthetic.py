"""Pairs of picture and sound that share a hidden code and nothing else: what a test learns from.

An instance's code is three numbers. They colour the picture (gray: its stripes) and tune three tones; where the
stripes stand, the tones' phases and the noise are drawn anew at every reading, so that only the code is common.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.clips import VideoSpec
from encoders.errors import UsageError

__all__ = ["SyntheticPairs"]

BANDS = ((300.0, 600.0), (1000.0, 2000.0), (3000.0, 6000.0))  # Hz, where each of the code's tones lies


@dataclass(frozen=True)
class SyntheticPairs:
    """``size`` instances, read like recorded ones: ``read(index, random)`` gives video uint8 and audio float32."""

    size: int
    video: VideoSpec
    sample_rate: int  # Hz
    samples: int  # of an audio clip
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"synthetic:{self.size} holds no instance; write for example synthetic:64")

    def __len__(self) -> int:
        return self.size

    def code(self, index: int) -> NDArray[np.float64]:
        """The hidden code of an instance: three numbers in 0..1."""
        return np.random.default_rng([self.seed, index]).random(3)

    def read(self, index: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Video ``(T, H, W[, 3])`` and audio ``(S,)`` of one reading of an instance."""
        code = self.code(index)
        return self._picture(code, random), self._sound(code, random)

    def _picture(self, code: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.uint8]:
        spec, phase = self.video, random.uniform(0, 2 * np.pi)
        t, y, x = np.meshgrid(np.arange(spec.frames), *[np.linspace(0, 1, spec.size)] * 2, indexing="ij")
        angle, frequency, speed = np.pi * code[0], 2 + 4 * code[1], 2 * code[2]
        stripes = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + speed * t + phase)
        light = 0.6 + 0.3 * stripes + random.normal(0, 0.02, stripes.shape)
        if spec.pixel_format == "rgb24":
            light = light[..., None] * (0.2 + 0.8 * code)
        return np.clip(255 * light, 0, 255).astype(np.uint8)

    def _sound(self, code: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float32]:
        t = np.arange(self.samples) / self.sample_rate
        tones = [
            np.sin(2 * np.pi * (low * (high / low) ** c) * t + random.uniform(0, 2 * np.pi))
            for c, (low, high) in zip(code, BANDS, strict=True)
        ]
        return (0.2 * np.sum(tones, 0) + random.normal(0, 0.01, self.samples)).astype(np.float32)
