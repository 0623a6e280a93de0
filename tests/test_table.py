"""The live table: one plain line per final prediction without a terminal, rows that turn final with one."""

import io
from collections.abc import Sequence

from rich.console import Console

from runtime.prediction import ClipProvenance, Prediction
from runtime.table import LiveTable, clock, plain_line

LABELS = ("nobody", "on screen")


def prediction(clip: int, status: str = "final", label: str | None = "nobody", lost: Sequence[int] = ()) -> Prediction:
    clips = tuple(
        ClipProvenance(
            clip=k,
            state={"video": "lost" if k in lost else "observed", "audio": "observed"},
            flags={"video": (), "audio": ()},
            rung={"video": "curri_mae" if k in lost else "observed", "audio": "observed"},
            coverage={"video": float(k not in lost), "audio": 1.0},
        )
        for k in range(max(0, clip - 3), clip + 1)
    )
    return Prediction(
        stream="s",
        epoch=0,
        clip=clip,
        start_seconds=0.0,
        end_seconds=(clip + 1) * 0.4,
        head="gru",
        label=label,
        probabilities={"nobody": 0.75, "on screen": 0.25},
        confidence=0.75,
        status=status,
        revision=0,
        abstained=label is None,
        observed_share={"video": 1 - len(lost) / (clip + 1), "audio": 1.0},
        clips=clips,
    )


def shown(*predictions: Prediction, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=110, color_system=None)
    with LiveTable(console, LABELS, window=4, truth=lambda p: "on screen" if terminal else None) as table:
        for item in predictions:
            table.show(item)
    return out.getvalue()


def test_without_a_terminal_every_final_prediction_is_one_plain_line():
    text = shown(prediction(0, "provisional"), prediction(0), prediction(2, lost=(1,)))
    assert text.splitlines()[1:] == [
        "  0:00.4     █      █   nobody 75%, observed 100%",
        "  0:01.2   █·█    ███   nobody 75%, observed 83%, filled by curri_mae",
    ]


def test_an_abstention_is_said():
    assert "abstained" in plain_line(prediction(1, label=None, lost=(0, 1)), 4)


def test_on_a_terminal_the_newest_rows_stay_and_a_row_turns_final():
    text = shown(prediction(1, "provisional"), prediction(1), prediction(2, lost=(2,)), terminal=True)
    last = text[text.rindex("time") :]
    assert last.count("0:00.8") == 1 and "0:01.2" in last
    assert "curri_mae" in last and "on screen" in last and "━" in last


def test_the_table_keeps_its_size():
    text = shown(*(prediction(k) for k in range(40)), terminal=True)
    last = text[text.rindex("time") :]
    assert last.count("nobody") == 18 and "0:16.0" in last


def test_times_are_minutes_and_seconds():
    assert [clock(s) for s in (0.4, 59.96, 61.25, 3600)] == ["0:00.4", "1:00.0", "1:01.2", "60:00.0"]
