"""Fuzz target: what a stranger sends to the service, from the first StreamConfig on; no sockets, no models.

The input is cut into messages: two bytes of length, one that says how much time passes (10 ms each), then a serialized
StreamRequest. They go through validation into a session whose decoders and model are fakes; everything that it answers
is serialized. Nothing but a ``Refused`` may come of it, and never an INTERNAL one, which is how a session hides a
mistake of ours.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from protos import stream_pb2 as pb
from runtime.clip import Clip
from runtime.config import RuntimeConfig, WindowSettings
from runtime.prediction import Prediction
from runtime.serve.limits import Limits, plan_stream
from runtime.serve.offer import Offer
from runtime.serve.session import Session, Settings
from runtime.serve.status import Refused, rich_status
from runtime.stream import Encoded, Stream, Window
from tests.fakes import SPEC, FakeClock
from tests.fuzz.parts import bounded_parts

HEADS = ("gru", "linear")
MOST_MESSAGES = 100
SETTINGS = Settings(inbox_packets=64, inbox_bytes=1 << 16, outbox=32, limits=Limits(batch=64, extradata=256))


class FakeDispatcher:
    """A model thread that answers at once; see ``runtime.dispatch``."""

    def __init__(self) -> None:
        self.sink: Callable[[Any], None] | None = None

    def attach(self, stream: Stream, sink: Callable[[Any], None]) -> None:
        self.sink = sink

    def submit(self, stream: Stream, clip: Clip, deadline: float) -> None:
        assert deadline == deadline
        encoded = Encoded(
            clip=clip.index,
            epoch=clip.epoch,
            version=clip.version,
            start_seconds=float(clip.start),
            raw=np.zeros((2, 1), np.float32),
            features=np.zeros((2, 1), np.float32),
            presence=np.array(list(clip.presence.values())),
            state=clip.state,
            flags=clip.flags,
            coverage=clip.coverage,
        )
        self._say(stream, [*stream.windows.admit(encoded)], encoded)

    def end(self, stream: Stream) -> None:
        self._say(stream, stream.windows.finish(), None, last=True)

    def detach(self, stream: Stream) -> None:
        self.sink = None

    def _say(self, stream: Stream, windows: list[Window], encoded: Encoded | None, last: bool = False) -> None:
        if self.sink is not None:
            said = [prediction(stream, window, head) for window in windows for head in HEADS]
            self.sink(Answer(said, encoded, last))


class Answer:
    """As ``runtime.dispatch.Answer``."""

    error = shed = None

    def __init__(self, predictions: list[Prediction], encoded: Encoded | None, last: bool) -> None:
        self.predictions, self.encoded, self.last = predictions, encoded, last


def prediction(stream: Stream, window: Window, head: str) -> Prediction:
    return Prediction(
        stream=stream.name,
        epoch=window.epoch,
        clip=window.clip,
        start_seconds=window.clips[0].start_seconds,
        end_seconds=window.clips[-1].start_seconds + 0.4,
        head=head,
        label="speech",
        probabilities={"speech": 1.0},
        confidence=1.0,
        status=window.status,
        revision=window.revision,
        abstained=False,
        observed_share={},
        clips=tuple(clip.provenance("zero") for clip in window.clips),
    )


def one(data: bytes) -> None:
    clock, messages, loop = FakeClock(), _messages(data), Loop()
    session = None
    try:
        for wait, request in messages:
            clock.move(wait)
            if session is None:
                session = _open(request, clock, loop)
            else:
                session.tick()
                loop.run()
                session.receive(request)
            loop.run()
            _drain(session)
        if session is not None and session.failure is None:
            session.no_more()
            loop.run()
            _drain(session)
    except Refused as refused:
        _presentable(refused)
    finally:
        if session is not None:
            if session.failure is not None:
                _presentable(session.failure)
            session.close()
            session.stream.receiver.ledger.check()


class Loop:
    """An event loop and a decode pool in one: what is handed over runs later, in order."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def post(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.append((call, arguments))

    def run(self) -> None:
        while self._calls:
            call, arguments = self._calls.popleft()
            call(*arguments)


def _open(request: pb.StreamRequest, clock: FakeClock, loop: Loop) -> Session:
    """As the service does it with a first message that is a config; any other is refused before."""
    config = replace(RuntimeConfig(), window=WindowSettings(clips=4, lookahead=1, min_clips=2))
    offer = Offer(
        name="talk",
        heads=HEADS,
        lookahead=2,
        description=pb.BundleDescription(name="talk"),
        config=config,
        spec=SPEC,
        dispatcher=FakeDispatcher(),
        parts=bounded_parts,
    )
    plan = plan_stream(request.config, offer, SETTINGS.limits)
    name = "0123456789abcdef" if plan.resumption is None else plan.resumption.stream
    stream = offer.open(name, plan, SETTINGS.limits)
    session = Session(stream, plan, offer, SETTINGS, clock=clock, submit=loop.post, post=loop.post)
    session.attach()
    session.outbox.first(pb.StreamResponse(started=pb.StreamStarted(stream=session.ident)))
    return session


def _drain(session: Session) -> None:
    """A client that reads everything."""
    while (entry := session.outbox.pop()) is not None:
        response, key, since = entry
        pb.StreamResponse.FromString(response.SerializeToString())
        if key is not None:
            session.sent(key[1], since)


def _presentable(refused: Refused) -> None:
    """Every refusal is a status that gRPC can carry, and names no mistake of ours."""
    assert refused.code not in ("INTERNAL", "UNKNOWN"), refused.message
    assert refused.message and "\n" not in refused.message and len(refused.message) < 1000, refused.message
    rich_status(refused)


def _messages(data: bytes) -> list[tuple[float, pb.StreamRequest]]:
    out = []
    while data and len(out) < MOST_MESSAGES:
        length, wait = int.from_bytes(data[:2], "little"), data[2] if len(data) > 2 else 0
        body, data = data[3 : 3 + length], data[3 + length :]
        try:
            out.append((wait / 100, pb.StreamRequest.FromString(body)))
        except DecodeError:
            continue  # gRPC refuses it
    return out


def packed(messages: list[tuple[int, pb.StreamRequest]]) -> bytes:
    """The input that ``one`` takes apart into these messages, each after so many hundredths of a second."""
    bodies = [(wait, message.SerializeToString()) for wait, message in messages]
    return b"".join(len(body).to_bytes(2, "little") + bytes([wait]) + body for wait, body in bodies)


if __name__ == "__main__":
    from tests.fuzz.run import run

    run("requests")
