"""A file or recording that is sent as fast as it can is answered as ``legato replay`` answers it, to the byte."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.cli import run
from runtime.packet import Packet
from runtime.prediction import Prediction
from runtime.recording import RecordingReader, RecordingWriter
from runtime.serve.client import Client
from runtime.serve.client_session import Started
from runtime.serve.client_state import Progress
from runtime.serve.refusals import Backoff
from tests.bundles import write_tiny_bundle
from tests.serving import Host

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"
PRESET, LOOKAHEAD = "interactive", ("--lookahead", "2")
HEADS = ("--head", "gru", "--head", "linear")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    write_tiny_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def host(bundle):
    made = Host(bundles=(str(bundle),), preset=PRESET, device="cpu", deterministic=True)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Backoff, "FIRST", 0.001)


def cut(path: Path, seconds: float) -> Path:
    """The start of the demo, with its losses and its times of arrival; some are made later than anyone waits for."""
    reader, rng = RecordingReader(DEMO), np.random.default_rng(2)
    packets = [p for p in reader.packets() if isinstance(p, Packet) and p.decode_seconds < seconds]
    moved = [replace(p, arrival=p.arrival + rng.choice([0.0, 0.3, 0.9], p=[0.94, 0.03, 0.03])) for p in packets]
    with RecordingWriter(path, replace(reader.info, duration=seconds)) as writer:
        for packet in sorted(moved, key=lambda p: p.arrival):
            writer.append(packet)
    return path


def mp4(path: Path, seconds: float) -> Path:
    """H.264 with B pictures and AAC with priming, whose sound ends before its picture, and both before the file."""
    rng = np.random.default_rng(1)
    frames = [np.roll(rng.integers(0, 255, (96, 128, 3), np.uint8), i, 1) for i in range(int(25 * seconds))]
    sound = rng.uniform(-0.3, 0.3, int(44_100 * (seconds - 0.7))).astype(np.float32)
    video = VideoTrack(frames=frames, codec="libx264", options={"bf": "2", "g": "25"})
    return write_media(path, [video, AudioTrack(samples=sound, sample_rate=44_100, codec="aac", bit_rate=96_000)])


@pytest.fixture(scope="module", params=["recording", "mp4"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return cut(folder / "demo.legato", 9.0) if request.param == "recording" else mp4(folder / "talk.mp4", 8.5)


def replayed(capsys: Any, bundle: Path, source: Path, *options: str) -> list[str]:
    arguments = ["replay", str(source), "--bundle", str(bundle), "--preset", PRESET, "--device", "cpu", "--json"]
    assert run([*arguments, "--no-timings", *LOOKAHEAD, *options]) == 0
    return list(capsys.readouterr().out.splitlines())


def sent(capsys: Any, host: Host, source: Path, *options: str) -> list[str]:
    arguments = ["send", host.address, str(source), "--speed", "max", "--json", "--no-timings", *LOOKAHEAD]
    assert run([*arguments, *options]) == 0
    return list(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("options", [
    (), pytest.param(("--loss", "wifi-burst", "--seed", "5"), marks=pytest.mark.slow),
], ids=["as it is", "with loss"])  # fmt: skip
def test_what_is_sent_is_answered_as_a_replay(host, bundle, source, options, capsys):
    expected = replayed(capsys, bundle, source, *HEADS, *options)
    assert sent(capsys, host, source, *HEADS, *options) == expected
    said = [json.loads(line) for line in expected]
    assert {p["status"] for p in said} == {"provisional", "final"}
    if source.suffix == ".legato" and not options:  # late packets repaired what had been said
        assert {p["revision"] for p in said} >= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["the server survives", "the server dies"])
def test_so_is_what_was_resumed_in_the_middle(host, bundle, source, kill, capsys):
    expected = replayed(capsys, bundle, source, *HEADS)
    events: list[Any] = []
    progress = Progress()
    asked: dict[str, Any] = {"heads": ("gru", "linear"), "lookahead": 2, "progress": progress, "observe": events.append}
    predictions = Client(host.address).run(source, **asked)
    told = [next(predictions) for _ in range(20)]
    predictions.close()
    if kill:
        host.kill()
    told += Client(host.address).run(source, **asked)
    assert lines(told) == expected
    assert [event.resumed for event in events if isinstance(event, Started)] == [False, not kill]


@pytest.mark.slow
def test_the_whole_demo_is_answered_by_the_default_bundle_as_a_replay(capsys):
    host = Host(preset=PRESET, device="cpu", deterministic=True)
    try:
        said = sent(capsys, host, DEMO)
    finally:
        host.close()
    assert said == replayed(capsys, Path("talk"), DEMO)


def lines(predictions: list[Prediction]) -> list[str]:
    from runtime.output import as_line

    return [as_line(p.as_dict(timings=False)) for p in predictions]
