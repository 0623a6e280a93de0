"""``legato eval --run`` and ``--preset``: what a trained encoder is worth on labelled recordings."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UsageError
from runtime.output import as_line

if TYPE_CHECKING:
    from encoders.judge import Probe, Progress

__all__ = ["Question", "judge", "progress_bar"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the command line asks."""

    run: Path | None
    preset: str
    checkpoint: Path | None
    data: str
    split: str
    views: str
    linear_probe: bool
    few_shot: int | None
    train_split: str
    device: str
    settings: tuple[str, ...]
    seed: int


def judge(question: Question, *, out: Path | None, as_json: bool) -> None:
    """Answer, print, and write ``metrics.json`` below ``out`` where one is given."""
    from encoders.datasets.views import views_of
    from encoders.linear_probe import summary
    from encoders.training import write_json
    from runtime.output import check_place

    if question.linear_probe and question.few_shot is not None:
        raise UsageError("--linear-probe and --few-shot are two evaluations; ask for one at a time")
    if question.run is not None and (question.preset or question.checkpoint):
        raise UsageError("--run brings its own preset and weights; leave out --preset and --checkpoint")
    if question.views:
        views_of(question.views)
    if out is not None:
        check_place(out / "metrics.json")
    with progress_bar(quiet=as_json) as progress:
        found = _answer(question, progress)
    if out is not None:
        write_json(out / "metrics.json", found)
    if as_json:
        print(as_line(found))
        return
    for name, values in found.items():
        print(f"{name}: {summary(values)}")
    if out is not None:
        print(f"wrote {out / 'metrics.json'}")


def _answer(question: Question, progress: "Progress") -> dict[str, dict[str, float]]:
    from encoders.training import choose_device

    device, splits = choose_device(question.device), tuple(s.strip() for s in question.split.split(",") if s.strip())
    train = tuple(s.strip() for s in question.train_split.split(",") if s.strip())
    if question.linear_probe or question.few_shot is not None:
        from encoders.judge import few_shot_of, linear_probe_of

        probe = _probe(question)
        common: dict[str, Any] = {"train": train, "splits": splits, "views": question.views or "1x1",
                                  "device": device, "progress": progress}  # fmt: skip
        if question.linear_probe:
            return {"linear probe": linear_probe_of(probe, **common)}
        return {f"{question.few_shot}-shot": few_shot_of(probe, int(question.few_shot or 0), **common)}
    if question.run is None:
        raise UsageError(f"--preset {question.preset} has no head of its own; add --linear-probe or --few-shot 5")
    from encoders.judge import is_cotrained, test_run

    if is_cotrained(question.run):
        from encoders.cotrain import test_run as test_tasks

        if question.data:
            raise UsageError(f"{question.run} holds several tasks with data of their own; leave out --data")
        return test_tasks(question.run, splits=splits, views=question.views, device=device)
    name = question.data or json.loads((question.run / "config.json").read_text())["data"]
    found = test_run(question.run, data=question.data, splits=splits, views=question.views, device=device,
                     progress=progress)  # fmt: skip
    return {f"{name.partition(':')[0]} {question.split}": found}


def _probe(question: Question) -> "Probe":
    from encoders.judge import encoder_of
    from encoders.settings import assignments

    changes: dict[str, Any] = {"seed": question.seed, **assignments(question.settings)}
    if question.run is not None:
        return encoder_of(run=question.run, data=question.data)
    return encoder_of(preset=question.preset, weights=question.checkpoint, data=question.data, **changes)


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator["Progress"]:
    """How many samples are done, on stderr, from the first one on."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar = Bar(console=Console(stderr=True), disable=quiet, transient=True)

    def step(done: int, total: int) -> None:
        if not bar.tasks:  # what is refused before there is something to show is one plain sentence
            bar.add_task("samples", total=total)
            bar.start()
        bar.update(bar.tasks[0].id, total=total, completed=done)

    try:
        yield step
    finally:
        if bar.tasks:
            bar.stop()
