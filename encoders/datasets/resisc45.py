"""NWPU-RESISC45: scenes seen from above (Cheng, Han and Lu, Proceedings of the IEEE 2017).

Expects ``CLASS/CLASS_001.jpg`` in PATH or PATH/NWPU-RESISC45. The set has no official splits: the first 60 % in the
order of a hash of the pictures' names are train, the next 20 % val, the last 20 % test (PolyViT's shares), the same on
every machine.

Classes are in alphabetical order.
"""

from dataclasses import replace
from pathlib import Path

from encoders.datasets.corpus import About, Reader, shuffled
from encoders.datasets.sample import Sample
from encoders.datasets.tables import class_folders, find

__all__ = ["RESISC45", "list_samples"]


def list_samples(folder: Path) -> list[Sample]:
    """All pictures, in alphabetical order."""
    home = find(folder, "NWPU-RESISC45") or folder
    found = [
        Sample(path=file, label=label, name=f"{label}/{file.stem}")
        for label, files in class_folders(home).items()
        for file in files
    ]
    first, second = len(found) * 60 // 100, len(found) * 80 // 100
    splits = {
        sample.id: "train" if place < first else "val" if place < second else "test"
        for place, sample in enumerate(shuffled(found))
    }
    return [replace(sample, split=splits[sample.id]) for sample in found]


RESISC45 = Reader(
    about=About(
        title="NWPU-RESISC45 (Cheng et al., Proceedings of the IEEE 2017)",
        layout="[NWPU-RESISC45/]CLASS/CLASS_001.jpg",
        licence="research, no licence stated (the authors' page)",
        splits={"train": 18_900, "val": 6_300, "test": 6_300},
        classes=45,
        note="splits by our rule: 60, 20 and 20 %",
    ),
    samples=list_samples,
)
