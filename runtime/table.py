"""The live table: when, what came and what did not, what is said and how surely.

On a terminal the newest rows stay on screen and a provisional row turns into its final one; elsewhere (a file, a
pipe) every final prediction is one plain line.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imputation.presence import OBSERVED
from runtime.prediction import Prediction
from runtime.stream import FINAL

ROWS = 18
# a clip in the presence strip: full when observed, emptier the less of it came
MARKS = {OBSERVED: "█", "damaged": "▒", "late": "░", "lost": "·", "shed": "-"}
COLOURS = {OBSERVED: "green", "damaged": "yellow", "late": "magenta", "lost": "red", "shed": "blue"}
PALETTE = ("cyan", "bright_green", "bright_magenta", "bright_yellow", "bright_blue", "bright_red")


class LiveTable:
    """Shows predictions as they come. Used with ``with``; ``truth`` gives the true label of one, where known."""

    def __init__(
        self,
        console: Console,
        labels: Sequence[str],
        *,
        window: int = 10,
        title: str = "",
        truth: Callable[[Prediction], str | None] | None = None,
    ) -> None:
        self.console, self.window, self.title, self.truth = console, window, title, truth
        self._colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
        self._rows: OrderedDict[tuple[str, int, str], Prediction] = OrderedDict()
        self._live: Live | None = None
        self._headed = False

    def __enter__(self) -> "LiveTable":
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=self.console, refresh_per_second=12, vertical_overflow="crop"
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, prediction: Prediction) -> None:
        """Take one prediction."""
        if self._live is None:
            if prediction.status == FINAL:
                self._print(prediction)
            return
        key = (prediction.stream, prediction.clip, prediction.head)
        self._rows[key] = prediction
        if len(self._rows) > ROWS:
            self._rows.popitem(last=False)

    def _print(self, prediction: Prediction) -> None:
        if not self._headed:
            modalities = "  ".join(f"{m:<{max(5, self.window)}}" for m in prediction.observed_share)
            self.console.print(f"{'time':>8}  {modalities}  label", highlight=False, soft_wrap=True)
            self._headed = True
        self.console.print(plain_line(prediction, self.window), highlight=False, markup=False, soft_wrap=True)

    def _picture(self) -> Panel:
        rows = list(self._rows.values())
        table = Table(box=None, pad_edge=False, expand=True, header_style="bold dim")
        table.add_column("time", justify="right", no_wrap=True)
        for modality in rows[-1].observed_share if rows else ("video", "audio"):
            table.add_column(modality, no_wrap=True)
        table.add_column("label", no_wrap=True, ratio=2)
        table.add_column("confidence", no_wrap=True, min_width=16)
        table.add_column("observed", justify="right", no_wrap=True)
        table.add_column("filled by", no_wrap=True)
        if self.truth is not None:
            table.add_column("truth", no_wrap=True)
        for prediction in rows:
            table.add_row(*self._cells(prediction), style="" if prediction.status == FINAL else "dim")
        return Panel(table, title=self.title or None, border_style="dim", padding=(0, 1))

    def _cells(self, prediction: Prediction) -> list[Text]:
        colour = self._colours.get(prediction.label or "", "dim")
        cells = [
            Text(clock(prediction.end_seconds)),
            *(strip(prediction, modality, self.window) for modality in prediction.observed_share),
            Text(prediction.label or "abstained", style=colour),
            bar(prediction.confidence, colour),
            Text(f"{share(prediction):.0%}"),
            Text(filled_by(prediction), style="dim"),
        ]
        if self.truth is not None:
            truth = self.truth(prediction)
            right = truth is not None and truth == prediction.label
            cells.append(Text(truth or "", style="dim" if right or truth is None else "red"))
        return cells


def clock(seconds: float) -> str:
    """61.25 -> "1:01.2"."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def strip(prediction: Prediction, modality: str, window: int) -> Text:
    """One mark per clip of the window, oldest first; blank where the window reaches back before the start."""
    text = Text(" " * (window - len(prediction.clips)))
    for clip in prediction.clips:
        state = clip.state[modality]
        text.append(MARKS[state], style=COLOURS[state])
    return text


def bar(confidence: float, colour: str, width: int = 10) -> Text:
    """A bar and a percentage."""
    full = round(confidence * width)
    text = Text("━" * full, style=colour)
    text.append("━" * (width - full), style="grey23")
    text.append(f" {confidence:4.0%}")
    return text


def share(prediction: Prediction) -> float:
    """Observed share over all modalities."""
    return sum(prediction.observed_share.values()) / max(1, len(prediction.observed_share))


def filled_by(prediction: Prediction) -> str:
    """The rung that filled what was absent; "" where nothing was."""
    rungs = {rung for clip in prediction.clips for rung in clip.rung.values()} - {OBSERVED}
    return ", ".join(sorted(rungs))


def plain_line(prediction: Prediction, window: int) -> str:
    """A final prediction without colours."""
    strips = "  ".join(f"{strip(prediction, m, window).plain:<5}" for m in prediction.observed_share)
    label = prediction.label or "abstained"
    filled = filled_by(prediction)
    tail = f", filled by {filled}" if filled else ""
    return f"{clock(prediction.end_seconds):>8}  {strips}  {label} {prediction.confidence:.0%}, " + (
        f"observed {share(prediction):.0%}{tail}"
    )
