"""Live: packets as they come into the receiver, its deadlines as they pass, and a model that keeps up beside them.

    devices ──► inbox ──► (loss) ──► tape ──► receiver ──► clips ──► dispatcher ──► predictions
    threads     bounded              kept by  a thread               a thread       the caller's
                                     a recorder

What the receiver is told, and in which order, is what a recording holds; so a replay of it says the same
(tests/test_live.py).
"""

import heapq
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.clock import Clock, SystemClock
from runtime.errors import OutputError
from runtime.metrics import Histogram
from runtime.packet import Decision, Packet, StreamInfo
from runtime.prediction import Prediction
from runtime.receive import Receiver
from runtime.sources.base import LivePackets, LiveSource
from runtime.stream import FINAL, Encoded, Stream
from runtime.tape import Tape

if TYPE_CHECKING:
    from imputation.profiles import Profile
    from runtime.batches import BatchPolicy
    from runtime.dispatch import Answer
    from runtime.pipeline import Pipeline

TURN = 0.1  # seconds waited at once, so that a wish to stop is seen
STOPPED = "the run was stopped"
LONGEST_END = 5.0  # seconds that the last answers may take once a run was stopped

Tap = Callable[[Packet | Decision], object]


def clock_of(source: LiveSource) -> Clock:
    """The clock on which a live source stamps arrivals."""
    clock: Clock = getattr(source, "clock", None) or SystemClock()
    return clock


def receive_live(
    source: LiveSource,
    receiver: Receiver,
    clock: Clock,
    stop: threading.Event | None = None,
    tap: Tap | None = None,
) -> Iterator[Clip]:
    """Closed clips, each as soon as it closes: by the packet that completes it, or when its deadline passes.

    ``tap`` is shown every item before the receiver is: what a recording must hold. When ``stop`` is set, or the source
    has ended, the devices count as lost at that moment, which a replay needs to know, and the last clips close.
    """
    told = float("-inf")  # the latest time that the receiver was told of
    while not source.ended and not (stop is not None and stop.is_set()):
        due, now = receiver.next_deadline, clock.now()
        item = source.read(TURN if due is None else min(max(due - now, 0.0), TURN))
        if item is None:
            if due is not None and now >= due:  # read began after ``now``: all that had arrived by then was pushed
                told = max(told, now)
                yield from receiver.advance(now)
            continue
        if item.arrival is not None and item.arrival < told:
            item = replace(item, arrival=told)  # else a replay would push it before deadlines that passed without it
        if tap is not None:
            tap(item)
        yield from receiver.push(item, told if item.arrival is None else item.arrival)
    end = max(clock.now(), told)
    for modality in source.info.codecs:
        last = Decision(kind="device_lost", modality=modality, arrival=end, reason=STOPPED)
        if tap is not None:
            tap(last)
        yield from receiver.push(last, end)
    yield from receiver.finish()


class ImpairedLive(LivePackets):
    """A live source seen through a lossy channel: packets are dropped, doubled, held back until they arrive."""

    def __init__(self, source: LiveSource, profile: "Profile", seed: int) -> None:
        from runtime.impair import Link

        self._source, self._link = source, Link(profile, seed, source.info.codecs)
        self.info: StreamInfo = replace(source.info, sequence_numbers=True)
        self.clock = clock_of(source)
        self._waiting: list[tuple[float, int, Packet | Decision]] = []
        self._order = 0

    @property
    def ended(self) -> bool:
        return self._source.ended and not self._waiting

    def read(self, timeout: float) -> Packet | Decision | None:
        """The next item that has arrived."""
        until = self.clock.now() + timeout
        while True:
            now = self.clock.now()
            self._judge_what_came()
            if self._waiting and (self._waiting[0][0] <= now or self._source.ended):
                return heapq.heappop(self._waiting)[2]
            if self.ended or now >= until:
                return None
            first = self._waiting[0][0] if self._waiting else until
            item = self._source.read(max(min(first, until) - now, 0.001))
            if item is not None:
                self._judge(item)

    def states(self) -> list[Any]:
        """As the source's own."""
        return states_of(self._source)

    def close(self) -> None:
        self._source.close()

    def _judge_what_came(self) -> None:
        """Everything sent up to now, so that nothing can still arrive before what is handed out."""
        while (item := self._source.read(0.0)) is not None:
            self._judge(item)

    def _judge(self, item: Packet | Decision) -> None:
        for arrivals, _ in self._link.judge([item]):
            for arrival, packet in arrivals:
                heapq.heappush(self._waiting, (arrival, self._order, packet))
                self._order += 1


def states_of(source: Any) -> list[Any]:
    """How the devices of a source are; none for a source without devices."""
    states = getattr(source, "states", None)
    return list(states()) if states is not None else []


