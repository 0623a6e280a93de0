"""Session: what a stream is worth behind the transport; driven by hand, on a clock that stands until it is moved."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from protos import stream_pb2 as pb
from runtime.config import WindowSettings
from runtime.metrics import FATES
from runtime.packet import Packet
from runtime.prediction import Prediction
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.serve.answers import prediction_from_wire
from runtime.serve.convert import codec_to_wire, packet_to_wire, rational
from runtime.serve.limits import Limits, plan_stream
from runtime.serve.pacing import Pace, PausableClock
from runtime.serve.session import Session, Settings
from runtime.serve.status import Refused, draining, exhausted, invalid, rich_status
from tests.fakes import CODECS, SPEC, FakeClock, fake_parts, packet, stream
from tests.serving import FakeAnswer, FakeDispatcher, batch, config, end, ends, in_batches, offer

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"


class Desk:
    """A session with everything around it in one thread."""

    def __init__(self, made: Any = None, request: pb.StreamRequest | None = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.offer = made or offer(delay=0.1)
        self.settings = Settings(**settings)
        self.plan = plan_stream((request or config(origin=pb.Rational(denominator=1))).config, self.offer, Limits())
        self._jobs: deque[Callable[[], object]] = deque()
        kept = self.offer.open("s", self.plan, self.settings.limits)
        self.session = Session(
            kept, self.plan, self.offer, self.settings,
            clock=self.clock, submit=self._jobs.append, post=lambda f, *a: self._jobs.append(partial(f, *a)),
        )  # fmt: skip
        self.session.attach()
        self.said: list[pb.StreamResponse] = []

    @property
    def receiver(self) -> Receiver:
        return self.session.stream.receiver

    def work(self) -> "Desk":
        """Until nobody has anything to do."""
        while self._jobs:
            self._jobs.popleft()()
        return self

    def read(self) -> list[pb.StreamResponse]:
        """What a client would read now."""
        self.work()
        while (entry := self.session.outbox.pop()) is not None:
            self.said.append(entry[0])
        return self.said

    def send(self, *requests: pb.StreamRequest, at: float | None = None) -> "Desk":
        if at is not None:
            self.clock.seconds = at
        for request in requests:
            self.session.receive(request)
        return self.work()

    def play(self, packets: Iterable[Packet]) -> "Desk":
        """Packets at their own arrivals."""
        for item in packets:
            assert item.arrival is not None
            self.send(batch([item]), at=item.arrival)
        return self

    def of(self, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in self.read() if r.WhichOneof("response") == kind]


# -- the same as a replay --------------------------------------------------------------------------------------


def lossy(seconds: float) -> list[Packet]:
    """Packets of which some are lost, some late, some out of order; with arrivals."""
    rng = np.random.default_rng(4)
    sent = [replace(p, arrival=p.arrival + rng.exponential(0.03)) for p in stream(seconds) if rng.random() > 0.1]
    return sorted(sent, key=lambda p: p.arrival)


def test_clips_of_a_served_stream_are_those_of_a_replay_with_the_same_arrivals():
    desk = Desk()
    served = []
    desk.offer.dispatcher.submit = lambda _stream, clip, _deadline: served.append(clip)
    desk.session.settings = replace(desk.settings, in_flight=1000)
    desk.play(lossy(12.0)).send(*ends())
    info = desk.plan.info
    receiver = Receiver(info, SPEC, desk.receiver.rule, delay=desk.offer.delay(desk.plan).policy, parts=fake_parts())
    replayed = [c for p in lossy(12.0) for c in receiver.push(p, p.arrival)] + receiver.finish()
    assert len(served) == len(replayed) >= 30
    for ours, theirs in zip(served, replayed, strict=True):
        assert (ours.index, ours.state, ours.coverage, ours.flags) == (
            theirs.index, theirs.state, theirs.coverage, theirs.flags)  # fmt: skip
        for modality in ("video", "audio"):
            a, b = getattr(ours, modality), getattr(theirs, modality)
            assert (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
    assert desk.receiver.ledger.as_dict() == receiver.ledger.as_dict()


def test_how_packets_are_grouped_into_messages_changes_nothing():
    def answers(size: int) -> list[bytes]:
        desk = Desk()
        packets = stream(6.0)
        for i in range(0, len(packets), size):
            desk.send(batch(packets[i : i + size]))
        desk.send(*ends())
        return [p.SerializeToString(deterministic=True) for p in desk.of("prediction")]

    assert answers(1) == answers(7) == answers(500)


class EngineDispatcher(FakeDispatcher):
    """The real engine, one job at a time."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def _answer(self, stream: Any, clip: Any) -> None:
        trace: list[Any] = []
        self.engine.submit(stream, clip) if clip is not None else self.engine.end(stream)
        predictions = self.engine.run(trace.append)
        sink = self._sinks.get(id(stream))
        if sink is not None:
            sink(FakeAnswer(predictions, trace[0] if trace else None, last=clip is None))


