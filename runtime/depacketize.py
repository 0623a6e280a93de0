"""RTP packets in order to coded frames, each knowing how many frames were lost before it. Pure.

The unit of loss on the wire is the RTP packet; the runtime's ``Packet`` is a coded frame with one number. So:

- sound: one RTP packet is one frame. A lost number is a lost frame; one that comes late still has its place.
- pictures: a frame is complete if none of its RTP packets is missing. One of which a part came is handed on as it is,
  marked ``corrupt``: it has a number, its time is known, and damage spreads from it as from any wrong reference. Frames
  of which nothing came leave as many numbers out as timestamps (or, with B frames, arrivals) say they were, never more
  than the lost RTP packets could hold.

Every frame that lacks a byte is so either corrupt or a missing number; nothing else is.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.payloads import IDR, PARTITION_A, SLICE, START_CODE, Nal, opus_samples, split_h264, starts_picture
from runtime.reorder import Arrived
from runtime.rtp import RtpError, RtpPacket

__all__ = ["Pictures", "Sound", "Unit"]

MOST_BYTES = 8 << 20  # of one access unit; a key frame of 4096x2304 takes 2
MOST_UNITS = 4096  # NAL units of one access unit
STEPS = 16  # frame steps from which the frame period is taken
SHIFTS = 64  # changes of numbering that are remembered for late packets


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One coded frame; ``seq`` counts frames, lost ones included. ``timestamp`` is the unwrapped RTP timestamp."""

    seq: int
    timestamp: int
    payload: bytes  # empty: nothing of it can be used
    duration: int = 0  # ticks; 0 = unknown
    keyframe: bool = False
    disposable: bool = False
    corrupt: bool = False


@dataclass(slots=True)
class _Building:
    """An access unit whose packets are coming."""

    timestamp: int
    arrival: float
    hole: int = 0  # RTP packets missing before it
    lost_before: int = 0  # frames of which nothing came
    units: list[bytes] = field(default_factory=list)
    headers: list[int] = field(default_factory=list)
    fragment: bytearray | None = None  # of the NAL unit that is coming in parts
    size: int = 0
    corrupt: bool = False

    @property
    def pictures(self) -> list[int]:
        """NAL unit headers of its slices."""
        return [h for h in self.headers if SLICE <= h & 31 <= IDR]

    def add(self, nal: Nal) -> None:
        self.size += len(nal.data)
        if self.size > MOST_BYTES or len(self.units) >= MOST_UNITS or nal.header & 0x80:
            self.corrupt = True
            self.fragment = None
            return
        if nal.first:
            self.cut()
            self.fragment = bytearray(nal.data)
            self.headers.append(nal.header)
        elif self.fragment is None:  # its start is missing
            self.corrupt = True
            return
        else:
            self.fragment += nal.data
        if nal.last:
            assert self.fragment is not None
            self.units.append(bytes(self.fragment))
            self.fragment = None

    def cut(self) -> None:
        """What follows the open fragment is missing: what there is of it stays, decoders use it up to there."""
        if self.fragment is not None:
            self.units.append(bytes(self.fragment))
            self.fragment, self.corrupt = None, True


