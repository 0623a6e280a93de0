"""``legato live``: what it shows, prints and keeps, what it refuses; and the real thing, without hardware."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from runtime import cli
from runtime.live import Tally
from runtime.live_view import device_words, status_line, summary
from runtime.metrics import Ledgers
from runtime.packet import Decision, Packet
from runtime.recording import RecordingReader
from runtime.sources import open_devices
from runtime.sources.device import DevicePolicy, DeviceState
from tests.bundles import write_tiny_bundle
from tests.devices import MjpegCamera, VirtualMicrophone, environment, missing_for_sound
from tests.scripts import DESK, Item, Script, desk


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


# -- what is shown --------------------------------------------------------------------------------------------------


def a_run(tally: Tally | None = None, **facts: Any) -> Any:
    counts = SimpleNamespace(av_offset_ms=12.4, drift_ppm=-3.2, events=[], ledger=Ledgers())
    config = SimpleNamespace(clip=SimpleNamespace(seconds=Fraction(2, 5)), window=SimpleNamespace(min_clips=3))
    pipeline = SimpleNamespace(config=config, engine=SimpleNamespace(encoders={"video": 0, "audio": 0}))
    return SimpleNamespace(
        source=Script([]), stream=SimpleNamespace(receiver=counts), tally=tally or Tally(), pipeline=pipeline, **facts
    )


def test_the_status_line_tells_of_devices_offset_drift_latency_and_recording():
    tally = Tally(windows=1, latest_ms=130.0)
    recorder = SimpleNamespace(path=Path("a.legato"), failure="")
    assert status_line(a_run(tally), recorder).plain == (
        "● REC a.legato │ camera 0 live 25.0/s │ A/V +12 ms │ drift -3 ppm │ latency 130 ms"
    )
    recorder.failure = "disk full"
    assert "recording stopped: disk full" in status_line(a_run(), recorder).plain


def test_a_lost_device_tells_why_and_when_the_next_try_comes():
    lost = DeviceState(name="mic", modalities=("audio",), state="lost", reason="unplugged", retry_seconds=3.6)
    assert device_words(lost).plain == "mic lost: unplugged; next try in 4 s"
    assert isinstance(device_words(lost), Text)


def test_a_summary_without_a_prediction_says_what_one_needs():
    assert summary(a_run(), None).splitlines()[1] == "no prediction: that takes 3 clips, 1.2 s"


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_devices(monkeypatch) -> Iterator[list[Any]]:
    """``legato live`` on a script, which is read on a clock that does not sleep."""
    opened: list[Any] = []

    def devices(camera: Any, mic: Any, **options: Any) -> Script:
        opened.append((camera, mic, options))
        return Script(desk(6.0), DESK)

    monkeypatch.setattr("runtime.sources.open_devices", devices)
    yield opened


def test_live_prints_json_and_records_what_replays_to_the_same(bundle, tmp_path, capsys, fake_devices):
    kept = tmp_path / "meeting.legato"
    command = ["live", "--bundle", str(bundle), "--json", "--record", str(kept), "--mic", "none", "--lookahead", "1"]
    assert cli.run([*command, "--av-offset-ms", "40"]) == 0
    out, err = capsys.readouterr()
    said = [json.loads(line) for line in out.splitlines()]
    assert said and "legato replay" in err and "--preset interactive --lookahead 1 says the same" in err
    assert fake_devices == [(None, "none", {"av_offset_ms": 40.0, "playlists": False, "seed": 0})]
    replay = ["replay", str(kept), "--bundle", str(bundle), "--json", "--preset", "interactive", "--lookahead", "1"]
    assert cli.run(replay) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one in (*said, *again):
        del one["timings"], one["stream"]
    assert said == again
    assert RecordingReader(kept).info.name == "meeting" and kept.stat().st_mode & 0o777 == 0o600


def test_live_shows_a_line_for_each_answer_and_a_summary(bundle, capsys, fake_devices):
    assert cli.run(["live", "--bundle", str(bundle), "--loss", "iid-20", "--seed", "2"]) == 0
    out, err = capsys.readouterr()
    assert "came" in out.splitlines()[0] and "% observed" in out and "windows, " in out
    assert "legato: camera 0 is live" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--record", "a.mp4"], "recording a.mp4 must end with .legato"),
        (["--record", "nowhere/a.legato"], "is no folder; make it first"),
        (["--loss", "wifi-pour"], "wifi-poor"),
        (["--preset", "slow"], "there is no preset 'slow'"),
        (["--camera", "none", "--mic", "none"], "leave nothing to run on"),
        (["--camera", "file:///etc/passwd"], "begins with file, which is not opened"),
        (["--av-offset-ms", "9000"], "A/V offset 9000 ms is out of range"),
    ],
)
def test_live_refuses_nonsense_in_one_sentence(bundle, capsys, options, sentence):
    assert cli.run(["live", "--bundle", str(bundle), *options]) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_live_never_overwrites_a_recording(bundle, tmp_path, capsys):
    kept = tmp_path / "kept.legato"
    kept.write_bytes(b"precious")
    assert cli.run(["live", "--bundle", str(bundle), "--record", str(kept)]) == 2
    assert "exists already; choose another name" in capsys.readouterr().err and kept.read_bytes() == b"precious"


# -- the real thing, without hardware -------------------------------------------------------------------------------

QUICK = DevicePolicy(open_seconds=8.0, stall_seconds=1.0, least_wait=0.5, longest_wait=1.0)
no_sound = pytest.mark.skipif(bool(missing_for_sound()), reason=missing_for_sound() or "there is sound")


@pytest.fixture
def stand_ins(tmp_path) -> Iterator[tuple[MjpegCamera, VirtualMicrophone]]:
    start = time.monotonic()
    with VirtualMicrophone(tmp_path, start) as mic, MjpegCamera(start) as camera, environment(mic.environment):
        yield camera, mic


@pytest.mark.device
@pytest.mark.slow
@no_sound
def test_camera_and_microphone_run_on_one_clock_vanish_and_come_back(stand_ins):
    camera, mic = stand_ins
    with open_devices(camera.address, "default", policy=QUICK, seed=0) as source:
        seen = _watch(source, 1.5)
        rates = {m: sum(isinstance(i, Packet) and i.modality == m for i in seen) / 1.5 for m in ("video", "audio")}
        assert rates["video"] == pytest.approx(25, rel=0.3) and rates["audio"] == pytest.approx(50, rel=0.3)
        newest = {i.modality: i.arrival - i.seconds for i in seen if isinstance(i, Packet)}
        assert all(-0.05 < transit < 0.3 for transit in newest.values())
        for device, modality in ((camera, "video"), (mic, "audio")):
            device.kill()
            assert _until(source, "device_lost", modality)
            device.start()
            assert _until(source, "device_back", modality)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0


@pytest.mark.device
@pytest.mark.slow
@no_sound
def test_ctrl_c_ends_a_live_run_with_a_summary_and_a_whole_recording(stand_ins, bundle, tmp_path):
    camera, mic = stand_ins
    kept = tmp_path / "kept.legato"
    command = [sys.executable, "-m", "runtime", "live", "--camera", camera.address, "--mic", "default"]
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), "--record", str(kept), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | mic.environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        first = json.loads(process.stdout.readline())
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        while "says the same" not in (line := process.stderr.readline()):
            assert line and "Traceback" not in line
        assert time.monotonic() - began < 1.0
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    reader = RecordingReader(kept)
    assert len(list(reader.packets())) > 50 and not reader.truncated and first["observed_share"]["video"] > 0


def _watch(source: Any, seconds: float) -> list[Item]:
    source.read(0.0)
    until, seen = time.monotonic() + seconds, []
    while time.monotonic() < until:
        item = source.read(0.05)
        seen += [item] if item is not None else []
    return seen


def _until(source: Any, kind: str, modality: str, seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        item = source.read(0.05)
        if isinstance(item, Decision) and (item.kind, item.modality) == (kind, modality):
            return True
    return False
