"""Streams in real time on a device that exists only on a virtual clock, for bench/engine.py.

The models and the clips are real; time passes by the CPU time that each batch took, so nothing else on the machine is
in the figures, and every load can be tried on any machine.
"""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runtime.batches import BatchPolicy
from runtime.clock import VirtualClock
from runtime.dispatch import Answer, Dispatcher, latency
from runtime.run_log import Run
from runtime.stream import FINAL

if TYPE_CHECKING:
    from bench.engine import Bench

BUDGET = 0.25  # seconds from a clip's end to its answer
IN_TIME = 0.99  # of a stream's clips, for it to count as real time


@dataclass
class Outcome:
    """What a load came to."""

    streams: int
    load: float = 0.0
    accuracy: float = 0.0  # of final predictions with known truth
    in_time: float = 0.0  # share of clips answered within the budget
    real_time: int = 0  # streams of which IN_TIME of the clips were
    p50_ms: float = 0.0  # from a clip's end to its answer
    p99_ms: float = 0.0
    shed: float = 0.0  # share of clips
    batch: float = 0.0  # clips, mean
    rate: float = 0.0  # clips answered per second
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)  # p50, p99 in ms


class Audience:
    """Listens to all streams: when each clip was answered, what was said and whether it is true."""

    def __init__(self, bench: "Bench", streams: int) -> None:
        self.truth = Run(
            stream="", bundle="", bundle_hash="", labels=(), modalities=(), clip_seconds=bench.seconds,
            truth=bench.truth, settings={},
        )  # fmt: skip
        self.due: dict[tuple[int, int], float] = {}  # (stream, clip) -> its end
        self.waits: dict[int, list[float]] = {n: [] for n in range(streams)}
        self.right: list[bool] = []
        self.shed = 0
        self.new: list[tuple[int, int]] = []  # clips answered in this round

    def sink(self, number: int) -> Callable[[Answer], None]:
        def told(answer: Answer) -> None:
            self.shed += answer.shed is not None and answer.shed.modality == "video"
            if answer.encoded is not None:
                self.new.append((number, answer.encoded.clip))
            for said in answer.predictions:
                truth = self.truth.true_label(said) if said.status == FINAL else None
                if truth is not None:
                    self.right.append(said.label == truth)

        return told

    def heard(self, now: float) -> None:
        """The round is over."""
        for number, clip in self.new:
            self.waits[number].append(now - self.due.pop((number, clip)))
        self.new.clear()


def played(bench: "Bench", streams: int, seconds: float, policy: BatchPolicy, slow: float) -> Outcome:
    """Streams in real time for so long, on a device ``slow`` times slower than this core."""
    clock, audience = VirtualClock(), Audience(bench, streams)
    dispatcher = Dispatcher(bench.engine, clock=clock, policy=policy)
    own = [bench.stream(n) for n in range(streams)]
    for n, stream in enumerate(own):
        dispatcher.attach(stream, audience.sink(n))
    clips = int(seconds / bench.seconds)
    arrivals = [((at + n / streams) * bench.seconds, n, at) for n in range(streams) for at in range(clips)]
    heapq.heapify(arrivals)
    bench.engine.stopwatch = lambda: slow * time.thread_time()
    wake: float | None = None
    while arrivals or len(dispatcher.queue):
        upcoming = [arrivals[0][0]] if arrivals else []
        clock.sleep_until(min([*upcoming, *([] if wake is None else [wake])]))
        while arrivals and arrivals[0][0] <= clock.now():
            end, n, at = heapq.heappop(arrivals)
            audience.due[n, at] = end
            dispatcher.submit(own[n], bench.clip(n, at), deadline=end + BUDGET)
        began = time.thread_time()
        wake = dispatcher.step()
        if audience.new:
            clock.sleep_until(clock.now() + slow * (time.thread_time() - began))
            wake = clock.now()
            audience.heard(wake)
    bench.engine.stopwatch = time.thread_time
    out = summary(audience, dispatcher, streams)
    out.rate = streams * clips / clock.now()
    return out


def summary(audience: Audience, dispatcher: Dispatcher, streams: int) -> Outcome:
    """The figures of a run."""
    flat = [wait for row in audience.waits.values() for wait in row]
    in_time = {n: float(np.mean([w <= BUDGET for w in row])) for n, row in audience.waits.items() if row}
    total, stats = latency(flat), dispatcher.stats()
    return Outcome(
        streams=streams,
        accuracy=float(np.mean(audience.right)) if audience.right else float("nan"),
        in_time=float(np.mean([w <= BUDGET for w in flat])),
        real_time=sum(share >= IN_TIME for share in in_time.values()),
        p50_ms=total.p50 * 1e3,
        p99_ms=total.p99 * 1e3,
        shed=audience.shed / len(flat),
        batch=sum(k * v for k, v in stats.batch_sizes.items()) / max(1, sum(stats.batch_sizes.values())),
        stages={name: (one.p50 * 1e3, one.p99 * 1e3) for name, one in stats.latencies.items()},
    )
