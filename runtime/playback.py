"""Playback: one source through a pipeline, with everything collected that a table, a file and a report need."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from imputation.presence import OBSERVED
from runtime.output import ResultFile, as_line, check_folder
from runtime.prediction import Prediction
from runtime.run_log import BUNDLED, LoggedClip, Run, read_truth
from runtime.stream import Encoded
from runtime.table import LiveTable

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.sources.base import Source

CARD = {"description", "training", "metrics", "licence", "attribution"}  # of the manifest, for the report
ARMS = {"lerp": "interpolated", "zero": "left empty"}
COMPARED = tuple(ARMS)  # the arms a report shows beside the bundle's own filling


def play(
    pipeline: "Pipeline",
    source: "Source",
    show: Callable[[Prediction], object],
    run: Run | None = None,
    *,
    speed: str = "max",
    compare: Sequence[str] = (),
) -> Run:
    """Run a source to its end, showing every prediction as it falls due; all of it is collected in ``run``.

    ``compare`` names further fills; they get the features of this run, nothing is decoded or encoded twice.
    """
    run = run or begin(pipeline, source)
    trace: list[Encoded] = []
    stream = pipeline.open(source.info)
    began = time.perf_counter()
    for prediction in pipeline.run(source, speed=speed, trace=trace.append, stream=stream):
        run.arms[BUNDLED].append(prediction)
        show(prediction)
    run.wall_seconds = time.perf_counter() - began
    run.clips = logged(trace, run.arms[BUNDLED])
    run.ledger = stream.receiver.ledger.as_dict()
    run.events = list(stream.receiver.events)
    run.arms.update({fill: pipeline.refill(run.stream, trace, fill) for fill in compare})
    return run


def begin(pipeline: "Pipeline", source: "Source", *, loss: str = "", seed: int = 0) -> Run:
    """A run that has not started."""
    manifest = pipeline.bundle.manifest
    return Run(
        stream=source.info.name,
        bundle=manifest.name,
        bundle_hash=pipeline.bundle.hash,
        labels=tuple(manifest.labels),
        modalities=tuple(pipeline.engine.encoders),
        clip_seconds=float(pipeline.config.clip.seconds),
        settings=pipeline.config.as_dict(),
        loss=loss,
        seed=seed,
        truth=read_truth(source.info),
        arms={BUNDLED: []},
        recorded_loss=source.info.labels.get("loss", ""),
        attribution=source.info.labels.get("attribution", ""),
        card=manifest.model_dump(mode="json", include=CARD),
    )


def logged(trace: Sequence[Encoded], predictions: Sequence[Prediction]) -> list[LoggedClip]:
    """Every clip once, in order, as last repaired, with the rungs of the last window that held it."""
    newest = {encoded.clip: encoded for encoded in trace}
    rungs = {clip.clip: clip for prediction in predictions for clip in prediction.clips}
    return [
        LoggedClip(
            clip=clip,
            epoch=encoded.epoch,
            start_seconds=encoded.start_seconds,
            provenance=rungs.get(clip, encoded.provenance("")),
        )
        for clip, encoded in sorted(newest.items())
    ]


class Output:
    """Where a run's predictions go: the terminal (a table, or JSON lines), a file, a report folder.

    Used with ``with``; the file gets its name when everything was played, and is not there after an error.
    """

    def __init__(
        self, *, path: Path | None = None, report: Path | None = None, as_json: bool = False, timings: bool = True
    ) -> None:
        self.report, self.as_json, self.timings = report, as_json, timings
        self.console = Console()
        self._file = ResultFile(path) if path is not None else None

    def __enter__(self) -> "Output":
        if self.report is not None:
            check_folder(self.report)
        if self._file is not None:
            self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.__exit__(kind, error, at)

    def play(
        self, pipeline: "Pipeline", source: "Source", *, speed: str, loss: str = "", seed: int = 0, folder: str = ""
    ) -> Run:
        """Play one source and write what was asked for; ``folder`` is its place below the report folder."""
        compare = COMPARED if self.report is not None else ()
        run = begin(pipeline, source, loss=loss, seed=seed)
        if self.as_json:
            play(pipeline, source, self._keep, run, speed=speed, compare=compare)
        else:
            with self._table(pipeline, run) as table:
                play(pipeline, source, partial(self._keep, table=table), run, speed=speed, compare=compare)
            self.console.print(summary(run, paced=speed == "realtime"), highlight=False, soft_wrap=True)
        if self.report is not None:
            from runtime.report import write_report

            write_report(run, self.report / folder)
            if not self.as_json:
                self.console.print(f"report in {self.report / folder}", highlight=False, soft_wrap=True)
        return run

    def _table(self, pipeline: "Pipeline", run: Run) -> LiveTable:
        truth = run.true_label if run.truth else None
        title = f"{run.stream} · {run.loss_words} · bundle {run.bundle}"
        return LiveTable(
            self.console,
            run.labels,
            window=pipeline.config.window.clips,
            modalities=run.modalities,
            title=title,
            truth=truth,
        )

    def _keep(self, prediction: Prediction, table: LiveTable | None = None) -> None:
        if table is not None:
            table.show(prediction)
        if self._file is not None:
            self._file.write_json(prediction.as_dict(timings=self.timings))
        if self.as_json:
            print(as_line(prediction.as_dict(timings=self.timings)))


def summary(run: Run, *, paced: bool = False) -> str:
    """A finished run in a few short lines; ``paced``: it was played in real time, so its speed says nothing."""
    finals = run.finals()
    seen = {m: sum(c.provenance.state[m] == OBSERVED for c in run.clips) / len(run.clips) for m in run.modalities}
    observed = ", ".join(f"{m} {share:.0%} observed" for m, share in seen.items())
    abstained = sum(p.abstained for p in finals)
    pace = "" if paced or not run.wall_seconds else f", {run.seconds / run.wall_seconds:.1f} times real time"
    line = f"{run.stream}: {run.seconds:.1f} s{pace}; {observed}\n{len(finals)} windows, {abstained} abstained"
    right = {arm: run.accuracy(arm) for arm in run.arms}
    if right[BUNDLED] is None:
        return line
    others = ", ".join(f"{share:.0%} {ARMS.get(arm, arm)}" for arm, share in right.items() if arm != BUNDLED)
    return f"{line}; {right[BUNDLED]:.0%} right" + (f" (gaps {others})" if others else "")
