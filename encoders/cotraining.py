"""Which task when: the five schedules by which one model is co-trained on several tasks (numpy only).

Likhosherstov et al., "PolyViT: Co-training Vision Transformers on Images, Videos and Audio" (TMLR 2023), section 3.3.
Every step is one mini-batch of one task, except where gradients are accumulated. A plan is a pure function of the step:
nothing is drawn while training, so a run resumes at any step, and it does not depend on how many processes share it.

T task, U_j steps that task j takes when trained alone, U their sum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError

__all__ = ["CoTraining", "Plan", "Step", "Task", "Turn"]

Schedule = Literal["task_by_task", "alternating", "uniform", "weighted", "accumulated"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of the tasks, with what it is trained by alone; the paper takes both over unchanged."""

    name: str
    steps: int  # U_j
    lr: float = 1.0  # base learning rate

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"task {self.name!r} has {self.steps} steps; give at least 1, or leave the task out")
        if not 0 < self.lr <= 100:
            raise ConfigError(f"task {self.name!r} has lr {self.lr}; give one in (0, 100]")


@dataclass(frozen=True, kw_only=True)
class CoTraining:
    """How the tasks take turns.

    - ``task_by_task``: all U_j steps of one task, then of the next; the order of tasks is drawn once.
    - ``alternating``: one step each in the order given, for U steps.
    - ``uniform``: every task as likely as any other, for U steps.
    - ``weighted``: task j with probability U_j / U; the paper's best.
    - ``accumulated``: every update takes one batch of *every* task; U // T updates, so that the computation is that
      of the other four.
    """

    schedule: Schedule = "weighted"
    # How ``uniform`` and ``weighted`` draw. permutation: exactly their share of the steps, shuffled (the public code);
    # independent: every step by itself, so that the counts are right in expectation only.
    draws: Literal["permutation", "independent"] = "permutation"
    # What becomes of the gradients of an ``accumulated`` update. mean: as one batch that spans the tasks; sum: T times
    # that. The public code has no such schedule.
    accumulate: Literal["mean", "sum"] = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", SCHEDULES),
            ("draws", ("permutation", "independent")),
            ("accumulate", ("mean", "sum")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} is negative; use 0 or more")


@dataclass(frozen=True)
class Turn:
    """One mini-batch."""

    task: int  # place in the list of tasks
    batch: int  # how many batches of this task came before: where in its data it goes on
    weight: float  # factor on its gradient, after the gradient was clipped


@dataclass(frozen=True)
class Step:
    """One update: the batches it takes, and its learning rate before the warm-up and the cosine."""

    turns: tuple[Turn, ...]
    lr: float


class Plan:
    """All steps of a run: ``plan[step]``, ``len(plan)``, or iterate.

    The learning rate of a step is the base rate of its task, or the mean over the tasks of an accumulated update; there
    the weights see to it that every task's gradient still counts by its own rate.
    """

    def __init__(self, config: CoTraining, tasks: Sequence[Task]) -> None:
        names = [task.name for task in tasks]
        if not tasks:
            raise ConfigError("co-training has no task; give at least one")
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"task {double!r} is given twice; name each task once")
        self.config, self.tasks = config, tuple(tasks)

    def __len__(self) -> int:
        """Updates in the whole run."""
        total = sum(task.steps for task in self.tasks)
        return total if self.config.schedule != "accumulated" else max(1, total // len(self.tasks))

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} lies outside the plan's {len(self)} steps")
        if self.config.schedule != "accumulated":
            task = int(self.order[step])
            return Step((Turn(task, int(self._earlier[step]), 1.0),), self.tasks[task].lr)
        mean = sum(task.lr for task in self.tasks) / len(self.tasks)
        share = 1 / len(self.tasks) if self.config.accumulate == "mean" else 1.0
        return Step(tuple(Turn(j, step, share * task.lr / mean) for j, task in enumerate(self.tasks)), mean)

    def __iter__(self) -> Iterator[Step]:
        return (self[step] for step in range(len(self)))

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches of each task in the whole run."""
        if self.config.schedule == "accumulated":
            return (len(self),) * len(self.tasks)
        return tuple(int(n) for n in np.bincount(self.order, minlength=len(self.tasks)))

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """(U,) the task of every step; an accumulated run has none."""
        assert self.config.schedule != "accumulated", "an accumulated update takes every task"
        return _order(self.config, [task.steps for task in self.tasks])

    @cached_property
    def _earlier(self) -> NDArray[np.int64]:
        """(U,) how many steps before this one had the same task."""
        by_task = np.argsort(self.order, kind="stable")
        counts = np.bincount(self.order, minlength=len(self.tasks))
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        earlier = np.empty(len(self.order), np.int64)
        earlier[by_task] = np.arange(len(self.order)) - starts
        return earlier


def _order(config: CoTraining, steps: Sequence[int]) -> NDArray[np.int32]:
    """The task of every step. Only PCG64's raw stream is drawn from: the same order under every version of numpy."""
    random, count, total = np.random.PCG64(config.seed), len(steps), sum(steps)
    if config.schedule == "task_by_task":
        first_to_last = _shuffled(np.arange(count), random)
        return np.repeat(first_to_last, [steps[j] for j in first_to_last]).astype(np.int32)
    if config.schedule == "alternating":
        return np.resize(np.arange(count, dtype=np.int32), total)
    # Equal shares where the draw is uniform; what does not divide goes to the first tasks, one step each.
    even = [total // count + (j < total % count) for j in range(count)]
    if config.draws == "permutation":
        shares = even if config.schedule == "uniform" else steps
        return _shuffled(np.repeat(np.arange(count), shares), random).astype(np.int32)
    bounds = np.cumsum(steps) / total if config.schedule == "weighted" else np.arange(1, count + 1) / count
    uniform = (random.random_raw(total) >> np.uint64(11)) * 2.0**-53  # [0, 1)
    return np.searchsorted(bounds[:-1], uniform, side="right").astype(np.int32)


def _shuffled(items: NDArray[np.int64], random: np.random.PCG64) -> NDArray[np.int64]:
    """Every order as likely as any other: sorted by random keys of 64 bits."""
    return items[np.argsort(random.random_raw(len(items)), kind="stable")]
