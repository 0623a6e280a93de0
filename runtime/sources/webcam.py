"""Webcam: pictures of a camera of this machine, each a JPEG from the moment it was captured.

Two threads: one only reads, so that the driver's queue never holds old pictures; the other codes the newest one. What
was overtaken before it was coded is a lost packet, by its number. The JPEG is what the pipeline sees and what a
recording keeps, so that a replay sees the same (quality 90).

OpenCV is imported when a camera is opened.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from runtime.clock import Clock, SystemClock
from runtime.errors import SourceError
from runtime.jitter import TransitFloor
from runtime.packet import CodecConfig
from runtime.sources.device import DeviceSource, Session

QUALITY = 90  # of the JPEG
TICK = Fraction(1, 90_000)  # seconds; what video is usually counted in
SIZE = (640, 480)  # asked for; no encoder looks at more
RATE = 30.0  # frames a second asked for
LONGEST_LATENCY = 1.0  # seconds between a stamp and its reading; more, and the stamp means something else
REFUSED_READS = 10  # in a row, before a camera counts as gone
LINUX_DEVICES = Path("/dev")
LINUX_NAMES = Path("/sys/class/video4linux")
# OpenCV's ways to a camera, by system; the first that opens is taken
BACKENDS = {"linux": ("CAP_V4L2",), "darwin": ("CAP_AVFOUNDATION",), "win32": ("CAP_MSMF", "CAP_DSHOW")}


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def read(self) -> tuple[bool, Any]: ...
    def get(self, prop: int) -> float: ...
    def set(self, prop: int, value: float) -> bool: ...
    def isOpened(self) -> bool: ...  # OpenCV's name
    def release(self) -> None: ...


class FrameClock:
    """When a frame was captured, on the runtime's clock, from the driver's stamp where that can be believed.

    V4L2 stamps with the machine's monotonic clock: ``shift`` brings it to ours, and a stamp that lies up to a second
    before its reading is taken as it is. A stamp on an axis of its own that goes on as fast as ours is mapped by the
    least delay seen. All else (no stamp, one that stands or jumps) is replaced by the time of reading.
    """

    def __init__(self, shift: float = 0.0) -> None:
        self._shift = shift
        self._floor = TransitFloor()
        self._before: tuple[float, float] | None = None  # stamp and reading
        self._last = float("-inf")

    def capture(self, stamp: float | None, read_at: float) -> float:
        """Seconds; later than that of the frame before. ``stamp`` in seconds, ``read_at`` on our clock."""
        at = self._believed(stamp, read_at)
        self._last = max(at, self._last + 1e-3)
        return self._last

    def _believed(self, stamp: float | None, read_at: float) -> float:
        if stamp is None or not 0 < stamp < float("inf"):
            return read_at
        if 0 <= read_at - (stamp + self._shift) <= LONGEST_LATENCY:
            return stamp + self._shift
        before, self._before = self._before, (stamp, read_at)
        if before is None or stamp <= before[0] or abs((stamp - before[0]) - (read_at - before[1])) > LONGEST_LATENCY:
            self._floor = TransitFloor()
            return read_at
        self._floor.update(stamp, read_at)
        return stamp + self._floor.value


@dataclass
class _Newest:
    """The newest frame that waits to be coded; an older one is overtaken, and counted."""

    ready: threading.Condition = field(default_factory=threading.Condition)
    frame: tuple[Any, float] | None = None  # picture and capture time
    missed: int = 0
    ended: bool = False

    def put(self, picture: Any, at: float) -> None:
        with self.ready:
            self.missed += self.frame is not None
            self.frame = picture, at
            self.ready.notify()

    def take(self) -> tuple[Any, float, int] | None:
        """The newest frame and how many it overtook; None at the end."""
        with self.ready:
            while self.frame is None and not self.ended:
                self.ready.wait(0.5)
            if self.frame is None:
                return None
            (picture, at), missed = self.frame, self.missed
            self.frame, self.missed = None, 0
            return picture, at, missed

    def end(self) -> None:
        with self.ready:
            self.ended = True
            self.ready.notify()


class CameraFeed:
    """A camera by number, by a part of its name (Linux), or by anything OpenCV opens (``target`` a text, as it is)."""

    def __init__(
        self,
        camera: int | str = 0,
        *,
        clock: Clock,
        size: tuple[int, int] = SIZE,
        rate: float = RATE,
        quality: int = QUALITY,
        opener: Any = None,
    ) -> None:
        self.camera, self.name = camera, f"camera {camera}"
        self._clock, self._size, self._rate, self._quality = clock, size, rate, quality
        self._open = opener or open_capture

    sequenced = True

    @property
    def codecs(self) -> Mapping[str, CodecConfig]:
        return {"video": CodecConfig(codec="mjpeg", time_base=TICK)}

    def run(self, session: Session) -> None:
        """Read until told to stop; the coding runs beside it."""
        capture = self._open(self.camera, self._size, self._rate)
        newest = _Newest()
        coding = threading.Thread(target=self._code, args=(session, newest), name="legato-jpeg", daemon=True)
        coding.start()
        try:
            self._read(session, capture, newest)
        finally:
            newest.end()
            capture.release()
            coding.join(1.0)

    def _read(self, session: Session, capture: Capture, newest: _Newest) -> None:
        frames, refused = FrameClock(self._clock.now() - time.monotonic()), 0
        stamped = _stamp_property()
        while not session.stopped.is_set():
            taken, picture = capture.read()
            read_at = self._clock.now()
            if not taken or picture is None or not getattr(picture, "size", 0):
                refused += 1
                if refused >= REFUSED_READS:
                    raise SourceError("it stopped giving pictures; was it unplugged, or taken by another program?")
                session.stopped.wait(0.02)
                continue
            refused = 0
            newest.put(picture, frames.capture(capture.get(stamped) / 1e3, read_at))

    def _code(self, session: Session, newest: _Newest) -> None:
        shape: tuple[int, ...] | None = None
        missed = 0
        while (taken := newest.take()) is not None:
            picture, at, overtaken = taken
            missed += overtaken
            payload = jpeg(picture, self._quality)
            if payload is None:
                missed += 1  # a frame that cannot be coded did not come
                continue
            if picture.shape != shape:
                shape = picture.shape
                session.opened({"video": self._codec(picture)})
            session.packet("video", payload, round(at / TICK), missed=missed)
            missed = 0

    def _codec(self, picture: Any) -> CodecConfig:
        height, width = picture.shape[:2]
        return CodecConfig(codec="mjpeg", time_base=TICK, width=int(width), height=int(height))


class Webcam(DeviceSource):
    """One camera of this machine as a live source; see ``CameraFeed`` and ``DeviceSource`` for what may be said."""

    def __init__(
        self, camera: int | str = 0, *, clock: Clock | None = None, opener: Any = None, **options: Any
    ) -> None:
        clock = clock or SystemClock()
        super().__init__([CameraFeed(camera, clock=clock, opener=opener)], clock=clock, **options)


def jpeg(picture: Any, quality: int = QUALITY) -> bytes | None:
    """A picture (H, W), (H, W, 3) or (H, W, 4), uint8 BGR, as JPEG; None for anything else."""
    cv2 = opencv()
    try:
        taken, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    except cv2.error:
        return None
    return coded.tobytes() if taken else None


def open_capture(camera: int | str, size: tuple[int, int], rate: float) -> Capture:
    """Open a camera with the first backend of this system that can. Raises SourceError, in one sentence."""
    cv2 = opencv()
    if isinstance(camera, str) and not camera.isdecimal():
        found = find_camera(camera)
        if found is None:
            return _opened(cv2.VideoCapture(camera), camera)  # an address, a pipeline: whatever OpenCV makes of it
        camera = found
    number = int(camera)
    refusal = why_not(number)
    if refusal:
        raise SourceError(refusal)
    for backend in BACKENDS.get(sys.platform, ("CAP_ANY",)):
        capture: Capture = cv2.VideoCapture(number, getattr(cv2, backend))
        if capture.isOpened():
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
            capture.set(cv2.CAP_PROP_FPS, rate)
            return capture
        capture.release()
    raise SourceError(f"camera {number} did not open; {_way_out()}")


def opencv() -> Any:
    """OpenCV, silenced: what goes wrong is said by us. Raises SourceError where its libraries are missing."""
    os.environ.setdefault("OPENCV_AVFOUNDATION_SKIP_AUTH", "1")  # else macOS cameras open in the main thread only
    os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")  # else MSMF takes half a minute to open
    try:
        import cv2
    except ImportError as error:
        raise SourceError(
            f"OpenCV cannot be loaded ({error}); install opencv-python, and on Debian: apt install libgl1 libglib2.0-0"
        ) from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def cameras() -> dict[int, str]:
    """Cameras of this machine by number, with their names where the system tells them (Linux: without opening one).

    A camera that shows several nodes is listed once, by the node that captures.
    """
    if sys.platform != "linux":
        return {number: f"camera {number}" for number in range(5) if _answers(number)}
    found = {}
    for folder in LINUX_NAMES.glob("video*"):
        number = folder.name.removeprefix("video")
        if number.isdecimal() and _first_of_its_device(folder) and (LINUX_DEVICES / folder.name).exists():
            found[int(number)] = _text(folder / "name") or folder.name
    return dict(sorted(found.items()))


def find_camera(name: str) -> int | None:
    """The number of a camera by a part of its name, whatever the case, or by its device file."""
    if name.startswith("/dev/video") and name.removeprefix("/dev/video").isdecimal():
        return int(name.removeprefix("/dev/video"))
    if "://" in name:
        return None
    return next((number for number, known in cameras().items() if name.lower() in known.lower()), None)


def why_not(number: int) -> str:
    """Why a camera cannot even be tried, in one sentence; "" where it can (known on Linux only)."""
    if sys.platform != "linux":
        return ""
    device = LINUX_DEVICES / f"video{number}"
    if not device.exists():
        known = ", ".join(f"{n} ({name})" for n, name in cameras().items())
        return f"there is no camera {number}; " + (f"there is {known}" if known else "plug one in, or name an address")
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be read; add yourself to the group video and log in again"
    return ""


def _opened(capture: Capture, target: str) -> Capture:
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"camera {target!r} is neither a camera of this machine nor an address that opens")
    return capture


def _answers(number: int) -> bool:
    try:
        open_capture(number, SIZE, RATE).release()
    except SourceError:
        return False
    return True


def _first_of_its_device(folder: Path) -> bool:
    """UVC cameras show a second node for metadata; its index is not 0."""
    return (_text(folder / "index") or "0") == "0"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _stamp_property() -> int:
    return int(opencv().CAP_PROP_POS_MSEC)


def _way_out() -> str:
    if sys.platform == "darwin":
        return "allow your terminal to use the camera (System Settings, Privacy & Security), or close what uses it"
    return "another program may be using it; close that, or name another camera (legato devices lists them)"
