"""Keeper: packet recordings that a server makes of the streams whose senders agreed.

Nothing is kept unless somebody starts a Keeper, and of a stream nothing unless ``open`` is called, which a server does
only with the sender's ``recording_consent``. Files are readable by their owner only; ``runtime/retention.py`` says how
they are named and when they go.

A recording never harms its stream: packets are handed to one writing thread through a bounded queue, and a disk that
is full, slow or gone ends the recording, not the stream. A recording *ends*; it does not thin out, since a packet left
out would replay as a loss that never was. What was written until then replays (``runtime/recording.py``).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runtime import logs
from runtime.closing import Closing
from runtime.errors import LegatoError
from runtime.observe import Observer
from runtime.packet import Decision, Packet, StreamInfo
from runtime.recording import RecordingWriter
from runtime.retention import Retention

__all__ = ["Keeper", "Tap"]

log = logs.of(__name__)

MAX_BYTES = 10 << 30  # of all recordings in the folder
MAX_AGE = 7 * 24 * 3600.0  # seconds since a recording's last packet
PER_STREAM_BYTES = 1 << 30
LEAST_BYTES = 4096  # below which a recording is not begun
QUEUE_BYTES = 64 << 20  # handed to the writing thread and not written yet, all streams together
RECORD_BYTES = 80  # what a record takes in a file besides its payload, about
ITEM_BYTES = 400  # what it takes in memory
SWEEP_SECONDS = 60.0  # between two looks at ages
CLOSE_SECONDS = 5.0  # for the last packets to reach the disk when a server stops


class Tap(Closing):
    """What is kept of one stream: hand it every packet and decision in order of arrival, then close it.

    No method raises or waits. ``active`` turns False when the recording has ended, for whatever reason.
    """

    def __init__(self, keeper: "Keeper", writer: RecordingWriter, stream: str) -> None:
        self.path = writer.path
        self.active = True
        self.writer = writer  # the writing thread's
        self.log = log.bind(stream=stream)
        self._keeper = keeper

    def packet(self, packet: Packet, arrival: float | None = None) -> None:
        """Keep one packet; ``arrival`` in seconds replaces the packet's own."""
        if self.active:
            item = packet if arrival is None else replace(packet, arrival=arrival)
            self._keeper.hand(self, item, len(packet.payload))

    def decision(self, decision: Decision) -> None:
        """Keep one decision."""
        if self.active:
            self._keeper.hand(self, decision, 0)

    def close(self) -> None:
        """The stream is over; again is harmless."""
        if self.active:
            self.active = False
            self._keeper.hand(self, None, 0)


