"""Dispatcher: the one model thread of one engine; clips of many streams in from any thread, answers out.

Calls from outside only leave a note in the inbox; the model thread alone touches streams, queue and models, so no
stream needs a lock. A round (``step``) reads the inbox, lets ``BatchQueue`` choose a batch, runs it, tells the sinks.
Tests call ``step`` themselves, with a clock of their own, and start no thread.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imputation.presence import OBSERVED
from runtime.batches import BatchPolicy, BatchQueue, Shed, Ticket
from runtime.clip import Clip
from runtime.clock import Clock, SystemClock
from runtime.costs import CostModel
from runtime.errors import LegatoError
from runtime.observe import Observer
from runtime.packet import Decision
from runtime.prediction import Prediction
from runtime.stream import FINAL, Encoded, Stream

if TYPE_CHECKING:
    from runtime.engine import Done, Engine, Served

__all__ = ["Answer", "DispatchStats", "Dispatcher", "Latency"]

KEPT = 4096  # newest latencies of a stage that quantiles are taken from
STAGES = {"video": "video", "audio": "audio", "fill": "windows"}  # of ``Served.spent`` -> of the cost model
END_SECONDS = 0.2  # by when a stream's last windows should be final


@dataclass
class Answer:
    """What a stream is told: of one clip, of its end, or that one of its clips was shed.

    ``encoded`` is None for what was only shed or ended; ``last`` and ``error`` end the stream: nothing comes after.
    """

    predictions: list[Prediction] = field(default_factory=list)
    encoded: Encoded | None = None
    last: bool = False
    error: LegatoError | None = None
    shed: Decision | None = None


@dataclass(frozen=True)
class Latency:
    """Seconds of one stage, over its newest clips."""

    count: int
    p50: float
    p99: float


@dataclass(frozen=True)
class DispatchStats:
    """How the model thread fares, since it started."""

    ready: bool
    streams: int
    queued: int  # jobs
    queued_bytes: int
    batch_sizes: dict[int, int]  # clips in a batch -> batches
    busy_share: float  # of the time since it was ready
    counters: dict[str, int]  # submitted, late, shed_video, overflowed, ...: see runtime.batches; failed, ignored
    latencies: dict[str, Latency]  # by stage: queue, encode, fill


@dataclass(eq=False)
class _Client:
    """An attached stream. The lock is held while its sink is called, so that ``detach`` can promise silence."""

    stream: Stream
    sink: Callable[[Answer], None]
    number: int  # ties between streams fall by age
    over: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(eq=False)
class _Note:
    """What was left in the inbox."""

    client: _Client
    at: float
    clip: Clip | None = None
    deadline: float = 0.0
    gone: bool = False  # the client was detached


class Dispatcher:
    """The model thread; see the module's docstring. ``policy`` bounds what waits, ``observer`` watches."""

    def __init__(
        self,
        engine: "Engine",
        *,
        clock: Clock | None = None,
        policy: BatchPolicy | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.engine, self.clock = engine, clock or SystemClock()
        self.policy = policy or BatchPolicy()
        if engine.deterministic:  # one clip after the other: none waits for another's
            self.policy = replace(self.policy, max_batch=1, max_wait_seconds=0.0)
        self.observer = observer or Observer()
        self.costs = CostModel()
        self.ready = False
        self.queue = BatchQueue(self.policy, engine.task.window)
        self._clients: dict[int, _Client] = {}  # by id of the stream
        self._numbers = 0
        self._inbox: deque[_Note] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping: float | None = None  # when the grace ends
        self._failed: BaseException | None = None
        self._sizes: Counter[int] = Counter()
        self._counters: Counter[str] = Counter()
        self._latencies: dict[str, deque[float]] = {s: deque(maxlen=KEPT) for s in ("queue", "encode", "fill")}
        self._busy, self._since = 0.0, 0.0

    # -- from any thread ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Warm the models up in their thread; returns when ready. Raises what the warm-up raised."""
        assert self._thread is None, "a dispatcher starts once"
        self._thread = threading.Thread(target=self._work, name="legato-model", daemon=True)
        self._thread.start()
        with self._wake:
            self._wake.wait_for(lambda: self.ready or self._failed is not None)
        if self._failed is not None:
            self._thread.join()
            raise self._failed

    def stop(self, grace: float = 0.0) -> None:
        """Work on for up to ``grace`` seconds while something waits, then drop the rest; returns when it is over.

        Streams that were not ended are told so by an error: no one waits for an answer that will not come.
        """
        with self._wake:
            self._stopping = self.clock.now() + grace
            self._wake.notify_all()
        if self._thread is None:
            self._close()
        elif self._thread is not threading.current_thread():
            self._thread.join()

    def attach(self, stream: Stream, sink: Callable[[Answer], None]) -> None:
        """Serve a stream; ``sink`` is called in the model thread and must not block."""
        with self._wake:
            assert id(stream) not in self._clients, f"stream {stream.name!r} is attached already"
            self._numbers += 1
            self._clients[id(stream)] = _Client(stream, sink, self._numbers)

    def submit(self, stream: Stream, clip: Clip, deadline: float) -> None:
        """Queue a closed clip, or a repaired version of one; ``deadline`` is on the clock's axis. Never blocks."""
        self._leave(stream, lambda client: _Note(client, self.clock.now(), clip, deadline))

    def end(self, stream: Stream) -> None:
        """No clip comes any more: its pending windows become final, then comes the last answer."""
        now = self.clock.now()
        self._leave(stream, lambda client: _Note(client, now, None, now + END_SECONDS))

    def detach(self, stream: Stream) -> None:
        """Drop everything queued for a stream; when this returns, its sink is never called again."""
        with self._wake:
            client = self._clients.pop(id(stream), None)
            if client is None:
                return
            self._inbox.append(_Note(client, self.clock.now(), gone=True))
            self._wake.notify_all()
        with client.lock:  # a call of the sink that is under way ends first
            client.over = True

    def stats(self) -> DispatchStats:
        """Figures of this moment."""
        passed = self.clock.now() - self._since if self.ready else 0.0
        return DispatchStats(
            ready=self.ready,
            streams=len(self._clients),
            queued=len(self.queue) + len(self._inbox),
            queued_bytes=self.queue.bytes,
            batch_sizes=dict(sorted(self._sizes.copy().items())),
            busy_share=min(1.0, self._busy / passed) if passed > 0 else 0.0,
            counters=dict(self.queue.counters.copy() + self._counters.copy()),
            latencies={stage: latency(list(seconds)) for stage, seconds in self._latencies.items()},
        )

    def _leave(self, stream: Stream, note: Callable[[_Client], _Note]) -> None:
        with self._wake:
            client = self._clients.get(id(stream))
            if client is None or client.over or self._stopping is not None:
                self._counters["ignored"] += 1
                return
            self._inbox.append(note(client))
            self._wake.notify_all()

    # -- in the model thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self.engine.warm_up()
        except BaseException as error:  # whatever it is, ``start`` raises it
            with self._wake:
                self._failed = error
                self._wake.notify_all()
            return
        with self._wake:
            self.ready, self._since = True, self.clock.now()
            self._wake.notify_all()
        while True:
            due = self.step()
            with self._wake:
                if self._over():
                    break
                if not self._inbox:
                    self._wake.wait(None if due is None else max(0.0, due - self.clock.now()))
        self._close()

    def _over(self) -> bool:
        if self._stopping is None:
            return False
        return self.clock.now() >= self._stopping or not (self._inbox or len(self.queue))

    def step(self) -> float | None:
        """One round. When to come back: a time on the clock's axis, None for when something was submitted."""
        self._read()
        now = self.clock.now()
        due = self.queue.due(now, self.costs.seconds)
        if due is None or (due > now and self._stopping is None):
            return due
        self._run(now)
        return self.clock.now()

    def _read(self) -> None:
        while self._inbox:
            note = self._inbox.popleft()
            client = note.client
            if note.gone:
                self.queue.remove(client.number)
            elif not client.over:
                self._queue(note)

    def _queue(self, note: _Note) -> None:
        client, clip = note.client, note.clip
        pending = client.stream.windows.settings.lookahead
        ticket = Ticket(
            stream=client.number,
            clip=None if clip is None else clip.index,
            epoch=0 if clip is None else clip.epoch,
            version=0 if clip is None else clip.version,
            deadline=note.deadline,
            submitted=note.at,
            needs=() if clip is None else tuple(m for m in self.engine.encoders if _there(clip, m)),
            windows=pending if clip is None else 1 + (pending > 0),
            size=0 if clip is None else sum(x.nbytes for x in (clip.video, clip.audio) if x is not None),
            payload=note,
        )
        try:
            emptied = self.queue.add(ticket)
        except LegatoError as error:
            self._fail(client, error)
            return
        for shed in emptied:
            self._shed(shed)
            held: _Note = shed.ticket.payload
            if held.clip is not None:  # lets go of pictures and sound
                held.clip = replace(held.clip, video=None, audio=None)

    def _run(self, now: float) -> None:
        from runtime.engine import Job

        batch = self.queue.take(now, self.costs.seconds, self._share)
        for shed in batch.shed:
            self._shed(shed)
        notes: list[_Note] = [ticket.payload for ticket in batch.tickets]
        jobs = [
            Job(note.client.stream, note.clip, ticket.shed, max(0.0, now - note.at) * 1e3)
            for note, ticket in zip(notes, batch.tickets, strict=True)
        ]
        gone = {id(note.client.stream): note.client for note in notes}
        began = self.engine.stopwatch()
        served = self.engine.serve(jobs, lambda stream: not gone[id(stream)].over)
        took = self.engine.stopwatch() - began
        self._busy += took
        self._measure(served, jobs_seconds=[job.queue_ms / 1e3 for job in jobs], took=took)
        for note, done in zip(notes, served.done, strict=True):
            self._tell(note.client, done)
        if all(done.error is not None and done.error.__cause__ is not None for done in served.done):
            self._check()  # nobody's features, nobody's fault

    def _share(self, ticket: Ticket) -> float:
        """Observed places of the window that a clip completes, as far as it is known yet."""
        note: _Note = ticket.payload
        clip, modalities = note.clip, tuple(self.engine.encoders)
        before = note.client.stream.windows.recent(self.engine.task.window - 1)
        if clip is None or not modalities:
            return 0.0
        seen = sum(c.state.get(m) == OBSERVED for c in before for m in modalities)
        seen += sum(clip.presence.get(m, False) for m in modalities)
        return seen / ((len(before) + 1) * len(modalities))

    def _measure(self, served: "Served", *, jobs_seconds: list[float], took: float) -> None:
        for stage, (rows, seconds) in served.spent.items():
            if stage in STAGES:
                self.costs.observe(STAGES[stage], rows, seconds)
        filling = served.spent.get("fill", (0, 0.0))[1]
        clips = sum(done.job.clip is not None for done in served.done)
        self._sizes[clips] += 1
        self.observer.batch(clips)
        for waited in jobs_seconds:
            for stage, seconds in (("queue", waited), ("encode", took - filling), ("fill", filling)):
                self._latencies[stage].append(seconds)
                self.observer.stage(stage, seconds)

    def _shed(self, shed: Shed) -> None:
        ticket, note = shed.ticket, shed.ticket.payload
        decision = Decision(
            kind="shed",
            modality=shed.modality,
            arrival=self.clock.now(),
            epoch=ticket.epoch,
            clip=ticket.clip,
            reason=shed.reason,
        )
        self.observer.shed(shed.modality)
        self._say(note.client, Answer(shed=decision))

    def _tell(self, client: _Client, done: "Done") -> None:
        if done.error is not None:
            self._fail(client, done.error)
            return
        last = done.job.clip is None
        for prediction in done.predictions:
            self._count_filled(prediction)
        self._say(client, Answer(done.predictions, done.encoded, last=last))
        if last:
            self._forget(client)

    def _count_filled(self, prediction: Prediction) -> None:
        if prediction.status != FINAL or prediction.head != next(iter(self.engine.heads)):
            return
        for modality, rung in prediction.clips[-1].rung.items() if prediction.clips else ():
            if rung != OBSERVED:
                self.observer.concealed(modality, rung)

    def _fail(self, client: _Client, error: LegatoError) -> None:
        if not client.over:
            self._counters["failed"] += 1
        self._say(client, Answer(last=True, error=error))
        self._forget(client)

    def _say(self, client: _Client, answer: Answer) -> None:
        """Call a sink. One that raises is its own stream's fault."""
        with client.lock:
            if client.over:
                return
            try:
                client.sink(answer)
            except Exception:
                self._counters["sinks_failed"] += 1
                self._forget(client)

    def _forget(self, client: _Client) -> None:
        with client.lock:
            client.over = True
        self.queue.remove(client.number)
        with self._wake:
            if self._clients.get(id(client.stream)) is client:
                del self._clients[id(client.stream)]

    def _check(self) -> None:
        """A batch in which everything failed: is it the device? Then nobody can be served."""
        try:
            self.engine.warm_up()
        except Exception as error:
            self.ready = False
            broken = LegatoError(f"the models no longer run on {self.engine.device} ({error}); restart the server")
            for client in list(self._clients.values()):
                self._fail(client, broken)

    def _close(self) -> None:
        """What still waits is dropped; who waits for it is told."""
        self.ready = False
        stopped = LegatoError("the engine was stopped before the stream ended; open the stream again")
        with suppress(IndexError):
            while True:
                self._inbox.popleft()
        for client in list(self._clients.values()):
            self._fail(client, stopped)


def _there(clip: Clip, modality: str) -> bool:
    return bool(clip.presence.get(modality)) and getattr(clip, modality) is not None


def latency(seconds: list[float]) -> Latency:
    """Median and 99th percentile, by nearest rank."""
    if not seconds:
        return Latency(0, 0.0, 0.0)
    seconds = sorted(seconds)
    return Latency(len(seconds), *(seconds[min(len(seconds) - 1, int(q * len(seconds)))] for q in (0.5, 0.99)))
