"""Capture: a live source that is read all the time, whether or not a server listens."""

import threading
from collections.abc import Iterator, Mapping

from runtime.packet import CodecConfig, Gap
from runtime.serve.sender import KEEP_BYTES, KEEP_SECONDS, Item, Kept
from runtime.sources.base import Source

__all__ = ["Capture"]


class Capture:
    """A feed whose items are put by a thread of its own; ``items`` replaces the source's, such as behind a lossy link.

    What no server takes is kept up to the bounds of ``Kept``; beyond them the oldest is dropped, and is a gap.
    """

    def __init__(
        self,
        source: Source,
        max_bytes: int = KEEP_BYTES,
        max_seconds: float = KEEP_SECONDS,
        items: Iterator[Item] | None = None,
    ) -> None:
        self.info = source.info
        self._source = source
        self._kept = Kept(source.info, max_bytes=max_bytes, max_seconds=max_seconds)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._items = iter(source.packets()) if items is None else items
        self._thread = threading.Thread(target=self._capture, name="legato-capture", daemon=True)
        self._thread.start()

    @property
    def last_seq(self) -> dict[str, int]:
        with self._lock:
            return dict(self._kept.last_seq)

    @property
    def ended(self) -> bool:
        with self._lock:
            return self._kept.ended

    @property
    def blocked(self) -> bool:
        return False

    def rewind(self) -> Mapping[str, CodecConfig]:
        with self._lock:
            return self._kept.rewind()

    def take(self) -> Item | None:
        with self._lock:
            item = self._kept.take()
        if item is None and self._error is not None:
            raise self._error
        return item

    def acknowledge(self, through: Mapping[str, int]) -> None:
        with self._lock:
            self._kept.acknowledge(through)

    def gaps(self) -> list[Gap]:
        with self._lock:
            return self._kept.gaps()

    def close(self) -> None:
        """Stop capturing; returns within 1 s."""
        self._stop.set()
        self._source.close()
        self._thread.join(timeout=1.0)

    def _capture(self) -> None:
        try:
            for item in self._items:
                if self._stop.is_set():
                    return
                with self._lock:
                    self._kept.put(item)
        except BaseException as error:  # handed to the sending thread
            if not self._stop.is_set():
                self._error = error
        finally:
            with self._lock:
                self._kept.finish()
