"""ImageNet-1K: a thousand classes of photographs (Russakovsky et al., IJCV 2015).

Expects ``train/WNID/*.JPEG`` and ``val/``, in PATH or in Kaggle's PATH/ILSVRC/Data/CLS-LOC. The validation pictures lie
in a folder per class, or flat as ``ILSVRC2012_val_00000001.JPEG``; then their labels come from ``LOC_val_solution.csv``
(Kaggle), or from the devkit's ``ILSVRC2012_validation_ground_truth.txt`` together with ``meta.mat`` or
``map_clsloc.txt``, which tell what its numbers mean.

A label is a WordNet id (wnid). Classes are in alphabetical order of these, as in the public code; the devkit's own
numbers are in another order.
"""

from collections.abc import Iterator
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.matlab import read_structs
from encoders.datasets.sample import PICTURES, Sample, read_table
from encoders.datasets.tables import class_folders, class_names, find, number, read_lines
from encoders.errors import DataError

__all__ = ["IMAGENET", "list_samples"]

ROOTS = ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train")
DEVKITS = ("", "ILSVRC2012_devkit_t12/data/", "devkit/data/", "ILSVRC/devkit/data/")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def list_samples(folder: Path) -> list[Sample]:
    """All pictures of training and validation; the test set's labels are not public, it is not listed."""
    train = find(folder, *ROOTS)
    if train is None:
        raise DataError(f"{folder} holds no folder train; give the folder that holds ImageNet")
    samples = [*_by_folder(train, "train")]
    val = train.parent / "val"
    if val.is_dir():
        flat = sorted(p for p in val.iterdir() if p.suffix.lower() in PICTURES)
        samples += _flat(folder, flat) if flat else _by_folder(val, "val")
    return samples


def _by_folder(folder: Path, split: str) -> Iterator[Sample]:
    for wnid, files in class_folders(folder).items():
        for file in files:
            yield Sample(path=file, label=wnid, split=split, name=f"{split}/{file.stem}")


def _flat(folder: Path, files: list[Path]) -> Iterator[Sample]:
    """Validation pictures whose labels stand in a file of their own."""
    labels = _solution(folder) or _ground_truth(folder)
    for file in files:
        if file.stem not in labels:
            raise DataError(f"{file} has no label in the validation list; remove it, or take the whole list")
        yield Sample(path=file, label=labels[file.stem], split="val", name=f"val/{file.stem}")


def _solution(folder: Path) -> dict[str, str]:
    """Kaggle's list: picture, then its first box's wnid."""
    path = find(folder, "LOC_val_solution.csv")
    if path is None:
        return {}
    rows = read_table(path, ("ImageId", "PredictionString"))
    found = {row["ImageId"]: row["PredictionString"].split() for row in rows}
    empty = next((name for name, fields in found.items() if not fields), None)
    if empty is not None:
        raise DataError(f"{path}: {empty} has no class; download it again")
    return {name: fields[0] for name, fields in found.items()}


def _ground_truth(folder: Path) -> dict[str, str]:
    path = find(folder, *(below + GROUND_TRUTH for below in DEVKITS))
    if path is None:
        raise DataError(
            f"{folder} holds val/ without class folders, and neither LOC_val_solution.csv nor {GROUND_TRUTH}; "
            "add one of them, or sort the pictures into folders by wnid"
        )
    wnids = _numbers(path.parent)
    labels = {}
    for line, text in enumerate(read_lines(path), 1):
        place = int(number(text, path, line, "class"))
        if place not in wnids:
            raise DataError(f"{path} line {line}: class {place} has no wnid; take all files of one devkit")
        labels[f"ILSVRC2012_val_{line:08d}"] = wnids[place]
    return labels


def _numbers(devkit: Path) -> dict[int, str]:
    """The devkit's number of a class to its wnid."""
    if (devkit / "map_clsloc.txt").exists():
        rows = [line.split() for line in read_lines(devkit / "map_clsloc.txt")]
        return {int(number(row[1], devkit / "map_clsloc.txt", i, "class")): row[0] for i, row in enumerate(rows, 1)}
    if (devkit / "meta.mat").exists():
        try:
            records = read_structs(devkit / "meta.mat", "synsets")
            return {int(record["ILSVRC2012_ID"][0]): record["WNID"] for record in records}
        except (LookupError, TypeError, ValueError, OverflowError):
            raise DataError(f"{devkit / 'meta.mat'} lists no synsets; take the devkit of 2012") from None
    raise DataError(f"{devkit} holds {GROUND_TRUTH} without meta.mat or map_clsloc.txt; add the devkit's other files")


def _classes(folder: Path, head: str) -> tuple[str, ...]:
    train = find(folder, *ROOTS)
    return class_names(train) if train else ()


def _words(folder: Path) -> dict[str, str]:
    """Kaggle's names of the classes, where they are there."""
    path = find(folder, "LOC_synset_mapping.txt")
    lines = (line.split(maxsplit=1) for line in read_lines(path)) if path else ()
    return {wnid: rest[0] if rest else wnid for wnid, *rest in lines}


IMAGENET = Reader(
    about=About(
        title="ImageNet-1K (Russakovsky et al., IJCV 2015)",
        layout="train/WNID/*.JPEG; val/WNID/*.JPEG, or val/*.JPEG with LOC_val_solution.csv or the devkit of 2012",
        licence="non-commercial research, by agreement (image-net.org, download page)",
        splits={"train": 1_281_167, "val": 50_000},
        classes=1000,
        note="PolyViT trains on train[:99%] and validates on train[99%:]",
    ),
    samples=list_samples,
    classes=_classes,
    titles=_words,
)
