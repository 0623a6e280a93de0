"""Packets' times and sequence numbers that wrap (RFC 3550, appendix A.1)."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from runtime.packet import ExtendedSequence, Packet, newer, unwrap


def packet(**changes) -> Packet:
    given = {"modality": "video", "seq": 0, "capture_time": 3003, "time_base": Fraction(1, 90_000), "payload": b""}
    return Packet(**(given | changes))


@given(st.integers(-(2**60), 2**60), st.sampled_from([Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 1)]))
def test_seconds_are_rounded_once(ticks: int, base: Fraction):
    assert packet(capture_time=ticks, time_base=base).seconds == float(ticks * base)


def test_a_packet_ends_where_its_duration_says():
    assert packet(duration=3000).end_seconds == 6003 / 90_000
    assert packet().end_seconds == packet().seconds


def test_decode_time_is_capture_time_where_none_is_known():
    assert packet().decode_seconds == packet().seconds
    assert packet(decode_time=-3003).decode_seconds == -3003 / 90_000


def test_newer_goes_around_the_circle():
    assert newer(5, 65530)
    assert not newer(65530, 5)
    assert not newer(7, 7)


def test_unwrap_finds_the_nearest_number():
    assert unwrap(5, 65530) == 65541
    assert unwrap(65530, 65541) == 65530
    assert unwrap(0, 3 * 65536 - 1) == 3 * 65536


def extended(numbers: list[int]) -> list[int | None]:
    sequence = ExtendedSequence()
    return [sequence.extend(n) for n in numbers]


def test_sequence_numbers_wrap_onto_a_line():
    assert extended([65530, 65535, 0, 5]) == [65530, 65535, 65536, 65541]


def test_reordering_by_up_to_a_hundred_is_reordering():
    assert extended([1000, 999]) == [1000, 999]
    assert extended([1000, 901]) == [1000, 901]
    assert extended([1000, 899]) == [1000, None]  # 101 behind: a jump, not believed yet


def test_a_duplicate_keeps_its_number():
    assert extended([10, 11, 11, 10]) == [10, 11, 11, 10]


def test_a_dropout_below_three_thousand_is_a_loss():
    assert extended([0, 2999]) == [0, 2999]
    assert extended([0, 3001]) == [0, None]


def test_two_in_a_row_restart_behind_everything_seen():
    sequence = ExtendedSequence()
    assert [sequence.extend(n) for n in (100, 40_000, 40_001, 40_002, 40_001)] == [100, None, 101, 102, 101]
    assert (sequence.restarts, sequence.refused) == (1, 1)


def test_a_single_stray_packet_is_refused_and_forgotten():
    assert extended([100, 40_000, 101, 40_001, 102]) == [100, None, 101, None, 102]


@given(st.lists(st.integers(1, 2999), max_size=60), st.integers(0, 65535))
def test_any_growing_sequence_is_recovered(steps, start):
    sequence = ExtendedSequence()
    at = start
    assert sequence.extend(at) == start
    for step in steps:
        at += step
        assert sequence.extend(at % 65536) == at
