"""Session: whose time passes when, what is late, and how long anyone waits for whom."""

from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from protos import stream_pb2 as pb
from runtime.metrics import FATES
from runtime.receive import Receiver
from runtime.serve.convert import packet_to_wire
from runtime.serve.pacing import Pace, PausableClock
from tests.desk import Desk
from tests.fakes import CODECS, SPEC, FakeClock, fake_parts, packet, stream
from tests.serving import FakeDispatcher, batch, config, ends, in_batches, offer


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
