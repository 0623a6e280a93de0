"""Packet recordings (``*.legato``): every packet with its arrival time, and the decisions taken along the way.

The file is eight magic bytes, then frames: a marker, the length and the CRC-32 of a record, and the record itself, a
protobuf ``legato.v1.RecordingRecord``. The first record is the header. A frame that is cut short or altered fails its
check; reading goes on at the next marker whose frame passes. So a file cut at any byte replays up to its last whole
packet, and a flipped bit costs one record, which is then simply a lost packet (tests/test_recording.py).

Recordings hold what people said and showed: files are readable by their owner only.
"""

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from protos import stream_pb2 as pb
from runtime.closing import Closing
from runtime.errors import OutputError, RecordingError
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.serve.convert import (
    MODALITY_FROM_WIRE,
    build,
    codec_from_wire,
    codec_to_wire,
    finite,
    fraction,
    modality_to_wire,
    packet_from_wire,
    packet_to_wire,
    rational,
    text,
)

SUFFIX = ".legato"
FORMAT_VERSION = 1
MAGIC = b"\x89LEGATO\n"  # the first byte is no text, the last shows a line-end conversion
MARKER = b"\xa7Lr\x1e"  # starts each frame, so that reading can find its way back
FRAME = struct.Struct("<4sII")  # marker, bytes of the record, CRC-32 of length and record
DECISION_TAG = pb.RecordingRecord(decision={}).SerializeToString()[:1]  # with which a record of a decision begins
MAX_RECORD = 64 << 20  # bytes; a raw 4096x2304 rgb24 frame takes 27 MiB
SCAN = 1 << 20  # bytes read at once while looking for a marker
SEARCH = 256 << 20  # bytes of false frames checked before a reading gives up: a crafted file must not hang it


class RecordingWriter(Closing):
    """Appends packets and decisions to a new file; not thread-safe.

    Records are handed to the operating system in batches of ``batch_records``, or when a batch spans
    ``batch_seconds`` of arrival time, so that a crash of the process loses at most one batch. At ``max_bytes`` the
    writer is ``full``: it keeps what it has and takes nothing more, so that the file ends instead of thinning out.

    Raises:
        OutputError: the file exists, cannot be written, or a value does not fit the format.
    """

    def __init__(
        self,
        path: str | Path,
        info: StreamInfo,
        *,
        max_bytes: int | None = None,
        batch_records: int = 32,
        batch_seconds: float = 0.5,
    ) -> None:
        self.path = Path(path)
        self.full = False
        self.records = 0  # packets and decisions that were taken
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._batch_records = batch_records
        self._batch_seconds = batch_seconds
        self._codecs = dict(info.codecs)
        self._batch = bytearray()
        self._batched = 0
        self._batch_start: float | None = None
        start = MAGIC + _frame(pb.RecordingRecord(header=_header_to_wire(info)))
        self._fd: int | None = _create(self.path, start)
        self._written = len(start)

    def append(self, packet: Packet, arrival: float | None = None) -> bool:
        """Adds one packet; ``arrival`` in seconds replaces the packet's own. False when the file is full."""
        arrival = packet.arrival if arrival is None else arrival
        codec = self._codecs.get(packet.modality)
        wire = packet_to_wire(packet, None if codec is None else codec.time_base)
        record = pb.RecordedPacket(packet=wire, arrival_seconds=arrival)
        return self._add(pb.RecordingRecord(packet=record), arrival)

    def decision(self, decision: Decision) -> bool:
        """Adds one decision. False when the file is full."""
        added = self._add(pb.RecordingRecord(decision=_decision_to_wire(decision)), decision.arrival)
        if added and decision.codec is not None:
            self._codecs[decision.modality] = decision.codec
        return added

    def flush(self) -> None:
        """Hands everything to the operating system."""
        if self._batch:
            self._write(bytes(self._batch))
            self._batch.clear()
        self._batched = 0
        self._batch_start = None

    def close(self) -> None:
        """Flushes, waits until the disk has it, and closes; again is harmless."""
        if self._fd is None:
            return
        self.flush()
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        except OSError as error:
            raise OutputError(f"recording {self.path} may be incomplete: {error.strerror}") from error
        finally:
            os.close(fd)

    def _add(self, record: pb.RecordingRecord, arrival: float | None) -> bool:
        if self._fd is None:
            raise OutputError(f"recording {self.path} is closed; open a new one")
        frame = _frame(record)
        if self.full or self._written + len(self._batch) + len(frame) > self._max_bytes:
            self.full = True
            return False
        self._batch += frame
        self._batched += 1
        self.records += 1
        if arrival is not None and self._batch_start is None:
            self._batch_start = arrival
        spans = 0.0 if arrival is None or self._batch_start is None else arrival - self._batch_start
        if self._batched >= self._batch_records or spans >= self._batch_seconds:
            self.flush()
        return True

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        try:
            _write_all(self._fd, data)
        except OSError as error:
            fd, self._fd = self._fd, None
            self._batch.clear()
            os.close(fd)
            raise OutputError(
                f"recording {self.path} stopped after {self._written} bytes: {error.strerror}; "
                "what is there can be replayed"
            ) from error
        self._written += len(data)