@dataclass
class Tally:
    """A live run in numbers; constant memory, however long it runs."""

    clips: Counter[tuple[str, str]] = field(default_factory=Counter)  # (modality, state) of clips as first closed
    closed: int = 0
    windows: int = 0
    finals: int = 0
    abstained: int = 0
    latency: Histogram = field(default_factory=Histogram)  # from a clip's end to its first prediction, milliseconds
    latest_ms: float = 0.0
    first_seconds: float | None = None  # when the first prediction came, on the run's clock

    def encoded(self, clip: Encoded) -> None:
        if clip.version == 0:
            self.closed += 1
            self.clips.update((m, state) for m, state in clip.state.items())

    def predicted(self, prediction: Prediction, now: float) -> None:
        self.windows += 1
        self.finals += prediction.status == FINAL
        self.abstained += prediction.status == FINAL and prediction.abstained
        if self.first_seconds is None:
            self.first_seconds = now
        if prediction.revision == 0:
            self.latest_ms = max(now - prediction.end_seconds, 0.0) * 1e3
            self.latency.add(self.latest_ms)

    def observed(self, modality: str) -> float:
        """Share of the clips in which a modality was observed."""
        return self.clips[modality, OBSERVED] / self.closed if self.closed else 0.0


class Recorder:
    """The tap that writes a recording. A disk that fills up ends the recording, never the run."""

    def __init__(self, path: Path, info: StreamInfo) -> None:
        from runtime.recording import RecordingWriter

        self.path, self.failure = path, ""
        self._writer: Any = RecordingWriter(path, info)

    @property
    def running(self) -> bool:
        return self._writer is not None

    def __call__(self, item: Packet | Decision) -> None:
        if self._writer is None:
            return
        try:
            if isinstance(item, Packet):
                self._writer.append(item)
            else:
                self._writer.decision(item)
        except OutputError as error:
            self._writer, self.failure = None, str(error)

    def close(self) -> None:
        """Write what is left; again is harmless."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OutputError as error:
                self.failure = str(error)


class LiveRun:
    """A live source through a pipeline: predictions are read in the caller's thread, which so can draw windows.

    One thread receives and decodes, the dispatcher's runs the models. Models that cannot keep up shed clips; what was
    shed is among the items that ``tap`` is shown, so that a replay of them sheds the same.

    Used with ``with``. ``tap`` is shown every item that the receiver gets, ``clip`` every clip before it is encoded;
    both in threads of the run.
    """

    def __init__(
        self,
        pipeline: "Pipeline",
        source: LiveSource,
        *,
        tap: Tap | None = None,
        clip: Callable[[Clip], object] | None = None,
        policy: "BatchPolicy | None" = None,
    ) -> None:
        from runtime.dispatch import Dispatcher

        self.pipeline, self.source = pipeline, source
        self.stream: Stream = pipeline.open(source.info)
        self.clock = clock_of(source)
        self.tally = Tally()
        self.dispatcher = Dispatcher(pipeline.engine, clock=self.clock, policy=policy)
        self._tape = Tape(tap or (lambda item: None))
        self._clip = clip
        self._stop = threading.Event()
        self._done = threading.Event()
        self._said: queue.Queue[Prediction] = queue.Queue()  # as fast as the model speaks: a few in a second
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._receive, name="legato-receive", daemon=True)

    def __enter__(self) -> "LiveRun":
        self.dispatcher.start()
        self.dispatcher.attach(self.stream, self._answer)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(LONGEST_END)
        self._done.wait(LONGEST_END)
        self.dispatcher.detach(self.stream)
        self.dispatcher.stop()
        self._tape.close()

    def stop(self) -> None:
        """End the stream: the last clips close, the last predictions follow. Any thread, or a signal's handler."""
        self._stop.set()

    @property
    def over(self) -> bool:
        """Whether everything was said and read."""
        return self._done.is_set() and self._said.empty()

    def read(self, timeout: float = TURN) -> Prediction | None:
        """The next prediction, waiting up to ``timeout`` seconds. Raises what a thread of the run raised."""
        try:
            said = self._said.get(timeout=timeout)
        except queue.Empty:
            if self._done.is_set() and self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure from None
            return None
        self.tally.predicted(said, self.clock.now())
        return said

    def predictions(self) -> Iterator[Prediction]:
        """Every prediction until the run is over."""
        while not self.over:
            said = self.read()
            if said is not None:
                yield said
        self.read(0.0)

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Packets by fate."""
        return self.stream.receiver.ledger.as_dict()

    def _receive(self) -> None:
        """In a thread: an answer is due before the next clip closes."""
        seconds = float(self.pipeline.config.clip.seconds)
        try:
            for clip in receive_live(self.source, self.stream.receiver, self.clock, self._stop, self._tape.item):
                if self._clip is not None:
                    self._clip(clip)
                self._tape.closed(clip.index, clip.version)
                self.dispatcher.submit(self.stream, clip, self.clock.now() + seconds)
            self.dispatcher.end(self.stream)
        except BaseException as error:  # raised again where predictions are read
            self._failure = error
            self._done.set()

    def _answer(self, answer: "Answer") -> None:
        """In the model's thread."""
        if answer.shed is not None:
            self._tape.shed(answer.shed)
        if answer.encoded is not None:
            self._tape.answered(answer.encoded.clip, answer.encoded.version)
            self.tally.encoded(answer.encoded)
        for prediction in answer.predictions:
            self._said.put(prediction)
        if answer.last:
            self._failure = self._failure or answer.error
            self._done.set()
