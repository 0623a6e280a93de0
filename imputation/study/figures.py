"""The paper's Figures 2, 3 and 4 from what a study found, each as a plot and as CSV.

Figures 2 and 3 are one figure for each encoder: heads down, datasets across, accuracy by the share of clips lost, a
band of one deviation over draws. Figure 4 is the study of fixed rates with the GRU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import DataError
from encoders.training import writing
from imputation.results import new_figure, write_csv
from imputation.study.compare import Answers
from imputation.study.recipes import ARMS, KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FIXED_RATES", "draw", "write"]

FIXED_RATES = ("Pristine", "MAE 40", "MAE 70", "MAE 40+70", "curri-MAE-ft*", "curri-MAE-ft-all")
FIXED = ("MAE 40", "MAE 70", "MAE 40+70")  # without them there is nothing to hold against
MIXTURES = ("curri-MAE-ft 40", "curri-MAE-ft 70", "curri-MAE-ft 40+70")  # the best of them is "-ft*"
MAIN = ("Pristine", "Video only", "Audio only", "Backoff", "Regular", "Regular-ft-all", "curri-MAE", "curri-MAE-ft",
        "curri-MAE-ft-all")  # fmt: skip


def write(answers: Sequence[Answers], out: Path, *, plot: bool = True) -> list[Path]:
    """``scores.csv``, and for each encoder ``figure-ENCODER`` and ``fixed-rates-ENCODER`` as CSV and PNG, where arms of
    theirs were asked; gives the files."""
    if not answers:
        raise DataError("the study has found nothing yet; run it first")
    files = [_scores(answers, out / "scores.csv")]
    for encoder in dict.fromkeys(a.case.partition(":")[0] for a in answers):
        own = [a for a in answers if a.case.startswith(f"{encoder}:")]
        main = [a for a in own if set(MAIN) & set(a.units)]
        gru = [a for a in own if a.kind == "gru" and set(FIXED) & set(a.units)]
        for name, tables, arms in (("figure", main, MAIN), ("fixed-rates", gru, FIXED_RATES)):
            if tables:
                files.append(_figure_csv(tables, arms, out / f"{name}-{encoder}.csv"))
            if tables and plot:
                files.append(draw(tables, arms, out / f"{name}-{encoder}.png"))
    return files


def draw(answers: Sequence[Answers], arms: Sequence[str], path: Path) -> Path:
    """Heads down, datasets across."""
    kinds = [k for k in KINDS if any(a.kind == k for a in answers)]
    cases = list(dict.fromkeys(a.case for a in answers))
    figure = new_figure(4.6 * len(cases) + 2.6, 3.4 * len(kinds) + 0.3)
    grid = figure.subplots(len(kinds), len(cases), squeeze=False)
    for table in answers:
        axes = grid[kinds.index(table.kind)][cases.index(table.case)]
        _curves(axes, table, arms)
        axes.set_title(f"{table.case}, {table.kind}", fontsize=10)
    drawn: dict[str, Any] = {}
    for axes in grid.flat:
        drawn |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", frameon=False, fontsize=9)
    with writing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    return path


def _curves(axes: "Axes", table: Answers, arms: Sequence[str]) -> None:
    colours = [f"C{i}" for i in range(10)]
    for colour, name in zip(colours, arms, strict=False):
        arm = best_mixture(table) if name == "curri-MAE-ft*" else name
        if arm not in table.units:
            continue
        if ARMS.get(arm) is not None and ARMS[arm].whole:
            axes.axhline(100 * table.accuracy(arm, f"0/{table.length}"), color=colour, linestyle="--", linewidth=1.2,
                         label=name)  # fmt: skip
            continue
        rates = table.rates(arm)
        x = [100 * int(c.partition("/")[0]) / table.length for c in rates]
        y = [100 * table.accuracy(arm, c) for c in rates]
        band = [100 * table.spread(arm, c) for c in rates]
        axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.7, label=name)
        low, high = ([v + sign * b for v, b in zip(y, band, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set(xlabel="clips lost in each modality, %", ylabel="accuracy, %")
    axes.axhline(100 * table.chance, color="0.6", linestyle=":", linewidth=1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def best_mixture(table: Answers) -> str:
    """The mixture of rates that is best on average; the paper's "curr-MAE-ft*" picks it on the test as well."""
    there = [name for name in MIXTURES if name in table.units]
    return max(there, key=table.averaged) if there else ""


def _scores(answers: Sequence[Answers], path: Path) -> Path:
    rows = [
        {"case": table.case, "head": table.kind, "arm": arm, "condition": condition,
         "rate": f"{table.value(arm, condition, 'rate'):.4f}",
         "accuracy": f"{table.accuracy(arm, condition):.5f}", "std_over_draws": f"{table.spread(arm, condition):.5f}",
         "ece": _said(table.value(arm, condition, "ece")),
         "mse_video": _said(table.value(arm, condition, "mse_video")),
         "mse_audio": _said(table.value(arm, condition, "mse_audio")),
         "units": len(table.units[arm][condition])}
        for table in answers for arm in table.arms for condition in table.units[arm]
    ]  # fmt: skip
    write_csv(path, rows)
    return path


def _figure_csv(answers: Sequence[Answers], arms: Sequence[str], path: Path) -> Path:
    rows = []
    for table in answers:
        for name in arms:
            arm = best_mixture(table) if name == "curri-MAE-ft*" else name
            for condition in table.rates(arm) if arm in table.units else ():
                rows.append({"dataset": table.case.partition(":")[2], "head": table.kind, "arm": name,
                             "lost": condition, "accuracy": f"{table.accuracy(arm, condition):.5f}",
                             "std": f"{table.spread(arm, condition):.5f}"})  # fmt: skip
    write_csv(path, rows)
    return path


def _said(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
