"""The live table: when, what came and what did not, what is said and how surely.

On a terminal the newest rows stay on screen and a provisional row turns into its final one; elsewhere (a file, a
pipe) every final prediction is one plain line. A narrow terminal gets shorter bars first, then fewer columns.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imputation.presence import OBSERVED
from runtime.prediction import Prediction
from runtime.stream import FINAL
from runtime.wording import rung_words, words

ROWS = 18
GAPS = (2, 1)  # between columns, where there is room and where there is little
FRAME = 4  # the panel's borders and padding
WIDEST_BAR = 30
# a clip in the presence strip: full when observed, emptier the less of it came
MARKS = {OBSERVED: "█", "damaged": "▒", "late": "░", "lost": "·", "shed": "-"}
COLOURS = {OBSERVED: "green", "damaged": "yellow", "late": "magenta", "lost": "red", "shed": "blue"}
PALETTE = ("cyan", "bright_green", "bright_magenta", "bright_yellow", "bright_blue", "bright_red")
ABSTAINED = "abstained"
SURE, SEEN, FILLED, TRUTH = "sure", "seen", "filled by", "truth"
DROPPED = (FILLED, SEEN, TRUTH)  # where there is no room, in this order


class LiveTable:
    """Shows predictions as they come. Used with ``with``; ``truth`` gives the true label of one, where known.

    ``status`` gives a line about the stream itself, shown below the table on a terminal (``runtime.live_view``).
    """

    def __init__(
        self,
        console: Console,
        labels: Sequence[str],
        *,
        window: int = 10,
        modalities: Sequence[str] = ("video", "audio"),
        title: str = "",
        truth: Callable[[Prediction], str | None] | None = None,
        status: Callable[[], Text] | None = None,
    ) -> None:
        self.status = status
        self.console, self.window, self.modalities, self.title, self.truth = console, window, modalities, title, truth
        self._colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
        self._label_width = max(len(words(label)) for label in (*labels, ABSTAINED))
        self._heads: list[str] = []  # in the order in which they spoke; all but the first are named in their rows
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
        self._hear(prediction.head)
        if self._live is None:
            if prediction.status == FINAL:
                self._print(prediction)
            return
        key = (prediction.stream, prediction.clip, prediction.head)
        self._rows[key] = prediction
        if len(self._rows) > ROWS:
            self._rows.popitem(last=False)

    def _hear(self, head: str) -> None:
        if head not in self._heads:
            self._heads.append(head)
            self._label_width += len(f" ({head})") if len(self._heads) == 2 else 0

    def _said(self, prediction: Prediction) -> str:
        """The label, and whose it is where several heads speak."""
        label = words(prediction.label or ABSTAINED)
        return label if prediction.head == self._heads[0] else f"{label} ({prediction.head})"

    # -- without a terminal -------------------------------------------------------------------------------------

    def _print(self, prediction: Prediction) -> None:
        if not self._headed:
            strips = "  ".join(f"{m:<{self._strip_width}}" for m in self.modalities)
            head = f"{'time':>8}  {strips}  {'label':<{self._label_width}}  {SURE}  {SEEN}  {FILLED:<13}"
            self._line(f"{legend().plain}\n{head}" + (f"  {TRUTH}" if self.truth else ""))
            self._headed = True
        self._line(self._plain(prediction))

    def _line(self, text: str) -> None:
        self.console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def _plain(self, prediction: Prediction) -> str:
        """A final prediction without colours."""
        strips = "  ".join(f"{strip(prediction, m, self.window).plain:<{self._strip_width}}" for m in self.modalities)
        label = f"{self._said(prediction):<{self._label_width}}"
        numbers = f"{sure(prediction):>4}  {share(prediction):4.0%}  {filled_by(prediction):<13}"
        return f"{clock(prediction.end_seconds):>8}  {strips}  {label}  {numbers}  {self._truth(prediction).plain}"

    @property
    def _strip_width(self) -> int:
        return max(self.window, *map(len, self.modalities))

    # -- on a terminal ------------------------------------------------------------------------------------------

    def _picture(self) -> Panel:
        rows = list(self._rows.values())
        columns, gap, bar_width = self._columns(rows)
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold dim")
        for title, width in columns.items():
            table.add_column(title, no_wrap=True, width=width, justify="right" if title in ("time", SEEN) else "left")
        for prediction in rows:
            cells = self._cells(prediction, bar_width)
            table.add_row(*(cells[title] for title in columns), style="" if prediction.status == FINAL else "dim")
        return Panel(
            table if self.status is None else Group(table, Text(), self.status()),
            title=Text(self.title, style="bold") if self.title else None,
            subtitle=legend(),
            subtitle_align="left",
            border_style="dim",
            padding=(0, 1),
        )

    def _columns(self, rows: Sequence[Prediction]) -> tuple[dict[str, int], int, int]:
        """Widths by title of the columns that fit, the gap between them, and how long the bars may be (0: none)."""
        times = max((len(clock(p.end_seconds)) for p in rows), default=6)
        fills = max((len(filled_by(p)) for p in rows), default=0)
        columns = {"time": times, **dict.fromkeys(self.modalities, self._strip_width), "label": self._label_width}
        columns |= {SURE: len(SURE), SEEN: len(SEEN), FILLED: max(fills, len(FILLED))}
        if self.truth is not None:
            columns[TRUTH] = self._label_width + 2
        room = self.console.width - FRAME
        for title in DROPPED:
            if _total(columns, min(GAPS)) > room:
                columns.pop(title, None)
        gap = next((gap for gap in GAPS if _total(columns, gap) <= room), min(GAPS))
        spare = room - _total(columns, gap)
        length = min(WIDEST_BAR, spare - 1) if spare >= 4 else 0
        columns[SURE] += length + 1 if length else 0
        return columns, gap, length

    def _cells(self, prediction: Prediction, bar_width: int) -> dict[str, Text]:
        colour = self._colours.get(prediction.label or "", "dim")
        return {
            "time": Text(clock(prediction.end_seconds)),
            **{modality: strip(prediction, modality, self.window) for modality in self.modalities},
            "label": Text(self._said(prediction), style=colour),
            SURE: bar(prediction, colour, bar_width),
            SEEN: Text(f"{share(prediction):.0%}"),
            FILLED: Text(filled_by(prediction), style="dim"),
            TRUTH: self._truth(prediction),
        }

    def _truth(self, prediction: Prediction) -> Text:
        """The true label with a tick or a cross; nothing where nobody can tell."""
        truth = self.truth(prediction) if self.truth is not None else None
        if truth is None:
            return Text("")
        right = truth == prediction.label
        return Text(f"{'✓' if right else '✗'} {words(truth)}", style="dim" if right else "bold red")


def _total(columns: Mapping[str, int], gap: int) -> int:
    return sum(columns.values()) + gap * (len(columns) - 1)


def clock(seconds: float) -> str:
    """61.25 -> "1:01.2"."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def legend() -> Text:
    """What the marks in the strips mean."""
    text = Text()
    for state, mark in MARKS.items():
        text.append(f"{mark} ", style=COLOURS[state])
        text.append("came  " if state == OBSERVED else f"{state}  ", style="dim")
    text.right_crop(2)
    return text