class Keeper(Closing):
    """Keeps the packets of streams in ``folder`` until it is closed.

    max_bytes: of all recordings together, the oldest go first; max_age: seconds since a recording's last packet;
    per_stream_bytes: where a recording ends. ``wall`` is the time of day, for names and ages.

    Raises:
        OutputError: the folder cannot be used, can be opened by others, or another process keeps recordings there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_age: float = MAX_AGE,
        per_stream_bytes: int = PER_STREAM_BYTES,
        queue_bytes: int = QUEUE_BYTES,
        observer: Observer | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.retention = Retention(Path(folder), max_bytes=max_bytes, max_age=max_age)
        self._per_stream = min(per_stream_bytes, max_bytes)
        self._queue_bytes = queue_bytes
        self._observer = observer or Observer()
        self._wall = wall
        self._queue: deque[tuple[Tap, Packet | Decision | None, int]] = deque()
        self._waiting = 0  # bytes of memory that the queue holds
        self._busy = self._closed = False
        self._changed = threading.Condition()  # of the four above
        self._taps: set[Tap] = set()  # whose files are open; the writing thread's, and ``open`` adds to it
        self._sweep()
        self._thread = threading.Thread(target=self._work, name="legato-keep", daemon=True)
        self._thread.start()

    def open(self, info: StreamInfo, stream_id: str) -> Tap | None:
        """Begin to keep a stream whose sender agreed to it; None where that is not possible, which is logged."""
        if self._closed:
            return None
        if self.retention.room < LEAST_BYTES:
            self._refuse(stream_id, "the streams being recorded take all the room")
            return None
        kept = replace(info, labels={**info.labels, "stream": stream_id})
        try:
            writer = RecordingWriter(self.retention.new_name(self._wall()), kept, max_bytes=self._per_stream)
        except (LegatoError, OSError) as error:
            self._refuse(stream_id, _why(error))
            return None
        self.retention.begin(writer.path)
        tap = Tap(self, writer, stream_id)
        self._taps.add(tap)
        return tap

    @property
    def files(self) -> list[Path]:
        """The recordings there are, oldest first, those being written last."""
        return self.retention.files

    def flush(self) -> None:
        """Wait until everything handed over so far was written or given up."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._busy) or not self._thread.is_alive())

    def close(self) -> None:
        """End every recording; waits CLOSE_SECONDS for the disk at most. Again is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("recordings were cut short", why="the disk did not answer")
        self.retention.close()

    def hand(self, tap: Tap, item: Packet | Decision | None, size: int) -> None:
        """A tap's item, of ``size`` payload bytes, for the writing thread; None ends the recording. Never waits."""
        with self._changed:
            if self._closed:
                tap.active = False
                return
            slow = item is not None and self._waiting + size + ITEM_BYTES > self._queue_bytes
            self._queue.append((tap, None if slow else item, size))
            self._waiting += size + ITEM_BYTES
            self._changed.notify_all()
        if slow:
            self._ended(tap, "slow", "the disk is slower than the stream")

    # -- the writing thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        swept = time.monotonic()
        while self._take():
            if time.monotonic() - swept > SWEEP_SECONDS:
                swept = time.monotonic()
                self._sweep()
        for tap in list(self._taps):
            self._finish(tap)

    def _take(self) -> bool:
        """Write one item, or wait a while for one; False when the keeper is closed and everything is written."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._queue or self._closed, SWEEP_SECONDS)
            if not self._queue:
                return not self._closed
            tap, item, size = self._queue.popleft()
            self._waiting -= size + ITEM_BYTES
            self._busy = True
        try:
            if item is None:
                self._finish(tap)
            elif tap in self._taps:  # else it ended by a fault, and what was on its way is let go
                self._write(tap, item, size + RECORD_BYTES)
        except Exception:  # ours to mend, and no reason to stop the others
            tap.log.exception("recording failed")
            self._finish(tap)
        return True

    def _write(self, tap: Tap, item: Packet | Decision, size: int) -> None:
        try:
            added = tap.writer.append(item) if isinstance(item, Packet) else tap.writer.decision(item)
        except (LegatoError, OSError) as error:
            self._ended(tap, "disk" if isinstance(error.__cause__, OSError) else "packet", _why(error))
            self._finish(tap)
            return
        if not added:
            self._ended(tap, "limit", f"it reached {self._per_stream} bytes")
            self._finish(tap)
            return
        self._observer.recorded(size)
        if not self.retention.grow(tap.path, size):
            self._ended(tap, "full", "the streams being recorded take all the room")
            self._finish(tap)

    def _finish(self, tap: Tap) -> None:
        """Close a file; from now on it may be deleted."""
        tap.active = False
        if tap not in self._taps:
            return
        self._taps.discard(tap)
        try:
            tap.writer.close()
        except (LegatoError, OSError) as error:
            self._ended(tap, "disk", _why(error))
        self.retention.end(tap.path)

    def _ended(self, tap: Tap, reason: str, why: str) -> None:
        tap.active = False
        self._observer.recording_stopped(reason)
        tap.log.warning("recording ended before its stream", reason=reason, why=why)

    def _refuse(self, stream: str, why: str) -> None:
        self._observer.recording_stopped("open")
        log.warning("recording refused", stream=stream, why=why)

    def _sweep(self) -> None:
        deleted = self.retention.sweep(self._wall())
        if deleted:
            log.info("old recordings deleted", files=deleted)


def _why(error: Exception) -> str:
    """The system's own words where it was the system."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    return str(getattr(cause, "strerror", None) or cause)
