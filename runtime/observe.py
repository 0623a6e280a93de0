"""Observer: what the runtime tells whoever watches it; Metrics: an observer that Prometheus can scrape.

Names follow the W3C's webrtc-stats (https://www.w3.org/TR/webrtc-stats/): packetsReceived, packetsLost and
jitterBufferDelay become ``packets_received_total``, ``packets_lost_total``, ``jitter_buffer_delay_seconds``. Units
stand in names. No metric has a label per stream, so that a scrape stays small however many clients come; labels that
could grow take at most ``CAPACITY`` values and count the rest as ``other``.

Calls come from any thread and cost about a microsecond (tests/test_observe.py); they never raise, since a stream must
not suffer from being watched.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from runtime.metrics import FATES
from runtime.packet import MODALITIES

__all__ = ["STAGES", "Metrics", "Observer"]

STAGES = ("wait", "decode", "queue", "encode", "fill", "send")  # of a clip, in order, from its end to the answer
CAPACITY = 64  # label sets of one metric
PACKETS = {
    "received": "Packets that came, duplicates included.",
    "lost": "Packets that never came. A loss that a late packet takes back is set against the next.",
    "settled": f"Received packets by what became of them: {', '.join(FATES)}. Received less these is unfinished.",
    "unfinished": "Packets received whose fate is open.",
}
_COUNTS = ("received", "lost", *FATES, "unfinished")

# Seconds: fine below a frame, dense around a clip, which is where promises are made.
LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15,
           0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0)  # fmt: skip
# Seconds, audio behind video; ITU-R BT.1359 puts what people notice at -0.045 and +0.125.
OFFSET = (-1.0, -0.5, -0.2, -0.125, -0.08, -0.045, -0.02, -0.01, 0.0, 0.01, 0.02, 0.045, 0.08, 0.125, 0.2, 0.5, 1.0)
DRIFT = (-1000, -500, -200, -100, -50, -20, 0, 20, 50, 100, 200, 500, 1000)  # ppm; 100 is where clocks are remapped
BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # clips


class Observer:
    """Watches, and does nothing with it: the base of everything that does.

    Every method may be called from any thread, returns at once and never raises. ``modality`` is "video" or "audio".
    """

    def packets(self, modality: str, delta: Mapping[str, int]) -> None:
        """What a stream's ledger counted since the last call: the fields of ``runtime.metrics.Counts``.

        ``lost`` and ``unfinished`` may be negative: a packet given up came after all, a fate was settled.
        """

    def concealed(self, modality: str, rung: str, n: int = 1) -> None:
        """``n`` clips of a modality were filled by ``rung`` of the fill ladder."""

    def jitter_delay(self, modality: str, seconds: float) -> None:
        """The jitter buffer waits this long now."""

    def stage(self, stage: str, seconds: float) -> None:
        """A clip spent this long in ``stage``, one of STAGES."""

    def end_to_end(self, seconds: float) -> None:
        """From the end of a clip to its prediction leaving the process."""

    def stream_started(self) -> None:
        """A stream was admitted; each is followed by one ``stream_ended``."""

    def stream_ended(self) -> None:
        """A stream is over, however it ended."""

    def rejected(self, reason: str) -> None:
        """A stream was refused; ``reason`` is one word of ours, such as "full", never what a client sent."""

    def av_offset(self, seconds: float) -> None:
        """How much later audio arrives than video of the same capture time."""

    def drift(self, ppm: float) -> None:
        """How much slower audio's clock runs than video's, parts per million."""

    def batch(self, size: int) -> None:
        """One forward pass took ``size`` clips."""

    def shed(self, modality: str) -> None:
        """A clip of a modality was not encoded because the machine is overloaded."""

    def device(self, kind: str, modality: str) -> None:
        """A live device changed: ``kind`` of the decision, such as "device_lost"."""

    def recorded(self, size: int) -> None:
        """``size`` bytes were handed to packet recordings."""

    def recording_stopped(self, reason: str) -> None:
        """A packet recording ended before its stream did; ``reason`` is one word: "disk", "full", "limit"."""


class Metrics(Observer):
    """Counts everything, for ``/metrics`` (``runtime/serve/web.py``); its registry is its own.

    prometheus_client writes the text, but its counters are too slow to be called for every clip of every stream
    (3 to 4 us with labels), so numbers are kept here and handed over when they are asked for.
    """

    def __init__(self, *, process: bool = True) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._counters: dict[str, _Counter] = {}
        self._histograms: dict[str, _Histogram] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._streams = _Counter("", ())
        self._packets = _Counter("", ("modality", "count"))
        self._declare()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        if process:
            ProcessCollector(registry=self.registry)

    def _declare(self) -> None:
        """Every metric, its labels and what it means."""
        self._concealed = self._counter(
            "clips_concealed", "Absent clips that a rung of the fill ladder filled.", "modality", "rung"
        )
        self._shed = self._counter("clips_shed", "Clips not encoded, by choice, under overload.", "modality")
        self._rejected = self._counter("stream_rejections", "Streams refused.", "reason")
        self._started = self._counter("streams_started", "Streams admitted.")
        self._devices = self._counter("device_events", "Live devices lost, back or changed.", "modality", "kind")
        self._recorded = self._counter("recording_bytes", "Bytes handed to packet recordings.")
        self._stopped = self._counter("recording_stops", "Packet recordings that ended before their stream.", "reason")
        self._jitter = self._histogram("jitter_buffer_delay_seconds", "Playout delay.", LATENCY, "modality")
        self._stage = self._histogram("stage_latency_seconds", "Time a clip spends in each stage.", LATENCY, "stage")
        self._total = self._histogram("end_to_end_latency_seconds", "From a clip's end to its prediction.", LATENCY)
        self._offset = self._histogram("av_offset_seconds", "Arrival of audio behind video.", OFFSET)
        self._drift = self._histogram("clock_drift_ppm", "How much slower audio's clock runs than video's.", DRIFT)
        self._batches = self._histogram("batch_clips", "Clips in one forward pass.", BATCH)
        self.watch("active_streams", "Streams being served.", lambda: self._streams.net())
        for modality in MODALITIES:  # a series exists from the start, so that its first increase is seen
            self._shed.add(0, modality)
            self._packets.add_all(modality, dict.fromkeys(_COUNTS, 0))

    # -- what is seen -------------------------------------------------------------------------------------------------

    def packets(self, modality: str, delta: Mapping[str, int]) -> None:
        self._packets.add_all(modality, delta)

    def concealed(self, modality: str, rung: str, n: int = 1) -> None:
        self._concealed.add(n, modality, rung)

    def jitter_delay(self, modality: str, seconds: float) -> None:
        self._jitter.add(seconds, modality)

    def stage(self, stage: str, seconds: float) -> None:
        self._stage.add(seconds, stage)

    def end_to_end(self, seconds: float) -> None:
        self._total.add(seconds)

    def stream_started(self) -> None:
        self._started.add(1)
        self._streams.add(1)

    def stream_ended(self) -> None:
        self._streams.add(-1)

    def rejected(self, reason: str) -> None:
        self._rejected.add(1, reason)

    def av_offset(self, seconds: float) -> None:
        self._offset.add(seconds)

    def drift(self, ppm: float) -> None:
        self._drift.add(ppm)

    def batch(self, size: int) -> None:
        self._batches.add(size)

    def shed(self, modality: str) -> None:
        self._shed.add(1, modality)

    def device(self, kind: str, modality: str) -> None:
        self._devices.add(1, modality, kind)

    def recorded(self, size: int) -> None:
        self._recorded.add(size)

    def recording_stopped(self, reason: str) -> None:
        self._stopped.add(1, reason)

    # -- what is shown ------------------------------------------------------------------------------------------------

    def watch(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """One more gauge, read at each scrape; a ``read`` that raises leaves it out of that scrape."""
        self._gauges[name] = documentation, read

    def collect(self) -> Iterable[Any]:
        """What prometheus_client asks its collectors for."""
        from prometheus_client import core

        from runtime import __version__

        yield core.InfoMetricFamily("legato", "What is running.", value={"version": __version__})
        yield from self._packet_families()
        for name, counter in self._counters.items():
            sums = core.CounterMetricFamily(name, counter.documentation, labels=counter.labels)
            for key, value in counter.shown():
                sums.add_metric(key, value)
            yield sums
        for name, histogram in self._histograms.items():
            family = core.HistogramMetricFamily(name, histogram.documentation, labels=histogram.labels)
            for key, buckets, total in histogram.shown():
                family.add_metric(key, buckets, total)
            yield family
        for name, (documentation, read) in list(self._gauges.items()):
            now = _value(read)
            if now is not None:
                yield core.GaugeMetricFamily(name, documentation, value=now)

    def _packet_families(self) -> Iterable[Any]:
        """The conservation law, as it can be scraped."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        received = CounterMetricFamily("packets_received", PACKETS["received"], labels=["modality"])
        lost = CounterMetricFamily("packets_lost", PACKETS["lost"], labels=["modality"])
        settled = CounterMetricFamily("packets_settled", PACKETS["settled"], labels=["modality", "fate"])
        unfinished = GaugeMetricFamily("packets_unfinished", PACKETS["unfinished"], labels=["modality"])
        for (modality, name), total, highest in self._packets.both():
            if name in FATES:
                settled.add_metric([modality, name], highest)
            elif name == "unfinished":
                unfinished.add_metric([modality], total)
            elif name in ("received", "lost"):
                (received if name == "received" else lost).add_metric([modality], highest)
        yield from (received, lost, settled, unfinished)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics where ``accept`` asks for it, else Prometheus' text."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _counter(self, name: str, documentation: str, *labels: str) -> "_Counter":
        self._counters[name] = _Counter(documentation, labels)
        return self._counters[name]

    def _histogram(self, name: str, documentation: str, bounds: tuple[float, ...], *labels: str) -> "_Histogram":
        self._histograms[name] = _Histogram(documentation, labels, bounds)
        return self._histograms[name]


