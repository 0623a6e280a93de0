"""MessagePack as Flax writes it, read from hostile bytes: maps, text, numbers and arrays of numbers.

Arrays are views of the file and are never copied here, so that what a file makes us allocate stays in proportion to
its length. Extension 1 holds an array, 3 a scalar: shape, name of the dtype, bytes in C order. Flax cuts an array of
more than 2**30 bytes into flat chunks, which are put together again.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["unpack"]

MAX_DEPTH = 64
MAX_VALUES = 2_000_000  # of a checkpoint's few thousand; optimizer state holds as many again
CHUNKED = "__msgpack_chunked_array__"
ARRAY, SCALAR = 1, 3  # extension types of flax.serialization; 2 is a complex number, which no weights are

DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("float64", "float32", "float16", "bool", "int64", "int32", "int16", "int8"),
        *("uint64", "uint32", "uint16", "uint8"),
    )
}

# first byte -> (struct format of what follows, or of the length of what follows)
NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
           0xD3: ">q"}  # fmt: skip
BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
LISTS = {0xDC: ">H", 0xDD: ">I"}
MAPS = {0xDE: ">H", 0xDF: ">I"}
EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: "memoryview | bytes") -> Any:
    """The one value in ``data``: dicts, lists, text, bytes, numbers, arrays. Raises ValueError, as half a sentence."""
    reader = _Reader(memoryview(data).cast("B"))
    value = reader.value(0)
    if reader.left():
        raise ValueError(f"goes on for {reader.left()} bytes after its end")
    return value


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.values = data, 0, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        if count > self.left():
            raise ValueError(f"ends at byte {len(self.data)}, {count - self.left()} short of what it announces")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def value(self, depth: int) -> Any:
        """The next value, whatever it is."""
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise ValueError(f"nests deeper than {MAX_DEPTH} or holds more than {MAX_VALUES} values")
        start, first = self.at, self.number(">B")
        if first < 0x80 or first >= 0xE0:  # a small number is its own byte
            return first if first < 0x80 else first - 0x100
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBERS:
            return self.number(NUMBERS[first])
        if first in FIXED_EXTENSIONS:
            return self.extension(FIXED_EXTENSIONS[first], depth)
        for codes, fixed, mask, read in self.sized():
            if first in codes or (fixed is not None and first & ~mask == fixed):
                return read(self.number(codes[first]) if first in codes else first & mask, depth)
        raise ValueError(f"has the byte 0x{first:02x} at {start}, which begins nothing")

    def sized(self) -> "tuple[tuple[dict[int, str], int | None, int, Callable[[int, int], Any]], ...]":
        """What begins with a length: its first bytes, those that hold the length themselves, and how to read it."""
        return (
            (MAPS, 0x80, 0x0F, self.mapping),
            (LISTS, 0x90, 0x0F, self.sequence),
            (TEXTS, 0xA0, 0x1F, self.text),
            (BYTES, None, 0, lambda count, depth: bytes(self.take(count))),
            (EXTENSIONS, None, 0, self.extension),
        )

    def text(self, count: int, depth: int) -> str:
        return str(self.take(count), "utf-8")  # UnicodeDecodeError is a ValueError

    def sequence(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def mapping(self, count: int, depth: int) -> Any:
        out: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            key = str(key, "utf-8") if isinstance(key, bytes) else key  # as older versions wrote text
            if not isinstance(key, str) or key in out:
                raise ValueError(f"has a map with the key {str(key)[:60]!r} twice" if isinstance(key, str) else
                                 f"has a map whose key is a {type(key).__name__}, not text")  # fmt: skip
            out[key] = self.value(depth + 1)
        return _joined(out) if CHUNKED in out else out

    def extension(self, count: int, depth: int) -> Any:
        kind, body = self.number(">b"), self.take(count)
        if kind not in (ARRAY, SCALAR):
            raise ValueError(f"holds a value of extension type {kind}, which is no array")
        inner = _Reader(body)
        if inner.number(">B") != 0x93:
            raise ValueError("holds an array that is not shape, dtype and bytes")
        shape, name = inner.value(MAX_DEPTH - 4), inner.value(MAX_DEPTH - 4)
        array = _array(shape, name, inner.raw())
        return array[()] if kind == SCALAR and not array.shape else array

    def raw(self) -> memoryview:
        """Bytes that are looked at where they are."""
        first = self.number(">B")
        if first in BYTES or first in TEXTS:  # TEXTS: as older versions wrote bytes
            return self.take(self.number(BYTES.get(first) or TEXTS[first]))
        if first & 0xE0 == 0xA0:
            return self.take(first & 0x1F)
        raise ValueError("holds an array without bytes")


def _array(shape: Any, name: Any, raw: memoryview) -> np.ndarray:
    name = str(name, "ascii", "replace") if isinstance(name, bytes) else name
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"holds an array of shape {str(shape)[:60]}")
    dtype = np.dtype("<u2") if name == "bfloat16" else DTYPES.get(str(name))
    if dtype is None:
        raise ValueError(f"holds an array of {str(name)[:60]!r}, which are no numbers we know")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"holds an array of shape {tuple(shape)} and {name} in {len(raw)} bytes")
    array = np.frombuffer(raw, dtype).reshape(shape)
    return widened(array) if name == "bfloat16" else array


def widened(halves: np.ndarray) -> np.ndarray:
    """bfloat16, given as its bits in uint16, as float32: the same sign, exponent and leading bits."""
    return (halves.astype("<u4") << np.uint32(16)).view("<f4")


def _joined(parts: dict[str, Any]) -> np.ndarray:
    """A chunked array in one piece."""
    shape, chunks = (_in_order(parts.get(name)) for name in ("shape", "chunks"))
    if not all(isinstance(chunk, np.ndarray) and chunk.ndim == 1 for chunk in chunks) or not chunks:
        raise ValueError("holds a chunked array whose chunks are no flat arrays")
    sizes = [int(n) for n in shape if isinstance(n, int | np.integer) and 0 <= n < 1 << 48]
    if len(sizes) != len(shape) or len(shape) > 16 or math.prod(sizes) != sum(map(len, chunks)):
        raise ValueError(f"holds a chunked array of shape {str(shape)[:60]} with {sum(map(len, chunks))} numbers")
    return np.concatenate(chunks).reshape(sizes)


def _in_order(numbered: Any) -> list[Any]:
    if not isinstance(numbered, dict) or set(numbered) != {str(i) for i in range(len(numbered))}:
        raise ValueError("holds a chunked array whose parts are not numbered from 0")
    return [numbered[str(i)] for i in range(len(numbered))]
