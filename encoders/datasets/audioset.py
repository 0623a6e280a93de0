"""AudioSet: ten-second sounds of YouTube videos, several labels each (Gemmeke et al., ICASSP 2017).

Expects ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv``, ``eval_segments.csv`` and
``class_labels_indices.csv`` in PATH or a folder of tables below it (``csv/``, ``annotations/``, ``metadata/``), and
the cut clips anywhere below PATH, named by their YouTube id: ``YTID``, ``YYTID``, or either followed by ``_`` and
times, with any media suffix (a video is taken before a sound file of the same name). Labels are mids (``/m/09x0r``).

Four sets share the folder; the split ``test`` of the first three is the evaluation set:

- ``audioset``: all 2 million; ``train`` is the balanced and the unbalanced part (which one, is a note).
- ``audioset_balanced``: ``train`` is the balanced part (AS-mini, MiniAS; PolyViT and MBT).
- ``audioset_500k``: ``train`` is a class-balanced half million of the unbalanced part (AS-500K; MBT, appendix). The
  published list is not public, so the rule here is ours: in the order of a hash of their ids, segments are counted per
  label; a segment's turn is the smallest of its counts; the first 500 000 turns are in. So a rare class is in whole and
  no class is cut before its quota. The rule looks at the table, never at what was downloaded.
- ``audioset_20k``: the balanced part alone, for pre-training: its labels are of no use there, and neither the
  evaluation set nor the list of classes need be in the folder.

Classes are in the order of class_labels_indices.csv (527).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from encoders.datasets.corpus import About, Reader, shuffled
from encoders.datasets.sample import MEDIA, Sample, read_table
from encoders.datasets.tables import Files, needed, number, read_rows
from encoders.errors import DataError

__all__ = ["AUDIOSET", "AUDIOSET_20K", "AUDIOSET_500K", "BALANCED", "balanced_subset", "list_samples"]

HALF_MILLION = 500_000
BELOW = ("", "csv/", "annotations/", "metadata/")
TABLES = {"balanced": "balanced_train", "unbalanced": "unbalanced_train", "eval": "eval"}
_YTID = re.compile(r"[\w-]{11}")


def list_samples(folder: Path, parts: Sequence[str] = ("balanced", "unbalanced")) -> list[Sample]:
    """The segments of these training parts, and of the evaluation set."""
    clips = _Clips(folder)
    samples: list[Sample] = []
    for part in (*parts, "eval"):
        samples += _listed(needed(folder, *_names(f"{TABLES[part]}_segments.csv")), part, clips)
    return samples


def balanced_subset(samples: Sequence[Sample], size: int) -> list[Sample]:
    """At most ``size`` samples, every label up to its quota; in the order given."""
    counts: Counter[str] = Counter()
    turns: list[tuple[int, int, str]] = []  # of one turn, in the order of the hash
    for place, sample in enumerate(shuffled(samples)):
        turns.append((min((counts[label] for label in sample.labels), default=len(samples)), place, sample.id))
        counts.update(sample.labels)
    first = {name for _, _, name in sorted(turns)[:size]}
    return [sample for sample in samples if sample.id in first]


def _half_million(folder: Path) -> list[Sample]:
    samples = list_samples(folder, ("unbalanced",))
    train = balanced_subset([s for s in samples if s.split == "train"], HALF_MILLION)
    return [*train, *(s for s in samples if s.split == "test")]


def _unlabelled(folder: Path) -> list[Sample]:
    table = needed(folder, *_names(f"{TABLES['balanced']}_segments.csv"))
    return [replace(sample, labels=()) for sample in _listed(table, "balanced", _Clips(folder))]


def _balanced(folder: Path) -> list[Sample]:
    return list_samples(folder, ("balanced",))


def _names(file: str) -> tuple[str, ...]:
    return tuple(below + file for below in BELOW)


def _listed(table: Path, part: str, clips: "_Clips") -> Iterator[Sample]:
    split, notes = "test" if part == "eval" else "train", {"part": part}  # one dict for millions of samples
    for line, row in read_rows(table, 4, comment="#"):
        name = row[0]
        if number(row[1], table, line, "start") >= number(row[2], table, line, "end"):
            raise DataError(f"{table} line {line}: {name} ends before it starts; correct the row")
        if not _YTID.fullmatch(name):
            raise DataError(f"{table} line {line}: {name!r} is no YouTube id of 11 characters; correct the row")
        labels = tuple(label.strip() for label in ",".join(row[3:]).split(",") if label.strip())
        yield Sample(path=clips.of(name), labels=labels, split=split, name=name, notes=notes)


class _Clips:
    """Clips by YouTube id, whatever the tool that cut them appended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = Files([folder], MEDIA)
        self._begun: dict[str, Path] = {}
        for stem, path in self._files.stems().items():
            if len(stem) > 12 and stem[11] == "_":
                self._begun.setdefault(stem[:11], path)
            if len(stem) > 13 and stem[0] == "Y" and stem[12] == "_":
                self._begun.setdefault(stem[1:12], path)

    def of(self, name: str) -> Path:
        """Where the clip lies, or would lie."""
        return self._files.get(name, f"Y{name}") or self._begun.get(name) or self._folder / f"{name}.mp4"


def _words(folder: Path) -> dict[str, str]:
    path = needed(folder, *_names("class_labels_indices.csv"))
    rows = read_table(path, ("index", "mid", "display_name"))
    places = {int(number(row["index"], path, line, "index")): row for line, row in enumerate(rows, 2)}
    if sorted(places) != list(range(len(rows))):
        raise DataError(f"{path}: the indices are not 0 to {len(rows) - 1}; download it again")
    return {places[i]["mid"]: places[i]["display_name"] for i in range(len(rows))}


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    return tuple(_words(folder))


def _about(title: str, train: int, note: str) -> About:
    return About(
        title=title,
        layout="*_segments.csv, class_labels_indices.csv; clips by YouTube id anywhere below (YTID.mp4, YYTID.wav)",
        licence="CC BY 4.0, ontology CC BY-SA 4.0 (AudioSet's download page); videos are their uploaders' (YouTube)",
        splits={"train": train, "test": 20_371},
        classes=527,
        note=f"multi-label, mean average precision; {note}",
    )


AUDIOSET = Reader(
    about=_about("AudioSet (Gemmeke et al., ICASSP 2017)", 2_063_949, "balanced 22 160 and unbalanced 2 041 789"),
    samples=list_samples,
    classes=_classes,
    titles=_words,
    multi_label=True,
)
BALANCED = Reader(
    about=_about("AudioSet, balanced training part", 22_160, "the published recipes count 20 361 for training"),
    samples=_balanced,
    classes=_classes,
    titles=_words,
    multi_label=True,
)
AUDIOSET_20K = Reader(
    about=About(
        title="AudioSet-20K, the balanced training part without its labels",
        layout="balanced_train_segments.csv; clips by YouTube id anywhere below (YTID.mp4)",
        licence="CC BY 4.0 (AudioSet's download page); videos are their uploaders' (YouTube)",
        splits={"train": 22_160},
        classes=0,
        note="for pre-training; about 20 000 of them could be downloaded when the papers were written",
    ),
    samples=_unlabelled,
    classes=lambda folder, head: (),
)
AUDIOSET_500K = Reader(
    about=_about("AudioSet-500K, the class-balanced part of MBT", HALF_MILLION, "the subset is by our own rule"),
    samples=_half_million,
    classes=_classes,
    titles=_words,
    multi_label=True,
)
