"""ONNX files, written by hand: a few nodes and their constants as protocol buffer bytes, without the onnx package.

Field numbers are those of onnx.proto3 (ONNX, IR version 8, operators of opset 17).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FLOAT, INT64 = 1, 7


def network(
    path: Path,
    shape: Sequence[int | str],
    nodes: Sequence[tuple[str, Sequence[str], str, Mapping[str, int]]],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    dtype: int = FLOAT,
) -> Path:
    """A graph from the input ``x``; a node is (operator, inputs, output, whole-number attributes)."""
    graph = b"".join(_bytes(1, _node(*node)) for node in nodes)
    graph += _bytes(2, b"graph")
    graph += b"".join(_bytes(5, _constant(name, value)) for name, value in (constants or {}).items())
    graph += _bytes(11, _value("x", shape, dtype)) + b"".join(_bytes(12, _value(name, None, FLOAT)) for name in outputs)
    path.write_bytes(_number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17)))
    return path


def kept_in(path: Path, file: str) -> Path:
    """Adds the constant ``w`` (3, 4) to a graph, its numbers in another file."""
    place = _bytes(13, _bytes(1, b"location") + _bytes(2, file.encode()))
    tensor = _number(1, 3) + _number(1, 4) + _number(2, FLOAT) + _bytes(8, b"w") + place + _number(14, 1)
    path.write_bytes(path.read_bytes() + _bytes(7, _bytes(5, tensor)))  # repeated messages are merged
    return path


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, int]) -> bytes:
    numbers = (_bytes(5, _bytes(1, k.encode()) + _number(3, v) + _number(20, 2)) for k, v in attributes.items())
    return b"".join(
        [*(_bytes(1, i.encode()) for i in inputs), _bytes(2, output.encode()), _bytes(4, kind.encode()), *numbers]
    )


def _constant(name: str, value: np.ndarray) -> bytes:
    kind = INT64 if value.dtype == np.int64 else FLOAT
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, kind) + _bytes(8, name.encode()) + _bytes(9, value.tobytes())


def _value(name: str, shape: Sequence[int | str] | None, dtype: int) -> bytes:
    kind = _number(1, dtype)
    if shape is not None:
        sizes = (_bytes(2, s.encode()) if isinstance(s, str) else _number(1, s) for s in shape)
        kind += _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, kind))
