"""Resuming: tokens that name a stream's state, and how long that state outlives its connection.

A token is 128 random bits (120, where the first byte names one of several workers), known to one caller, good for one
use; here only its hash is kept. A stream whose connection broke is kept for some seconds with its clock stopped, so
that whoever comes back in time goes on as if nothing had happened. Of one that was given up it is remembered for a
while that it was there.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from runtime.serve.status import data_loss, denied

__all__ = ["KEEP_SECONDS", "Resumes"]

KEEP_SECONDS = 30.0  # that a detached stream is kept
TOKEN_BYTES = 16
REMEMBERED = 4096  # streams given up that are still known by their token's hash


class Resumable(Protocol):
    """What is kept: a stream's state."""

    @property
    def acknowledged(self) -> bool:
        """Whether its client was told that it may forget something."""
        ...


T = TypeVar("T", bound=Resumable)


@dataclass(slots=True)
class _Held(Generic[T]):
    state: T
    caller: str
    digest: bytes
    until: float | None = None  # None while its connection lives


class Resumes(Generic[T]):
    """The streams of a server by their resume tokens. Times are seconds on the clock of whoever calls.

    At most ``capacity`` streams are kept without a connection; the one that waited longest goes first. ``mark`` is
    what tokens begin with, in place of as many random bytes.
    """

    def __init__(self, keep: float = KEEP_SECONDS, capacity: int = 64, mark: bytes = b"") -> None:
        self._keep, self._capacity, self._mark = keep, capacity, mark
        self._by_digest: dict[bytes, _Held[T]] = {}
        self._by_state: dict[int, _Held[T]] = {}
        self._gone: OrderedDict[bytes, bool] = OrderedDict()  # whether something had been acknowledged

    def issue(self, state: T, caller: str) -> bytes:
        """A fresh token for a stream; the one before it is void."""
        token = self._mark + secrets.token_bytes(TOKEN_BYTES - len(self._mark))
        digest = _digest(token)
        held = self._by_state.get(id(state))
        if held is None:
            held = self._by_state[id(state)] = _Held(state, caller, digest)
        else:
            del self._by_digest[held.digest]
            held.digest = digest
        self._by_digest[digest] = held
        return token

    def take(self, token: bytes, caller: str, *, rebuildable: bool) -> T | None:
        """The stream that a token names, its connection alive again; None if it is not known here.

        ``rebuildable``: the caller brings what a fresh server needs, so that a stream given up is no loss.

        Raises:
            Refused: PERMISSION_DENIED for somebody else's token, DATA_LOSS for one that waited too long.
        """
        digest = _digest(token)
        held = self._by_digest.get(digest)
        if held is None:
            if self._gone.get(digest) and not rebuildable:
                raise data_loss(
                    f"the stream was given up {self._keep:g} s after its connection broke, and what it had "
                    "acknowledged is gone; open a new stream"
                )
            return None
        if held.caller != caller:
            raise denied("this resume token belongs to another caller")
        held.until = None
        return held.state

    def detach(self, state: T, now: float) -> list[T]:
        """A connection broke: keep its stream from now on. Streams that have to go for it."""
        held = self._by_state.get(id(state))
        if held is None:
            return []
        held.until = now + self._keep
        waiting = [h for h in self._by_state.values() if h.until is not None]
        waiting.sort(key=lambda h: h.until or 0.0)
        return [self._drop(h) for h in waiting[: max(0, len(waiting) - self._capacity)]]

    def expire(self, now: float) -> list[T]:
        """The streams that nobody came back for."""
        return [self._drop(h) for h in list(self._by_state.values()) if h.until is not None and h.until <= now]

    def forget(self, state: T) -> None:
        """A stream ended in order: there is nothing to resume."""
        held = self._by_state.pop(id(state), None)
        if held is not None:
            del self._by_digest[held.digest]

    def caller(self, state: T) -> str:
        """Whose stream it is."""
        return self._by_state[id(state)].caller

    def states(self) -> list[T]:
        """Every stream, with a connection or without."""
        return [held.state for held in self._by_state.values()]

    def detached(self) -> int:
        """How many wait for their client."""
        return sum(held.until is not None for held in self._by_state.values())

    def _drop(self, held: _Held[T]) -> T:
        self.forget(held.state)
        self._gone[held.digest] = held.state.acknowledged
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        return held.state


def _digest(token: bytes) -> bytes:
    """What is kept of a token: looking it up tells nothing by the time it takes."""
    return hashlib.sha256(token).digest()
