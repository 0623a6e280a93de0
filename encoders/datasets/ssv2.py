"""Something-Something v2: basic actions with everyday objects, told by templates (Goyal et al., ICCV 2017).

Expects ``train.json``, ``validation.json``, ``test.json`` and ``labels.json`` in PATH or PATH/labels (or their older
names, ``something-something-v2-train.json`` and so on), and videos ``ID.webm`` in ``20bn-something-something-v2/`` or
``videos/``. The label is the template without its brackets; the test set has none.

Classes are in the order of labels.json. Labels depend on direction: do not mirror these videos.
"""

from pathlib import Path
from typing import Any

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import Files, find, needed, read_json
from encoders.errors import DataError

__all__ = ["SSV2", "list_samples"]

LISTS = {"train": "train", "val": "validation", "test": "test"}
VIDEOS = ("20bn-something-something-v2", "videos")


def _names(name: str) -> tuple[str, ...]:
    return tuple(f"{below}{old}{name}.json" for below in ("", "labels/") for old in ("", "something-something-v2-"))


def list_samples(folder: Path) -> list[Sample]:
    """All videos; the narration is kept as a note."""
    clips = find(folder, *VIDEOS) or folder / VIDEOS[0]
    files = Files([clips])
    samples = []
    for split, name in LISTS.items():
        path = find(folder, *_names(name)) if split == "test" else needed(folder, *_names(name))
        for place, entry in enumerate(read_json(path, list) if path else ()):
            name, label, told = _entry(entry, path, place, split)
            there = files.get(name) or clips / f"{name}.webm"
            samples.append(Sample(path=there, label=label, split=split, name=name, notes={"narration": told}))
    return samples


def _entry(entry: Any, path: Path | None, place: int, split: str) -> tuple[str, str, str]:
    """Id, template and narration of one video."""
    try:
        name, template = str(entry["id"]), entry["template"] if split != "test" else ""
        return name, template.replace("[", "").replace("]", ""), str(entry.get("label", ""))
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: entry {place} lacks an id or a template; download it again") from None


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    path = needed(folder, *_names("labels"))
    try:
        places = {name: int(place) for name, place in read_json(path, dict).items()}
    except (TypeError, ValueError):
        raise DataError(f"{path}: a label's index is not a whole number; download it again") from None
    if sorted(places.values()) != list(range(len(places))):
        raise DataError(f"{path}: the indices are not 0 to {len(places) - 1}; download it again")
    return tuple(sorted(places, key=places.__getitem__))


SSV2 = Reader(
    about=About(
        title="Something-Something v2 (Goyal et al., ICCV 2017)",
        layout="labels/train.json, validation.json, test.json, labels.json; 20bn-something-something-v2/ID.webm",
        licence="academic use, by agreement (Something-Something v2 page at Qualcomm)",
        splits={"train": 168_913, "val": 24_777, "test": 27_157},
        classes=174,
        note="never mirrored: labels depend on direction",
    ),
    samples=list_samples,
    classes=_classes,
)