def _value(read: Callable[[], float]) -> float | None:
    try:
        return float(read())
    except Exception:
        return None


class _Series:
    """Numbers by label values; at most CAPACITY of them, the rest under ``other``."""

    def __init__(self, documentation: str, labels: tuple[str, ...]) -> None:
        self.documentation, self.labels = documentation, labels
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, ...], Any] = {}
        if not labels:
            self._slots[()] = self._fresh()

    def _fresh(self) -> Any:
        raise NotImplementedError

    def _slot(self, key: tuple[str, ...]) -> Any:
        """The slot of a key that is not there yet; the lock is held."""
        if len(self._slots) >= CAPACITY:
            key = ("other",) * len(self.labels)
        return self._slots.setdefault(tuple(map(str, key)), self._fresh())


class _Counter(_Series):
    """Sums that show the highest they have been: a counter that Prometheus reads must not fall."""

    def _fresh(self) -> list[float]:
        return [0, 0]  # the sum, the highest it was

    def add(self, count: float, *key: str) -> None:
        with self._lock:
            slot = self._slots.get(key) or self._slot(key)
            slot[0] += count
            if slot[0] > slot[1]:
                slot[1] = slot[0]

    def net(self, *key: str) -> float:
        """The sum as it is."""
        with self._lock:
            slot = self._slots.get(key)
            return slot[0] if slot else 0

    def add_all(self, first: str, counts: Mapping[str, int]) -> None:
        """``add`` of each count that is not zero, under (``first``, its name)."""
        with self._lock:
            for name, count in counts.items():
                slot = self._slots.get((first, name))
                if slot is None:
                    slot = self._slot((first, name))
                elif not count:
                    continue
                slot[0] += count
                if slot[0] > slot[1]:
                    slot[1] = slot[0]

    def shown(self) -> list[tuple[tuple[str, ...], float]]:
        return [(key, highest) for key, _, highest in self.both()]

    def both(self) -> list[tuple[tuple[str, ...], float, float]]:
        """Key, sum, and the highest that the sum was."""
        with self._lock:
            return [(key, *slot) for key, slot in self._slots.items()]


class _Histogram(_Series):
    """Observations in fixed buckets."""

    def __init__(self, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        super().__init__(documentation, labels)

    def _fresh(self) -> list[float]:
        return [0.0] * (len(self._bounds) + 2)  # one above every bound, then the sum

    def add(self, value: float, *key: str) -> None:
        if not -math.inf < value < math.inf:
            return  # one NaN would spoil the sum for good
        with self._lock:
            slot = self._slots.get(key) or self._slot(key)
            slot[bisect_left(self._bounds, value)] += 1
            slot[-1] += value

    def shown(self) -> list[tuple[tuple[str, ...], list[tuple[str, float]], float]]:
        with self._lock:
            slots = [(key, list(slot)) for key, slot in self._slots.items()]
        return [(key, self._cumulative(slot), slot[-1]) for key, slot in slots]

    def _cumulative(self, slot: list[float]) -> list[tuple[str, float]]:
        out, seen = [], 0.0
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), slot[:-1], strict=True):
            seen += count
            out.append((bound, seen))
        return out
