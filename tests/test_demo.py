"""``legato demo`` and ``legato replay --report``: predictions, report and table from a packet recording with holes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.media import AudioTrack, VideoTrack, write_media
from runtime import cli
from runtime.recording import RecordingWriter
from runtime.sources import open_source
from tests.bundles import write_tiny_bundle

TRUTH = [[0.0, 2.0, "silence"], [2.0, 4.0, "speech"]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle with a demo recording: four seconds that lost packets on the way, and the truth about them."""
    folder = tmp_path_factory.mktemp("demo")
    frames = [np.full((48, 64), 40 + i, np.uint8) for i in range(100)]
    video = VideoTrack(frames=frames, codec="mjpeg", pixel_format="yuvj420p")
    media = write_media(folder / "talk.mkv", [video, AudioTrack(samples=np.zeros(64_000, np.float32))])
    path = write_tiny_bundle(folder / "tiny").path
    with open_source(media, loss="wifi-poor", seed=3) as source:
        labels = {"truth": json.dumps(TRUTH), "attribution": "made for a test"}
        with RecordingWriter(path / "demo.legato", replace(source.info, labels=labels)) as recording:
            for packet in source.packets():
                recording.append(packet, packet.arrival)
    return path


def test_the_demo_shows_a_table_and_leaves_predictions_and_a_report(bundle, tmp_path, capsys):
    command = ["demo", "--bundle", str(bundle), "--folder", str(tmp_path), "--speed", "max"]
    assert cli.run(command) == 0
    said = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {p["status"] for p in said} == {"provisional", "final"}
    assert {s for p in said for c in p["clips"] for s in c["state"].values()} > {"observed"}
    assert (tmp_path / "report.html").stat().st_size > 10_000 and (tmp_path / "report.png").exists()
    assert not list(tmp_path.glob(".*"))
    out = capsys.readouterr().out
    assert "% right" in out and "report" in out
    page = (tmp_path / "report.html").read_text()
    assert "made for a test" in page and "interpolated" in page  # what the lerp arm is called there


def test_a_replay_of_the_recording_says_the_same_every_time(bundle, tmp_path):
    recording = str(bundle / "demo.legato")
    for name in ("a", "b"):
        options = ["--bundle", str(bundle), "--no-timings", "--json", "--out", str(tmp_path / name)]
        assert cli.run(["replay", recording, *options]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""


def test_json_prints_predictions_and_nothing_else(bundle, capsys):
    assert cli.run(["replay", str(bundle / "demo.legato"), "--bundle", str(bundle), "--json", "--no-fill"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines and {r for p in lines for c in p["clips"] for r in c["rung"].values()} <= {"observed", "zero"}


def test_a_recording_cut_anywhere_replays_up_to_the_cut(bundle, tmp_path, capsys):
    data = (bundle / "demo.legato").read_bytes()
    (tmp_path / "cut.legato").write_bytes(data[: len(data) * 2 // 3 + 5])
    assert cli.run(["replay", str(tmp_path / "cut.legato"), "--bundle", str(bundle), "--json"]) == 0
    assert capsys.readouterr().out.count("\n") > 2


def test_a_folder_with_one_bad_file_plays_the_others_and_says_so(bundle, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no media")
    (tmp_path / "good.legato").write_bytes((bundle / "demo.legato").read_bytes())
    out = tmp_path / "p.jsonl"
    assert cli.run(["replay", str(tmp_path), "--bundle", str(bundle), "--out", str(out)]) == 1
    assert "bad.mp4" in capsys.readouterr().err and out.stat().st_size > 0


def test_a_bundle_without_a_demo_is_one_sentence(tmp_path, capsys):
    made = write_tiny_bundle(tmp_path / "plain").path
    assert cli.run(["demo", "--bundle", str(made), "--folder", str(tmp_path)]) == 1
    assert "has no demo.legato" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_one_sentence(bundle, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    command = ["replay", str(bundle / "demo.legato"), "--bundle", str(bundle), "--report", str(tmp_path / "taken")]
    assert cli.run(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1 and "is a file, and a folder is needed" in err


def test_replay_refuses_what_contradicts_itself(bundle, capsys):
    recording = str(bundle / "demo.legato")
    for options in (
        ["--fill", "lerp", "--no-fill"],
        ["--fill", "magic"],
        ["--lookahead", "9"],
        ["--set", "clip.seconds=1"],
        ["--set", "no.such=1"],
        ["--loss", "no-such-profile"],
        ["--speed", "warp"],
        ["--head", "svm"],
        ["--preset", "hasty"],
        ["--device", "warp"],
    ):
        assert cli.run(["replay", recording, "--bundle", str(bundle), *options]) == 2, options
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("legato: "), options
