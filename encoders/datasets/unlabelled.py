"""What masked pre-training reads: pictures, sound or both of a recording, whatever is said of it.

Readings are those of fine-tuning (`LabelledPairs`, `LabelledClips`, `LabelledSounds`), with one difference: a recording
that lacks what the model takes is no reading, so that the one after it is read instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from encoders.audio.log_mel import FRONTS, zero_of
from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.clips import ClipSpec, VideoSpec
from encoders.datasets.augment import Augment, to_short_side
from encoders.datasets.corpus import open_corpus
from encoders.datasets.labelled import LabelledClips, Look
from encoders.datasets.labelled_pairs import Hearing, LabelledPairs, Span
from encoders.datasets.labelled_sounds import LabelledSounds
from encoders.datasets.sample import Sample
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.synthetic import SyntheticPairs
from encoders.datasets.views import ClipSampling
from encoders.errors import ConfigError, DataError, UsageError
from encoders.video.face_cut import FaceCut

__all__ = ["BothPairs", "Reading", "open_readings"]


MIRRORED = Augment(scale=(1.0, 1.0), colour=0.0, grayscale=0.0)  # and cut at random
UNCHANGED = Spectrograms(frequency_masks=0, time_masks=0, warp=0)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What of a recording is shown to the network, and how it is changed."""

    stride: int = 4  # frames at ``fps`` from one to the next; 0: spread over the whole sample (ours)
    fps: Fraction = Fraction(25)
    short_side: int = 0  # pixels, before the square is cut; 0: as the encoder's crop_share says
    box: tuple[float, float, float, float] | None = None  # left, top, width, height that is looked at; None: all
    face: str = ""  # weights of a face net, for encoders that look at the face
    augment: Augment = MIRRORED
    sound: Spectrograms = UNCHANGED


class BothPairs(LabelledPairs):
    """Recordings that have both; another is refused, and so is replaced by the next."""

    def train(self, index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """``video`` uint8 (T, H, W, 3) and ``audio`` float32 (U, F)."""
        found = super().train(index, random)
        if not found["presence"].all():
            lacks = "no picture" if not found["presence"][0] else "no sound"
            raise DataError(f"{self.samples[index].path} has {lacks}; masked pre-training of both needs both")
        return found


def open_readings(
    data: str,
    video: VideoInput | None,
    audio: AudioInput | None,
    reading: Reading,
    *,
    splits: Sequence[str] = (),
    skip_bad: bool = True,
    seed: int = 0,
) -> LabelledClips | LabelledSounds | BothPairs:
    """``NAME:PATH`` of a dataset, or ``synthetic:N``, as a model of these inputs sees it.

    Raises UsageError or DataError where there is nothing to read, ConfigError where faces are wanted and no face net is
    named.
    """
    if reading.sound.mixup:
        raise ConfigError(f"mixup {reading.sound.mixup} of sound mixes labels, and there are none; use 0")
    if audio is not None and not audio.front:
        raise ConfigError("recordings bring samples, not spectrograms; name a front with model.audio.front")
    made = _synthetic(data, video, audio, splits, seed) if data.partition(":")[0] == "synthetic" else None
    samples = made.samples if made else list(open_corpus(data, splits=splits, skip_bad=skip_bad).samples)
    if video is None:
        assert audio is not None
        front = FRONTS[audio.front]
        return LabelledSounds(
            samples, audio.clip_seconds, front.sample_rate, front, reading.sound, zero=zero_of(front),
            read_sound=made.sound if made else None,
        )  # fmt: skip
    sampling, look = _seen(video, reading)
    if audio is None:
        return LabelledClips(samples, sampling, look, reading.augment, made.frames if made else None)
    hearing = Hearing(
        front=FRONTS[audio.front],
        seconds=audio.clip_seconds,
        augment=reading.sound,
        apart=sampling.stride > 0 and sampling.seconds != audio.clip_seconds,
    )
    return BothPairs(samples, sampling, look, hearing, reading.augment, read_span=made.span if made else None)


def _seen(video: VideoInput, reading: Reading) -> tuple[ClipSampling, Look]:
    """Which frames of a recording are looked at, and what of them."""
    spec = video.spec
    short_side = reading.short_side or max(spec.size, round(spec.size / spec.crop_share))
    face = None
    if spec.region == "face":
        if not reading.face:
            raise ConfigError("the model looks at faces; name a face net, --set reading.face=BUNDLE/face.safetensors")
        face = FaceCut.load(Path(reading.face).expanduser(), short_side / spec.size)
    look = Look(size=spec.size, short_side=short_side, pixel_format=spec.pixel_format, box=reading.box, face=face)
    return ClipSampling(frames=spec.frames, stride=reading.stride, fps=reading.fps), look


# --- recordings that nobody made ---------------------------------------------------------------------------------


@dataclass
class _Synthetic:
    """`SyntheticPairs` in the place of files; a recording is as long as its clip, and always the same."""

    pairs: SyntheticPairs
    seconds: Fraction
    samples: list[Sample]

    def span(self, sample: Sample, start: float, seconds: Fraction, frames: int) -> Span:
        return Span(self._picture(sample, frames), self._read(sample)[1])

    def frames(self, sample: Sample, start: float, seconds: Fraction, frames: int, look: Look) -> Any:
        return to_short_side(self._picture(sample, frames), look.short_side)

    def sound(self, sample: Sample, spec: ClipSpec) -> Any:
        return self._read(sample)[1]

    def _picture(self, sample: Sample, frames: int) -> Any:
        video = self._read(sample)[0]
        return video[np.arange(frames) * len(video) // frames]

    def _read(self, sample: Sample) -> tuple[Any, Any]:
        index = int(sample.path.name)
        return self.pairs.read(index, np.random.default_rng([self.pairs.seed, index]))


def _synthetic(
    data: str, video: VideoInput | None, audio: AudioInput | None, splits: Sequence[str], seed: int
) -> _Synthetic:
    count = data.partition(":")[2]
    if not count.isdecimal():
        raise UsageError(f"data {data!r} names no number of instances; write for example synthetic:64")
    if splits:
        raise UsageError(f"data {data!r} has no split {splits[0]!r}; leave the split out")
    seen = video.spec if video is not None else VideoSpec(frames=1, size=16)
    lengths = [part.clip_seconds for part in (video, audio) if part is not None]
    rate = FRONTS[audio.front].sample_rate if audio is not None else 16_000
    # Frames lie on a grid of 25 a second, as in a recording that is decoded whole.
    spec = replace(seen, frames=max(seen.frames, int(max(lengths) * 25)))
    pairs = SyntheticPairs(int(count), spec, rate, int(max(lengths) * rate), seed)
    samples = [Sample(path=Path("synthetic") / str(i), seconds=float(max(lengths))) for i in range(len(pairs))]
    return _Synthetic(pairs, max(lengths), samples)
