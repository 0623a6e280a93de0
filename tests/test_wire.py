"""The wire as others have it: bytes that never change meaning, clients and servers of different age, and buf's opinion.

``tests/data/wire/NAME.bin`` are requests and responses as they once went over the wire; ``first.desc`` is the contract
of the first release. Running this file as a module writes the bytes of messages that have none yet, never others.
"""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from protos import stream_pb2 as pb
from runtime.metrics import Counts
from runtime.prediction import ClipProvenance, Prediction, Timings
from runtime.serve.answers import (
    ClipReport,
    ModalityReport,
    ServedBundle,
    StreamStats,
    bundle_to_wire,
    clip_report_to_wire,
    key_to_wire,
    prediction_from_wire,
    prediction_key,
    prediction_to_wire,
    stats_to_wire,
)
from runtime.serve.client import Client
from runtime.serve.convert import codec_to_wire, packet_to_wire
from tests.fake_service import Act, FakeService, start
from tests.fakes import CODECS, INFO, ListSource, packet

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data" / "wire"
BUF = ROOT / "tests" / "node" / "node_modules" / ".bin" / "buf"
TOKEN = bytes(range(16))
POINT = pb.ResumePoint(
    stream="9f", epoch=1, first_clip=7, origin=pb.Rational(numerator=14, denominator=5), next_clip=12
)
PREDICTION = Prediction(
    stream="9f",
    epoch=1,
    clip=12,
    start_seconds=1.2,
    end_seconds=5.2,
    head="tuned",
    label="on_screen",
    probabilities={"on_screen": 0.75, "nobody": 0.25},
    confidence=0.75,
    status="final",
    revision=1,
    abstained=False,
    observed_share={"video": 1.0, "audio": 0.5},
    clips=(
        ClipProvenance(
            clip=12,
            state={"video": "observed", "audio": "lost"},
            flags={"video": ("frozen", "no_face"), "audio": ()},
            rung={"video": "observed", "audio": "curri_mae"},
            coverage={"video": 1.0, "audio": 0.25},
        ),
    ),
    longest_gap_ms=400.0,
    bundle="ab" * 32,
    timings=Timings(wait_ms=1.0, decode_ms=2.0, encode_ms=3.0, fill_ms=4.0, total_ms=10.0),
)
SERVED = ServedBundle(
    name="talk", description="Who speaks.", hash="ab" * 32, heads={"tuned": ("nobody", "on_screen")}, window=10,
    lookahead=2, min_clips=3, thresholds={"video": 0.5, "audio": 0.75}, ladder=("curri_mae", "zero"), licence="CC0-1.0",
    attribution="Nobody.",
)  # fmt: skip

