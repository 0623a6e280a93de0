"""Totals of a stream, for its client and for whoever watches the server."""

import math
from typing import Any

from runtime.metrics import Counts
from runtime.observe import Observer
from runtime.serve.answers import StreamStats

__all__ = ["Totals"]


class Totals:
    """Reads a receiver; belongs to whoever may use it. Each call tells the observer what is new."""

    def __init__(self, receiver: Any, observer: Observer) -> None:
        self._receiver, self._observer = receiver, observer
        self._told: dict[str, dict[str, int]] = {}

    def read(self) -> StreamStats:
        """What was counted and measured so far; shed clips and predictions are for the caller to add."""
        receiver = self._receiver
        packets = {modality: ledger.counts for modality, ledger in receiver.ledger.items()}
        delays = {m: receiver.delay_ms(m) for m in packets}
        offset, drift = _finite(receiver.av_offset_ms), _finite(receiver.drift_ppm)
        self._tell(packets, delays, receiver.av_offset_ms, receiver.drift_ppm)
        return StreamStats(
            packets=packets,
            av_offset_ms=offset,
            drift_ppm=drift,
            jitter_ms={m: _finite(receiver.jitter_ms(m)) for m in packets},
            playout_delay_ms={m: _finite(delay) for m, delay in delays.items()},
        )

    def _tell(
        self, packets: dict[str, Counts], delays: dict[str, float], offset: float | None, drift: float | None
    ) -> None:
        for modality, counts in packets.items():
            now, before = counts.as_dict(), self._told.get(modality, {})
            self._observer.packets(modality, {name: n - before.get(name, 0) for name, n in now.items()})
            self._observer.jitter_delay(modality, delays[modality] / 1e3)
            self._told[modality] = now
        if offset is not None:
            self._observer.av_offset(offset / 1e3)
        if drift is not None:
            self._observer.drift(drift)


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0
