"""Fuzz target: a packet recording that somebody sends us.

The first byte chooses: 0, the rest is a file as it is; else the rest is cut into records (two bytes of length, then the
record), each in a frame whose check is right, so that the fuzzer need not guess CRCs to reach what lies behind them.
Whatever was read is then replayed through a receiver with fake decoders.
"""

from runtime.errors import RecordingError
from runtime.packet import Decision, Packet
from runtime.pipeline import receive
from runtime.receive import Receiver
from runtime.recording import FRAME, MAGIC, MARKER, RecordingReader, _check
from tests.fakes import SPEC
from tests.fuzz.parts import bounded_parts, scratch

MOST_ITEMS = 200


def one(data: bytes) -> None:
    path = scratch(".legato")
    path.write_bytes(data[1:] if data[:1] == b"\0" else framed(data[1:]))
    try:
        reader = RecordingReader(path)
    except RecordingError as error:
        assert str(error) and "\n" not in str(error)
        return
    items = list(reader.packets())
    note = reader.note
    assert all(isinstance(item, Packet | Decision) for item in items)
    assert items == list(reader.packets()) and note == reader.note, "reading again gives the same"
    replay(reader, items[:MOST_ITEMS])


def replay(reader: RecordingReader, items: list[Packet | Decision]) -> None:
    receiver = Receiver(reader.info, SPEC, delay=0.1, parts=bounded_parts)
    indexes = []
    for clip in receive(items, receiver):
        assert all(0 <= share <= 1 for share in clip.coverage.values()), clip
        indexes += [clip.index] if clip.version == 0 else []
    assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
    receiver.ledger.check()


def framed(data: bytes) -> bytes:
    """A recording whose records are pieces of ``data``."""
    out = bytearray(MAGIC)
    while data:
        length = int.from_bytes(data[:2], "little") or 1
        body, data = data[2 : 2 + length], data[2 + length :]
        out += FRAME.pack(MARKER, len(body), _check(len(body), body)) + body
    return bytes(out)


def unframed(records: list[bytes]) -> bytes:
    """The input of which ``framed`` makes these records."""
    return b"\1" + b"".join(len(record).to_bytes(2, "little") + record for record in records)


if __name__ == "__main__":
    from tests.fuzz.run import run

    run("recording")
