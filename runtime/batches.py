"""Batches: which clips of which streams go through the models next; pure policy.

No torch, no threads, no clock: time and costs are passed in, so that every law can be tested (tests/test_batches.py).

Order: earliest deadline first over the streams' oldest jobs; one stream's jobs in order. A clip that can no longer be
in time is *late*; late ones ride along only when no clip in time is left behind, and none misses its deadline for it:
a stream in time never waits for a late one. A batch is as large as its earliest deadline allows; when a miss cannot be
avoided it is as large as it may be, for that clears the line soonest.

Bounds, each with its policy and its counter:
  - ``per_stream`` clips of a stream wait with their pictures and sound; beyond that the oldest gives them up
    (``overflowed``): it is shed whole, and answered in its turn;
  - ``max_bytes`` of content wait in all; beyond that the stream that holds most gives up its oldest (``evicted``);
  - ``max_line`` jobs of a stream, emptied or not; beyond that ``add`` raises (``refused``) and the stream is over.
These are for a device that stands still or a sender without flow control, and know no mercy. Shedding
(``runtime.shedding``) is for load, and keeps its limits. A repaired version of a clip is encoded as the clip was.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import LegatoError
from runtime.shedding import Shedder
from runtime.tickets import BatchPolicy, Cost, Load, Shed, Ticket, first_miss, fit, load_of

__all__ = ["Batch", "BatchPolicy", "BatchQueue", "Load", "Shed", "Ticket"]

HORIZON = 64  # jobs that are looked at, at least; what lies further back tells little about the batches to come


@dataclass
class Batch:
    """What goes through the models next, each stream's jobs in order; and what was shed on the way."""

    tickets: list[Ticket]
    shed: list[Shed]


@dataclass
class _Line:
    """One stream's jobs in order, and the bytes that wait with them."""

    waiting: deque[Ticket] = field(default_factory=deque)
    bytes: int = 0


