"""What a view goes through in CrissCross, each view by itself: strong changes of picture, sound and spectrogram.

Sarkar & Etemad (AAAI 2023), with the values of the public configuration. A picture is cut, mirrored, its colours
jittered or dropped, blurred; a square of it is chosen to be cut out once it is standardised (`crisscross.cut_out`).
Sound gets louder or softer; of its spectrogram bands are hidden (SpecAugment), and a box of any length and height is
stretched to the whole, as in BYOL for Audio (Niizumi et al., IJCNN 2021). One draw is shared by all frames of a clip.

Clips are uint8 ``(T, H, W)`` gray or ``(T, H, W, 3)`` RGB; a spectrogram is float32 ``(T, F)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from encoders.datasets.augment import blur
from encoders.datasets.rand_augment import luma
from encoders.datasets.spec_augment import SpecAugment
from encoders.datasets.transforms import change_colours, change_gain, random_resized_crop
from encoders.errors import ConfigError

__all__ = ["ViewAugment", "resize_crop"]

Clip = NDArray[np.uint8]
Sound = NDArray[np.float32]  # samples, or a spectrogram
Square = NDArray[np.int64]  # top, left, side in pixels


@dataclass(frozen=True, kw_only=True)
class ViewAugment:
    """How a view is changed; the defaults are CrissCross's on Kinetics-400."""

    area: tuple[float, float] = (0.08, 1.0)  # share of the picture that a crop keeps
    mirror: float = 0.5  # probability
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    grayscale: float = 0.2  # probability that colours are dropped
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    cutout: float = 1.0  # probability that a square is cut out
    cutout_side: int = 20  # pixels, at most
    gain: float = 0.2  # louder or softer by up to this share
    frequency_masks: int = 2
    frequency_width: int = 9  # mel bins, at most
    time_masks: int = 2
    time_width: int = 19  # mel frames, at most
    crop: float = 1.0  # probability that a box of the spectrogram is stretched to the whole
    crop_canvas: float = 1.5  # length of the silence that the spectrogram is laid on, in its own
    crop_scale: tuple[float, float] = (0.6, 1.5)  # of the box, in its height and length

    def __post_init__(self) -> None:
        for name in ("mirror", "grayscale", "blur", "cutout", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is no probability; use 0 to 1")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area {self.area} must be two shares of the picture, the smaller first")
        for name in ("blur_sigma", "crop_scale"):
            first, last = getattr(self, name)
            if not 0 < first <= last:
                raise ConfigError(f"{name} {getattr(self, name)} must be two numbers above 0, the smaller first")
        if self.hue > 0.5 or min(self.brightness, self.contrast, self.saturation, self.hue) < 0:
            raise ConfigError(f"hue {self.hue} must lie in 0..0.5 and the other amounts of colour be >= 0")
        if not 0 <= self.gain < 1:
            raise ConfigError(f"gain {self.gain} must lie in [0, 1); use 0 for none")
        if self.cutout_side < 1 or self.crop_canvas < 1:
            raise ConfigError(
                f"cutout_side {self.cutout_side} and crop_canvas {self.crop_canvas} must be at least 1; "
                "to leave them out use cutout 0 and crop 0"
            )
        self.bands  # noqa: B018  SpecAugment refuses what cannot be

    @property
    def bands(self) -> SpecAugment:
        """What is hidden of a spectrogram."""
        return SpecAugment(
            frequency_masks=self.frequency_masks, frequency_width=self.frequency_width,
            time_masks=self.time_masks, time_width=self.time_width, warp=0,
        )  # fmt: skip

    def video(self, frames: Sequence[Clip] | Clip, size: int, random: np.random.Generator) -> tuple[Clip, Square]:
        """Frames of any size to a clip of ``size``, and the square that is cut out of it (side 0: none)."""
        clip = random_resized_crop(frames, size, random, area=self.area)
        if random.random() < self.mirror:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        clip = change_colours(
            clip, random,
            brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue,
        )  # fmt: skip
        if random.random() < self.grayscale and clip.ndim == 4:
            clip = np.repeat(np.rint(luma(clip)).astype(np.uint8), 3, -1)
        if random.random() < self.blur:
            clip = blur(clip, random.uniform(*self.blur_sigma))
        return clip, self._square(size, random)

    def _square(self, size: int, random: np.random.Generator) -> Square:
        if random.random() >= self.cutout:
            return np.zeros(3, np.int64)
        side = min(size, int(random.integers(1, self.cutout_side + 1)))
        return np.array([*random.integers(size - side + 1, size=2), side], np.int64)

    def sound(self, samples: Sound, random: np.random.Generator) -> Sound:
        """Samples of a clip, louder or softer."""
        return change_gain(samples, random, self.gain)

    def spectrogram(self, spectrogram: Sound, random: np.random.Generator) -> Sound:
        """A changed copy of a standardised spectrogram."""
        out = self.bands(spectrogram, random)
        if random.random() < self.crop:
            out = resize_crop(out, random, canvas=self.crop_canvas, scale=self.crop_scale)
        return out


def resize_crop(
    spectrogram: Sound, random: np.random.Generator, *, canvas: float = 1.5, scale: tuple[float, float] = (0.6, 1.5)
) -> Sound:
    """A box of the spectrogram stretched to its size, bicubically, corners on corners.

    The spectrogram (T, F) lies in the middle of zeros ``canvas`` times as long and just as high, so that a box may be
    longer than the sound but never higher.
    """
    frames, bins = spectrogram.shape
    length = int(frames * canvas)
    laid = np.zeros((length, bins), np.float32)
    first = (length - frames) // 2
    laid[first : first + frames] = spectrogram
    high = min(max(1, int(random.uniform(*scale) * bins)), bins)
    long = min(max(1, int(random.uniform(*scale) * frames)), length)
    low, start = int(random.integers(bins - high + 1)), int(random.integers(length - long + 1))
    box = torch.from_numpy(laid[start : start + long, low : low + high])[None, None]
    return interpolate(box, (frames, bins), mode="bicubic", align_corners=True)[0, 0].numpy()
