"""``legato eval``: accuracy and fill error by loss rate, the same masks for every arm.

With ``--run`` or ``--preset`` it judges a trained encoder on labelled recordings instead: tested from several views,
probed by a linear classifier, or by a few examples per class. With ``--protocol`` it trains and measures every arm of
the paper on feature files of several encoders and datasets.
"""

import json
from dataclasses import asdict, replace
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
    features: Annotated[Path | None, typer.Argument(help="Feature file of `legato features`.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HEAD or NAME=HEAD+FILL: folders of trained ones; FILL may be zero, hold, lerp, ..."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "test",
    calibrate: Annotated[
        str, typer.Option(help="Split to calibrate confidence on, e.g. validation; empty: not calibrated.")
    ] = "",
    risk: Annotated[
        float | None,
        typer.Option(help="With --calibrate: abstain so that at most this share of the answers is wrong, e.g. 0.1."),
    ] = None,
    delta: Annotated[float, typer.Option(help="The chance that --risk is not kept for other speakers.")] = 0.1,
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
        Path | None, typer.Option(help="Folder for results.json, the tables as CSV, accuracy.png and calibration.png.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw accuracy.png and calibration.png.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of tables.")] = False,
    protocol: Annotated[
        str, typer.Option(help="Train and measure all arms of the paper, beyond it, or all: paper, beyond, all.")
    ] = "",
    case: Annotated[
        list[str] | None, typer.Option(help="ENCODER:DATASET=FILE, features for --protocol; may be repeated.")
    ] = None,
    folds: Annotated[
        list[str] | None,
        typer.Option(help="DATASET=01+06,02+07,...: speakers held out at a time; else the file's own splits."),
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of what --protocol trains; a second call goes on.")] = None,
    heads: Annotated[str, typer.Option(help="Of --protocol: linear, gru; default both.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Of --protocol: trainings of everything.")] = 3,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what --protocol would take.")] = False,
    run: Annotated[Path | None, typer.Option(help="Judge a run of `legato train PRESET`: its folder.")] = None,
    preset: Annotated[str, typer.Option(help="Judge an encoder by name, with --checkpoint and --data.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of --preset (safetensors); none: untrained.")] = None,
    data: Annotated[str, typer.Option(help="NAME:PATH of a dataset; default: the run's own.")] = "",
    views: Annotated[str, typer.Option(help="Clips x crops of each recording, e.g. 4x3.")] = "",
    linear_probe: Annotated[bool, typer.Option("--linear-probe", help="A classifier on frozen features.")] = False,
    few_shot: Annotated[int | None, typer.Option(help="A regression from so many samples per class, e.g. 5.")] = None,
    train_split: Annotated[str, typer.Option(help="What probe and few-shot learn from.")] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N; of --run and --preset.")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, model.key=value; with --preset, --protocol.")
    ] = None,
) -> None:
    """Accuracy and fill error of heads and imputers at every loss rate; or what a trained encoder is worth."""
    if protocol:
        from runtime.commands.protocol import Study, study

        study(Study(protocol=protocol, cases=case or (), folds=folds or (), runs=runs, out=out, heads=heads,
                    seeds=seeds, draws=draws, profiles=profile or (), settings=settings or (), dry=estimate,
                    plot=plot))  # fmt: skip
        return
    if run is not None or preset or linear_probe or few_shot is not None:
        from runtime.commands.judge import Question, judge

        if features is not None or arm:
            raise UsageError("a feature file and --arm are for heads; judge an encoder with --run or --preset alone")
        judge(
            Question(run=run, preset=preset, checkpoint=checkpoint, data=data, split=split, views=views,
                     linear_probe=linear_probe, few_shot=few_shot, train_split=train_split, device=device,
                     settings=tuple(settings or ()), seed=seed),
            out=out, as_json=as_json,
        )  # fmt: skip
        return
    if features is None or not arm:
        raise UsageError("nothing to measure; give a feature file with --arm, or an encoder with --run or --preset")
    from imputation.evaluate import evaluate as measure
    from imputation.features import FeatureSet
    from imputation.profiles import open_profile

    if metric not in ("accuracy", "recall"):
        raise UsageError(f"metric {metric!r} is unknown; use accuracy or recall")
    _check_risk(risk, delta, calibrate)
    windows = FeatureSet.load(features)
    if windows.standardiser is None:
        windows = windows.fitted()
    chosen = windows.of_split(split)
    if lookahead >= windows.length or (ahead or 0) > lookahead:
        given = f"--lookahead {lookahead}" + (f" with --ahead {ahead}" if ahead is not None else "")
        way_out = f"--lookahead below {windows.length}, and --ahead not above it"
        raise UsageError(f"{given} does not fit windows of {windows.length} clips; use {way_out}")
    for name in profile or ():
        open_profile(name)  # a wrong name is found before anything is measured
    arms = [_arm(text) for text in arm]
    fits: dict[str, Any] = {}
    if calibrate:
        known = windows.of_split(calibrate)
        fitted = [_calibrated(made, known, lookahead, ahead, risk, delta) for made in arms]
        arms, fits = [made for made, _ in fitted], {made.name: about for made, about in fitted}
    with _bar(quiet=as_json) as progress:
        results = measure(arms, chosen, levels=_levels(levels, windows.length), draws=draws, seed=seed,
                          profiles=profile or (), lookahead=lookahead, ahead=ahead, reference=reference,
                          progress=progress)  # fmt: skip
    if fits:
        results = replace(results, settings={**results.settings, "calibrated_on": calibrate, "calibration": fits})
    written = [] if out is None else results.save(out, plot=plot)
    if as_json:
        print(json.dumps(results.as_dict()))
        return
    _show(results, metric)
    for name, about in fits.items():
        print(_about(name, about))
    for path in written:
        print(f"wrote {path}")