class RecordingReader:
    """Reads a recording, also one that is cut, altered, or still being written.

    ``packets()`` may be called again and starts anew each time. After it is exhausted, ``damaged`` counts the records
    that failed their check and ``truncated`` says whether the file ends inside a record.

    Raises:
        RecordingError: the file cannot be read, is no recording, or its header is damaged or too new.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.damaged = 0
        self.truncated = False
        with self._open() as file:
            self.info, self._start = self._read_header(file)

    def packets(self) -> Iterator[Packet | Decision]:
        """What was recorded, in the order in which it arrived."""
        self.damaged, self.truncated = 0, False
        codecs = dict(self.info.codecs)
        with self._open() as file:
            file.seek(self._start)
            for body in self._bodies(file):
                try:
                    item = _item_from_wire(pb.RecordingRecord.FromString(body), codecs)
                except (DecodeError, ValueError, KeyError):
                    self.damaged += 1
                    continue
                if isinstance(item, Decision) and item.codec is not None:
                    codecs[item.modality] = item.codec
                if item is not None:
                    yield item

    def decisions(self, kind: str) -> list[Decision]:
        """The decisions of one kind, without looking into packets: what a replay must know before it begins."""
        found, before = [], (self.damaged, self.truncated)
        with self._open() as file:
            file.seek(self._start)
            for body in self._bodies(file):
                if body[:1] == DECISION_TAG:
                    with suppress(DecodeError, ValueError, KeyError):
                        found.append(_decision_from_wire(pb.RecordingRecord.FromString(body).decision))
        self.damaged, self.truncated = before  # for ``packets`` to say
        return [decision for decision in found if decision.kind == kind]

    @property
    def note(self) -> str:
        """One sentence on what was not whole, empty when everything was."""
        parts = []
        if self.damaged:
            parts.append(f"{self.damaged} damaged record{'s' if self.damaged > 1 else ''} skipped")
        if self.truncated:
            parts.append("the file ends inside a record")
        return f"recording {self.path.name}: {' and '.join(parts)}" if parts else ""

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise RecordingError(f"recording {self.path} cannot be read: {error.strerror}") from error

    def _read_header(self, file: BinaryIO) -> tuple[StreamInfo, int]:
        if file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"{self.path} is not a packet recording: it does not start like a {SUFFIX} file")
        body = _read_frame(file)
        damaged = RecordingError(f"recording {self.path} cannot be replayed: its header is cut or damaged")
        if body is None:
            raise damaged
        try:
            record = pb.RecordingRecord.FromString(body)
            version = record.header.format_version
            if version > FORMAT_VERSION:
                raise RecordingError(
                    f"recording {self.path} has format {version} and this Legato reads up to {FORMAT_VERSION}; "
                    "update Legato"
                )
            if not record.HasField("header") or version < 1:
                raise damaged
            return _header_from_wire(record.header), file.tell()
        except (DecodeError, ValueError, KeyError) as error:
            raise damaged from error

    def _bodies(self, file: BinaryIO) -> Iterator[bytes]:
        """The records whose check passes; skips what lies between them."""
        budget = SEARCH
        while True:
            offset = file.tell()
            body = _read_frame(file)
            if body is not None:
                yield body
                continue
            if offset >= os.fstat(file.fileno()).st_size:
                return
            found, budget = _next_frame(file, offset + 1, budget)
            if found is None:
                self.truncated = True
                return
            self.damaged += 1
            file.seek(found)


# -- frames ---------------------------------------------------------------------------------------------------------


def _frame(record: pb.RecordingRecord) -> bytes:
    body = record.SerializeToString(deterministic=True)
    if len(body) > MAX_RECORD:
        raise OutputError(f"a packet of {len(body)} bytes is too large for a recording; at most {MAX_RECORD} bytes")
    return FRAME.pack(MARKER, len(body), _check(len(body), body)) + body


def _check(length: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(length.to_bytes(4, "little")))


def _read_frame(file: BinaryIO) -> bytes | None:
    """The record at the file's position, or None where no frame passes its check."""
    head = file.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    marker, length, check = FRAME.unpack(head)
    if marker != MARKER or not 0 < length <= MAX_RECORD:
        return None
    body = file.read(length)
    return body if len(body) == length and _check(length, body) == check else None


