"""The jitter buffer: puts packets back in order, waits for a hole until a deadline in time, reports what never came.

In-order packets pass at once; only a hole waits. Its deadline is the earliest capture time queued behind it plus the
playout delay. What comes out is a sequence of ``Packet`` (in order), ``Gap`` (numbers that did not come in time) and
``Late`` (a packet whose number had already been given up). Nothing here reads a clock: time is passed in, and how
often the buffer is polled changes nothing but when the answers come.

The law (tests/test_jitter.py): packet ``s`` is delivered iff it arrives strictly before
``min over q > s of max(arrival(q), capture(q) + offset + delay)``, which is what an oracle that knows every arrival
in advance delivers with the same delay.
"""

from bisect import bisect_right
from dataclasses import dataclass
from heapq import heappop, heappush

from runtime.errors import ConfigError
from runtime.packet import Gap, Packet

__all__ = ["AdaptiveDelay", "JitterBuffer", "JitterStats", "Late", "TransitFloor"]

EARLY_LIMIT = 2.0  # seconds; a capture time further ahead than this (a clock jump) holds nothing back any longer
MISSING_RANGES = 1024  # how many past gaps are remembered, to tell a late packet from a duplicate
MAX_MISORDER = 100  # RFC 3550, A.1: how far before the first packet of a stream another may still belong to it
CAPACITY = 4096  # packets queued behind a hole before it is given up, whatever the time


@dataclass(frozen=True, slots=True)
class Late:
    """A packet that came after its number was given up.

    ``reported`` is True if a ``Gap`` counted it as lost, False if it came before the first number of the stream.
    """

    packet: Packet
    reported: bool = True


@dataclass(slots=True)
class JitterStats:
    """Counts since the start; ``expected`` is the span of sequence numbers plus what lies outside it."""

    received: int = 0  # every push
    delivered: int = 0
    duplicates: int = 0  # dropped
    late: int = 0  # handed out as Late
    lost: int = 0  # in a reported gap and not come since
    gaps: int = 0
    overflows: int = 0  # holes given up because the queue was full
    queued: int = 0

    @property
    def expected(self) -> int:
        return self.received + self.lost


@dataclass(slots=True)
class AdaptiveDelay:
    """Playout delay from the interarrival jitter of RFC 3550, section 6.4.1: ``clamp(gain * J, floor, cap)`` seconds.

    Packets that share a capture time (the fragments of one frame) count once, else video inflates J. Decode times are
    used where known, so that the reordering of B frames is not taken for jitter.
    """

    floor: float = 0.04  # seconds
    cap: float = 0.4  # seconds
    gain: float = 5.0  # J is a mean absolute deviation of differences; 5 J spans 99 % of Gaussian transit times
    jitter: float = 0.0  # J, seconds
    _last_sent: float | None = None
    _last_arrival: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.cap:
            raise ConfigError(f"delay floor {self.floor} s and cap {self.cap} s contradict; use 0 <= floor <= cap")

    @property
    def seconds(self) -> float:
        return min(max(self.gain * self.jitter, self.floor), self.cap)

    def update(self, packet: Packet, now: float) -> None:
        """Learn from one arrival, in order of arrival."""
        self.learn(packet.decode_seconds, now)

    def learn(self, sent: float, now: float) -> None:
        """Learn from the arrival at ``now`` of what was sent at ``sent``, seconds."""
        if sent == self._last_sent:
            return
        if self._last_sent is not None:
            difference = abs((now - self._last_arrival) - (sent - self._last_sent))
            if difference <= EARLY_LIMIT:  # a clock jump is an epoch, not jitter
                self.jitter += (difference - self.jitter) / 16
        self._last_sent, self._last_arrival = sent, now


