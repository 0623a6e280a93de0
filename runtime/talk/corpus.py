"""The recordings behind ``talk`` as arrays: mouth pictures, sound, and when nobody speaks.

An utterance is one recorded sentence. Its pictures are cut around the mouth with a margin, so that training can
shift, scale and bend them; its silent spans come from the corpus' word alignments where there are any, else from
the sound's energy, and keep a distance from speech because a mouth opens before it is heard.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

SAMPLE_RATE = 16_000  # Hz
MARGIN = 1.6  # a stored picture shows this many mouth boxes, side by side
STORED = 64  # pixels, side of a stored picture
QUIET_FRAMES = 4  # frames kept away from an aligned word
UNSURE_FRAMES = 8  # frames kept away from sound, where no alignment says when the mouth begins to open
SHORTEST_STILL = 6  # frames


@dataclass(frozen=True, eq=False)
class Utterance:
    """One sentence: ``pictures`` uint8 (N, 64, 64), ``times`` (N,) seconds from 0, ``sound`` float32 (S,) at 16 kHz."""

    corpus: str
    speaker: str
    file: str
    split: str
    pictures: np.ndarray
    times: np.ndarray
    sound: np.ndarray
    stills: tuple[tuple[int, int], ...]  # frame ranges [first, last) without speech

    @property
    def seconds(self) -> float:
        return float(self.times[-1] + (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1))


@dataclass
class Corpus:
    """Utterances by speaker; ``noises`` are (samples, split) of sounds that are not speech."""

    utterances: list[Utterance]
    noises: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_speaker: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in self.utterances:
            self.by_speaker[utterance.speaker].append(utterance)

    def of(self, speakers: Iterable[str]) -> "Corpus":
        """The part of the corpus that these speakers spoke."""
        wanted = set(speakers)
        return Corpus([u for u in self.utterances if u.speaker in wanted], self.noises)

    def noise(self, *splits: str) -> list[np.ndarray]:
        return [sound for sound, split in self.noises if split in splits]


def silent_spans(sound: np.ndarray, frame_seconds: float, frames: int) -> list[tuple[int, int]]:
    """Frame ranges whose sound stays near the noise floor, kept away from speech."""
    hop = int(frame_seconds * SAMPLE_RATE)
    blocks = sound[: len(sound) // hop * hop].reshape(-1, hop)
    level = 10 * np.log10(np.square(blocks).mean(1) + 1e-10)
    floor, top = np.quantile(level, (0.05, 0.9))
    loud = level > floor + 0.4 * (top - floor)
    return spans_between(np.flatnonzero(loud), frames, UNSURE_FRAMES)


def spans_between(
    speech_frames: Sequence[int] | np.ndarray, frames: int, margin: int = QUIET_FRAMES
) -> list[tuple[int, int]]:
    """The frame ranges at the start and the end that are ``margin`` frames away from every speech frame."""
    if len(speech_frames) == 0:
        return [(0, frames)]
    ends = [(0, int(speech_frames[0]) - margin), (int(speech_frames[-1]) + 1 + margin, frames)]
    return [(a, b) for a, b in ends if b - a >= SHORTEST_STILL]
