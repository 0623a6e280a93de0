"""Scores of the task: mean of class recalls, recall of each condition, and how well conditions are told apart.

The three-way score is the mean of the recalls of nobody, on_screen and off_screen. ``auc_still`` ranks true pairs
above a still face with a voice, ``auc_mismatch`` above a talking face with another voice, both by the log-odds of
on_screen against off_screen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.talk.corpus import Corpus
from runtime.talk.windows import CONDITIONS, LABEL_OF, LABELS, Grid, coloured, mix, noise, still, talk


@dataclass(frozen=True)
class Trial:
    """Windows to judge: pictures uint8 (N, clips*frames, 64, 64), sounds (N, S), and what is true of each."""

    pictures: np.ndarray
    sounds: np.ndarray
    condition: np.ndarray  # index into CONDITIONS
    speaker: np.ndarray  # str

    @property
    def label(self) -> np.ndarray:
        return np.array([LABEL_OF[c] for c in CONDITIONS])[self.condition]


def trial(
    corpus: Corpus, speakers: Sequence[str], each: int, seed: int, grid: Grid, noises: Sequence[np.ndarray]
) -> Trial:
    """``each`` windows of every condition for every speaker; voices of others come from ``speakers`` too."""
    rng = np.random.default_rng(seed)
    sights, sounds, conditions, names = [], [], [], []
    for speaker in speakers:
        mine = corpus.by_speaker[speaker]
        others = [u for s in speakers if s != speaker for u in corpus.by_speaker[s]]
        for index, condition in enumerate(CONDITIONS):
            for _ in range(each):
                sight, sound = scene(rng, condition, mine, others, grid, noises)
                sights.append(sight)
                sounds.append(sound)
                conditions.append(index)
                names.append(speaker)
    return Trial(np.stack(sights), np.stack(sounds), np.array(conditions), np.array(names))


def scene(rng, condition, mine, others, grid, noises):  # type: ignore[no-untyped-def]
    """One window of a condition: pictures and samples."""
    background = noise(rng, noises, grid.samples) if rng.random() < 0.8 else room_tone(rng, grid.samples)
    sight, own = talk(rng, mine, grid)
    if condition.startswith("still"):
        sight = still(rng, mine, grid)
    voices = {
        "pair": lambda: own,
        "talk_same": lambda: talk(rng, mine, grid)[1],
        "talk_other": lambda: talk(rng, others, grid)[1],
        "still_voice": lambda: talk(rng, mine if rng.random() < 0.5 else others, grid)[1],
    }
    voice = voices[condition]() if condition in voices else None
    return sight, mix(voice, background, rng.uniform(0, 25), 10 ** rng.uniform(-2.0, -0.7))


def room_tone(rng: np.random.Generator, samples: int) -> np.ndarray:
    out = coloured(rng, samples, slope=0.8)
    return out / np.sqrt(np.mean(np.square(out)))


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive outranks a negative (ties count half)."""
    values = np.concatenate((positive, negative))
    order = values.argsort(kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.bincount(inverse, ranks) / counts)[inverse]
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def score(logits: np.ndarray, condition: np.ndarray) -> dict[str, float]:
    """Score, recalls by class and condition, and both AUCs, of logits (N, 3)."""
    truth = np.array([LABEL_OF[c] for c in CONDITIONS])[condition]
    right = logits.argmax(1) == truth
    out = {f"recall_{LABELS[k]}": float(right[truth == k].mean()) for k in range(3)}
    out = {"score": float(np.mean(list(out.values()))), **out}
    out |= {name: float(right[condition == i].mean()) for i, name in enumerate(CONDITIONS)}
    margin = logits[:, 1] - logits[:, 2]
    of = {name: margin[condition == i] for i, name in enumerate(CONDITIONS)}
    out["auc_still"] = auc(of["pair"], of["still_voice"])
    out["auc_mismatch"] = auc(of["pair"], np.concatenate((of["talk_other"], of["talk_same"])))
    return out


def by_group(logits: np.ndarray, condition: np.ndarray, group: np.ndarray) -> Mapping[str, dict[str, float]]:
    """``score`` for each group (speaker) and over all."""
    out = {str(g): score(logits[group == g], condition[group == g]) for g in np.unique(group)}
    return out | {"all": score(logits, condition)}
