"""What a study found, put together: means over rates, paired differences with their standard errors, corrected tests.

A difference is taken in each fold and seed on the same masks; its standard error is over folds x seeds, or where there
is one fold over its speakers x seeds, never over masks.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from encoders.errors import DataError
from imputation.study.cases import Case
from imputation.study.run import Plan, cells
from imputation.tails import incomplete_beta

__all__ = ["Answers", "Pair", "gather", "holm"]


@dataclass(frozen=True)
class Pair:
    """The mean of paired differences in points of accuracy (0..1), its standard error, how many pairs."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Pair":
        spread = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
        return cls(mean(differences), spread, len(differences))

    @property
    def p(self) -> float:
        """Of a difference at least as far from 0, by Student's t; nan of one pair."""
        if self.count < 2 or math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        freedom = self.count - 1
        return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + (self.mean / self.error) ** 2))


@dataclass(frozen=True)
class Answers:
    """One case and kind of head: what each arm scored in each condition, by unit (fold or speaker, and seed)."""

    case: str
    kind: str
    length: int
    chance: float
    units: Mapping[str, Mapping[str, Mapping[tuple[str, int], Mapping[str, Any]]]]  # arm, condition, unit

    @property
    def arms(self) -> list[str]:
        return list(self.units)

    def rates(self, arm: str) -> list[str]:
        """The conditions of that arm that are k of L, in order."""
        return sorted((c for c in self.units[arm] if "/" in c), key=lambda c: int(c.partition("/")[0]))

    def accuracy(self, arm: str, condition: str) -> float:
        """The mean over units."""
        return mean(unit["accuracy"] for unit in self.units[arm][condition].values())

    def spread(self, arm: str, condition: str) -> float:
        """The deviation over draws, as the paper draws it."""
        return mean(unit["std"] for unit in self.units[arm][condition].values())

    def value(self, arm: str, condition: str, name: str) -> float | None:
        """The mean of another number over the units that have it."""
        known = [u[name] for u in self.units[arm][condition].values() if u.get(name) is not None]
        return mean(known) if known else None

    def averaged(self, arm: str, lossy: bool = True) -> float:
        """The mean over rates, without k = 0 where ``lossy``."""
        return mean(self.accuracy(arm, c) for c in self.chosen(arm, lossy))

    def chosen(self, arm: str, lossy: bool = True) -> list[str]:
        return [c for c in self.rates(arm) if not (lossy and c.startswith("0/"))] or self.rates(arm)

    def pair(self, arm: str, other: str, conditions: Iterable[str]) -> Pair:
        """Arm minus other, averaged over conditions within each unit."""
        conditions = [c for c in conditions if c in self.units[arm] and c in self.units[other]]
        if not conditions:
            raise DataError(f"{arm} and {other} of {self.case} were never asked the same; run both")
        units = set.intersection(*(set(self.units[a][c]) for a in (arm, other) for c in conditions))
        return Pair.of([
            mean(self.units[arm][c][u]["accuracy"] - self.units[other][c][u]["accuracy"] for c in conditions)
            for u in sorted(units)
        ])  # fmt: skip


def gather(cases: Sequence[Case], plan: Plan, out: Path) -> list[Answers]:
    """Everything that is in the folder, by case and kind of head."""
    tables: dict[tuple[str, str], Any] = {}
    of_case = {case.name: case for case in cases}
    for cell in cells(cases, plan):
        file = out / cell.key / f"found-{cell.kind}.json"
        if not file.exists():
            continue
        whole = tables.setdefault((cell.case.name, cell.kind), {})
        single = len(cell.case.folds) == 1
        for arm, conditions in json.loads(file.read_text())["arms"].items():
            for condition, score in conditions.items():
                units = whole.setdefault(arm, {}).setdefault(condition, {})
                several = single and len(score["speakers"]) > 1
                units |= _by_speaker(score, cell.seed) if several else {(cell.fold.name, cell.seed): score}
    return [
        Answers(name, kind, of_case[name].length, of_case[name].chance, units) for (name, kind), units in tables.items()
    ]


def _by_speaker(score: Mapping[str, Any], seed: int) -> dict[tuple[str, int], dict[str, Any]]:
    return {(speaker, seed): {**score, "accuracy": value} for speaker, value in score["speakers"].items()}


def holm(values: Mapping[Any, float], level: float = 0.05) -> set[Any]:
    """The hypotheses that Holm's step-down procedure (1979) rejects at a family-wise ``level``; nan never."""
    ordered = sorted((p, key) for key, p in values.items() if not math.isnan(p))
    rejected = set()
    for place, (p, key) in enumerate(ordered):
        if p > level / (len(values) - place):
            break
        rejected.add(key)
    return rejected
