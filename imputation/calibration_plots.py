"""Reliability diagrams, calibration error by loss, and risk against coverage, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imputation.results import Reliability, Results, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_calibration", "plot_reliability"]

PANELS = 3  # reliability diagrams: no loss, most of it, and what lies between
AIM = 0.05  # calibration error below which confidence is taken at its word


def plot_calibration(results: Results, path: Path) -> None:
    """Above: reliability at three rates. Below: calibration error with its interval, risk by coverage. As PNG."""
    figure = new_figure(10.5, 6.8)
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    arms = list(dict.fromkeys(s.arm for s in results.scores))
    colours = {arm: f"C{i % 10}" for i, arm in enumerate(arms)}
    shown = spread_out(results.conditions)
    for axes, condition in zip(above.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for arm in arms:
            bins = [b for b in results.bins if (b.arm, b.condition) == (arm, condition)]
            plot_reliability(axes, bins, colour=colours[arm])
        axes.set_title(f"hidden: {condition}", fontsize=9)
    left, right = below.subplots(1, 2)
    for arm in arms:
        _errors(left, results, arm, colours[arm])
        _risks(right, results, arm, shown[len(shown) // 2], colours[arm])
    left.axhline(AIM, color="0.6", linewidth=0.8, linestyle=":")
    left.set(xlabel="clips lost in each modality, %", ylabel="calibration error", ylim=(0, None))
    right.set(xlabel="share answered", ylabel="share of answers wrong", xlim=(0, 1), ylim=(0, None))
    right.set_title(f"hidden: {shown[len(shown) // 2]}", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")


def plot_reliability(axes: "Axes", bins: Sequence[Reliability], *, colour: str = "C0", label: str = "") -> None:
    """One line of a reliability diagram: accuracy by confidence, with 1.96 standard errors, over the diagonal."""
    confidence, accuracy = [b.confidence for b in bins], [b.accuracy for b in bins]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    axes.plot(confidence, accuracy, marker="o", markersize=3, linewidth=1.2, color=colour, label=label or None)
    low, high = ([a + sign * 1.96 * b.error for a, b in zip(accuracy, bins, strict=True)] for sign in (-1, 1))
    axes.vlines(confidence, low, high, linewidth=0.6, color=colour)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share right")
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)


def spread_out(conditions: Sequence[str], most: int = PANELS) -> list[str]:
    """The first condition, the last, and those evenly between."""
    places = np.linspace(0, len(conditions) - 1, min(most, len(conditions))).round().astype(int)
    return [conditions[i] for i in dict.fromkeys(places.tolist())]


def _errors(axes: "Axes", results: Results, arm: str, colour: str) -> None:
    line = results.by_rate(arm)
    rates, middle = [100 * s.rate for s in line], np.array([s.ece for s in line])
    axes.plot(rates, middle, marker="o", markersize=3, linewidth=1.5, color=colour, label=arm)
    low, high = np.array([s.ece_low for s in line]), np.array([s.ece_high for s in line])
    if line and not np.isnan(low).any():
        axes.fill_between(rates, low, high, color=colour, alpha=0.12, linewidth=0)


def _risks(axes: "Axes", results: Results, arm: str, condition: str, colour: str) -> None:
    curve = [c for c in results.curves if (c.arm, c.condition) == (arm, condition)]
    axes.plot([c.coverage for c in curve], [c.risk for c in curve], marker=".", linewidth=1.3, color=colour)
