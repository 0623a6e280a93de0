"""Labelled recordings as training and tests see them: one changed clip, or the views of a test.

Reading decodes just the span that a clip needs; with ``cache="memory"`` every sample is decoded once, kept as uint8
at the short side, and cut from there, which makes small data fast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from encoders.clips import ClipSpec, VideoSpec
from encoders.datasets.augment import Augment, crop_at, to_short_side
from encoders.datasets.reader import TRIES, is_still, read_sample, seconds_of
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling, Views, starts_of
from encoders.errors import ConfigError, DataError, LegatoError

__all__ = ["Instances", "LabelledClips", "Look", "Reading", "kept_samples", "train_or_next"]

Clip = NDArray[np.uint8]
Reading: TypeAlias = np.ndarray | Mapping[str, np.ndarray]  # by name where a model takes several things


class InMemory(Protocol):
    """What can be kept, and says how much room it takes."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=InMemory)


class Instances(Protocol):
    """Labelled samples that can be read again and again."""

    samples: Sequence[Sample]

    def train(self, index: int, random: np.random.Generator) -> Reading:
        """One reading, changed at random; raises LegatoError where the recording is broken."""
        ...

    def views(self, index: int, views: Views) -> Reading:
        """The readings of a test, (V, ...)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the network sees of a recording's pictures."""

    size: int = 224  # pixels, square
    short_side: int = 256  # pixels of the shorter side before the square is cut
    pixel_format: str = "rgb24"  # gray, rgb24
    box: tuple[float, float, float, float] | None = None  # left, top, width, height as shares; None: all of it (ours)
    face: Callable[[Clip, int], Clip] | None = None  # frames and a size to the face in them; None: the frame (ours)

    def __post_init__(self) -> None:
        if self.size < 1 or self.short_side < self.size:
            raise ConfigError(f"short_side {self.short_side} is less than the size {self.size} cut from it; raise it")
        if self.box is not None:
            left, top, width, height = self.box
            inside = left >= 0 <= top and width > 0 < height and left + width <= 1 and top + height <= 1
            if not inside:
                raise ConfigError(f"box {self.box} leaves the picture; give left,top,width,height as shares of it")

    def decoded(self, frames: int) -> VideoSpec:
        """What is asked of the decoder: frames as large as they need be."""
        # The face region keeps the decoded size, which the box and the short side start from.
        share = 1.0 if self.box is None else min(self.box[2:])
        side = max(640, round(2.5 * self.short_side / share))
        return VideoSpec(
            frames=frames, size=self.size, pixel_format=self.pixel_format, region="face", max_side=side
        )

    def cut(self, clip: Clip) -> Clip:
        """The part of decoded frames that is looked at; raises DataError where there is no face to look at."""
        if self.face is not None:
            return self.face(clip, self.short_side)
        if self.box is None:
            return clip
        height, width = clip.shape[1:3]
        left, top, wide, high = self.box
        rows = slice(round(top * height), max(round((top + high) * height), round(top * height) + 1))
        columns = slice(round(left * width), max(round((left + wide) * width), round(left * width) + 1))
        return clip[:, rows, columns]


# (sample, start within it, seconds, frames, look) -> frames at decoded size
ReadFrames = Callable[[Sample, float, Fraction, int, Look], Clip]


