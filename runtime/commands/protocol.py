"""``legato eval --protocol paper``: the whole experiment of curri-MAE from feature files, in one command."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UsageError

if TYPE_CHECKING:
    from imputation.run import Progress
    from imputation.study.cases import Case
    from imputation.study.run import Plan

__all__ = ["PROTOCOLS", "Study", "study"]

PROTOCOLS = ("paper", "beyond", "all")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was asked on the command line."""

    protocol: str
    cases: Sequence[str]
    folds: Sequence[str]  # DATASET=own, DATASET=01+06,02+07,...
    runs: Path | None
    out: Path | None
    heads: str
    seeds: int
    draws: int
    profiles: Sequence[str]
    settings: Sequence[str]
    dry: bool
    plot: bool


def study(asked: Study) -> None:
    """Estimate, run (or go on), write the figures."""
    from imputation.study import compare, figures
    from imputation.study import run as running

    if asked.runs is None:
        raise UsageError("no folder for what is trained; give --runs, which a second call goes on with")
    plan, cases = _plan(asked), _cases(asked)
    expected = running.estimate(cases, plan, asked.runs)
    print(f"{len(cases)} cases, {plan.seeds} seeds, heads {' and '.join(plan.kinds)}: {expected}", flush=True)
    if asked.dry:
        return
    with _bar() as (progress, say):
        running.run(cases, plan, asked.runs, progress=progress, say=say)
    for file in figures.write(compare.gather(cases, plan, asked.runs), asked.out or asked.runs, plot=asked.plot):
        print(f"wrote {file}")


def _plan(asked: Study) -> "Plan":
    from encoders.settings import assignments, override
    from imputation.profiles import open_profile
    from imputation.study.recipes import KINDS, Budget
    from imputation.study.run import Plan

    if asked.protocol not in PROTOCOLS:
        raise UsageError(f"--protocol {asked.protocol!r} is unknown; use {', '.join(PROTOCOLS)}")
    kinds = tuple(part.strip() for part in asked.heads.split(",")) if asked.heads else KINDS
    if not set(kinds) <= set(KINDS):
        raise UsageError(f"--heads {asked.heads!r} must be of {', '.join(KINDS)}")
    for name in asked.profiles:
        open_profile(name)
    budget: Any = override(Budget(), assignments(asked.settings))
    return Plan(arms=asked.protocol, kinds=kinds, seeds=asked.seeds, draws=asked.draws,
                profiles=tuple(asked.profiles), budget=budget)  # fmt: skip


def _cases(asked: Study) -> "list[Case]":
    from imputation.study.cases import OWN, open_case

    if not asked.cases:
        raise UsageError("no features to study; give --case ENCODER:DATASET=FILE, as often as there are cases")
    cut = {}
    for text in asked.folds:
        dataset, equals, how = text.partition("=")
        if not (equals and how):
            raise UsageError(f"--folds {text!r} is not DATASET=SPEAKERS, e.g. java_sed=01+06,02+07,03+08")
        cut[dataset] = how
    cases = [open_case(text, cut.get(text.partition("=")[0].partition(":")[2], OWN)) for text in asked.cases]
    unused = set(cut) - {case.dataset for case in cases}
    if unused:
        raise UsageError(f"--folds names {sorted(unused)[0]!r}, of which there is no --case")
    if len({case.name for case in cases}) < len(cases):
        raise UsageError("two --case share a name; give each encoder and dataset once")
    return cases


@contextmanager
def _bar() -> "Iterator[tuple[Progress, Any]]":
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=None)
        yield lambda done, total, loss: bar.update(task, total=total, completed=done), bar.console.print