def _next_frame(file: BinaryIO, offset: int, budget: int) -> tuple[int | None, int]:
    """Where the next frame that passes its check begins, at ``offset`` or after; and what is left of the budget."""
    while True:
        file.seek(offset)
        chunk = file.read(SCAN)
        at = chunk.find(MARKER)
        while at >= 0 and budget > 0:
            file.seek(offset + at)
            if _read_frame(file) is not None:
                return offset + at, budget
            budget -= file.tell() - offset - at
            at = chunk.find(MARKER, at + 1)
        if len(chunk) < SCAN or budget <= 0:
            return None, budget
        offset += len(chunk) - len(MARKER) + 1  # a marker may straddle two chunks


def _create(path: Path, start: bytes) -> int:
    """A new file that only its owner may read; it gets its name when its header is in it."""
    if path.exists():
        raise OutputError(f"recording {path} exists already; choose another name or delete it")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    fd = None
    try:
        fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        _write_all(fd, start)
        os.rename(part, path)
    except OSError as error:
        if fd is not None:
            os.close(fd)
            part.unlink(missing_ok=True)
        raise OutputError(f"recording {path} cannot be written: {error.strerror}") from error
    return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# -- header and decisions -----------------------------------------------------------------------------------------

_KIND_TO_WIRE = {
    value.name.removeprefix("DECISION_KIND_").lower(): value.number
    for value in pb.DecisionKind.DESCRIPTOR.values
    if value.number
}
_KIND_FROM_WIRE = {number: name for name, number in _KIND_TO_WIRE.items()}


def _header_to_wire(info: StreamInfo) -> pb.RecordingHeader:
    from runtime import __version__

    return build(
        pb.RecordingHeader,
        "header",
        format_version=FORMAT_VERSION,
        name=text(info.name),
        codecs=[codec_to_wire(modality, codec) for modality, codec in info.codecs.items()],
        origin=None if info.origin is None else rational(info.origin),
        duration_seconds=info.duration,
        labels={text(key): text(value) for key, value in info.labels.items()},
        sequence_numbers=info.sequence_numbers,
        writer=f"legato {__version__}",
    )


def _header_from_wire(wire: pb.RecordingHeader) -> StreamInfo:
    duration = wire.duration_seconds if wire.HasField("duration_seconds") else None
    return StreamInfo(
        name=wire.name,
        codecs=dict(codec_from_wire(codec) for codec in wire.codecs),
        origin=fraction(wire.origin) if wire.HasField("origin") else None,
        duration=None if duration is None else finite(duration),
        labels=dict(wire.labels),
        sequence_numbers=wire.sequence_numbers,
    )


def _decision_to_wire(decision: Decision) -> pb.RecordedDecision:
    if decision.kind not in _KIND_TO_WIRE:
        raise OutputError(f"decision {decision.kind!r} is unknown; known: {', '.join(_KIND_TO_WIRE)}")
    return build(
        pb.RecordedDecision,
        f"decision {decision.kind}",
        kind=_KIND_TO_WIRE[decision.kind],
        modality=modality_to_wire(decision.modality),
        arrival_seconds=decision.arrival,
        epoch=decision.epoch,
        clip=decision.clip,
        codec=None if decision.codec is None else codec_to_wire(decision.modality, decision.codec),
        offset=rational(decision.offset) if decision.offset else None,
        drift_ppm=decision.drift_ppm,
        reason=text(decision.reason),
    )


def _decision_from_wire(wire: pb.RecordedDecision) -> Decision:
    return Decision(
        kind=_KIND_FROM_WIRE[wire.kind],
        modality=MODALITY_FROM_WIRE[wire.modality],
        arrival=finite(wire.arrival_seconds),
        epoch=wire.epoch,
        clip=wire.clip if wire.HasField("clip") else None,
        codec=codec_from_wire(wire.codec)[1] if wire.HasField("codec") else None,
        offset=fraction(wire.offset) if wire.HasField("offset") else Fraction(0),
        drift_ppm=finite(wire.drift_ppm),
        reason=wire.reason,
    )


def _item_from_wire(record: pb.RecordingRecord, codecs: Mapping[str, CodecConfig]) -> Packet | Decision | None:
    """The packet or decision in a record; None for a kind that a later version added."""
    match record.WhichOneof("record"):
        case "packet":
            packet = record.packet.packet
            codec = codecs.get(MODALITY_FROM_WIRE[packet.modality])
            arrival = record.packet.arrival_seconds if record.packet.HasField("arrival_seconds") else None
            time_base = None if codec is None else codec.time_base
            return packet_from_wire(packet, time_base, None if arrival is None else finite(arrival))
        case "decision":
            return _decision_from_wire(record.decision)
        case "header":
            raise ValueError("a second header")
    return None
