"""Every arm of every case, fold, seed and kind of head: made, asked, and written down; what is there is not made again.

A folder holds ``CASE/FOLD-SEED/`` with imputers, heads and ``found-KIND.json``. The masks are those of
`imputation.sampling.paired_hidden`: one stored seed for each (window, k, draw), whoever is asked.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoders.errors import ConfigError, LegatoError
from encoders.settings import from_dict, to_dict
from encoders.training import Interrupted, write_json
from imputation.calibrate import Calibration, fit
from imputation.evaluate import Arm as Asked
from imputation.evaluate import answer, calibration_data, evaluate
from imputation.features import FeatureSet
from imputation.run import Progress
from imputation.study.cases import Case, Fold
from imputation.study.recipes import KINDS, Arm, Budget, arms_of
from imputation.study.workshop import Workshop, steps_of

__all__ = ["Cell", "Estimate", "Found", "Plan", "cells", "estimate", "run"]

WHOLE = {"no video": 0, "no audio": 1}  # column of the M axis that is lost from beginning to end
CHOOSING = 3  # draws on validation
Found = dict[str, Any]  # arm -> condition -> accuracy, std, ece, speakers
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked."""

    arms: str = "paper"  # tables or names of recipes, with ; between
    kinds: tuple[str, ...] = KINDS
    seeds: int = 3
    draws: int = 10
    profiles: tuple[str, ...] = ()
    calibrated: bool = False  # confidence is fitted on validation, in every arm alike
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Cell:
    """What is made and asked in one go."""

    case: Case
    fold: Fold
    seed: int
    kind: str

    @property
    def key(self) -> str:
        return f"{self.case.name.replace(':', '-')}/{self.fold.name}-{self.seed}"


@dataclass(frozen=True)
class Estimate:
    """What a study will take on this machine."""

    cells: int
    fill_steps: int
    head_steps: int
    answers: int  # windows answered, by one arm each
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.cells} trainings of all arms: {self.fill_steps:,} steps of imputers, {self.head_steps:,} of heads, "
            f"{self.answers:,} windows answered; about {_spoken(self.seconds)} here"
        )


def cells(cases: Sequence[Case], plan: Plan) -> list[Cell]:
    """All of them; a seed of everything before the next."""
    return [
        Cell(case, fold, seed, kind)
        for seed in range(plan.seeds)
        for case in cases
        for fold in case.folds
        for kind in plan.kinds
    ]


def run(cases: Sequence[Case], plan: Plan, out: Path, *, progress: Progress | None = None, say: Say = print) -> None:
    """Fill the folder with what every cell found; goes on where it stopped.

    A cell that fails is named and left out, and the next one is begun; raises the first such error at the end. What is
    interrupted stops here, and is gone on with when it is called again.
    """
    failed: LegatoError | None = None
    for cell in cells(cases, plan):
        try:
            found = answered(cell, plan, out, progress)
        except (ConfigError, Interrupted):
            raise
        except LegatoError as error:
            failed = failed or error
            say(f"{cell.key}, {cell.kind}: {error}")
            continue
        say(f"{cell.key}, {cell.kind}: {len(found)} arms")
    if failed is not None:
        raise failed


def answered(cell: Cell, plan: Plan, out: Path, progress: Progress | None = None) -> Found:
    """What the arms of a cell say; those that were asked before are not asked again."""
    folder = out / cell.key
    _same_budget(folder, plan.budget)
    file = folder / f"found-{cell.kind}.json"
    about = {"draws": plan.draws, "profiles": list(plan.profiles), "calibrated": plan.calibrated}
    kept = json.loads(file.read_text()) if file.exists() else {}
    found: Found = kept.get("arms", {}) if kept.get("about") == about else {}
    wanted = {name: arm for name, arm in arms_of(plan.arms, cell.kind).items() if name not in found}
    if wanted:
        shop = Workshop(cell.fold, cell.kind, plan.budget, folder, seed=cell.seed, progress=progress)
        for name, arm in wanted.items():
            found[name] = _asked(shop.arm(name, arm), arm, cell.fold, plan)
            write_json(file, {"about": about, "chance": cell.case.chance, "length": cell.case.length, "arms": found})
    return found


def _same_budget(folder: Path, budget: Budget) -> None:
    """What was made with another budget may not stand beside what is made now."""
    file = folder / "budget.json"
    if not file.exists():
        write_json(file, to_dict(budget))
    elif (before := from_dict(Budget, json.loads(file.read_text()))) != budget:
        name = next(k for k, v in to_dict(budget).items() if to_dict(before)[k] != v)
        raise ConfigError(
            f"{folder} was made with {name} {to_dict(before)[name]} and not {to_dict(budget)[name]}; "
            "give the same, or another --runs"
        )


