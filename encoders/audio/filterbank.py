"""Kaldi's log-mel filterbank, as AST and its relatives hear it: samples to mel frames, without Kaldi.

Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021), and the public code's call of Kaldi's fbank
with everything it leaves at its default. A frame is worked on by itself: its mean removed, pre-emphasised, windowed,
transformed; the power in 128 triangles, their logarithm. Frames stand inside the clip, so that nothing outside is
heard: 1 + (S - 400) // 160 of them, 998 in 10 s. What the network sees is standardised by a dataset's statistics and
divided by two once more.

Two more of these are for scenic's models (MBT, AV-MAE; `SCENIC`, `SCENIC_RAW`): a Hamming window and exactly 100 frames
a second. Their code does not say how loud a sample is; so that a spectrogram is spread over AudioSet as theirs, its
statistics there, which AST publishes, are mapped to those that MBT publishes.

Shapes: B batch, S sample, T mel frame, F mel bin.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from encoders.audio.mel import mel_filters
from encoders.errors import ConfigError, DataError

__all__ = ["CAV_MAE", "SCENIC", "SCENIC_RAW", "STATISTICS", "Filterbank"]

FLOOR = 1.1920929e-07  # energy below which the logarithm sees no difference: float32's epsilon, as in Kaldi

# Mean and standard deviation of the log-mel energies, as AST publishes them.
STATISTICS = {
    "audioset": (-4.2677393, 4.5689974),
    "esc50": (-6.6268077, 5.358466),
    "speech_commands": (-6.845978, 5.5654526),
}
SCENIC_STATISTICS = 1.102, 2.762  # of AudioSet, as MBT's public configuration has them


@dataclass(frozen=True, kw_only=True)
class Filterbank:
    """(B, S) in [-1, 1] to (B, T, F), standardised; the defaults are AST's on AudioSet.

    ``frames`` fixes T: what is shorter is filled with zeros (before standardising, as AST's code does), what is longer
    is cut. 0 leaves as many as there are.
    """

    sample_rate: int = 16_000  # Hz
    window: int = 400  # samples, 25 ms
    hop: int = 160  # samples, 10 ms
    n_fft: int = 512
    bins: int = 128  # F
    low: float = 20.0  # Hz; high is half the sample rate
    shape_of_window: Literal["hann", "hamming"] = "hann"
    pre_emphasis: float = 0.97
    centred: bool = False  # frame t around sample t * hop, S // hop of them, the ends mirrored; or all inside the clip
    frames: int = 0  # T; 0: as many as there are
    mean: float = STATISTICS["audioset"][0]
    std: float = STATISTICS["audioset"][1]
    spread: float = 2.0  # standard deviations that come out as 1

    def __post_init__(self) -> None:
        for name in ("sample_rate", "window", "hop", "bins", "std", "spread"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)} of a filterbank must be more than 0")
        if self.n_fft < self.window:
            raise ConfigError(f"n_fft {self.n_fft} is less than the window of {self.window} samples; raise it")
        if self.shape_of_window not in ("hann", "hamming"):
            raise ConfigError(f"shape_of_window {self.shape_of_window!r} is unknown; use hann or hamming")
        if not 0 <= self.low < self.sample_rate / 2:
            raise ConfigError(f"low {self.low:g} Hz must lie below half the sample rate of {self.sample_rate}")
        if self.frames < 0 or not 0 <= self.pre_emphasis < 1:
            raise ConfigError(
                f"frames {self.frames} must be >= 0 (0: as many as there are) and pre_emphasis {self.pre_emphasis:g} "
                "lie in [0, 1)"
            )

    def count(self, samples: int) -> int:
        """Mel frames that so many samples have; raises DataError where there is not one."""
        if samples < (self.window if not self.centred else self.window // 2 + 1):
            raise DataError(
                f"sound of {samples} samples is shorter than a mel frame of {self.window}; "
                f"give at least {self.window / self.sample_rate:g} s at {self.sample_rate} Hz"
            )
        return samples // self.hop if self.centred else 1 + (samples - self.window) // self.hop

    def shape(self, seconds: Fraction) -> tuple[int, int]:
        """(T, F) of a clip that long."""
        return self.frames or self.count(int(seconds * self.sample_rate)), self.bins

    def __call__(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Samples to what the network sees."""
        return self.normalise(self.fit(self.log_mel(clips)))

    def log_mel(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b u f"]:
        """Log energies, as many mel frames as there are, neither standardised nor padded.

        Computed in float64: between a tone and silence lie more powers of ten than float32 tells apart.
        """
        total = self.count(clips.shape[-1])
        window, filters = (x.to(clips.device) for x in _constants(self))
        x = clips.double()
        if self.centred:
            half = self.window // 2
            x = pad(x, (half, half), mode="reflect")
        x = x.unfold(-1, self.window, self.hop)[:, :total]  # (B, T, window)
        x = x - x.mean(-1, keepdim=True)  # which takes out the waveform's mean as well
        before = torch.cat([x[..., :1], x[..., :-1]], -1)  # the first sample is its own predecessor
        x = (x - self.pre_emphasis * before) * window
        power = torch.fft.rfft(x, self.n_fft).abs().square()  # (B, T, n_fft / 2 + 1)
        return (power @ filters).clamp_min(FLOOR).log().float()

    def fit(self, log_mel: Float[Tensor, "b u f"]) -> Float[Tensor, "b t f"]:
        """Filled with zeros at the end, or cut, to ``frames``."""
        if not self.frames or log_mel.shape[1] == self.frames:
            return log_mel
        return pad(log_mel[:, : self.frames], (0, 0, 0, max(0, self.frames - log_mel.shape[1])))

    def normalise(self, log_mel: Float[Tensor, "b t f"]) -> Float[Tensor, "b t f"]:
        """Less the mean, over ``spread`` standard deviations."""
        return (log_mel - self.mean) / (self.std * self.spread)

    def standardised_by(self, dataset: str) -> "Filterbank":
        """The same with another dataset's published statistics."""
        mean, std = STATISTICS[dataset]
        return replace(self, mean=mean, std=std)


@lru_cache(maxsize=8)
def _constants(front: Filterbank) -> tuple[Tensor, Tensor]:
    """Window (symmetric, as Kaldi's) and triangles, linear in mel, of unit height: half the sample rate counts 0."""
    filters = mel_filters(front.bins, front.n_fft, front.sample_rate, front.low, front.sample_rate / 2)
    make = torch.hann_window if front.shape_of_window == "hann" else torch.hamming_window
    window = make(front.window, periodic=False, dtype=torch.float64)
    return window, torch.from_numpy(filters).double()


def _scenic() -> tuple[Filterbank, Filterbank]:
    """As MBT sees AudioSet (mean 0, deviation 1), and before it is standardised (as AV-MAE reconstructs it)."""
    seen = Filterbank(shape_of_window="hamming", centred=True, spread=1.0)
    mean, std = SCENIC_STATISTICS
    return seen, replace(seen, mean=seen.mean - mean * seen.std / std, std=seen.std / std)


SCENIC, SCENIC_RAW = _scenic()
# As CAV-MAE hears ten seconds: its own statistics of AudioSet, and not divided by two.
CAV_MAE = Filterbank(frames=1024, mean=-5.081, std=4.4849, spread=1.0)
