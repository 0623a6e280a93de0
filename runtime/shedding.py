"""Shedding: which clips are not encoded while there is more load than time; pure, for ``runtime.batches``.

While the predicted completion of what waits exceeds a deadline, the clip whose window has the highest observed share
is not encoded (tie: later deadline, then stream id), in one modality at a time, in the order of ``shed_order``. Never
two running in a stream, never more than ``shed_share`` of a window, at a stream's start too. What is too late already
lets its dearest modality go within the same limits, if it was in time when it came; and what is later by ``stale``
budgets knows no mercy: looking at it helps nobody, and makes others late. Once begun, shedding aims at a
part (``calm``) of the time from submitting to deadline, until that was kept for ``hold_seconds``.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.tickets import Bar, BatchPolicy, Cost, Shed, Ticket, first_miss

_ROUNDING = 1e-9

Share = Callable[[Ticket], float]


@dataclass
class _Past:
    """What a stream's clips were until now."""

    lost: deque[tuple[int, bool]] = field(default_factory=deque)  # (epoch, shed) of the clips before, W - 1 at most
    kept: dict[int, tuple[str, ...]] = field(default_factory=dict)  # clip -> what of it was shed, for its repairs


class Shedder:
    """Remembers of each stream what was shed of it, and chooses what goes next. ``window`` is W, in clips."""

    def __init__(self, policy: BatchPolicy, window: int) -> None:
        self.policy, self.window = policy, window
        self.until = float("-inf")  # the bar is lower before this time
        self._past: dict[Any, _Past] = {}

    def admitted(self, ticket: Ticket) -> None:
        """A job leaves the line: its clip's fate is sealed."""
        if ticket.clip is None or ticket.version:
            return
        past = self._past.setdefault(ticket.stream, _Past())
        past.lost.append((ticket.epoch, bool(ticket.shed)))
        while len(past.lost) >= self.window:
            past.lost.popleft()
        past.kept[ticket.clip] = ticket.shed
        while len(past.kept) > 2 * self.window:
            del past.kept[next(iter(past.kept))]

    def before(self, ticket: Ticket) -> tuple[str, ...]:
        """What was shed of a clip that has left the line."""
        past = self._past.get(ticket.stream)
        return past.kept.get(ticket.clip, ()) if past is not None and ticket.clip is not None else ()

    def forget(self, stream: Any) -> None:
        """A stream is over."""
        self._past.pop(stream, None)

    def bar(self, now: float) -> Bar:
        """By when a clip must be done: its deadline, and for a while after an excess a little earlier."""
        if now >= self.until:
            return lambda t: t.deadline
        spare = 1 - self.policy.calm
        return lambda t: t.deadline - spare * max(0.0, t.deadline - t.submitted)

    def shed(
        self,
        timely: Sequence[Ticket],
        late: Sequence[Ticket],
        waiting: Callable[[Any], Collection[Ticket]],
        now: float,
        cost: Cost,
        share: Share,
    ) -> list[Shed]:
        """Shed until every timely clip is predicted to stay so, or until nothing more may be.

        ``waiting(stream)`` is its line, in order.
        """
        out = [self._drop(t, m, why) for t, m, why in self._hopeless(late, waiting, now, cost)]
        order = self._order(timely, share)
        most, bar = self.policy.max_batch, self.bar(now)
        while (missed := first_miss(timely, now, cost, most, bar)) is not None:
            self.until = now + self.policy.hold_seconds
            chosen = self._next(order, missed, waiting)
            if chosen is None:
                break
            out.append(self._drop(*chosen))
        if out:
            self.until = now + self.policy.hold_seconds
        return out

    def _order(self, tickets: Sequence[Ticket], share: Share) -> Callable[[], list[tuple[int, Ticket, str]]]:
        """(place in line, ticket, modality), what is best done without first; made when first asked for."""
        made: list[tuple[int, Ticket, str]] | None = None

        def order() -> list[tuple[int, Ticket, str]]:
            nonlocal made
            if made is None:
                ranked = sorted(enumerate(tickets), key=lambda it: (-share(it[1]), -it[1].deadline, it[1].stream))
                made = [(i, t, m) for m in self.policy.shed_order for i, t in ranked if m in t.needs]
            return made

        return order

    def _next(
        self,
        order: Callable[[], list[tuple[int, Ticket, str]]],
        missed: int,
        waiting: Callable[[Any], Collection[Ticket]],
    ) -> tuple[Ticket, str] | None:
        """The first that may go and whose going helps; what may not go now never may, and is struck off."""
        ranked, at = order(), 0
        while at < len(ranked):
            place, ticket, modality = ranked[at]
            if place > missed:
                at += 1
                continue
            del ranked[at]
            if modality not in ticket.shed and self.may_lose(ticket, waiting(ticket.stream)):
                return ticket, modality
        return None

    def _hopeless(
        self, late: Sequence[Ticket], waiting: Callable[[Any], Collection[Ticket]], now: float, cost: Cost
    ) -> Iterator[tuple[Ticket, str, str]]:
        """What came in time and waited too long: its dearest modality goes, so that its stream catches up."""
        for ticket in late:
            if self._stale(ticket, now):
                left = [m for m in self.policy.shed_order if m in ticket.needs and m not in ticket.shed]
                yield from ((ticket, m, "stale") for m in left)
                continue
            first = next((m for m in self.policy.shed_order if m in ticket.needs), None)
            in_time = ticket.submitted + cost(ticket.load) <= ticket.deadline
            if first is not None and in_time and not ticket.shed and self.may_lose(ticket, waiting(ticket.stream)):
                yield ticket, first, "load"

    def _stale(self, ticket: Ticket, now: float) -> bool:
        """Whether a clip that was in time when it came is too late for anybody."""
        if ticket.clip is None or ticket.version:
            return False
        budget = ticket.deadline - ticket.submitted
        return budget > 0 and now - ticket.deadline > self.policy.stale * budget

    def may_lose(self, ticket: Ticket, waiting: Collection[Ticket]) -> bool:
        """Whether a clip may be shed: never two running, never more than a share of any window it stands in."""
        if ticket.clip is None or ticket.version:
            return False
        if ticket.shed:
            return True  # it is already: another modality of it costs its window no further clip
        past = self._past.get(ticket.stream, _Past())
        clips = [t for t in waiting if t.clip is not None and not t.version and t.epoch == ticket.epoch]
        lost = [shed for epoch, shed in past.lost if epoch == ticket.epoch]
        at = len(lost) + next(i for i, t in enumerate(clips) if t is ticket)
        lost += [bool(t.shed) or t is ticket for t in clips]
        if (at and lost[at - 1]) or (at + 1 < len(lost) and lost[at + 1]):
            return False
        for end in range(at + 1, min(at + self.window, len(lost)) + 1):
            window = lost[max(0, end - self.window) : end]
            if sum(window) > self.policy.shed_share * len(window) + _ROUNDING:
                return False
        return True

    def _drop(self, ticket: Ticket, modality: str, reason: str = "load") -> Shed:
        ticket.lose([modality])
        return Shed(ticket, modality, reason)
