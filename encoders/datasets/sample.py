"""What a dataset is to us: a list of samples, each a span of a recording with what is known about it.

A dataset file only lists; reading is `reader.py`'s work. ``grid:PATH`` names a dataset and the folder it lies in;
without a path the folder is looked for below the one that the environment variable ``LEGATO_DATA`` names.
"""

import csv
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from encoders.errors import DataError, UsageError
from encoders.settings import pick

__all__ = ["DATASETS", "Sample", "labelled", "list_folder", "list_samples", "read_table", "splits_of"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A span of a recording."""

    path: Path
    start: float = 0.0  # seconds from the beginning of the recording
    seconds: float | None = None  # None: to its end
    label: str = ""
    speaker: str = ""
    split: str = ""  # train, val, test
    notes: Mapping[str, str] = field(default_factory=dict)  # the dataset's other columns

    @property
    def id(self) -> str:
        """Parent folder and file name: the same wherever the dataset lies."""
        return f"{self.path.parent.name}/{self.path.stem}"


# Dataset name to the function that lists it, and the folder it is shipped in.
DATASETS: dict[str, tuple[str, str]] = {
    "grid": ("encoders.datasets.grid:list_samples", "grid-av"),
    "java_sed": ("encoders.datasets.java_sed:list_samples", "javanese-av-emotion"),
    "esc10": ("encoders.datasets.esc10:list_samples", "esc10-audio"),
    "folder": ("encoders.datasets.sample:list_folder", ""),
}

MEDIA = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".wav", ".ogg", ".flac", ".mp3", ".m4a")


def list_samples(text: str, *, splits: Iterable[str] = ()) -> list[Sample]:
    """The samples of ``NAME:PATH`` or ``NAME``; of these ``splits`` only, where given.

    Raises UsageError on an unknown name, DataError on a missing folder or an empty list.
    """
    name, _, path = text.partition(":")
    target, below = pick(DATASETS, name, "dataset")
    module, _, function = target.partition(":")
    lister: Callable[[Path], list[Sample]] = getattr(import_module(module), function)
    folder = Path(path).expanduser() if path else _shipped(name, below)
    if not folder.is_dir():
        raise DataError(f"dataset folder {folder} does not exist; give it as {name}:PATH")
    samples, wanted = lister(folder), set(splits)
    chosen = [s for s in samples if not wanted or s.split in wanted]
    if not chosen:
        known = ", ".join(sorted({s.split or "(none)" for s in samples})) or "nothing at all"
        raise DataError(f"dataset {text} has no sample of split {', '.join(sorted(wanted)) or 'any'}; it has {known}")
    return chosen


def _shipped(name: str, below: str) -> Path:
    data = os.environ.get("LEGATO_DATA")
    if not data or not below:
        raise UsageError(f"dataset {name} has no folder; write {name}:PATH, or name the data folder in LEGATO_DATA")
    return Path(data).expanduser() / below


def list_folder(folder: Path) -> list[Sample]:
    """Every media file below a folder, in order of its path; the parent folder's name is the label."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in MEDIA and p.is_file())
    return [Sample(path=p, label=p.parent.name if p.parent != folder else "") for p in files]


def labelled(folder: Path) -> list[Sample]:
    """The recordings of ``labels.csv`` (file, speaker, label, split, seconds, and more that is kept as notes)."""
    rows = read_table(folder / "labels.csv", ("file", "speaker", "label", "split", "seconds"))
    return [
        Sample(
            path=folder / row.pop("file"),
            speaker=row.pop("speaker"),
            label=row.pop("label"),
            split=row.pop("split"),
            seconds=float(row.pop("seconds")),
            notes=row,
        )
        for row in rows
    ]


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has at least these columns; raises DataError naming what is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = [c for c in columns if c not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; is it the dataset's own table?")
            return list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "it is no table"
        raise DataError(f"{path} cannot be read ({why}); give the folder that holds the dataset") from None


def splits_of(text: str) -> tuple[str, ...]:
    """``"train,val"`` as names; empty for all."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