def _asked(arm: Asked, recipe: Arm, fold: Fold, plan: Plan) -> dict[str, Any]:
    """By condition: accuracy over draws, its deviation, calibration error, each speaker's accuracy; and fill errors.

    ``validation``: the accuracy by which arms may be chosen, averaged over rates, of windows that nobody is tested on.
    """
    if plan.calibrated and not recipe.whole:
        arm = replace(arm, calibration=_calibration(arm, fold.validation))
    levels = [0] if recipe.whole else None
    results = evaluate([arm], fold.test, levels=levels, draws=plan.draws,
                       profiles=() if recipe.whole else plan.profiles)  # fmt: skip
    found = {
        s.condition: {"rate": s.rate, "accuracy": s.accuracy, "std": s.accuracy_std, "ece": s.ece,
                      "speakers": s.speakers}
        for s in results.scores
    }  # fmt: skip
    for e in results.errors:
        if e.fill == arm.name and e.condition in found:
            found[e.condition] |= {"mse_video": _number(e.video), "mse_audio": _number(e.audio)}
    for name, column in {} if recipe.whole else WHOLE.items():
        lost = _without(fold.test, column)
        if lost.presence.flatten(1).any(1).all():
            score = evaluate([arm], lost, levels=[0], draws=1).scores[0]
            found[name] = {"rate": 0.5, "accuracy": score.accuracy, "std": 0.0, "ece": score.ece,
                           "speakers": score.speakers}  # fmt: skip
    if not recipe.whole:
        chosen = evaluate([replace(arm, calibration=None)], fold.validation, draws=CHOOSING).scores
        lossy = [s.accuracy for s in chosen if s.rate > 0]
        found["validation"] = {"rate": 0.5, "accuracy": sum(lossy) / len(lossy), "std": 0.0, "ece": 0.0, "speakers": {}}
    return found


def _calibration(arm: Asked, validation: FeatureSet) -> Calibration:
    return fit(*calibration_data(arm, validation))


def _without(data: FeatureSet, column: int) -> FeatureSet:
    presence = data.presence.clone()
    presence[..., column] = False
    return replace(data, presence=presence)


def _number(value: float) -> float | None:
    return None if value != value else value


# --- what it will take ------------------------------------------------------------------------------------------


def estimate(cases: Sequence[Case], plan: Plan, out: Path) -> Estimate:
    """Steps and answers still to come, times what a few of each take on the first case."""
    fill_steps = head_steps = answers = count = 0
    for cell in _missing(cases, plan, out):
        arms = arms_of(plan.arms, cell.kind)
        fills, heads = steps_of(arms, plan.budget)
        conditions = 1 + plan.draws * (cell.case.length - 1 + len(plan.profiles))
        fill_steps, head_steps, count = fill_steps + fills, head_steps + heads, count + 1
        answers += conditions * len(cell.fold.test) * len(arms)
    if not count:
        return Estimate(0, 0, 0, 0, 0.0)
    per_fill, per_head, per_answer = _pilot(cases[0], plan)
    seconds = fill_steps * per_fill + head_steps * per_head + answers * per_answer
    return Estimate(count, fill_steps, head_steps, answers, seconds)


def _missing(cases: Sequence[Case], plan: Plan, out: Path) -> Iterator[Cell]:
    for cell in cells(cases, plan):
        file = out / cell.key / f"found-{cell.kind}.json"
        arms: Mapping[str, Any] = json.loads(file.read_text())["arms"] if file.exists() else {}
        if not set(arms_of(plan.arms, cell.kind)) <= set(arms):
            yield cell


def _pilot(case: Case, plan: Plan) -> tuple[float, float, float]:
    """Seconds of a step of an imputer, of a head, and of a window's answer, each after a first one."""
    fold, steps = case.folds[0], 6
    times: list[float] = []

    def clock(done: int, of: int, loss: float) -> None:
        times.append(time.perf_counter())

    def of_a_step() -> float:
        return (times[-1] - times[0]) / max(1, len(times) - 1)

    with tempfile.TemporaryDirectory() as folder:
        budget = replace(plan.budget, head_steps=steps, tune_steps=steps, fill_steps=steps)
        shop = Workshop(fold, plan.kinds[-1], budget, Path(folder), seed=0, progress=clock)
        shop.head("pristine")
        per_head = of_a_step()
        times.clear()
        imputer = shop.fill("uniform")
        per_fill = of_a_step()
        arm = Asked("", shop.head("pristine"), imputer)
        features, began = fold.test.standardised(), time.perf_counter()
        answer(arm, features, fold.test.presence, fold.test.exists, window=fold.test.length)
    return per_fill, per_head, (time.perf_counter() - began) / len(features)


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
