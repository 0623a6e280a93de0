"""Struct arrays from a MATLAB 5 file: as much of the format as ImageNet's ``meta.mat`` uses (numpy only).

A file is a header of 128 bytes and then elements, each a type, a length and its bytes, on a grid of 8 bytes; up to 4
bytes travel inside the tag. A matrix is an element of elements: class, shape, name, and its values; a struct's values
are matrices. See the MAT-File Format document, chapter on level 5 files.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from encoders.errors import DataError

__all__ = ["read_structs"]

Record: TypeAlias = dict[str, Any]
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXT = {16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
MATRIX, COMPRESSED = 14, 15
STRUCT, CHAR = 2, 4  # classes of matrices
_DEEPEST = 8  # structs within structs
_LARGEST = 64 << 20  # bytes of one unpacked element


def read_structs(path: Path, name: str) -> list[Record]:
    """The records of the struct array ``name``: text as str, numbers as arrays. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder that holds the dataset") from None
    if data[124:128] != b"\x00\x01IM":
        raise DataError(f"{path} is no MATLAB 5 file (little endian); download it again")
    try:
        for kind, body in _elements(data[128:], 0):
            found, value = _matrix(body, 0) if kind == MATRIX else ("", None)
            if found == name and isinstance(value, list):
                return value
    except (struct.error, zlib.error, ValueError, TypeError, OverflowError, LookupError, StopIteration):
        raise DataError(f"{path} is damaged; download it again") from None
    raise DataError(f"{path} holds no struct array {name}; take it from the dataset's own archive")


def _elements(data: bytes, depth: int) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each element; what is compressed is unpacked."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind >> 16:  # the short form: length and type share four bytes
            kind, length = kind & 0xFFFF, kind >> 16
            body, at = data[at + 4 : at + 4 + length], at + 8
        else:
            body = data[at + 8 : at + 8 + length]
            at += 8 + length + (-length % 8 if kind != COMPRESSED else 0)
        if len(body) != length:
            raise ValueError
        if kind != COMPRESSED:
            yield kind, body
        elif depth:  # never within another element
            raise ValueError
        else:
            yield from _elements(zlib.decompressobj().decompress(body, _LARGEST), 1)


def _matrix(data: bytes, depth: int) -> tuple[str, Any]:
    """Name and value; None where the class is of no use here."""
    if depth > _DEEPEST:
        raise ValueError
    if not data:
        return "", None
    elements = _elements(data, 1)
    flags, shape, name = [next(elements)[1] for _ in range(3)]  # a list: a generator would swallow the end
    kind = flags[0]
    count = int(np.prod(np.frombuffer(shape, "<i4")))
    label = name.decode("ascii")
    if kind == STRUCT:
        return label, _records(elements, count, depth)
    if kind == CHAR:
        return label, _text(next(elements, (1, b"")))
    if 6 <= kind <= 15:
        values, body = next(elements, (1, b""))
        return label, np.frombuffer(body, f"<{NUMBERS[values]}")
    return label, None


def _records(elements: Iterator[tuple[int, bytes]], count: int, depth: int) -> list[Record]:
    width = int(np.frombuffer(next(elements)[1], "<i4")[0])
    packed = next(elements)[1]
    if width < 1 or not packed:
        raise ValueError  # records without fields, as many as one likes
    fields = [packed[i : i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(packed), width)]
    return [{field: _matrix(next(elements)[1], depth + 1)[1] for field in fields} for _ in range(count)]


def _text(element: tuple[int, bytes]) -> str:
    kind, body = element
    if kind in TEXT:
        return body.decode(TEXT[kind])
    return "".join(chr(value) for value in np.frombuffer(body, f"<{NUMBERS[kind]}"))
