"""Charades: people acting out household scripts at home, several actions per video (Sigurdsson et al., ECCV 2016).

Expects ``Charades_v1_train.csv``, ``Charades_v1_test.csv`` and ``Charades_v1_classes.txt`` (in PATH or PATH/Charades),
and videos ``ID.mp4`` in ``Charades_v1_480/`` (or ``Charades_v1/``, ``videos/``). A sample is a whole video with all its
actions as ``labels``; ``actions`` tells when each happens. A video without an action keeps no label: all targets are 0.

Classes are c000 to c156, in the order of Charades_v1_classes.txt.
"""

from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample, read_table
from encoders.datasets.tables import Files, find, needed, number, read_lines
from encoders.errors import DataError

__all__ = ["CHARADES", "actions", "list_samples"]

TABLES = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}
VIDEOS = ("Charades_v1_480", "Charades_v1", "videos")


def list_samples(folder: Path) -> list[Sample]:
    """All videos; ``length`` and the actions' times stay in the notes."""
    clips = find(folder, *VIDEOS) or folder / VIDEOS[0]
    files = Files([clips])
    samples = []
    for split, name in TABLES.items():
        table = needed(folder, name, f"Charades/{name}")
        for line, row in enumerate(read_table(table, ("id", "subject", "actions", "length")), 2):
            spans = _spans(row["actions"], table, line)
            samples.append(
                Sample(
                    path=files.get(row["id"]) or clips / f"{row['id']}.mp4",
                    labels=tuple(dict.fromkeys(sorted(action for action, _, _ in spans))),
                    speaker=row["subject"],
                    split=split,
                    name=row["id"],
                    notes={"actions": row["actions"], "length": row["length"]},
                )
            )
    return samples


def actions(sample: Sample) -> list[tuple[str, float, float]]:
    """(class, start, end) in seconds of the video, in the table's order; they overlap."""
    return _spans(sample.notes["actions"], sample.path, 0)


def _spans(text: str, table: Path, line: int) -> list[tuple[str, float, float]]:
    """``c092 11.90 21.20;c147 0.00 12.60``, or nothing."""
    spans = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        fields = part.split()
        if len(fields) != 3:
            raise DataError(f"{table} line {line}: action {part!r} is not CLASS START END; correct the row")
        start, end = (number(field, table, line, "action time") for field in fields[1:])
        spans.append((fields[0], start, end))
    return spans


def _words(folder: Path) -> dict[str, str]:
    name = "Charades_v1_classes.txt"
    lines = (line.split(maxsplit=1) for line in read_lines(needed(folder, name, f"Charades/{name}")))
    return {first: rest[0] if rest else first for first, *rest in lines}


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    return tuple(_words(folder))


CHARADES = Reader(
    about=About(
        title="Charades (Sigurdsson et al., ECCV 2016)",
        layout="Charades_v1_train.csv, Charades_v1_test.csv, Charades_v1_classes.txt; Charades_v1_480/ID.mp4",
        licence="non-commercial use only (License.txt of the dataset, Allen Institute for AI)",
        splits={"train": 7_985, "test": 1_863},
        classes=157,
        note="multi-label; mean average precision",
    ),
    samples=list_samples,
    classes=_classes,
    titles=_words,
    multi_label=True,
)