class BatchQueue:
    """Jobs of many streams; see the module's docstring for its laws. ``window`` is W, in clips."""

    def __init__(self, policy: BatchPolicy, window: int) -> None:
        self.policy = policy
        self.shedder = Shedder(policy, window)
        self.counters: Counter[str] = Counter()
        self.bytes = 0
        self._lines: dict[Any, _Line] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, stream: Any) -> deque[Ticket]:
        """Jobs of one stream, in order."""
        line = self._lines.get(stream)
        return deque() if line is None else line.waiting

    # -- in and out ---------------------------------------------------------------------------------------------

    def add(self, ticket: Ticket) -> list[Shed]:
        """Take a job; what had to give up its content for it. Raises LegatoError when the stream's line is full."""
        line = self._lines.setdefault(ticket.stream, _Line())
        if len(line.waiting) >= self.policy.max_line:
            self.counters["refused"] += 1
            raise LegatoError(
                f"a stream has {len(line.waiting)} clips waiting, the most it may; send no faster than it plays, or "
                "use a faster device"
            )
        self.counters["submitted"] += 1
        if ticket.version:  # a repair of what was shed changes nothing about that
            before = {m for t in line.waiting if t.clip == ticket.clip for m in t.shed}
            ticket.lose(m for m in ticket.needs if m in before or m in self.shedder.before(ticket))
        line.waiting.append(ticket)
        line.bytes += ticket.size
        self.bytes += ticket.size
        self._count += 1
        return self._bounded(line)

    def remove(self, stream: Any) -> list[Ticket]:
        """Forget a stream and everything that waits for it."""
        self.shedder.forget(stream)
        line = self._lines.pop(stream, None)
        if line is None:
            return []
        self._count -= len(line.waiting)
        self.bytes -= line.bytes
        self.counters["removed"] += len(line.waiting)
        return list(line.waiting)

    def due(self, now: float, cost: Cost) -> float | None:
        """When the next batch should leave: at once (``now``), at a later time, or None where nothing waits."""
        if not self._count:
            return None
        if self._count >= self.policy.max_batch:
            return now
        jobs = [ticket for line in self._lines.values() for ticket in line.waiting]
        oldest = min(ticket.submitted for ticket in jobs)
        pressing = min(ticket.deadline for ticket in jobs) - cost(load_of(jobs))
        return max(now, min(oldest + self.policy.max_wait_seconds, pressing))

    def take(self, now: float, cost: Cost, share: Callable[[Ticket], float]) -> Batch:
        """The next batch. ``share(ticket)`` is the observed share of the window that its clip completes, 0 to 1."""
        timely, late = self._ordered(now, cost)
        shed: list[Shed] = []
        if self.policy.shed:
            shed = self.shedder.shed(timely, late, self.waiting, now, cost, share)
            self._spread(shed)
            self.counters.update(f"shed_{modality}" for _, modality, _ in shed)
        chosen = self._chosen(timely, late, now, cost)
        for ticket in chosen:
            self._leave(ticket, now)
        self.counters["batches"] += 1
        return Batch(chosen, shed)

    def _chosen(self, timely: list[Ticket], late: list[Ticket], now: float, cost: Cost) -> list[Ticket]:
        most = self.policy.max_batch
        if first_miss(timely, now, cost, most, _deadline) is not None:
            return timely[:most]
        end, _ = fit(timely, 0, now, cost, most, _deadline)
        chosen = timely[:end]
        if end < len(timely):
            return chosen
        first, load = min(map(_deadline, chosen), default=float("inf")), load_of(chosen)
        for ticket in late[: most - end]:
            load = load.plus(ticket)
            if now + cost(load) > first:
                break
            chosen.append(ticket)
        return chosen

    def _spread(self, shed: list[Shed]) -> None:
        """A repair that waits behind a clip loses what the clip loses: it is encoded as the clip was."""
        for ticket, modality, _ in shed:
            for behind in self._lines[ticket.stream].waiting:
                same = behind.version and behind.clip == ticket.clip and behind is not ticket
                if same and modality in behind.needs:
                    behind.lose([modality])

    def _leave(self, ticket: Ticket, now: float) -> None:
        line = self._lines[ticket.stream]
        head = line.waiting.popleft()
        assert head is ticket, "a stream's jobs leave in order"
        self._count -= 1
        self._release(line, ticket)
        self.counters["late"] += ticket.deadline < now
        self.shedder.admitted(ticket)

    def _ordered(self, now: float, cost: Cost) -> tuple[list[Ticket], list[Ticket]]:
        """Jobs by deadline, each stream's in order: those that can be in time, then those that cannot.

        What waits behind a late clip of its own stream goes with it.
        """
        timely: list[Ticket] = []
        late: list[Ticket] = []
        heads: list[tuple[bool, float, Any, int]] = []

        def push(stream: Any, at: int, behind: bool) -> None:
            waiting = self._lines[stream].waiting
            if at < len(waiting):
                hopeless = behind or now + cost(waiting[at].load) > waiting[at].deadline
                heapq.heappush(heads, (hopeless, waiting[at].deadline, stream, at))

        for stream in self._lines:
            push(stream, 0, False)
        most = max(HORIZON, 2 * self.policy.max_batch)
        while heads and len(timely) < most and len(late) < most:
            hopeless, _, stream, at = heapq.heappop(heads)
            (late if hopeless else timely).append(self._lines[stream].waiting[at])
            push(stream, at + 1, hopeless)
        return timely, late

    # -- bounds -------------------------------------------------------------------------------------------------

    def _bounded(self, line: _Line) -> list[Shed]:
        out: list[Shed] = []
        full = [ticket for ticket in line.waiting if ticket.size]
        for ticket in full[: max(0, len(full) - self.policy.per_stream)]:
            out += self._emptied(line, ticket, "overflowed")
        while self.bytes > self.policy.max_bytes:
            largest = max(self._lines.values(), key=lambda one: one.bytes)
            oldest = next(ticket for ticket in largest.waiting if ticket.size)
            out += self._emptied(largest, oldest, "evicted")
        return out

    def _emptied(self, line: _Line, ticket: Ticket, counter: str) -> list[Shed]:
        self.counters[counter] += 1
        out = [Shed(ticket, m, "overflow") for m in ticket.needs if m not in ticket.shed]
        ticket.lose(ticket.needs)
        self._spread(out)
        self._release(line, ticket)
        return out

    def _release(self, line: _Line, ticket: Ticket) -> None:
        line.bytes -= ticket.size
        self.bytes -= ticket.size
        ticket.size = 0


def _deadline(ticket: Ticket) -> float:
    return ticket.deadline
