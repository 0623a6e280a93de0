"""Annotation files as they are shipped: rows without a header, JSON, lines; and where the media of a folder lie.

Every failure is one DataError that names the file and, where there is one, the line.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from encoders.datasets.sample import MEDIA, PICTURES
from encoders.errors import DataError

__all__ = [
    "Files",
    "class_folders",
    "class_names",
    "find",
    "needed",
    "number",
    "read_json",
    "read_lines",
    "read_rows",
    "read_text",
]


def find(folder: Path, *names: str) -> Path | None:
    """The first of these names that exists below a folder."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def needed(folder: Path, *names: str) -> Path:
    """``find``, or a DataError that names what was looked for."""
    found = find(folder, *names)
    if found is None:
        others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
        raise DataError(f"{folder} holds no {names[0]}{others}; give the folder that holds the dataset")
    return found


def read_text(path: Path) -> str:
    """A text file, UTF-8 with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); unpack or download it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder that holds the dataset") from None


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without the white space around them."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_rows(path: Path, least: int, *, comment: str = "") -> list[tuple[int, list[str]]]:
    """Line numbers and fields of a table without a header; a row of fewer than ``least`` fields is an error."""
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        for row in reader:
            if not any(row) or (comment and row[0].startswith(comment)):
                continue
            if len(row) < least:
                raise DataError(
                    f"{path} line {reader.line_num} has {len(row)} fields where {least} belong; download it again"
                )
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is no table row ({error}); download it again") from None
    return rows


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top is a list or a dict, as ``kind`` says."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its values are out of bounds"
        raise DataError(f"{path} is no JSON ({where}); download it again") from None
    if not isinstance(value, kind):
        raise DataError(f"{path} holds a {type(value).__name__} where a {kind.__name__} belongs; download it again")
    return value


def number(text: str, path: Path, line: int, what: str) -> float:
    """A finite number of at least 0, as a field of a table."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise DataError(f"{path} line {line}: {what} {text!r} is not a number of at least 0; correct the row")
    return value


class Files:
    """Media files below some folders by the stem of their names; the walk is made once.

    Where a stem occurs with several suffixes, the one that may hold both modalities is taken (``MEDIA``'s order);
    among equals the first path. Links to folders are followed, as trees of links are how large sets are arranged.
    """

    def __init__(self, folders: Iterable[Path], suffixes: Sequence[str] = MEDIA) -> None:
        self._paths: dict[str, Path] = {}
        order = {suffix: place for place, suffix in enumerate(suffixes)}
        seen: set[tuple[int, int]] = set()  # folders, so that links in a circle end
        for folder in folders:
            for root, below, names in os.walk(folder, followlinks=True):
                here = os.stat(root)
                if (here.st_dev, here.st_ino) in seen:
                    below.clear()
                    continue
                seen.add((here.st_dev, here.st_ino))
                below.sort()
                for name in sorted(names):
                    stem, suffix = os.path.splitext(name)
                    place = order.get(suffix.lower())
                    known = self._paths.get(stem)
                    if place is not None and (known is None or place < order[known.suffix.lower()]):
                        self._paths[stem] = Path(root, name)

    def __len__(self) -> int:
        return len(self._paths)

    def get(self, *stems: str) -> Path | None:
        """The first of these stems that is there."""
        return next((self._paths[stem] for stem in stems if stem in self._paths), None)

    def stems(self) -> Mapping[str, Path]:
        return self._paths


def class_names(folder: Path) -> tuple[str, ...]:
    """The folders in a folder, in alphabetical order; hidden ones are none."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def class_folders(folder: Path, suffixes: Sequence[str] = PICTURES) -> dict[str, list[Path]]:
    """Class name to its files, from ``folder/CLASS/FILE``, both in alphabetical order.

    Raises DataError where there is no class, or one of them has no file.
    """
    try:
        below = class_names(folder)
        classes = {name: sorted(f for f in (folder / name).iterdir() if f.suffix.lower() in suffixes) for name in below}
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); give the folder that holds the dataset") from None
    if not any(classes.values()):
        raise DataError(
            f"{folder} holds no class folder with {suffixes[0]} files or the like; give the folder that holds them"
        )
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(f"class {empty[0]!r} is empty ({folder / empty[0]}); fill the folder or remove it")
    return classes