@pytest.mark.slow
def test_a_deterministic_server_answers_as_a_replay_does_to_the_byte():
    from runtime.pipeline import Pipeline
    from runtime.serve.answers import bundle_to_wire

    reader = RecordingReader(DEMO)
    items = [p for p in reader.packets() if isinstance(p, Packet) and p.seconds < 8]
    arrivals = [p.decode_seconds if p.arrival is None else p.arrival for p in items]
    info = replace(reader.info, duration=None)
    pipeline = Pipeline.from_bundle("talk", device="cpu")

    class Source:
        def __init__(self) -> None:
            self.info = info

        def packets(self) -> Any:
            return (replace(p, arrival=a) for p, a in zip(items, arrivals, strict=True))

        def close(self) -> None: ...

    expected = [p.as_dict(timings=False) for p in pipeline.run(Source())]
    made = offer(
        EngineDispatcher(pipeline.engine), name="talk", heads=tuple(pipeline.engine.heads), spec=pipeline.engine.spec,
        lookahead=pipeline.bundle.manifest.lookahead, config=pipeline.config, face=pipeline.engine.initial_face,
        description=bundle_to_wire(pipeline.bundle), parts=_real_parts(),
    )  # fmt: skip
    wires = [codec_to_wire(m, c) for m, c in info.codecs.items()]
    desk = Desk(made, pb.StreamRequest(config=pb.StreamConfig(codecs=wires, origin=rational(info.origin))))
    for item, arrival in zip(items, arrivals, strict=True):
        wire = packet_to_wire(item, info.codecs[item.modality].time_base)
        desk.send(pb.StreamRequest(packets=pb.PacketBatch(packets=[wire])), at=arrival)
    desk.send(*ends())
    labels = pipeline.bundle.manifest.labels
    served: list[Prediction] = [prediction_from_wire(p, labels) for p in desk.of("prediction")]
    assert [replace(p, stream=info.name).as_dict(timings=False) for p in served] == expected
    assert len(expected) > 15


def _real_parts() -> Any:
    from runtime.lane import build_parts

    return build_parts


# -- time ------------------------------------------------------------------------------------------------------


def test_clips_close_though_nothing_arrives():
    desk = Desk(idle=1000.0)
    desk.play(stream(1.0))
    before = len(desk.of("clip_report"))
    for _ in range(100):
        desk.clock.move(0.01)
        desk.session.tick()
        desk.work()
    assert len(desk.of("clip_report")) > before


def test_time_stands_still_while_we_do_not_read():
    desk = Desk(idle=1000.0)
    desk.play(stream(1.0))
    before = len(desk.of("clip_report"))
    desk.session.wait()
    for _ in range(100):
        desk.clock.move(0.1)
        desk.session.tick()
        desk.work()
    assert len(desk.of("clip_report")) == before
    desk.session.go_on()
    for item in stream(4.0)[len(stream(1.0)) :]:
        desk.send(batch([item]), at=10.0 + item.arrival)
    desk.send(*ends())
    states = {s for r in desk.of("clip_report") for s in (m.state for m in r.modalities.values())}
    assert states == {pb.CLIP_STATE_OBSERVED}


def test_time_stands_still_while_nobody_is_connected():
    desk = Desk()
    desk.play(stream(1.0))
    assert desk.session.detach(1)
    desk.clock.move(25.0)
    desk.session.tick()
    assert desk.session.failure is None
    desk.session.resume(desk.plan)
    desk.session.attach()
    for item in stream(4.0):
        desk.send(batch([item]), at=max(desk.clock.now(), 26.0 + item.arrival))
    desk.send(*ends())
    states = {s for r in desk.of("clip_report") for s in (m.state for m in r.modalities.values())}
    assert states == {pb.CLIP_STATE_OBSERVED}


def test_in_a_recorded_stream_nothing_is_late_however_long_it_takes():
    request = config(origin=pb.Rational(denominator=1), recorded=True)
    desk = Desk(request=request, idle=1e9)
    kept = [p for p in stream(8.0) if p.seq % 7]
    served = []
    desk.offer.dispatcher.submit = lambda _stream, clip, _deadline: served.append(clip)
    desk.session.settings = replace(desk.settings, in_flight=1000)
    for item in kept:
        desk.clock.move(3.0)
        desk.session.tick()
        desk.send(batch([replace(item, arrival=None)]))
    desk.send(*ends())
    receiver = Receiver(desk.plan.info, SPEC, desk.receiver.rule, delay=desk.offer.delay(desk.plan).policy,
                        parts=fake_parts())  # fmt: skip
    replayed = [c for p in kept for c in receiver.push(replace(p, arrival=None), 0.0)] + receiver.finish()
    assert [(c.index, c.state, c.coverage) for c in served] == [(c.index, c.state, c.coverage) for c in replayed]
    assert len(served) == 20


def recorded_desk(**settings):
    return Desk(request=config(origin=pb.Rational(denominator=1), recorded=True), idle=30.0, **settings)


