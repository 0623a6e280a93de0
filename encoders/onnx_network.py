"""A network in an ONNX file, run by onnxruntime: arrays in, one array out.

It runs on the CPU, in one thread for a repeatable answer unless told otherwise. The file is data, and all of it:
operators that need code of their own, and tensors kept in other files, which no checksum would cover, are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from encoders.errors import DataError, MissingExtraError

__all__ = ["OnnxNetwork", "points_elsewhere"]

DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}


class OnnxNetwork:
    """One input, and one chosen output.

    ``shape`` is the input's: a whole number where the file fixes a size, None where it is free. Raises
    MissingExtraError without onnxruntime, DataError where the file is no such network.
    """

    def __init__(self, path: Path, output: str = "", *, threads: int = 1) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"ONNX file {path} cannot be read ({error.strerror}); name another") from None
        self._session = _session(data, path, threads)
        inputs, outputs = self._session.get_inputs(), [o.name for o in self._session.get_outputs()]
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise DataError(
                f"ONNX file {path} has {len(inputs)} inputs ({names}); export it with clips as the only one"
            )
        self.name, self.dtype = inputs[0].name, DTYPES.get(inputs[0].type)
        if self.dtype is None:
            raise DataError(f"ONNX file {path} takes {inputs[0].type}; export it for float32, float16 or uint8")
        if output and output not in outputs:
            raise DataError(f"ONNX file {path} has no output {output!r}; it has {', '.join(outputs)}")
        self.output = output or outputs[0]
        self.shape = tuple(size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(R, ...) to (R, ...), float32. A file whose first axis is fixed to one row is run row by row."""
        assert self.dtype is not None
        given = np.ascontiguousarray(batch.astype(self.dtype, copy=False))
        rows = [given[i : i + 1] for i in range(len(given))] if self.shape and self.shape[0] == 1 else [given]
        try:
            said = [self._session.run([self.output], {self.name: row})[0] for row in rows]
        except Exception as error:  # each of onnxruntime's is an Exception of its own, without a common one
            raise DataError(f"ONNX file {self.path} does not take {tuple(batch.shape)}: {_first(error)}") from None
        whole: np.ndarray = np.concatenate(said).astype(np.float32)
        return whole

    def __deepcopy__(self, memo: Any) -> "OnnxNetwork":
        return self  # it holds nothing that a copy could change


# Where tensors can be in an ONNX file, by message: field numbers of onnx.proto and the messages they hold.
PARTS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
EXTERNAL_DATA = 13  # field of a tensor that names another file


def points_elsewhere(data: bytes) -> bool:
    """Whether a tensor of an ONNX file is kept in another file. Raises ValueError where the bytes are no message."""
    waiting: list[tuple[memoryview, str]] = [(memoryview(data), "model")]
    while waiting:
        message, kind = waiting.pop()
        for number, content in _fields(message):
            if kind == "tensor" and number == EXTERNAL_DATA:
                return True
            if content is not None and number in PARTS[kind]:
                waiting.append((content, PARTS[kind][number]))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Field numbers of a protocol buffer message, with the bytes of those that have a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, size = tag & 7, {1: 8, 5: 4}.get(tag & 7, 0)
        if kind in (0, 2):
            size, at = _varint(message, at)
        elif not size:
            raise ValueError(f"wire type {kind}")
        if kind == 0:
            size = 0
        if at + size > len(message):
            raise ValueError("cut short")
        yield tag >> 3, message[at : at + size] if kind == 2 else None
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("cut short")
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a number without end")


def _session(data: bytes, path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError(
            "an encoder in an ONNX file needs onnxruntime; install it with: pip install 'legato[onnx]'"
        ) from None
    try:
        elsewhere = points_elsewhere(data)
    except ValueError as error:
        raise DataError(f"ONNX file {path} is no whole network ({error}); export it again") from None
    if elsewhere:
        raise DataError(f"ONNX file {path} keeps tensors in other files; save it as one file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads need the core
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see above
        raise DataError(f"ONNX file {path} is no whole network ({_first(error)}); export it again") from None


def _first(error: Exception) -> str:
    """The first line of onnxruntime's message, without its code."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.rpartition(" : ")[2].rstrip(". ")[:160]
