"""Arrivals and times that no honest sender makes: bounded clips, bounded time, and the receiver's law still holds."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.clip import Clip
from runtime.packet import Packet
from tests.fakes import stream
from tests.test_receive import plain, play, receiver


def leaping(by: float, first: int = 75, count: int | None = None) -> list[Packet]:
    """A stream of 4 s in which the arrivals from the ``first`` packet on (or ``count`` of them) leap, captures not."""
    packets = stream(4.0)
    last = len(packets) if count is None else first + count
    return [replace(p, arrival=(p.arrival or 0.0) + by * (first <= i < last)) for i, p in enumerate(packets)]


@pytest.mark.parametrize("by", [70.0, 1e5, 3e9])
def test_an_arrival_that_leaps_opens_an_epoch_and_is_not_counted_out_in_clips(by: float) -> None:
    r = receiver()
    clips = play(leaping(by), r)
    assert [c.epoch for c in clips if c.epoch] == [1] * 8 and len(clips) < 8 + 160
    whole = {"video": "observed", "audio": "observed"}
    assert [c.state for c in clips if c.epoch][1:-1] == [whole] * 6, "both go on as before"
    assert [e.kind for e in r.events].count("epoch") == 1 and "shifted" not in [e.kind for e in r.events]


@pytest.mark.parametrize("by", [4e42, 1e11, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("count", [1, 2, None])
def test_an_arrival_that_is_no_time_is_malformed_and_moves_no_clock(by: float, count: int | None) -> None:
    r = receiver()
    packets = [replace(p, arrival=by) if 75 <= i < 75 + (count or 999) else p for i, p in enumerate(stream(4.0))]
    clips = play(packets, r)
    assert {c.epoch for c in clips} == {0} and len(clips) <= 10
    counts = [r.ledger[m].counts for m in ("video", "audio")]
    assert sum(c.malformed for c in counts) == (count or len(packets) - 75)


def test_an_outage_within_the_bound_is_still_closed_clip_by_clip() -> None:
    assert {c.epoch for c in play(leaping(50.0), receiver())} == {0}


@pytest.mark.parametrize("ticks", [2**63 - 1, -(2**63), 2**53])
def test_a_capture_time_that_is_no_time_is_malformed(ticks: int) -> None:
    r, packets = receiver(), stream(2.0)
    base = Fraction(1)
    clips = play([replace(p, capture_time=ticks, time_base=base) if p.seq == 20 else p for p in packets], r)
    assert r.ledger["video"].counts.malformed == r.ledger["audio"].counts.malformed == 1 and len(clips) == 5
    untimed = [replace(p, capture_time=ticks, time_base=base, arrival=None) for p in packets]
    assert play(untimed, receiver()) == []


@pytest.mark.parametrize("payload", [b"", b"\x50"])
def test_a_packet_that_says_it_lasts_for_ages_is_not_believed_for_longer_than_an_outage(payload: bytes) -> None:
    packets = [replace(p, duration=2**40, payload=payload) if p.seq == 20 else p for p in stream(2.0)]
    assert len(play([p for p in packets if p.modality == "video"], receiver())) < 400


@given(st.lists(st.tuples(st.integers(0, 149), st.floats(-1e12, 1e12) | st.floats()), max_size=6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_whatever_arrivals_do_clips_are_bounded_and_extra_calls_change_nothing(
    leaps: list[tuple[int, float]], onwards: bool
) -> None:
    packets, by = [], 0.0
    for i, p in enumerate(stream(2.0)):
        here = sum(leap for at, leap in leaps if at == i)
        by += here if onwards else 0.0
        packets.append(replace(p, arrival=(p.arrival or 0.0) + (by if onwards else here)))
    alone, polled = receiver(), receiver()
    expected = [plain(c) for c in play(packets, alone)]
    assert len(expected) <= 160 * (len(leaps) + 1)
    clips: list[Clip] = []
    for p in packets:
        for share in (0.4, 0.9):
            now = (p.arrival or 0.0) - 0.02 * share
            clips += polled.advance(now) if math.isfinite(now) and abs(now) < 1e10 else []
        clips += polled.push(p, 0.0)
    clips += polled.finish()
    assert [plain(c) for c in clips] == expected
    assert polled.ledger.as_dict() == alone.ledger.as_dict()