REQUESTS = {
    "config": pb.StreamRequest(
        config=pb.StreamConfig(
            bundle="talk",
            heads=["tuned"],
            origin=pb.Rational(numerator=2, denominator=5),
            codecs=[codec_to_wire(m, codec) for m, codec in CODECS.items()],
            lookahead=2,
            resume_token=TOKEN,
            recording_consent=True,
            name="Straße ☂",
            playout_delay_ms=150.0,
            resume_point=POINT,
        )
    ),
    "recorded": pb.StreamRequest(
        config=pb.StreamConfig(name="talk.mp4", recorded=True, duration_seconds=12.5, sequence_numbers=False)
    ),
    "arrivals": pb.StreamRequest(
        packets=pb.PacketBatch(packets=[pb.Packet(modality=2, seq=9, payload=b"\1\2", arrival_seconds=0.0)])
    ),
    "packets": pb.StreamRequest(
        packets=pb.PacketBatch(
            packets=[
                packet_to_wire(packet(seq=3, decode_time=100, disposable=True), CODECS["video"].time_base),
                packet_to_wire(packet("audio", 4, skip=312, padding=5, corrupt=True), None),
            ]
        )
    ),
    "fragment": pb.StreamRequest(
        packets=pb.PacketBatch(
            packets=[pb.Packet(modality=1, seq=9, payload=b"\1\2", fragment_index=0, fragment_count=3)]
        )
    ),
    "codec": pb.StreamRequest(codec=codec_to_wire("audio", CODECS["audio"])),
    "end": pb.StreamRequest(end_of_stream=pb.EndOfStream(modality=pb.MODALITY_VIDEO, last_seq=0)),
    "ack": pb.StreamRequest(ack=pb.Ack(prediction=key_to_wire(prediction_key(PREDICTION)))),
}
RESPONSES = {
    "started": pb.StreamResponse(
        started=pb.StreamStarted(
            stream="9f",
            resume_token=TOKEN,
            origin=pb.Rational(numerator=0, denominator=1),
            lookahead=2,
            bundle=bundle_to_wire(SERVED),
            recording=True,
            playout_delay_ms=100.0,
            resumed=True,
            report_interval_ms=2000.0,
        )
    ),
    "prediction": pb.StreamResponse(
        prediction=prediction_to_wire(PREDICTION), ack_through_seq={"video": 41, "audio": 77}, resume_point=POINT
    ),
    "clip_report": pb.StreamResponse(
        clip_report=clip_report_to_wire(
            ClipReport(
                epoch=1,
                clip=12,
                start_seconds=4.8,
                end_seconds=5.2,
                version=1,
                modalities={"video": ModalityReport(state="damaged", coverage=0.2, flags=("blank",), severity=0.5)},
            )
        )
    ),
    "stats": pb.StreamResponse(
        stats=stats_to_wire(
            StreamStats(
                packets={"video": Counts(expected=10, received=8, lost=2, used=7, late=1)},
                av_offset_ms=12.5,
                drift_ppm=-40.0,
                jitter_ms={"video": 3.25},
                playout_delay_ms={"video": 60.0},
                clips_shed=1,
                predictions_final=12,
                responses_dropped=3,
            )
        )
    ),
    "going_away": pb.StreamResponse(
        going_away=pb.GoingAway(resume_token=TOKEN, retry_after_ms=1500.0, reason="a new version is rolled out")
    ),
}
MESSAGES: dict[str, Any] = {f"request_{name}": m for name, m in REQUESTS.items()}
MESSAGES |= {f"response_{name}": m for name, m in RESPONSES.items()}
MESSAGES |= {"describe_bundle": pb.DescribeBundleRequest(bundle="talk")}
MESSAGES |= {"describe_bundle_response": pb.DescribeBundleResponse(bundle=bundle_to_wire(SERVED))}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_are_read_and_written_as_ever(name):
    message = MESSAGES[name]
    assert type(message).FromString(golden(name)) == message
    assert message.SerializeToString(deterministic=True) == golden(name)


def test_every_kind_of_message_has_golden_bytes():
    kinds = {field.name for field in pb.StreamRequest.DESCRIPTOR.oneofs[0].fields}
    assert kinds == {m.WhichOneof("request") for m in REQUESTS.values()}
    kinds = {field.name for field in pb.StreamResponse.DESCRIPTOR.oneofs[0].fields}
    assert kinds == {m.WhichOneof("response") for m in RESPONSES.values()}


def test_a_prediction_in_golden_bytes_is_the_prediction():
    wire = pb.StreamResponse.FromString(golden("response_prediction"))
    assert prediction_from_wire(wire.prediction) == PREDICTION


# -- age ------------------------------------------------------------------------------------------------------------


class First:
    """Messages of the first release, in a pool of their own."""

    files = descriptor_pb2.FileDescriptorSet.FromString((GOLDEN / "first.desc").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())

    @classmethod
    def message(cls, name: str) -> Any:
        return message_factory.GetMessageClass(cls.pool.FindMessageTypeByName(f"legato.v1.{name}"))


