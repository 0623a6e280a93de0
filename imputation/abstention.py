"""When to say nothing: risk against coverage, and a threshold of confidence with a promise (numpy only).

A head that answers only when it is sure is wrong less often. ``risk_coverage`` draws that trade on data at hand;
``threshold_for`` chooses how sure, from validation, so that the share of wrong answers among those given is at most
``risk`` but for a chance of ``delta``. Thresholds are tested one after the other from strict to lax, and the last one
before the first failure is taken, which needs no correction for how many were tried (fixed sequence testing;
Angelopoulos et al., "Learn then test", 2021; selective classification by Geifman and El-Yaniv, 2017). The test is
Clopper and Pearson's on the *effective* number of answers: windows of one speaker err together, and there are few
speakers (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts",
1998).

Shape legend: n answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoders.errors import ConfigError, DataError
from imputation.tails import binomial_tail, binomial_upper, student_quantile

__all__ = ["NEVER", "Curve", "Threshold", "effective_size", "risk_coverage", "threshold_for"]

NEVER = 1.001  # a confidence that nothing reaches
STEPS = 50  # thresholds tried, at equal steps of coverage
_SPARE = 2.0  # the strictest threshold answers so many times what an unbroken run of right answers would need
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Coverage (share answered) and risk (share of those that is wrong) at every threshold, from strict to lax."""

    threshold: Floats
    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """The mean risk over all coverages: 0 is a head that is never wrong, lower is better."""
        return float(np.diff(self.coverage, prepend=0.0) @ self.risk)

    def at(self, coverage: float) -> float:
        """The risk where at least this share is answered."""
        place = np.searchsorted(self.coverage, coverage - 1e-12)
        return float(self.risk[min(int(place), len(self.risk) - 1)])


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A confidence at or above which to answer, and what validation says of it.

    ``promised`` False: so few speakers and answers promise nothing, and ``confidence`` is one that nothing reaches.
    """

    confidence: float
    coverage: float  # share of validation answered
    risk: float  # share of those that was wrong; 0 if none was given
    bound: float  # the risk lies below this but for a chance of delta
    promised: bool


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> Curve:
    """The curve of confidence (n,) and right (n,) bool; answers of one confidence are given or kept together."""
    sure, hit = _checked(confidence, right)
    values, place = np.unique(-sure, return_inverse=True)
    given = np.bincount(place).cumsum()
    wrong = np.bincount(place, ~hit).cumsum()
    return Curve(-values, given / len(sure), wrong / given)


def threshold_for(
    confidence: ArrayLike,
    right: ArrayLike,
    *,
    risk: float,
    delta: float = 0.1,
    speakers: Sequence[Any] | NDArray[Any] | None = None,
) -> Threshold:
    """The laxest confidence that keeps the risk below ``risk`` but for a chance of ``delta``, from validation answers.

    With ``speakers`` (one per answer) the promise is about other speakers of the same kind; without, about other
    answers of the same source. Confidences must come from a calibration that was not fitted on these answers.
    Raises ConfigError on a risk or chance outside (0, 1), DataError on answers that do not fit.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} {value:g} is no share; use e.g. 0.1")
    sure, hit = _checked(confidence, right)
    who = _speakers(speakers, len(sure))
    alike = 0.0 if who is None else _likeness(hit, who)
    passed: tuple[float, float, float, float] | None = None  # threshold, coverage, share wrong, effective size
    need = _SPARE * math.log(delta) / math.log1p(-risk)  # answers, all of them right, that would do
    for threshold in _thresholds(sure):
        given = sure >= threshold
        size = effective_size(hit[given], None if who is None else who[given], alike, delta)
        if size < need and not given.all():
            continue  # known from confidences and speakers alone: leaving it out chooses nothing
        wrong = float((~hit[given]).mean())
        if binomial_tail(wrong * size, size, risk) > delta:
            break
        passed = float(threshold), float(given.mean()), wrong, size
    if passed is None:
        return Threshold(confidence=NEVER, coverage=0.0, risk=0.0, bound=1.0, promised=False)
    confidence, coverage, wrong, size = passed
    bound = binomial_upper(wrong * size, size, delta)
    return Threshold(confidence=confidence, coverage=coverage, risk=wrong, bound=bound, promised=True)


def effective_size(right: Bools, who: NDArray[np.intp] | None, alike: float = 0.0, delta: float = 0.1) -> float:
    """How many independent answers these n are worth, given the likeness of a speaker's answers (0 to 1).

    Kish's design effect for speakers of different size, and Korn and Graubard's factor for few of them.
    """
    n = len(right)
    if who is None or n == 0:
        return float(n)
    counts = np.unique(who, return_counts=True)[1]
    if len(counts) < 2:
        return 0.0
    effect = 1 + (float((counts**2).sum()) / n - 1) * alike
    few = student_quantile(1 - delta, max(n - 1, 1)) / student_quantile(1 - delta, len(counts) - 1)
    return n / effect * few**2


def _likeness(right: Bools, who: NDArray[np.intp]) -> float:
    """The correlation of two answers of one speaker, 0 to 1 (from the analysis of variance), over all answers."""
    value, n = right.astype(np.float64), len(right)
    counts = np.bincount(who)
    speakers = len(counts)
    if speakers < 2 or n <= speakers:
        return 1.0
    means = np.bincount(who, value) / counts
    between = float((counts * (means - value.mean()) ** 2).sum()) / (speakers - 1)
    within = float(((value - means[who]) ** 2).sum()) / (n - speakers)
    each = (n - float((counts**2).sum()) / n) / (speakers - 1)
    total = between + (each - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0


def _thresholds(sure: Floats) -> Floats:
    """From strict to lax, at equal steps of coverage; the laxest answers all."""
    steps: Floats = np.unique(np.quantile(sure, 1 - np.arange(1, STEPS + 1) / STEPS, method="lower"))[::-1]
    return steps


def _speakers(speakers: Sequence[Any] | NDArray[Any] | None, answers: int) -> NDArray[np.intp] | None:
    if speakers is None:
        return None
    if len(speakers) != answers:
        raise DataError(f"{len(speakers)} speakers for {answers} answers; name one for each")
    return np.unique(np.asarray(speakers), return_inverse=True)[1]


def _checked(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats, Bools]:
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.bool_)
    if sure.ndim != 1 or sure.shape != hit.shape or not len(sure):
        raise DataError(f"confidence {sure.shape} and right {hit.shape} do not fit; give one of each per answer")
    if np.isnan(sure).any():
        raise DataError("a confidence is not a number; look for NaN in the features or the head")
    return sure, hit
