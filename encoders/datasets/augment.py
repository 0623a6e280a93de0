"""What a training clip goes through between decoder and network, as ViViT and its relatives do it.

Short side resized, scale jittered (height and width apart), a random square cut, mirrored; then one of RandAugment,
SimCLR's colours or plain colour jitter, in this order of priority; at last a box of it may be erased (Zhong et al.,
"Random Erasing Data Augmentation", AAAI 2020, as MViTv2 uses it). One draw is shared by all frames of a clip.
Images (PolyViT, TokenLearner) are cut with Inception's random box instead.

Clips are uint8, ``(T, H, W)`` gray or ``(T, H, W, 3)`` RGB; a gray clip skips what only colour has.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clips import resize
from encoders.datasets.rand_augment import luma, rand_augment
from encoders.datasets.transforms import change_colours, random_resized_crop
from encoders.errors import ConfigError

__all__ = ["Augment", "blur", "colour_jitter", "crop_at", "erased", "simclr", "to_short_side"]

Clip = NDArray[np.uint8]
Field = NDArray[np.float32]  # movement


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to training clips, and how likely; the defaults are ViViT's on Kinetics."""

    mirror: float = 0.5  # probability; 0 where left and right mean something (Something-Something)
    scale: tuple[float, float] = (0.9, 1.33)  # factors on height and width before the crop
    colour: float = 0.8  # probability of colour jitter
    grayscale: float = 0.1  # probability that colours are dropped
    simclr: bool = False  # SimCLR's colours instead of colour jitter
    rand_layers: int = 0  # RandAugment's operations, instead of both; 0: none
    rand_magnitude: float = 10.0
    area: tuple[float, float] | None = None  # Inception's random box: share of the picture; None: scale and crop
    erase: float = 0.0  # probability that a box becomes noise, of the spread that pixels have
    shift: int = 0  # pixels that the crop of a picture already at its size may move, edges repeated (ours)

    def __post_init__(self) -> None:
        for name in ("mirror", "colour", "grayscale", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is no probability; use 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale {self.scale} must be two factors, the smaller first; use (1, 1) for none")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area {self.area} must be two shares of the picture, the smaller first")
        if self.rand_layers < 0 or self.rand_magnitude < 0 or self.shift < 0:
            raise ConfigError(
                f"rand_layers {self.rand_layers}, rand_magnitude {self.rand_magnitude} and shift {self.shift} "
                "must be >= 0; use 0 for none"
            )

    def __call__(self, clip: Clip, short_side: int, size: int, random: np.random.Generator) -> Clip:
        """Frames of any size to a clip of ``size``, changed at random."""
        if self.area is not None:
            clip = random_resized_crop(clip, size, random, area=self.area)
        else:
            clip = self._random_crop(clip, short_side, size, random)
        if random.random() < self.mirror:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        clip = self._recolour(clip, random)
        return erased(clip, random) if self.erase and random.random() < self.erase else clip

    def with_flow(
        self, clip: Clip, flow: Field, short_side: int, size: int, random: np.random.Generator
    ) -> tuple[Clip, Field]:
        """A clip at its short side, and its flow (T, H, W, 2) that moves along: scaled, cut and mirrored, not coloured.

        RandAugment's operations leave flow as it is. Raises ConfigError where ``area`` is set: a box of another aspect
        would bend movement.
        """
        if self.area is not None:
            raise ConfigError(f"area {self.area} cuts boxes of any aspect, which flow cannot follow; use scale instead")
        from encoders.video.flow import mirror_flow, resize_flow  # late: it writes files, which few need

        again = copy.deepcopy(random)  # the same draws for both
        flow = self._random_crop(flow, short_side, size, again, resize_flow)
        if again.random() < self.mirror:
            flow = mirror_flow(flow)
        return self(clip, short_side, size, random), flow

    def _random_crop(
        self, clip: Any, short_side: int, size: int, random: np.random.Generator,
        resized: Callable[[Any, int, int], Any] | None = None,
    ) -> Any:  # fmt: skip
        high, wide = _fitted(clip, short_side)
        if self.scale != (1.0, 1.0):
            high, wide = (max(size, round(side * random.uniform(*self.scale))) for side in (high, wide))
        clip = (resized or _resized)(clip, high, wide)
        if self.shift:
            edge = ((0, 0), (self.shift,) * 2, (self.shift,) * 2, (0, 0))[: clip.ndim]
            clip, high, wide = np.pad(clip, edge, "edge"), high + 2 * self.shift, wide + 2 * self.shift
        top, left = int(random.integers(high - size + 1)), int(random.integers(wide - size + 1))
        return clip[:, top : top + size, left : left + size]

    def _recolour(self, clip: Clip, random: np.random.Generator) -> Clip:
        if self.rand_layers:
            return rand_augment(clip, random, layers=self.rand_layers, magnitude=self.rand_magnitude)
        if self.simclr:
            return simclr(clip, random)
        if random.random() < self.colour:
            clip = colour_jitter(clip, random)
        if random.random() < self.grayscale and clip.ndim == 4:
            clip = np.repeat(np.rint(luma(clip)).astype(np.uint8), 3, -1)
        return clip

    def without_chance(self) -> "Augment":
        """The same, changing nothing but the place of the crop."""
        still = replace(self, mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0, erase=0.0)
        return replace(still, simclr=False, rand_layers=0)


