"""Slaney's mel spectrogram, as CrissCross hears it: triangles of equal area, power, logarithm, two fixed numbers.

Sarkar & Etemad, "Self-Supervised Audio-Visual Representation Learning with Relaxed Cross-Modal Synchronicity" (AAAI
2023), and its public code, which takes librosa's default mel matrix: linear below 1 kHz and logarithmic above (Slaney's
Auditory Toolbox), each triangle of unit area in Hz. A mel frame stands around sample ``t * hop``; nothing outside the
clip is heard, for its ends are mirrored (librosa's default when the paper was written; since 0.9 it is zeros).

Shapes: B batch, S sample, T mel frame, F mel bin.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["SlaneyMel", "slaney_filters"]

BREAK_HZ, LINEAR_STEP = 1000.0, 200.0 / 3  # Hz where the scale bends, and Hz of a mel below it
LOG_STEP = np.log(6.4) / 27.0  # above: so many natural logarithms a mel
EPS32, EPS64 = 1.1920929e-07, 2.220446049250313e-16  # added to mel energies, and to the power before them


def _to_mel(hz: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    above = BREAK_HZ / LINEAR_STEP + np.log(np.maximum(hz, BREAK_HZ) / BREAK_HZ) / LOG_STEP
    return np.where(hz < BREAK_HZ, hz / LINEAR_STEP, above)


def _to_hz(mel: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    bend = BREAK_HZ / LINEAR_STEP
    return np.where(mel < bend, mel * LINEAR_STEP, BREAK_HZ * np.exp(LOG_STEP * (np.maximum(mel, bend) - bend)))


def slaney_filters(
    bins: int, n_fft: int, sample_rate: int, low: float = 0.0, high: float | None = None
) -> Float[np.ndarray, "f bins"]:
    """Triangles in Hz between points equally far apart in mel, each of area 1 Hz: (n_fft // 2 + 1, bins), float64."""
    ends = _to_mel(np.array([low, sample_rate / 2 if high is None else high]))
    edges = _to_hz(np.linspace(ends[0], ends[1], bins + 2))
    at = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rise = (at - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - at) / np.diff(edges)[1:]
    return np.maximum(0.0, np.minimum(rise, fall)) * (2.0 / (edges[2:] - edges[:-2]))


@dataclass(frozen=True, kw_only=True)
class SlaneyMel:
    """(B, S) in [-1, 1] to (B, T, F), T = 1 + S // hop, standardised by two numbers; the defaults are CrissCross's."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1_024  # samples, Hann window and transform
    hop: int = 160  # samples, 10 ms
    bins: int = 80  # F
    mean: float = -5.3688107  # of the natural logarithm
    std: float = 4.410007

    def shape(self, seconds: Fraction) -> tuple[int, int]:
        """(T, F) of a clip that long."""
        return 1 + int(seconds * self.sample_rate) // self.hop, self.bins

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Samples to what the network sees."""
        return (self.log_mel(clips) - self.mean) / self.std

    def log_mel(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Natural logarithms of mel energies; raises ConfigError where the clip is too short to be mirrored."""
        if clips.shape[-1] <= self.n_fft // 2:
            raise ConfigError(
                f"an audio clip of {clips.shape[-1]} samples is too short for a window of {self.n_fft}; "
                f"give more than {self.n_fft // 2} samples"
            )
        window, filters = (x.to(clips) for x in _constants(self))
        spectrum = torch.stft(clips, self.n_fft, self.hop, window=window, pad_mode="reflect", return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) + EPS64  # (B, T, n_fft / 2 + 1)
        return (power @ filters + EPS32).log()


@lru_cache(maxsize=8)
def _constants(front: SlaneyMel) -> tuple[Tensor, Tensor]:
    filters = slaney_filters(front.bins, front.n_fft, front.sample_rate)
    return torch.hann_window(front.n_fft), torch.from_numpy(filters.astype(np.float32))
