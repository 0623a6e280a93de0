"""The Gilbert-Elliott loss process: its formulas, its fits, and the chain itself (numpy only).

Two states, good and bad. Per packet: p = P(good -> bad), r = P(bad -> good); a packet is lost with probability
``loss_good`` or ``loss_bad``. Elliott and tc-netem call the *reception* probabilities k = 1 - loss_good and
h = 1 - loss_bad; other code calls the losses so. Here only ``loss_good`` and ``loss_bad`` are used, as fractions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.errors import UsageError
from imputation.variates import uniform

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class GilbertElliott:
    """Parameters per packet; UsageError unless each is a probability and the chain can move."""

    p: float
    r: float
    loss_good: float = 0.0
    loss_bad: float = 1.0

    def __post_init__(self) -> None:
        for name in ("p", "r", "loss_good", "loss_bad"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"Gilbert-Elliott {name}={value:g} is not a probability; give a fraction from 0 to 1")
        if self.p + self.r == 0:
            raise UsageError("Gilbert-Elliott p=0 and r=0 never leaves its state; give at least one above 0")

    @property
    def bad_share(self) -> float:
        """Stationary probability of the bad state."""
        return self.p / (self.p + self.r)

    @property
    def loss(self) -> float:
        """Mean share of packets lost."""
        return (1 - self.bad_share) * self.loss_good + self.bad_share * self.loss_bad

    @property
    def loss_after_loss(self) -> float:
        """P(the next packet is lost | this one was); pi E P E 1 / L."""
        start, emit, move = self._matrices()
        return float((start * emit) @ move @ emit) / self.loss if self.loss else 0.0

    @property
    def burst(self) -> float:
        """Mean length of a run of lost packets; infinite if a loss is never followed by anything else."""
        again = self.loss_after_loss
        return 1 / (1 - again) if again < 1 else float("inf")

    @property
    def burst_ratio(self) -> float:
        """Mean burst over that of independent losses at the same rate; 1 = random (ITU-T G.107)."""
        return self.burst * (1 - self.loss)

    def any_loss(self, packets: int) -> float:
        """P(at least one of ``packets`` in a row is lost); 1 - pi (I - E) [P (I - E)]^(n - 1) 1."""
        start, emit, move = self._matrices()
        row = start * (1 - emit)
        for _ in range(packets - 1):
            row = (row @ move) * (1 - emit)
        return 1.0 - float(row.sum()) if packets > 0 else 0.0

    def _matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        start = np.array([1 - self.bad_share, self.bad_share])
        move = np.array([[1 - self.p, self.p], [self.r, 1 - self.r]])
        return start, np.array([self.loss_good, self.loss_bad]), move


def from_dwell(
    good_seconds: float, bad_seconds: float, spacing: float, loss_good: float = 0.0, loss_bad: float = 1.0
) -> GilbertElliott:
    """The chain seen by packets ``spacing`` seconds apart on a link of these mean dwell times (finite, > 0)."""
    a, b = 1 / good_seconds, 1 / bad_seconds
    q = -float(np.expm1(-(a + b) * spacing))
    return GilbertElliott(p=a / (a + b) * q, r=b / (a + b) * q, loss_good=loss_good, loss_bad=loss_bad)


def from_loss(loss: float, burst: float) -> GilbertElliott:
    """The simple Gilbert chain (bad loses all, good none) with this loss rate and mean burst in packets.

    UsageError where no such chain exists: bursts shorter than 1, or than loss / (1 - loss).
    """
    if not 0 <= loss < 1:
        raise UsageError(f"loss rate {loss:g} is not in [0, 1); give a fraction, e.g. 0.05 for 5 %")
    if not burst >= max(1.0, loss / (1 - loss)):
        least = max(1.0, loss / (1 - loss))
        raise UsageError(f"mean burst {burst:g} is too short for loss rate {loss:g}; give at least {least:.3g} packets")
    return GilbertElliott(p=loss / (burst * (1 - loss)), r=1 / burst)


def fit(lost: Bools) -> GilbertElliott:
    """The simple Gilbert chain of a mask (n,): p = bursts / received packets, r = 1 / mean burst."""
    lost = np.asarray(lost, bool)
    bursts = int(np.count_nonzero(lost & ~np.concatenate([[False], lost[:-1]])))
    gone = int(np.count_nonzero(lost))
    return GilbertElliott(p=bursts / max(lost.size - gone, 1) if bursts else 0.0, r=bursts / gone if gone else 1.0)


def chain(model: GilbertElliott, start_bad: bool | Bools, moves: NDArray[np.float64]) -> Bools:
    """The states (True = bad) while walking ``moves`` (..., n), uniforms in [0, 1); no Python loop.

    State i is the one *before* move i (emission, then transition, as tc-netem does): state 0 is ``start_bad``,
    which may be an array of shape ``moves.shape[:-1]``.
    """
    leave_good, leave_bad = moves < model.p, moves < model.r
    # Each move maps {good, bad} to {good, bad}: both swap, both fall to one state, or nothing changes.
    swap, fall = leave_good & leave_bad, leave_good ^ leave_bad
    flips = np.cumsum(swap, axis=-1)
    last_fall = np.maximum.accumulate(np.where(fall, np.arange(moves.shape[-1]), -1), axis=-1)
    at = np.maximum(last_fall, 0)
    anchor = np.where(last_fall >= 0, np.take_along_axis(leave_good, at, -1), np.expand_dims(start_bad, -1))
    since: NDArray[np.int64] = flips - np.where(last_fall >= 0, np.take_along_axis(flips, at, -1), 0)
    after = anchor ^ (since % 2 == 1)
    first = np.broadcast_to(np.expand_dims(start_bad, -1), (*moves.shape[:-1], 1))
    return np.concatenate([first, after[..., :-1]], axis=-1).astype(bool)


def reference_losses(model: GilbertElliott, packets: int, seed: int) -> Bools:
    """Losses (packets,) drawn in the order that the golden bits fix, for comparison with other implementations.

    One uniform places the start (stationary, not always good), then two a packet: its loss, then the move.
    """
    draws = uniform(np.random.PCG64(seed).random_raw(1 + 2 * packets))
    bad = chain(model, draws[0] < model.bad_share, draws[2::2])
    return draws[1::2] < np.where(bad, model.loss_bad, model.loss_good)
