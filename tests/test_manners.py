"""Manners: who floods and who never reads is ended in time; who has a bad link, or only a backlog, is not."""

from dataclasses import replace

import pytest

from protos import stream_pb2 as pb
from runtime.serve.allowance import BANK, Allowance
from runtime.serve.convert import packet_to_wire
from runtime.serve.limits import Limits, plan_stream
from runtime.serve.manners import Manners
from runtime.serve.settings import Settings
from tests.desk import Desk
from tests.fakes import CODECS, packet, stream
from tests.serving import config, ends, in_batches, offer


def wires(items):
    return [packet_to_wire(p, CODECS[p.modality].time_base) for p in items]


def allowance(**changes):
    values = {"ahead": 20.0, "patience": 3.0, "packets": 4000} | changes
    return Allowance(CODECS, 0.0, **values)


# -- the bucket --------------------------------------------------------------------------------------------------


def test_a_stream_in_real_time_never_runs_ahead():
    bucket = allowance(ahead=1.0)
    for item in stream(10.0):
        bucket.spend(wires([item]), item.arrival)
        assert not bucket.full(item.arrival)
    assert bucket.ahead < 0.5


def test_two_tracks_of_one_time_count_once():
    bucket = allowance()
    bucket.spend(wires(stream(20.0)), 0.0)
    assert bucket.ahead == pytest.approx(20.0, abs=0.5)


def test_what_is_sent_faster_fills_it_and_time_empties_it():
    bucket = allowance()
    bucket.spend(wires(stream(30.0)), 0.0)
    assert bucket.full(5.0)
    assert not bucket.full(15.0)


def test_beyond_a_few_seconds_it_is_read_at_the_pace_of_a_few_live_streams():
    bucket, at = allowance(), 0.0
    for item in stream(20.0):
        while bucket.full(at):
            at += 0.001
        bucket.spend(wires([item]), at)
    assert at == pytest.approx(15.0 / 7, rel=0.3)  # 20 s less the 5 that are free, of which one passes in eight


def test_who_waits_is_forgiven_and_who_pushes_on_is_not():
    patient, pushing = allowance(), allowance()
    items = stream(90.0)
    for bucket in (patient, pushing):
        bucket.spend(wires(items[: len(items) // 3]), 0.0)
    assert not patient.full(21.0)
    assert not patient.abused(21.0)
    at = 0.0
    for item in items[len(items) // 3 :]:
        while pushing.full(at):
            at += 0.01
        pushing.spend(wires([item]), at)
        if at > 13.1:
            break
    assert pushing.abused(at)


def test_times_that_stand_still_or_jump_are_no_way_around():
    standing, jumping = allowance(packets=100), allowance()
    standing.spend(wires(replace(packet(seq=i), capture_time=0) for i in range(2001)), 0.0)
    assert standing.full(0.0)
    jumping.spend(wires(packet(seq=i, ms=(i % 7) * 10**9) for i in range(500)), 0.0)
    assert jumping.full(0.0)


def test_a_clock_that_was_set_once_costs_next_to_nothing():
    bucket = allowance()
    bucket.spend(wires([packet(seq=0, ms=0), packet(seq=1, ms=10**10), packet(seq=2, ms=10**10 + 40)]), 0.0)
    assert bucket.ahead < 0.5


def test_a_link_that_was_away_may_bring_what_it_kept():
    bucket = allowance()
    bucket.spend(wires(stream(1.0)), 0.0)
    assert not bucket.full(61.0)
    bucket.spend(wires(stream(61.0)), 61.0)
    assert not bucket.full(61.0)
    assert not allowance(credit=1e9).full(0.0)
    rich = allowance(credit=1e9)
    rich.spend(wires(stream(BANK + 21.0)), 0.0)
    assert rich.full(0.0)  # nobody is richer than the bank


def test_a_track_that_was_not_named_costs_only_its_packets():
    bucket = Allowance({"audio": CODECS["audio"]}, 0.0, ahead=20.0, patience=3.0, packets=4000)
    bucket.spend(wires(p for p in stream(60.0) if p.modality == "video"), 0.0)
    assert bucket.ahead < 1.0


# -- the session -------------------------------------------------------------------------------------------------


def test_a_flooder_is_held_back_and_then_ended_within_ten_seconds():
    desk = Desk()
    held = None
    for request in in_batches(stream(150.0), 60):
        while not desk.session.room and desk.session.failure is None:
            held = desk.clock.now() if held is None else held
            desk.session.wait()
            desk.clock.move(0.01)
            desk.session.tick()
            desk.work()
        if desk.session.failure is not None:
            break
        desk.send(request)
        desk.read()
        desk.clock.move(0.02)  # forty times as fast as time
        desk.session.tick()
    assert desk.session.failure.code == "RESOURCE_EXHAUSTED"
    assert desk.session.failure.reason == "flood"
    assert "send as it is captured, or a file as recorded" in desk.session.failure.message
    assert held is not None
    assert desk.clock.now() < 10.0


def test_one_that_was_held_back_is_read_again_when_its_time_has_come():
    desk = Desk(flood=60.0)
    desk.send(*in_batches(stream(21.0), 30))
    assert not desk.session.room
    desk.session.wait()
    desk.clock.move(5.0)
    desk.session.tick()
    assert desk.session.readable.is_set()
    assert desk.session.room


def test_a_file_sent_as_recorded_may_come_as_fast_as_it_is_taken():
    desk = Desk(request=config(origin=pb.Rational(denominator=1), recorded=True))
    for request in in_batches(stream(50.0), 30):
        desk.send(request)
        desk.read()
        desk.session.tick()
    desk.send(*ends())
    assert desk.session.done
    assert desk.session.failure is None


def test_a_live_client_that_reads_nothing_loses_its_connection_but_not_its_stream():
    desk = Desk()
    desk.play(stream(1.0))
    desk.session.manners.writing()
    for _ in range(59):
        desk.clock.move(0.1)
        desk.session.tick()
        assert not desk.session.cut.is_set()
    desk.clock.move(0.3)
    desk.session.tick()
    assert desk.session.cut.is_set()
    assert desk.session.hung_up.code == "RESOURCE_EXHAUSTED"
    assert desk.session.hung_up.reason == "unread"
    assert desk.session.hung_up.retry is not None  # our client resumes by itself
    assert desk.session.failure is None
    assert desk.session.detach(1)
    desk.session.resume(desk.plan)
    desk.session.attach()
    assert desk.session.hung_up is None
    desk.session.tick()
    assert not desk.session.cut.is_set()


def test_a_bad_link_that_stalls_for_a_moment_over_and_over_survives():
    desk = Desk(idle=1e9)
    for _ in range(20):
        desk.session.manners.writing()
        for _ in range(50):
            desk.clock.move(0.1)
            desk.session.tick()
        desk.session.manners.written()
    assert desk.session.hung_up is None
    assert desk.session.failure is None


def test_the_reader_of_a_recorded_stream_may_take_longer():
    plan = plan_stream(config(recorded=True).config, offer(), Limits())
    manners = Manners(plan, Settings(), 0.0)
    manners.writing()
    assert manners.deaf(0.0) is None
    assert manners.deaf(29.0) is None
    assert manners.deaf(31.0) is not None
    assert manners.refused(0.0, True) is None
    assert manners.refused(31.0, True).reason == "unread"
