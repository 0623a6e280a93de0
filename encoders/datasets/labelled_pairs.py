"""Labelled recordings as a model of pictures and sound sees them: both of one span, and which of the two is there.

A reading is a dict: ``video`` uint8 (T, H, W[, 3]), ``audio`` float32 (U, F), a spectrogram, ``presence`` bool (2,)
for video and audio, and for a model with a view of movement ``flow`` float16 (T, H, W, 2) in pixels. What a recording
does not have, or a face that nobody sees in it, is zeros with presence False. Where clips are mixed as they are read
(``mixup`` of sound: samples with samples, pictures with pictures) there are ``partner`` and ``share`` beside, as in
`encoders.datasets.labelled_sounds`. Sound goes with the pictures: where a
clip is spread over a span longer or shorter than the model's clip, so is its spectrogram, and where a short recording
begins anew, so does its sound.

Shapes: V view, T frame, H W pixels, U mel frame, F mel bin, S sample.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.audio.log_mel import Front, zero_of
from encoders.clips import AudioSpec, ClipSpec
from encoders.datasets.augment import Augment, crop_at, to_short_side
from encoders.datasets.labelled import Look, kept_samples
from encoders.datasets.labelled_sounds import mixed_sound
from encoders.datasets.reader import is_still, read_sample, seconds_of
from encoders.datasets.sample import Sample
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.views import ClipSampling, Views, starts_of
from encoders.errors import ConfigError, DataError, LegatoError, SourceError
from encoders.video.flow import FlowCache, FlowConfig, optical_flow

__all__ = ["Hearing", "LabelledPairs", "Span", "Spectrograms", "kept_flow", "require_both"]

Clip = NDArray[np.uint8]
Sound = NDArray[np.float32]
LOOKED_AT = 256  # recordings, before it is said that none of them has sound
SHORTEST = 2048  # samples; a shorter sound is repeated, or the fronts' windows would not fit


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What the network hears of a recording."""

    front: Front
    seconds: Fraction  # of the model's clip, which say how many mel frames it takes
    augment: Spectrograms = field(default_factory=Spectrograms)
    apart: bool = False  # the sound lasts ``seconds``, however long its pictures (MBT: 8 s around 2.56 s)

    def __post_init__(self) -> None:
        _ = ClipSpec(seconds=self.seconds, audio=AudioSpec(sample_rate=self.rate)).samples  # a whole number
        if not self.augment.repeat:
            raise ConfigError(
                f"repeat {self.augment.repeat} of sound is for models of sound alone; leave it out, or train such a one"
            )

    @property
    def rate(self) -> int:
        """Hz."""
        return self.front.sample_rate

    @property
    def shape(self) -> tuple[int, int]:
        """(U, F)."""
        return self.front.shape(self.seconds)

    def start(self, start: float, shown: float, whole: float) -> float:
        """Where sound apart from its pictures begins, which show ``shown`` of ``whole`` seconds from ``start`` on: as
        far along what there is of it."""
        along = start / (whole - shown) if whole > shown else 0.0
        return along * max(0.0, whole - float(self.seconds))

    def hear(self, sound: Sound, random: np.random.Generator | None = None) -> Sound:
        """Samples of a span, however long, to the model's spectrogram (U, F); changed where there is chance."""
        sound = np.resize(sound, max(len(sound), SHORTEST))
        if random is not None:
            sound = self.augment.louder(sound, random)
        samples = torch.from_numpy(np.ascontiguousarray(sound))[None]
        heard = _stretched(self.front(samples)[0].float().numpy(), self.shape)
        return heard if random is None else self.augment.changed(heard, random, zero_of(self.front))


def _stretched(heard: Sound, shape: tuple[int, int]) -> Sound:
    """A spectrogram of another length in time; averaged where it shrinks."""
    if heard.shape == shape:
        return heard
    import cv2  # late: heavy

    how = cv2.INTER_AREA if shape[0] < len(heard) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(heard, shape[::-1], interpolation=how), np.float32)


