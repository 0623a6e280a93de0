"""How far confidence is from being right that often: reliability, calibration error, and its interval (numpy only).

Bins hold equally many answers, and answers of one confidence share a bin. A bin's gap is estimated from few answers,
so that even a perfect head shows one; what chance alone adds is taken off (Kumar et al., "Verified uncertainty
calibration", NeurIPS 2019, with equal-mass bins as Roelofs et al., "Mitigating bias in calibration error estimation",
AISTATS 2022, advise). The same window under several masks is not several windows: ``groups`` says what belongs
together, and the spread is that between groups. The interval is a bootstrap over speakers, who are fewer still.

Shape legend: n answer, b bin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.errors import ConfigError, DataError
from imputation.tails import student_quantile

__all__ = ["BINS", "Bin", "calibration_error", "calibration_interval", "reliability"]

BINS = 10
Floats = NDArray[np.float64]
Names = Sequence[Any] | NDArray[Any]  # of speakers or windows, one per answer
_SLACK = 1e-9  # confidences are softmaxes in fp32: this much above 1 is rounding


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of about the same confidence: how sure they were, how often right, and how well that is known."""

    confidence: float  # mean, 0 to 1
    accuracy: float  # share that was right
    share: float  # of all answers
    error: float  # standard error of confidence minus accuracy


@dataclass(frozen=True)
class _Answers:
    """Checked answers, and the places of each in the order of confidence and among the groups."""

    confidence: Floats  # (n,)
    gap: Floats  # (n,) confidence - right
    value: NDArray[np.intp]  # (n,) rank among the different confidences
    group: NDArray[np.intp]  # (n,)


@dataclass(frozen=True)
class _Bins:
    mass: Floats  # (b,) answers
    gap: Floats  # (b,) mean of confidence - right
    error: Floats  # (b,) its standard error
    confidence: Floats  # (b,) mean


def reliability(confidence: ArrayLike, right: ArrayLike, *, bins: int = BINS, groups: Names | None = None) -> list[Bin]:
    """The bins that hold anything, from unsure to sure: confidence (n,) of the answers given, right (n,) bool."""
    answers = _answers(confidence, right, groups, bins)
    found = _binned(answers, np.ones(len(answers.gap)), bins)
    return [
        Bin(confidence=float(c), accuracy=float(c - g), share=float(m / found.mass.sum()), error=float(e))
        for m, g, e, c in zip(found.mass, found.gap, found.error, found.confidence, strict=True)
        if m > 0
    ]


def calibration_error(
    confidence: ArrayLike,
    right: ArrayLike,
    *,
    bins: int = BINS,
    groups: Names | None = None,
    norm: int = 1,
    debiased: bool = True,
) -> float:
    """Mean distance (``norm`` 1), or root mean square (2), between confidence and accuracy over the bins.

    ``debiased`` takes off what chance adds: for the square exactly the variance of the gap, for the distance what a
    normal error of that variance adds to it. What would come out below 0 is 0. Raises DataError on what is no
    confidence, ConfigError on a norm or a number of bins that does not exist.
    """
    if norm not in (1, 2):
        raise ConfigError(f"calibration error of norm {norm} is unknown; use 1 (distance) or 2 (root mean square)")
    answers = _answers(confidence, right, groups, bins)
    return _error(_binned(answers, np.ones(len(answers.gap)), bins), norm, debiased)


