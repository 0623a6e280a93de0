"""Live runs: deadlines that pass while nothing comes, a recording that replays to the same, loss, and the command."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from imputation.profiles import open_profile
from runtime import cli
from runtime.errors import OutputError
from runtime.live import ImpairedLive, LiveRun, Recorder, Tally, receive_live
from runtime.live_view import device_words, status_line, summary
from runtime.metrics import Ledgers
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.pipeline import Pipeline, receive
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.sources import LiveSource, open_devices, open_source
from runtime.sources.base import LivePackets
from runtime.sources.device import DevicePolicy, DeviceState
from tests.bundles import write_tiny_bundle
from tests.devices import MjpegCamera, VirtualMicrophone, environment, missing_for_sound
from tests.fakes import INFO, SPEC, FakeClock, fake_parts, packet, sent, stream, track

Item = Packet | Decision


class Script(LivePackets):
    """A live source that plays items at their arrivals, on a clock that moves only while somebody waits."""

    def __init__(self, items: Sequence[Item], info: StreamInfo = INFO, start: float = 0.0) -> None:
        self.info, self.clock = info, FakeClock(start)
        self._items = sorted(items, key=lambda i: i.arrival)
        self.closed = False

    @property
    def ended(self) -> bool:
        return self.closed or not self._items

    def read(self, timeout: float) -> Item | None:
        assert timeout >= 0
        if self.ended:
            return None
        due = self._items[0].arrival
        if due > self.clock.seconds + timeout:
            self.clock.move(timeout)
            return None
        self.clock.sleep_until(due)
        return self._items.pop(0)

    def states(self) -> list[DeviceState]:
        return [DeviceState(name="camera 0", modalities=("video",), state="live", rates={"video": 25.0}, lives=1)]

    def close(self) -> None:
        self.closed = True


def receiver(**options: Any) -> Receiver:
    return Receiver(INFO, SPEC, parts=fake_parts(), stopwatch=lambda: 0.0, **options)


def told(clips: Any) -> list[tuple[Any, ...]]:
    return [(c.index, c.version, c.state, c.coverage, c.flags, round(c.wait_ms, 6)) for c in clips]


def live(items: Sequence[Item], stop: threading.Event | None = None, **options: Any) -> tuple[list[Any], list[Item]]:
    """Clips of a live run, and what a recording of it holds."""
    source, tape = Script(items), []
    return list(receive_live(source, receiver(**options), source.clock, stop, tape.append)), tape


# -- the receiver, live ---------------------------------------------------------------------------------------------


def test_a_script_is_a_live_source():
    assert isinstance(Script([]), LiveSource) and not isinstance(open_source, LiveSource)


def test_clips_close_at_their_deadline_although_nothing_comes():
    """Both modalities stop after a second: the third clip closes by time alone, before the last packet is read."""
    source = Script([*stream(1.0), packet(seq=100, ms=4000, arrival=4.04)])
    closed: list[tuple[int, float]] = []
    for clip in receive_live(source, receiver(delay=0.1), source.clock):
        closed.append((clip.index, source.clock.seconds))
    assert closed[2][0] == 2 and 1.2 < closed[2][1] < 1.5
    assert [index for index, _ in closed] == list(range(len(closed)))


def test_a_live_run_and_the_replay_of_what_it_recorded_close_the_same_clips():
    items = stream(4.0, lambda p: 0.3 if p.seq % 7 == 0 else 0.01)
    clips, tape = live([i for i in items if i.seq % 11])
    assert told(clips) == told(receive(tape, receiver()))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), stop_after=st.floats(0.2, 3.0))
def test_so_do_runs_with_any_loss_delay_outage_and_end(seed, stop_after):
    chance = random.Random(seed)
    silent = {m: (a := chance.uniform(0, 2), a + chance.uniform(0, 3)) for m in ("video", "audio")}
    items: list[Item] = [
        replace(p, arrival=p.arrival + chance.expovariate(30))
        for p in stream(3.0)
        if chance.random() > 0.1 and not silent[p.modality][0] < p.seconds < silent[p.modality][1]
    ]
    items += [Decision(kind="device_lost", modality=m, arrival=a + 2) for m, (a, _) in silent.items()]
    stop = threading.Event()
    source, tape = Script(items), []
    clips = []
    ours = receiver(lookahead=chance.randint(0, 2))
    for clip in receive_live(source, ours, source.clock, stop, tape.append):
        clips.append(clip)
        if source.clock.seconds >= stop_after:
            stop.set()
    again = receiver(lookahead=ours.lookahead)
    assert told(clips) == told(receive(tape, again))
    assert ours.ledger.as_dict() == again.ledger.as_dict()
    ours.ledger.check()


def test_a_packet_stamped_before_the_time_that_passed_counts_as_come_now():
    """A source that stamps before it queues: the recording holds what the receiver was told."""

    class Tardy(Script):
        def read(self, timeout: float) -> Item | None:
            item = super().read(timeout)
            return replace(item, arrival=item.arrival - 0.5) if isinstance(item, Packet) and item.seq > 60 else item

    source, tape = Tardy(sent(track("video", 4.0), lambda p: 0.4 if 20 < p.seq < 60 else 0.0)), []
    clips = list(receive_live(source, receiver(), source.clock, None, tape.append))
    assert told(clips) == told(receive(tape, receiver()))


def test_the_end_is_kept_so_that_silence_before_it_is_silence_in_a_replay():
    stop = threading.Event()
    source, tape = Script([*stream(1.2), packet(seq=999, ms=99_000, arrival=99.0)]), []
    clips = []
    for clip in receive_live(source, receiver(delay=0.1), source.clock, stop, tape.append):
        clips.append(clip)
        if source.clock.seconds > 2.0:
            stop.set()
    assert [i.kind for i in tape if isinstance(i, Decision)] == ["device_lost", "device_lost"]
    assert len(clips) > 3 and told(clips) == told(receive(tape, receiver(delay=0.1)))


# -- loss -----------------------------------------------------------------------------------------------------------


def test_a_lossy_channel_loses_live_what_it_loses_in_a_file():
    from runtime.impair import impair

    items = stream(10.0)
    profile = open_profile("wifi-poor")
    wanted = [(p.modality, p.seq, p.arrival) for p in impair(items, profile, 3, codecs=INFO.codecs)]
    source = ImpairedLive(Script(items), profile, 3)
    assert isinstance(source, LiveSource)
    got = [(p.modality, p.seq, p.arrival) for p in source.packets()]
    assert sorted(got) == sorted(wanted) and len(got) < len(items)
    assert [a for *_, a in got] == sorted(a for *_, a in got)


def test_what_a_channel_holds_back_is_handed_out_when_it_arrives():
    script = Script(stream(2.0))
    source, seen = ImpairedLive(script, open_profile("wifi-burst"), 0), 0
    while not script.ended:
        item = source.read(0.05)
        assert item is None or source.clock.now() >= item.arrival - 1e-9 or script.ended
        seen += item is not None
    assert seen > 50 and source.clock.now() < 2.1


# -- runs -----------------------------------------------------------------------------------------------------------

VIDEO = CodecConfig(codec="mjpeg", time_base=Fraction(1, 90_000), width=64, height=48)
SOUND = CodecConfig(
    codec="pcm_s16le", time_base=Fraction(1, 16_000), sample_rate=16_000, channels=1, sample_format="s16"
)
DESK = StreamInfo(name="desk", codecs={"video": VIDEO, "audio": SOUND})


def desk(seconds: float, seed: int = 0) -> list[Item]:
    """A moving square and a rising tone as devices give them, with an outage of each, a hole, and a late block."""
    items: list[Item] = []
    for i in range(round(25 * seconds)):
        picture = np.full((48, 64, 3), 60, np.uint8)
        picture[10:30, i % 40 : i % 40 + 16] = 200
        coded = cv2.imencode(".jpg", picture)[1].tobytes()
        at = i / 25
        if not 2.0 < at < 3.4 and i % 17:
            items.append(
                Packet(
                    modality="video", seq=i, capture_time=3600 * i, time_base=VIDEO.time_base,
                    payload=coded, keyframe=True, arrival=at + 0.03,
                )
            )  # fmt: skip
    for i in range(round(50 * seconds)):
        t = (np.arange(320) + 320 * i) / 16_000
        at = i / 50
        late = 0.25 if i % 31 == 0 else 0.0
        if not 4.0 < at < 4.9:
            sound = (0.3 * np.sin(2 * np.pi * (200 + 50 * t) * t) * 32767).astype("<i2").tobytes()
            items.append(
                Packet(
                    modality="audio", seq=i, capture_time=320 * i, time_base=SOUND.time_base,
                    payload=sound, duration=320, keyframe=True, arrival=at + 0.04 + late,
                )
            )  # fmt: skip
    items.append(Decision(kind="device_lost", modality="video", arrival=4.05, reason="camera 0: unplugged"))
    items.append(Decision(kind="device_back", modality="video", arrival=3.42))
    return items


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


def made(bundle: Path, lookahead: int) -> Pipeline:
    return Pipeline.from_bundle(bundle, device="cpu", preset="interactive", lookahead=lookahead)


def without_timings(predictions: Any) -> list[dict[str, Any]]:
    return [p.as_dict(timings=False) | {"stream": ""} for p in predictions]


@pytest.mark.parametrize(("lookahead", "profile"), [(0, ""), (2, ""), (1, "wifi-poor")])
def test_a_live_run_says_what_the_replay_of_its_recording_says(bundle, tmp_path, lookahead, profile):
    pipeline = made(bundle, lookahead)
    source: Any = Script(desk(6.0), DESK)
    if profile:
        source = ImpairedLive(source, open_profile(profile), 1)
    recorder = Recorder(tmp_path / "desk.legato", source.info)
    with LiveRun(pipeline, source, tap=recorder) as run:
        said = list(run.predictions())
    recorder.close()
    again = list(made(bundle, lookahead).run(open_source(tmp_path / "desk.legato")))
    assert without_timings(said) == without_timings(again)
    assert {s for p in said for c in p.clips for s in c.state.values()} >= {"observed", "lost"}
    run.stream.receiver.ledger.check()
    assert run.tally.closed == run.stream.windows.total and run.tally.windows == len(said)


def test_a_run_that_is_stopped_ends_at_once_with_its_last_answers(bundle, tmp_path):
    source = Script(desk(6.0), DESK)
    recorder = Recorder(tmp_path / "desk.legato", source.info)
    with LiveRun(made(bundle, 2), source, tap=recorder) as run:
        said = []
        for prediction in run.predictions():
            said.append(prediction)
            if len(said) == 3:
                run.stop()
    recorder.close()
    assert said[-1].status == "final" and not source.closed
    assert without_timings(said) == without_timings(made(bundle, 2).run(open_source(tmp_path / "desk.legato")))


def test_what_the_model_raises_is_raised_where_predictions_are_read(bundle):
    class Breaks(Script):
        def read(self, timeout: float) -> Item | None:
            raise OutputError("the disk went away")

    with (
        pytest.raises(OutputError, match="the disk went away"),
        LiveRun(made(bundle, 0), Breaks(stream(1.0), DESK)) as run,
    ):
        list(run.predictions())


def test_a_disk_that_fills_up_ends_the_recording_not_the_run(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "a.legato", INFO)
    monkeypatch.setattr(recorder._writer, "append", lambda item: (_ for _ in ()).throw(OutputError("disk full")))
    for item in stream(1.0):
        recorder(item)
    recorder.close()
    assert recorder.failure == "disk full" and not recorder.running


def test_a_pipeline_takes_a_live_source_as_any_other(bundle):
    said = list(made(bundle, 0).run(Script(desk(6.0), DESK)))
    assert len(said) > 8
    early = made(bundle, 0).run(Script(desk(6.0), DESK))
    next(early)
    early.close()  # its threads end
    assert not [t for t in threading.enumerate() if t.name == "legato-decode" and t.is_alive() and _still(t)]


def _still(thread: threading.Thread) -> bool:
    thread.join(2)
    return thread.is_alive()


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