class Pictures:
    """H.264: RTP packets of one stream, in order and with their holes, to access units in Annex B."""

    def __init__(self, rate: int = 90_000, next_seq: int = 0) -> None:
        self.next_seq = next_seq
        self.malformed = 0  # payloads that could not be read
        self._rate = rate
        self._open: _Building | None = None
        self._hole = 0  # RTP packets missing since the last one
        self._last: _Building | None = None  # the access unit before
        self._marked = True  # the marker bit ends access units, as RFC 6184, section 5.1 has it
        self._steps: deque[int] = deque(maxlen=STEPS)  # between timestamps of access units with no hole between them
        self._started = False  # a picture came from which decoding can start

    def push(self, arrived: Arrived, timestamp: int) -> list[Unit]:
        """The next packet; access units that are complete, or will not become so."""
        out: list[Unit] = []
        packet, hole, self._hole = arrived.packet, self._hole, 0
        nals = self._split(packet)
        if hole and self._open is not None:
            self._open.cut()
            self._open.corrupt = self._open.corrupt or bool(self._open.pictures) or self._open.timestamp == timestamp
        ahead: _Building | None = None  # parameter sets that travel before their picture
        tail = False  # the end of the access unit before lies in the hole
        if self._open is not None and self._open.timestamp != timestamp:
            if self._open.pictures or self._open.corrupt:
                tail = hole > 0
                out += self._close(hole == 0)
            else:
                ahead, self._open = self._open, None
        current = self._open or self._begin(timestamp, arrived.arrival, hole, tail, nals or [], ahead)
        current.corrupt = current.corrupt or nals is None
        for nal in nals or []:
            current.add(nal)
        if packet.marker and self._marked and (current.pictures or current.corrupt):
            out += self._close(True)
        return out

    def lose(self, count: int) -> list[Unit]:
        """So many RTP packets did not come."""
        self._hole += count
        return []

    def pass_over(self, arrived: Arrived) -> list[Unit]:
        """A packet that holds nothing: padding, or another payload type. It came, so it is no hole."""
        return []

    def late(self, arrived: Arrived, timestamp: int) -> list[Unit]:
        """A packet that was given up; its access unit has gone on without it."""
        return []

    def flush(self) -> list[Unit]:
        """The stream ends, or another begins: what is open, as it is."""
        current = self._open
        if current is None:
            return []
        current.cut()
        current.corrupt = current.corrupt or self._hole > 0 or self._marked
        self._hole = 0
        if not current.pictures and not current.corrupt:
            self._open = None
            return []
        return self._close(False)

    def restart(self) -> list[Unit]:
        """Another sender, or the same anew: nothing of what comes follows from what was."""
        out = self.flush()
        self.next_seq += 1  # so that nobody takes its first picture for the next one
        self._last, self._hole, self._open = None, 0, None
        self._steps.clear()
        return out

    def _split(self, packet: RtpPacket) -> list[Nal] | None:
        try:
            return split_h264(packet.payload)
        except RtpError:
            self.malformed += 1
            return None

    def _begin(
        self, timestamp: int, arrival: float, hole: int, tail: bool, nals: list[Nal], ahead: _Building | None
    ) -> _Building:
        last = self._last
        unsure = hole > 0 or last is None
        head = unsure and not (nals and starts_picture(nals[0]))  # the first part of this one is missing
        if last is not None and not hole and last.timestamp == timestamp and self._marked:
            self._marked = False  # a sender that marks every slice: only a new timestamp ends a picture
        hole += 0 if ahead is None else ahead.hole
        lost = self._lost(hole, tail, head, timestamp, arrival)
        self._open = _Building(timestamp, arrival, hole, lost, corrupt=head)
        if ahead is not None:
            self._open.units, self._open.headers, self._open.size = ahead.units, ahead.headers, ahead.size
        return self._open

    def _lost(self, hole: int, tail: bool, head: bool, timestamp: int, arrival: float) -> int:
        """How many access units lie in a hole, whole."""
        last = self._last
        most = hole - tail - head
        if last is None or most <= 0:
            return 0
        period = min((abs(step) for step in self._steps if step), default=0)
        if not period:
            return 0 if tail or head else 1
        if min(self._steps) < 0 or timestamp < last.timestamp:  # B frames: no order of sending; arrivals must do
            between = max(round((arrival - last.arrival) * self._rate / period) - 1, not (tail or head))
        else:
            between = max(round((timestamp - last.timestamp) / period) - 1, 0)
        return min(between, most)

    def _close(self, whole: bool) -> list[Unit]:
        current, self._open = self._open, None
        assert current is not None
        current.cut()
        slices = current.pictures
        if whole and not current.lost_before and self._last is not None and not current.corrupt:
            self._steps.append(current.timestamp - self._last.timestamp)
        self._last = current
        disposable = bool(slices) and not any(h & 0x60 for h in slices)
        keyframe = not current.corrupt and any(h & 31 == IDR for h in slices)
        corrupt = current.corrupt
        if not self._started and not keyframe:  # joined in mid-stream: nothing to be decoded from has come
            corrupt = True
            self._started = not disposable and any(h & 31 <= PARTITION_A for h in slices)
        self._started = self._started or keyframe
        seq = self.next_seq + current.lost_before
        self.next_seq = seq + 1
        current.units, payload = [], b"".join(START_CODE + unit for unit in current.units)
        return [
            Unit(
                seq=seq,
                timestamp=current.timestamp,
                payload=payload,
                keyframe=keyframe,
                disposable=disposable,
                corrupt=corrupt,
            )
        ]


class Sound:
    """One RTP packet is one frame of sound; ``samples(payload)`` gives its length in ticks, RtpError for nonsense."""

    def __init__(self, samples: Callable[[bytes], int] = opus_samples, next_seq: int = 0) -> None:
        self.next_seq = next_seq
        self.malformed = 0
        self._samples = samples
        self._shift: int | None = None  # frame number minus RTP number
        self._shifts: deque[tuple[int, int]] = deque(maxlen=SHIFTS)  # (first RTP number, shift that held before)

    def push(self, arrived: Arrived, timestamp: int) -> list[Unit]:
        """The next packet, a frame."""
        if self._shift is None:
            self._shift = self.next_seq - arrived.number
        seq = arrived.number + self._shift
        self.next_seq = seq + 1
        return [self._unit(seq, arrived.packet.payload, timestamp)]

    def lose(self, count: int) -> list[Unit]:
        """The next packet's number tells."""
        return []

    def pass_over(self, arrived: Arrived) -> list[Unit]:
        """A packet that holds no sound: its number is not missed."""
        if self._shift is None:
            return []
        self._shifts.append((arrived.number, self._shift))
        self.next_seq = max(self.next_seq, arrived.number + self._shift)  # numbers lost before it stay lost
        self._shift -= 1
        return []

    def late(self, arrived: Arrived, timestamp: int) -> list[Unit]:
        """A packet that was given up, in its own place: the receiver may still repair a clip with it."""
        if self._shift is None:
            return []
        shift = next((before for number, before in self._shifts if arrived.number < number), self._shift)
        return [self._unit(arrived.number + shift, arrived.packet.payload, timestamp)]

    def flush(self) -> list[Unit]:
        return []

    def restart(self) -> list[Unit]:
        """Another sender, or the same anew: numbers go on behind a hole."""
        if self._shift is not None:
            self.next_seq += 1
        self._shift = None
        self._shifts.clear()
        return []

    def _unit(self, seq: int, payload: bytes, timestamp: int) -> Unit:
        try:
            samples = self._samples(payload)
        except RtpError:
            self.malformed += 1
            return Unit(seq=seq, timestamp=timestamp, payload=b"", corrupt=True)
        return Unit(seq=seq, timestamp=timestamp, payload=payload, duration=samples, keyframe=True)
