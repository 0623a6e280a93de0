"""Tails of the binomial and of Student's t distribution, for bounds on small samples (no scipy).

Both are the regularised incomplete beta function, by its continued fraction (Lentz's method; DLMF 8.17.22); a bound
is found by halving. Numbers of trials and of hits need not be whole: an effective sample size hardly ever is.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

from encoders.errors import ConfigError

__all__ = ["binomial_tail", "binomial_upper", "incomplete_beta", "student_quantile"]

_HALVINGS = 60
_TERMS = 10_000
_SMALL = 1e-300
_MANY = 1000  # degrees of freedom from which on Student's t is a normal distribution, to 0.2 %


def incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) for a, b > 0 and x in [0, 1]."""
    assert a > 0 and b > 0, (a, b)
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / a * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, _inverse(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = _inverse(1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _inverse(x: float) -> float:
    return 1 / (x if abs(x) > _SMALL else _SMALL)


def binomial_tail(hits: float, trials: float, rate: float) -> float:
    """The chance of at most ``hits`` of ``trials`` at ``rate``: the p-value of "the rate is this high or higher"."""
    if hits >= trials:
        return 1.0
    return incomplete_beta(trials - hits, hits + 1, 1 - rate)


def binomial_upper(hits: float, trials: float, delta: float) -> float:
    """The rate that lies above the true one but for a chance of ``delta`` (Clopper and Pearson 1934, one-sided)."""
    if not 0 < delta < 1:
        raise ConfigError(f"a bound that fails with a chance of {delta:g} does not exist; use e.g. 0.1")
    if trials <= 0 or hits >= trials:
        return 1.0
    return _halved(lambda rate: binomial_tail(hits, trials, rate) <= delta, 0.0, 1.0)


@lru_cache(maxsize=1024)
def student_quantile(chance: float, freedom: float) -> float:
    """Where Student's t of so many degrees of freedom lies below with this chance (0.5 to 1)."""
    assert 0.5 <= chance < 1 and freedom > 0, (chance, freedom)
    if freedom > _MANY:
        return NormalDist().inv_cdf(chance)

    def beyond(t: float) -> bool:
        return 1 - incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2 >= chance

    high = 1.0
    while not beyond(high):
        high *= 2
    return _halved(beyond, 0.0, high)


def _halved(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The least x between low and high at which ``reached`` is true; it is true from there on."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
