"""``legato eval``: accuracy and fill error by loss rate, the same masks for every arm."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    from imputation.evaluate import Arm
    from imputation.features import FeatureSet
    from imputation.results import Results

app = typer.Typer(add_completion=False)


@app.command(
    epilog="For example: legato eval talk.safetensors --arm empty=runs/head+zero --arm filled=runs/head+runs/mae"
)
def evaluate(
    features: Annotated[Path, typer.Argument(help="Feature file of `legato features`.")],
    arm: Annotated[
        list[str],
        typer.Option(help="NAME=HEAD or NAME=HEAD+FILL: folders of trained ones; FILL may be zero, hold, lerp, ..."),
    ],
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
    calibrate: Annotated[
        str, typer.Option(help="Split to calibrate confidence on, e.g. validation; empty: not calibrated.")
    ] = "",
    levels: Annotated[str, typer.Option(help="Clips hidden of L, comma-separated; empty: 0 to L - 1.")] = "",
    profile: Annotated[
        list[str] | None, typer.Option(help="A loss profile as another condition; may be repeated.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Masks per window and rate.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the masks.")] = 0,
    lookahead: Annotated[int, typer.Option(min=0, help="Clips after the window in the feature file.")] = 0,
    ahead: Annotated[int | None, typer.Option(min=0, help="How many of them are there already; default all.")] = None,
    reference: Annotated[str | None, typer.Option(help="Arm to give paired differences against.")] = None,
    metric: Annotated[str, typer.Option(help="accuracy, or recall (mean of class recalls).")] = "accuracy",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results.json, scores.csv, errors.csv, accuracy.png.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw accuracy.png.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")] = False,
) -> None:
    """Accuracy and fill error of heads and imputers at every loss rate."""
    from imputation.evaluate import evaluate as measure
    from imputation.features import FeatureSet
    from imputation.profiles import open_profile

    if metric not in ("accuracy", "recall"):
        raise UsageError(f"metric {metric!r} is unknown; use accuracy or recall")
    data = FeatureSet.load(features)
    if data.standardiser is None:
        data = data.fitted()
    chosen = data.of_split(split)
    if lookahead >= data.length or (ahead or 0) > lookahead:
        given = f"--lookahead {lookahead}" + (f" with --ahead {ahead}" if ahead is not None else "")
        way_out = f"--lookahead below {data.length}, and --ahead not above it"
        raise UsageError(f"{given} does not fit windows of {data.length} clips; use {way_out}")
    for name in profile or ():
        open_profile(name)  # a wrong name is found before anything is measured
    arms = [_arm(text, data, calibrate, lookahead, ahead) for text in arm]
    with _bar(quiet=as_json) as progress:
        results = measure(arms, chosen, levels=_levels(levels, data.length), draws=draws, seed=seed,
                          profiles=profile or (), lookahead=lookahead, ahead=ahead, reference=reference,
                          progress=progress)  # fmt: skip
    written = [] if out is None else results.save(out, plot=plot)
    if as_json:
        print(json.dumps(results.as_dict()))
        return
    _show(results, metric)
    for path in written:
        print(f"wrote {path}")


def _arm(text: str, data: "FeatureSet", calibrate: str, lookahead: int, ahead: int | None) -> "Arm":
    from dataclasses import replace

    from imputation.baselines import Backoff
    from imputation.calibrate import fit
    from imputation.evaluate import Arm, calibration_data
    from imputation.stored import load_head, load_imputer

    name, equals, models = text.partition("=")
    folder, plus, fill = models.partition("+")
    if not (name and equals and folder) or (plus and not fill):
        raise UsageError(f"--arm {text!r} is not NAME=HEAD or NAME=HEAD+FILL; e.g. drops=runs/drops+zero")
    head = load_head(folder)
    if isinstance(head, Backoff) and fill:
        raise UsageError(f"--arm {text!r} fills for a backoff head, which reads what is there; leave out +{fill}")
    made = Arm(name, head, None if isinstance(head, Backoff) else load_imputer(fill or "zero"))
    if not calibrate:
        return made
    known = calibration_data(made, data.of_split(calibrate), lookahead=lookahead, ahead=ahead)
    return replace(made, calibration=fit(*known))


def _levels(text: str, length: int) -> list[int] | None:
    if not text:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < length for part in parts):
        raise UsageError(f"--levels {text!r} must be whole numbers from 0 to {length - 1}, with commas between")
    return [int(part) for part in parts]


def _show(results: "Results", metric: str) -> None:
    from rich.console import Console

    console = Console()
    for table in (results.accuracy_table(metric), results.difference_table(), results.error_table()):
        if table is not None:
            console.print(table)
            console.print()


def _bar(*, quiet: bool) -> Any:
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar() -> Any:
        with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
            task = progress.add_task("masks", total=None)
            yield lambda done, total, name: progress.update(task, total=total, completed=done, description=name)

    return bar()
