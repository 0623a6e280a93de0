"""Kinetics-400, -600 and -700: ten-second clips of human actions (Kay et al., 2017; Carreira et al., 2018, 2019).

Expects the official tables ``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv`` (label, youtube_id,
time_start, time_end, split), in PATH or PATH/annotations as CVDF ships them, and clips ``YTID_START_END.mp4`` (whole
seconds, six digits) below ``train/``, ``val/`` and ``test/``, flat or in a folder per label, or below ``videos/train/``
and so on. Clips below ``replacement/`` stand in for the broken ones of the same name. Without tables a clip's folder is
its label. Many videos are gone from the web: what the tables list and the folders lack counts as missing.

Classes are in alphabetical order, as in the public code.
"""

from collections.abc import Iterator
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample, read_table
from encoders.datasets.tables import Files, class_folders, find, number
from encoders.errors import DataError

__all__ = ["KINETICS_400", "KINETICS_600", "KINETICS_700", "list_samples"]

# split -> what its table and its folder may be called
TABLES = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
FOLDERS = {split: tuple(f"{below}{name}" for below in ("", "videos/") for name in TABLES[split]) for split in TABLES}
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def list_samples(folder: Path) -> list[Sample]:
    """All clips of the tables, or where there is no table all that lie there; a test set may have no labels."""
    tables = {split: table for split in TABLES if (table := _table(folder, split))}
    if not tables and not any(find(folder, *FOLDERS[split]) for split in FOLDERS):
        raise DataError(f"{folder} holds neither train.csv nor a folder train; give the folder that holds Kinetics")
    replaced = Files([folder / "replacement"], VIDEOS)
    samples: list[Sample] = []
    for split in TABLES:
        clips = find(folder, *FOLDERS[split])
        if split in tables:
            samples += _listed(tables[split], split, clips or folder / split, replaced)
        elif clips is not None:
            samples += _found(clips, split, replaced)
    return samples


def _table(folder: Path, split: str) -> Path | None:
    names = TABLES[split]
    return find(folder, *(f"{below}{name}.csv" for below in ("", "annotations/") for name in names))


def _listed(table: Path, split: str, clips: Path, replaced: Files) -> Iterator[Sample]:
    files = Files([clips], VIDEOS)
    for line, row in enumerate(read_table(table, ("youtube_id", "time_start", "time_end")), 2):
        start, end = (int(number(row[key], table, line, key)) for key in ("time_start", "time_end"))
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        label = row.get("label") or ""
        there = replaced.get(name) or files.get(name)
        yield Sample(path=there or clips / label / f"{name}.mp4", label=label, split=split, name=name)


def _found(clips: Path, split: str, replaced: Files) -> Iterator[Sample]:
    for label, files in class_folders(clips, VIDEOS).items():
        for file in files:
            there = replaced.get(file.stem) or file
            yield Sample(path=there, label=label, split=split, name=file.stem)


def _reader(title: str, classes: int, train: int, val: int, test: int, note: str) -> Reader:
    about = About(
        title=title,
        layout="[annotations/]train.csv, val.csv, test.csv; train/[LABEL/]YTID_000010_000020.mp4, val/, replacement/",
        licence="annotations CC BY 4.0 (the dataset's page at Google DeepMind); videos are their uploaders' (YouTube)",
        splits={"train": train, "val": val, "test": test},
        classes=classes,
        note=note,
    )
    return Reader(about=about, samples=list_samples)


# As the tables list them; the number of videos that can still be had is smaller.
KINETICS_400 = _reader(
    "Kinetics-400 (Kay et al., 2017)", 400, 246_534, 19_906, 39_805, "the published recipes count 214 834 for training"
)
KINETICS_600 = _reader(
    "Kinetics-600 (Carreira et al., 2018)",
    *(600, 427_549, 29_793, 72_924),
    "as CVDF hosts it; the published recipes count 363 213 for training",
)
KINETICS_700 = _reader("Kinetics-700-2020 (Smaira et al., 2020)", 700, 542_352, 34_125, 67_433, "the edition of 2020")
