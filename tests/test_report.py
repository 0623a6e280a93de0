"""The report: what it says is what happened, and its files are whole or not there."""

import builtins
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from runtime.errors import MissingExtraError, OutputError
from runtime.output import part_of
from runtime.report import numbers, render_page, write_report
from runtime.report.chart import share
from runtime.report.numbers import Axis, Segment
from runtime.run_log import Run, Span
from tests.runs import LABELS, T, a_run


class Page(HTMLParser):
    """Checks that tags nest, and gathers texts, addresses and the descriptions of pictures."""

    VOID = ("meta", "br", "img", "path", "line", "ellipse")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.described: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not {"src", "href"} & set(attributes) or attributes["src"].startswith("data:")
        if attributes.get("role") == "img":
            self.described.append(attributes["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.fixture(scope="module")
def run() -> Run:
    return a_run()


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return render_page(run)


def test_the_page_is_whole_and_needs_nothing_from_anywhere(html):
    Page(html)
    assert not re.search(r"https?://|@import|url\(", html)


def test_every_strip_and_plot_is_described_for_those_who_cannot_see_it(html):
    described = Page(html).described
    seen = f"{share(numbers.observed_share(a_run(), 'video'))}"
    assert f"video: {seen} of clips observed" in described
    for words in ("true labels", "audio: filled places", "labels said, interpolated", "where it is wrong"):
        assert any(words in text for text in described), words


def test_headline_and_tiles_say_what_happened(run, html):
    text = " ".join(Page(html).texts)
    own = share(numbers.accuracy(run, numbers.finals(run, "bundle", "gru")))
    assert f"{own}  of the windows are understood rightly".replace("  ", " ") in re.sub(" +", " ", text)
    assert "wifi-poor" in text and "seed 3" in text and "9f2c4be19f2c" in text
    assert "It adds up" in text
    assert "CC-BY-4.0" in text and "GRID corpus" in text


def test_names_from_outside_cannot_break_the_page(run):
    evil = "</script><script>alert(1)</script><b onclick='x'>"
    html = render_page(replace(run, stream=evil, bundle=evil, loss=evil, attribution=evil, labels=(evil, *LABELS[1:])))
    assert "alert(1)</script>" not in html.replace("<\\/script>", "")
    Page(html)


def test_what_the_reading_line_says_is_json_of_every_clip(run, html):
    data = json.loads(re.search(r'id="clips">(.*?)</script>', html, re.S)[1])
    assert len(data["at"]) == len(run.clips)
    assert all(len(values) == len(run.clips) for _, values in data["lines"])
    assert data["at"][1] == "0.4 s"


def test_without_truth_nothing_is_called_right_or_wrong():
    html = render_page(a_run(40, truth=False))
    text = " ".join(Page(html).texts)
    assert "right" not in text and "What filling is worth" not in text and "wrong" not in text


def test_a_stream_that_ended_at_once_still_gets_a_page(run):
    empty = replace(run, clips=[], arms={"bundle": []}, ledger={}, events=(), truth=())
    assert "ended before a clip closed" in render_page(empty)


def test_a_run_of_one_modality_and_one_arm_is_fine():
    run = a_run(30)
    alone = replace(run, modalities=("audio",), arms={"bundle": run.arms["bundle"]}, loss="", card={})
    text = " ".join(Page(render_page(alone)).texts)
    assert "video came" not in text and "losses of the source itself" in text


def test_pictures_are_shown_only_when_they_are_given(run, html):
    assert "data:image" not in html
    shown = render_page(run, {i: b"\xff\xd8jpeg" for i in range(0, 150, 3)})
    assert 5 < shown.count("data:image/jpeg;base64,") < 20


def test_counts_that_do_not_add_up_are_not_hidden(run):
    broken = {**run.ledger, "video": {**run.ledger["video"], "received": 1}}
    assert "do not add up" in render_page(replace(run, ledger=broken))


def test_a_long_run_stays_a_small_page():
    assert len(render_page(a_run(1500))) < 1_200_000


# --- numbers --------------------------------------------------------------------------------------------------------


def test_equal_neighbours_are_one_segment_and_none_leaves_a_hole():
    assert numbers.merge(["a", "a", None, "b"]) == [Segment(0, 2, "a"), Segment(3, 4, "b")]
    assert numbers.merge([]) == []


def test_truth_lies_on_the_axis_by_capture_time(run):
    axis = Axis(run)
    first = numbers.truth(run, axis)[0]
    assert first == Segment(0.0, pytest.approx(run.truth[0].end / T), run.truth[0].label)


def test_epochs_stand_side_by_side_whatever_their_clocks_say():
    run = a_run(100, epochs=2)
    axis = Axis(run)
    assert axis.breaks == [50]
    assert list(axis.segments(1000.0, 1002.0, "x")) == [Segment(50, 55, "x")]
    assert 'class="break" x1="50"' in render_page(run)


def test_ticks_are_round_and_few():
    assert [text for _, text in Axis(a_run(150)).ticks()] == ["0:00", "0:10", "0:20", "0:30", "0:40", "0:50", "1:00"]
    assert 2 <= len(Axis(a_run(3)).ticks()) <= 8


def test_accuracy_by_observed_share_counts_every_window_once(run):
    rows = numbers.by_observed_share(run, "gru")
    assert sum(r.windows for r in rows) == numbers.judged(run, numbers.finals(run, "bundle", "gru"))
    assert [r.low for r in rows] == sorted((r.low for r in rows), reverse=True)


def test_an_abstention_is_not_right(run):
    finals = [replace(p, label=None, abstained=True) for p in numbers.finals(run, "bundle", "gru")]
    assert numbers.accuracy(run, finals) == 0.0
    assert numbers.accuracy(replace(run, truth=()), finals) is None


def test_the_longest_gap_is_in_seconds():
    run = a_run(60, loss="clean")  # but for the outage from clip 40 to 50
    assert numbers.longest_gap(run, "audio") == pytest.approx(11 * T)
    assert numbers.filled_clips(run) == 22


def test_latencies_are_of_the_first_word_on_each_window(run):
    total = numbers.latencies(run)[-1]
    assert total.stage == "total" and 0 < total.p50 <= total.p95 <= total.largest


@pytest.mark.parametrize(
    ("value", "text"), [(0.934, "93\u00a0%"), (1.0, "100\u00a0%"), (0.9999, "99.9\u00a0%"), (0.0001, "0.1\u00a0%")]
)
def test_a_share_is_never_rounded_to_all_or_nothing(value, text):
    assert share(value) == text


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_report_is_a_page_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write_report(a_run(30), tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["report.html", "report.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["report.html", "report.png"]


def test_the_same_run_gives_the_same_page():
    assert render_page(a_run(30)) == render_page(a_run(30))


def test_without_matplotlib_there_is_still_a_page(tmp_path, monkeypatch):
    def refuse(name, *args, real=builtins.__import__, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n == "runtime.report.picture"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert [p.name for p in write_report(a_run(20), tmp_path)] == ["report.html"]
    with pytest.raises(MissingExtraError, match=r"pip install 'legato\[report\]'"):
        write_report(a_run(20), tmp_path, png=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"taken/report\.html could not be written: .*; choose another place"):
        write_report(a_run(20), tmp_path / "taken")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is a Linux device")
@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, name):
    pytest.importorskip("matplotlib")
    part_of(tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=f"{name} could not be written: No space left on device"):
        write_report(a_run(20), tmp_path)
    assert not (tmp_path / name).exists() and not part_of(tmp_path / name).exists()


def test_ctrl_c_while_drawing_leaves_the_page_and_no_half_picture(tmp_path, monkeypatch):
    picture = pytest.importorskip("runtime.report.picture")

    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(picture, "draw_png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(a_run(20), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_truth_may_be_known_for_a_part_of_the_stream():
    run = replace(a_run(30), truth=(Span(2.0, 4.0, "on screen"),))
    assert len(numbers.truth(run, Axis(run))) == 1
    Page(render_page(run))
