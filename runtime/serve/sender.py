"""What a client still has to send, and what it keeps until the server needs it no more; pure.

A server acknowledges, per modality, the highest sequence number such that even a fresh server could do without it and
everything before. After a cut, sending begins right behind that. Two ways to have those packets again:

- ``Reread``: a file or recording is opened once more and read past what was acknowledged; nothing is kept.
- ``Kept``: what can be read only once is kept in bounded memory. A file then waits for room; a live source drops the
  oldest, whole groups of pictures at a time, and the hole in the numbers is a gap that the server reports as loss.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from runtime.packet import CodecConfig, Decision, Gap, Packet, StreamInfo
from runtime.sources.base import Source

__all__ = ["KEEP_BYTES", "KEEP_SECONDS", "Feed", "Kept", "Reread"]

KEEP_BYTES = 64 << 20  # what is kept at most
KEEP_SECONDS = 30.0  # of a live source; as long as a server keeps a stream that lost its client

Item = Packet | Decision
_OVERHEAD = 500  # bytes, about, that a packet takes besides its payload


class Feed(Protocol):
    """The items of one stream from wherever sending has to go on."""

    @property
    def info(self) -> StreamInfo:
        """What is known before the first item."""
        ...

    @property
    def last_seq(self) -> Mapping[str, int]:
        """By modality, the highest number that the source gave so far."""
        ...

    @property
    def ended(self) -> bool:
        """Every item was taken, and the source has no more."""
        ...

    @property
    def blocked(self) -> bool:
        """Nothing can be taken before the server acknowledges something."""
        ...

    def rewind(self) -> Mapping[str, CodecConfig]:
        """Begin again behind what is acknowledged; the codecs that hold there."""
        ...

    def take(self) -> Item | None:
        """The next item to send; None: nothing now."""
        ...

    def acknowledge(self, through: Mapping[str, int]) -> None:
        """The server needs nothing at or below these numbers."""
        ...

    def gaps(self) -> list[Gap]:
        """What was given up unsent since the last call."""
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


class _Acknowledged:
    """How far the server is; numbers only grow."""

    def __init__(self, through: Mapping[str, int] | None = None) -> None:
        self._through = dict(through or {})

    def update(self, through: Mapping[str, int]) -> None:
        for modality, seq in through.items():
            self._through[modality] = max(seq, self._through.get(modality, -1))

    def covers(self, item: Item) -> bool:
        return isinstance(item, Packet) and item.seq <= self._through.get(item.modality, -1)


class Reread:
    """A source that can be opened again. ``acknowledged`` is where an earlier client got to."""

    def __init__(self, again: Callable[[], Source], acknowledged: Mapping[str, int] | None = None) -> None:
        self._again = again
        self._source: Source | None = again()
        self.info = self._source.info
        self.last_seq: dict[str, int] = {}
        self._acknowledged = _Acknowledged(acknowledged)
        self._items: Iterator[Item] = iter(())
        self._next: Item | None = None
        self._fresh = True  # opened, not read yet
        self.ended = False
        self.blocked = False

    def rewind(self) -> Mapping[str, CodecConfig]:
        if not self._fresh or self._source is None:
            self.close()
            self._source = self._again()
        self._fresh, self.ended = False, False
        self._items = iter(self._source.packets())
        codecs = dict(self._source.info.codecs)
        self._next = self._read()
        while (item := self._next) is not None and (self._acknowledged.covers(item) or isinstance(item, Decision)):
            if isinstance(item, Decision) and item.codec is not None:
                codecs[item.modality] = item.codec
            self._next = self._read()
        return codecs

    def take(self) -> Item | None:
        item, self._next = self._next, None
        while item is None or self._acknowledged.covers(item):
            item = self._read()
            if item is None:
                self.ended = True
                return None
        return item

    def acknowledge(self, through: Mapping[str, int]) -> None:
        self._acknowledged.update(through)

    def gaps(self) -> list[Gap]:
        return []

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _read(self) -> Item | None:
        item = next(self._items, None)
        if isinstance(item, Packet):
            self.last_seq[item.modality] = max(item.seq, self.last_seq.get(item.modality, -1))
        return item


class Kept:
    """A source that is read once; not thread-safe.

    With ``pull`` items are fetched as they are taken, and taking stops at ``max_bytes`` until something is
    acknowledged. Without, they are ``put`` as they are captured, and the oldest are dropped beyond ``max_bytes`` or
    ``max_seconds`` of arrival time. ``finish`` says that nothing more will be put.
    """

    def __init__(
        self,
        info: StreamInfo,
        pull: Iterator[Item] | None = None,
        *,
        max_bytes: int = KEEP_BYTES,
        max_seconds: float = KEEP_SECONDS,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self.last_seq: dict[str, int] = {}
        self.bytes = 0
        self.dropped = 0  # packets that were never sent
        self._pull, self._max_bytes, self._max_seconds, self._close = pull, max_bytes, max_seconds, close
        self._codecs = dict(info.codecs)  # as they hold before the first kept item
        self._items: deque[Item] = deque()
        self._sent = 0  # of the kept items, how many this connection has been given
        self._acknowledged = _Acknowledged()
        self._finished = False
        self._torn = False  # the next pictures hang on one that was dropped
        self._given_up: dict[str, list[Gap]] = {}

    @property
    def ended(self) -> bool:
        return self._finished and self._sent == len(self._items)

    @property
    def blocked(self) -> bool:
        return self._pull is not None and self._sent == len(self._items) and self.bytes >= self._max_bytes

    def put(self, item: Item) -> None:
        """One item of the source, in its order."""
        if isinstance(item, Packet):
            self.last_seq[item.modality] = max(item.seq, self.last_seq.get(item.modality, -1))
            if self._torn and item.modality == "video" and not item.keyframe:
                self._give_up(item)
                return
            self._torn = self._torn and item.modality != "video"
        self._items.append(item)
        self.bytes += _size(item)
        if self._pull is None:
            self._shed()

    def finish(self) -> None:
        """The source has ended."""
        self._finished = True

    def rewind(self) -> Mapping[str, CodecConfig]:
        self._forget()
        self._sent = 0
        return dict(self._codecs)

    def take(self) -> Item | None:
        while True:
            if self._sent == len(self._items) and not self._fetch():
                return None
            item = self._items[self._sent]
            self._sent += 1
            if not self._acknowledged.covers(item):
                return item

    def acknowledge(self, through: Mapping[str, int]) -> None:
        self._acknowledged.update(through)
        self._forget()

    def gaps(self) -> list[Gap]:
        found, self._given_up = self._given_up, {}
        return [gap for runs in found.values() for gap in runs]

    def close(self) -> None:
        self._close()

    def _fetch(self) -> bool:
        if self._pull is None or self._finished or self.blocked:
            return False
        item = next(self._pull, None)
        if item is None:
            self._finished = True
            return False
        self.put(item)
        return True

    def _forget(self) -> None:
        """Drop what is acknowledged from the front."""
        while self._items and (self._acknowledged.covers(self._items[0]) or self._passed()):
            self._pop()

    def _passed(self) -> bool:
        """A decision at the front that this connection has heard: the next one gets it in its config."""
        return self._sent > 0 and isinstance(self._items[0], Decision)

    def _pop(self) -> Item:
        item = self._items.popleft()
        self.bytes -= _size(item)
        if isinstance(item, Decision) and item.codec is not None:
            self._codecs[item.modality] = item.codec
        self._sent = max(0, self._sent - 1)
        return item

    def _shed(self) -> None:
        """Let the oldest go while too much is kept; where a picture goes unsent, all up to the next keyframe."""
        torn = False
        unheard: list[Item] = []  # changes of format that the server must still be told
        while self._items and (self._over() or (torn and not _starts(self._items[0]))):
            unsent = self._sent == 0
            item = self._pop()
            if unsent and isinstance(item, Packet):
                self._give_up(item)
                torn = torn or item.modality == "video"
            elif unsent:
                unheard.append(item)
        self._torn = self._torn or (torn and not self._items)
        self._items.extendleft(reversed(unheard))
        self.bytes += sum(map(_size, unheard))

    def _over(self) -> bool:
        if self.bytes > self._max_bytes:
            return True
        oldest, newest = self._items[0].arrival, self._items[-1].arrival
        return oldest is not None and newest is not None and newest - oldest > self._max_seconds

    def _give_up(self, packet: Packet) -> None:
        """A packet that no server will get; runs of them are one gap."""
        self.dropped += 1
        runs = self._given_up.setdefault(packet.modality, [])
        if runs and runs[-1].first_seq + runs[-1].count == packet.seq:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1, end=packet.end_seconds)
        else:
            start, end = packet.seconds, packet.end_seconds
            runs.append(Gap(modality=packet.modality, first_seq=packet.seq, count=1, start=start, end=end))


def _starts(item: Item) -> bool:
    """Whether video can be decoded from here on."""
    return isinstance(item, Packet) and item.modality == "video" and item.keyframe


def _size(item: Item) -> int:
    return _OVERHEAD + (len(item.payload) if isinstance(item, Packet) else 0)
