"""Oxford-IIIT Pets: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012).

Expects ``images/Abyssinian_100.jpg`` and ``annotations/trainval.txt`` and ``test.txt`` (name, class from 1, species,
breed within the species); ``annotations/list.txt``, where it is there, must agree with them. The label is the name
without its number. The public split ``trainval`` is called train here.

Classes are in the order of their numbers.
"""

from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import find, needed, number, read_lines
from encoders.errors import DataError

__all__ = ["PETS", "list_samples"]

SPLITS = {"train": "trainval.txt", "test": "test.txt"}
SPECIES = {1: "cat", 2: "dog"}


def list_samples(folder: Path) -> list[Sample]:
    """All pictures of both splits."""
    samples = []
    for split, file in SPLITS.items():
        for name, _, species in _rows(needed(folder, f"annotations/{file}")):
            samples.append(
                Sample(
                    path=folder / "images" / f"{name}.jpg",
                    label=_breed(name),
                    split=split,
                    name=name,
                    notes={"species": SPECIES.get(species, str(species))},
                )
            )
    return samples


def _breed(name: str) -> str:
    return name.rpartition("_")[0]


def _rows(path: Path) -> list[tuple[str, int, int]]:
    """Name, class and species of each line that is no comment."""
    rows = []
    for line, text in enumerate(read_lines(path), 1):
        if text.startswith("#"):
            continue
        fields = text.split()
        if len(fields) != 4 or not _breed(fields[0]):
            raise DataError(f"{path} line {line}: {text!r} is not NAME_NUMBER CLASS SPECIES BREED; download it again")
        place, species = (int(number(field, path, line, "number")) for field in fields[1:3])
        rows.append((fields[0], place, species))
    return rows


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    paths = [needed(folder, f"annotations/{file}") for file in SPLITS.values()]
    everything = find(folder, "annotations/list.txt")
    names: dict[int, str] = {}
    for path in (*paths, *([everything] if everything else [])):
        for name, place, _ in _rows(path):
            if names.setdefault(place, _breed(name)) != _breed(name):
                raise DataError(f"{path}: class {place} is {_breed(name)} and {names[place]}; take one release's files")
    return tuple(names[place] for place in sorted(names))


PETS = Reader(
    about=About(
        title="Oxford-IIIT Pets (Parkhi et al., CVPR 2012)",
        layout="images/NAME.jpg; annotations/trainval.txt, test.txt, list.txt",
        licence="CC BY-SA 4.0 (the dataset's page at Oxford VGG)",
        splits={"train": 3_680, "test": 3_669},
        classes=37,
        note="PolyViT trains on train[:90%] and validates on train[90%:]",
    ),
    samples=list_samples,
    classes=_classes,
)
