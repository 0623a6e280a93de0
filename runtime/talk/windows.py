"""Windows of the task: who is seen, who is heard, and what a camera and a microphone do to both.

Six conditions, three labels (audible speech decides first, then whether the visible mouth makes it):

    still_noise, talk_noise                     nobody
    pair                                        on_screen
    still_voice, talk_other, talk_same          off_screen

Pictures and sounds are made apart, because encoders see one clip of one modality at a time: every condition is a
pairing of a *sight* (a talking or a still face) with a *sound* (a voice or none), and one encoding serves many pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.talk.corpus import SAMPLE_RATE, Corpus, Utterance

LABELS = ("nobody", "on_screen", "off_screen")
CONDITIONS = ("still_noise", "talk_noise", "pair", "still_voice", "talk_other", "talk_same")
LABEL_OF = {"still_noise": 0, "talk_noise": 0, "pair": 1, "still_voice": 2, "talk_other": 2, "talk_same": 2}


@dataclass(frozen=True)
class Grid:
    """A window: ``clips`` clips of ``seconds`` with ``frames`` pictures each."""

    clips: int = 10
    seconds: float = 0.4
    frames: int = 10

    @property
    def total_seconds(self) -> float:
        return self.clips * self.seconds

    @property
    def samples(self) -> int:
        return round(self.total_seconds * SAMPLE_RATE)

    def frame_times(self) -> np.ndarray:
        """The middle of each picture's share of its clip, seconds from the window's start."""
        return (np.arange(self.clips * self.frames) + 0.5) * (self.seconds / self.frames)


class Reel:
    """Sentences joined end to end, played at ``speed``, read by time."""

    def __init__(self, utterances: Sequence[Utterance], speed: float = 1.0):
        self.parts, self.speed = list(utterances), speed
        self.starts = np.cumsum([0.0] + [u.seconds / speed for u in self.parts])

    @property
    def seconds(self) -> float:
        return float(self.starts[-1])

    def sight(self, times: np.ndarray) -> np.ndarray:
        """The picture on screen at each time; uint8 (N, 64, 64)."""
        out = []
        part = np.clip(np.searchsorted(self.starts, times, "right") - 1, 0, len(self.parts) - 1)
        for index, time in zip(part, times, strict=True):
            u = self.parts[index]
            frame = np.searchsorted(u.times, (time - self.starts[index]) * self.speed + 1e-6, "right") - 1
            out.append(u.pictures[np.clip(frame, 0, len(u.pictures) - 1)])
        return np.stack(out)

    def sound(self, start: float, samples: int) -> np.ndarray:
        """float32 samples from ``start`` on; before the beginning and beyond the end it is silent."""
        whole = np.concatenate([_stretched(u, self.speed) for u in self.parts])
        first = round(start * SAMPLE_RATE)
        piece = whole[max(0, first) : first + samples]
        before = max(0, -first)
        return np.pad(piece, (before, samples - len(piece) - before))


def _stretched(utterance: Utterance, speed: float) -> np.ndarray:
    samples = round(utterance.seconds / speed * SAMPLE_RATE)
    sound = utterance.sound
    if speed != 1.0:
        sound = np.interp(np.arange(samples) * speed, np.arange(len(sound)), sound, right=0.0).astype(np.float32)
    return np.pad(sound[:samples], (0, max(0, samples - len(sound))))


def talk(
    rng: np.random.Generator, pool: Sequence[Utterance], grid: Grid, speed: float = 1.0, apart: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A talking face and its sound, ``apart`` seconds later: pictures (clips*frames, 64, 64) and samples."""
    reel = Reel([pool[i] for i in rng.permutation(len(pool))[:3]] if len(pool) >= 3 else list(pool) * 3, speed)
    start = rng.uniform(0, max(0.0, reel.seconds - grid.total_seconds))
    return reel.sight(start + grid.frame_times()), reel.sound(start + apart, grid.samples)


