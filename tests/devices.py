"""Cameras and microphones that need no hardware: fakes for tests in a process, stand-ins for tests of the real thing.

Fakes are moved by hand and never sleep. Stand-ins are real sources of packets: a sound server of our own with a
microphone that is a pipe, and a web server that sends a camera's pictures; both play flashes and beeps of which it is
known when they happen.
"""

import contextlib
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

PERIOD = 1.0  # seconds from one flash and beep to the next
FLASH = 0.12  # seconds that it lasts
RATE = 48_000  # Hz
FPS = 25
SIZE = (160, 120)


# -- fakes ----------------------------------------------------------------------------------------------------------


class FakeCapture:
    """What ``cv2.VideoCapture`` is to us: pictures that are put in by hand, or whatever ``script`` does."""

    def __init__(self, *, stamps: Callable[[int], float] | None = None) -> None:
        self.pictures: queue.Queue[np.ndarray | None] = queue.Queue()
        self.released = threading.Event()
        self.hang = threading.Event()  # while set, read() does not come back
        self.count = 0
        self._stamps = stamps or (lambda n: 0.0)

    def show(self, level: int = 100, size: tuple[int, int] = (48, 64)) -> None:
        """A picture of one grey."""
        self.pictures.put(np.full((*size, 3), level, np.uint8))

    def fail(self) -> None:
        """From now on nothing can be read."""
        for _ in range(20):
            self.pictures.put(None)

    def read(self) -> tuple[bool, Any]:
        while self.hang.is_set() and not self.released.is_set():
            time.sleep(0.005)
        while not self.released.is_set():
            try:
                picture = self.pictures.get(timeout=0.01)
            except queue.Empty:
                continue
            self.count += picture is not None
            return picture is not None, picture
        return False, None

    def get(self, prop: int) -> float:
        return self._stamps(self.count) * 1e3

    def set(self, prop: int, value: float) -> bool:
        return True

    def isOpened(self) -> bool:
        return not self.released.is_set()

    def release(self) -> None:
        self.released.set()


class PortAudioError(Exception):
    """As sounddevice has it."""


@dataclass
class FakeStream:
    """A RawInputStream whose callback the test calls."""

    settings: dict[str, Any]
    running: bool = False

    def start(self) -> None:
        self.running = True

    def abort(self, ignore_errors: bool = True) -> None:
        self.running = False

    def close(self, ignore_errors: bool = True) -> None:
        self.running = False

    def give(self, samples: np.ndarray, adc: float, current: float | None = None, overflow: bool = False) -> None:
        """One block; times in seconds of the fake sound card."""
        times = SimpleNamespace(inputBufferAdcTime=adc, currentTime=adc if current is None else current)
        status = SimpleNamespace(input_overflow=overflow)
        self.settings["callback"](samples.tobytes(), len(samples), times, status if overflow else None)

    def vanish(self) -> None:
        """The device was unplugged."""
        self.settings["finished_callback"]()


@dataclass
class FakeSoundCard:
    """What the module ``sounddevice`` is to us: inputs, and streams that tests feed."""

    devices: list[dict[str, Any]] = field(default_factory=lambda: [sound_input("Built-in Audio")])
    refuse: str = ""  # what opening raises
    takes: Callable[[int, str, int], bool] = lambda rate, kind, channels: True
    streams: list[FakeStream] = field(default_factory=list)
    restarts: int = 0
    PortAudioError: type[Exception] = PortAudioError

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "Fake"}]

    def query_devices(self, kind: str | None = None) -> Any:
        if kind is None:
            return self.devices
        for number, device in enumerate(self.devices):
            if device["max_input_channels"]:
                return device | {"index": number}
        raise ValueError("no input device")

    def check_input_settings(self, device: int, channels: int, dtype: str, extra: Any, rate: int) -> None:
        if not self.takes(rate, dtype, channels):
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def RawInputStream(self, **settings: Any) -> FakeStream:
        if self.refuse:
            raise PortAudioError(self.refuse)
        self.streams.append(FakeStream(settings))
        return self.streams[-1]

    def _terminate(self) -> None:
        self.restarts += 1

    def _initialize(self) -> None:
        pass


def sound_input(name: str, rate: int = 48_000, channels: int = 2) -> dict[str, Any]:
    """A device as sounddevice lists it."""
    return {"name": name, "hostapi": 0, "max_input_channels": channels, "default_samplerate": float(rate)}


# -- what the stand-ins show ----------------------------------------------------------------------------------------


def flashing(at: float) -> bool:
    """Whether the flash is on, and the beep sounds, ``at`` seconds after the stand-ins' common start."""
    return at >= 0 and at % PERIOD < FLASH


def flash_picture(at: float) -> np.ndarray:
    """White while it flashes; else dark, with a bar that moves, so that no two pictures are alike."""
    width, height = SIZE
    picture = np.full((height, width, 3), 235 if flashing(at) else 20, np.uint8)
    x = int(at * 40) % (width - 8)
    picture[:10, x : x + 8] = 128
    return picture


