"""Camera and microphone together: one live source, one capture clock, whatever each of them is.

Both stamp on the same monotonic clock as far as their drivers tell when something was captured. What remains is a
constant: cameras take longer to hand over a picture than sound cards a block. ``av_offset_ms`` takes it off, once
measured (bench/live.py shows how, with a flash and a beep).
"""

from dataclasses import dataclass

from runtime.clock import Clock, SystemClock
from runtime.errors import UsageError
from runtime.packet import MODALITIES
from runtime.sources.base import LiveSource
from runtime.sources.device import DevicePolicy, DeviceSource, Feed
from runtime.sources.microphone import MicrophoneFeed
from runtime.sources.url import UrlFeed
from runtime.sources.webcam import CameraFeed, cameras

NONE = "none"
OPENCV = "opencv:"  # asks for OpenCV where PyAV would open an address
LARGEST_OFFSET_MS = 2000.0


class StartedClock:
    """Another clock that reads 0 now: live streams begin at 0:00, as files do."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._start = self._clock.now()

    def now(self) -> float:
        return self._clock.now() - self._start

    def sleep_until(self, seconds: float) -> None:
        self._clock.sleep_until(seconds + self._start)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The feeds that were asked for; ``required`` by name: asked for by name, so that doing without is no answer."""

    feeds: tuple[Feed, ...]
    required: tuple[str, ...]


def open_devices(
    camera: int | str | None = None,
    microphone: int | str | None = None,
    *,
    clock: Clock | None = None,
    av_offset_ms: float = 0.0,
    playlists: bool = False,
    policy: DevicePolicy | None = None,
    seed: int | None = None,
    name: str = "live",
) -> LiveSource:
    """A camera and a microphone of this machine, or an address, as one live source.

    RTP (``rtp://HOST:PORT``, or a session description ``x.sdp``) brings its own sound.

    Args:
        camera: None for the first there is; a number, a part of a name, an address (rtsp://, rtp://, http://, ...),
            ``opencv:`` and anything that OpenCV opens, or "none".
        microphone: None for the system's default, or the sound of the address where the camera is one; a number, a
            part of a name, or "none".
        av_offset_ms: by how much sound is stamped later than the picture of the same moment.
        playlists: whether an address may be a playlist, which names further addresses.
        seed: repeats the waits between tries.

    Raises SourceError when what was asked for by name cannot be opened, or nothing at all; UsageError for nonsense.
    """
    clock = clock or StartedClock()
    if isinstance(camera, str) and (camera.lower().startswith("rtp:") or camera.endswith(".sdp")):
        return _rtp(camera, microphone, clock)
    chosen = choose(camera, microphone, clock, av_offset_ms=av_offset_ms, playlists=playlists)
    return DeviceSource(chosen.feeds, name=name, clock=clock, policy=policy, required=chosen.required, seed=seed)


def _rtp(target: str, microphone: int | str | None, clock: Clock) -> LiveSource:
    from runtime.sources.rtp_udp import open_rtp

    if microphone not in (None, NONE):
        raise UsageError(f"{target} brings its own sound; leave microphone {microphone!r} out, or use none")
    return open_rtp(target, clock=clock, modalities=MODALITIES if microphone is None else ("video",))


def choose(
    camera: int | str | None,
    microphone: int | str | None,
    clock: Clock,
    *,
    av_offset_ms: float = 0.0,
    playlists: bool = False,
) -> Chosen:
    """The feeds for ``open_devices``; opens nothing."""
    if not abs(av_offset_ms) <= LARGEST_OFFSET_MS:
        most = f"{LARGEST_OFFSET_MS:g}"
        raise UsageError(f"A/V offset {av_offset_ms:g} ms is out of range; use -{most} to {most}")
    feeds: list[Feed] = []
    required: list[str] = []
    address = isinstance(camera, str) and "://" in camera and not camera.startswith(OPENCV)
    if address:
        modalities = MODALITIES if microphone is None else ("video",)
        feeds.append(UrlFeed(str(camera), clock=clock, modalities=modalities, playlists=playlists))
        required.append(feeds[-1].name)
    elif camera != NONE:
        feeds.append(CameraFeed(_camera(camera), clock=clock))
        required += [feeds[-1].name] if camera is not None else []
    if microphone != NONE and not (address and microphone is None):
        feeds.append(MicrophoneFeed(microphone, clock=clock, offset_ms=av_offset_ms))
        required += [feeds[-1].name] if microphone is not None else []
    if not feeds:
        raise UsageError("camera none and microphone none leave nothing to run on; name one of them")
    return Chosen(tuple(feeds), tuple(required))


def _camera(camera: int | str | None) -> int | str:
    if camera is None:
        return next(iter(cameras()), 0)
    if isinstance(camera, str):
        return int(camera) if camera.isdecimal() else camera.removeprefix(OPENCV)
    return camera
