"""Session: one stream of one client over as many connections as it takes.

    connect -> StreamConfig (token, resume point) -> StreamStarted -> packets behind ack_through_seq -> predictions
       ^                                                                                                   |
       └──── wait (back-off, RetryInfo, GoingAway) <── cut, refused for now, going away, silent ───────────┘

gRPC's sending thread takes messages from ``Outgoing``; a reading thread puts answers into a bounded queue, which the
caller empties by iterating: a caller that does not, stops the reading, then the server.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import grpc

from protos import stream_pb2 as pb
from runtime.errors import ServiceError
from runtime.prediction import Prediction
from runtime.serve.answers import (
    PredictionKey,
    ServedBundle,
    bundle_from_wire,
    clip_report_from_wire,
    prediction_from_wire,
    stats_from_wire,
)
from runtime.serve.client_state import Progress
from runtime.serve.convert import build, fraction, rational, text
from runtime.serve.outgoing import Outgoing, Pace
from runtime.serve.refusals import Backoff, Refusal, read_refusal
from runtime.serve.sender import Feed

__all__ = ["Patience", "Retrying", "Session", "Started", "Wanted"]

QUEUE = 256  # answers read ahead of the caller
NAME_BYTES = 256  # of the stream's name
STORE_SECONDS = 0.5  # between two savings of the progress
PATIENCE_SECONDS = 60.0  # without progress
FIRST_SECONDS = 10.0  # a server that was never reached is given up sooner
TURN = 0.2  # seconds waited at once
SILENCE_SECONDS = 20.0  # without any answer, beyond what the server said of its reports

Call = Callable[[Iterator[pb.StreamRequest]], tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of the server."""

    bundle: str = ""
    heads: tuple[str, ...] = ()
    lookahead: int | None = None
    consent: bool = False
    recorded: bool = False  # packets come when the source says, however long sending them takes


@dataclass(frozen=True, kw_only=True)
class Started:
    """The server took the stream, for the first time or again."""

    stream: str  # its id
    bundle: ServedBundle
    lookahead: int
    origin: Fraction | None
    recording: bool
    resumed: bool  # it still had the state; False: it begins where we send from


@dataclass(frozen=True, kw_only=True)
class Retrying:
    """The connection is gone; the next try comes after ``delay`` seconds."""

    reason: str
    delay: float


@dataclass
class Patience:
    """How long to go on without progress, in seconds; ``first`` until a server was ever reached."""

    seconds: float
    first: float
    now: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    _reached: bool = field(default=False, init=False)

    def progress(self) -> None:
        """Something came of it."""
        self._since, self._reached = None, True

    def exhausted(self) -> float | None:
        """For how long nothing came of it, when that is too long."""
        now = self.now()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        return waited if waited >= (self.seconds if self._reached else self.first) else None

    @classmethod
    def of(cls, seconds: float | None, *, known: bool = False) -> "Patience":
        """As asked for; else a minute, and less where nothing was ever reached; ``known``: something was."""
        if seconds is not None:
            return cls(seconds, seconds)
        return cls(PATIENCE_SECONDS, PATIENCE_SECONDS if known else FIRST_SECONDS)


