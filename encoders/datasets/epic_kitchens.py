"""EPIC-KITCHENS-100: what people do in their kitchens, seen from their heads (Damen et al., IJCV 2022).

Expects ``EPIC_100_train.csv``, ``EPIC_100_validation.csv``, ``EPIC_100_test_timestamps.csv`` (optional),
``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv`` in PATH, PATH/annotations or
PATH/epic-kitchens-100-annotations; and for each video ``P01/videos/P01_01.MP4`` (or ``P01/P01_01.MP4``), or else a
folder ``P01/rgb_frames/P01_01/frame_0000000001.jpg``. A sample is a segment; its verb and noun are two heads, in
``notes``.

Classes are in the order of their numbers in the tables of classes: noun (300) and verb (97).
"""

import re
from functools import cache
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample, read_table
from encoders.datasets.tables import find, needed, number
from encoders.errors import DataError

__all__ = ["EPIC_KITCHENS", "HEADS", "list_samples"]

HEADS = ("noun", "verb")  # in the order of the published heads: 300 nouns, then 97 verbs
TABLES = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv", "test": "EPIC_100_test_timestamps.csv"}
BELOW = ("", "annotations/", "epic-kitchens-100-annotations/")
TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
# Pictures per second of the shipped frames: the videos of 2018 (P01_01) and those of the extension (P01_101).
RATES = (60_000 / 1001, 50.0)


def list_samples(folder: Path) -> list[Sample]:
    """All segments; start and end come from the time stamps, so that videos and frames give the same spans."""
    names = {head: _classes(folder, head) for head in HEADS}
    rates = _rates(folder)
    where = cache(lambda video: _video(folder, video))
    samples = []
    for split, file in TABLES.items():
        table = find(folder, *_names(file)) if split == "test" else needed(folder, *_names(file))
        columns = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
        for line, row in enumerate(read_table(table, columns) if table else (), 2):
            assert table is not None
            start, end = (_seconds(row[key], table, line) for key in ("start_timestamp", "stop_timestamp"))
            if end <= start:
                raise DataError(f"{table} line {line}: the segment ends at {end:g} s, before {start:g} s; correct it")
            path, frames = where(row["video_id"])
            samples.append(
                Sample(
                    path=path,
                    start=start,
                    seconds=end - start,
                    speaker=row["participant_id"],
                    split=split,
                    name=row["narration_id"],
                    notes={head: _name(row, head, names[head], table, line) for head in HEADS}
                    | {"narration": row.get("narration") or ""},
                    frame_rate=rates.get(row["video_id"], _usual(row["video_id"])) if frames else 0.0,
                )
            )
    return samples


def _names(file: str) -> tuple[str, ...]:
    return tuple(below + file for below in BELOW)


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    path = needed(folder, *_names(f"EPIC_100_{head}_classes.csv"))
    rows = read_table(path, ("id", "key"))
    places = {int(number(row["id"], path, line, "id")): row["key"] for line, row in enumerate(rows, 2)}
    if sorted(places) != list(range(len(rows))):
        raise DataError(f"{path}: the ids are not 0 to {len(rows) - 1}; download it again")
    return tuple(places[i] for i in range(len(rows)))


def _name(row: dict[str, str], head: str, names: tuple[str, ...], table: Path, line: int) -> str:
    text = row.get(f"{head}_class") or ""
    if not text:
        return ""  # the test set keeps its labels back
    place = int(number(text, table, line, f"{head}_class"))
    if place >= len(names):
        raise DataError(f"{table} line {line}: {head}_class {place} is not below {len(names)}; take one release")
    return names[place]


def _seconds(text: str, table: Path, line: int) -> float:
    """``00:01:02.34`` in seconds."""
    match = TIME.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{table} line {line}: time {text!r} is not HH:MM:SS.SS; correct the row")
    hours, minutes, seconds = match.groups()
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 6)


def _video(folder: Path, video: str) -> tuple[Path, bool]:
    """Where a video lies, and whether it is a folder of frames."""
    person = video.split("_")[0]
    files = [f"{below}{video}{suffix}" for below in (f"{person}/videos/", f"{person}/") for suffix in (".MP4", ".mp4")]
    frames = [f"{person}/rgb_frames/{video}", f"rgb_frames/{person}/{video}", f"rgb_frames/{video}"]
    found = find(folder, *files)
    if found is None and (there := find(folder, *frames)):
        return there, True
    return found or folder / files[0], False


def _rates(folder: Path) -> dict[str, float]:
    """Pictures per second by video, where EPIC_100_video_info.csv lies beside the tables."""
    path = find(folder, *_names("EPIC_100_video_info.csv"))
    if path is None:
        return {}
    rows = read_table(path, ("video_id", "fps"))
    rates = {row["video_id"]: number(row["fps"], path, line, "fps") for line, row in enumerate(rows, 2)}
    stopped = [video for video, rate in rates.items() if not rate]
    if stopped:
        raise DataError(f"{path}: {stopped[0]} has 0 frames per second; correct the row")
    return rates


def _usual(video: str) -> float:
    return RATES[len(video.rpartition("_")[2]) > 2]


EPIC_KITCHENS = Reader(
    about=About(
        title="EPIC-KITCHENS-100 (Damen et al., IJCV 2022)",
        layout="[annotations/]EPIC_100_*.csv; P01/videos/P01_01.MP4 or P01/rgb_frames/P01_01/frame_0000000001.jpg",
        licence="CC BY-NC 4.0 (license.txt of epic-kitchens-100-annotations)",
        splits={"train": 67_217, "val": 9_668, "test": 13_092},
        classes=397,
        note="two heads: 300 nouns, 97 verbs",
    ),
    samples=list_samples,
    classes=_classes,
    heads=HEADS,
)
