"""From a sample to what a model sees: a clip of whatever kind it is, or the pair of clips of pre-training.

``read_sample`` gives a recording, a folder of frames, an image file and a raw picture in one shape. Pair sampling is
AVID-CMA's: the sound's start is uniform over the recording, the picture's over the sound's window widened by an offset
on either side. The picture is sampled by time exactly as in serving (`encoders.clips`), where the published code takes
the frame at the beginning of each interval instead of its middle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.datasets.images import frame_count, read_frames, read_picture, read_raw, still
from encoders.datasets.sample import PICTURES, Sample, list_samples
from encoders.datasets.synthetic import SyntheticPairs
from encoders.datasets.transforms import ClipAugment
from encoders.errors import DataError, LegatoError, UsageError

__all__ = [
    "PairSpec",
    "Pairs",
    "Readable",
    "RecordedPairs",
    "is_still",
    "open_pairs",
    "read_or_next",
    "read_sample",
    "seconds_of",
    "why_unreadable",
]

Video: TypeAlias = NDArray[np.uint8]
Audio: TypeAlias = NDArray[np.float32]
# read_clip of encoders.media: path, start, seconds, spec to (frames at decoded size, samples)
Read: TypeAlias = Callable[[Path, float, Fraction, ClipSpec], tuple[Video | None, Audio | None]]
TRIES = 16  # unreadable recordings in a row before we give up


def is_still(sample: Sample) -> bool:
    """Whether a sample is one picture, without time."""
    return sample.raw_at is not None or sample.path.suffix.lower() in PICTURES


def seconds_of(sample: Sample) -> float:
    """How long a sample lasts; 0 for a picture. Raises DataError or SourceError where that cannot be told."""
    if is_still(sample):
        return 0.0
    if sample.seconds is not None:
        return sample.seconds
    if sample.frame_rate:
        return frame_count(sample.path) / sample.frame_rate - sample.start
    return _duration(sample.path) - sample.start


def read_sample(
    sample: Sample, spec: ClipSpec, *, start: float = 0.0, read_clip: Read | None = None
) -> tuple[Video | None, Audio | None]:
    """``spec.seconds`` of a sample from ``start`` seconds into its span, laid out as in serving (`encoders.clips`).

    Video is uint8 ``(T, H, W[, 3])`` (in its decoded size where the spec's region is ``face``), audio float32 ``(S,)``;
    None for what the sample does not have. A picture is a clip that stands still, whatever ``start`` says. The clip may
    reach past the span's end into what follows in the recording. Raises SourceError or DataError.
    """
    if not is_still(sample) and not sample.frame_rate:
        read, begin = read_clip or _reader(), sample.start + start
        if sample.sound is None or spec.audio is None:
            return read(sample.path, begin, spec.seconds, spec)
        audio = read(sample.sound, begin, spec.seconds, replace(spec, video=None))[1]
        seen = None if spec.video is None else read(sample.path, begin, spec.seconds, replace(spec, audio=None))[0]
        return seen, audio
    if spec.video is None:
        return None, None
    if sample.frame_rate:
        return read_frames(sample.path, sample.start + start, sample.frame_rate, spec), None
    colours = spec.video.pixel_format
    if sample.raw_at is not None:
        return still(read_raw(sample.path, sample.raw_at, colours), spec), None
    return still(read_picture(sample.path, colours), spec), None


def why_unreadable(sample: Sample) -> str:
    """Why the beginning of a sample cannot be decoded; "" where it can."""
    look = ClipSpec(seconds=Fraction(1, 25), video=VideoSpec(frames=1, size=16), audio=AudioSpec())
    try:
        read_sample(sample, look)
    except LegatoError as error:
        return str(error)
    return ""


class Readable(Protocol):
    """Instances that can be read again and again, whatever a reading is made of."""

    def __len__(self) -> int: ...

    def read(self, index: int, random: np.random.Generator) -> tuple[Any, ...]:
        """The arrays of a reading; raises LegatoError where the recording is broken."""
        ...


class Pairs(Protocol):
    """Instances that can be read again and again, a little different each time."""

    def __len__(self) -> int: ...

    def read(self, index: int, random: np.random.Generator) -> tuple[Video, Audio]:
        """uint8 ``(T, H, W[, 3])`` and float32 ``(S,)``; raises LegatoError where the recording is broken."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """What the two encoders ask for; their clips may differ in length."""

    video: VideoSpec
    video_seconds: Fraction
    audio: AudioSpec
    audio_seconds: Fraction

    @property
    def samples(self) -> int:
        """Of an audio clip; fails unless the rate divides exactly."""
        return ClipSpec(seconds=self.audio_seconds, audio=self.audio).samples


@dataclass(frozen=True)
class RecordedPairs:
    """Recordings with both tracks; a reading decodes just the spans it needs."""

    samples: Sequence[Sample]
    spec: PairSpec
    augment: ClipAugment
    offset_seconds: float = 0.5  # how far the picture may lie outside the sound's window
    read_clip: Read | None = None  # None: encoders.media

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, random: np.random.Generator) -> tuple[Video, Audio]:
        """One augmented reading of a recording."""
        sample = self.samples[index]
        sound_at, picture_at = self.spans(sample, random)
        read = self.read_clip or _reader()
        # The face region keeps the decoded size, of which a box is cut; the frame region is a square already.
        whole = replace(self.spec.video, region="face")
        look = ClipSpec(seconds=self.spec.video_seconds, video=whole)
        listen = ClipSpec(seconds=self.spec.audio_seconds, audio=self.spec.audio)
        video, _ = read(sample.path, picture_at, look.seconds, look)
        _, audio = read(sample.sound or sample.path, sound_at, listen.seconds, listen)
        if video is None or audio is None:
            raise DataError(f"{sample.path} has no {'picture' if video is None else 'sound'}; it needs both")
        size = self.spec.video.size
        return self.augment.video(video, size, random), self.augment.audio(audio, random)

    def spans(self, sample: Sample, random: np.random.Generator) -> tuple[float, float]:
        """Where sound and picture begin, in seconds of the recording."""
        length = sample.seconds if sample.seconds is not None else _duration(sample.path) - sample.start
        audio, video = float(self.spec.audio_seconds), float(self.spec.video_seconds)
        sound_at = random.uniform(0, max(0.0, length - audio))
        first = max(0.0, sound_at - self.offset_seconds)
        last = max(0.0, min(length, sound_at + audio + self.offset_seconds) - video)
        picture_at = random.uniform(min(first, last), last)
        return sample.start + sound_at, sample.start + picture_at


def _reader() -> Read:
    from encoders.media import read_clip  # late: PyAV

    return read_clip


def _duration(path: Path) -> float:
    from encoders.media import MediaFile  # late: PyAV

    with MediaFile(path) as media:
        if media.duration is None:
            raise DataError(f"{path} does not say how long it is; list it with its seconds")
        return media.duration


def read_or_next(pairs: Readable, index: int, random: np.random.Generator) -> tuple[Any, ...]:
    """The instance that was read, and its arrays; a broken recording is replaced by the one after it, as published.

    Raises DataError when many in a row are broken.
    """
    why, tries = "", min(TRIES, len(pairs))
    for step in range(tries):
        at = (index + step) % len(pairs)
        try:
            return at, *pairs.read(at, random)
        except LegatoError as error:
            why = why or str(error)
    raise DataError(f"{tries} recordings in a row cannot be read, the first because {why}")


def open_pairs(
    text: str,
    spec: PairSpec,
    *,
    splits: Sequence[str] = (),
    augment: ClipAugment | None = None,
    offset_seconds: float = 0.5,
    seed: int = 0,
) -> Pairs:
    """``NAME:PATH`` of a dataset, or ``synthetic:N``; raises UsageError or DataError where there is nothing to read."""
    name, _, rest = text.partition(":")
    if name == "synthetic":
        if not rest.isdecimal():
            raise UsageError(f"data {text!r} names no number of instances; write for example synthetic:64")
        if splits:
            raise UsageError(f"data {text!r} has no split {splits[0]!r}; leave the split out")
        return SyntheticPairs(int(rest), spec.video, spec.audio.sample_rate, spec.samples, seed)
    samples = list_samples(text, splits=splits, skip_bad=True)  # as a broken one is replaced, so a missing one
    return RecordedPairs(samples, spec, augment or ClipAugment(), offset_seconds)