class Session:
    """See the module's docstring; ``predictions`` is the whole of it."""

    def __init__(
        self,
        call: Call,
        address: str,
        feed: Feed,
        wanted: Wanted,
        progress: Progress,
        *,
        realtime: bool = False,
        batch_seconds: float = 0.05,
        backoff: Backoff | None = None,
        patience: Patience | None = None,
        stored: Callable[[Progress], None] | None = None,
        observe: Callable[[Any], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.progress = progress
        self._call, self._address, self._feed, self._wanted = call, address, feed, wanted
        self._pace = Pace(now, realtime=realtime, batch_seconds=batch_seconds)
        self._backoff, self._patience = backoff or Backoff(), patience or Patience.of(None)
        self._stored, self._observe = stored, observe or (lambda event: None)
        self._sleep, self._now, self._silence = sleep, now, silence
        self._guard = threading.Lock()
        self._labels: dict[str, tuple[str, ...]] = {}
        self._going: pb.GoingAway | None = None
        self._saved = now()
        self._blocked_since: float | None = None
        self._unsaved = False

    def predictions(self) -> Iterator[Prediction]:
        """Every prediction once, in order, until the stream is complete; then the source is closed."""
        try:
            while not self.progress.complete:
                connection = self._connect()
                try:
                    yield from self._listen(connection)
                    refusal = self._ended(connection)
                except grpc.RpcError as error:
                    refusal = read_refusal(error)
                except TimeoutError as error:
                    refusal = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), passing=True)
                finally:
                    connection.close()
                if connection.outgoing.error is not None:
                    raise connection.outgoing.error
                if refusal is not None:
                    self._wait(refusal)
        finally:
            self._feed.close()

    # -- one connection ---------------------------------------------------------------------------------------------

    def _connect(self) -> "_Connection":
        with self._guard:
            codecs = self._feed.rewind()
        self._going = None
        outgoing = Outgoing(self._config(), self._feed, codecs, self._pace, self._guard)
        return _Connection(self._call, outgoing)

    def _config(self) -> pb.StreamConfig:
        wanted, info = self._wanted, self._feed.info
        point = pb.ResumePoint.FromString(self.progress.point) if self.progress.point else None
        return build(
            pb.StreamConfig,
            "config",
            bundle=text(wanted.bundle),
            heads=[text(head) for head in wanted.heads],
            origin=None if info.origin is None else rational(info.origin),
            lookahead=wanted.lookahead,
            resume_token=self.progress.token,
            recording_consent=wanted.consent,
            name=text(info.name).encode()[:NAME_BYTES].decode("utf-8", "ignore"),
            resume_point=point,
            recorded=wanted.recorded,
            duration_seconds=info.duration,
            sequence_numbers=None if info.sequence_numbers else False,
        )

    def _listen(self, connection: "_Connection") -> Iterator[Prediction]:
        allowed = self._silence
        while (response := connection.next(allowed, self._check_room)) is not None:
            try:
                prediction = self._read(response, connection)
            except ValueError as error:
                raise ServiceError(f"server {self._address} answered wrongly: {error}") from error
            if response.WhichOneof("response") == "started":
                allowed = self._silence + response.started.report_interval_ms / 1e3
            if prediction is not None:
                yield prediction
            if response.HasField("prediction"):
                connection.key = _key(response.prediction)
                self._unsaved = True
            self._account(response, connection)
            connection.last = response.WhichOneof("response")

    def _read(self, response: pb.StreamResponse, connection: "_Connection") -> Prediction | None:
        """One answer; a prediction that is news is returned."""
        kind = response.WhichOneof("response")
        if kind == "prediction":
            self._progressed()
            wire = response.prediction
            prediction = prediction_from_wire(wire, self._labels.get(wire.head, ()))
            return self.progress.admit(_named(prediction, self._feed.info.name))
        if kind == "started":
            self._start(response.started, connection)
        elif kind == "clip_report":
            self._progressed()
            self._observe(clip_report_from_wire(response.clip_report))
        elif kind == "stats":
            self._observe(stats_from_wire(response.stats))
        elif kind == "going_away":
            self._going = response.going_away
            self.progress.token = response.going_away.resume_token or self.progress.token
        return None  # what only a newer server says is passed over

    def _start(self, wire: pb.StreamStarted, connection: "_Connection") -> None:
        bundle = bundle_from_wire(wire.bundle)
        self._labels = dict(bundle.heads)
        self.progress.token = wire.resume_token
        self._unsaved = True
        origin = fraction(wire.origin) if wire.HasField("origin") else None
        connection.outgoing.start()
        self._observe(
            Started(
                stream=wire.stream,
                bundle=bundle,
                lookahead=wire.lookahead,
                origin=origin,
                recording=wire.recording,
                resumed=wire.resumed,
            )
        )

    def _account(self, response: pb.StreamResponse, connection: "_Connection") -> None:
        """After an answer was dealt with: what it acknowledges may go, and what was stored is said."""
        if response.ack_through_seq:
            through = dict(response.ack_through_seq)
            self.progress.acknowledge(through)
            with self._guard:
                self._feed.acknowledge(through)
            self._unsaved = True
        if response.HasField("resume_point"):
            self.progress.point = response.resume_point.SerializeToString()
        self._report_gaps()
        if self._unsaved and (self._stored is None or self._now() - self._saved >= STORE_SECONDS):
            self._store(connection)

    def _store(self, connection: "_Connection | None" = None) -> None:
        """Save the progress, and only then let the server forget."""
        if self._stored is not None:
            self._stored(self.progress)
        self._saved, self._unsaved = self._now(), False
        if connection is not None and connection.key is not None:
            connection.outgoing.acknowledge(connection.key)
            connection.key = None

    def _ended(self, connection: "_Connection") -> Refusal | None:
        """The server closed the call without an error."""
        if connection.outgoing.error is not None:
            return None
        if self._going is not None:
            after = max(0.0, self._going.retry_after_ms / 1e3)
            return Refusal(grpc.StatusCode.UNAVAILABLE, self._going.reason or "going away", True, after)
        if connection.outgoing.ends_sent and connection.last == "stats":  # which come last of all
            self.progress.complete = True
            self._store()
            return None
        return Refusal(grpc.StatusCode.UNAVAILABLE, "it ended the stream before its end", passing=True)

    def _check_room(self) -> None:
        """A server that takes everything and lets go of nothing must not fill our memory, nor stop us for ever."""
        with self._guard:
            blocked = self._feed.blocked
        if not blocked:
            self._blocked_since = None
            return
        self._blocked_since = self._blocked_since or self._now()
        if self._now() - self._blocked_since >= self._patience.seconds:
            raise ServiceError(
                f"server {self._address} acknowledged nothing for {self._patience.seconds:.0f} s, and what is kept for "
                "it is full; send the file by its path, which can be read again, or allow more keep_bytes"
            )

    def _report_gaps(self) -> None:
        with self._guard:
            gaps = self._feed.gaps()
        for gap in gaps:
            self._observe(gap)

    # -- between connections ----------------------------------------------------------------------------------------

    def _progressed(self) -> None:
        self._backoff.succeeded()
        self._patience.progress()

    def _wait(self, refusal: Refusal) -> None:
        if self._unsaved:
            self._store()
        forgotten = refusal.forgotten and bool(self.progress.token)
        if forgotten:
            self.progress.token = b""
        if not (refusal.passing or forgotten):
            raise refusal.error(self._address)
        if (waited := self._patience.exhausted()) is not None:
            raise ServiceError(
                f"server {self._address} could not be reached for {waited:.0f} s ({refusal.details.rstrip('.')}); "
                "check the address, and that legato serve runs there"
            )
        delay = self._backoff.delay(refusal.retry_after)
        self._observe(Retrying(reason=refusal.details, delay=delay))
        self._sleep(delay)


