"""Seats: the places of a server, and of the workers that share its port.

A server may be several processes (``runtime.serve.workers``). Each has a seat; how many streams each of them serves
lies in memory that all can read, so that the limit holds for all together and a stream can be given to whoever has
least to do.
"""

from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path

from runtime.serve.status import exhausted

__all__ = ["MOST_WORKERS", "Places", "Seat"]

MOST_WORKERS = 64
UNEVEN = 4  # streams that a worker may have beyond the one with the fewest before it gives a new one away


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One worker's place among all.

    ``loads`` holds the streams of each, shared between the processes; ``folder``, which only its owner may enter, the
    sockets by which they reach each other.
    """

    index: int
    loads: MutableSequence[int]
    folder: Path

    @property
    def mark(self) -> bytes:
        """What a resume token of this worker begins with."""
        return bytes([self.index])

    def path(self, index: int) -> Path:
        """The socket where a worker takes the calls that another passes on."""
        return self.folder / str(index)

    def holder(self, token: bytes) -> int | None:
        """The other worker that a resume token names; None for one of this worker, or of no worker there is."""
        index = token[0] if token else self.index
        return index if index != self.index and index < len(self.loads) else None

    def lighter(self) -> int | None:
        """A worker that has so much less to do that a new stream should go there; None: it may stay."""
        index = min(range(len(self.loads)), key=self.loads.__getitem__)
        mine = self.loads[self.index] - 1  # without the one that is asked about
        return index if index != self.index and mine - self.loads[index] >= UNEVEN else None


class Places:
    """Counts the streams of a server against the most that it may have, those of the other workers included."""

    def __init__(self, most: int, seat: Seat | None = None) -> None:
        self._most = most
        self._loads: MutableSequence[int] = [0] if seat is None else seat.loads
        self._own = 0 if seat is None else seat.index

    @property
    def taken(self) -> int:
        """By this worker: connections that are served, or about to be."""
        return self._loads[self._own]

    def take(self) -> None:
        """One more. Raises Refused when all are taken."""
        if sum(self._loads) >= self._most:
            raise exhausted(f"all {self._most} streams are taken; try again, or another server", "full")
        self._loads[self._own] += 1

    def free(self) -> None:
        """One less."""
        self._loads[self._own] -= 1
