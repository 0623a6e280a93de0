"""What a live run shows of itself: a table with a status line, plain lines, or JSON; and its summary.

Predictions go to stdout. Without a terminal, and with ``--json``, what happens to devices goes to stderr, one sentence
per event, so that stdout holds predictions and nothing else.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.text import Text

from runtime.live import LiveRun, Recorder, states_of
from runtime.output import as_line
from runtime.prediction import Prediction
from runtime.sources.device import LIVE, LOST, DeviceState
from runtime.table import LiveTable

STATE_COLOURS = {LIVE: "green", LOST: "red"}
SEPARATOR = " │ "


class LiveView:
    """Shows one live run. Used with ``with``; ``look`` is called often, whether there is a prediction or not."""

    def __init__(
        self, run: LiveRun, labels: Sequence[str], *, recorder: Recorder | None, as_json: bool = False
    ) -> None:
        self.console = Console()
        self._run, self._recorder, self._as_json = run, recorder, as_json
        self._said: dict[str, str] = {}  # device -> what was last said of it
        self._table = LiveTable(
            self.console,
            labels,
            window=run.pipeline.config.window.clips,
            modalities=tuple(run.pipeline.engine.encoders),
            title=f"{run.source.info.name} · bundle {run.pipeline.bundle.manifest.name}",
            status=lambda: status_line(run, recorder),
        )
        self._quiet = not as_json and self.console.is_terminal  # the status line tells what happens to devices

    def __enter__(self) -> Self:
        if not self._as_json:
            self._table.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._as_json:
            self._table.__exit__(kind, error, at)

    def show(self, prediction: Prediction) -> None:
        """One prediction."""
        if self._as_json:
            print(as_line(prediction.as_dict()), flush=True)
        else:
            self._table.show(prediction)

    def look(self) -> None:
        """Tell what became of devices since the last look."""
        for device in states_of(self._run.source):
            said = f"{device.state}{': ' * bool(device.reason)}{device.reason}"
            if self._said.get(device.name) != said:
                self._said[device.name] = said
                if not self._quiet:
                    print(f"legato: {device.name} is {said}", file=sys.stderr)
        if self._recorder is not None and self._recorder.failure and self._said.get("") != self._recorder.failure:
            self._said[""] = self._recorder.failure
            if not self._quiet:
                print(f"legato: {self._recorder.failure}", file=sys.stderr)


def status_line(run: LiveRun, recorder: Recorder | None) -> Text:
    """Recording mark, each device's state and rate, A/V offset, drift, and how long an answer takes."""
    parts: list[Text] = []
    if recorder is not None:
        parts.append(recording_mark(recorder))
    parts += [device_words(state) for state in states_of(run.source)]
    receiver = run.stream.receiver
    if receiver.av_offset_ms is not None:
        parts.append(Text(f"A/V {receiver.av_offset_ms:+.0f} ms"))
    if receiver.drift_ppm is not None:
        parts.append(Text(f"drift {receiver.drift_ppm:+.0f} ppm"))
    if run.tally.windows:
        parts.append(Text(f"latency {run.tally.latest_ms:.0f} ms"))
    return Text(SEPARATOR, style="dim").join(parts)


def recording_mark(recorder: Recorder) -> Text:
    """Red while it records; why, once it does not."""
    if recorder.failure:
        return Text(f"recording stopped: {recorder.failure}", style="bold red")
    return Text(f"● REC {recorder.path.name}", style="bold red")


def device_words(device: DeviceState) -> Text:
    """``camera 0 live 24.9/s``, or why it is lost and when the next try comes."""
    text = Text(f"{device.name} ")
    text.append(device.state, style=STATE_COLOURS.get(device.state, "yellow"))
    if device.rates:
        text.append(" " + ", ".join(f"{rate:.1f}" for rate in device.rates.values()) + "/s", style="dim")
    if device.state == LOST:
        text.append(f": {device.reason}; next try in {device.retry_seconds:.0f} s", style="dim")
    return text


def summary(run: LiveRun, recorder: Recorder | None, replay: str = "") -> str:
    """A finished live run in a few lines; ``replay`` are the options with which its recording says the same."""
    tally, config = run.tally, run.pipeline.config
    seconds = tally.closed * float(config.clip.seconds)
    observed = ", ".join(f"{m} {tally.observed(m):.0%} observed" for m in run.pipeline.engine.encoders)
    lines = [f"{run.source.info.name}: {seconds:.1f} s; {observed}"]
    if tally.windows:
        late = (
            f"answers {tally.latency.quantile(0.5):.0f} ms after their clip (95 %: {tally.latency.quantile(0.95):.0f})"
        )
        lines.append(f"{tally.finals} windows, {tally.abstained} abstained; {late}")
    else:
        need = config.window.min_clips
        lines.append(f"no prediction: that takes {need} clips, {need * float(config.clip.seconds):g} s")
    lost = sum(e.kind == "device_lost" and e.detail != "the run was stopped" for e in run.stream.receiver.events)
    if lost:
        lines[-1] += f"; devices were lost {lost} time{'s' if lost > 1 else ''}"
    if recorder is not None and not recorder.failure:
        lines.append(f"recorded; legato replay {recorder.path}{replay} says the same")
    return "\n".join(lines)


@contextlib.contextmanager
def only_our_own_words() -> Iterator[None]:
    """Libraries below Python write to the terminal when a device breaks; what matters of it comes to us as an error.

    While inside, the process's stderr leads nowhere and ``sys.stderr`` leads to where it led: a traceback of ours would
    still be seen. Does nothing where stderr is no file.
    """
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    ours = sys.stderr
    try:
        if _is_the_process_own(ours):  # else somebody reads it already (a test, a notebook)
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding=ours.encoding, errors=ours.errors)
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        if sys.stderr is not ours:
            sys.stderr.close()
            sys.stderr = ours


def _is_the_process_own(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False