def beep(start: float, samples: int) -> np.ndarray:
    """int16 (S,): a tone while it beeps, else a murmur."""
    t = start + np.arange(samples) / RATE
    on = (t % PERIOD < FLASH) & (t >= 0)
    sound = np.where(on, 0.5, 0.003) * np.sin(2 * np.pi * 1000 * t)
    return (sound * 32767).astype("<i2")


# -- stand-ins ------------------------------------------------------------------------------------------------------


def missing_for_sound() -> str:
    """Why there can be no virtual microphone here; "" where there can."""
    for program in ("pulseaudio",):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "libasound2-plugins is not installed"
    try:
        import sounddevice  # noqa: F401
    except OSError:
        return "PortAudio is not installed"
    return ""


class VirtualMicrophone:
    """A PulseAudio of our own whose only input is a pipe that plays ``beep`` in real time.

    ALSA's default device, to a process with ``environment``, is that input. ``kill`` and ``start`` again are what an
    unplugged microphone looks like. ``start_at`` is time.monotonic() of the first beep's start.
    """

    def __init__(self, folder: Path, start_at: float) -> None:
        self.folder, self.start_at = folder, start_at
        self.environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
        }
        self._pipe = folder / "microphone.fifo"
        self._server: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._player: threading.Thread | None = None
        (folder / ".asoundrc").write_text(
            'pcm.!default { type pulse device "virtual" hint { show on description "Virtual microphone" } }\n'
            "ctl.!default { type pulse }\n"
        )

    def start(self) -> None:
        """Start the server, wait until it answers, and play."""
        arguments = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes"]
        modules = (
            f"module-native-protocol-unix auth-anonymous=1 socket={self.folder}/native",
            f"module-pipe-source source_name=virtual file={self._pipe} format=s16le rate={RATE} channels=1",
        )
        loads = [part for module in modules for part in ("-L", module)]
        for left in (self.folder / "native", self._pipe):
            left.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            ["pulseaudio", *arguments, *loads],
            env=os.environ | self.environment | {"PULSE_RUNTIME_PATH": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait(lambda: (self.folder / "native").exists() and self._pipe.exists(), "pulseaudio did not start")
        self._stop = threading.Event()
        self._player = threading.Thread(target=self._play, args=(self._stop,), daemon=True)
        self._player.start()

    def kill(self) -> None:
        """As if unplugged."""
        self._stop.set()
        if self._player is not None:
            self._player.join(2)
        if self._server is not None:
            self._server.kill()
            self._server.wait(5)
            self._server = None

    def _play(self, stop: threading.Event) -> None:
        """10 ms at a time, when it is due: what lies in the pipe is late sound."""
        step = RATE // 100
        descriptor = os.open(self._pipe, os.O_WRONLY)
        with contextlib.suppress(OSError), os.fdopen(descriptor, "wb", buffering=0) as pipe:
            sent = round((time.monotonic() - self.start_at) * RATE)
            while not stop.is_set():
                sent = max(sent, round((time.monotonic() - self.start_at - 0.05) * RATE))  # nobody listened: gone
                at = self.start_at + (sent + step) / RATE  # a block can be given when its last sample has sounded
                if (wait := at - time.monotonic()) > 0:
                    time.sleep(wait)
                pipe.write(beep(sent / RATE, step).tobytes())
                sent += step

    def __enter__(self) -> "VirtualMicrophone":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class MjpegCamera:
    """A camera at ``http://127.0.0.1:PORT/``: multipart JPEG in real time, each picture sent when it is taken."""

    def __init__(self, start_at: float) -> None:
        self.start_at = start_at
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/camera.mjpg"
        self._server: ThreadingHTTPServer | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._send(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address, daemon_threads = True, True

            def handle_error(self, *_: object) -> None:
                pass

        self._stop = threading.Event()
        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """As if its cable was pulled: connections break, nobody answers."""
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _send(self, request: BaseHTTPRequestHandler) -> None:
        stop = self._stop
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        number = int((time.monotonic() - self.start_at) * FPS) + 1
        with contextlib.suppress(OSError):
            while not stop.is_set():
                at = number / FPS
                if (wait := self.start_at + at - time.monotonic()) > 0:
                    time.sleep(wait)
                coded = cv2.imencode(".jpg", flash_picture(at), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(coded)}\r\n\r\n"
                request.wfile.write(head.encode() + coded + b"\r\n")
                number += 1
        request.close_connection = True

    def __enter__(self) -> "MjpegCamera":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of this process while inside."""
    kept = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait(ready: Callable[[], bool], failure: str, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise RuntimeError(failure)
        time.sleep(0.02)


def read(source: Any, kind: type, seconds: float = 8.0) -> Any:
    """The next item of a kind."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        item = source.read(0.05)
        if isinstance(item, kind):
            return item
    raise AssertionError(f"no {kind.__name__} came")
