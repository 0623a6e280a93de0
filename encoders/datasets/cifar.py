"""CIFAR-10 and CIFAR-100: pictures of 32 x 32 pixels (Krizhevsky, 2009).

Expects the *binary version*: ``cifar-10-batches-bin/`` with ``data_batch_1.bin`` to ``data_batch_5.bin``,
``test_batch.bin`` and ``batches.meta.txt``; ``cifar-100-binary/`` with ``train.bin``, ``test.bin``,
``fine_label_names.txt`` and ``coarse_label_names.txt``; or PATH is that folder. A record is one byte of label
(CIFAR-100: coarse, then fine) and 3072 bytes of red, green and blue planes. The Python version is a pickle, which is
never opened.

Classes are in the order of the files of names; CIFAR-100's label is the fine one, the coarse one is a note.
"""

from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import find, read_lines
from encoders.errors import DataError

__all__ = ["CIFAR_10", "CIFAR_100", "PIXELS", "list_10", "list_100"]

PIXELS = 3 * 32 * 32  # bytes of a picture
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
WHOLE = {"train": ["train.bin"], "test": ["test.bin"]}
# what the Python version of a set looks like, by the binary archive that is to be taken instead
PICKLES = {
    "cifar-10-binary.tar.gz": ("data_batch_1", "cifar-10-batches-py"),
    "cifar-100-binary.tar.gz": ("train", "cifar-100-python"),
}


def list_10(folder: Path) -> list[Sample]:
    """All pictures of CIFAR-10."""
    home = _home(folder, "cifar-10-batches-bin", "test_batch.bin", "cifar-10-binary.tar.gz")
    names = read_lines(home / "batches.meta.txt")
    return [
        Sample(path=path, label=_name(names, labels[0], path), split=split, name=f"{path.stem}#{i}", raw_at=at)
        for split, files in BATCHES.items()
        for path in (home / file for file in files)
        for i, (labels, at) in enumerate(_records(path, 1))
    ]


def list_100(folder: Path) -> list[Sample]:
    """All pictures of CIFAR-100."""
    home = _home(folder, "cifar-100-binary", "test.bin", "cifar-100-binary.tar.gz")
    coarse, fine = (read_lines(home / f"{kind}_label_names.txt") for kind in ("coarse", "fine"))
    return [
        Sample(
            path=path,
            label=_name(fine, labels[1], path),
            split=split,
            name=f"{path.stem}#{i}",
            notes={"coarse": _name(coarse, labels[0], path)},
            raw_at=at,
        )
        for split, files in WHOLE.items()
        for path in (home / file for file in files)
        for i, (labels, at) in enumerate(_records(path, 2))
    ]


def _home(folder: Path, below: str, file: str, archive: str) -> Path:
    found = find(folder, f"{below}/{file}", file)
    if found is not None:
        return found.parent
    if find(folder, *PICKLES[archive]) is not None:
        raise DataError(f"{folder} holds the Python version, a pickle, which is not opened; unpack {archive} instead")
    raise DataError(f"{folder} holds no {below}; unpack {archive} there")


def _records(path: Path, labels: int) -> list[tuple[bytes, int]]:
    """Label bytes of each record, and the byte where its picture begins."""
    size = labels + PIXELS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); unpack the archive again") from None
    if not data or len(data) % size:
        raise DataError(f"{path} has {len(data)} bytes, which is no whole number of {size}; unpack the archive again")
    return [(data[at : at + labels], at + labels) for at in range(0, len(data), size)]


def _name(names: list[str], place: int, path: Path) -> str:
    if place >= len(names):
        raise DataError(f"{path}: label {place} is not below {len(names)}; unpack the archive again")
    return names[place]


def _classes_10(folder: Path, head: str) -> tuple[str, ...]:
    home = _home(folder, "cifar-10-batches-bin", "test_batch.bin", "cifar-10-binary.tar.gz")
    return tuple(read_lines(home / "batches.meta.txt"))


def _classes_100(folder: Path, head: str) -> tuple[str, ...]:
    home = _home(folder, "cifar-100-binary", "test.bin", "cifar-100-binary.tar.gz")
    return tuple(read_lines(home / "fine_label_names.txt"))


def _about(title: str, layout: str, classes: int) -> About:
    return About(
        title=title,
        layout=layout,
        licence="no licence stated; cite the report (the CIFAR page at the University of Toronto)",
        splits={"train": 50_000, "test": 10_000},
        classes=classes,
        note="PolyViT trains on train[:98%] and validates on train[98%:]",
    )


CIFAR_10 = Reader(
    about=_about("CIFAR-10 (Krizhevsky, 2009)", "cifar-10-batches-bin/data_batch_1.bin, ..., batches.meta.txt", 10),
    samples=list_10,
    classes=_classes_10,
)
CIFAR_100 = Reader(
    about=_about("CIFAR-100 (Krizhevsky, 2009)", "cifar-100-binary/train.bin, test.bin, fine_label_names.txt", 100),
    samples=list_100,
    classes=_classes_100,
)
