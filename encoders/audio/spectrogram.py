"""The dB spectrogram of AVID-CMA: 24 kHz, 257 bins, 100 columns a second.

Morgado, Vasconcelos, Misra (CVPR 2021), public preprocessing: an FFT twice the configured size, bins 1..512 averaged
in pairs, power in dB clipped 100 dB below the clip's loudest, then standardised per bin.

Shapes: B batch, S sample, T column in time, F frequency bin.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Per-bin statistics of the published pre-training audio at every 16th bin (finer at the low end), in dB;
# between them we interpolate linearly.
STATS_BINS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 24, 40, 56, 72, 88, 104, 120, 136, 152, 168, 184, 200, 216, 232, 248, 256)
STATS_MEAN = (
    -13.8, -5.7, -1.9, -0.6, -0.1, -0.1, -0.7, -1.2, -1.7, -10.3, -14.2, -16.6, -19.6, -23.1, -26.8,
    -29.4, -31.9, -33.5, -35.5, -37.2, -38.7, -41.2, -44.7, -49.9, -53.9,
)  # fmt: skip
STATS_STD = (
    21.2, 20.0, 19.5, 18.7, 18.2, 18.0, 17.9, 17.8, 17.8, 17.6, 17.4, 17.7, 17.5, 18.0, 19.6,
    20.2, 21.1, 21.2, 21.4, 21.4, 21.4, 21.2, 21.0, 19.4, 18.7,
)  # fmt: skip


@dataclass(frozen=True)
class AvidSpectrogram:
    """Samples (B, S) in [-1, 1] at 24 kHz -> standardised dB (B, T, 257), T = seconds * 100."""

    sample_rate: int = 24_000  # Hz
    n_fft: int = 1024  # twice the "n_fft: 512" of the published configuration
    hop: int = 240  # samples
    bins: int = 257

    def shape(self, seconds: Fraction) -> tuple[int, int]:
        return int(seconds * 100), self.bins

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        mean, std = (x.to(clips) for x in _stats(self.bins))
        window = torch.hann_window(self.n_fft, device=clips.device)
        spectrum = torch.stft(clips, self.n_fft, self.hop, window=window, center=True, pad_mode="constant", return_complex=True)
        power = spectrum.abs().square()[..., : clips.shape[-1] // self.hop]  # (B, 513, T)
        pairs = power[:, 1:].unflatten(1, (self.bins - 1, 2)).mean(2)
        db = 10 * torch.cat((power[:, :1], pairs), 1).clamp(min=1e-10).log10()
        db = torch.maximum(db, db.amax((1, 2), keepdim=True) - 100)
        return (db.transpose(1, 2) - mean) / (std + 1e-5)


@lru_cache(maxsize=2)
def _stats(bins: int) -> tuple[Tensor, Tensor]:
    at = np.arange(bins)
    tables = (np.interp(at, STATS_BINS, table).astype(np.float32) for table in (STATS_MEAN, STATS_STD))
    mean, std = (torch.from_numpy(table) for table in tables)
    return mean, std
