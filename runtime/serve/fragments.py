"""Frames that were sent in several packets, put together again.

Each fragment has a sequence number of its own, a receiver wants one for each frame. So a frame takes the number of its
first fragment, less the further fragments of all frames before it: numbers stay consecutive while nothing is lost, and
a missing fragment is a missing frame. Of a frame of which nothing came, nobody knows how many packets it had: each
counts. Unfragmented packets pass as they are.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

from protos import stream_pb2 as pb

__all__ = ["Fragments"]

LARGEST = 4096  # fragments of one frame; of 1 kB each a raw picture of the largest size would need more, and has TCP
OPEN = 8  # frames of one modality that wait for fragments: reordering reaches no further
WAITING = 16 << 20  # bytes of them
REMEMBERED = 4096  # frames whose numbers can be told from packets' numbers


@dataclass(slots=True)
class _Frame:
    count: int
    parts: dict[int, pb.Packet] = field(default_factory=dict)
    size: int = 0


@dataclass(slots=True)
class _Track:
    """One modality: where numbers shift, and what is not whole."""

    starts: list[int] = field(default_factory=lambda: [0])  # packet numbers from which ...
    absorbed: list[int] = field(default_factory=lambda: [0])  # ... so many are to be taken off
    following: int = 0  # the first packet number after all frames seen
    open: dict[int, _Frame] = field(default_factory=dict)  # by the number of the first fragment


class Fragments:
    """Puts together the fragments of one stream."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def push(self, wire: pb.Packet, modality: str) -> pb.Packet | None:
        """A packet as it came; the frame that is whole by it, under its number. None: it waits for others.

        Raises:
            ValueError: its place in its frame makes no sense.
        """
        track = self._tracks.get(modality)
        if not (wire.HasField("fragment_count") or wire.HasField("fragment_index")):
            if track is None:
                return wire
            track.following = max(track.following, wire.seq + 1)
            return _numbered(wire, self._number(track, wire.seq))
        index, count = wire.fragment_index, wire.fragment_count
        if not index < count <= LARGEST or wire.seq < index:
            raise ValueError(f"fragment {index} of {count}")
        track = self._tracks.setdefault(modality, _Track())
        frame = self._frame(track, wire.seq - index, count)
        if frame.count != count:
            raise ValueError(f"fragment {index} of {count}, and others of {frame.count}")
        if index not in frame.parts:
            frame.parts[index] = wire
            frame.size += len(wire.payload)
        if len(frame.parts) == count:
            return self._whole(track, wire.seq - index)
        self._bound(track)
        return None

    def through(self, modality: str, number: int) -> int:
        """The last packet number of the frame that a receiver knows as ``number``."""
        track = self._tracks.get(modality)
        if track is None:
            return number
        numbers = [start - off for start, off in zip(track.starts, track.absorbed, strict=True)]
        at = max(0, bisect_right(numbers, number) - 1)
        if at + 1 < len(numbers) and numbers[at + 1] == number + 1:
            return track.starts[at + 1] - 1
        return number + track.absorbed[at]

    def _frame(self, track: _Track, base: int, count: int) -> _Frame:
        if base in track.open:
            return track.open[base]
        if base >= track.following:
            if count > 1:
                track.starts.append(base + count)
                track.absorbed.append(track.absorbed[-1] + count - 1)
                old = len(track.starts) - REMEMBERED
                del track.starts[1:old], track.absorbed[1:old]
            track.following = base + count
        return track.open.setdefault(base, _Frame(count))

    def _whole(self, track: _Track, base: int) -> pb.Packet:
        frame = track.open.pop(base)
        whole = pb.Packet()
        whole.CopyFrom(frame.parts[0])
        whole.payload = b"".join(frame.parts[i].payload for i in range(frame.count))
        whole.corrupt = any(part.corrupt for part in frame.parts.values())
        arrivals = [part.arrival_seconds for part in frame.parts.values() if part.HasField("arrival_seconds")]
        if arrivals:
            whole.arrival_seconds = max(arrivals)
        whole.ClearField("fragment_index")
        whole.ClearField("fragment_count")
        return _numbered(whole, self._number(track, base))

    def _bound(self, track: _Track) -> None:
        """A frame that others overtook by far will not become whole."""
        while len(track.open) > OPEN or sum(f.size for f in track.open.values()) > WAITING:
            del track.open[min(track.open)]

    def _number(self, track: _Track, base: int) -> int:
        return base - track.absorbed[max(0, bisect_right(track.starts, base) - 1)]


def _numbered(wire: pb.Packet, number: int) -> pb.Packet:
    if wire.seq == number:
        return wire
    renumbered = pb.Packet()
    renumbered.CopyFrom(wire)
    renumbered.seq = number
    return renumbered
