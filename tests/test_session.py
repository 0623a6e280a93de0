"""Session: bounds, requests and statuses; what a stream is worth behind the transport."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from protos import stream_pb2 as pb
from runtime.config import WindowSettings
from runtime.serve.convert import codec_to_wire, packet_to_wire
from runtime.serve.limits import Limits, plan_stream
from runtime.serve.status import Refused, draining, exhausted, invalid, rich_status
from tests.desk import Desk
from tests.fakes import CODECS, packet, stream
from tests.serving import FakeAnswer, FakeDispatcher, batch, config, end, ends, offer

# -- bounds ------------------------------------------------------------------------------------------------------


def test_no_more_clips_wait_for_the_model_than_may():
    dispatcher = FakeDispatcher(held=True)
    desk = Desk(offer(dispatcher), in_flight=3)
    desk.send(batch(stream(8.0)[:500]))
    assert len(dispatcher.submitted) == 3
    assert desk.session._inbox
    dispatcher.release()
    desk.work()
    assert len(dispatcher.submitted) == 6


def test_there_is_no_room_while_the_inbox_is_full():
    dispatcher = FakeDispatcher(held=True)
    desk = Desk(offer(dispatcher), in_flight=1, inbox_packets=100)
    assert desk.session.room
    desk.send(batch(stream(8.0)[:300]))
    assert not desk.session.room
    dispatcher.held = False
    dispatcher.release()
    desk.work()
    assert desk.session.room


def test_decoding_beyond_its_share_ends_a_stream():
    desk = Desk()
    desk.session._intake.cpu = 10.5
    desk.send(batch(stream(0.2)))
    assert desk.session.failure.code == "RESOURCE_EXHAUSTED"
    assert "send a smaller picture" in desk.session.failure.message
    assert desk.offer.dispatcher.detached == ["s"]


def test_a_mistake_of_ours_ends_one_stream_and_says_no_more_than_its_kind(caplog):
    desk = Desk()
    desk.receiver.push = lambda *_: 1 / 0
    desk.send(batch(stream(0.2)))
    assert desk.session.failure.code == "INTERNAL"
    assert "ZeroDivisionError" in desk.session.failure.message


def test_an_error_of_the_model_ends_the_stream():
    from runtime.errors import DataError

    desk = Desk(offer(FakeDispatcher(held=True)))
    desk.send(batch(stream(1.0)))
    desk.session._answered(FakeAnswer(error=DataError("the encoder gave nonsense"), last=True))
    assert desk.session.failure.code == "INTERNAL"


# -- requests ----------------------------------------------------------------------------------------------------


def test_a_track_may_change_its_codec():
    desk = Desk()
    desk.send(batch(stream(1.0)))
    other = codec_to_wire("video", replace(CODECS["video"], width=64, height=64))
    desk.send(pb.StreamRequest(codec=other))
    assert [e.kind for e in desk.receiver.events if e.kind == "format_change"] == ["format_change"]
    desk.send(pb.StreamRequest(codec=other))  # as it is already
    assert len([e for e in desk.receiver.events if e.kind == "format_change"]) == 1


@pytest.mark.parametrize(("change", "field"), [
    ({"codec": "gif"}, "codec.codec"), ({"width": 5000}, "codec.width"), ({"modality": 0}, "codec.modality"),
])  # fmt: skip
def test_a_codec_that_cannot_be_ends_the_stream(change, field):
    desk = Desk()
    wire = codec_to_wire("video", CODECS["video"])
    for name, value in change.items():
        setattr(wire, name, value)
    with pytest.raises(Refused) as caught:
        desk.send(pb.StreamRequest(codec=wire))
    assert caught.value.field == field


def test_packets_after_the_end_of_their_modality_are_malformed():
    desk = Desk()
    desk.send(batch(stream(1.0)), end("video"), batch([packet("video", 99)]))
    assert desk.receiver.ledger["video"].counts.malformed == 1


def test_a_packet_of_a_track_that_was_not_named_is_malformed():
    only = pb.StreamRequest(config=pb.StreamConfig(codecs=[codec_to_wire("video", CODECS["video"])]))
    desk = Desk(request=only)
    desk.send(batch([packet("video", 0), packet("audio", 0)]))
    assert desk.receiver.ledger["video"].counts.malformed == 1


def test_the_client_may_lower_the_ceiling_of_the_wait():
    made = offer()
    plan = plan_stream(config(playout_delay_ms=20.0).config, made, Limits())
    assert (made.delay(plan).floor, made.delay(plan).cap) == (0.02, 0.02)


def test_frames_in_fragments_are_decoded_whole():
    desk = Desk()
    parts = []
    for i, item in enumerate(p for p in stream(2.0) if p.modality == "video"):
        for index in range(2):
            wire = packet_to_wire(replace(item, seq=2 * i + index, payload=item.payload if index else b""), None)
            wire.fragment_index, wire.fragment_count = index, 2
            parts.append(wire)
    desk.send(pb.StreamRequest(packets=pb.PacketBatch(packets=parts)))
    desk.send(batch([p for p in stream(2.0) if p.modality == "audio"]), *ends())
    states = [r.modalities["video"].state for r in desk.of("clip_report")]
    assert states == [pb.CLIP_STATE_OBSERVED] * 5
    assert max(r.ack_through_seq.get("video", 0) for r in desk.read()) == 99


def test_a_stream_taken_over_from_another_server_keeps_its_numbers():
    point = pb.ResumePoint(
        stream="abc", epoch=2, first_clip=100, next_clip=104, oldest_clip=101, origin=pb.Rational(denominator=1)
    )
    desk = Desk(request=config(resume_point=point))
    desk.send(batch(stream(4.0)), *ends())
    said = desk.of("prediction")
    assert {p.epoch for p in said} == {2}
    assert [p.clip for p in said if p.head == "gru"] == list(range(104, 110))
    assert [r.clip for r in desk.of("clip_report")] == list(range(104, 110))
    points = [r.resume_point for r in desk.read() if r.HasField("resume_point")]
    assert {(p.epoch, p.first_clip, p.origin.numerator) for p in points} == {(2, 100, 0)}


def test_the_point_to_resume_at_follows_the_epochs():
    desk = Desk(offer(window=WindowSettings(clips=4, lookahead=1, min_clips=1)))
    early = stream(2.0)
    later = [replace(p, seq=p.seq + (50 if p.modality == "video" else 100), capture_time=p.capture_time + 3_600_000)
             for p in stream(4.0)]  # fmt: skip
    for p in early:
        desk.send(batch([p]), at=p.arrival)
    for p in later:
        desk.send(batch([p]), at=2 + p.arrival)
    desk.send(*ends())
    points = [r.resume_point for r in desk.read() if r.HasField("resume_point")]
    assert (points[0].epoch, points[0].first_clip) == (0, 0)
    assert (points[-1].epoch, points[-1].first_clip) == (1, 5)
    assert Fraction(points[-1].origin.numerator, points[-1].origin.denominator) == 3600


# -- statuses ----------------------------------------------------------------------------------------------------


def test_statuses_say_which_field_and_when_to_come_again():
    from google.rpc import error_details_pb2

    def unpacked(refused: Refused) -> dict[str, Any]:
        status = rich_status(refused)
        assert status.message == refused.message
        out = {}
        for detail in status.details:
            made = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
            detail.Unpack(made)
            out[made.DESCRIPTOR.name] = made
        return out

    field = unpacked(invalid("codecs[0].width", "5000 pixels; at most 4096"))["BadRequest"].field_violations[0]
    assert field.field == "codecs[0].width" and "at most 4096" in field.description
    assert unpacked(draining(2.5))["RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert "RetryInfo" not in unpacked(exhausted("too much", "unread", None))
    assert unpacked(exhausted("full", "full"))["ErrorInfo"].reason == "FULL"
