"""What a clip looks like to an encoder: the grid, and how frames and samples are laid on it (numpy only).

Time on the grid is counted in *flicks*, 1/705 600 000 s: every common frame rate, sample rate and container time
base has a whole number of them, so grid arithmetic is exact in plain integers. Microseconds are rounded, by less
than a nanosecond and never across a grid line, because grid lines are whole flicks.

Serving, feature extraction and training lay their clips with the same functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError

FLICKS = 705_600_000  # per second
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # how bright red, green and blue are; ITU-R BT.601
FADE_SECONDS = Fraction(1, 200)  # 5 ms: long enough to hide a click, short enough to keep a phoneme

Picture = NDArray[np.uint8]  # (H, W) gray or (H, W, 3) rgb24


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """The picture an encoder asks for.

    A clip arrives as uint8 ``(T, H, W)`` for gray, ``(T, H, W, 3)`` for rgb24. ``region`` says what is shown:
    ``frame`` (shorter side resized to ``size / crop_share``, centre crop) or ``face`` (the face box, cut out).
    """

    frames: int  # sampled by time: frame i is the one on screen at start + (i + 0.5) * seconds / frames
    size: int  # pixels, square
    pixel_format: str = "gray"  # gray, rgb24
    region: str = "frame"  # frame, face
    crop_share: float = 1.0
    margin: float = 1.0  # of the face region: mouth boxes from side to side; about 2 shows the whole face
    lift: float = 0.0  # of the face region: how far above the mouth its middle lies, in mouth boxes
    max_side: int = 640  # decoded frames are scaled down so that no side exceeds this


@dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """The sound an encoder asks for: float32 mono ``(S,)`` in [-1, 1]."""

    sample_rate: int = 16_000  # Hz


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """One cell of the capture grid, both modalities; None where the bundle does not use a modality."""

    seconds: Fraction = Fraction(2, 5)
    video: VideoSpec | None = None
    audio: AudioSpec | None = None

    @property
    def samples(self) -> int:
        """Audio samples in a clip; fails unless the rate divides exactly."""
        assert self.audio is not None, "this spec has no audio"
        exact = self.seconds * self.audio.sample_rate
        if exact.denominator != 1:
            raise ConfigError(
                f"clip seconds {self.seconds} at {self.audio.sample_rate} Hz is {float(exact)} samples; "
                "choose a clip length that gives a whole number"
            )
        return int(exact)

    @property
    def flicks(self) -> int:
        """The length of a clip in flicks; fails unless it is a whole number."""
        exact = self.seconds * FLICKS
        if exact.denominator != 1 or exact <= 0:
            raise ConfigError(
                f"clip seconds {self.seconds} is not a positive multiple of 1/{FLICKS} s; use e.g. 0.4 or 0.5"
            )
        return int(exact)


def to_flicks(ticks: int, time_base: Fraction) -> int:
    """``ticks`` of ``time_base`` seconds in flicks, to the nearest (exact for all but microsecond time bases)."""
    numerator, denominator = ticks * time_base.numerator * FLICKS, time_base.denominator
    return (2 * numerator + denominator) // (2 * denominator)


def from_flicks(flicks: int) -> Fraction:
    """Flicks as exact seconds."""
    return Fraction(flicks, FLICKS)


def grid_floor(time: int, length: int) -> int:
    """The last multiple of ``length`` at or before ``time``, all in flicks."""
    return time - time % length


def sample_points(start: int, length: int, count: int) -> list[int]:
    """When an encoder looks at a clip: the middles of ``count`` equal parts of ``length``, in flicks."""
    return [start + (2 * i + 1) * length // (2 * count) for i in range(count)]


def on_screen(spans: Sequence[tuple[int, int]], points: Sequence[int]) -> list[int]:
    """Which picture is on screen at each point: frames are sampled by time, never by index.

    ``spans`` are the (start, end) of good pictures, sorted and not empty; a point between two of them, in a hole,
    takes the nearest (a tie takes the earlier). Both lists are in flicks.
    """
    chosen, i, last = [], 0, len(spans) - 1
    for point in points:
        while i < last and spans[i + 1][0] <= point:
            i += 1
        hole = i < last and point >= spans[i][1]
        chosen.append(i + 1 if hole and spans[i + 1][0] - point < point - spans[i][1] else i)
    return chosen


def lay_video(
    pictures: Sequence[Picture], spans: Sequence[tuple[int, int]], start: int, length: int, spec: VideoSpec
) -> Picture:
    """One clip of video, uint8 ``(T, H, W)`` or ``(T, H, W, 3)``, from good pictures and when they were on screen.

    Holes are closed from these pictures only, so give none that was not on screen within the clip. For the face
    region pictures keep their decoded size (the size of the first, should it change within the clip).
    """
    chosen = on_screen(spans, sample_points(start, length, spec.frames))
    fit = _fit_frame if spec.region == "frame" else _fit_first
    fitted: dict[int, Picture] = {}
    for i in chosen:
        if i not in fitted:
            fitted[i] = fit(pictures[i], spec, pictures[chosen[0]].shape)
    first = fitted[chosen[0]]
    clip = np.empty((len(chosen), *first.shape), first.dtype)  # as np.stack, at a third of its overhead
    for place, i in enumerate(chosen):
        clip[place] = fitted[i]
    return clip


def fit_frame(picture: Picture, size: int, crop_share: float = 1.0) -> Picture:
    """The centre of a picture as a square of ``size``: shorter side resized to ``size / crop_share``, then cut."""
    height, width = picture.shape[:2]
    short = max(size, round(size / crop_share))
    scale = short / min(height, width)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    scaled = resize(picture, high, wide)
    top, left = (high - size) // 2, (wide - size) // 2
    return scaled[top : top + size, left : left + size]


def resize(picture: Picture, height: int, width: int) -> Picture:
    """Resize by area when shrinking, bilinearly when growing; a picture of that size is returned as it is."""
    if picture.shape[:2] == (height, width):
        return picture
    import cv2  # late: heavy, and needed only where pictures are really resized

    shrinks = height * width < picture.shape[0] * picture.shape[1]
    scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)


def _fit_frame(picture: Picture, spec: VideoSpec, _shape: tuple[int, ...]) -> Picture:
    return fit_frame(picture, spec.size, spec.crop_share)


def _fit_first(picture: Picture, _spec: VideoSpec, shape: tuple[int, ...]) -> Picture:
    return resize(picture, shape[0], shape[1])


def lay_audio(blocks: Sequence[NDArray[np.float32]], starts: Sequence[int], length: int) -> NDArray[np.float32]:
    """One clip of sound, float32 ``(S,)``: each block at its place (in samples, may overhang), silence elsewhere."""
    samples = np.zeros(length, np.float32)
    for block, start in zip(blocks, starts, strict=True):
        first, last = max(start, 0), min(start + len(block), length)
        if first < last:
            samples[first:last] = block[first - start : last - start]
    return samples


def silence_holes(samples: NDArray[np.float32], holes: Sequence[tuple[int, int]], fade: int) -> None:
    """Silence the holes (in samples) in place; the sound fades out before each and in after it, within the clip."""
    if not holes:
        return
    ramp = np.cos(np.linspace(0, np.pi / 2, fade + 2)[1:-1]).astype(np.float32) ** 2 if fade else None
    for first, last in holes:
        samples[first:last] = 0
        if ramp is None:
            continue
        out = samples[max(first - fade, 0) : first]
        out *= ramp[fade - len(out) :]
        into = samples[last : last + fade]
        into *= ramp[::-1][: len(into)]
