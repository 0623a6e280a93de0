"""Safetensors files, checked without torch: whole, of plain dtypes, and finite in every number."""

import json
import math
import os
from pathlib import Path

import numpy as np

MAX_HEADER = 16 << 20  # bytes
CHUNK = 1 << 22  # numbers looked at in one go

# dtype in the file -> numpy's; bfloat16, which numpy lacks, is looked at as the upper half of a float32
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "<u1",
}


def check_weights(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name.

    Raises:
        ValueError: half a sentence on what is wrong with the file: truncated, no safetensors, not finite.
        OSError: it cannot be read.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER:
            raise ValueError("is no safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise ValueError(f"is truncated inside its header ({size} bytes)")
    header = _header(text)
    end = max((stop for _, _, (_, stop) in header.values()), default=0)
    if size != 8 + length + end:
        what = "truncated" if size < 8 + length + end else "too long"
        raise ValueError(f"is {what}: {size} bytes instead of {8 + length + end}")
    for name, (dtype, _, (start, stop)) in header.items():
        if stop > start and not _finite(path, dtype, 8 + length + start, stop - start):
            raise ValueError(f"holds a number that is not finite in {name}")
    return {name: shape for name, (_, shape, _) in header.items()}


def _header(text: bytes) -> dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]:
    """name -> (dtype, shape, (start, stop) in bytes after the header)."""
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {name: _entry(name, **entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = f": {error}" if type(error) is ValueError else ""
        raise ValueError(f"has a damaged header{reason}") from None


def _entry(
    name: str, dtype: str, shape: list[int], data_offsets: list[int]
) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has the dtype {dtype}")
    start, stop = data_offsets
    if not 0 <= start <= stop or stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError(f"{name} of shape {shape} lies at {data_offsets}")
    return dtype, tuple(shape), (start, stop)


def _finite(path: Path, dtype: str, offset: int, size: int) -> bool:
    kind = np.dtype(_DTYPES[dtype])
    if kind.kind != "f" and dtype != "BF16":
        return True
    numbers = np.memmap(path, kind, "r", offset, (size // kind.itemsize,))
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        if dtype == "BF16":
            chunk = (chunk.astype("<u4") << 16).view("<f4")
        if not np.isfinite(chunk).all():
            return False
    return True
