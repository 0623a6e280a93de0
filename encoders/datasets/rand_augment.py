"""RandAugment for clips: a few random operations of one magnitude, the same for every frame.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (CVPR Workshops 2020),
with the operations that ViViT and MTV use on video: those that do not move the picture, and cutout. Statistics
(contrast, equalize) are taken over the whole clip, so that brightness does not flicker. One choice in twelve leaves
the clip as it is, as published.

Ours where the public code errs: contrast blends with the mean gray of the clip (PIL's meaning), not with the number of
its pixels. Magnitudes count in tenths, and may exceed 10 (Epic-Kitchens 15, Something-Something 20).

Clips are uint8, ``(T, H, W)`` gray or ``(T, H, W, 3)`` RGB.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from encoders.clips import LUMA
from encoders.errors import ConfigError

__all__ = ["OPERATIONS", "rand_augment"]

Clip = NDArray[np.uint8]
FULL = 10.0  # the magnitude that means "all of it"
CUTOUT = 40  # pixels from the centre of a cutout to its edge at full magnitude, in a picture of 224
CUTOUT_SIZE = 224
GRAY = 128


def rand_augment(clip: Clip, random: np.random.Generator, *, layers: int, magnitude: float) -> Clip:
    """``layers`` operations, each drawn evenly from OPERATIONS and "none", all of ``magnitude``."""
    if layers < 0 or magnitude < 0:
        raise ConfigError(f"rand_layers {layers} and rand_magnitude {magnitude} must be >= 0; use 0 layers for none")
    chosen = list(OPERATIONS.values())
    for _ in range(layers):
        i = int(random.integers(len(chosen) + 1))
        if i < len(chosen):
            clip = chosen[i](clip, magnitude / FULL, random)
    return clip


def luma(clip: Clip) -> NDArray[np.float32]:
    """The gray value of every pixel, float32, with the clip's number of axes."""
    return (clip @ LUMA)[..., None] if clip.ndim == 4 else clip.astype(np.float32)


def _blend(clip: Clip, other: NDArray[np.float32] | float, share: float) -> Clip:
    """``other`` at factor 0, the clip at 1, beyond it at more; PIL's enhancement."""
    factor = np.float32(share * 1.8 + 0.1)
    return np.clip(other + factor * (clip.astype(np.float32) - other), 0, 255).astype(np.uint8)


def _autocontrast(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    """Each channel stretched to 0..255."""
    low = clip.min((0, 1, 2), keepdims=True).astype(np.float32)
    high = clip.max((0, 1, 2), keepdims=True).astype(np.float32)
    flat = high <= low
    scale = 255 / np.where(flat, 1, high - low)
    return np.where(flat, clip, np.rint((clip - low) * scale)).astype(np.uint8)


def _equalize(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    """Each channel's histogram made even."""
    out = np.empty_like(clip)
    channels = [...] if clip.ndim == 3 else [(..., c) for c in range(clip.shape[-1])]
    for channel in channels:
        out[channel] = _equal_table(clip[channel])[clip[channel]]
    return out


def _equal_table(values: Clip) -> Clip:
    counts = np.bincount(values.ravel(), minlength=256)
    step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    table = (np.cumsum(counts) + step // 2) // step
    return np.clip(np.concatenate([[0], table[:-1]]), 0, 255).astype(np.uint8)


def _invert(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    return 255 - clip


def _posterize(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    """Only the upper bits are kept: none at magnitude 0, 4 at 10, all from 20 on."""
    shift = 8 - min(8, int(share * 4))
    return ((clip.astype(np.uint16) >> shift) << shift).astype(np.uint8)


def _solarize(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    return np.where(clip < share * 256, clip, 255 - clip)


def _solarize_add(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    raised = np.minimum(clip.astype(np.int32) + int(share * 110), 255).astype(np.uint8)
    return np.where(clip < GRAY, raised, clip)


def _colour(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    return clip if clip.ndim == 3 else _blend(clip, luma(clip), share)


def _contrast(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    return _blend(clip, float(luma(clip).mean()), share)


def _brightness(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    return _blend(clip, 0.0, share)


def _sharpness(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    """Away from or towards a smoothed picture; the outermost pixels stay."""
    if min(clip.shape[1:3]) < 3:
        return clip
    x, smooth = clip.astype(np.float32), clip.astype(np.float32)
    around = sum(x[:, i : i + x.shape[1] - 2, j : j + x.shape[2] - 2] for i in range(3) for j in range(3))
    smooth[:, 1:-1, 1:-1] = np.floor((around + 4 * x[:, 1:-1, 1:-1]) / 13)
    return _blend(clip, smooth, share)


def _cutout(clip: Clip, share: float, random: np.random.Generator) -> Clip:
    """A gray square at the same random place in every frame; its size follows the picture's."""
    height, width = clip.shape[1:3]
    half = round(share * CUTOUT * min(height, width) / CUTOUT_SIZE)
    y, x = int(random.integers(height)), int(random.integers(width))
    out = clip.copy()
    out[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = GRAY
    return out


# Name to (clip, share of the full magnitude, random) -> clip.
OPERATIONS: dict[str, Callable[[Clip, float, np.random.Generator], Clip]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "colour": _colour,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "cutout": _cutout,
    "solarize_add": _solarize_add,
}
