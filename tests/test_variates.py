"""Bit-stable variates: right to the last digits, and the same digits everywhere."""

import hashlib
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imputation.variates import Draws, exp, exponential, log, lognormal, normal, truncated_normal, uniform


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_log_is_right_to_two_units_in_the_last_place(x):
    got = float(log(np.array([x]))[0])
    assert got == pytest.approx(math.log(x), rel=5e-16, abs=2e-16)


@given(st.floats(min_value=-600, max_value=600))
def test_exp_is_right_to_two_units_in_the_last_place(x):
    assert float(exp(np.array([x]))[0]) == pytest.approx(math.exp(x), rel=5e-16)


@given(st.floats(min_value=1e-16, max_value=1, exclude_max=True))
def test_the_normal_quantile_agrees_with_the_standard_library(u):
    assert float(normal(np.array([u]))[0]) == pytest.approx(statistics.NormalDist().inv_cdf(u), rel=2e-15, abs=1e-15)


def test_uniforms_are_what_numpys_generator_makes_of_the_same_words():
    raw = np.random.PCG64(7).random_raw(100)
    np.testing.assert_array_equal(uniform(raw), np.random.default_rng(7).random(100))


def test_taking_numbers_in_parts_gives_the_whole():
    whole, parts = Draws("wifi-poor", 3, "loss"), Draws("wifi-poor", 3, "loss")
    np.testing.assert_array_equal(whole.take(7), np.concatenate([parts.take(2), parts.take(0), parts.take(5)]))


@pytest.mark.parametrize("other", [("b", 1, "loss", 0), ("a", 2, "loss", 0), ("a", 1, "jitter", 0), ("a", 1, "loss", 1),
                                   ("a", 1, "loss", -1), ("a", 1 + (1 << 32), "loss", 0)])  # fmt: skip
def test_another_name_seed_purpose_or_block_is_another_stream(other):
    assert Draws(*other).take(4).tolist() != Draws("a", 1, "loss", 0).take(4).tolist()


def test_the_bits_of_every_variate_are_pinned():
    u = uniform(np.random.PCG64(11).random_raw(4096))
    parts = [exponential(u, 0.3), lognormal(u, 0.35, 0.8), lognormal(u, 0.35, 0.8, by_length=True), normal(u),
             truncated_normal(u, -1.5, 3.0)]  # fmt: skip
    digest = hashlib.sha256(b"".join(part.astype("<f8").tobytes() for part in parts)).hexdigest()
    assert digest[:16] == "f06c1e1a40f63ba2"


def test_means_are_what_was_asked_for():
    u = (np.arange(50_000) + 0.5) / 50_000
    assert exponential(u, 0.35).mean() == pytest.approx(0.35, rel=1e-3)
    assert lognormal(u, 0.35, 0.8).mean() == pytest.approx(0.35, rel=3e-3)
    assert np.log(lognormal(u, 0.35, 0.8)).std() == pytest.approx(0.8, rel=1e-3)
    biased = lognormal(u, 0.35, 0.8, by_length=True)
    assert biased.mean() == pytest.approx(0.35 * math.exp(0.8**2), rel=1e-2)  # E[X^2] / E[X]


def test_extreme_uniforms_stay_finite():
    u = np.array([0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
    for values in (exponential(u, 1), lognormal(u, 1, 0.8), truncated_normal(u, -3, 3)):
        assert np.isfinite(values).all() and (np.diff(values) > 0).all()


def test_a_truncated_normal_keeps_its_bounds_and_its_shape_between_them():
    u = (np.arange(50_000) + 0.5) / 50_000
    z = truncated_normal(u, -1.5, 3.0)
    assert -1.5 <= z.min() < -1.49 and 2.9 < z.max() <= 3.0
    inside = statistics.NormalDist().cdf(0) - statistics.NormalDist().cdf(-1.5)
    total = statistics.NormalDist().cdf(3) - statistics.NormalDist().cdf(-1.5)
    assert (z < 0).mean() == pytest.approx(inside / total, abs=1e-4)
