"""Two moments of a recording, seen and heard: what CrissCross learns from.

Sarkar & Etemad (AAAI 2023) relax the synchrony of the two views by where the second lies:

- ``same_timestamp``: where the first lies; only what is done to them differs;
- ``overlapped``: half a clip later, as in the published model;
- ``adjacent``: a whole clip later;
- ``random``: anywhere, as the first;
- ``far_apart``: half the recording later;
- ``v_far_a_same``, ``v_same_a_far``: the picture's (the sound's) views far apart, the other's one and the same, that of
  either moment.

Where sound is longer than the picture, the picture of a moment begins anywhere within the sound of that moment, but
with it where views are far apart. (The public code puts far views half a recording *less one clip* apart.) In a
recording too short for that the second view is the last clip that fits; past its end the last picture stands still, and
there is silence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.clips import ClipSpec
from encoders.datasets.reader import PairSpec, Read, seconds_of
from encoders.datasets.sample import Sample, list_samples
from encoders.datasets.synthetic import SyntheticPairs
from encoders.datasets.view_augment import ViewAugment
from encoders.errors import ConfigError, DataError, UsageError

__all__ = ["SYNCHRONIES", "RecordedViews", "SyntheticViews", "TwoViews", "ViewPairs", "moments", "open_views"]

SYNCHRONIES = ("same_timestamp", "overlapped", "adjacent", "random", "far_apart", "v_far_a_same", "v_same_a_far")
LATER = {"same_timestamp": 0.0, "overlapped": 0.5, "adjacent": 1.0}  # in clips

Front = Callable[[Tensor], Tensor]  # (B, S) -> (B, T, F)
Video = NDArray[np.uint8]
Sound = NDArray[np.float32]
Starts = tuple[float, float]  # of the two views, seconds


class TwoViews(NamedTuple):
    """A reading: both views of both modalities, in the order of their moments."""

    video: Video  # (2, T, H, W[, 3])
    squares: NDArray[np.int64]  # (2, 3) top, left, side: cut out of the pictures
    audio: Sound  # (2, U, F) spectrograms


class ViewPairs(Protocol):
    """Instances that can be read again and again, a little different each time."""

    def __len__(self) -> int: ...

    def read(self, index: int, random: np.random.Generator) -> TwoViews:
        """One reading; raises LegatoError where the recording is broken."""
        ...


def moments(
    synchrony: str, length: float, video: float, audio: float, random: np.random.Generator
) -> tuple[Starts, Starts]:
    """Where the two views of picture and sound begin in a recording of ``length`` seconds, given those of clips."""
    if synchrony == "random":
        (v1, a1), (v2, a2) = (_stretch(length, video, audio, random) for _ in range(2))
        return (v1, v2), (a1, a2)
    if synchrony in LATER:
        later = LATER[synchrony]
        v, a = _stretch(length, video * (1 + later), audio * (1 + later), random)
        return (v, min(v + later * video, max(v, length - video))), (a, min(a + later * audio, max(a, length - audio)))
    return _far_apart(synchrony, length, video, audio, random)


def _stretch(length: float, video: float, audio: float, random: np.random.Generator) -> tuple[float, float]:
    """Starts of a stretch of picture and one of sound: the longer anywhere, the shorter within it."""
    shorter, longer = sorted((video, audio))
    start = random.uniform(0, max(0.0, length - longer))
    last = max(start, min(start + longer, length) - shorter)
    within = random.uniform(start, last)
    return (within, start) if audio >= video else (start, within)


def _far_apart(
    synchrony: str, length: float, video: float, audio: float, random: np.random.Generator
) -> tuple[Starts, Starts]:
    half, longer = length / 2, max(video, audio)
    first = random.uniform(0, half - longer) if half > longer else 0.0
    picture = first, _far(first, half, length, video)
    sound = first, _far(first, half, length, audio)
    if synchrony == "v_far_a_same":
        sound = (sound[int(random.integers(2))],) * 2
    elif synchrony == "v_same_a_far":
        picture = (picture[int(random.integers(2))],) * 2
    return picture, sound


def _far(first: float, half: float, length: float, clip: float) -> float:
    """Half the recording later, or the last clip where there is no room for two."""
    return first + half if clip <= half else max(0.0, length - clip)


# --- readings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedViews:
    """Recordings with both tracks; views that touch are decoded in one go."""

    samples: Sequence[Sample]
    spec: PairSpec
    front: Front
    augment: ViewAugment
    synchrony: str = "overlapped"
    read_clip: Read | None = None  # None: encoders.media

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int, random: np.random.Generator) -> TwoViews:
        """One reading of a recording, each view changed by itself."""
        sample, spec = self.samples[index], self.spec
        length = seconds_of(sample)
        at, heard_at = moments(self.synchrony, length, float(spec.video_seconds), float(spec.audio_seconds), random)
        pictures = self._pictures(sample.path, (sample.start + at[0], sample.start + at[1]))
        sounds = self._sounds(sample.path, (sample.start + heard_at[0], sample.start + heard_at[1]))
        looks = [self.augment.video(frames, spec.video.size, random) for frames in pictures]
        heard = _spectrograms(self.front, [self.augment.sound(clip, random) for clip in sounds])
        return TwoViews(
            np.stack([clip for clip, _ in looks]),
            np.stack([square for _, square in looks]),
            np.stack([self.augment.spectrogram(view, random) for view in heard]),
        )

    def _pictures(self, path: Path, at: Starts) -> list[Video]:
        frames, seconds = self.spec.video.frames, self.spec.video_seconds
        step = float(seconds / frames)
        later = (at[1] - at[0]) / step  # frames from one view to the other
        if abs(later - round(later)) < 1e-6 and 0 <= round(later) <= frames:
            total = frames + round(later)
            whole = self._look(path, at[0], seconds * Fraction(total, frames), total)
            return [whole[:frames], whole[total - frames :]]
        return [self._look(path, start, seconds, frames) for start in at]

    def _look(self, path: Path, start: float, seconds: Fraction, frames: int) -> Video:
        # The face region keeps the decoded size, of which a box is cut; the frame region is a square already.
        spec = ClipSpec(seconds=seconds, video=replace(self.spec.video, frames=frames, region="face"))
        video, _ = (self.read_clip or _reader())(path, start, seconds, spec)
        if video is None:
            raise DataError(f"{path} has no picture; it needs both")
        return video

    def _sounds(self, path: Path, at: Starts) -> list[Sound]:
        rate, count = self.spec.audio.sample_rate, self.spec.samples
        later = round((at[1] - at[0]) * rate)
        if 0 <= later <= count:
            whole = self._listen(path, at[0], Fraction(count + later, rate))
            return [whole[:count], whole[later:]]
        return [self._listen(path, start, self.spec.audio_seconds) for start in at]

    def _listen(self, path: Path, start: float, seconds: Fraction) -> Sound:
        spec = ClipSpec(seconds=seconds, audio=self.spec.audio)
        _, audio = (self.read_clip or _reader())(path, start, seconds, spec)
        if audio is None:
            raise DataError(f"{path} has no sound; it needs both")
        return audio


def _reader() -> Read:
    from encoders.media import read_clip  # late: PyAV

    return read_clip


@torch.no_grad()
def _spectrograms(front: Front, clips: Sequence[Sound]) -> Sound:
    """Samples of several clips to what the network hears, (V, U, F)."""
    heard: Sound = front(torch.from_numpy(np.stack(clips))).numpy()
    return heard


@dataclass(frozen=True)
class SyntheticViews:
    """`SyntheticPairs` read twice: two views share the code and nothing else, as do picture and sound."""

    pairs: SyntheticPairs
    front: Front

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int, random: np.random.Generator) -> TwoViews:
        """Two readings of an instance."""
        (v1, a1), (v2, a2) = self.pairs.read(index, random), self.pairs.read(index, random)
        heard = _spectrograms(self.front, [a1, a2])
        return TwoViews(np.stack([v1, v2]), np.zeros((2, 3), np.int64), heard)


def open_views(
    text: str,
    spec: PairSpec,
    front: Front,
    *,
    splits: Sequence[str] = (),
    augment: ViewAugment | None = None,
    synchrony: str = "overlapped",
    seed: int = 0,
) -> ViewPairs:
    """``NAME:PATH`` of a dataset, or ``synthetic:N``; raises UsageError or DataError where there is nothing to read."""
    if synchrony not in SYNCHRONIES:
        raise ConfigError(f"synchrony {synchrony!r} is unknown; use one of {', '.join(SYNCHRONIES)}")
    name, _, rest = text.partition(":")
    if name == "synthetic":
        if not rest.isdecimal():
            raise UsageError(f"data {text!r} names no number of instances; write for example synthetic:64")
        if splits:
            raise UsageError(f"data {text!r} has no split {splits[0]!r}; leave the split out")
        return SyntheticViews(SyntheticPairs(int(rest), spec.video, spec.audio.sample_rate, spec.samples, seed), front)
    samples = list_samples(text, splits=splits, skip_bad=True)  # as a broken one is replaced, so a missing one
    return RecordedViews(samples, spec, front, augment or ViewAugment(), synchrony)
