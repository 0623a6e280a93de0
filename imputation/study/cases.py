"""What a study runs on: feature files, cut into folds whose speakers do not meet.

A case is one encoder's features of one dataset. Its folds are the file's own splits, or hold out some speakers at a
time; validation is then the fold after, so that nothing is chosen on whom it is tested on. Windows whose name ends in
``@`` and something are other cuts of a recording: they are learned from and never tested on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from encoders.errors import DataError, UsageError
from imputation.features import FeatureSet

__all__ = ["Case", "Fold", "open_case"]

OWN = "own"  # folds: the splits that the file has


@dataclass(frozen=True)
class Fold:
    """Windows to learn from, to choose by and to test on, standardised by the first."""

    name: str
    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet


@dataclass(frozen=True)
class Case:
    """One encoder's features of one dataset."""

    encoder: str
    dataset: str
    folds: tuple[Fold, ...]

    @property
    def name(self) -> str:
        return f"{self.encoder}:{self.dataset}"

    @property
    def length(self) -> int:
        """Clips in a window (L)."""
        return self.folds[0].train.length

    @property
    def chance(self) -> float:
        """The share of the largest class among the tested."""
        label = torch.cat([fold.test.label for fold in self.folds])
        return float(label.bincount().max() / len(label))


def open_case(text: str, folds: str = OWN) -> Case:
    """``ENCODER:DATASET=FILE`` and how it is cut: ``own`` splits, or groups of speakers, ``01+06,02+07,...``.

    Raises UsageError where the text is none, DataError naming the file where it cannot be used.
    """
    name, equals, path = text.partition("=")
    encoder, colon, dataset = name.partition(":")
    if not (equals and colon and encoder and dataset and path):
        raise UsageError(f"--case {text!r} is not ENCODER:DATASET=FILE, e.g. avid:java_sed=java.safetensors")
    data = FeatureSet.load(Path(path))
    _check(data, path)
    cut = [_own(data, path)] if folds == OWN else _by_speakers(data, folds, path)
    return Case(encoder, dataset, tuple(cut))


def _check(data: FeatureSet, path: str) -> None:
    if data.length < 2:
        raise DataError(f"windows of {path} have {data.length} clip, of which none can be lost; use at least 2")
    if int(data.label.min()) < 0:
        raise DataError(f"row {int(data.label.argmin())} of {path} has no label; extract features with --labels")
    empty = (~data.presence.flatten(1).any(1)).nonzero()
    if len(empty):
        raise DataError(
            f"row {int(empty[0])} ({data.names[int(empty[0])]}) of {path} was never seen or heard; leave it out"
        )


def _own(data: FeatureSet, path: str) -> Fold:
    for split in ("train", "validation", "test"):
        if split not in data.split:
            raise DataError(f"{path} has no windows of split {split}; cut it by speakers with --folds")
    return _fold("own", data, list(data.split), path)


def _by_speakers(data: FeatureSet, text: str, path: str) -> list[Fold]:
    groups = [tuple(part.split("+")) for part in text.split(",")]
    if len(groups) < 3:
        raise UsageError(f"--folds {text!r} has {len(groups)} groups of speakers; three are needed, for three splits")
    known = set(data.speaker)
    for speaker in (s for group in groups for s in group):
        if speaker not in known:
            raise DataError(f"{path} has no speaker {speaker!r}; it has {', '.join(sorted(known))}")
    cut = []
    for i, group in enumerate(groups):
        after = groups[(i + 1) % len(groups)]
        splits = ["test" if s in group else "validation" if s in after else "train" for s in data.speaker]
        cut.append(_fold("+".join(group), data, splits, path))
    return cut


def _fold(name: str, data: FeatureSet, splits: Sequence[str], path: str) -> Fold:
    """Other cuts of a recording ("name@1") stay among what is learned from."""
    parts = {}
    for split in ("train", "validation", "test"):
        rows = [i for i, s in enumerate(splits) if s == split and (split == "train" or "@" not in data.names[i])]
        if not rows:
            raise DataError(f"fold {name} of {path} has no windows for {split}; give other speakers")
        parts[split] = replace(data.rows(torch.tensor(rows)), split=(split,) * len(rows))
    missing = set(range(len(data.labels))) - set(parts["train"].label.tolist())
    if missing:
        lacking = data.labels[min(missing)]
        raise DataError(f"fold {name} of {path} has no {lacking!r} to learn from; give other speakers, or more of them")
    fitted = parts["train"].fitted().standardiser
    train, validation, test = (replace(part, standardiser=fitted) for part in parts.values())
    return Fold(name, train, validation, test)
