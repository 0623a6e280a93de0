"""Moments in Time: three-second videos of one activity each (Monfort et al., TPAMI 2020).

Expects ``training/LABEL/NAME.mp4`` and ``validation/LABEL/NAME.mp4``, with ``trainingSet.csv`` and
``validationSet.csv`` (LABEL/NAME.mp4, label, votes for, votes against; no header) and ``moments_categories.txt``
(label, index). Without the tables all videos that lie there are listed.

Classes are in the order of moments_categories.txt; without it, alphabetical.
"""

from collections.abc import Iterator
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import class_folders, find, number, read_rows
from encoders.errors import DataError

__all__ = ["MOMENTS", "list_samples"]

SPLITS = {"train": "training", "val": "validation"}
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def list_samples(folder: Path) -> list[Sample]:
    """All videos of the tables, or all that lie there."""
    if find(folder, *SPLITS.values(), "trainingSet.csv") is None:
        raise DataError(f"{folder} holds neither trainingSet.csv nor a folder training; give the dataset's folder")
    samples: list[Sample] = []
    for split, name in SPLITS.items():
        table = find(folder, f"{name}Set.csv")
        if table is not None:
            samples += _listed(table, folder / name, split)
        elif (folder / name).is_dir():
            samples += _found(folder / name, split)
    return samples


def _listed(table: Path, clips: Path, split: str) -> Iterator[Sample]:
    for line, row in read_rows(table, 2):
        if row[0].startswith("/") or ".." in Path(row[0]).parts:
            raise DataError(f"{table} line {line}: file {row[0]!r} lies outside {clips}; correct the row")
        votes = dict(zip(("for", "against"), row[2:], strict=False))
        name = f"{split}/{Path(row[0]).with_suffix('')}"
        yield Sample(path=clips / row[0], label=row[1], split=split, name=name, notes=votes)


def _found(clips: Path, split: str) -> Iterator[Sample]:
    for label, files in class_folders(clips, VIDEOS).items():
        for file in files:
            yield Sample(path=file, label=label, split=split, name=f"{split}/{label}/{file.stem}")


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    path = folder / "moments_categories.txt"
    if not path.exists():
        return tuple(sorted({sample.label for sample in list_samples(folder)}))
    places = {int(number(row[1], path, line, "index")): row[0] for line, row in read_rows(path, 2)}
    if sorted(places) != list(range(len(places))):
        raise DataError(f"{path}: the indices are not 0 to {len(places) - 1}; download it again")
    return tuple(places[i] for i in range(len(places)))


MOMENTS = Reader(
    about=About(
        title="Moments in Time (Monfort et al., TPAMI 2020)",
        layout="trainingSet.csv, validationSet.csv, moments_categories.txt; training/LABEL/NAME.mp4, validation/",
        licence="non-commercial research (license.txt of the dataset)",
        splits={"train": 802_264, "val": 33_900},
        classes=339,
        note="the published recipes count 791 297 for training",
    ),
    samples=list_samples,
    classes=_classes,
)
