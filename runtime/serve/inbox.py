"""What was read of one client and is not decoded yet; worked off in turns by the decode pool.

The event loop puts in and settles, one thread of the pool at a time works. A turn ends with the first clip that closed
(the model's line decides when the next may), or after a slice of time, so that no stream holds a thread for long.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime import logs
from runtime.clip import Clip
from runtime.serve.answers import StreamStats
from runtime.serve.intake import Intake
from runtime.serve.status import Refused, failed

__all__ = ["Inbox", "Turn"]

log = logs.of(__name__)

SLICE = 0.02  # seconds that a stream may hold a thread of the pool while others wait


@dataclass(slots=True)
class _Item:
    """One thing to do."""

    act: Callable[..., list[Clip]]
    arguments: tuple[Any, ...]
    size: int  # bytes
    packets: int
    came: float | None  # when it was read, on the session's clock


@dataclass(slots=True)
class Turn:
    """What one turn gave."""

    life: int  # of the inbox, when it began
    clips: list[tuple[Clip, dict[str, int]]] = field(default_factory=list)  # and what they make unnecessary
    stats: StreamStats | None = None
    size: int = 0
    packets: int = 0
    came: float | None = None  # when the newest that it worked on was read
    deadline: float | None = None  # when something will be due though nothing comes
    finished: bool = False
    failure: Refused | None = None


class Inbox:
    """A bounded line in front of an intake. Who puts in asks for ``room`` first: nothing is dropped here."""

    def __init__(self, intake: Intake, stream: str, *, packets: int, size: int) -> None:
        self._intake, self._stream = intake, stream
        self._most_packets, self._most_size = packets, size
        self._items: deque[_Item] = deque()
        self.packets = 0
        self.size = 0  # bytes
        self._life = 0  # +1 when what waits is thrown away

    def __len__(self) -> int:
        return len(self._items)

    @property
    def room(self) -> bool:
        """Whether more may be read."""
        return self.packets < self._most_packets and self.size < self._most_size

    def put(
        self,
        act: Callable[..., list[Clip]],
        *arguments: Any,
        size: int = 0,
        packets: int = 0,
        came: float | None = None,
    ) -> None:
        """One more thing to do, after all others."""
        self._items.append(_Item(act, arguments, size, packets, came))
        self.size += size
        self.packets += packets

    def empty(self) -> None:
        """Throw away what waits; a turn that is under way ends with what it holds."""
        self._life += 1
        self._items.clear()
        self.size = self.packets = 0

    def settle(self, turn: Turn) -> None:
        """A turn is over: its place is free."""
        if turn.life == self._life:
            self.size -= turn.size
            self.packets -= turn.packets

    def work(self) -> Turn:
        """One turn; in the pool."""
        turn, until, began = Turn(self._life), time.perf_counter() + SLICE, time.thread_time()
        intake = self._intake
        try:
            while not turn.clips and (item := self._next()) is not None:
                turn.size += item.size
                turn.packets += item.packets
                turn.came = item.came
                turn.clips = [(clip, intake.needed(clip)) for clip in item.act(*item.arguments)]
                if time.perf_counter() >= until:
                    break
            intake.cpu += time.thread_time() - began
            intake.check_budget()
            turn.deadline, turn.finished = intake.receiver.next_deadline, intake.finished
        except Refused as refused:
            turn.failure = refused
        except Exception as error:
            turn.failure = self._mistake(error)
        return turn

    def count(self, deadline: float | None) -> Turn:
        """A turn that only reads the totals; in the pool."""
        turn = Turn(self._life, deadline=deadline)
        try:
            turn.stats = self._intake.stats()
        except Exception as error:
            turn.failure = self._mistake(error)
        return turn

    def _next(self) -> _Item | None:
        try:
            return self._items.popleft()
        except IndexError:  # empty, or emptied this moment
            return None

    def _mistake(self, error: Exception) -> Refused:
        log.exception("the server failed a stream", stream=self._stream)
        return failed(f"the server made a mistake with this stream ({type(error).__name__}); it was logged")
