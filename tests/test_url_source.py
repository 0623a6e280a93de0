"""Cameras at an address: which are opened, their times on the capture clock, what becomes of a server that leaves."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.errors import SourceError
from encoders.media import AudioTrack, VideoTrack, write_media
from encoders.media.demux import Track
from encoders.media.live import LiveMedia, LivePacket, check_address, without_secrets
from runtime.packet import Decision, Packet
from runtime.sources.device import DevicePolicy
from runtime.sources.joined import choose, open_devices
from runtime.sources.url import SETTLING_SECONDS, TICK, StreamAxis, UrlCamera, shown
from tests.devices import MjpegCamera, read
from tests.fakes import FakeClock

QUICK = DevicePolicy(open_seconds=8.0, stall_seconds=1.0, least_wait=0.05, longest_wait=0.1)
MS = Fraction(1, 1000)


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "concat:a|b",
        "/etc/passwd",
        "ftp://x/a",
        "data:image/jpeg;base64,AA",
        "crypto:http://x",
        "",
    ],
)
def test_only_protocols_of_the_list_are_opened(address):
    with pytest.raises(SourceError, match="which is not opened; use one of http, https, rtsp"):
        check_address(address)


def test_an_address_is_shown_without_its_secrets():
    assert without_secrets("rtsp://me:secret@cam.local:554/live?key=1") == "rtsp://cam.local:554/live"
    assert without_secrets("http://[::1]:8080/a") == "http://[::1]:8080/a"
    assert "secret" not in without_secrets("http://me:secret@cam:port/x")
    assert shown("https://me:pw@cam/x?y") == "https://cam/x"


def test_nobody_there_is_one_sentence_without_secrets():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match=rf"^http://127\.0\.0\.1:{port}/x cannot be opened \(connection refused\)$"):
        LiveMedia(f"http://me:secret@127.0.0.1:{port}/x", open_seconds=2)


# -- a server of our own --------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """A TCP server that answers every request with the same bytes, and then says nothing more, or hangs up."""

    body: bytes
    kind: str = "video/mp2t"
    hangs_up: bool = False

    def __enter__(self) -> "Answer":
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/live"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._open, self._socket):
            each.close()

    def _serve(self) -> None:
        try:
            while True:
                client, _ = self._socket.accept()
                self._open.append(client)
                client.recv(4096)
                head = f"HTTP/1.0 200 OK\r\nContent-Type: {self.kind}\r\n"
                head += f"Content-Length: {len(self.body)}\r\n" * self.hangs_up
                client.sendall(f"{head}\r\n".encode() + self.body)
                if self.hangs_up:
                    client.close()
        except OSError:
            return


@pytest.mark.parametrize(
    "body", [b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n", b"ffconcat version 1.0\n"]
)
def test_a_server_that_sends_a_playlist_opens_nothing(body):
    playlist = Answer(body, "application/vnd.apple.mpegurl", hangs_up=True)
    with playlist as server, pytest.raises(SourceError, match="cannot be opened"):
        LiveMedia(server.address, open_seconds=3, read_seconds=1)


def test_a_server_that_says_nothing_is_left_after_the_time_out():
    with Answer(b"") as server:
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"did not answer within 0\.3 s|cannot be opened"):
            LiveMedia(server.address, open_seconds=0.3, read_seconds=0.3)
        assert time.monotonic() - began < 3


@pytest.fixture(scope="module")
def transport_stream(tmp_path_factory) -> bytes:
    """Two seconds of H.264 and AAC."""
    frames = [np.full((48, 64), 40 + 3 * i, np.uint8) for i in range(50)]
    t = np.arange(32_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    path = tmp_path_factory.mktemp("ts") / "a.ts"
    return Path(write_media(path, [VideoTrack(frames=frames), AudioTrack(samples=tone)])).read_bytes()


def test_packets_stay_coded_and_both_modalities_come(transport_stream):
    with Answer(transport_stream, hangs_up=True) as server, LiveMedia(server.address) as media:
        assert media.timed and media.tracks["video"].codec == "h264" and media.tracks["audio"].codec == "aac"
        got = list(media.packets())
    assert {p.modality for p in got} == {"video", "audio"} and all(p.payload and p.time is not None for p in got)
    with Answer(transport_stream, hangs_up=True) as server, LiveMedia(server.address, modalities=("audio",)) as media:
        assert {p.modality for p in media.packets()} == {"audio"} == set(media.tracks)


def test_a_stream_that_stalls_breaks_off_after_the_time_out(transport_stream):
    seen = []
    with Answer(transport_stream) as server, LiveMedia(server.address, read_seconds=0.4) as media:
        began = time.monotonic()
        with pytest.raises(SourceError, match="broke off"):
            for packet in media.packets():
                seen.append(packet)
        assert time.monotonic() - began < 5
    video = [p for p in seen if p.modality == "video"]
    assert len(video) >= 40 and video[0].keyframe and video[0].payload.startswith(b"\0\0\0\1")
    assert len({p.time for p in video}) == len(video)


def test_a_camera_over_http_is_a_live_source_that_comes_back():
    with MjpegCamera(time.monotonic()) as camera, UrlCamera(camera.address, policy=QUICK, seed=0) as source:
        assert source.info.codecs["video"].codec == "mjpeg" and source.info.sequence_numbers
        assert source.info.codecs["video"].time_base == TICK and "audio" not in source.info.codecs
        first = read(source, Packet)
        assert first.payload.startswith(b"\xff\xd8") and first.arrival - first.seconds < 0.5
        camera.kill()
        lost = read(source, Decision)
        assert (lost.kind == "device_lost" and "broke off" in lost.reason) or "ended" in lost.reason
        camera.start()
        assert read(source, Decision).kind == "device_back"
        again = read(source, Packet)
        assert again.seq > first.seq + 1 and again.seconds > first.seconds


@pytest.mark.device
@pytest.mark.slow
def test_mpeg_ts_over_udp_is_a_camera_too():
    ffmpeg = _ffmpeg()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = f"udp://127.0.0.1:{port}?pkt_size=1316"
    command = [ffmpeg, "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25", "-f", "lavfi", "-i"]
    command += ["sine=frequency=440:sample_rate=16000", "-c:v", "libx264", "-g", "10", "-tune", "zerolatency"]
    process = subprocess.Popen([*command, "-c:a", "aac", "-t", "30", "-f", "mpegts", target])
    try:
        with UrlCamera(f"udp://127.0.0.1:{port}", policy=DevicePolicy(open_seconds=15.0), seed=0) as source:
            assert {m: c.codec for m, c in source.info.codecs.items()} == {"video": "h264", "audio": "aac"}
            assert not source.info.sequence_numbers
            seen = [read(source, Packet, 5) for _ in range(60)]
            assert {p.modality for p in seen} == {"video", "audio"} and all(p.arrival is not None for p in seen)
    finally:
        process.kill()
        process.wait()


def _ffmpeg() -> str:
    import shutil

    found = shutil.which("ffmpeg")
    if found is None:
        pytest.skip("ffmpeg is not installed")
    return found


# -- times ----------------------------------------------------------------------------------------------------------


def live_packet(ms: int | None, modality: str = "video") -> LivePacket:
    return LivePacket(
        modality=modality, payload=b"x", time=ms, decode_time=ms, duration=0, keyframe=True, disposable=False
    )


def test_a_backlog_at_the_start_does_not_make_a_stream_late_for_ever():
    """Two seconds of it come at once, then it goes on live: what is captured now is captured now."""
    axis = StreamAxis({"video": MS})
    out = []
    for i in range(50):
        out += axis.place(live_packet(90_000 + 40 * i), 100.0)
    assert out == []
    for i in range(50, 70):
        out += axis.place(live_packet(90_000 + 40 * i), 100.0 + 0.04 * (i - 49))
    assert [b - a for a, b in pairwise([at for _, at, _ in out])] == [40] * 69
    assert out[69][1] / 1000 == pytest.approx(100.0 + 0.04 * 20, abs=0.001)
    assert out[69][2] == out[69][1]


def test_both_modalities_are_moved_alike():
    axis = StreamAxis({"video": MS, "audio": MS})
    out = []
    for i in range(30):
        out += axis.place(live_packet(5000 + 40 * i, "video" if i % 2 else "audio"), 1.0 + 0.04 * i)
    assert {at - packet.time for packet, at, _ in out} == {-4000}


def test_a_stream_that_ends_while_its_times_are_learned_loses_nothing():
    axis = StreamAxis({"video": MS})
    assert axis.place(live_packet(0), 10.0) == [] and SETTLING_SECONDS > 0
    assert [at for _, at, _ in axis.settle()] == [10_000] and axis.settle() == []


def test_pictures_without_times_are_stamped_when_they_come_and_never_twice_alike():
    axis = StreamAxis({"video": TICK})
    at = [axis.place(live_packet(None), now)[0][1] for now in (1.0, 1.0, 0.5, 2.0)]
    assert at == [90_000, 90_001, 90_002, 180_000]


# -- what is chosen -------------------------------------------------------------------------------------------------


def test_an_address_brings_its_own_sound_unless_a_microphone_is_named():
    alone = choose("rtsp://cam/live", None, FakeClock())
    assert [f.name for f in alone.feeds] == ["rtsp://cam/live"] == list(alone.required)
    both = choose("rtsp://cam/live", "headset", FakeClock())
    assert [f.name for f in both.feeds] == ["rtsp://cam/live", "microphone headset"]
    assert choose("2", "none", FakeClock()).feeds[0].name == "camera 2"
    assert choose("opencv:rtsp://cam/x", "none", FakeClock()).feeds[0].camera == "rtsp://cam/x"
    assert choose(None, None, FakeClock()).required == ()


def test_a_reconnect_that_changes_the_codec_is_a_format_change():
    class Changing:
        """A server that gives H.264 first and MJPEG after it was restarted."""

        lives = 0

        def __init__(self, address: str, **options: Any) -> None:
            Changing.lives += 1
            self.timed = False
            self.tracks = {"video": Track(codec=("h264", "mjpeg")[Changing.lives > 1], time_base=MS)}

        def packets(self) -> Iterator[LivePacket]:
            yield live_packet(None)
            time.sleep(0.05)
            if Changing.lives > 1:
                time.sleep(1.0)

        def __enter__(self) -> "Changing":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    with UrlCamera("http://cam/x", policy=QUICK, opener=Changing, seed=0) as source:
        assert source.info.codecs["video"].codec == "h264"
        decisions = [read(source, Decision) for _ in range(3)]
        assert [d.kind for d in decisions] == ["device_lost", "format_change", "device_back"]
        assert decisions[1].codec.codec == "mjpeg" and "it ended" in decisions[0].reason


def test_open_devices_refuses_an_address_that_nobody_answers(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match=rf"^http://127\.0\.0\.1:{port}/ cannot be used: cannot be opened"):
        open_devices(f"http://127.0.0.1:{port}/")
