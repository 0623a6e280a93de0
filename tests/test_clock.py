"""Time: exact ticks, unwrapping, epochs, drift."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import (
    Drift,
    DriftMonitor,
    SystemClock,
    TimestampUnwrapper,
    VirtualClock,
    floor_to,
    rescale,
    seconds_to_ticks,
    ticks_to_seconds,
)

BASES = st.sampled_from([Fraction(1, 90_000), Fraction(1, 48_000), Fraction(1, 1000), Fraction(1001, 30_000)])
TICKS = st.integers(-(2**50), 2**50)


@given(TICKS, BASES)
def test_ticks_survive_the_way_to_seconds_and_back(ticks: int, base: Fraction):
    assert seconds_to_ticks(ticks_to_seconds(ticks, base), base) == ticks


@given(TICKS, BASES, BASES)
def test_rescaling_is_off_by_half_a_tick_at_most_and_odd_about_zero(ticks: int, source: Fraction, target: Fraction):
    out = rescale(ticks, source, target)
    assert abs(out * target - ticks * source) * 2 <= target
    assert rescale(-ticks, source, target) == -out


def test_halves_round_away_from_zero():
    assert [rescale(t, Fraction(1, 2), Fraction(1)) for t in (-3, -1, 1, 3)] == [-2, -1, 1, 2]


def test_an_agreed_origin_is_a_multiple_of_the_step_at_or_before_the_time():
    assert floor_to(Fraction(1001, 1000), Fraction(2, 5)) == Fraction(4, 5)
    assert floor_to(Fraction(-1, 1000), Fraction(2, 5)) == Fraction(-2, 5)
    assert floor_to(Fraction(4, 5), Fraction(2, 5)) == Fraction(4, 5)


def test_timestamps_go_on_growing_past_32_bits():
    unwrapper = TimestampUnwrapper()
    assert [unwrapper.unwrap(t) for t in (2**32 - 10, 2**32 - 5, 3, 1, 20)] == [
        2**32 - 10,
        2**32 - 5,
        2**32 + 3,
        2**32 + 1,
        2**32 + 20,
    ]


@given(st.lists(st.integers(-1000, 2**30), max_size=30))
def test_any_walk_in_steps_below_half_the_circle_is_recovered(steps):
    unwrapper = TimestampUnwrapper()
    at, first = 7, unwrapper.unwrap(7)
    for step in steps:
        at += step
        assert unwrapper.unwrap(at % 2**32) == first + at - 7


@pytest.mark.parametrize("ppm", [-300.0, 0.0, 50.0, 1000.0])
def test_drift_is_found_under_queueing_delay(ppm: float):
    rng = np.random.default_rng(1)
    drift = Drift()
    for i in range(6000):
        capture = i * 0.02
        queueing = rng.exponential(0.03) if rng.random() < 0.9 else 0.0
        drift.add(capture, 0.05 + capture * (1 + ppm * 1e-6) + queueing)
    assert drift.ppm == pytest.approx(ppm, abs=10)
    assert drift.transit(60.0) == pytest.approx(0.05 + 60 * ppm * 1e-6, abs=0.001)


def test_drift_says_nothing_before_it_has_seen_enough():
    drift = Drift()
    assert drift.ppm is None and drift.transit(0.0) is None
    drift.add(0.0, 0.1)
    assert drift.ppm is None
    assert drift.transit(5.0) == pytest.approx(0.1)


def test_drift_keeps_a_bounded_number_of_points():
    drift = Drift(span=30)
    for i in range(300):
        drift.add(float(i), i + 0.1)
    assert len(drift._floor) == 30


def monitored(seconds: int, video_ppm: float, audio_ppm: float) -> tuple[DriftMonitor, list]:
    """Both modalities for some seconds; every remap with the audio time it was asked for."""
    monitor, remaps = DriftMonitor(), []
    for i in range(seconds * 50):
        capture = i * 0.02
        monitor.video.add(capture, capture * (1 + video_ppm * 1e-6) + 0.05)
        monitor.audio.add(capture, capture * (1 + audio_ppm * 1e-6) + 0.03)
        remap = monitor.update(capture)
        if remap is not None:
            remaps.append((capture, remap))
    return monitor, remaps


def test_a_common_drift_of_both_clocks_is_none_between_them():
    monitor, remaps = monitored(60, 400.0, 400.0)
    assert monitor.drift_ppm == pytest.approx(0, abs=1)
    assert remaps == []
    assert monitor.av_offset_ms(10.0) == pytest.approx(-20.0, abs=0.1)


def test_drift_below_a_hundred_ppm_is_left_alone():
    assert monitored(60, 0.0, 90.0)[1] == []


def test_drift_above_is_put_right_every_ten_seconds_at_most():
    _, remaps = monitored(60, 0.0, 500.0)
    times = [t for t, _ in remaps]
    assert len(remaps) >= 3
    assert min(np.diff(times)) >= 10 - 1e-6
    at, last = remaps[-1]
    assert float(last.offset) == pytest.approx(at * 500e-6, abs=1e-3)  # audio's clock ran slow by so much
    assert last.drift_ppm == pytest.approx(500, abs=5)


def test_a_new_epoch_measures_afresh():
    monitor, _ = monitored(60, 0.0, 500.0)
    monitor.reset()
    assert monitor.drift_ppm is None
    assert monitor.update(0.0) is None


def test_a_virtual_clock_jumps_and_never_goes_back():
    clock = VirtualClock(1.0)
    clock.sleep_until(5.0)
    clock.sleep_until(2.0)
    assert clock.now() == 5.0


def test_the_system_clock_does_not_wait_for_the_past():
    clock = SystemClock()
    before = clock.now()
    clock.sleep_until(before - 100)
    assert clock.now() - before < 50
