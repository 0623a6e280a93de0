"""Labelled recordings as spectrograms: one changed clip for training, several in time for a test.

A recording shorter than the clip is repeated, or left as short as it is. The front end is the encoder's own, so that
training hears what serving hears.

With ``mix`` a reading is a dict: ``audio`` (T, F), ``partner`` int64 (1,), the sample that was mixed in, and ``share``
float32 (1,), what is left of the sample itself (`encoders.datasets.mixup.unmixed`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.clips import AudioSpec, ClipSpec
from encoders.datasets.labelled import Reading, kept_samples
from encoders.datasets.reader import read_sample, seconds_of
from encoders.datasets.sample import Sample
from encoders.datasets.spec_augment import SpecAugment
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.views import Views
from encoders.errors import DataError, LegatoError

__all__ = ["LabelledSounds", "mixed_sound", "require_sound"]

Sound = NDArray[np.float32]
LOOKED_AT = 256  # recordings, before it is said that none of them has sound


@dataclass
class LabelledSounds:
    """Recordings with sound; ``train`` gives a spectrogram ``(T, F)``, or a dict as above, ``views`` ``(V, T, F)``."""

    samples: Sequence[Sample]
    seconds: Fraction  # of a clip
    sample_rate: int  # Hz
    front: Callable[[Tensor], Tensor]  # (1, S) -> (1, T, F)
    augment: SpecAugment | Spectrograms = field(default_factory=SpecAugment)
    gain: float = 0.0  # with SpecAugment: louder or softer by up to this share (ours)
    zero: float = 0.0  # what no energy looks like behind the front
    read_sound: Callable[[Sample, ClipSpec], Sound] | None = None  # None: encoders.media
    kept: list[Sound] | None = None  # decoded samples, by index
    lost: int = 0  # samples that left the list

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def count(self) -> int:
        """Samples of sound in a clip."""
        return ClipSpec(seconds=self.seconds, audio=AudioSpec(sample_rate=self.sample_rate)).samples

    def train(self, index: int, random: np.random.Generator) -> Reading:
        """A clip from anywhere in the recording, its spectrogram changed at random."""
        clip = self._drawn(index, random)
        if isinstance(self.augment, SpecAugment):
            if self.gain:
                clip = clip * np.float32(random.uniform(1 - self.gain, 1 + self.gain))
            return self.augment(self._spectrogram(clip), random)
        clip, partner, share = self._mixed(clip, index, self.augment, random)
        heard = self.augment.changed(self._spectrogram(self.augment.louder(clip, random)), random, self.zero)
        if not self.augment.mixup:
            return heard
        return {"audio": heard, "partner": np.array([partner]), "share": np.array([share], np.float32)}

    def _drawn(self, index: int, random: np.random.Generator) -> Sound:
        sound = self.whole(index)
        return self._clip(sound, int(random.integers(max(0, len(sound) - self.count) + 1)))

    def _mixed(
        self, clip: Sound, index: int, augment: Spectrograms, random: np.random.Generator
    ) -> tuple[Sound, int, float]:
        """With the chance that ``augment`` gives, a share of the clip and the rest of one of any recording."""
        if not augment.mixup or random.random() >= augment.mixup:
            return clip, index, 1.0
        partner, share = int(random.integers(len(self.samples))), random.beta(augment.mixup_alpha, augment.mixup_alpha)
        return mixed_sound(clip, self._drawn(partner, random), share), partner, share

    def views(self, index: int, views: Views) -> Sound:
        """Clips with linearly spaced starts, a single one from the middle; sound has no squares to cut."""
        sound = self.whole(index)
        spare = max(0, len(sound) - self.count)
        starts = [spare / 2] if views.clips == 1 else np.linspace(0, spare, views.clips)
        return np.stack([self._spectrogram(self._clip(sound, round(start))) for start in starts])

    def whole(self, index: int) -> Sound:
        """All samples of a recording's span."""
        if self.kept is not None:
            return self.kept[index]
        sample = self.samples[index]
        length = round(seconds_of(sample) * 25)
        if length < 1:
            raise DataError(f"{sample.path} has no sound from {sample.start:g} s on; correct the dataset's table")
        spec = ClipSpec(seconds=Fraction(length, 25), audio=AudioSpec(sample_rate=self.sample_rate))
        return (self.read_sound or _read_sound)(sample, spec)

    def keep(self, limit_gb: float, progress: Callable[[int, int], None] | None = None) -> int:
        """Decode every sample once; as `LabelledClips.keep`."""
        self.samples, self.kept, self.lost = kept_samples(self.samples, self.whole, limit_gb, progress=progress)
        return self.lost

    def _clip(self, sound: Sound, start: int) -> Sound:
        if isinstance(self.augment, Spectrograms) and not self.augment.repeat:
            return sound[start : start + self.count]
        at = np.arange(start, start + self.count)
        return sound[at % len(sound)]

    def _spectrogram(self, clip: Sound) -> Sound:
        return self.front(torch.from_numpy(np.ascontiguousarray(clip))[None])[0].float().numpy()


def mixed_sound(clip: Sound, other: Sound, share: float) -> Sound:
    """Samples of a clip and of another, which is filled up or cut to its length, neither with an offset."""
    other = np.pad(other, (0, max(0, len(clip) - len(other))))[: len(clip)]
    mixed = share * (clip - clip.mean()) + (1 - share) * (other - other.mean())
    return (mixed - mixed.mean()).astype(np.float32)


def _read_sound(sample: Sample, spec: ClipSpec) -> Sound:
    _, sound = read_sample(sample, spec)
    if sound is None:
        raise DataError(f"{sample.path} has no sound; train on recordings that have one")
    return sound


def require_sound(sounds: LabelledSounds) -> None:
    """Raises DataError where every recording is silent: there is nothing to learn from.

    Of a large set that is not kept in memory, some recordings are looked at, evenly spread.
    """
    places = np.linspace(0, len(sounds.samples) - 1, min(LOOKED_AT, len(sounds.samples))).astype(int)
    seen, why = 0, ""
    for index in places.tolist():
        try:
            if sounds.whole(index).any():
                return
            seen += 1
        except LegatoError as error:
            why = why or str(error)
    if not seen:
        raise DataError(f"none of {len(places)} recordings looked at can be heard, the first because {why}")
    raise DataError(f"all of {seen} recordings looked at are silent; give recordings with sound")