def _key(wire: pb.Prediction) -> PredictionKey:
    """As the server knows it."""
    return wire.stream, wire.epoch, wire.clip, wire.head, wire.revision


def _named(prediction: Prediction, name: str) -> Prediction:
    """Under the name that a replay of the source would give it."""
    return replace(prediction, stream=name)


class _Connection:
    """One call: its sending thread is gRPC's, its reading thread ours."""

    def __init__(self, call: Call, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self.key: PredictionKey | None = None  # of the newest prediction that the caller has stored
        self.last: str | None = None  # kind of the newest answer
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE)
        self._closed = threading.Event()
        self._channel, self._answers = call(iter(outgoing))
        self._thread = threading.Thread(target=self._read, name="legato-answers", daemon=True)
        self._thread.start()

    def next(self, silence: float, meanwhile: Callable[[], None]) -> pb.StreamResponse | None:
        """The next answer; None at the end. Raises what the call raised, TimeoutError after ``silence`` seconds."""
        turns = max(1, round(silence / TURN))
        for _ in range(turns):
            try:
                item: Any = self._queue.get(timeout=min(TURN, silence))
            except queue.Empty:
                meanwhile()
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        raise TimeoutError(f"nothing was heard for {silence:.0f} s")

    def close(self) -> None:
        """End the call and both threads."""
        self._closed.set()
        self._answers.cancel()
        self.outgoing.close()
        self._thread.join(timeout=1.0)
        self._channel.close()

    def _read(self) -> None:
        try:
            for answer in self._answers:
                if not self._put(answer):
                    return
            self._put(None)
        except BaseException as error:  # handed to the caller, whatever it is
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