def to_short_side(clip: Clip, short_side: int) -> Clip:
    """Frames resized so that the shorter side is ``short_side``; the aspect stays."""
    return _resized(clip, *_fitted(clip, short_side))


def _fitted(clip: Clip, short_side: int) -> tuple[int, int]:
    height, width = clip.shape[1:3]
    scale = short_side / min(height, width)
    return max(short_side, round(height * scale)), max(short_side, round(width * scale))


def _resized(clip: Clip, height: int, width: int) -> Clip:
    if clip.shape[1:3] == (height, width):
        return clip
    return np.stack([resize(frame, height, width) for frame in clip])


def crop_at(clip: Clip, size: int, place: int, places: int = 3) -> Clip:
    """A square of ``size`` from the short-side-resized clip: evenly spaced along its longer side, else the centre.

    Of three places 0, 1 and 2 are left, centre, right where the picture is wide, else top, middle, bottom.
    """
    spare_y, spare_x = clip.shape[1] - size, clip.shape[2] - size
    share = 0.5 if places == 1 else place / (places - 1)
    top = round(spare_y * (share if spare_y > spare_x else 0.5))
    left = round(spare_x * (share if spare_x >= spare_y else 0.5))
    return clip[:, top : top + size, left : left + size]


def colour_jitter(clip: Clip, random: np.random.Generator) -> Clip:
    """DMVR's default: brightness +-32 of 255, saturation and contrast 0.6 to 1.4, hue +-0.2 of the circle."""
    shifted = clip.astype(np.int16) + round(random.uniform(-32, 32))
    bright = np.clip(shifted, 0, 255).astype(np.uint8)
    return change_colours(bright, random, brightness=0.0, contrast=0.4, saturation=0.4, hue=0.2)


def simclr(clip: Clip, random: np.random.Generator, strength: float = 0.75) -> Clip:
    """SimCLR's changes made alike in all frames: colours, gray, blur, solarisation, time reversed.

    Chen et al. (ICML 2020), with the probabilities of the public video code: 0.8, 0.2, 0.5, 0.2, 0.5.
    """
    if random.random() < 0.8:
        amount = 0.8 * strength
        clip = change_colours(
            clip, random, brightness=amount, contrast=amount, saturation=amount, hue=0.2 * strength
        )
    if random.random() < 0.2 and clip.ndim == 4:
        clip = np.repeat(np.rint(luma(clip)).astype(np.uint8), 3, -1)
    if random.random() < 0.5:
        clip = blur(clip, random.uniform(0.1, 2.0))
    if random.random() < 0.2:
        clip = np.where(clip < 128, clip, 255 - clip)
    return clip[::-1] if random.random() < 0.5 else clip


def blur(clip: Clip, sigma: float) -> Clip:
    """All frames blurred alike; ``sigma`` in pixels."""
    import cv2  # late: heavy

    side = max(3, clip.shape[1] // 10 | 1)  # a tenth of the picture, odd
    return np.stack([np.asarray(cv2.GaussianBlur(frame, (side, side), sigma), np.uint8) for frame in clip])


def erased(clip: Clip, random: np.random.Generator, tries: int = 10) -> Clip:
    """A box of a fiftieth to a third of the picture, at most 3.3 times as long as wide, turned into noise.

    The box is the same in all frames, the noise is not; it has the mean and deviation by which pictures are
    standardised, 0.45 and 0.225. A box that does not fit is drawn anew, ``tries`` times in all.
    """
    height, width = clip.shape[1:3]
    for _ in range(tries):
        area, aspect = random.uniform(0.02, 1 / 3) * height * width, np.exp(random.uniform(*np.log((0.3, 1 / 0.3))))
        high, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < high < height and 0 < wide < width:
            top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
            out = clip.copy()
            box = out[:, top : top + high, left : left + wide]
            box[...] = np.clip(random.normal(0.45, 0.225, box.shape) * 255, 0, 255).astype(np.uint8)
            return out
    return clip
