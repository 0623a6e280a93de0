"""Waveforms to time-frequency pictures: the fronts that audio encoders stand on.

A front sees its clip and nothing else: the ends are padded by reflection inside the clip, and loudness is removed
per clip, so that neither a neighbour nor a volume knob speaks through it.

Shapes: B batch, S sample, T mel frame, F frequency bin.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from encoders.audio.filterbank import CAV_MAE, SCENIC, SCENIC_RAW, Filterbank
from encoders.audio.mel import mel_filters
from encoders.audio.slaney_mel import SlaneyMel
from encoders.audio.spectrogram import AvidSpectrogram


class Front(Protocol):
    """Samples (B, S) to (B, T, F)."""

    @property
    def sample_rate(self) -> int: ...  # Hz

    def shape(self, seconds: Fraction) -> tuple[int, int]: ...

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]: ...


def zero_of(front: Front) -> float:
    """What a log energy of zero looks like after the front has standardised it."""
    return float(front.normalise(torch.zeros(1, 1, 1, device="cpu"))) if isinstance(front, Filterbank) else 0.0


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Log-mel energies, the clip's own mean removed; (B, S) -> (B, T, F) with T = S // hop."""

    sample_rate: int = 16_000  # Hz
    window: int = 400  # samples, Hann
    hop: int = 160  # samples
    n_fft: int = 512
    bins: int = 48  # F
    low: float = 60.0  # Hz
    high: float = 7_600.0  # Hz
    floor: float = 1e-5  # power added before the logarithm; about -60 dB below a full-scale tone's mel energy
    scale: float = 3.0  # nats; brings speech to about unit spread

    def shape(self, seconds: Fraction) -> tuple[int, int]:
        return int(seconds * self.sample_rate) // self.hop, self.bins

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        window, filters = _constants(self)
        power = self.power(clips, window.to(clips))
        mel = (power.transpose(1, 2) @ filters.to(clips) + self.floor).log()  # (B, T, F)
        return (mel - mel.mean((1, 2), keepdim=True)) / self.scale

    def power(self, clips: Tensor, window: Tensor) -> Float[Tensor, "b bins t"]:
        """|STFT|^2 on the grid of hops; the frame after the last hop is dropped so that T = S // hop."""
        spectrum = torch.stft(
            clips, self.n_fft, self.hop, self.window, window, center=True, pad_mode="reflect", return_complex=True
        )
        return spectrum.abs().square()[..., : clips.shape[-1] // self.hop]


@lru_cache(maxsize=8)
def _constants(front: LogMel) -> tuple[Tensor, Tensor]:
    filters = mel_filters(front.bins, front.n_fft, front.sample_rate, front.low, front.high)
    # Unit-height triangles over |STFT|^2 of a window whose squares sum to 3/8 of its length.
    gain = 1.0 / (0.375 * front.window)
    return torch.hann_window(front.window), torch.from_numpy(filters * np.float32(gain))


FRONTS: dict[str, Front] = {
    "avid_spectrogram": AvidSpectrogram(),
    "log_mel_talk": LogMel(),
    # As tall as in AST, MBT and PolyViT; the transform is long enough that no triangle falls between its bins.
    "log_mel_128": LogMel(bins=128, n_fft=1024),
    "filterbank": Filterbank(),
    "slaney_mel": SlaneyMel(),
    "cav_mae": CAV_MAE,
    "scenic": SCENIC,
    "scenic_raw": SCENIC_RAW,
}
