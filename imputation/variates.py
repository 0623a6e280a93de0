"""Random numbers that are the same on every machine and with every numpy (numpy only).

Only the raw 64-bit words of PCG64 are drawn; uniforms, logarithms, exponentials and the normal quantile are
computed here from IEEE additions, multiplications, divisions and square roots, which are exact to the bit
everywhere. numpy's own distributions and the C library's log and exp promise no such thing.
"""

from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LN2_HIGH = 6.93147180369123816490e-01  # ln 2 in two parts: n * high is exact for |n| < 2**20
_LN2_LOW = 1.90821492927058770002e-10


class Draws:
    """A stream of uniforms for one purpose, e.g. the losses of the audio packets of one channel.

    The seed is made of a name (by CRC32), the run's seed, the purpose and a block number, so that a new
    purpose never shifts an old one. Taking 2 and then 3 numbers gives the same as taking 5.
    """

    def __init__(self, name: str, seed: int, purpose: str, block: int = 0) -> None:
        zigzag = 2 * block if block >= 0 else -2 * block - 1  # seeds hold no negative words
        words = [crc32(name.encode()), seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, crc32(purpose.encode()), zigzag]
        self._bits = np.random.PCG64(np.random.SeedSequence(words))

    def take(self, count: int) -> Floats:
        """The next ``count`` uniforms, (count,), each in [0, 1)."""
        return uniform(self._bits.random_raw(count))


def uniform(raw: NDArray[np.uint64]) -> Floats:
    """53 bits of each raw word as a number in [0, 1); what ``Generator.random`` makes of the same words."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def log(x: Floats) -> Floats:
    """Natural logarithm of positive finite ``x``, within 2 ulp: 2 artanh((m - 1) / (m + 1)) + e ln 2."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, 2 * mantissa, mantissa)
    n = np.where(small, exponent - 1, exponent).astype(np.float64)
    f = (mantissa - 1) / (mantissa + 1)
    square: Floats = f * f
    series: Floats = np.zeros_like(square)
    for k in range(23, 0, -2):
        series = series * square + 1.0 / k
    result: Floats = n * _LN2_HIGH + (n * _LN2_LOW + 2 * f * series)
    return result


def exp(x: Floats) -> Floats:
    """``e**x`` for |x| < 700, within 2 ulp: Taylor's series on [-ln2 / 2, ln2 / 2], then a shift of the exponent."""
    n = np.rint(x * 1.4426950408889634)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.ones_like(r)
    for k in range(15, 0, -1):
        series = series * r / k + 1.0
    return np.asarray(np.ldexp(series, n.astype(np.int32)), np.float64)


# Wichura, "The percentage points of the normal distribution", Applied Statistics 37 (1988), algorithm AS 241,
# PPND16: a ratio of polynomials around the centre, and two for the tails. Highest power first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
     5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
     3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Floats) -> Floats:
    above, below = np.zeros_like(x), np.zeros_like(x)
    for a, b in zip(*coefficients, strict=True):
        above, below = above * x + a, below * x + b
    return above / below


def normal(u: Floats) -> Floats:
    """The standard normal quantile of ``u`` in (0, 1), relative error about 1e-16 (AS 241)."""
    q = u - 0.5
    r = np.sqrt(-log(np.where(q < 0, u, 1.0 - u)))
    tail = np.where(r <= 5.0, _ratio(_TAIL, r - 1.6), _ratio(_FAR_TAIL, r - 5.0))
    return np.where(np.abs(q) <= 0.425, q * _ratio(_CENTRE, 0.180625 - q * q), np.where(q < 0, -tail, tail))


def _inside(u: Floats) -> Floats:
    return u + 2.0**-54  # off zero, where quantiles are infinite; never reaches one


def exponential(u: Floats, mean: float) -> Floats:
    """Exponential variates of the given mean from uniforms in [0, 1)."""
    return -mean * log(1.0 - u)


def lognormal(u: Floats, mean: float, sigma: float, *, by_length: bool = False) -> Floats:
    """Log-normal variates with the given mean; ``sigma`` is the deviation of their logarithm.

    ``by_length``: as met at a random moment, i.e. weighted by their own length, which again is log-normal.
    """
    mu = float(log(np.array([mean]))[0]) + (0.5 if by_length else -0.5) * sigma * sigma
    return exp(mu + sigma * normal(_inside(u)))


def truncated_normal(u: Floats, low: float, high: float) -> Floats:
    """Standard normal variates given that they fall in [low, high], both within +-8."""
    below, above = _normal_cdf(low), _normal_cdf(high)
    return np.clip(normal(_inside(below + u * (above - below))), low, high)


@lru_cache
def _normal_cdf(x: float) -> float:
    low, high = 2.0**-53, 1.0 - 2.0**-53
    for _ in range(64):  # bisection of our own quantile: exact on every machine, unlike the C library's erf
        middle = (low + high) / 2
        low, high = (middle, high) if float(normal(np.array([middle]))[0]) < x else (low, middle)
    return low
