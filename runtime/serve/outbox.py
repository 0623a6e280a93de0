"""What waits to be sent to one client, and what it may still ask for again.

A client that does not read costs memory, so the queue is bounded. When it is full, the oldest provisional prediction
goes first, then the oldest clip report, both counted; totals replace the totals that were not sent. Final predictions
are kept up to the bound; one more, and the stream ends with RESOURCE_EXHAUSTED.

What was sent and not acknowledged is kept for a resume. ``ack_through_seq`` travels with the first message after all
that it presumes, so a client that received it has everything below.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos import stream_pb2 as pb
from runtime.serve.status import data_loss, exhausted, invalid

__all__ = ["Ack", "Outbox"]

LIMIT = 256  # messages that wait to be sent; a minute and a half of a stream with two heads and a lookahead
KEPT = 1024  # predictions that were sent and not acknowledged

DROPPED_FIRST = ("provisional", "report")  # in this order

Key = tuple[int, int, str, int]  # epoch, clip, head, revision


@dataclass(frozen=True, slots=True)
class Ack:
    """What the client may forget, by modality, and where a fresh server would go on."""

    through: Mapping[str, int]
    point: pb.ResumePoint | None


@dataclass(slots=True)
class _Entry:
    kind: str  # started, final, provisional, report, stats, going_away
    response: pb.StreamResponse
    key: Key | None = None
    since: float = 0.0
    ack: Ack | None = None


class Outbox:
    """The responses of one stream, in order. Belongs to one thread.

    ``ready`` is set whenever there may be something to send.
    """

    def __init__(self, limit: int = LIMIT, kept: int = KEPT) -> None:
        self.ready = asyncio.Event()
        self.dropped = 0  # responses never sent because the client did not read
        self.acknowledged = False  # the client was told that it may forget something
        self._limit, self._kept = limit, kept
        self._queue: deque[_Entry] = deque()
        self._again = 0  # entries at the head that were sent before
        self._sent: deque[_Entry] = deque()
        self._ack: Ack | None = None  # goes with the next message
        self._highest: tuple[int, int] = (-1, -1)  # epoch and clip of the newest prediction sent
        self._forgotten = -1  # highest clip whose final was sent, never acknowledged, and is gone

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, kind: str, response: pb.StreamResponse, key: Key | None = None, since: float = 0.0) -> None:
        """One more to send. Raises Refused when there is no room for it and nothing that could go instead."""
        if kind == "stats":
            for entry in [e for e in self._queue if e.kind == "stats"]:
                self._remove(entry)
        if kind in DROPPED_FIRST or kind == "final":
            while self._full and self._drop_one():
                self.dropped += 1
            if self._full and kind != "final":
                self.dropped += 1
                return
            if self._full:
                raise exhausted(
                    f"{self._limit} final predictions wait and the client reads none; read what the server sends",
                    "unread",
                    None,
                )
        self._queue.append(_Entry(kind, response, key, since))
        self.ready.set()

    @property
    def crowded(self) -> bool:
        """Whether half of the room is taken by what its client has not read."""
        return 2 * (len(self._queue) - self._again) >= self._limit

    @property
    def _full(self) -> bool:
        return len(self._queue) - self._again >= self._limit

    def progress(self, ack: Ack) -> None:
        """Everything put so far is what ``ack`` presumes."""
        if self._queue:
            self._queue[-1].ack = ack
        else:
            self._ack = ack

    def pop(self) -> tuple[pb.StreamResponse, Key | None, float] | None:
        """The next to send, its key, and the ``since`` it was put with."""
        if not self._queue:
            return None
        entry = self._queue.popleft()
        self._again = max(0, self._again - 1)
        ack, self._ack = entry.ack or self._ack, None
        if ack is not None:
            self.acknowledged |= bool(ack.through)
            entry.response.ack_through_seq.update(ack.through)
            if ack.point is not None:
                entry.response.resume_point.CopyFrom(ack.point)
        if entry.key is not None:
            self._highest = max(self._highest, entry.key[:2])
            self._keep(entry)
        return entry.response, entry.key, entry.since

    def has_sent(self, key: Key) -> bool:
        """Whether a prediction about this clip, or one after it, was sent from here."""
        return key[:2] <= self._highest

    def acknowledge(self, key: Key) -> None:
        """The client has stored everything up to this prediction. Raises Refused for one that was never sent."""
        if not self.has_sent(key):
            raise invalid("ack.prediction", f"clip {key[1]} of epoch {key[0]} was never sent; ack what was received")
        if any(entry.key == key for entry in self._sent):
            while self._sent.popleft().key != key:
                pass

    def rewind(self, next_clip: int | None) -> None:
        """Send again what may not have arrived. ``next_clip``: the client has every final before this clip.

        Raises:
            Refused: DATA_LOSS where something that it lacks is no longer here.
        """
        if self._forgotten >= (0 if next_clip is None else next_clip):
            raise data_loss(
                f"more than {self._kept} predictions were sent and never acknowledged, and the first of them are "
                "gone; open a new stream, and ack what is received"
            )
        again = [e for e in self._sent if next_clip is None or (e.key is not None and e.key[1] >= next_clip)]
        rest = [e for e in self._queue if e.kind not in ("started", "going_away")]
        self._sent.clear()
        self._queue = deque((*again, *rest))
        self._again = len(again)
        self.ready.set()

    def first(self, response: pb.StreamResponse) -> None:
        """The first message on a connection goes before everything."""
        self._queue.appendleft(_Entry("started", response))
        self._again += 1
        self.ready.set()

    def _keep(self, entry: _Entry) -> None:
        self._sent.append(entry)
        if len(self._sent) > self._kept:
            gone = self._sent.popleft()
            if gone.kind == "final" and gone.key is not None:
                self._forgotten = max(self._forgotten, gone.key[1])

    def _drop_one(self) -> bool:
        """Let the least useful message go; False where none may."""
        for kind in DROPPED_FIRST:
            for place, entry in enumerate(self._queue):
                if entry.kind == kind and place >= self._again:
                    self._remove(entry)
                    return True
        return False

    def _remove(self, gone: _Entry) -> None:
        """Take a message out; what it acknowledged goes with the next one, which comes later and so may say it."""
        place = next(i for i, entry in enumerate(self._queue) if entry is gone)
        del self._queue[place]
        self._again -= place < self._again
        if gone.ack is None:
            return
        if place < len(self._queue):
            self._queue[place].ack = self._queue[place].ack or gone.ack
        else:
            self._ack = gone.ack

    def stats(self) -> dict[str, Any]:
        """What is held, for bounds in tests and logs."""
        return {"queued": len(self._queue), "kept": len(self._sent), "dropped": self.dropped}
