"""Recordings that a server keeps: whose they are, how long, and that no stream ever notices."""

import errno
import logging
import os
import stat
import subprocess
import sys
import threading
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest

import runtime.recording as recording
from runtime import retention
from runtime.errors import OutputError
from runtime.keep import ITEM_BYTES, Keeper
from runtime.observe import Observer
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.recording import RecordingReader

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and locks are Unix's")

VIDEO = CodecConfig(codec="h264", time_base=Fraction(1, 1000), width=320, height=240)
INFO = StreamInfo(name="../../etc/passwd", codecs={"video": VIDEO}, labels={"room": "kitchen"})


def packet(seq: int, size: int = 1000, **fields: object) -> Packet:
    values = {"capture_time": 40 * seq, "time_base": VIDEO.time_base, "arrival": 0.04 * seq, **fields}
    return Packet(modality="video", seq=seq, payload=bytes([seq % 256]) * size, **values)  # type: ignore[arg-type]


class Wall:
    """The time of day."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Counting(Observer):
    def __init__(self) -> None:
        self.bytes, self.stops = 0, []

    def recorded(self, size: int) -> None:
        self.bytes += size

    def recording_stopped(self, reason: str) -> None:
        self.stops.append(reason)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def counting():
    return Counting()


def keep(keeper: Keeper, packets: int, size: int = 1000, stream: str = "s") -> Path:
    """A whole recording; its path."""
    tap = keeper.open(INFO, stream)
    assert tap is not None
    for seq in range(packets):
        tap.packet(packet(seq, size))
    tap.close()
    keeper.flush()
    return tap.path


def read(path: Path) -> list[Packet | Decision]:
    return list(RecordingReader(path).packets())


def test_what_a_stream_sent_is_kept_with_its_decisions(folder, counting):
    with Keeper(folder, observer=counting) as keeper, keeper.open(INFO, "9f2c") as tap:
        tap.packet(packet(0))
        tap.packet(packet(1, arrival=None), arrival=0.5)
        lost = Decision(kind="shed", modality="video", arrival=0.6, clip=1)
        tap.decision(lost)
    assert read(tap.path) == [packet(0), packet(1, arrival=0.5), lost]
    info = RecordingReader(tap.path).info
    assert info.name == INFO.name and info.labels == {"room": "kitchen", "stream": "9f2c"}
    assert counting.stops == [] and counting.bytes > 2000


def test_only_the_owner_can_read_and_names_hold_no_words_of_the_client(folder):
    before = os.umask(0)
    try:
        with Keeper(folder, wall=Wall()) as keeper:
            paths = {keep(keeper, 2), keep(keeper, 2)}
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(paths) == 2 and {path.parent for path in paths} == {folder}
    assert all(retention.NAME.fullmatch(path.name) and path.name.startswith("20231114T221320Z-") for path in paths)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_folder_that_others_may_open_is_refused_and_left_as_it_is(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(OutputError, match=rf"others may open it \(mode {mode:04o}\); chmod it 700 or take another"):
        Keeper(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        Keeper(tmp_path / "file" / "kept")


def test_one_process_keeps_its_recordings_in_a_folder(folder):
    with Keeper(folder), pytest.raises(OutputError, match="another process keeps its recordings there"):
        Keeper(folder)
    Keeper(folder).close()


def test_a_stream_s_recording_ends_at_its_limit(folder, counting):
    with Keeper(folder, per_stream_bytes=10_000, observer=counting) as keeper:
        tap = keeper.open(INFO, "s")
        for seq in range(50):
            tap.packet(packet(seq))
        keeper.flush()
        assert not tap.active
        tap.packet(packet(99))  # harmless
    assert tap.path.stat().st_size <= 10_000 and counting.stops == ["limit"]
    kept = read(tap.path)
    assert kept == [packet(seq) for seq in range(len(kept))] and 5 < len(kept) < 10


def test_the_oldest_go_first_when_all_together_are_too_much(folder):
    wall = Wall()
    with Keeper(folder, max_bytes=25_000, wall=wall) as keeper:
        paths = []
        for _ in range(4):
            paths.append(keep(keeper, 9))
            wall.now += 1
        assert [path.exists() for path in paths] == [False, False, True, True]
        assert keeper.files == paths[2:]


def test_a_live_recording_is_never_deleted(folder, counting):
    wall = Wall()
    with Keeper(folder, max_bytes=25_000, wall=wall, observer=counting) as keeper:
        live = keeper.open(INFO, "live")
        live.packet(packet(0))
        wall.now += 1
        for _ in range(4):
            keep(keeper, 9)
            wall.now += 1
        wall.now += 10 * 365 * 86400
        keeper._sweep()
        assert live.active and live.path.exists() and keeper.files == [live.path]
        live.packet(packet(1))
    assert read(live.path) == [packet(0), packet(1)] and counting.stops == []


def test_live_recordings_that_take_all_the_room_end_and_new_ones_are_refused(folder, counting):
    with Keeper(folder, max_bytes=20_000, observer=counting) as keeper:
        one, other = keeper.open(INFO, "one"), keeper.open(INFO, "other")
        for seq in range(12):
            one.packet(packet(seq))
            other.packet(packet(seq))
        keeper.flush()
        assert counting.stops == ["full"] and one.active + other.active == 1
    assert sum(path.stat().st_size for path in folder.glob("*.legato")) <= 20_000
    with Keeper(folder, max_bytes=100, observer=counting) as keeper:
        assert keeper.open(INFO, "late") is None and counting.stops[-1] == "open"


def test_old_recordings_go_by_age_also_those_of_an_earlier_server(folder):
    wall = Wall()
    with Keeper(folder, wall=wall) as keeper:
        old, new = keep(keeper, 2), keep(keeper, 2)
    os.utime(old, (wall.now - 101, wall.now - 101))
    os.utime(new, (wall.now - 99, wall.now - 99))
    Keeper(folder, max_age=100, wall=wall).close()
    assert not old.exists() and new.exists()


def test_only_files_of_its_own_are_ever_deleted(folder):
    folder.mkdir(mode=0o700)
    treasure = folder.parent / "treasure.legato"
    treasure.write_bytes(b"x" * 5000)
    own = "20200101T000000Z-0123456789abcdef.legato"
    (folder / "thesis.legato").write_bytes(b"x" * 5000)
    (folder / own.replace("0123", "4567")).symlink_to(treasure)
    (folder / f"{own}.77.part").write_bytes(b"x")
    (folder / own).write_bytes(b"x" * 5000)
    for path in folder.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    with Keeper(folder, max_bytes=100, max_age=1):
        pass
    left = {path.name for path in folder.iterdir()}
    assert left == {".lock", "thesis.legato", own.replace("0123", "4567")} and treasure.exists()


def test_a_full_disk_ends_the_recording_and_nothing_else(folder, counting, monkeypatch, caplog):
    write, left = recording._write_all, [3000]

    def full(fd: int, data: bytes) -> None:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(fd, data)

    with Keeper(folder, observer=counting) as keeper:
        tap = keeper.open(INFO, "9f2c")
        monkeypatch.setattr(recording, "_write_all", full)
        for seq in range(200):
            tap.packet(packet(seq, 10))
        keeper.flush()
        assert not tap.active and counting.stops == ["disk"]
        assert keeper.open(INFO, "next") is None and counting.stops == ["disk", "open"]
    kept = read(tap.path)
    assert kept == [packet(seq, 10) for seq in range(len(kept))]
    assert caplog.records[0].legato == {
        "stream": "9f2c",
        "reason": "disk",
        "why": "No space left on device",
    }


def test_a_disk_that_hangs_never_makes_a_stream_wait(folder, counting, monkeypatch):
    hangs, write = threading.Event(), recording._write_all
    with Keeper(folder, queue_bytes=10 * (1000 + ITEM_BYTES), observer=counting) as keeper:
        tap = keeper.open(INFO, "s")
        monkeypatch.setattr(recording, "_write_all", lambda fd, data: (hangs.wait(10), write(fd, data))[1])
        for seq in range(1000):
            tap.packet(packet(seq))  # would hang here
        assert not tap.active and counting.stops == ["slow"]
        hangs.set()
    kept = read(tap.path)
    assert kept == [packet(seq) for seq in range(len(kept))]


def test_a_folder_that_vanishes_is_survived(folder, counting):
    import shutil

    with Keeper(folder, observer=counting) as keeper:
        tap = keeper.open(INFO, "s")
        shutil.rmtree(folder)
        for seq in range(100):
            tap.packet(packet(seq))
        tap.close()
        keeper.flush()
        assert keeper.open(INFO, "t") is None and keeper.files == []


def test_a_packet_that_fits_no_record_ends_the_recording(folder, counting):
    with Keeper(folder, observer=counting) as keeper:
        tap = keeper.open(INFO, "s")
        tap.packet(packet(0))
        tap.packet(replace(packet(1), seq=-1))
        tap.packet(packet(2))
        keeper.flush()
    assert read(tap.path) == [packet(0)] and counting.stops == ["packet"]


def test_nothing_a_client_said_enters_the_log(folder, caplog):
    caplog.set_level(logging.DEBUG)
    with Keeper(folder, per_stream_bytes=3000) as keeper:
        keep(keeper, 20)
        keep(keeper, 0)
    said = " ".join(str(vars(record)) for record in caplog.records)
    assert "limit" in said and "passwd" not in said and "kitchen" not in said


def test_closing_twice_and_using_what_is_closed_is_harmless(folder):
    keeper = Keeper(folder)
    tap = keeper.open(INFO, "s")
    keeper.close()
    keeper.close()
    tap.packet(packet(0))
    tap.decision(Decision(kind="shed", modality="video", arrival=0.0))
    tap.close()
    tap.close()
    assert keeper.open(INFO, "t") is None and not tap.active
    assert read(tap.path) == []


def test_many_streams_at_once_are_kept_apart(folder):
    with Keeper(folder) as keeper:
        taps = [keeper.open(INFO, str(i)) for i in range(8)]

        def send(tap, number: int) -> None:
            for seq in range(50):
                tap.packet(packet(1000 * number + seq, 20))
            tap.close()

        threads = [threading.Thread(target=send, args=pair) for pair in zip(taps, range(8), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, tap in enumerate(taps):
        assert read(tap.path) == [packet(1000 * number + seq, 20) for seq in range(50)]


def test_a_crash_leaves_a_recording_that_replays(folder):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests.test_keep import INFO, Keeper, packet
keeper = Keeper({str(folder)!r})
tap = keeper.open(INFO, "s")
for seq in range(100):
    tap.packet(packet(seq))
keeper.flush()
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr
    with Keeper(folder) as keeper:  # and the folder is free again
        (path,) = keeper.files
        kept = read(path)
        assert kept == [packet(seq) for seq in range(len(kept))] and len(kept) >= 68  # all but one batch


def demo() -> RecordingReader:
    import runtime

    return RecordingReader(Path(runtime.__file__).parent / "bundles" / "talk" / "demo.legato")


def test_a_kept_stream_replays_to_the_same_clips(folder):
    """States, coverages, flags, pictures and sound of every clip, from the recording of what was received."""
    from encoders.clips import AudioSpec, ClipSpec, VideoSpec
    from runtime.receive import Receiver

    spec = ClipSpec(seconds=Fraction(2, 5), video=VideoSpec(frames=4, size=32), audio=AudioSpec(sample_rate=8000))
    items = list(demo().packets())[:700]
    with Keeper(folder) as keeper, keeper.open(demo().info, "s") as tap:
        for item in items:
            tap.decision(item) if isinstance(item, Decision) else tap.packet(item)
    again = RecordingReader(tap.path)

    def clips(info, packets):
        receiver = Receiver(info, spec, delay=0.1)
        closed = [clip for item in packets for clip in receiver.push(item, item.arrival)] + receiver.finish()
        return [plain(clip) for clip in closed], receiver.ledger.as_dict()

    def plain(clip):
        values = {f.name: getattr(clip, f.name) for f in fields(clip) if f.name not in ("decode_ms", "video", "audio")}
        content = [None if part is None else part.tobytes() for part in (clip.video, clip.audio)]
        return values, content

    before, after = clips(demo().info, items), clips(again.info, again.packets())
    assert before == after and len(before[0]) > 10
    assert len({values["state"]["video"] for values, _ in before[0]}) > 1, "a demo with losses in it"


@pytest.mark.slow
def test_a_kept_stream_replays_to_the_same_predictions(folder):
    from runtime import Pipeline, open_source

    with Keeper(folder) as keeper, keeper.open(demo().info, "s") as tap:
        for item in demo().packets():
            tap.decision(item) if isinstance(item, Decision) else tap.packet(item)
    pipeline = Pipeline.from_bundle("talk", device="cpu")
    before, after = (
        [prediction.as_dict(timings=False) for prediction in pipeline.run(open_source(path))]
        for path in (demo().path, tap.path)
    )
    assert before == after and len(before) > 50