def described(file: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Everything of a contract that a peer relies on, by name."""

    def messages(where: str, found: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for message in found:
            name = f"{where}.{message.name}"
            for f in message.field:
                oneof = message.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else ""
                yield f"{name}.{f.name}", (f.number, f.type, f.label, f.type_name, f.proto3_optional, oneof)
            yield from messages(name, message.nested_type)
            yield from enums(name, message.enum_type)

    def enums(where: str, found: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for enum in found:
            yield from ((f"{where}.{enum.name}.{v.name}", (v.number,)) for v in enum.value)

    yield from messages(file.package, file.message_type)
    yield from enums(file.package, file.enum_type)
    for service in file.service:
        for m in service.method:
            streams = (m.client_streaming, m.server_streaming)
            yield f"{service.name}.{m.name}", (m.input_type, m.output_type, *streams)


def test_the_contract_only_grows():
    now = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(now)
    first, today = dict(described(First.files.file[0])), dict(described(now))
    assert {name: today.get(name) for name in first} == first


@pytest.mark.parametrize("name", MESSAGES)
def test_an_old_peer_reads_what_it_knows_and_hands_the_rest_on(name):
    message = MESSAGES[name]
    old = First.message(message.DESCRIPTOR.name).FromString(golden(name))
    assert type(message).FromString(old.SerializeToString()) == message
    old.DiscardUnknownFields()
    known = type(message).FromString(old.SerializeToString())
    assert known.ByteSize() <= message.ByteSize()
    assert known.ByteSize() > 0


def old_ears(name: str) -> Any:
    """Bytes as a peer of the first release would have them: what it does not know is gone."""

    def read(data: bytes) -> Any:
        old = First.message(name).FromString(data)
        old.DiscardUnknownFields()
        return getattr(pb, name).FromString(old.SerializeToString())

    return read


def old_mouth(name: str) -> Any:
    """What a peer of the first release can say."""

    def write(message: Any) -> bytes:
        old = First.message(name).FromString(message.SerializeToString())
        old.DiscardUnknownFields()
        return old.SerializeToString()

    return write


def finals(predictions: Any) -> list[tuple[int, str | None]]:
    return [(p.clip, p.label) for p in predictions if p.status == "final"]


def source() -> ListSource:
    return ListSource([p for i in range(40) for p in (packet(seq=i), packet("audio", i))], INFO)


def test_a_new_client_is_served_by_an_old_server():
    service = FakeService([Act(after=6)])  # which survives the cut, as an old server can resume nothing else
    handler = grpc.method_handlers_generic_handler(
        "legato.v1.InferenceService",
        {
            "Stream": grpc.stream_stream_rpc_method_handler(
                service.Stream, old_ears("StreamRequest"), old_mouth("StreamResponse")
            )
        },
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        told = finals(Client(f"localhost:{port}").run(source))
    finally:
        server.stop(None)
    assert [clip for clip, _ in told] == [0, 1, 2, 3]
    assert len(service.heard) == 2


def test_an_old_client_is_served_by_a_new_server():
    running = start()
    try:
        expected = finals(Client(running.address).run(source))
        requests = running.service.heard[0]
        with grpc.insecure_channel(running.address) as channel:
            call = channel.stream_stream(
                "/legato.v1.InferenceService/Stream", old_mouth("StreamRequest"), old_ears("StreamResponse")
            )
            answers = list(call(iter([r for r in requests if not r.HasField("ack")])))
    finally:
        running.server.stop(None)
    told = [prediction_from_wire(a.prediction) for a in answers if a.HasField("prediction")]
    assert finals(told) == expected


# -- buf ------------------------------------------------------------------------------------------------------------


@pytest.mark.device
@pytest.mark.skipif(not BUF.exists(), reason="npm ci was not run in tests/node")
def test_buf_has_nothing_to_say():
    found = subprocess.run([str(BUF), "lint"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, message in MESSAGES.items():
        if not (GOLDEN / f"{name}.bin").exists():
            (GOLDEN / f"{name}.bin").write_bytes(message.SerializeToString(deterministic=True))
