"""Inbox: where the threads of devices put packets and one reader takes them; bounded, and old pictures give way.

Arrival times and sequence numbers are given here, under one lock. So arrivals never go back, whatever threads do, and
a reader that found nothing knows that nothing had arrived when it looked: what makes a live run and the replay of its
recording agree (tests/test_live.py).

When it is full, or what lies in it grows old, the oldest packet of the modality is dropped. Its number stays a hole,
which the receiver counts as lost: overload is a loss like any other.
"""

import threading
from collections import deque
from collections.abc import Mapping

from runtime.clock import Clock
from runtime.packet import CodecConfig, Decision, Packet

INTRA_SECONDS = 0.5  # pictures that need no other: a slow reader never sees older ones
CODED_SECONDS = 2.0  # all else: sound, and pictures of which each is needed by the next
CAPACITY = 1024  # items, whatever their age
INTRA_CODECS = ("mjpeg", "rawvideo")


class Inbox:
    """Items in order of arrival, on ``clock``."""

    def __init__(self, clock: Clock, *, capacity: int = CAPACITY) -> None:
        self._clock, self._capacity = clock, capacity
        self._items: deque[Packet | Decision] = deque()
        self._waiting: dict[str, int] = {}  # packets that lie here, by modality
        self._codecs: dict[str, CodecConfig] = {}
        self._next: dict[str, int] = {}
        self._newest = float("-inf")  # arrival
        self._ready = threading.Condition()
        self.dropped: dict[str, int] = {}  # packets that gave way to newer ones
        self.closed = False

    def __len__(self) -> int:
        return len(self._items)

    def announce(self, codecs: Mapping[str, CodecConfig]) -> None:
        """What the packets of these modalities are from here on."""
        with self._ready:
            self._codecs.update(codecs)

    def packet(
        self,
        modality: str,
        payload: bytes,
        capture_time: int,
        *,
        duration: int = 0,
        missed: int = 0,
        keyframe: bool = True,
        disposable: bool = False,
        decode_time: int | None = None,
    ) -> None:
        """One packet, now; ``missed`` before it are known to be lost. Times count ticks of the announced time base."""
        with self._ready:
            if self.closed:
                return
            seq = self._next.get(modality, 0) + missed
            self._next[modality] = seq + 1
            self._put(
                Packet(
                    modality=modality,
                    seq=seq,
                    capture_time=capture_time,
                    time_base=self._codecs[modality].time_base,
                    payload=payload,
                    duration=duration,
                    keyframe=keyframe,
                    disposable=disposable,
                    decode_time=decode_time,
                    arrival=self._now(),
                )
            )

    def decision(self, kind: str, modality: str, *, codec: CodecConfig | None = None, reason: str = "") -> None:
        """Something was noticed, now. A format change announces its codec."""
        with self._ready:
            if self.closed:
                return
            if codec is not None:
                self._codecs[modality] = codec
            self._put(Decision(kind=kind, modality=modality, arrival=self._now(), codec=codec, reason=reason))

    def read(self, timeout: float = 0.0) -> Packet | Decision | None:
        """The oldest item that is not too old; None when nothing came within ``timeout`` seconds, or once closed."""
        with self._ready:
            if not self._items and timeout > 0 and not self.closed:
                self._ready.wait(timeout)
            return self._take()

    def forget(self) -> None:
        """Let go of the packets that lie here, uncounted: they are older than the stream."""
        with self._ready:
            self._items = deque(item for item in self._items if isinstance(item, Decision))
            self._waiting.clear()

    def close(self) -> None:
        """Take nothing more, wake the reader; what lies here can still be read."""
        with self._ready:
            self.closed = True
            self._ready.notify_all()

    def _now(self) -> float:
        self._newest = max(self._newest, self._clock.now())
        return self._newest

    def _put(self, item: Packet | Decision) -> None:
        self._items.append(item)
        if isinstance(item, Packet):
            self._waiting[item.modality] = self._waiting.get(item.modality, 0) + 1
            if len(self._items) > self._capacity:
                self._drop_oldest()
        self._ready.notify()

    def _take(self) -> Packet | Decision | None:
        now = self._clock.now() if self._items else 0.0
        while self._items:
            item = self._items.popleft()
            if isinstance(item, Decision):
                return item
            self._waiting[item.modality] -= 1
            assert item.arrival is not None
            if now - item.arrival <= self._longest(item.modality) or not self._waiting[item.modality]:
                return item  # the newest of its kind is never too old
            self._drop(item)
        return None

    def _longest(self, modality: str) -> float:
        return INTRA_SECONDS if self._codecs[modality].codec in INTRA_CODECS else CODED_SECONDS

    def _drop_oldest(self) -> None:
        """Make room; decisions stay."""
        for place, item in enumerate(self._items):
            if isinstance(item, Packet):
                del self._items[place]
                self._waiting[item.modality] -= 1
                self._drop(item)
                return

    def _drop(self, packet: Packet) -> None:
        self.dropped[packet.modality] = self.dropped.get(packet.modality, 0) + 1