@dataclass(slots=True)
class TransitFloor:
    """The smallest ``arrival - capture`` of the last 10 to 20 seconds: what to add to a capture time to get the
    receiver's clock. Two buckets follow clocks that drift (100 ppm move it by 2 ms)."""

    seconds: float = 10.0  # length of a bucket
    value: float = float("inf")
    _start: float | None = None
    _current: float = float("inf")
    _previous: float = float("inf")

    def update(self, capture: float, now: float) -> None:
        if self._start is None:
            self._start = now
        if now - self._start >= self.seconds:
            self._start, self._previous, self._current = now, self._current, float("inf")
        elif now - capture >= self._current:
            return  # as nearly always
        self._current = min(self._current, now - capture)
        self.value = min(self._current, self._previous)


class _Missing:
    """Ranges of sequence numbers that were given up, so that a late packet is told from a duplicate."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, count: int) -> None:
        self._firsts.append(first)
        self._lasts.append(first + count - 1)
        if len(self._firsts) > MISSING_RANGES:
            del self._firsts[0], self._lasts[0]

    def take(self, seq: int) -> bool:
        """True, once, for a number that is missing."""
        i = bisect_right(self._firsts, seq) - 1
        if i < 0 or seq > self._lasts[i]:
            return False
        first, last = self._firsts[i], self._lasts[i]
        pieces = [(a, b) for a, b in ((first, seq - 1), (seq + 1, last)) if a <= b]
        self._firsts[i : i + 1] = [a for a, _ in pieces]
        self._lasts[i : i + 1] = [b for _, b in pieces]
        return True


class JitterBuffer:
    """Reorders the packets of one modality; see the module's docstring for what it promises.

    ``delay`` is the playout delay in seconds, fixed or adaptive. ``first_seq`` is the stream's first number where it
    is known (a hole at the start is then reported); without it the first packet to come is taken for the first.
    ``offset`` is what a capture time needs to become a time on the receiver's clock: 0 in a replay, where both share
    one axis; None learns it as the smallest transit of the last seconds.
    """

    def __init__(
        self,
        modality: str,
        delay: float | AdaptiveDelay,
        first_seq: int | None = None,
        *,
        offset: float | None = 0.0,
        capacity: int = CAPACITY,
    ) -> None:
        if not isinstance(delay, AdaptiveDelay) and not delay >= 0:
            raise ConfigError(f"jitter delay {delay} s is not a waiting time; use 0 or more seconds")
        self.modality = modality
        self.stats = JitterStats()
        self._delay = delay
        self._next = first_seq
        self._first = first_seq  # where the stream begins for us; None until the first packet
        self._before: set[int] = set()  # numbers that came although they lie before it
        self._offset = offset
        self._transit = TransitFloor() if offset is None else None
        self._capacity = capacity
        self._queue: dict[int, Packet] = {}
        self._order: list[int] = []  # heap of queued numbers
        self._due: list[tuple[float, int]] = []  # heap of (capture + early limit, number), cleaned lazily
        self._missing = _Missing()
        self._last: Packet | None = None  # delivered; bounds a gap in time

    @property
    def delay(self) -> float:
        """The playout delay now, seconds."""
        return self._delay.seconds if isinstance(self._delay, AdaptiveDelay) else self._delay

    @property
    def jitter(self) -> float:
        """Interarrival jitter, seconds, where the delay follows it; else 0."""
        return self._delay.jitter if isinstance(self._delay, AdaptiveDelay) else 0.0

    @property
    def next_deadline(self) -> float | None:
        """When ``poll`` will have something to say if nothing more arrives, on the receiver's clock; None = never."""
        while self._due and self._due[0][1] not in self._queue:
            heappop(self._due)
        if not self._due:
            return None
        return self._due[0][0] + self._base() + self.delay

    def push(self, packet: Packet, now: float) -> list[Packet | Gap | Late]:
        """One packet that arrived at ``now`` seconds; returns what became ready, in order."""
        # Deadlines that passed first: how often poll is called must not matter.
        out = self.poll(now) if self._queue else []
        self._learn(packet, now)
        self.stats.received += 1
        if self._next is None or self._first is None:
            self._next = self._first = packet.seq
        if packet.seq < self._next:
            self._too_old(packet, out)
        elif packet.seq in self._queue:
            self.stats.duplicates += 1
        elif packet.seq == self._next:
            self._deliver(packet, out)
            if self._queue:
                self._release_run(out)
        else:
            self._enqueue(packet, now)
            out += self.poll(now)
        self.stats.queued = len(self._queue)
        return out

    def lets_through(self, packet: Packet) -> bool:
        """Whether ``push`` would hand this packet out at once, alone: nothing waits, and it is the next."""
        return packet.seq == self._next and not self._queue

    def pass_through(self, packet: Packet, seconds: float, sent: float, now: float) -> None:
        """``push`` for a packet that ``lets_through`` approves; its capture and decode time are known, in seconds."""
        if self._transit is not None:
            self._transit.update(seconds, now)
        if isinstance(self._delay, AdaptiveDelay):
            self._delay.learn(sent, now)
        self.stats.received += 1
        self.stats.delivered += 1
        self._last, self._next = packet, packet.seq + 1

    def poll(self, now: float) -> list[Packet | Gap | Late]:
        """What is ready at ``now``: gaps whose deadline has come, and what was queued behind them."""
        out: list[Packet | Gap | Late] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            self._give_up_hole(out)
        while len(self._queue) > self._capacity:
            self.stats.overflows += 1
            self._give_up_hole(out)
        self.stats.queued = len(self._queue)
        return out

    def flush(self) -> list[Packet | Gap | Late]:
        """The end of the stream: everything still queued, with its gaps."""
        out: list[Packet | Gap | Late] = []
        while self._queue:
            self._give_up_hole(out)
        self.stats.queued = 0
        return out

    def clock_changed(self) -> None:
        """The sender's capture clock jumped: the transit times learned so far say nothing about what follows."""
        if self._transit is not None:
            self._transit = TransitFloor()

    def _base(self) -> float:
        return self._offset if self._transit is None else self._transit.value  # type: ignore[return-value]

    def _learn(self, packet: Packet, now: float) -> None:
        if self._transit is not None:
            self._transit.update(packet.seconds, now)
        if isinstance(self._delay, AdaptiveDelay):
            self._delay.update(packet, now)

    def _enqueue(self, packet: Packet, now: float) -> None:
        self._queue[packet.seq] = packet
        heappush(self._order, packet.seq)
        capture = min(packet.seconds, now - self._base() + EARLY_LIMIT)
        heappush(self._due, (capture, packet.seq))

    def _too_old(self, packet: Packet, out: list[Packet | Gap | Late]) -> None:
        if self._missing.take(packet.seq):
            self.stats.late += 1
            self.stats.lost -= 1
            out.append(Late(packet))
        elif self._before_start(packet.seq):
            self._before.add(packet.seq)
            self.stats.late += 1
            out.append(Late(packet, reported=False))
        else:
            self.stats.duplicates += 1

    def _before_start(self, seq: int) -> bool:
        assert self._first is not None
        return 0 < self._first - seq <= MAX_MISORDER and seq not in self._before

    def _give_up_hole(self, out: list[Packet | Gap | Late]) -> None:
        """Report the numbers before the first queued packet as a gap, then release the run behind them."""
        first, then = self._next, self._order[0]
        assert first is not None and first < then, (first, then)
        packet = self._queue[then]
        start, end = None if self._last is None else self._last.end_seconds, packet.seconds
        if start is not None and start > end:  # B frames: neighbours in decode order are not neighbours in time
            start, end = end, start
        count = then - first
        out.append(Gap(modality=self.modality, first_seq=first, count=count, start=start, end=end))
        self._missing.add(first, count)
        self.stats.lost += count
        self.stats.gaps += 1
        self._next = then
        self._release_run(out)

    def _release_run(self, out: list[Packet | Gap | Late]) -> None:
        while self._order and self._order[0] == self._next:
            self._deliver(self._queue.pop(heappop(self._order)), out)
        if not self._queue:
            self._due.clear()

    def _deliver(self, packet: Packet, out: list[Packet | Gap | Late]) -> None:
        out.append(packet)
        self._last = packet
        self._next = packet.seq + 1
        self.stats.delivered += 1