def _check_risk(risk: float | None, delta: float, calibrate: str) -> None:
    if risk is not None and not calibrate:
        raise UsageError(f"--risk {risk:g} needs a threshold, which is fitted; add --calibrate, e.g. validation")
    for option, value in (("--risk", risk), ("--delta", delta)):
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{option} {value:g} is no share; use e.g. 0.1")


def _arm(text: str) -> "Arm":
    from imputation.baselines import Backoff
    from imputation.evaluate import Arm
    from imputation.stored import load_head, load_imputer

    name, equals, models = text.partition("=")
    folder, plus, fill = models.partition("+")
    if not (name and equals and folder) or (plus and not fill):
        raise UsageError(f"--arm {text!r} is not NAME=HEAD or NAME=HEAD+FILL; e.g. drops=runs/drops+zero")
    head = load_head(folder)
    if isinstance(head, Backoff) and fill:
        raise UsageError(f"--arm {text!r} fills for a backoff head, which reads what is there; leave out +{fill}")
    return Arm(name, head, None if isinstance(head, Backoff) else load_imputer(fill or "zero"))


def _calibrated(
    arm: "Arm", data: "FeatureSet", lookahead: int, ahead: int | None, risk: float | None, delta: float
) -> "tuple[Arm, dict[str, Any]]":
    """The arm with what its answers on other speakers confirm, and what was found."""
    from imputation.cross_fit import fit_crossed, promising
    from imputation.evaluate import calibration_data

    logits, share, label = calibration_data(arm, data, lookahead=lookahead, ahead=ahead)
    draws = len(logits) // len(data)
    speakers, windows = list(data.speaker) * draws, list(range(len(data))) * draws
    crossed = fit_crossed(logits, share, label, speakers)
    calibration, about = crossed.calibration, crossed.as_dict()
    if risk is not None:
        calibration, promise = promising(crossed, label, speakers, risk=risk, delta=delta, windows=windows)
        about |= {"min_confidence": calibration.min_confidence, "promise": {"risk_asked": risk, "delta": delta,
                  **asdict(promise)}}  # fmt: skip
    return replace(arm, calibration=calibration), about


def _about(name: str, about: dict[str, Any]) -> str:
    """One line: what was fitted, and what is promised."""
    line = f"{name}: calibrated by {about['form']}"
    promise = about.get("promise")
    if promise is None:
        return line
    if not promise["promised"]:
        return f"{line}; so few speakers promise no risk below {promise['risk_asked']:g}, and it answers nothing"
    return (
        f"{line}; answers from confidence {promise['confidence']:.3f} on ({100 * promise['coverage']:.0f} % of "
        f"validation, {100 * promise['risk']:.1f} % of them wrong, at most {100 * promise['bound']:.1f} % but for a "
        f"chance of {promise['delta']:g})"
    )


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
    tables = (results.accuracy_table(metric), results.difference_table(), results.error_table(),
              results.calibration_table())  # fmt: skip
    for table in tables:
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