@dataclass
class LabelledClips:
    """Recordings with pictures; ``train`` and ``views`` give uint8 ``(T, H, W[, 3])`` and ``(V, T, H, W[, 3])``."""

    samples: Sequence[Sample]
    sampling: ClipSampling
    look: Look
    augment: Augment = field(default_factory=Augment)
    read_frames: ReadFrames | None = None  # None: encoders.media
    kept: list[Clip] | None = None  # decoded samples, by index
    lost: int = 0  # samples that left the list

    def __post_init__(self) -> None:
        self._lengths: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def train(self, index: int, random: np.random.Generator) -> Clip:
        """A clip from anywhere in the sample, changed at random."""
        start = self.sampling.draw(self.length(index), random)
        frames = self.frames(index, start)
        return self.augment(frames, self.look.short_side, self.look.size, random)

    def views(self, index: int, views: Views) -> Clip:
        """The clips of a test, the squares of a clip beside each other."""
        out = []
        for start in starts_of(self.length(index), self.sampling, views.clips):
            frames = to_short_side(self.frames(index, start), self.look.short_side)
            out += [crop_at(frames, self.look.size, place, views.crops) for place in range(views.crops)]
        return np.stack(out)

    def frames(self, index: int, start: float) -> Clip:
        """The frames of a clip from ``start`` seconds of the sample on, before they are squared."""
        length, sampling = self.length(index), self.sampling
        steps = sampling.steps(length)
        whole_seconds = steps / sampling.fps  # on the grid, which every container's clock can count
        if self.kept is not None:
            return self.kept[index][sampling.indices(start, length)]
        read, sample = self.read_frames or read_frames, self.samples[index]
        if sampling.stride and float(sampling.seconds) > length:
            return read(sample, 0.0, whole_seconds, steps, self.look)[sampling.indices(start, length)]
        seconds = sampling.seconds if sampling.stride else whole_seconds
        return read(sample, start, seconds, sampling.frames, self.look)

    def length(self, index: int) -> float:
        """Seconds of a sample."""
        if index not in self._lengths:
            sample = self.samples[index]
            seconds = 1 / float(self.sampling.fps) if is_still(sample) else seconds_of(sample)
            if not seconds > 0:
                raise DataError(f"{sample.path} has no picture from {sample.start:g} s on; correct the dataset's table")
            self._lengths[index] = seconds
        return self._lengths[index]

    def keep(self, limit_gb: float, threads: int = 2, progress: Callable[[int, int], None] | None = None) -> int:
        """Decode every sample once and keep it in memory; samples that cannot be read leave the list (their number).

        Raises ConfigError after the first sample when all would take more than ``limit_gb``.
        """
        self.samples, self.kept, self.lost = kept_samples(self.samples, self._whole, limit_gb, threads, progress)
        self._lengths = {i: len(frames) / float(self.sampling.fps) for i, frames in enumerate(self.kept)}
        return self.lost

    def _whole(self, index: int) -> Clip:
        steps, read = self.sampling.steps(self.length(index)), self.read_frames or read_frames
        frames = read(self.samples[index], 0.0, steps / self.sampling.fps, steps, self.look)
        return to_short_side(frames, self.look.short_side)


def kept_samples(
    samples: Sequence[Sample],
    read: Callable[[int], T],
    limit_gb: float,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Sample], list[T], int]:
    """Every sample read once, by index: the samples that could be, what was read, and how many could not.

    Raises ConfigError after the first one when all would take more than ``limit_gb``.
    """
    good: list[Sample] = []
    kept: list[T] = []
    why = ""
    for index, (value, error) in enumerate(_each(read, len(samples), limit_gb, threads)):
        if value is None:
            why = why or error
        else:
            good.append(samples[index])
            kept.append(value)
        if progress is not None:
            progress(index + 1, len(samples))
    if not kept:
        raise DataError(f"none of {len(samples)} samples can be read, the first because {why}")
    return good, kept, len(samples) - len(kept)


def _each(read: Callable[[int], T], count: int, limit_gb: float, threads: int) -> Iterator[tuple[T | None, str]]:
    def attempt(index: int) -> tuple[T | None, str]:
        try:
            return read(index), ""
        except LegatoError as error:
            return None, str(error)

    first = attempt(0)
    need = (0 if first[0] is None else first[0].nbytes) * count / 2**30
    if need > limit_gb:
        raise ConfigError(
            f"{count} samples decoded would take about {need:.1f} GiB, the limit is {limit_gb:g}; "
            "raise cache_gb or use cache none"
        )
    yield first
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(attempt, range(1, count))


def read_frames(sample: Sample, start: float, seconds: Fraction, frames: int, look: Look) -> Clip:
    """Frames of a sample as they were decoded, the looked-at part; raises LegatoError where there is no picture."""
    video, _ = read_sample(sample, ClipSpec(seconds=seconds, video=look.decoded(frames)), start=start)
    if video is None:
        raise DataError(f"{sample.path} has no picture at {sample.start + start:.2f} s; it needs one")
    return look.cut(video)


def train_or_next(instances: Instances, index: int, random: np.random.Generator) -> tuple[int, Reading]:
    """A training reading and the sample it is of; a broken recording is replaced by the one after it.

    Raises DataError when many in a row are broken.
    """
    why, tries = "", min(TRIES, len(instances.samples))
    for step in range(tries):
        at = (index + step) % len(instances.samples)
        try:
            return at, instances.train(at, random)
        except LegatoError as error:
            why = why or str(error)
    raise DataError(f"{tries} recordings in a row cannot be read, the first because {why}")
