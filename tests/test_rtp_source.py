"""RTP sources: what a stream carries, told from its packets; sockets on loopback; ffmpeg through lossy links."""

import random
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.clock import SystemClock, VirtualClock
from runtime.errors import SourceError, UsageError
from runtime.recognise import LEAST, Sample, recognise
from runtime.rtcp import Goodbye, pack_rtcp
from runtime.rtp import RtpPacket
from runtime.sources import open_devices
from runtime.sources.base import LiveSource
from runtime.sources.rtp_udp import open_rtp
from tests.fakes import FakeClock
from tests.test_rtp_session import AUDIO_SSRC, IDR, SOUND, P, audio, video


def rtp(n, **fields):
    return replace(RtpPacket(payload_type=97, seq=n, timestamp=960 * n, ssrc=5, payload=SOUND), **fields)


def test_sound_and_pictures_are_recognised_by_their_packets():
    assert recognise([rtp(n) for n in range(LEAST)]).encoding == "OPUS"
    pcmu = [rtp(n, payload_type=0, payload=b"\xff" * 160, timestamp=160 * n) for n in range(LEAST)]
    assert recognise(pcmu).encoding == "PCMU"
    h264 = [rtp(n, payload=IDR if n == 0 else P, timestamp=3600 * n, marker=True) for n in range(LEAST)]
    assert recognise(h264).encoding == "H264"


@pytest.mark.parametrize(
    "packets",
    [
        [rtp(n) for n in range(LEAST - 1)],  # too few
        [rtp(n * 999 % 65536) for n in range(20)],  # numbers that do not grow
        [rtp(n, timestamp=1000 * n) for n in range(20)],  # lengths and times disagree
        [rtp(n, payload=random.Random(n).randbytes(100)) for n in range(20)],  # encrypted
        [rtp(n, payload_type=0, payload=b"\xff" * 160, timestamp=90 * n) for n in range(20)],
        [rtp(n, payload_type=34) for n in range(20)],  # another codec's number
    ],
)
def test_what_is_not_certain_is_not_recognised(packets):
    assert recognise(packets) is None


def test_a_sample_is_bounded_and_prefers_the_sender_with_more():
    sample = Sample()
    for n in range(200):
        sample.add(rtp(n))
        sample.add(rtp(n, ssrc=n, payload=b"x"))
    assert len(sample.packets) <= 8 and all(len(p) <= 64 for p in sample.packets.values())
    assert sample.formats()["audio"].payload_type == 97


# ------------------------------------------------------------------------------------------------------------- sockets


