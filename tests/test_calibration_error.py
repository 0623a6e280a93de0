"""Calibration error: bins, what chance adds to them, and the interval over speakers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import ConfigError, DataError
from imputation.calibration_error import calibration_error, calibration_interval, reliability


def honest(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A head whose confidence is exactly the chance that it is right."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.4, 1.0, n)
    return confidence, rng.random(n) < confidence


def test_bins_hold_equally_many_and_say_what_was_right():
    confidence = np.repeat([0.2, 0.9], 50)
    right = np.r_[np.arange(50) < 10, np.arange(50) < 25]
    low, high = reliability(confidence, right, bins=2)
    assert (low.confidence, low.accuracy, low.share) == (pytest.approx(0.2), pytest.approx(0.2), 0.5)
    assert (high.confidence, high.accuracy, high.share) == (pytest.approx(0.9), pytest.approx(0.5), 0.5)
    assert high.error == pytest.approx(math.sqrt(0.25 / 49), rel=1e-6)
    assert calibration_error(confidence, right, bins=2, debiased=False) == pytest.approx(0.2)
    assert calibration_error(confidence, right, bins=2, norm=2, debiased=False) == pytest.approx(math.sqrt(0.08))


def test_one_confidence_for_all_is_one_bin_in_whatever_order():
    right = np.arange(100) < 70
    assert len(reliability(np.full(100, 0.7), right)) == 1
    assert calibration_error(np.full(100, 0.7), right) == pytest.approx(0, abs=1e-12)


def test_what_chance_adds_is_taken_off():
    plain = [calibration_error(*honest(300, seed), debiased=False) for seed in range(30)]
    absolute = [calibration_error(*honest(300, seed)) for seed in range(30)]
    square = [calibration_error(*honest(300, seed), norm=2) ** 2 for seed in range(30)]
    assert np.mean(plain) > 0.05  # although nothing is wrong
    assert np.mean(absolute) < 0.65 * np.mean(plain)
    assert np.mean(square) < 0.1 * np.mean([calibration_error(*honest(300, s), norm=2, debiased=False) ** 2
                                            for s in range(30)]) + 4e-4  # fmt: skip


def test_a_true_error_is_found_whatever_the_number_of_answers():
    for n in (200, 2000, 20000):
        confidence, right = honest(n)
        assert calibration_error(np.minimum(confidence + 0.0, 1), right & (np.arange(n) % 10 > 1)) == pytest.approx(
            0.2 * confidence.mean(), abs=0.06 if n == 200 else 0.025
        )


def test_masks_of_one_window_are_no_new_windows():
    confidence, right = honest(100)
    again, same = np.tile(confidence, 10), np.tile(right, 10)
    grouped = calibration_error(again, same, groups=np.tile(np.arange(100), 10))
    assert grouped == pytest.approx(calibration_error(confidence, right), abs=1e-9)
    assert calibration_error(again, same) > grouped  # ten times as many answers would hide their chance


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held, width = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        off = 0.08 + 0.04 * rng.standard_normal(6)  # each speaker is misjudged by as much
        speaker = np.repeat(np.arange(6), 60)
        confidence = rng.uniform(0.6, 1.0, 360)
        right = rng.random(360) < confidence - off[speaker]
        low, high = calibration_interval(confidence, right, speaker, resamples=60)
        held.append(low <= 0.08 <= high)
        width.append(high - low)
    assert np.mean(held) >= 0.9 and np.mean(width) < 0.2


def test_one_speaker_says_nothing_of_others():
    assert all(math.isnan(x) for x in calibration_interval(*honest(50), ["s1"] * 50))


def test_the_interval_is_the_same_every_time_and_holds_the_estimate():
    confidence, right = honest(200)
    speakers = [f"s{i % 5}" for i in range(200)]
    one, two = (calibration_interval(confidence, right, speakers, resamples=50) for _ in range(2))
    assert one == two and one[0] <= calibration_error(confidence, right) <= one[1]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_every_answer_has_a_bin_and_errors_are_shares(answers, bins):
    confidence, right = zip(*answers, strict=True)
    found = reliability(confidence, right, bins=bins)
    assert 1 <= len(found) <= bins and sum(b.share for b in found) == pytest.approx(1)
    assert [b.confidence for b in found] == sorted(b.confidence for b in found)
    assert 0 <= calibration_error(confidence, right, bins=bins) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("confidence", "right", "more", "error", "sentence"),
    [
        ([], [], {}, DataError, "of no answers"),
        ([0.5], [True, False], {}, DataError, "do not fit together"),
        ([0.5, 3.0], [True, False], {}, DataError, "confidence 3 does not lie in"),
        ([0.5, math.nan], [True, False], {}, DataError, "confidence nan does not lie in"),
        ([0.5], [True], {"bins": 0}, ConfigError, "0 bins"),
        ([0.5], [True], {"norm": 3}, ConfigError, "norm 3 is unknown"),
        ([0.5], [True], {"groups": [1, 2]}, DataError, "groups do not fit"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence, right, more, error, sentence):
    with pytest.raises(error, match=sentence):
        calibration_error(confidence, right, **more)


def test_an_interval_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="interval of 0 resamples"):
        calibration_interval(*honest(5), list("aabbc"), resamples=0)
    with pytest.raises(DataError, match="2 speakers for 5 answers"):
        calibration_interval(*honest(5), ["a", "b"])