def fragments(rng: np.random.Generator, pool: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Pieces of sentences, some played backwards, that fill ``seconds``: speech without the corpus' few words.

    A mouth and its voice stay together in either direction; what comes before and after does not.
    """
    out: list[Utterance] = []
    while sum(u.seconds for u in out) < seconds:
        u = pool[int(rng.integers(len(pool)))]
        first = int(rng.integers(len(u.pictures) - 10))
        last = min(len(u.pictures), first + int(rng.integers(10, 50)))
        out.append(piece(u, first, last, backwards=rng.random() < 0.5))
    return out


def piece(u: Utterance, first: int, last: int, *, backwards: bool) -> Utterance:
    """Frames ``first .. last - 1`` of a sentence and the sound that goes with them."""
    step = float(np.diff(u.times).mean())
    begin, end = (round(n * step * SAMPLE_RATE) for n in (first, last))
    pictures, sound, times = u.pictures[first:last], u.sound[begin:end], u.times[first:last] - u.times[first]
    if backwards:
        pictures, sound, times = pictures[::-1], sound[::-1], times[-1] - times[::-1]
    return replace(u, pictures=pictures, sound=sound, times=times, stills=())


def still(rng: np.random.Generator, pool: Sequence[Utterance], grid: Grid, frozen: float = 0.25) -> np.ndarray:
    """A face that does not speak: a silent span run to and fro, or (with probability ``frozen``) one picture.

    The frozen picture may come from the middle of a word, so that a mouth's look does not say that it moves.
    """
    if rng.random() < frozen:
        utterance = pool[int(rng.integers(len(pool)))]
        at = rng.integers(len(utterance.pictures))
        return np.repeat(utterance.pictures[at : at + 1], grid.clips * grid.frames, 0)
    candidates = [(u, span) for u in pool for span in u.stills]
    utterance, (first, last) = candidates[rng.integers(len(candidates))]
    length = last - first
    to_and_fro = np.concatenate((np.arange(first, last), np.arange(last - 2, first, -1)))
    at = (rng.integers(2 * length) + (grid.frame_times() / np.diff(utterance.times).mean()).astype(int)) % len(
        to_and_fro
    )
    return utterance.pictures[to_and_fro[at]]


def noise(rng: np.random.Generator, sounds: Sequence[np.ndarray], samples: int) -> np.ndarray:
    """Unit-power sound without speech: a recording, or coloured noise, or hum in it."""
    if len(sounds) and rng.random() < 0.6:
        sound = sounds[int(rng.integers(len(sounds)))]
        start = rng.integers(max(1, len(sound) - samples // 4))
        out = np.resize(np.roll(sound, -start), samples).astype(np.float32)
    else:
        out = coloured(rng, samples, slope=rng.uniform(0.0, 1.2))
    if rng.random() < 0.2:
        hum = rng.choice((50.0, 60.0, 100.0, 120.0)) * np.arange(samples) / SAMPLE_RATE
        out = out + rng.uniform(0.2, 1.0) * np.std(out) * np.sin(2 * np.pi * hum).astype(np.float32)
    return out / (np.sqrt(np.mean(np.square(out))) + 1e-6)


def coloured(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """Noise whose power falls as 1 / f**(2 * slope)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.maximum(np.arange(len(spectrum)), samples * 20 / SAMPLE_RATE) ** slope
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def mix(voice: np.ndarray | None, background: np.ndarray, snr_db: float, level: float) -> np.ndarray:
    """Voice over unit-power background at ``snr_db``, scaled to an RMS of ``level``."""
    if voice is None:
        out = background
    else:
        power = np.sqrt(np.mean(np.square(voice))) + 1e-6
        out = voice / power + background * 10 ** (-snr_db / 20)
    out = out * (level / (np.sqrt(np.mean(np.square(out))) + 1e-6))
    return np.clip(out, -1, 1).astype(np.float32)


def speaker_odds(corpus: Corpus, power: float = 0.25) -> tuple[list[str], np.ndarray]:
    """Speakers and how often to draw each: large ones are tamed, small ones not worn out."""
    speakers = sorted(corpus.by_speaker)
    odds = np.array([len(corpus.by_speaker[s]) for s in speakers], dtype=np.float64) ** power
    return speakers, odds / odds.sum()