@pytest.fixture
def ports():
    """Two neighbouring ports that were free a moment ago."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
                try:
                    second.bind(("127.0.0.1", port + 1))
                    return port, port + 1
                except OSError:
                    continue


def described(tmp_path, ports, address="127.0.0.1"):
    path = tmp_path / "call.sdp"
    path.write_text(f"v=0\nc=IN IP4 {address}\nm=audio {ports[0]} RTP/AVP 97\na=rtpmap:97 opus/48000/2\n")
    return path


def send(datagrams, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for data in datagrams:
            out.sendto(data, ("127.0.0.1", port))


def test_a_description_opens_sockets_and_packets_come(tmp_path, ports):
    with open_rtp(described(tmp_path, ports)) as source:
        assert isinstance(source, LiveSource)
        assert (source.info.name, source.info.codecs["audio"].codec) == ("call", "opus")
        assert source.info.sequence_numbers
        send([audio(n) for n in (0, 1, 3)], ports[0])
        got = [source.read(2.0) for _ in range(3)]
        assert [p.seq for p in got] == [0, 1, 3]
        assert got[2].arrival - got[1].arrival >= 0.03, "the hole was waited for"
        assert source.read(0.01) is None and not source.ended


def test_the_stream_ends_with_the_last_goodbye(tmp_path, ports, monkeypatch):
    monkeypatch.setattr("runtime.sources.rtp_udp.AFTER", 0.05)
    with open_rtp(described(tmp_path, ports)) as source:
        send([audio(n) for n in range(3)], ports[0])
        assert [source.read(2.0).seq for _ in range(3)] == [0, 1, 2]
        send([pack_rtcp(Goodbye(ssrcs=(AUDIO_SSRC,)))], ports[1])
        assert list(source.packets()) == []
        assert source.ended


def test_an_address_without_a_description_shows_what_it_carries(ports):
    clock = SystemClock()

    def talk():
        for n in range(60):
            send([audio(n)] + ([video(n // 2)] if n % 2 else []), ports[0])
            clock.sleep_until(clock.now() + 0.003)

    thread = threading.Thread(target=talk)
    thread.start()
    with open_rtp(f"rtp://127.0.0.1:{ports[0]}", wait=5.0) as source:
        assert {m: c.codec for m, c in source.info.codecs.items()} == {"video": "h264", "audio": "opus"}
        first = [source.read(1.0) for _ in range(10)]
    thread.join()
    assert {p.seq for p in first if p.modality == "audio"} >= {0, 1, 2}  # what was looked at is not lost
    assert source.ended and source.read(0.0) is None


def test_closing_lets_the_ports_go_and_may_be_done_twice(tmp_path, ports):
    path = described(tmp_path, ports)
    source = open_rtp(path)
    source.close()
    source.close()
    open_rtp(path).close()


def test_a_silent_sender_is_lost_and_comes_back(tmp_path, ports):
    clock = FakeClock(100.0)
    with open_rtp(described(tmp_path, ports), clock=clock) as source:
        for n in (0, 1):
            source._inbox._put(audio(n), 0)
        assert [source.read(0.0).seq for _ in range(2)] == [0, 1]
        clock.move(3.0)
        lost = source.read(0.0)
        assert (lost.kind, lost.modality, lost.reason) == ("device_lost", "audio", "nothing from its sender for 2 s")
        source._inbox._put(audio(2, ticks=3 * 48_000), 0)
        assert {getattr(i, "kind", "packet") for i in (source.read(0.0), source.read(0.0))} == {"packet", "device_back"}


def test_nothing_arrives_before_the_reader_was_told_that_nothing_had(tmp_path, ports):
    clock = FakeClock(100.0)
    with open_rtp(described(tmp_path, ports), clock=clock) as source:
        for n in (0, 1):
            source._inbox._put(audio(n), 0)
        assert [source.read(0.0).arrival for _ in range(2)] == [100.0, 100.0]
        clock.move(1.0)
        assert source.read(0.0) is None
        clock.seconds = 100.5  # a datagram that the thread had stamped, and not yet handed over
        source._inbox._put(audio(2), 0)
        assert source.read(0.0).arrival == 101.0


def test_what_nobody_reads_is_dropped_and_counted(tmp_path, ports, monkeypatch):
    monkeypatch.setattr("runtime.sources.rtp_udp.BACKLOG", 5)
    with open_rtp(described(tmp_path, ports)) as source:
        for n in range(8):
            source._inbox._put(audio(n), 0)
        assert source.overruns == 3
        assert [source.read(0.0).seq for _ in range(5)] == [0, 1, 2, 3, 4]


def test_addresses_and_files_that_cannot_be_used_say_why(tmp_path, ports):
    empty = tmp_path / "empty.sdp"
    empty.write_text("v=0\nm=audio 5004 RTP/AVP 3\n")
    cases = {
        "rtp://": "rtp:// is not an address that RTP can come to; write rtp://HOST:PORT, such as rtp://0.0.0.0:5004",
        "rtp://host": (
            "rtp://host is not an address that RTP can come to; write rtp://HOST:PORT, such as rtp://0.0.0.0:5004"
        ),
        "rtp://h:99999": (
            "rtp://h:99999 is not an address that RTP can come to; write rtp://HOST:PORT, such as rtp://0.0.0.0:5004"
        ),
        tmp_path / "no.sdp": f"session description {tmp_path / 'no.sdp'} cannot be read (No such file or directory)",
        empty: f"{empty} describes nothing that is played here; H.264, Opus, PCMU and PCMA are",
        described(tmp_path, ports, "203.0.113.9"): (
            f"UDP port {ports[0]} of 203.0.113.9 cannot be opened for RTP (Cannot assign requested address); "
            "choose an address of this machine and a free port"
        ),
    }
    for target, sentence in cases.items():
        with pytest.raises(SourceError) as caught:
            open_rtp(target)
        assert str(caught.value) == sentence


def test_a_port_to_which_nothing_or_nonsense_comes_says_so(ports):
    where = f"rtp://127.0.0.1:{ports[0]}"
    with pytest.raises(SourceError) as caught:
        open_rtp(where, wait=0.05)
    assert str(caught.value) == (
        f"{where}: within 0.05 s nothing came; start its sender, or give a session description (*.sdp)"
    )


# -------------------------------------------------------------------------------------------------------------- ffmpeg


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("coding", [0, 1])
def test_every_frame_that_ffmpegs_lost_packets_spoiled_is_found(coding):
    from bench.rtp import run_log
    from bench.rtp_link import CODINGS, relay

    link = relay(CODINGS[coding], 4.0, speed=8.0)
    for profile in ("clean", "iid-5", "iid-20", "wifi-burst", "congestion-severe"):
        row = run_log(CODINGS[coding], link, profile, range(1 if profile == "clean" else 2))
        assert row["recall"] == 1.0, row
        assert row["false_alarms"] <= 0.03, row
        assert row["sound_lost"] == row["sound_found"], row


@pytest.mark.device
@pytest.mark.slow
def test_the_same_through_network_namespaces():
    from bench.rtp import run_namespaces
    from bench.rtp_link import CODINGS, namespaces_missing

    if reason := namespaces_missing():
        pytest.skip(reason)
    row = run_namespaces(CODINGS[0], 4.0, 10)
    assert row["lost"] > 0 and row["recall"] == 1.0 and row["sound_lost"] == row["sound_found"], row


def test_a_camera_may_be_a_session_description(tmp_path: Path) -> None:
    path = tmp_path / "cam.sdp"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path.write_text(f"v=0\r\nc=IN IP4 127.0.0.1\r\nm=audio {port} RTP/AVP 0\r\n")
    with open_devices(str(path), clock=VirtualClock(3.0)) as source:
        assert set(source.info.codecs) == {"audio"} and source.clock.now() == 3.0
    with pytest.raises(UsageError, match=r"cam\.sdp brings its own sound; leave microphone 'usb' out, or use none"):
        open_devices(str(path), "usb")
    with pytest.raises(SourceError, match="describes nothing that is played here"):
        open_devices(str(path), "none")