def calibration_interval(
    confidence: ArrayLike,
    right: ArrayLike,
    speakers: Names,
    *,
    bins: int = BINS,
    groups: Names | None = None,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Where the debiased calibration error (norm 1) lies for other speakers of this kind: (low, high).

    Speakers are drawn again with replacement, ``resamples`` times, and bins are made anew; the deviation of what comes
    out, times Student's t of so few speakers, stands on both sides of the estimate. Percentiles of the resamples would
    be too narrow: simulated for 4 to 20 speakers who differ, they held the truth 60 to 83 times of 100, this 93 to 100
    times (tests/test_calibration_error.py repeats it in small). A single speaker says nothing of others: (nan, nan).
    """
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(f"a {level:g} interval of {resamples} resamples does not exist; use e.g. 0.95 of 400")
    answers = _answers(confidence, right, groups, bins)
    if len(speakers) != len(answers.gap):
        raise DataError(f"{len(speakers)} speakers for {len(answers.gap)} answers; name one for each")
    who, of = np.unique(np.asarray(speakers), return_inverse=True)
    if len(who) < 2:
        return math.nan, math.nan
    estimate = _error(_binned(answers, np.ones(len(of)), bins), 1, True)
    rng = np.random.Generator(np.random.PCG64(seed))
    again = rng.multinomial(len(who), np.full(len(who), 1 / len(who)), size=resamples)  # how often each speaker
    values = [_error(_binned(answers, times[of].astype(np.float64), bins), 1, True) for times in again]
    few = len(who) / (len(who) - 1)  # a resample of few speakers varies less than their kind does
    reach = student_quantile((1 + level) / 2, len(who) - 1) * float(np.std(values)) * math.sqrt(few)
    return max(0.0, estimate - reach), min(1.0, estimate + reach)


def _answers(confidence: ArrayLike, right: ArrayLike, groups: Names | None, bins: int) -> _Answers:
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if bins < 1:
        raise ConfigError(f"{bins} bins hold nothing; use 1 or more, e.g. {BINS}")
    if sure.ndim != 1 or sure.shape != hit.shape or (groups is not None and len(groups) != len(sure)):
        raise DataError(
            f"confidence {sure.shape}, right {hit.shape} and groups do not fit together; give one of each per answer"
        )
    if not len(sure):
        raise DataError("calibration error of no answers does not exist; answer at least one window")
    wrong = ~((sure >= 0) & (sure <= 1 + 1e3 * _SLACK))
    if wrong.any():
        raise DataError(f"confidence {sure[wrong][0]:g} does not lie in [0, 1]; give probabilities, not logits")
    value = np.unique(sure, return_inverse=True)[1]
    group = np.arange(len(sure)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    return _Answers(sure, sure - hit, value, group)


def _binned(answers: _Answers, weight: Floats, bins: int) -> _Bins:
    """Bins of equal mass where each answer counts ``weight`` times; a value lies where the middle of its mass does."""
    mass = np.bincount(answers.value, weight)
    middle = (mass.cumsum() - mass / 2) / mass.sum()
    of = np.minimum((middle * bins).astype(np.intp), bins - 1)[answers.value]  # (n,)
    count: Floats = np.bincount(of, weight, bins).astype(np.float64)
    some = np.maximum(count, 1e-12)
    gap = np.bincount(of, weight * answers.gap, bins) / some
    confidence = np.bincount(of, weight * answers.confidence, bins) / some
    return _Bins(count, gap, _spread(answers, weight, of, gap, count), confidence)


def _spread(answers: _Answers, weight: Floats, of: NDArray[np.intp], gap: Floats, count: Floats) -> Floats:
    """Standard error of each bin's gap from sums over groups, which may be as alike inside as they like.

    A group that was drawn twice is two groups: all its answers have the same weight.
    """
    groups, bins = int(answers.group.max()) + 1, len(count)
    place = of * groups + answers.group
    rest = np.bincount(place, answers.gap - gap[of], bins * groups).reshape(bins, groups)
    here = np.bincount(place, minlength=bins * groups).reshape(bins, groups) > 0
    times = np.zeros(groups)
    times[answers.group] = weight
    drawn = (here * times).sum(axis=1)
    variance = (times * rest**2).sum(axis=1) / np.maximum(count, 1e-12) ** 2
    spread: Floats = np.sqrt(variance * drawn / np.maximum(drawn - 1, 1))
    return spread


def _error(found: _Bins, norm: int, debiased: bool) -> float:
    share, gap, error = found.mass / found.mass.sum(), np.abs(found.gap), found.error
    if norm == 2:
        square = gap**2 - error**2 if debiased else gap**2
        return math.sqrt(max(0.0, float(share @ square)))
    return max(0.0, float(share @ (gap - _folded(gap, error) if debiased else gap)))


def _folded(gap: Floats, error: Floats) -> Floats:
    """E|gap + error z| - gap for a normal z: what chance adds to a distance (the folded normal distribution)."""
    some = np.maximum(error, 1e-12)
    inside = np.array([math.erf(z) for z in gap / some / math.sqrt(2)])
    added: Floats = some * math.sqrt(2 / math.pi) * np.exp(-((gap / some) ** 2) / 2) + gap * inside - gap
    return added
