"""MAT: a multiscale transformer that hears, MViTv2-B on a spectrogram.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024), table 1; first in
Zhu and Omar, "Multiscale Audio Spectrogram Transformer for Efficient Audio Classification" (ICASSP 2023). Patches of
7x7 at every fourth place; width doubles where frequency and time are pooled, and at last where time alone is. The
blocks are in ``encoders.layers.multiscale``, their attention in ``encoders.layers.pooled_attention``.
The paper does not say how keys and values are pooled. Here they begin at every second place along both axes and are
all asked once the grid has been pooled: the one rule of those tried that costs the 46.2 G multiply-adds of the paper.
It sees what AST sees (``encoders.audio.filterbank``).

B batch, S sample, F mel bin, T mel frame, D width, K class.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.audio.filterbank import STATISTICS, Filterbank
from encoders.clips import AudioSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.multiscale import Multiscale, MultiscaleConfig
from encoders.layers.pooled_attention import Grid

__all__ = ["MAT", "PRESETS", "MATConfig"]


@dataclass(frozen=True, kw_only=True)
class MATConfig(MultiscaleConfig):
    """Sizes of the trunk, each along (frequency, time), and what it hears; the defaults are the paper's."""

    strides: tuple[tuple[int, ...], ...] = ((2, 2), (2, 2), (1, 2))
    stride_kv: tuple[int, ...] = (2, 2)
    kernel: tuple[int, ...] = (3, 3)
    stem_kernel: tuple[int, ...] = (7, 7)
    stem_stride: tuple[int, ...] = (4, 4)
    bins: int = 128  # F
    frames: int = 1024  # T, a hundred a second; what a clip lacks is filled with zeros
    clip_seconds: Fraction = Fraction(10)
    statistics: str = "audioset"  # of log-mel energies, by which they are standardised: a key of STATISTICS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bins", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.statistics not in STATISTICS:
            raise ConfigError(f"statistics {self.statistics!r} are unknown; use one of {', '.join(STATISTICS)}")
        if self.clip_seconds <= 0:
            raise ConfigError(f"clip_seconds {self.clip_seconds} must be > 0")
        self.check_grid(self.grid)
        heard, _ = replace(self.front, frames=0).shape(self.clip_seconds)
        if heard > self.frames:
            raise ConfigError(
                f"clip_seconds {self.clip_seconds} are {heard} mel frames, of which frames {self.frames} would hear "
                f"the first; use frames={heard} or shorter clips"
            )

    @property
    def grid(self) -> Grid:
        """Places along frequency and time of the first tokens; zero where a side is too small for one patch, which
        ``check_grid`` refuses."""
        return self.bins // max(self.stem_stride[0], 1), self.frames // max(self.stem_stride[-1], 1)

    @property
    def front(self) -> Filterbank:
        """Samples to what the network hears."""
        return Filterbank(bins=self.bins, frames=self.frames).standardised_by(self.statistics)


class MAT(Multiscale):
    """A spectrogram to class scores or, without a head, to its feature; ``encode`` takes waveforms."""

    modalities = ("audio",)
    context_seconds = 0.0

    def __init__(self, config: MATConfig) -> None:
        super().__init__(config, 1, config.grid)
        self.config, self.front = config, config.front
        self.dim, self.clip_seconds = config.dim_out, config.clip_seconds
        self.spec = AudioSpec(sample_rate=self.front.sample_rate)

    def encode(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        """float32 samples (B, S) in [-1, 1] -> features (B, D)."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b 1 f t"]:
        """Samples to the network's input; nothing outside the clip is heard. Raises DataError where they are no clips
        of the model's length."""
        wanted = int(self.clip_seconds * self.front.sample_rate)
        if clips.ndim != 2 or clips.shape[1] != wanted or not clips.is_floating_point():
            raise DataError(
                f"sound of shape {tuple(clips.shape)} came to a model of (batch, {wanted}) floats, "
                f"{float(self.clip_seconds):g} s at {self.front.sample_rate} Hz; cut and resample it"
            )
        # Looking is not free where it would have to wait for an accelerator; there the engine looks at what comes out.
        if clips.device.type == "cpu" and not torch.isfinite(clips).all():
            raise DataError("sound holds a sample that is not finite; leave the clip out, or repair the recording")
        return self.heard(self.front(clips))

    def heard(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b 1 f t"]:
        """What the front makes, laid out for the network: frequency before time."""
        return spectrograms.transpose(1, 2)[:, None]

    def checked(self, x: Tensor) -> Tensor:
        """The spectrograms, (B, 1, F, T). Those of other lengths than the config's are taken; raises DataError on what
        is no spectrogram of so many bins, or has no frame."""
        bins = self.config.bins
        if x.ndim != 4 or tuple(x.shape[1:3]) != (1, bins) or not x.shape[3]:
            raise DataError(
                f"a spectrogram of {'x'.join(map(str, x.shape[1:]))} came to a model of {bins} mel bins; give "
                f"(batch, 1, {bins}, frames), frequency before time"
            )
        return x


# --- presets ----------------------------------------------------------------------------------------------------

PRESETS = {
    "mat_base": MATConfig(),
    # Clips of up to half a second: those of the default grid, 0.4 s, are 38 mel frames.
    "mat_tiny": MATConfig(dim=32, depth=4, pooled=(1, 2, 3), bins=64, frames=48, clip_seconds=Fraction(2, 5)),
}
