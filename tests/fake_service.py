"""A server for clients to fail with: counts instead of models, and does what a script says.

A clip is ten video packets. Window k is clips k-2 .. k; its confidence is the share of its packets that came, and its
label a digest of them, so that a packet which was not sent again, or sent in another form, shows. One clip of
lookahead: provisional when clip k closes, final when k + 1 does. Every script entry serves one connection; after the
last one, connections go well.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as services

CLIP, WINDOW = 10, 3  # packets, clips


@dataclass(kw_only=True)
class Act:
    """How one connection goes."""

    fresh: bool = False  # the server was replaced: it knows no stream
    after: int | None = None  # responses until it ends; None: it goes well
    code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE  # None: closed without an error
    details: str = "cut"
    retry_ms: int | None = None  # RetryInfo
    field: str = ""  # BadRequest
    going: bool = False  # GoingAway first
    acks: bool = True
    silent: bool = False  # answers nothing at all
    wrong: bool = False  # answers nonsense


@dataclass
class Told:
    """A stream as the server knows it."""

    id: str
    packets: dict[int, bytes] = field(default_factory=dict)  # video
    audio: set[int] = field(default_factory=set)
    closed: int = 0  # clips
    next_clip: int = 0
    unacked: list[pb.Prediction] = field(default_factory=list)


class FakeService(services.InferenceServiceServicer):
    """``heard`` is every request of every connection; ``acts`` the script."""

    def __init__(self, acts: Sequence[Act] = (), token: str = "") -> None:
        self.acts, self.token = list(acts), token
        self.heard: list[list[pb.StreamRequest]] = []
        self.streams: dict[bytes, Told] = {}
        self._ids, self._tokens = count(), count()

    def Stream(self, requests: Iterator[pb.StreamRequest], context: Any) -> Iterator[pb.StreamResponse]:
        act = self.acts.pop(0) if self.acts else Act()
        heard: list[pb.StreamRequest] = []
        self.heard.append(heard)
        if act.fresh:
            self.streams.clear()
        if self.token and ("authorization", f"Bearer {self.token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not known")
        if act.silent:
            context.add_callback(lambda: None)
            for request in requests:
                heard.append(request)
            return
        answers = self._answers(requests, heard, act)
        for sent, answer in enumerate(answers):
            if act.after is not None and sent >= act.after:
                break
            yield answer
        else:
            return
        if act.going:
            yield pb.StreamResponse(
                going_away=pb.GoingAway(
                    resume_token=list(self.streams)[-1], retry_after_ms=act.retry_ms or 0, reason="x"
                )
            )
            return
        if act.code is not None:
            context.abort_with_status(rpc_status.to_status(rich(act)))

    def DescribeBundle(self, request: pb.DescribeBundleRequest, context: Any) -> pb.DescribeBundleResponse:
        if request.bundle not in ("", "counting"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"bundle {request.bundle!r} is not offered; known: counting")
        return pb.DescribeBundleResponse(bundle=BUNDLE)

    def _answers(self, requests: Any, heard: list[pb.StreamRequest], act: Act) -> Iterator[pb.StreamResponse]:
        config = next(requests)
        heard.append(config)
        told, resumed, token = self._open(config.config)
        yield pb.StreamResponse(
            started=pb.StreamStarted(
                stream=told.id, resume_token=token, bundle=BUNDLE, lookahead=1, resumed=resumed, report_interval_ms=1000
            ),
            resume_point=pb.ResumePoint(stream=told.id),
        )
        if act.wrong:
            yield pb.StreamResponse(prediction=pb.Prediction(stream=told.id))
        for prediction in list(told.unacked):
            yield self._said(told, prediction, act)
        ends = {codec.modality for codec in config.config.codecs}
        for request in requests:
            heard.append(request)
            kind = request.WhichOneof("request")
            if kind == "packets":
                for packet in request.packets.packets:
                    yield from list(self._packet(told, packet, act))  # state first, then what is said
            elif kind == "ack":
                acked = request.ack.prediction
                told.unacked = [p for p in told.unacked if (p.clip, p.revision) > (acked.clip, acked.revision)]
            elif kind == "end_of_stream":
                ends.discard(request.end_of_stream.modality)
                if not ends:
                    break
        if told.closed > told.next_clip or told.closed:
            yield from list(self._say(told, told.closed - 1, True, act))
        yield pb.StreamResponse(stats=pb.StreamStats(predictions_final=told.closed))

    def _open(self, config: pb.StreamConfig) -> tuple[Told, bool, bytes]:
        told = self.streams.pop(config.resume_token, None)
        resumed = told is not None
        if told is None:
            point = config.resume_point
            told = Told(point.stream or f"s{next(self._ids)}", next_clip=point.next_clip, closed=point.first_clip)
        token = f"token-{next(self._tokens):010}".encode()
        self.streams[token] = told
        return told, resumed, token

    def _packet(self, told: Told, packet: pb.Packet, act: Act) -> Iterator[pb.StreamResponse]:
        if packet.modality == pb.MODALITY_AUDIO:
            told.audio.add(packet.seq)
            return
        told.packets[packet.seq] = packet.payload
        while max(told.packets) >= (told.closed + 1) * CLIP - 1:
            clip, told.closed = told.closed, told.closed + 1
            yield pb.StreamResponse(clip_report=pb.ClipReport(clip=clip))
            if clip:
                yield from self._say(told, clip - 1, True, act)
            yield from self._say(told, clip, False, act)

    def _say(self, told: Told, clip: int, final: bool, act: Act) -> Iterator[pb.StreamResponse]:
        if clip < told.next_clip:
            return
        seqs = range(max(0, (clip - WINDOW + 1) * CLIP), (clip + 1) * CLIP)
        came = [(seq, told.packets[seq]) for seq in seqs if seq in told.packets]
        prediction = pb.Prediction(
            stream=told.id,
            clip=clip,
            head="count",
            label=hashlib.sha256(repr(came).encode()).hexdigest()[:8],
            confidence=len(came) / len(seqs),
            status=pb.PREDICTION_STATUS_FINAL if final else pb.PREDICTION_STATUS_PROVISIONAL,
            revision=int(final),
            probabilities={"b": 0.25, "a": 0.75},
        )
        if final:
            told.next_clip = clip + 1
        told.unacked.append(prediction)
        yield self._said(told, prediction, act)

    def _said(self, told: Told, prediction: pb.Prediction, act: Act) -> pb.StreamResponse:
        response = pb.StreamResponse(prediction=prediction)
        final = prediction.status == pb.PREDICTION_STATUS_FINAL
        if act.acks and final:
            first = max(0, prediction.clip + 1 - WINDOW + 1)  # oldest clip of the oldest window that is open
            if first:
                response.ack_through_seq["video"] = first * CLIP - 1
                response.ack_through_seq["audio"] = first * CLIP - 1
            response.resume_point.CopyFrom(
                pb.ResumePoint(stream=told.id, first_clip=first, next_clip=prediction.clip + 1)
            )
        return response


BUNDLE = pb.BundleDescription(
    name="counting",
    heads=[pb.HeadDescription(name="count", labels=["a", "b"])],
    clip_seconds=pb.Rational(numerator=2, denominator=5),
    window=WINDOW,
    lookahead=1,
    min_clips=1,
    thresholds={"video": 0.5, "audio": 0.75},
)


def rich(act: Act) -> status_pb2.Status:
    """A status with its details."""
    details = []
    if act.retry_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(act.retry_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if act.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=act.field)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=getattr(code_pb2, act.code.name if act.code else "OK"), message=act.details)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


@dataclass
class Running:
    """A fake service on a port of this machine."""

    service: FakeService
    server: grpc.Server
    port: int

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"


def start(acts: Sequence[Act] = (), token: str = "") -> Running:
    """A fake service that listens."""
    service = FakeService(acts, token)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    services.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    return Running(service, server, port)
