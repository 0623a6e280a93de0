"""The sample rate converter: an absolute grid, bit-equal for every way of cutting its input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.media.resample import Resampler


def converted(samples, rate_in, rate_out, start=0, cuts=()):
    """(number of the first output, outputs) of one run, pushed in the pieces between ``cuts``."""
    resampler = Resampler(rate_in, rate_out)
    resampler.start(start)
    pieces = [resampler.push(piece) for piece in np.split(samples, list(cuts))]
    pieces.append(resampler.finish())
    return pieces[0][0], np.concatenate([p for _, p in pieces])


def tone(rate, seconds, hertz, start=0):
    return np.sin(2 * np.pi * hertz * (start + np.arange(round(rate * seconds))) / rate).astype(np.float32)


@pytest.mark.parametrize("rate_in", [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("start", [0, 12345, -777])
def test_a_tone_stays_where_it_was_in_time(rate_in, start):
    first, out = converted(tone(rate_in, 0.5, 440, start), rate_in, 16_000, start)
    assert first == -(-start * 16_000 // rate_in)
    assert len(out) == -(-(start + round(rate_in * 0.5)) * 16_000 // rate_in) - first
    truth = np.sin(2 * np.pi * 440 * (first + np.arange(len(out))) / 16_000)
    assert np.abs(out - truth)[200:-200].max() < 2e-4


def test_what_lies_above_the_new_band_is_gone():
    _, out = converted(tone(44_100, 0.5, 12_000), 44_100, 16_000)
    assert np.abs(out)[200:-200].max() < 1e-3


@settings(max_examples=15, deadline=None)
@given(
    rate=st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]),
    start=st.integers(-100_000, 100_000),
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    seed=st.integers(0, 99),
)
def test_how_the_input_is_cut_changes_no_bit(rate, start, cuts, seed):
    samples = np.random.default_rng(seed).standard_normal(1500).astype(np.float32)
    first, whole = converted(samples, rate, 16_000, start)
    again, pieces = converted(samples, rate, 16_000, start, sorted(cuts))
    assert first == again
    assert np.array_equal(whole, pieces)


def test_a_run_from_the_middle_agrees_with_the_whole_away_from_its_edge():
    samples = np.random.default_rng(3).standard_normal(20_000).astype(np.float32)
    _, whole = converted(samples, 44_100, 16_000)
    first, part = converted(samples[7001:], 44_100, 16_000, start=7001)
    assert np.array_equal(whole[first + 20 :], part[20:])


def test_a_very_short_run_gives_its_share_of_samples():
    first, out = converted(np.ones(3, np.float32), 8000, 16_000, start=1)
    assert (first, len(out)) == (2, 6)
    first, out = converted(np.ones(1, np.float32), 48_000, 16_000, start=1)
    assert len(out) == 0  # no output falls on it


def test_rates_with_hardly_a_common_divisor_are_converted_too():
    first, out = converted(tone(44_056, 0.2, 300), 44_056, 16_000)
    truth = np.sin(2 * np.pi * 300 * (first + np.arange(len(out))) / 16_000)
    assert np.abs(out - truth)[100:-100].max() < 2e-4
