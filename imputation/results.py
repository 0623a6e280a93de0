"""What an evaluation found: as tables for people, CSV and JSON for machines, and a plot."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import DataError, MissingExtraError
from encoders.training import write_json, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_RATE = re.compile(r"\d+/\d+|clips-[\d.]+")  # conditions that lie on the axis of loss; other profiles are points

__all__ = ["Difference", "FillError", "Reliability", "Results", "Score", "Selective", "new_figure", "write_csv"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One arm in one condition; means over draws, ``_std`` their standard deviation."""

    arm: str
    condition: str  # "3/10" clips hidden in each modality, or a profile's name
    rate: float  # share of clips hidden
    accuracy: float
    accuracy_std: float
    recall: float  # mean of class recalls
    recall_std: float
    ece: float  # of all draws together, 10 bins of equal mass, debiased (imputation.calibration_error)
    abstained: float  # share of windows
    answered_accuracy: float  # of the windows that were answered
    speakers: dict[str, float]  # accuracy of each, over draws
    ece_low: float = math.nan  # 95 % interval, other speakers of this kind (windows, where there is one speaker)
    ece_high: float = math.nan
    nll: float = math.nan  # mean negative log-likelihood of the label, nats
    risk_area: float = math.nan  # mean risk over all coverages


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Answers of about the same confidence."""

    arm: str
    condition: str
    confidence: float
    accuracy: float
    share: float  # of all answers
    error: float  # standard error of confidence minus accuracy


@dataclass(frozen=True, kw_only=True)
class Selective:
    """What an arm gets wrong if it answers only so often, at or above a confidence."""

    arm: str
    condition: str
    coverage: float
    confidence: float
    risk: float  # share of the answers given that is wrong


@dataclass(frozen=True, kw_only=True)
class FillError:
    """Mean squared error of a fill on hidden places, in units of standardised features."""

    fill: str
    condition: str
    rate: float
    video: float
    audio: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of an arm minus the reference's on the same masks; ``error`` is the standard error over speakers."""

    arm: str
    reference: str
    condition: str
    mean: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """An evaluation with the settings that repeat it."""

    scores: list[Score]
    errors: list[FillError]
    differences: list[Difference] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    bins: list[Reliability] = field(default_factory=list)
    curves: list[Selective] = field(default_factory=list)

    def score(self, arm: str, condition: str) -> Score:
        """Raises KeyError if it was not measured."""
        for score in self.scores:
            if (score.arm, score.condition) == (arm, condition):
                return score
        raise KeyError((arm, condition))

    def error(self, fill: str, condition: str) -> FillError:
        """Raises KeyError if it was not measured."""
        for error in self.errors:
            if (error.fill, error.condition) == (fill, condition):
                return error
        raise KeyError((fill, condition))

    @property
    def conditions(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(score.condition for score in self.scores))

    def accuracy_table(self, metric: str = "accuracy") -> "Table":
        """Conditions down, arms across: mean ± deviation in percent. ``metric``: accuracy or recall."""
        arms = list(dict.fromkeys(s.arm for s in self.scores))
        table = _table(f"{metric}, % (± over draws)", arms)
        for condition in self.conditions:
            cells = [self.score(arm, condition) for arm in arms]
            table.add_row(
                condition, *(f"{100 * getattr(s, metric):.1f} ±{100 * getattr(s, metric + '_std'):.1f}" for s in cells)
            )
        return table

    def error_table(self) -> "Table":
        """Conditions down, fills across: mean squared error, video / audio."""
        hidden = [c for c in self.conditions if any(not math.isnan(e.video) for e in self.errors if e.condition == c)]
        fills = list(dict.fromkeys(e.fill for e in self.errors))
        table = _table("fill error, video / audio (1 = variance of a feature)", fills)
        for condition in hidden:
            cells = [self.error(fill, condition) for fill in fills]
            table.add_row(condition, *(f"{e.video:.2f} / {e.audio:.2f}" for e in cells))
        return table

    def difference_table(self) -> "Table | None":
        """Points of accuracy against the reference, ± standard error over speakers."""
        if not self.differences:
            return None
        by = {(d.arm, d.condition): d for d in self.differences}
        arms = list(dict.fromkeys(d.arm for d in self.differences))
        table = _table(f"points against {self.differences[0].reference} (± over speakers)", arms)
        for condition in self.conditions:
            cells = [by[arm, condition] for arm in arms]
            table.add_row(condition, *(f"{100 * d.mean:+.1f} ±{100 * d.error:.1f}" for d in cells))
        return table

    def calibration_table(self) -> "Table":
        """Conditions down, arms across: calibration error with its interval, percent."""
        arms = list(dict.fromkeys(s.arm for s in self.scores))
        over = self.settings.get("ece_over", "speakers")
        table = _table(f"calibration error, % (95 % interval over {over})", arms)
        for condition in self.conditions:
            table.add_row(condition, *(_with_interval(self.score(arm, condition)) for arm in arms))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Plain values; a number that does not exist (nothing was hidden) is None."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain

    def save(self, folder: Path, *, plot: bool = True) -> list[Path]:
        """Everything in ``results.json``, the tables as CSV, ``accuracy.png`` and ``calibration.png``, each whole.

        Raises OutputError.
        """
        tables: dict[str, list[dict[str, Any]]] = {
            "scores.csv": [{**asdict(s), "speakers": json.dumps(s.speakers)} for s in self.scores],
            "errors.csv": [asdict(e) for e in self.errors],
            "reliability.csv": [asdict(b) for b in self.bins],
            "risk_coverage.csv": [asdict(c) for c in self.curves],
        }
        write_json(folder / "results.json", self.as_dict())
        written = [folder / "results.json"]
        for name, rows in tables.items():
            if rows or name in ("scores.csv", "errors.csv"):
                write_csv(folder / name, rows)
                written.append(folder / name)
        if plot:
            from imputation.calibration_plots import plot_calibration

            drawings: dict[str, Callable[[Path], None]] = {
                "accuracy.png": self.plot,
                "calibration.png": partial(plot_calibration, self),
            }
            for name, draw in drawings.items():
                with writing(folder / name) as unfinished:
                    draw(unfinished)
                written.append(folder / name)
        return written

    def by_rate(self, arm: str) -> list[Score]:
        """An arm's scores on the axis of loss; profiles that are points of their own are left out."""
        return sorted((s for s in self.scores if s.arm == arm and _RATE.fullmatch(s.condition)), key=lambda s: s.rate)

    def plot(self, path: Path) -> None:
        """Accuracy of each arm by share of clips lost, with its deviation over draws, as PNG."""
        figure = new_figure(7, 4.2)
        axes = figure.subplots()
        for arm in dict.fromkeys(s.arm for s in self.scores):
            line = self.by_rate(arm)
            x, y = [100 * s.rate for s in line], [100 * s.accuracy for s in line]
            low = [100 * max(0.0, s.accuracy - s.accuracy_std) for s in line]
            high = [100 * min(1.0, s.accuracy + s.accuracy_std) for s in line]
            (drawn,) = axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.8, label=arm)
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel="clips lost in each modality, %", ylabel="accuracy, %")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, dpi=150, format="png")


def new_figure(width: float, height: float) -> "Figure":
    """Of so many inches, drawn without a display. Raises MissingExtraError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "matplotlib is not installed; run pip install 'legato[plot]', or use --no-plot"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _with_interval(score: Score) -> str:
    interval = "" if math.isnan(score.ece_low) else f" [{100 * score.ece_low:.1f}, {100 * score.ece_high:.1f}]"
    return f"{100 * score.ece:.1f}{interval}"


def _table(title: str, columns: Sequence[str]) -> "Table":
    """Conditions go down: there may be many more of them than a terminal is wide."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("hidden", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    return table


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One row a line under the names of the first, whole or not at all. Raises DataError where there are none."""
    if not rows:
        raise DataError(f"there is nothing to write to {path.name}; evaluate at least one arm")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with writing(path) as unfinished:
        unfinished.write_text(text.getvalue(), newline="")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
