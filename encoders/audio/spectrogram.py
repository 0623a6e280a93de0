"""The log spectrogram that AVID-CMA's audio network hears: 257 bins, 100 columns a second, standardised per bin.

Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (CVPR 2021), and its
public code. The mean and standard deviation of each bin are those of AudioSet as published, at 25 of the 257 bins;
between them we interpolate.

Shapes: B batch, S sample, T column in time, F frequency bin.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.errors import ConfigError

__all__ = ["BIN_MEAN", "BIN_STD", "AvidSpectrogram"]

# Bins at which the published statistics are tabulated, and the decibels there.
_BINS = (0, 1, 2, 3, 4, 5, 6, 7, 8, *range(24, 249, 16), 256)
_MEAN_DB = (
    *(-13.8, -5.7, -1.9, -0.6, -0.1, -0.1, -0.7, -1.2, -1.7, -10.3, -14.2, -16.6, -19.6, -23.1, -26.8),
    *(-29.4, -31.9, -33.5, -35.5, -37.2, -38.7, -41.2, -44.7, -49.9, -53.9),
)
_STD_DB = (
    *(21.2, 20.0, 19.5, 18.7, 18.2, 18.0, 17.9, 17.8, 17.8, 17.6, 17.4, 17.7, 17.5, 18.0, 19.6),
    *(20.2, 21.1, 21.2, 21.4, 21.4, 21.4, 21.2, 21.0, 19.4, 18.7),
)
BIN_MEAN = np.interp(np.arange(257), _BINS, _MEAN_DB).astype(np.float32)
BIN_STD = np.interp(np.arange(257), _BINS, _STD_DB).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AvidSpectrogram:
    """Power spectrum in decibels, pairs of bins averaged, each bin standardised: (B, S) -> (B, T, 257)."""

    sample_rate: int = 24_000  # Hz
    n_fft: int = 1_024  # samples, Hann window and transform; twice what the published config calls n_fft
    columns_per_second: int = 100
    floor: float = 1e-10  # power below which the logarithm sees no difference
    range_db: float = 100.0  # what lies further below the clip's maximum is raised to there

    @property
    def hop(self) -> int:
        """Samples between columns; exact."""
        hop, rest = divmod(self.sample_rate, self.columns_per_second)
        assert rest == 0, f"{self.sample_rate} Hz is no multiple of {self.columns_per_second} columns a second"
        return hop

    def shape(self, seconds: Fraction) -> tuple[int, int]:
        """(T, F) of a clip that long."""
        return int(seconds * self.columns_per_second), 1 + self.n_fft // 4

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Samples in [-1, 1]; the ends are mirrored, so nothing outside the clip is heard."""
        if clips.shape[-1] <= self.n_fft // 2:
            raise ConfigError(
                f"an audio clip of {clips.shape[-1]} samples is too short for a window of {self.n_fft}; "
                f"give more than {self.n_fft // 2} samples"
            )
        window, mean, std = (x.to(clips) for x in _constants(self.n_fft))
        spectrum = torch.stft(clips, self.n_fft, self.hop, window=window, pad_mode="reflect", return_complex=True)
        power = spectrum.abs().square()[..., : clips.shape[-1] // self.hop]  # (B, 513, T)
        pairs = power[:, 1:].unflatten(1, (-1, 2)).mean(2)  # (B, 256, T)
        power = torch.cat([power[:, :1], pairs], 1).transpose(1, 2)  # (B, T, 257)
        decibel = 10 * power.clamp_min(self.floor).log10()
        decibel = torch.maximum(decibel, decibel.amax((1, 2), keepdim=True) - self.range_db)
        return (decibel - mean) / (std + 1e-5)


@lru_cache(maxsize=4)
def _constants(n_fft: int) -> tuple[Tensor, Tensor, Tensor]:
    """Window, and the bins' mean and standard deviation (those of 1 024 stretched to another size)."""
    at = np.linspace(0, 256, 1 + n_fft // 4)
    mean, std = (np.interp(at, np.arange(257), x).astype(np.float32) for x in (BIN_MEAN, BIN_STD))
    return torch.hann_window(n_fft), torch.from_numpy(mean), torch.from_numpy(std)
