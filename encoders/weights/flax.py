"""Files of the public JAX code, read without JAX, Flax or pickle: the parameters by path, as plain arrays.

Two kinds of file: Flax's MessagePack (what scenic saves as ``checkpoint_N``) and flat ``npz`` archives whose names
are paths (what image ViTs were published as). Either holds bare parameters, or a training state around them; the
optimizer's moments, the step and the random state are left out, and named in ``Flax.without``.
"""

import math
import mmap
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from encoders.errors import DataError
from encoders.weights.message_pack import unpack, widened

__all__ = ["Flax", "read_flax"]

MAX_UNPACKED = 1 << 30  # bytes that any archive may unpack to; a larger file, RATIO times its length
RATIO = 20
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes
# Where a training state keeps its parameters: new scenic, old scenic (flax.optim), image ViTs, and a bare tree that
# was wrapped as Flax modules take it.
STATES = (("params",), ("optimizer", "target"), ("opt", "target"), ("target",))


@dataclass(frozen=True)
class Flax:
    """A checkpoint's parameters: ``arrays`` by path ("Transformer/encoder_norm/scale"), and what was left out."""

    arrays: Mapping[str, np.ndarray]
    without: tuple[str, ...] = ()


def read_flax(path: Path) -> Flax:
    """The parameters of a MessagePack or npz file. Raises DataError, in one sentence, where it is neither."""
    try:
        tree = _nested(_npz(path)) if zipfile.is_zipfile(path) else _message(path)
        if not isinstance(tree, dict):
            raise ValueError("holds no tree of parameters")
        inside, without = _parameters(tree)
        arrays = dict(_flat(inside))
    except OSError as error:
        raise DataError(f"{path} could not be read ({error.strerror or error}); name a checkpoint file") from None
    except (ValueError, MemoryError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        why = str(error) or "needs more memory than there is"
        raise DataError(f"{path} {why}; give a whole Flax msgpack or npz checkpoint") from None
    if not arrays:
        raise DataError(f"{path} holds no arrays; give a checkpoint of weights")
    return Flax(arrays, without)


def _message(path: Path) -> Any:
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError("is empty")
        return unpack(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


# --- npz --------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.filename.endswith("data.pkl") for member in members):
            raise ValueError("is a pickle of torch, which is not read")
        unpacked = sum(member.file_size for member in members)
        if unpacked > max(MAX_UNPACKED, RATIO * size):
            raise ValueError(f"would unpack from {size} to {unpacked} bytes")
        return {member.filename.removesuffix(".npy"): _npy(archive, member) for member in members}


def _npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array; its announced size is held against the archive's before anything is allocated."""
    name = member.filename[-80:]
    if not name.endswith(".npy") or member.flag_bits & 1 or member.compress_type not in PLAIN:
        raise ValueError(f"holds {name!r}, which is no plain array")
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, name)
        expected = math.prod(shape) * dtype.itemsize
        if expected > member.file_size or len(shape) > 16:
            raise ValueError(f"holds {name!r} of shape {str(shape)[:60]} in {member.file_size} bytes")
        raw = file.read(expected)
    if len(raw) != expected:
        raise ValueError(f"is cut inside {name!r}")
    array = np.frombuffer(raw, np.dtype("<u2") if dtype.kind == "V" else dtype)
    array = widened(array) if dtype.kind == "V" else array  # numpy has no name for bfloat16 and calls it 2 void bytes
    return array.reshape(shape, order="F" if fortran else "C")


# As NumPy writes it. Its own reader evaluates the header as Python, which hostile text can break in many ways.
HEADER = re.compile(
    r"\{'descr': '([<>|=]?[a-zA-Z]\d{0,2})', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), *\} *\n"
)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype."""
    start = file.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start, 0)
    length = int.from_bytes(file.read(width), "little")
    match = HEADER.fullmatch(file.read(min(length, 4096)).decode("latin-1"))
    if match is None:
        raise ValueError(f"holds {name!r}, which is no plain array")
    code, fortran, sides = match.groups()
    try:
        dtype, shape = np.dtype(code), tuple(int(side) for side in sides.split(",") if side.strip())
    except (ValueError, TypeError):
        raise ValueError(f"holds {name!r}, which is no plain array") from None
    if dtype.kind not in "fiub" and code != "|V2":
        raise ValueError(f"holds objects instead of numbers in {name!r}")
    return shape, fortran == "True", dtype


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``{"a/b": x}`` to ``{"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        *folders, last = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise ValueError(f"holds {path[:80]!r} below something that is an array itself")
        if last in inner:
            raise ValueError(f"holds {path[:80]!r} twice")
        inner[last] = array
    return tree


# --- the tree ---------------------------------------------------------------------------------------------------


def _parameters(tree: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters inside a training state, and the names of what else is there.

    Statistics of normalisation layers (``model_state``) are no optimizer's, so they are kept, for a table to place or
    refuse.
    """
    without: list[str] = []
    kept = {"model_state": tree["model_state"]} if _has_arrays(tree.get("model_state")) else {}
    for _ in range(4):  # {"optimizer": {"target": {"params": ...}}} is the deepest there is
        state = next((s for s in STATES if isinstance(_at(tree, s), dict)), None)
        if state is None:
            break
        for step in state:
            without += [name for name in tree if name not in (step, "model_state")]
            tree = tree[step]
    return {**tree, **kept}, tuple(without)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree


def _has_arrays(tree: Any) -> bool:
    return isinstance(tree, dict) and any(True for _ in _flat(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray | np.generic):
            yield f"{prefix}{name}", np.asarray(value)
        elif value is not None:
            raise ValueError(f"holds {type(value).__name__} instead of an array at {prefix[:80]}{name[:80]}")
