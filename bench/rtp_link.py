"""RTP for the bench and tests: ffmpeg as sender, a lossy relay on 127.0.0.1, and a link of two network namespaces.

The relay keeps two logs: what the sender sent, and what it let through. The namespaces' receiver keeps the same two:
what came to the interface (seen by a packet socket, before the firewall), and what came to the sockets behind it.
"""

import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench.damage import SIZE, moving_pictures
from imputation.channel import Channel, Profile
from runtime.datagrams import ETHERNET, Datagrams

RATE = 25  # pictures a second
PACKET_BYTES = 1200
GOP = 25  # frames: a key frame a second, so that short runs hold several
QUIET = 1.0  # seconds without a datagram after which the sender has ended


@dataclass(frozen=True, slots=True)
class Sent:
    """One datagram: when it came, in seconds, its channel (0 video, 1 audio), and whether it carries reports."""

    at: float
    channel: int
    control: bool
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How ffmpeg codes what it sends."""

    name: str
    video: tuple[str, ...] = ("-preset", "veryfast", "-bf", "0")
    audio: tuple[str, ...] = ("-c:a", "libopus", "-b:a", "32k")


CODINGS = (
    Coding(name="H.264, P only; Opus"),
    Coding(
        name="H.264, B frames; PCMU",
        video=("-preset", "veryfast", "-bf", "2"),
        audio=("-c:a", "pcm_mulaw", "-ar", "8000"),
    ),
    Coding(name="H.264, four slices; Opus", video=("-preset", "veryfast", "-bf", "0", "-slices", "4")),
    Coding(
        name="H.264, default preset; PCMA",
        video=("-preset", "medium", "-bf", "3"),
        audio=("-c:a", "pcm_alaw", "-ar", "8000"),
    ),
)


@dataclass(kw_only=True)
class Link:
    """What went in and what came out, with the description of both."""

    sdp: str
    sent: list[Sent] = field(default_factory=list)
    passed: list[Sent] = field(default_factory=list)


def command(coding: Coding, ports: Sequence[int], sdp: Path, seconds: float, speed: float, host: str) -> list[str]:
    """ffmpeg sending moving pictures and a tone; ``speed``: times real time.

    Nothing in the pictures stands still: a slice that is lost where nothing moves is concealed without a trace, and no
    truth could tell it from one that came.
    """
    pace = ["-readrate", f"{speed:g}"]
    raw = sdp.with_suffix(".gray")
    raw.write_bytes(b"".join(picture.tobytes() for picture in moving_pictures(round(seconds * RATE))))
    size = f"{SIZE[1]}x{SIZE[0]}"
    return [
        *("ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin"),
        *(*pace, "-f", "rawvideo", "-pixel_format", "gray", "-video_size", size, "-framerate", str(RATE)),
        *("-i", str(raw)),
        *(*pace, "-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={seconds:g}"),
        *("-map", "0:v", "-c:v", "libx264", "-g", str(GOP), "-pix_fmt", "yuv420p", "-threads", "1", *coding.video),
        *("-f", "rtp", f"rtp://{host}:{ports[0]}?pkt_size={PACKET_BYTES}"),
        *("-map", "1:a", "-ac", "1", *coding.audio, "-f", "rtp", f"rtp://{host}:{ports[1]}", "-sdp_file", str(sdp)),
    ]


def relay(
    coding: Coding,
    seconds: float,
    *,
    profile: Profile | None = None,
    seed: int = 0,
    speed: float = 4.0,
    to: Sequence[int] = (),
) -> Link:
    """Let ffmpeg send through a relay; what is not lost goes on to the ports ``to`` (video, audio), if any."""
    channel = None if profile is None else Channel(profile, seed)
    with ExitStack() as stack:
        ports = stack.enter_context(_pairs())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender = subprocess.Popen(
            command(coding, [p for p, _ in ports], folder / "x.sdp", seconds, speed, "127.0.0.1"),
            stdin=subprocess.DEVNULL,
        )
        stack.callback(_end, sender)
        link = Link(sdp="")
        for item in _received([s for _, pair in ports for s in pair], sender):
            link.sent.append(item)
            if channel is not None and channel.lost(MODALITY[item.channel], np.array([item.at]))[0]:
                continue
            link.passed.append(item)
            if to:
                with suppress(OSError):
                    out.sendto(item.data, ("127.0.0.1", to[item.channel] + item.control))
        link.sdp = (folder / "x.sdp").read_text()
    return link


MODALITY = ("video", "audio")


def lossy(sent: Sequence[Sent], profile: Profile, seed: int) -> list[Sent]:
    """What a channel lets through of a log, in order of arrival: the relay without sockets, delays included."""
    channel = Channel(profile, seed)
    out: list[Sent] = []
    for number, modality in enumerate(MODALITY):
        own = [s for s in sent if s.channel == number]
        times = np.array([s.at for s in own])
        lost, arrivals = channel.lost(modality, times), channel.arrivals(modality, times)
        out += [replace(s, at=float(at)) for s, gone, at in zip(own, lost, arrivals, strict=True) if not gone]
    return sorted(out, key=lambda s: s.at)


def _received(sockets: Sequence[socket.socket], sender: "subprocess.Popen[bytes] | None") -> Iterator[Sent]:
    """Datagrams in order of arrival until the sender has ended; sockets are pairs of RTP and RTCP."""
    with selectors.DefaultSelector() as selector:
        for place, one in enumerate(sockets):
            selector.register(one, selectors.EVENT_READ, place)
        start = time.monotonic()
        last = start + 9.0  # until the first
        while time.monotonic() - last < QUIET or (sender is not None and sender.poll() is None):
            for key, _ in selector.select(0.1):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                last = time.monotonic()
                yield Sent(last - start, key.data // 2, bool(key.data % 2), data)
            if sender is not None and sender.poll() not in (None, 0):
                raise RuntimeError(f"ffmpeg ended with {sender.returncode}")
            if sender is not None and sender.poll() == 0:
                last = min(last, time.monotonic())


@contextmanager
def _pairs(host: str = "127.0.0.1", count: int = 2) -> Iterator[list[tuple[int, list[socket.socket]]]]:
    """Pairs of neighbouring free ports, the first even, with their sockets."""
    with ExitStack() as stack:
        found: list[tuple[int, list[socket.socket]]] = []
        while len(found) < count:
            first, second = _udp(host, 0), None
            port = first.getsockname()[1]
            try:
                if port % 2 == 0:
                    second = _udp(host, port + 1)
            except OSError:
                pass
            if second is None:
                first.close()
                continue
            found.append((port, [stack.enter_context(first), stack.enter_context(second)]))
        yield found


def _udp(host: str, port: int) -> socket.socket:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    try:
        out.bind((host, port))
    except OSError:
        out.close()
        raise
    return out


def free_ports(count: int = 2) -> list[int]:
    """Even ports that are free, and their neighbours too, a moment ago."""
    with _pairs(count=count) as pairs:
        return [port for port, _ in pairs]


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


# ---------------------------------------------------------------------------------------------------------- namespaces

PORTS = (5004, 5006)  # nobody else is in the namespace


def namespaces_missing() -> str:
    """Why the link of namespaces cannot be made here; "" if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft", "ffmpeg") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed"
    name = f"legato-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"ip netns add: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def namespaces(coding: Coding, seconds: float, percent: int, *, speed: float = 4.0) -> Link:
    """ffmpeg in one namespace, the receiver in another, which drops ``percent`` of 100 at random by nft."""
    near, far = f"legato-s-{os.getpid()}", f"legato-r-{os.getpid()}"
    with ExitStack() as stack:
        for name in (near, far):
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
        _run(*f"ip link add lgs netns {near} type veth peer name lgr netns {far}".split())
        for name, device, host in ((near, "lgs", "10.86.0.1"), (far, "lgr", "10.86.0.2")):
            _run(*f"ip -n {name} addr add {host}/24 dev {device}".split())
            _run(*f"ip -n {name} link set {device} up".split())
        rules = (
            "table inet legato {\nchain input {\ntype filter hook input priority 0;\n"
            f"udp dport {PORTS[0]}-{PORTS[1] + 1} numgen random mod 100 < {percent} drop\n}}\n}}\n"
        )
        subprocess.run(["ip", "netns", "exec", far, "nft", "-f", "-"], input=rules.encode(), check=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = subprocess.Popen(
            ["ip", "netns", "exec", far, sys.executable, "-m", "bench.rtp_link", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        stack.callback(_end, receiver)
        assert receiver.stdout is not None and receiver.stdout.readline() == b"ready\n", "the receiver did not start"
        send = command(coding, PORTS, folder / "x.sdp", seconds, speed, "10.86.0.2")
        subprocess.run(["ip", "netns", "exec", near, *send], check=True, stdin=subprocess.DEVNULL)
        receiver.wait(30)
        receiver.stdout.close()
        logs = [_load(folder / name) for name in ("sent", "passed")]
        return Link(sdp=(folder / "x.sdp").read_text(), sent=logs[0], passed=logs[1])


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _receive_here(folder: Path) -> None:
    """Inside the receiver's namespace: log what comes to the interface and what comes through."""
    sockets = [_udp("10.86.0.2", port + control) for port in PORTS for control in (0, 1)]
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    tap.bind(("lgr", 0))
    print("ready", flush=True)
    passed = list(_received(sockets, None))
    datagrams, sent = Datagrams(ETHERNET), []
    tap.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found = datagrams.read(tap.recv(65536))
            if found is not None and PORTS[0] <= found.target_port <= PORTS[1] + 1:
                channel, control = divmod(found.target_port - PORTS[0], 2)
                sent.append(Sent(0.0, channel, bool(control), found.payload))
    _save(folder / "sent", sent)
    _save(folder / "passed", passed)


def _save(path: Path, items: Sequence[Sent]) -> None:
    path.write_text("".join(f"{s.at!r} {s.channel} {int(s.control)} {s.data.hex()}\n" for s in items))


def _load(path: Path) -> list[Sent]:
    rows = (line.split() for line in path.read_text().splitlines())
    return [Sent(float(at), int(channel), control == "1", bytes.fromhex(data)) for at, channel, control, data in rows]


if __name__ == "__main__":
    _receive_here(Path(sys.argv[1]))
