"""AViD: anonymised videos from diverse countries (Piergiovanni and Ryoo, NeurIPS 2020).

Expects ``avid_train.json`` and ``avid_val.json`` (a dict from file name to label), in PATH or PATH/dataset, and the
videos flat or in folders below PATH. Videos of no action carry the label ``none``, which is a class here as well.

Classes are in alphabetical order.
"""

from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import Files, needed, read_json
from encoders.errors import DataError

__all__ = ["AVID", "list_samples"]

LISTS = {"train": "avid_train.json", "val": "avid_val.json"}


def list_samples(folder: Path) -> list[Sample]:
    """All videos of both lists."""
    lists = {split: needed(folder, name, f"dataset/{name}") for split, name in LISTS.items()}
    files = Files([folder])
    samples = []
    for split, path in lists.items():
        for file, label in read_json(path, dict).items():
            if not isinstance(label, str):
                raise DataError(f"{path}: the label of {file} is {label!r}, not a name; download it again")
            name = Path(file).stem
            there = files.get(name) or folder / Path(file).name
            samples.append(Sample(path=there, label=label, split=split, name=name))
    return samples


AVID = Reader(
    about=About(
        title="AViD (Piergiovanni and Ryoo, NeurIPS 2020)",
        layout="[dataset/]avid_train.json, avid_val.json; NAME.mp4 anywhere below",
        licence="MIT for the dataset, Creative Commons for its videos (the repository piergiaj/AViD)",
        splits={"train": 410_000, "val": 40_000},
        classes=887,
        note="sizes are the paper's, rounded; 887 actions, and none",
    ),
    samples=list_samples,
)