def test_a_recorded_stream_waits_for_a_client_that_reads_slowly():
    desk = recorded_desk(outbox=8)
    desk.send(*in_batches(stream(12.0)), *ends())
    assert desk.session.outbox.crowded
    assert not desk.session.outbox.dropped
    while not desk.session.done:
        desk.clock.move(20.0)
        desk.session.tick()
        if (entry := desk.session.outbox.pop()) is not None:
            desk.said.append(entry[0])
            desk.session.sent(0, desk.clock.now())
        desk.work()
    assert len(desk.of("clip_report")) == 30
    assert len([p for p in desk.of("prediction") if p.status == pb.PREDICTION_STATUS_FINAL]) == 58
    assert not desk.session.outbox.dropped


def test_but_not_for_ever():
    desk = recorded_desk(outbox=8)
    desk.send(*in_batches(stream(12.0)), *ends())
    for _ in range(4):
        assert desk.session.failure is None
        desk.clock.move(10.0)
        desk.session.tick()
    assert desk.session.failure.code == "RESOURCE_EXHAUSTED"
    assert "nothing was read for 30 s" in desk.session.failure.message


def test_recorded_packets_came_when_they_say():
    desk = recorded_desk()
    for item in stream(8.0):
        wire = packet_to_wire(item, CODECS[item.modality].time_base)
        wire.arrival_seconds = 100 + item.arrival
        desk.send(pb.StreamRequest(packets=pb.PacketBatch(packets=[wire])))
    assert desk.receiver._now == 100 + item.arrival


@pytest.mark.parametrize("arrival", [float("nan"), float("inf"), -float("inf"), 1e300, 0.99 - 10.0, 1.01 + 86_400.0])
def test_a_recorded_arrival_that_cannot_be_is_malformed(arrival):
    desk = recorded_desk()
    for seq, at in enumerate([1.0, arrival, 1.0, 1.0 - 10.0]):
        wire = packet_to_wire(packet(seq=seq), CODECS["video"].time_base)
        wire.arrival_seconds = at
        desk.send(pb.StreamRequest(packets=pb.PacketBatch(packets=[wire])))
    counts = desk.receiver.ledger["video"].counts
    assert (counts.received, counts.malformed) == (4, 1)
    live = Desk()
    wire.arrival_seconds = arrival
    live.send(pb.StreamRequest(packets=pb.PacketBatch(packets=[wire])))
    assert live.receiver.ledger["video"].counts.malformed == 0  # of a live stream nothing of the kind is believed


def test_a_clock_with_two_reasons_to_stand_needs_both_gone():
    base = FakeClock()
    clock = PausableClock(base)
    clock.pause("a")
    base.move(1)
    clock.pause("b")
    clock.go("a")
    base.move(1)
    assert clock.now() == 0.0
    clock.go("b")
    base.move(1)
    assert clock.now() == 1.0


def test_a_sender_in_real_time_is_in_a_hurry_and_a_file_is_not():
    def clip(index: int) -> Any:
        return SimpleNamespace(start=index * Fraction(2, 5), seconds=Fraction(2, 5), epoch=0)

    pace = Pace(within=1.0)
    live = [pace.deadline(clip(i), now=100 + 0.4 * i) - (100 + 0.4 * i) for i in range(5)]
    assert live == pytest.approx([1.0] * 5)
    pace = Pace(within=1.0)
    file = [pace.deadline(clip(i), now=100.0) for i in range(5)]
    assert file == pytest.approx([101.0 + 0.4 * i for i in range(5)])
    assert pace.deadline(clip(1), now=500.0) == 501.0


def test_silence_ends_a_stream_but_not_one_that_was_ended():
    desk = Desk(idle=5.0)
    desk.send(batch(stream(1.0)), at=0.0)
    desk.clock.move(4.9)
    desk.session.tick()
    assert desk.session.failure is None
    desk.clock.move(0.2)
    desk.session.tick()
    assert desk.session.failure.code == "DEADLINE_EXCEEDED"
    waiting = Desk(offer(FakeDispatcher(held=True)), idle=5.0)
    waiting.send(batch(stream(1.0)), *ends(), at=0.0)
    waiting.clock.move(60.0)
    waiting.session.tick()
    assert waiting.session.failure is None


def test_totals_come_at_the_interval_and_last_of_all():
    desk = Desk(report_interval=1.0)
    for item in stream(4.0):
        desk.send(batch([item]), at=item.arrival)
        desk.session.tick()
        desk.read()
    desk.send(*ends())
    assert len(desk.of("stats")) == 5
    assert desk.read()[-1].WhichOneof("response") == "stats"
    last = desk.of("stats")[-1]
    assert last.predictions_final == 18
    for counts in last.packets.values():
        assert counts.received == sum(getattr(counts, fate) for fate in FATES) + counts.unfinished
        assert counts.expected == counts.received + counts.lost


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
