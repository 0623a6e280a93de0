"""What a model of several modalities takes in: pictures, clips, spectrograms, and how each is cut into patches.

Every input says its ``grid`` of tokens, the ``shape`` of one prepared example, and the ``spec`` of the clip that it is
prepared from.

B batch, C channel, T frame or mel frame, F mel bin, H W pixels, S sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from encoders.audio.log_mel import FRONTS
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.embed import check_divides
from encoders.settings import pick

__all__ = ["AudioInput", "ImageInput", "Input", "VideoInput", "check_shape", "heard"]

Grid = tuple[int, int, int]  # tokens along time, down and across; of sound: 1, along time, along frequency


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """Pictures; all image tasks share this size, for they share one table of positions."""

    size: int = 384  # H = W
    patch: tuple[int, int] = (16, 16)  # height, width
    crop_share: float = 0.875

    def __post_init__(self) -> None:
        _check_crop(self.crop_share)

    @property
    def grid(self) -> Grid:
        return 1, *_pair(check_divides((self.size, self.size), self.patch, ("rows", "columns")))

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.size, self.size

    @property
    def spec(self) -> VideoSpec:
        return VideoSpec(frames=1, size=self.size, pixel_format="rgb24", crop_share=self.crop_share)


@dataclass(frozen=True, kw_only=True)
class VideoInput:
    """Clips."""

    frames: int = 32  # T
    size: int = 224  # H = W
    tubelet: tuple[int, int, int] = (4, 16, 16)  # frames, height, width
    clip_seconds: Fraction = Fraction(64, 25)  # every other frame at 25 per second
    region: Literal["frame", "face"] = "frame"  # what the picture shows
    crop_share: float = 0.875
    motion: bool = False  # see only what moves (``encoders.layers.pictures.motion_of``); ours

    def __post_init__(self) -> None:
        _check_crop(self.crop_share)
        if self.clip_seconds <= 0:
            raise ConfigError(f"video.clip_seconds {self.clip_seconds} must be more than 0, such as 2/5")
        if self.region not in ("frame", "face"):
            raise ConfigError(f"video.region {self.region!r} is unknown; use frame or face")

    @property
    def grid(self) -> Grid:
        t, h, w = check_divides((self.frames, self.size, self.size), self.tubelet, ("frames", "rows", "columns"))
        return t, h, w

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.frames, self.size, self.size

    @property
    def spec(self) -> VideoSpec:
        return VideoSpec(
            frames=self.frames,
            size=self.size,
            pixel_format="rgb24",
            region=self.region,
            crop_share=self.crop_share,
        )


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """Spectrograms, given to the patch convolution as pictures of three equal channels, time down, frequency across."""

    frames: int = 800  # T, mel frames
    bins: int = 128  # F
    patch: tuple[int, int] = (16, 16)  # mel frames, mel bins
    clip_seconds: Fraction = Fraction(8)
    front: str = "log_mel_128"  # a key of FRONTS: samples to (T, F); empty: only spectrograms are taken

    def __post_init__(self) -> None:
        if not self.front:
            return
        front = pick(FRONTS, self.front, "front")
        made = front.shape(self.clip_seconds)
        if made != (self.frames, self.bins):
            raise ConfigError(
                f"front {self.front!r} makes {made[0]}x{made[1]} (mel frames, bins) of {float(self.clip_seconds):g} s "
                f"but the tokenizer takes {self.frames}x{self.bins}; set audio.frames and audio.bins to what it makes"
            )

    @property
    def grid(self) -> Grid:
        return 1, *_pair(check_divides((self.frames, self.bins), self.patch, ("mel frames", "mel bins")))

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.frames, self.bins

    @property
    def spec(self) -> AudioSpec:
        return AudioSpec(sample_rate=FRONTS[self.front].sample_rate) if self.front else AudioSpec()


def _check_crop(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"crop_share {share} must lie in (0, 1]; 1 shows the whole picture")


def _pair(sides: Sequence[int]) -> tuple[int, int]:
    first, second = sides
    return first, second


Input = ImageInput | VideoInput | AudioInput


def heard(part: AudioInput, clips: Tensor) -> Float[Tensor, "b t f"]:
    """Samples (B, S) in [-1, 1] to spectrograms; raises DataError where they are no clips of the input's length."""
    if not part.front:
        raise DataError("the model takes spectrograms, not samples; set audio.front")
    front = FRONTS[part.front]
    samples = int(part.clip_seconds * front.sample_rate)
    if clips.ndim != 2 or clips.shape[1] != samples or not clips.is_floating_point():
        raise DataError(
            f"sound of shape {tuple(clips.shape)} came to a tokenizer of (batch, {samples}) floats, "
            f"{float(part.clip_seconds):g} s at {front.sample_rate} Hz; cut and resample it"
        )
    return front(clips)


def check_shape(part: Input, x: Tensor, modality: str, channels: int = 3) -> None:
    """Raises DataError where ``x`` (B, C, ...) is no batch of what the tokenizer takes."""
    wanted = channels, *part.shape[1:]
    if tuple(x.shape[1:]) != wanted:
        raise DataError(
            f"{modality} of {'x'.join(map(str, x.shape[1:]))} came to a tokenizer of {'x'.join(map(str, wanted))}; "
            f"sample and resize it, or build the model with another {modality}"
        )
