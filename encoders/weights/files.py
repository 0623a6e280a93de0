"""A published checkpoint as arrays by name, whichever kind of file it is; the kind is told by its first bytes.

Pickles are not read. A folder is one that `transformers` saved.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders.errors import DataError
from encoders.weights.flax import read_flax

__all__ = ["Published", "read"]

SAVE_AGAIN = "save it as safetensors (save_pretrained does) and give that"


@dataclass(frozen=True)
class Published:
    """A file's parameters, its layout (a key of `tables.LAYOUTS`), and the names of what was not read."""

    arrays: Mapping[str, np.ndarray]
    layout: str
    without: tuple[str, ...] = ()


def read(path: Path) -> Published:
    """The parameters in ``path``. Raises DataError, in one sentence, where it is no checkpoint we read."""
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        with open(file, "rb") as opened:
            start = opened.read(16)
    except OSError as error:
        way_out = "name a Flax msgpack or npz file, or a folder or safetensors file of transformers"
        raise DataError(f"{file} could not be read ({error.strerror}); {way_out}") from None
    if (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or _of_torch(file):
        raise DataError(f"{file} is a pickle, which is not read; {SAVE_AGAIN}")
    if start[8:9] == b"{":
        return Published(_safetensors(file), "huggingface")
    found = read_flax(file)
    return Published(found.arrays, "scenic", found.without)


def _of_torch(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # not of torch; what it is instead is said where it is read


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{file} is no whole safetensors file ({why}); download it again") from None
    if not tensors:
        raise DataError(f"{file} holds no arrays; give a checkpoint of weights")
    # NumPy has no bfloat16; float32 holds every one of its numbers.
    return {k: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for k, v in tensors.items()}
