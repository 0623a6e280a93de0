"""Changes made to a clip before an encoder sees it; one draw is shared by all frames of a clip (numpy, OpenCV).

Clips are uint8, ``(T, H, W)`` gray or ``(T, H, W, 3)`` RGB. Every function takes what it draws from a generator
that is passed in. The recipe is AVID-CMA's: multi-scale crop, mirror, colours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.clips import LUMA, fit_frame, resize
from encoders.errors import ConfigError

__all__ = ["ClipAugment", "change_colours", "change_gain", "fit_clip", "random_resized_crop"]

Clip = NDArray[np.uint8]


def fit_clip(frames: Sequence[Clip] | Clip, size: int, crop_share: float) -> Clip:
    """Evaluation: shorter side to ``size / crop_share`` rounded down, centre crop of ``size``."""
    return np.stack([fit_frame(frame, size, crop_share) for frame in frames])


def random_resized_crop(
    frames: Sequence[Clip] | Clip,
    size: int,
    random: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Clip:
    """A box of random area (share of the picture) and aspect, resized to a square of ``size``."""
    height, width = frames[0].shape[:2]
    top, left, high, wide = _box(height, width, random, area, aspect)
    return np.stack([resize(frame[top : top + high, left : left + wide], size, size) for frame in frames])


def _box(
    height: int, width: int, random: np.random.Generator, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(10):
        target = height * width * random.uniform(*area)
        ratio = float(np.exp(random.uniform(np.log(aspect[0]), np.log(aspect[1]))))
        wide, high = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return int(random.integers(height - high + 1)), int(random.integers(width - wide + 1)), high, wide
    # No box fitted: the largest centred one whose aspect is allowed.
    wide, high = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
    return (height - high) // 2, (width - wide) // 2, high, wide


def change_colours(
    clip: Clip,
    random: np.random.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.2,
) -> Clip:
    """Brightness, contrast, saturation and hue by random amounts, in random order; colour only where there is any.

    A factor is drawn from ``[1 - x, 1 + x]``, never below 0; ``hue`` is the largest turn, as a share of the circle.
    """
    if hue > 0.5 or min(brightness, contrast, saturation, hue) < 0:
        raise ConfigError(f"hue {hue} must lie in 0..0.5 and the other amounts be >= 0")
    factors = [random.uniform(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation)]
    turn = random.uniform(-hue, hue)
    steps: list[Callable[[NDArray[np.float32]], NDArray[np.float32]]] = [
        lambda x: x * np.float32(factors[0]),
        lambda x: _blend(x, _gray(x).mean((1, 2), keepdims=True), factors[1]),
        lambda x: _blend(x, _gray(x), factors[2]),
        lambda x: _turn_hue(x, turn),
    ]
    order = random.permutation(4)
    x = clip.astype(np.float32)
    for i in order:
        if i < 2 or clip.ndim == 4:
            x = np.clip(steps[i](x), 0, 255)
    return np.rint(x).astype(np.uint8)


def _gray(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (x @ LUMA)[..., None] if x.ndim == 4 else x


def _blend(x: NDArray[np.float32], other: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    return np.float32(factor) * x + np.float32(1 - factor) * other


def _turn_hue(x: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    if not turn:
        return x
    import cv2  # late: heavy

    tall = x.reshape(-1, *x.shape[2:]) / np.float32(255)  # (T*H, W, 3): one call for all frames
    hsv = cv2.cvtColor(tall, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turn)) % 360
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255, np.float32).reshape(x.shape)


def change_gain(samples: NDArray[np.float32], random: np.random.Generator, amount: float = 0.1) -> NDArray[np.float32]:
    """The whole clip louder or softer by a factor from ``[1 - amount, 1 + amount]``."""
    return samples * np.float32(random.uniform(1 - amount, 1 + amount))


@dataclass(frozen=True, kw_only=True)
class ClipAugment:
    """Training-time changes; the defaults are AVID-CMA's pre-training ("msc+color")."""

    area: tuple[float, float] = (0.08, 1.0)  # share of the picture that a crop keeps
    mirror: float = 0.5  # probability
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    gain: float = 0.1  # of the sound

    def video(self, frames: Sequence[Clip] | Clip, size: int, random: np.random.Generator) -> Clip:
        """Frames of any size to a clip of ``size``."""
        clip = random_resized_crop(frames, size, random, area=self.area)
        if random.random() < self.mirror:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        return change_colours(
            clip,
            random,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )

    def audio(self, samples: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Samples of a clip, louder or softer."""
        return change_gain(samples, random, self.gain)