@dataclass(frozen=True)
class Span:
    """What was decoded of a span; None for what is not there."""

    frames: Clip | None  # at the short side
    sound: Sound | None  # (S,)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.frames, self.sound) if x is not None)


# (sample, start within it, seconds, frames) -> both at once
ReadSpan = Callable[[Sample, float, Fraction, int], Span]


@dataclass
class LabelledPairs:
    """Recordings with pictures, sound or both; ``train`` and ``views`` give dicts as above, the latter (V, ...)."""

    samples: Sequence[Sample]
    sampling: ClipSampling
    look: Look
    hearing: Hearing | None  # None: a model without ears
    augment: Augment = field(default_factory=Augment)
    flow: FlowConfig | None = None  # None: a model without a view of movement
    flow_cache: FlowCache | None = None
    read_span: ReadSpan | None = None  # None: encoders.media
    kept: list[Span] | None = None  # decoded samples, by index
    lost: int = 0  # samples that left the list

    def __post_init__(self) -> None:
        self._lengths: dict[int, Fraction] = {}
        if self.augment.simclr:
            raise ConfigError("simclr turns time around, which sound and flow cannot follow; use colour instead")
        if self.augment.area is not None and self.flow is not None:
            raise ConfigError(f"area {self.augment.area} cuts boxes that flow cannot follow; use scale instead")
        if self.flow is not None and self._mixes:
            raise ConfigError(f"mixup {self._mixes} of sound mixes pictures that flow cannot follow; use the run's own")

    @property
    def _mixes(self) -> float:
        """How often a clip is mixed as it is read."""
        return self.hearing.augment.mixup if self.hearing is not None else 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def train(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """A span from anywhere in the sample, its pictures and its sound changed at random."""
        start = self._on_grid(self.sampling.draw(float(self.length(index)), random))
        span, side, size = self.span(index, start), self.look.short_side, self.look.size
        if self._mixes:
            return self._mixed(index, span, random)
        out = self._nothing()
        if span.frames is not None:
            if self.flow is None:
                out["video"] = self.augment(span.frames, side, size, random)
            else:
                flow = self._flow(index, start, span.frames)
                out["video"], moved = self.augment.with_flow(span.frames, flow, side, size, random)
                out["flow"] = moved.astype(np.float16)
        if span.sound is not None and self.hearing is not None:
            out["audio"] = self.hearing.hear(span.sound, random)
        return {**out, "presence": _presence(span)}

    def _mixed(self, index: int, span: Span, random: np.random.Generator) -> dict[str, np.ndarray]:
        """A training clip, with some chance a share of it and the rest of one of another recording that has as much."""
        assert self.hearing is not None
        augment, partner, share = self.hearing.augment, index, 1.0
        other = span
        if random.random() < augment.mixup:
            drawn = int(random.integers(len(self.samples)))
            share = float(random.beta(augment.mixup_alpha, augment.mixup_alpha))
            with suppress(LegatoError):  # what cannot be read is no partner
                found = self.span(drawn, self._on_grid(self.sampling.draw(float(self.length(drawn)), random)))
                if (_presence(found) == _presence(span)).all():
                    partner, other = drawn, found
        share = share if partner != index else 1.0
        out = self._nothing()
        if span.frames is not None and other.frames is not None:
            pictures = self.augment(span.frames, self.look.short_side, self.look.size, random)
            if partner != index:
                also = self.augment(other.frames, self.look.short_side, self.look.size, random)
                pictures = np.rint(share * pictures + (1 - share) * also).astype(np.uint8)
            out["video"] = pictures
        if span.sound is not None and other.sound is not None:
            sound = mixed_sound(span.sound, other.sound, share) if partner != index else span.sound
            out["audio"] = self.hearing.hear(sound, random)
        return {**out, "presence": _presence(span), "partner": np.array([partner]),
                "share": np.array([share], np.float32)}  # fmt: skip

    def views(self, index: int, views: Views) -> dict[str, np.ndarray]:
        """The spans of a test, the squares of a span beside each other, each with the span's sound."""
        rows: list[dict[str, np.ndarray]] = []
        for begin in starts_of(float(self.length(index)), self.sampling, views.clips):
            start = self._on_grid(begin)
            span = self.span(index, start)
            common = {**self._nothing(), "presence": _presence(span)}
            if span.sound is not None and self.hearing is not None:
                common["audio"] = self.hearing.hear(span.sound)
            seen: dict[str, Any] = {}
            if span.frames is not None:
                seen = {"video": span.frames}
                if self.flow is not None:
                    seen["flow"] = self._flow(index, start, span.frames).astype(np.float16)
            for place in range(views.crops):
                squares = {k: crop_at(x, self.look.size, place, views.crops) for k, x in seen.items()}
                rows.append({**common, **squares})
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def span(self, index: int, start: Fraction) -> Span:
        """What is seen and heard from ``start`` seconds of the sample on, the frames before they are squared."""
        whole, sampling = self.length(index), self.sampling
        if self.kept is not None:
            return self._within(self.kept[index], start, whole)
        if sampling.stride and sampling.seconds > whole:
            return self._within(self._whole(index), start, whole)
        seconds = sampling.seconds if sampling.stride else whole
        if self.hearing is None or not self.hearing.apart:
            return self._read(index, float(start), seconds, sampling.frames)
        begin = self.hearing.start(float(start), float(seconds), float(whole))
        sound = None
        with suppress(SourceError):  # there is no track of it; a file that is no recording fails with its pictures
            sound = self._sound(index, begin, min(self.hearing.seconds, whole))
        return Span(self._read(index, float(start), seconds, sampling.frames).frames, sound)

    def length(self, index: int) -> Fraction:
        """Seconds of a sample, a whole number of places of the fps grid."""
        if index not in self._lengths:
            sample = self.samples[index]
            seconds = 1 / float(self.sampling.fps) if is_still(sample) else seconds_of(sample)
            if not seconds > 0:
                raise DataError(f"{sample.path} has nothing from {sample.start:g} s on; correct the dataset's table")
            self._lengths[index] = self.sampling.steps(seconds) / self.sampling.fps
        return self._lengths[index]

    def keep(self, limit_gb: float, threads: int = 2, progress: Callable[[int, int], None] | None = None) -> int:
        """Decode every sample once; as `LabelledClips.keep`."""
        self.samples, self.kept, self.lost = kept_samples(self.samples, self._whole, limit_gb, threads, progress)
        self._lengths = {}  # they were by the places of before
        return self.lost

    def _on_grid(self, start: float) -> Fraction:
        """A start that comes again, so that flow that was kept is found, and falls on a whole audio sample."""
        return Fraction(int(start * float(self.sampling.fps) + 1e-6)) / self.sampling.fps

    def _within(self, whole: Span, start: Fraction, length: Fraction) -> Span:
        """A part of a whole sample, which begins anew where it ends."""
        frames, sound = whole.frames, whole.sound
        if frames is not None:
            frames = frames[self.sampling.indices(float(start), float(length))]
        if sound is not None and self.hearing is not None and (self.sampling.stride or self.hearing.apart):
            begin, seconds = float(start), self.sampling.seconds
            if self.hearing.apart:
                begin = self.hearing.start(begin, float(seconds or length), float(length))
                seconds = self.hearing.seconds
            first, count = round(begin * self.hearing.rate), round(seconds * self.hearing.rate)
            sound = sound[np.arange(first, first + count) % len(sound)]
        return Span(frames, sound)

    def _sound(self, index: int, start: float, seconds: Fraction) -> Sound | None:
        """Sound apart from its pictures, from its beginning again where there is less of it."""
        assert self.hearing is not None
        if self.read_span is not None:
            sound = self.read_span(self.samples[index], start, seconds, 1).sound
        else:
            spec = ClipSpec(seconds=seconds, audio=AudioSpec(sample_rate=self.hearing.rate))
            sound = read_sample(self.samples[index], spec, start=start)[1]
        return None if sound is None else np.resize(sound, round(self.hearing.seconds * self.hearing.rate))

    def _whole(self, index: int) -> Span:
        length = self.length(index)
        return self._read(index, 0.0, length, round(length * self.sampling.fps))

    def _read(self, index: int, start: float, seconds: Fraction, frames: int) -> Span:
        sample = self.samples[index]
        if self.read_span is not None:
            return self.read_span(sample, start, seconds, frames)
        return read_span(sample, start, seconds, frames, self.look, self.hearing)

    def _nothing(self) -> dict[str, np.ndarray]:
        """A clip without picture or sound."""
        size, colours = self.look.size, (3,) * (self.look.pixel_format != "gray")
        out: dict[str, np.ndarray] = {"video": np.zeros((self.sampling.frames, size, size, *colours), np.uint8)}
        if self.flow is not None:
            out["flow"] = np.zeros((self.sampling.frames, size, size, 2), np.float16)
        if self.hearing is not None:
            out["audio"] = np.zeros(self.hearing.shape, np.float32)
        return out

    def _flow(self, index: int, start: Fraction, frames: Clip) -> NDArray[np.float32]:
        """The movement in a span's pictures at the short side, from the cache where there is one."""
        sample, whole = self.samples[index], self.length(index)
        if self.flow_cache is None or is_still(sample):
            return optical_flow(frames, self.flow)
        seconds = min(self.sampling.seconds, whole) if self.sampling.stride else whole
        shape = frames.shape[0], frames.shape[1], frames.shape[2]
        return self.flow_cache.flow(sample.path, float(sample.start + start), seconds, lambda: frames, shape)


def _presence(span: Span) -> NDArray[np.bool_]:
    return np.array([span.frames is not None, span.sound is not None])


def read_span(
    sample: Sample, start: float, seconds: Fraction, frames: int, look: Look, hearing: Hearing | None
) -> Span:
    """Both modalities of a span in one pass; raises LegatoError where neither is there."""
    audio = None if hearing is None else AudioSpec(sample_rate=hearing.rate)
    spec = ClipSpec(seconds=seconds, video=look.decoded(frames), audio=audio)
    video, sound = read_sample(sample, spec, start=start)
    why = f"{sample.path} has neither picture nor sound at {sample.start + start:.2f} s; leave it out"
    if video is not None:
        try:
            video = to_short_side(look.cut(video), look.short_side)
        except DataError as error:  # there is no face to look at
            video, why = None, str(error)
    if video is None and sound is None:
        raise DataError(why)
    return Span(video, sound)


def require_both(pairs: LabelledPairs) -> None:
    """Raises DataError where no recording has a picture, or none has sound: there is nothing to learn together.

    Of a large set that is not kept in memory, some recordings are looked at, evenly spread.
    """
    wanted = {"a picture", "sound"} if pairs.hearing is not None else {"a picture"}
    seen = 0
    for found in _present(pairs):
        seen, wanted = seen + 1, wanted - found
        if not wanted:
            return
    if seen:
        raise DataError(
            f"none of {seen} recordings looked at has {' or '.join(sorted(wanted))}; give recordings with both, "
            "or train an encoder of one modality"
        )


def _present(pairs: LabelledPairs) -> Iterator[set[str]]:
    """What each of some readable samples has."""
    names = ("a picture", "sound")
    if pairs.kept is not None:
        yield from ({n for n, there in zip(names, _presence(s), strict=True) if there} for s in pairs.kept)
        return
    places = np.linspace(0, len(pairs.samples) - 1, min(LOOKED_AT, len(pairs.samples))).astype(int)
    for index in places.tolist():
        try:
            length = pairs.length(index)
            span = pairs._read(index, 0.0, min(length, Fraction(1)), 1)
        except LegatoError:
            continue  # said, and counted, when it is its turn
        yield {n for n, there in zip(names, _presence(span), strict=True) if there}


def kept_flow(folder: str | Path, config: FlowConfig, looked: str) -> FlowCache:
    """A cache of flow for clips that are looked at as ``looked`` says; another look never finds it."""
    return FlowCache(Path(folder).expanduser() / hashlib.sha256(looked.encode()).hexdigest()[:16], config)
