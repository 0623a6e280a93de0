"""Abstention: risk against coverage, the tails behind a promise, and the promise itself."""

import numpy as np
import pytest

from encoders.errors import ConfigError, DataError
from imputation.abstention import NEVER, effective_size, risk_coverage, threshold_for
from imputation.tails import binomial_tail, binomial_upper, incomplete_beta, student_quantile


def answers(speakers: int, each: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences, whether right, and who: speakers are harder or easier than confidence says."""
    rng = np.random.default_rng(seed)
    z = np.abs(rng.normal(1.2, 1.2, (speakers, each))) * 1.3
    right = rng.random(z.shape) < 1 / (1 + np.exp(-z - spread * rng.standard_normal((speakers, 1))))
    return (1 / (1 + np.exp(-z))).ravel(), right.ravel(), np.repeat(np.arange(speakers), each)


def test_the_curve_answers_the_surest_first_and_ties_together():
    curve = risk_coverage([0.9, 0.8, 0.8, 0.6], [True, True, False, False])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 2])
    assert curve.at(0.5) == pytest.approx(1 / 3) and curve.at(0.25) == 0 and curve.at(1.0) == 0.5
    assert curve.area == pytest.approx(0.5 / 3 + 0.25 / 2)


def test_tails_are_the_textbook_ones():
    assert incomplete_beta(2, 3, 0.4) == pytest.approx(0.5248)
    assert binomial_tail(1, 10, 0.3) == pytest.approx(0.7**10 + 10 * 0.3 * 0.7**9)
    assert binomial_tail(10, 10, 0.3) == 1 and binomial_tail(0, 4, 0.5) == pytest.approx(1 / 16)
    assert binomial_upper(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1)  # the rule of three, exactly
    assert binomial_upper(3, 3, 0.1) == 1 and binomial_upper(0, 0, 0.1) == 1
    assert student_quantile(0.975, 5) == pytest.approx(2.570582, abs=1e-5)
    assert student_quantile(0.9, 1) == pytest.approx(3.077684, abs=1e-5)


def test_windows_of_one_speaker_are_worth_less_than_as_many_of_many():
    right = np.ones(100, bool)
    few, many = np.repeat(np.arange(4), 25), np.arange(100)
    assert effective_size(right, None) == 100
    assert effective_size(right, many, 0.3) == pytest.approx(100, rel=0.02)
    assert effective_size(right, few, 0.3) < 20 < effective_size(right, few, 0.0) < 100
    assert effective_size(right, np.zeros(100, int), 0.0) == 0  # one speaker says nothing of others


def test_the_risk_is_kept_for_other_speakers_as_often_as_promised():
    everyone, truth, _ = answers(1000, 20, 0.6, 99)
    broken, careless, coverage = 0, 0, []
    for seed in range(40):
        sure, right, who = answers(8, 80, 0.6, seed)
        found = threshold_for(sure, right, risk=0.1, delta=0.1, speakers=who)
        without = threshold_for(sure, right, risk=0.1, delta=0.1)
        coverage.append(found.coverage)
        for name, confidence in (("with", found.confidence), ("without", without.confidence)):
            given = everyone >= confidence
            over = given.any() and (~truth[given]).mean() > 0.1
            broken += over and name == "with"
            careless += over and name == "without"
    assert broken <= 6 and careless > 6  # 4 of 40 may be; taken for independent, windows promise too much
    assert np.mean(coverage) > 0.1


def test_the_threshold_says_what_validation_says_of_it():
    sure, right, _ = answers(1, 2000, 0.0, 0)
    found = threshold_for(sure, right, risk=0.1)
    given = sure >= found.confidence
    assert found.promised and found.risk < found.bound <= 0.1
    assert found.coverage == pytest.approx(given.mean()) and found.risk == pytest.approx((~right[given]).mean())
    assert threshold_for(sure, right, risk=0.2).coverage >= found.coverage
    assert threshold_for(sure, np.ones(2000, bool), risk=0.05).coverage == 1.0


@pytest.mark.parametrize("how", ["always wrong", "few", "one speaker"])
def test_where_nothing_can_be_promised_nothing_is_answered(how):
    sure, right, _ = answers(4, 50, 0.3, 0)
    chosen = slice(0, 8) if how == "few" else slice(None)
    right = right & (how != "always wrong")
    speakers = [0] * len(sure) if how == "one speaker" else None
    found = threshold_for(sure[chosen], right[chosen], risk=0.1, speakers=speakers)
    assert (found.promised, found.confidence, found.coverage) == (False, NEVER, 0.0)


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"risk": 0.0}, ConfigError, "risk 0 is no share"),
        ({"risk": 0.1, "delta": 1.0}, ConfigError, "delta 1 is no share"),
        ({"risk": 0.1, "speakers": ["a"]}, DataError, "1 speakers for 2 answers"),
        ({"risk": 0.1, "confidence": [0.5]}, DataError, "do not fit"),
        ({"risk": 0.1, "confidence": [0.5, float("nan")]}, DataError, "not a number"),
    ],
)
def test_what_does_not_fit_is_refused(values, error, sentence):
    confidence = values.pop("confidence", [0.5, 0.6])
    with pytest.raises(error, match=sentence):
        threshold_for(confidence, [True, False], **values)
