"""Labelled recordings as spectrograms: one changed clip for training, several in time for a test.

A recording shorter than the clip is repeated. The front end is the encoder's own, so that training hears what serving
hears.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.clips import AudioSpec, ClipSpec
from encoders.datasets.labelled import kept_samples
from encoders.datasets.reader import read_sample, seconds_of
from encoders.datasets.sample import Sample
from encoders.datasets.spec_augment import SpecAugment
from encoders.datasets.views import Views
from encoders.errors import DataError

__all__ = ["LabelledSounds"]

Sound = NDArray[np.float32]


@dataclass
class LabelledSounds:
    """Recordings with sound; ``train`` gives a spectrogram ``(T, F)``, ``views`` ``(V, T, F)``, float32."""

    samples: Sequence[Sample]
    seconds: Fraction  # of a clip
    sample_rate: int  # Hz
    front: Callable[[Tensor], Tensor]  # (1, S) -> (1, T, F)
    augment: SpecAugment = field(default_factory=SpecAugment)
    gain: float = 0.0  # louder or softer by up to this share (ours)
    read_sound: Callable[[Sample, ClipSpec], Sound] | None = None  # None: encoders.media
    kept: list[Sound] | None = None  # decoded samples, by index

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def count(self) -> int:
        """Samples of sound in a clip."""
        return ClipSpec(seconds=self.seconds, audio=AudioSpec(sample_rate=self.sample_rate)).samples

    def train(self, index: int, random: np.random.Generator) -> Sound:
        """A clip from anywhere in the recording, parts of its spectrogram hidden."""
        sound = self.whole(index)
        spare = max(0, len(sound) - self.count)
        clip = self._clip(sound, int(random.integers(spare + 1)))
        if self.gain:
            clip = clip * np.float32(random.uniform(1 - self.gain, 1 + self.gain))
        return self.augment(self._spectrogram(clip), random)

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
        self.samples, self.kept, lost = kept_samples(self.samples, self.whole, limit_gb, progress=progress)
        return lost

    def _clip(self, sound: Sound, start: int) -> Sound:
        at = np.arange(start, start + self.count)
        return sound[at % len(sound)]

    def _spectrogram(self, clip: Sound) -> Sound:
        return self.front(torch.from_numpy(np.ascontiguousarray(clip))[None])[0].float().numpy()


def _read_sound(sample: Sample, spec: ClipSpec) -> Sound:
    _, sound = read_sample(sample, spec)
    if sound is None:
        raise DataError(f"{sample.path} has no sound; train on recordings that have one")
    return sound
