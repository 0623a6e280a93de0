"""A server in the test's own process: fake codecs and a fake model, real gRPC over loopback; and a plain client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as rpc
from runtime.clip import Clip
from runtime.config import DelaySettings, RuntimeConfig, WindowSettings
from runtime.errors import LegatoError
from runtime.packet import MODALITIES, Decision, Packet
from runtime.prediction import Prediction
from runtime.serve.answers import ServedBundle, bundle_to_wire
from runtime.serve.convert import codec_to_wire, packet_to_wire
from runtime.serve.offer import Offer
from runtime.serve.server import ServeConfig, Server
from runtime.stream import Encoded, Stream, Window, observed_share
from tests.fakes import CODECS, SPEC, fake_parts

LABELS = ("quiet", "loud")
WINDOW = WindowSettings(clips=4, lookahead=0, min_clips=2)


@dataclass
class FakeAnswer:
    """What ``runtime.dispatch.Answer`` has."""

    predictions: list[Prediction] = field(default_factory=list)
    encoded: Encoded | None = None
    last: bool = False
    error: LegatoError | None = None
    shed: Decision | None = None


class FakeDispatcher:
    """A model that says how much it saw, at once, or when ``release`` is called if it is ``held``."""

    def __init__(self, heads: Sequence[str] = ("gru", "linear"), held: bool = False) -> None:
        self.heads, self.held, self.ready = heads, held, True
        self.submitted: list[tuple[str, int, float]] = []  # stream, clip, deadline
        self.detached: list[str] = []
        self._sinks: dict[int, Callable[[Any], None]] = {}
        self._waiting: list[tuple[Stream, Clip | None]] = []

    def attach(self, stream: Stream, sink: Callable[[Any], None]) -> None:
        self._sinks[id(stream)] = sink

    def submit(self, stream: Stream, clip: Clip, deadline: float) -> None:
        self.submitted.append((stream.name, clip.index, deadline))
        self._hand(stream, clip)

    def end(self, stream: Stream) -> None:
        self._hand(stream, None)

    def detach(self, stream: Stream) -> None:
        self.detached.append(stream.name)
        self._sinks.pop(id(stream), None)
        self._waiting = [job for job in self._waiting if job[0] is not stream]

    def stop(self, grace: float = 0.0) -> None:
        self.ready = False

    def release(self) -> None:
        """Work off what was held."""
        waiting, self._waiting = self._waiting, []
        for stream, clip in waiting:
            self._answer(stream, clip)

    def _hand(self, stream: Stream, clip: Clip | None) -> None:
        if self.held:
            self._waiting.append((stream, clip))
        else:
            self._answer(stream, clip)

    def _answer(self, stream: Stream, clip: Clip | None) -> None:
        sink = self._sinks.get(id(stream))
        if sink is None:
            return
        encoded = None if clip is None else encode(clip)
        due = stream.windows.finish() if encoded is None else stream.windows.admit(encoded)
        said = [self._say(stream, window, head) for window in due for head in self.heads]
        sink(FakeAnswer(said, encoded, last=clip is None))

    def _say(self, stream: Stream, window: Window, head: str) -> Prediction:
        share = observed_share(window.clips)
        seen = sum(share.values()) / len(share)
        return Prediction(
            stream=stream.name, epoch=window.epoch, clip=window.clip,
            start_seconds=window.clips[0].start_seconds, end_seconds=window.clips[-1].start_seconds + 0.4,
            head=head, label=LABELS[seen > 0.5], probabilities={"quiet": 1 - seen, "loud": seen}, confidence=seen,
            status=window.status, revision=window.revision, abstained=False, observed_share=share,
            clips=tuple(c.provenance("lerp") for c in window.clips),
        )  # fmt: skip


def encode(clip: Clip) -> Encoded:
    """An encoded clip without features."""
    return Encoded(
        clip=clip.index, epoch=clip.epoch, version=clip.version, start_seconds=float(clip.start),
        raw=np.zeros((2, 1), np.float32), features=np.zeros((2, 1), np.float32),
        presence=np.array([clip.presence.get(m, False) for m in MODALITIES]),
        state=dict(clip.state), flags=dict(clip.flags), coverage=dict(clip.coverage),
    )  # fmt: skip


def offer(
    dispatcher: Any = None,
    *,
    delay: float = 5.0,
    name: str = "fake",
    window: WindowSettings = WINDOW,
    lookahead: int = 2,
    **fields: Any,
) -> Offer:
    """A bundle that needs no weights. Its patience is such that a machine under load loses nothing."""
    dispatcher = dispatcher or FakeDispatcher()
    bundle = ServedBundle(
        name=name, description="For tests.", hash="ab" * 32, heads={h: LABELS for h in ("gru", "linear")},
        window=window.clips, lookahead=lookahead, min_clips=window.min_clips, thresholds={"video": 0.5, "audio": 0.75},
    )  # fmt: skip
    values: dict[str, Any] = {
        "name": name,
        "heads": ("gru", "linear"),
        "lookahead": lookahead,
        "description": bundle_to_wire(bundle),
        "config": RuntimeConfig(window=window, delay=DelaySettings(floor=delay, cap=delay)),
        "spec": SPEC,
        "dispatcher": dispatcher,
        "parts": fake_parts(),
    }
    return Offer(**(values | fields))


# -- what a client sends ---------------------------------------------------


def config(**fields: Any) -> pb.StreamRequest:
    """A StreamConfig with both fake tracks and both heads."""
    fields.setdefault("heads", ["gru", "linear"])
    fields.setdefault("codecs", [codec_to_wire(m, c) for m, c in CODECS.items()])
    return pb.StreamRequest(config=pb.StreamConfig(**fields))


def batch(packets: Iterable[Packet]) -> pb.StreamRequest:
    """Packets in one message."""
    wires = [packet_to_wire(p, CODECS[p.modality].time_base) for p in packets]
    return pb.StreamRequest(packets=pb.PacketBatch(packets=wires))


def end(modality: str, last_seq: int | None = None) -> pb.StreamRequest:
    """EndOfStream of one modality."""
    which = {"video": pb.MODALITY_VIDEO, "audio": pb.MODALITY_AUDIO}[modality]
    return pb.StreamRequest(end_of_stream=pb.EndOfStream(modality=which, last_seq=last_seq))


def ends() -> list[pb.StreamRequest]:
    """The end of both."""
    return [end("video"), end("audio")]


def ack(prediction: pb.Prediction, **changes: Any) -> pb.StreamRequest:
    """A prediction was stored."""
    names = ("stream", "epoch", "clip", "head", "revision")
    values = {name: getattr(prediction, name) for name in names} | changes
    return pb.StreamRequest(ack=pb.Ack(prediction=pb.PredictionId(**values)))


def in_batches(packets: Sequence[Packet], size: int = 10) -> list[pb.StreamRequest]:
    """Packets in messages of ``size``."""
    return [batch(packets[i : i + size]) for i in range(0, len(packets), size)]


# -- a server and calls ---------------------------------------------------


@asynccontextmanager
async def serving(
    offers: Iterable[Offer] = (), *, observer: Any = None, clock: Any = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server on a port of the system's choice, stopped afterwards."""
    made = list(offers) or [offer()]
    settings.setdefault("listen", "127.0.0.1:0")
    settings.setdefault("grace", 2.0)
    server = Server(ServeConfig(**settings), offers={o.name: o for o in made}, observer=observer, clock=clock)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Host:
    """A server in an event loop of its own, on one port for all its lives.

    ``offers`` makes what each of them serves; None: the bundles that ``settings`` name.
    """

    def __init__(self, offers: Callable[[], dict[str, Offer]] | None = None, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._offers, self._settings = offers, settings
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """The next life."""
        config = ServeConfig(listen=self.address, **self._settings)
        self.server = Server(config, offers=None if self._offers is None else self._offers())
        self.port = self._do(self.server.start())

    def kill(self) -> None:
        """Gone without a word, and another in its place."""
        self._do(self.server.stop())
        self.start()

    def drain(self) -> None:
        """Gone with a word, and another in its place."""
        self._do(self.server.drain())
        self.kill()

    def close(self) -> None:
        """Gone for good."""
        self._do(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@asynccontextmanager
async def connected(server: Server, credentials: Any = None, **options: Any) -> AsyncIterator[rpc.InferenceServiceStub]:
    """A client's stub."""
    extra = [(f"grpc.{k}", v) for k, v in options.items()]
    channel = _channel(grpc.aio, server, credentials, extra)
    async with channel:
        yield rpc.InferenceServiceStub(channel)


@dataclass
class Heard:
    """Everything a call said."""

    responses: list[pb.StreamResponse] = field(default_factory=list)
    error: Any = None  # grpc.RpcError

    @property
    def code(self) -> str:
        return "OK" if self.error is None else self.error.code().name

    def of(self, kind: str) -> list[Any]:
        """Messages of one kind."""
        return [getattr(r, kind) for r in self.responses if r.WhichOneof("response") == kind]

    @property
    def started(self) -> pb.StreamStarted:
        return self.of("started")[0]

    @property
    def finals(self) -> list[tuple[int, str]]:
        """Clip and head of the final predictions, as they came."""
        return [(p.clip, p.head) for p in self.of("prediction") if p.status == pb.PREDICTION_STATUS_FINAL]


async def hear(call: Any, heard: Heard | None = None, until: Callable[[Heard], bool] | None = None) -> Heard:
    """Read a call to its end, or until something was heard."""
    heard = heard or Heard()
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            heard.responses.append(response)
            if until is not None and until(heard):
                return heard
        if await call.code() is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )
    except grpc.aio.AioRpcError as error:
        heard.error = error
    return heard


async def talk(
    server: Server,
    requests: Iterable[pb.StreamRequest],
    *,
    metadata: Any = None,
    close: bool = True,
    credentials: Any = None,
) -> Heard:
    """One whole call: everything is sent, then everything is heard.

    A thread with gRPC's blocking client: the asyncio one reports a status that comes while it writes as INTERNAL.
    """
    over = threading.Event()

    def sending() -> Iterator[pb.StreamRequest]:
        yield from requests
        if not close:
            over.wait(20)

    def calling() -> Heard:
        heard = Heard()
        with _channel(grpc, server, credentials) as channel:
            try:
                for response in rpc.InferenceServiceStub(channel).Stream(sending(), metadata=metadata, timeout=20):
                    heard.responses.append(response)
            except grpc.RpcError as error:
                heard.error = error
            over.set()
        return heard

    return await asyncio.to_thread(calling)


def _channel(module: Any, server: Server, credentials: Any, options: Any = ()) -> Any:
    if credentials is None:
        return module.insecure_channel(server.where, options=options)
    return module.secure_channel(server.where.replace("127.0.0.1", "localhost"), credentials, options=options)


def details(error: Any) -> dict[str, Any]:
    """The rich details of a status, by the name of their type."""
    from google.rpc import error_details_pb2, status_pb2

    found: dict[str, Any] = {}
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                made = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
                detail.Unpack(made)
                found[made.DESCRIPTOR.name] = made
    return found


def field_of(error: Any) -> str:
    """The field that a BadRequest names."""
    return details(error)["BadRequest"].field_violations[0].field