def strip(prediction: Prediction, modality: str, window: int) -> Text:
    """One mark per clip of the window, oldest first; blank where the window reaches back before the start."""
    text = Text(" " * (window - len(prediction.clips)))
    for clip in prediction.clips:
        state = clip.state[modality]
        text.append(MARKS[state], style=COLOURS[state])
    return text


def sure(prediction: Prediction) -> str:
    """The confidence in percent; nothing where nothing is said."""
    return "" if prediction.abstained else f"{prediction.confidence:.0%}"


def bar(prediction: Prediction, colour: str, width: int) -> Text:
    """The confidence as a percentage, and as a bar where there is room."""
    text = Text(f"{sure(prediction):>4}")
    if width:
        full = 0 if prediction.abstained else round(prediction.confidence * width)
        text.append(" ")
        text.append("━" * full, style=colour)
        text.append("─" * (width - full), style="grey23")
    return text


def share(prediction: Prediction) -> float:
    """Observed share over all modalities."""
    return sum(prediction.observed_share.values()) / max(1, len(prediction.observed_share))


def filled_by(prediction: Prediction) -> str:
    """The rung that filled what was absent; "" where nothing was."""
    rungs = {rung for clip in prediction.clips for rung in clip.rung.values()} - {OBSERVED}
    return ", ".join(rung_words(rung) for rung in sorted(rungs))
