"""The live table: one plain line per final prediction without a terminal, rows that turn final with one."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from runtime.prediction import ClipProvenance, Prediction
from runtime.table import LiveTable, clock

LABELS = ("nobody", "on_screen")


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
        probabilities={"nobody": 0.75, "on_screen": 0.25},
        confidence=0.75,
        status=status,
        revision=0,
        abstained=label is None,
        observed_share={"video": 1 - len(lost) / (clip + 1), "audio": 1.0},
        clips=clips,
    )


def shown(*predictions: Prediction, terminal: bool = False, width: int = 110, window: int = 4) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    with LiveTable(console, LABELS, window=window, truth=lambda p: "on_screen") as table:
        for item in predictions:
            table.show(item)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


def test_without_a_terminal_every_final_prediction_is_one_plain_line():
    text = shown(prediction(0, "provisional"), prediction(0), prediction(2, label="on_screen", lost=(1,)))
    assert text.splitlines() == [
        "█ came  ▒ damaged  ░ late  · lost  - shed",
        "    time  video  audio  label      sure  seen  filled by      truth",
        "  0:00.4     █      █   nobody      75%  100%                 ✗ on screen",
        "  0:01.2   █·█    ███   on screen   75%   83%  curri-MAE      ✓ on screen",
    ]


def test_an_abstention_is_said_without_a_confidence():
    line = shown(prediction(1, label=None, lost=(0, 1))).splitlines()[-1]
    assert "abstained" in line and "75%" not in line


def test_on_a_terminal_the_newest_rows_stay_and_a_row_turns_final():
    text = shown(prediction(1, "provisional"), prediction(1), prediction(2, lost=(2,)), terminal=True)
    last = text[text.rindex("time") :]
    assert last.count("0:00.8") == 1 and "0:01.2" in last
    assert "curri-MAE" in last and "✗ on screen" in last and "━" in last


@pytest.mark.parametrize("terminal", [False, True])
def test_where_several_heads_speak_each_row_says_whose_it_is(terminal):
    told = shown(prediction(3), replace(prediction(3), head="plain"), terminal=terminal)
    assert "nobody (plain)" in told and "(gru)" not in told


def test_the_table_keeps_its_size():
    text = shown(*(prediction(k) for k in range(40)), terminal=True)
    last = text[text.rindex("time") :]
    assert last.count("nobody") == 18 and "0:16.0" in last


@pytest.mark.parametrize("width", [50, 60, 72, 80, 120, 200])
def test_at_any_width_nothing_is_cut_and_the_label_is_there(width):
    text = shown(prediction(2, lost=(1,)), terminal=True, width=width, window=10)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines[1:-1])
    assert any("nobody" in line and "█·█" in line and "75%" in line for line in lines)


def test_eighty_columns_hold_every_column():
    text = shown(prediction(2, lost=(1,)), terminal=True, width=80, window=10)
    assert all(title in text for title in ("time", "video", "audio", "label", "sure", "seen", "filled by", "truth"))


def test_times_are_minutes_and_seconds():
    assert [clock(s) for s in (0.4, 59.96, 61.25, 3600)] == ["0:00.4", "1:00.0", "1:01.2", "60:00.0"]
