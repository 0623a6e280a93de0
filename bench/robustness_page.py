"""The page of ``bench.robustness``: what was asked for, by arm and case, with paired differences and their errors."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from imputation.study.compare import Answers, Pair, holm
from imputation.study.recipes import ARMS
from imputation.study.run import Plan

__all__ = ["page"]

NAIVE = ("zeros", "hold", "lerp", "observed mean", "nearest", "Regular", "Backoff")
IMPUTED = ("curri-MAE", "MAE, uniform k", "gaussian", "residual", "MAE + KL", "curri-MAE + KL", "residual + KL")
TUNED = ("curri-MAE-ft-all", "MAE-ft-all", "residual-ft-all", "residual + KL, ft-all", "residual-ft-all, sure",
         "residual-ft-all, consistent", "two readings, zeros twice", "two readings, MAE", "two readings")  # fmt: skip
RIVAL = "drops"
NOTES = Path(__file__).with_name("robustness_notes.md")  # what no table says
HEAVY = 0.6  # share of clips lost from which it is heavy


def page(answers: Sequence[Answers], plan: Plan) -> list[str]:
    """The whole of it."""
    return [
        "# Missing modalities on real recordings",
        "",
        *_what(answers, plan),
        *_unmodified(answers),
        *_tuned(answers),
        *_kept(answers),
        *_whole(answers),
        *_streams(answers),
        *_real(answers, plan),
        *_errors(answers),
        *NOTES.read_text(encoding="utf-8").splitlines(),
        "",
        *_everything(answers),
    ]


def _what(answers: Sequence[Answers], plan: Plan) -> list[str]:
    b = plan.budget
    return [
        f"Accuracy in per cent. {plan.draws} masks of a window and rate, the same for every arm; seeds: {plan.seeds}.",
        f"Every imputer has {b.fill_steps} steps, every head {b.head_steps} on whole windows and, where it learns from",
        f"damaged ones, {b.tune_steps} more, of {b.batch} windows each. Differences are paired by fold and seed",
        "(Java-SED) or by speaker and seed (GRID), ± one standard error over those; masks are no evidence.",
        "",
        "| case | head | windows lost nothing | chance | units |",
        "|---|---|---|---|---|",
        *(
            f"| {a.case} | {a.kind} | {_percent(a.accuracy('Pristine', f'0/{a.length}'))} | {_percent(a.chance)} "
            f"| {len(a.units['Pristine'][f'0/{a.length}'])} |"
            for a in answers if "Pristine" in a.units
        ),
        "",
    ]  # fmt: skip


def _unmodified(answers: Sequence[Answers]) -> list[str]:
    """The head that was never touched: each imputer against the best naive fill of its case."""
    lines = ["## An unmodified head", "",
             "Mean over rates; in brackets points above the case's best naive fill, by hindsight.", ""]  # fmt: skip
    shown = [n for n in (*NAIVE, *IMPUTED) if any(n in a.units for a in answers)]
    lines += _header(("case", "head", *shown))
    gains: dict[str, list[float]] = {}
    for a in answers:
        best = _best(a, NAIVE)
        cells = []
        for name in shown:
            if name not in a.units:
                cells.append("")
                continue
            cell = _percent(a.averaged(name))
            if name in IMPUTED and best:
                pair = a.pair(name, best, a.chosen(name))
                gains.setdefault(name, []).append(pair.mean)
                cell += f" ({_points(pair)})"
            cells.append(f"**{cell}**" if name == best else cell)
        lines.append(f"| {a.case} | {a.kind} | {' | '.join(cells)} |")
    return [*lines, "", "Over cases: " + "; ".join(f"{n} {100 * mean(g):+.1f}" for n, g in gains.items()) + ".", ""]


def _tuned(answers: Sequence[Answers]) -> list[str]:
    """Heads that were trained on damage, against the one that was trained with drops as long."""
    shown = [n for n in TUNED if any(n in a.units for a in answers)]
    lines = ["## Heads trained on damage, against one trained with drops", "",
             "Points above the head with drops, mean over rates, and from 60 % on. *Cells* are rates that differ",
             "after Holm's correction at 5 %: below and above.", ""]  # fmt: skip
    lines += _header(("case", "head", RIVAL, *shown))
    cells: dict[str, dict[tuple[str, str, str], Pair]] = {}
    for a in answers:
        if RIVAL not in a.units:
            continue
        row = []
        for name in shown:
            if name not in a.units:
                row.append("")
                continue
            for c in a.chosen(name):
                cells.setdefault(name, {})[a.case, a.kind, c] = a.pair(name, RIVAL, [c])
            heavy = [c for c in a.rates(name) if int(c.partition("/")[0]) / a.length >= HEAVY - 1e-9]
            both = [a.pair(name, RIVAL, conditions) for conditions in (a.chosen(name), heavy) if conditions]
            row.append("; ".join(map(_points, both)))
        lines.append(f"| {a.case} | {a.kind} | {_percent(a.averaged(RIVAL))} | {' | '.join(row)} |")
    lines.append("")
    for name, by in cells.items():
        told = holm({key: pair.p for key, pair in by.items()})
        below = sum(by[key].mean < 0 for key in told)
        lines.append(f"- {name}: of {len(by)} cells {below} below and {len(told) - below} above.")
    return [*lines, ""]


def _kept(answers: Sequence[Answers]) -> list[str]:
    """How much of what whole windows give is left."""
    names = [n for n in ("zeros", "lerp", "Backoff", RIVAL, "curri-MAE-ft-all", *TUNED[2:]) if _any(answers, n)]
    lines = ["## What is left of the accuracy on whole windows", "", "At the rates nearest to 40, 60 and 80 %.", ""]
    lines += _header(("case", "head", *names))
    for a in answers:
        if "Pristine" not in a.units:
            continue
        whole = a.accuracy("Pristine", f"0/{a.length}")
        cells = []
        for name in names:
            lost = [min(a.length - 1, math.floor(share * a.length + 0.5)) for share in (0.4, 0.6, 0.8)]
            at = [f"{k}/{a.length}" for k in lost]
            cells.append(" ".join(f"{100 * a.accuracy(name, c) / whole:.0f}" for c in at) if name in a.units else "")
        lines.append(f"| {a.case} | {a.kind} | {' | '.join(cells)} |")
    return [*lines, ""]


def _whole(answers: Sequence[Answers]) -> list[str]:
    """One modality missing from beginning to end, against the classifier of the other by itself."""
    names = [n for n in ("zeros", RIVAL, "drops, bits", *TUNED) if _any(answers, n)]
    lines = ["## A whole modality missing", "", "Without sound; without pictures.", ""]
    lines += _header(("case", "head", "picture's own", "sound's own", *names))
    for a in answers:
        cells = [_percent(a.accuracy(n, f"0/{a.length}")) if n in a.units else "" for n in ("Video only", "Audio only")]
        for name in names:
            there = name in a.units and "no audio" in a.units[name]
            cells.append("; ".join(_percent(a.accuracy(name, c)) for c in ("no audio", "no video")) if there else "")
        lines.append(f"| {a.case} | {a.kind} | {' | '.join(cells)} |")
    return [*lines, ""]


def _streams(answers: Sequence[Answers]) -> list[str]:
    """Filled when F later clips have come, against filled when all have."""
    pairs = [(f"{base}, lookahead {f}", base) for base in ("residual", "two readings") for f in range(4)]
    shown = [(n, base) for n, base in pairs if _any(answers, n)]
    if not shown:
        return []
    lines = ["## Streams", "", "Points against filling when the whole window is there; the worst rate in brackets.", ""]
    lines += _header(("case", *(n for n, _ in shown)))
    for a in answers:
        if a.kind != "gru":
            continue
        cells = []
        for name, base in shown:
            if name not in a.units or base not in a.units:
                cells.append("")
                continue
            worst = min(a.pair(name, base, [c]).mean for c in a.chosen(name))
            cells.append(f"{_points(a.pair(name, base, a.chosen(name)))} ({100 * worst:+.1f})")
        lines.append(f"| {a.case} | {' | '.join(cells)} |")
    return [*lines, ""]


def _real(answers: Sequence[Answers], plan: Plan) -> list[str]:
    """Losses of networks instead of equal rates."""
    names = [n for n in (RIVAL, "drops, real loss", "curri-MAE-ft-all", "residual-ft-all", "MAE-ft-all, real loss",
                         "curri-MAE", "residual", "lerp") if _any(answers, n)]  # fmt: skip
    if not plan.profiles or not names:
        return []
    lines = ["## Losses of real networks", "", f"{', then '.join(plan.profiles)}.", ""]
    lines += _header(("case", "head", *names))
    for a in answers:
        cells = []
        for name in names:
            there = name in a.units and all(p in a.units[name] for p in plan.profiles)
            cells.append("; ".join(_percent(a.accuracy(name, p)) for p in plan.profiles) if there else "")
        lines.append(f"| {a.case} | {a.kind} | {' | '.join(cells)} |")
    return [*lines, ""]


def _errors(answers: Sequence[Answers]) -> list[str]:
    """Whether features can be predicted at all."""
    names = [n for n in ("zeros", "hold", "lerp", "observed mean", "nearest", "gaussian", "curri-MAE", "MAE, uniform k",
                         "residual", "MAE + KL", "residual + KL") if _any(answers, n)]  # fmt: skip
    lines = ["## Error of fills", "", "Mean squared error over rates, picture / sound; 1 is a feature's variance.", ""]
    lines += _header(("case", *names))
    for a in answers:
        if a.kind != "gru":
            continue
        cells = [_error(a, name) if name in a.units else "" for name in names]
        lines.append(f"| {a.case} | {' | '.join(cells)} |")
    return [*lines, ""]


def _error(a: Answers, name: str) -> str:
    sides = []
    for m in ("mse_video", "mse_audio"):
        values = [v for c in a.chosen(name) if (v := a.value(name, c, m)) is not None]
        sides.append(f"{mean(values):.2f}" if values else "")
    return " / ".join(sides)


def _everything(answers: Sequence[Answers]) -> list[str]:
    """Every arm at every rate."""
    lines = ["## Every arm at every rate", ""]
    for a in answers:
        longest = max((a.rates(arm) for arm in a.arms), key=len)
        lines += [f"### {a.case}, {a.kind}", "", *_header(("arm", *longest, "mean of k > 0"))]
        for arm in a.arms:
            there = a.rates(arm)
            cells = [_percent(a.accuracy(arm, c)) if c in there else "" for c in longest]
            average = _percent(a.averaged(arm)) if len(there) > 1 else ""
            said = f" ({ARMS[arm].says})" if arm in ARMS and ARMS[arm].says else ""
            lines.append(f"| {arm}{said} | {' | '.join(cells)} | {average} |")
        lines.append("")
    return lines


def _best(a: Answers, names: Iterable[str]) -> str:
    there = [n for n in names if n in a.units]
    return max(there, key=a.averaged) if there else ""


def _any(answers: Sequence[Answers], name: str) -> bool:
    return any(name in a.units for a in answers)


def _header(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(pair: Pair) -> str:
    error = "" if math.isnan(pair.error) else f" ± {100 * pair.error:.1f}"  # of one unit nobody knows it
    return f"{100 * pair.mean:+.1f}{error}"
