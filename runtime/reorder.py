"""RTP packets back in order: a hole waits a fixed time from the first packet behind it. Pure: time is passed in.

Unlike ``runtime.jitter.JitterBuffer``, which waits in terms of capture times, nothing here believes a timestamp: at
this place they are not checked yet, and B frames come out of their order. What comes out is packets in order, and a
``Hole`` where numbers were given up.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from runtime.rtp import RtpPacket

__all__ = ["Arrived", "Hole", "ReorderBuffer"]

CAPACITY = 2048  # packets behind a hole before it is given up, whatever the time
REMEMBERED = 4096  # numbers given up, to tell a late packet from a duplicate


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet, its unwrapped number, and when it arrived, in seconds on the receiver's clock."""

    number: int
    packet: RtpPacket
    arrival: float
    late: bool = False  # its number had been given up


@dataclass(frozen=True, slots=True)
class Hole:
    """``count`` numbers from ``first`` on did not come in time; given up at ``at``."""

    first: int
    count: int
    at: float


class ReorderBuffer:
    """See the module's docstring. ``delay``: seconds that a hole waits."""

    def __init__(self, delay: float, capacity: int = CAPACITY) -> None:
        self.duplicates = 0
        self.early = 0  # reordered packets from before the first: there is no place for them any more
        self._delay, self._capacity = delay, capacity
        self._first = 0
        self._next: int | None = None
        # Ordered ones: a plain dict that loses its first entries takes ever longer to find the next.
        self._queue: OrderedDict[int, Arrived] = OrderedDict()  # in order of arrival
        self._numbers: list[int] = []  # heap
        self._missing: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def next_deadline(self) -> float | None:
        """When ``poll`` will have something to give if nothing more arrives; None = never."""
        first = next(iter(self._queue.values()), None)
        return None if first is None else first.arrival + self._delay

    def push(self, number: int, packet: RtpPacket, now: float) -> list[Arrived | Hole]:
        """A packet that arrived at ``now``; what became ready, in order. Late packets come at once, as such."""
        out = list(self.poll(now)) if self._queue else []
        if self._next is None:
            self._first = self._next = number
        if number < self._next:
            if number in self._missing:
                del self._missing[number]
                out.append(Arrived(number, packet, now, late=True))
            elif number < self._first:
                self.early += 1
            else:
                self.duplicates += 1
        elif number in self._queue:
            self.duplicates += 1
        elif number == self._next:
            self._next += 1
            out.append(Arrived(number, packet, now))
            out += self._run()
        else:
            self._queue[number] = Arrived(number, packet, now)
            heappush(self._numbers, number)
            while len(self._queue) > self._capacity:
                out += self._give_up(now)
        return out

    def poll(self, now: float) -> Iterator[Arrived | Hole]:
        """Holes whose time is over at ``now``, and what waited behind them."""
        while (due := self.next_deadline) is not None and due <= now:
            yield from self._give_up(due)

    def flush(self, now: float) -> list[Arrived | Hole]:
        """The end: everything that waits, with its holes."""
        out: list[Arrived | Hole] = []
        while self._queue:
            out += self._give_up(now)
        return out

    def _give_up(self, at: float) -> list[Arrived | Hole]:
        assert self._next is not None
        first, then = self._next, self._numbers[0]
        for number in range(max(first, then - REMEMBERED), then):
            self._missing[number] = None
        while len(self._missing) > REMEMBERED:
            self._missing.popitem(last=False)
        self._next = then
        return [Hole(first, then - first, at), *self._run()]

    def _run(self) -> list[Arrived | Hole]:
        out: list[Arrived | Hole] = []
        while self._numbers and self._numbers[0] == self._next:
            out.append(self._queue.pop(heappop(self._numbers)))
            self._next += 1
        return out
