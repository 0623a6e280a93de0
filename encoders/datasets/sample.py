"""What a dataset is to us: a list of samples, each a span of a recording with what is known about it.

A dataset file only lists; what is listed is checked in `corpus.py` and read in `reader.py`. ``grid:PATH`` names a
dataset and the folder it lies in; without a path the folder is looked for below the one that the environment variable
``LEGATO_DATA`` names.
"""

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encoders.errors import DataError, UsageError

__all__ = ["DATASETS", "Sample", "labelled", "list_folder", "list_samples", "read_table", "shipped", "splits_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A span of a recording, or a picture."""

    path: Path  # a media file, a picture, a folder of numbered frames, or a binary file that holds raw pictures
    start: float = 0.0  # seconds from the beginning of the recording
    seconds: float | None = None  # None: to its end
    label: str = ""
    speaker: str = ""
    split: str = ""  # train, val, test
    notes: Mapping[str, str] = field(default_factory=dict)  # the dataset's other columns; labels of several heads
    labels: tuple[str, ...] = ()  # where there may be several at once; ``label`` is then empty
    name: str = ""  # the dataset's own id, where it has one
    frame_rate: float = 0.0  # pictures per second of a folder of frames
    sound: Path | None = None  # where the sound lies in a file of its own, in step with ``path``
    raw_at: int | None = None  # byte where a raw picture begins in ``path`` (CIFAR)

    @property
    def id(self) -> str:
        """The dataset's own id, or parent folder and file name: the same wherever the dataset lies."""
        return self.name or f"{self.path.parent.name}/{self.path.stem}"


# Dataset name to the function or `corpus.Reader` that lists it, and the folder it is shipped in.
DATASETS: dict[str, tuple[str, str]] = {
    "grid": ("encoders.datasets.grid:list_samples", "grid-av"),
    "java_sed": ("encoders.datasets.java_sed:list_samples", "javanese-av-emotion"),
    "java_sed_takes": ("encoders.datasets.java_sed:list_samples", "javanese-emotion-audio"),
    "grid_digits": ("encoders.datasets.grid_words:DIGITS", "grid-av"),
    "grid_commands": ("encoders.datasets.grid_words:COMMANDS", "grid-av"),
    "grid_lips": ("encoders.datasets.grid_words:LIPS", "grid-av"),
    "grid_words": ("encoders.datasets.grid_words:ALL", "grid-av"),
    "grid_speakers": ("encoders.datasets.grid_words:SPEAKERS", "grid-av"),
    "esc10": ("encoders.datasets.esc10:list_samples", "esc10-audio"),
    "folder": ("encoders.datasets.sample:list_folder", ""),
    "kinetics400": ("encoders.datasets.kinetics:KINETICS_400", ""),
    "kinetics600": ("encoders.datasets.kinetics:KINETICS_600", ""),
    "kinetics700": ("encoders.datasets.kinetics:KINETICS_700", ""),
    "kinetics_sounds": ("encoders.datasets.kinetics_sounds:KINETICS_SOUNDS", ""),
    "charades": ("encoders.datasets.charades:CHARADES", ""),
    "avid": ("encoders.datasets.avid:AVID", ""),
    "ssv2": ("encoders.datasets.ssv2:SSV2", ""),
    "epic_kitchens": ("encoders.datasets.epic_kitchens:EPIC_KITCHENS", ""),
    "moments": ("encoders.datasets.moments:MOMENTS", ""),
    "audioset": ("encoders.datasets.audioset:AUDIOSET", ""),
    "audioset_balanced": ("encoders.datasets.audioset:BALANCED", ""),
    "audioset_500k": ("encoders.datasets.audioset:AUDIOSET_500K", ""),
    "audioset_20k": ("encoders.datasets.audioset:AUDIOSET_20K", ""),
    "crema_d": ("encoders.datasets.crema_d:CREMA_D", ""),
    "ravdess": ("encoders.datasets.ravdess:RAVDESS", "ravdess-av-sample"),
    "lombard_grid": ("encoders.datasets.lombard_grid:LOMBARD_GRID", ""),
    "vggsound": ("encoders.datasets.vggsound:VGGSOUND", ""),
    "imagenet": ("encoders.datasets.imagenet:IMAGENET", ""),
    "cifar10": ("encoders.datasets.cifar:CIFAR_10", ""),
    "cifar100": ("encoders.datasets.cifar:CIFAR_100", ""),
    "pets": ("encoders.datasets.pets:PETS", ""),
    "resisc45": ("encoders.datasets.resisc45:RESISC45", ""),
}

MEDIA = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".wav", ".ogg", ".flac", ".mp3", ".m4a")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_samples(text: str, *, splits: Iterable[str] = (), skip_bad: bool = False) -> list[Sample]:
    """The samples of ``NAME:PATH`` or ``NAME``; of these ``splits`` only, where given.

    Raises UsageError on an unknown name, DataError on a missing folder, an empty list or samples that cannot be used;
    `corpus.open_corpus` says more, and knows the classes.
    """
    from encoders.datasets.corpus import open_corpus  # late: it is built on this module

    return list(open_corpus(text, splits=splits, skip_bad=skip_bad).samples)


def shipped(name: str, below: str) -> Path:
    """The folder of a dataset given without a path: below the one that LEGATO_DATA names."""
    data = os.environ.get("LEGATO_DATA")
    if not data or not below:
        shipped_too = ", or name the data folder in LEGATO_DATA" if below else ""
        raise UsageError(f"dataset {name} has no folder; write {name}:PATH{shipped_too}")
    return Path(data).expanduser() / below


def list_folder(folder: Path) -> list[Sample]:
    """Every media file below a folder, in order of its path; the parent folder's name is the label."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in MEDIA and p.is_file())
    return [Sample(path=p, label=p.parent.name if p.parent != folder else "") for p in files]


def labelled(folder: Path) -> list[Sample]:
    """The recordings of ``labels.csv`` (file, speaker, label, split, and more that is kept as notes).

    ``seconds``, where the table has them, spare a look into each recording.
    """
    rows = read_table(folder / "labels.csv", ("file", "speaker", "label", "split"))
    return [
        Sample(
            path=folder / row.pop("file"),
            speaker=row.pop("speaker"),
            label=row.pop("label"),
            split=row.pop("split"),
            seconds=float(row.pop("seconds")) if row.get("seconds") else None,
            notes=row,
        )
        for row in rows
    ]


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has at least these columns, each row all of them; raises DataError naming what lacks."""
    columns, found = tuple(columns), []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [c for c in columns if c not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}; is it the dataset's own table?")
            for row in rows:
                if None in map(row.get, columns):
                    raise DataError(f"{path} line {rows.line_num} is cut short; download it again")
                found.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it is no table"
        why = getattr(error, "strerror", None) or why
        raise DataError(f"{path} cannot be read ({why}); give the folder that holds the dataset") from None
    return found


def splits_of(text: str) -> tuple[str, ...]:
    """``"train,val"`` as names; empty for all."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
