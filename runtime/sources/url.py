"""Cameras at an address: RTSP, HTTP MJPEG, MPEG-TS over UDP, whatever PyAV opens; packets stay coded as they come.

A stream's own times are brought to the capture clock by the least transit of its first packets: a server that starts
with a backlog would otherwise seem to run late for ever. Containers without times (MJPEG) are stamped on arrival.

What the network lost below us leaves no sequence number here; ``rtp://`` with its SDP has its own source, which knows.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

from runtime.clock import Clock, SystemClock
from runtime.packet import MODALITIES, CodecConfig
from runtime.sources.device import DeviceSource, Session

SETTLING_SECONDS = 0.3  # in which the stream's times are learned
TICK = Fraction(1, 90_000)  # seconds, where the stream has no times


class UrlFeed:
    """A camera at an address; the best track of each of ``modalities``."""

    def __init__(
        self,
        address: str,
        *,
        clock: Clock,
        modalities: tuple[str, ...] = MODALITIES,
        playlists: bool = False,
        open_seconds: float = 8.0,
        read_seconds: float = 2.0,
        opener: Any = None,
    ) -> None:
        self.name = shown(address)
        self.codecs: Mapping[str, CodecConfig] = {}  # nobody knows before it answers
        self.sequenced = False  # a loss below us leaves no number, but where pictures come whole or not at all
        self._address, self._clock = address, clock
        self._options = {
            "modalities": modalities,
            "playlists": playlists,
            "open_seconds": open_seconds,
            "read_seconds": read_seconds,
        }
        self._open = opener

    def run(self, session: Session) -> None:
        """Read until told to stop, or the server is gone."""
        if self._open is None:
            from encoders.media.live import LiveMedia  # late: PyAV

            self._open = LiveMedia
        with self._open(self._address, **self._options) as media:
            self.sequenced = media.tracks.keys() <= {"video"} and not media.timed
            session.opened({m: _codec(track, media.timed) for m, track in media.tracks.items()})
            axis = StreamAxis({m: Fraction(track.time_base) for m, track in media.tracks.items()})
            for packet in media.packets():
                if session.stopped.is_set():
                    return
                for ready, at, decode in axis.place(packet, self._clock.now()):
                    session.packet(
                        ready.modality,
                        ready.payload,
                        at,
                        duration=ready.duration,
                        keyframe=ready.keyframe,
                        disposable=ready.disposable,
                        decode_time=decode,
                    )
            for ready, at, decode in axis.settle():
                session.packet(ready.modality, ready.payload, at, keyframe=ready.keyframe, decode_time=decode)


class StreamAxis:
    """The times of one stream on the capture clock; both its modalities are moved alike, so lip-sync stays.

    Packets are held until the stream was watched for ``SETTLING_SECONDS``; then one offset holds. A clock that jumps
    later is for the receiver to judge. Times come back in ticks of the track, or of ``TICK`` where the stream has none.
    """

    def __init__(self, bases: Mapping[str, Fraction]) -> None:
        self._bases = bases
        self._held: list[Any] = []
        self._least: float | None = None  # arrival minus stream time, seconds
        self._offset: float | None = None
        self._began: float | None = None
        self._last: dict[str, int] = {}

    def place(self, packet: Any, now: float) -> list[tuple[Any, int, int | None]]:
        """Packets that became ready, each with its capture time and its decode time."""
        if packet.time is None:
            return [(packet, self._stamped(packet.modality, now), None)]
        seconds = self._seconds(packet)
        if self._offset is not None:
            return [self._mapped(packet)]
        self._began = now if self._began is None else self._began
        self._least = now - seconds if self._least is None else min(self._least, now - seconds)
        self._held.append(packet)
        return self.settle() if now - self._began >= SETTLING_SECONDS else []

    def settle(self) -> list[tuple[Any, int, int | None]]:
        """Everything that was held."""
        if self._least is None:
            return []
        self._offset = self._least
        held, self._held = self._held, []
        return [self._mapped(packet) for packet in held]

    def _seconds(self, packet: Any) -> float:
        return float(packet.time * self._bases[packet.modality])

    def _mapped(self, packet: Any) -> tuple[Any, int, int | None]:
        assert self._offset is not None
        ticks = round(self._offset / self._bases[packet.modality])
        return packet, packet.time + ticks, None if packet.decode_time is None else packet.decode_time + ticks

    def _stamped(self, modality: str, now: float) -> int:
        at = max(round(now / TICK), self._last.get(modality, -1) + 1)
        self._last[modality] = at
        return at


class UrlCamera(DeviceSource):
    """One address as a live source; see ``UrlFeed`` and ``DeviceSource`` for what may be said."""

    def __init__(
        self,
        address: str,
        *,
        clock: Clock | None = None,
        modalities: tuple[str, ...] = MODALITIES,
        playlists: bool = False,
        opener: Any = None,
        **options: Any,
    ) -> None:
        clock = clock or SystemClock()
        feed = UrlFeed(address, clock=clock, modalities=modalities, playlists=playlists, opener=opener)
        super().__init__([feed], name=options.pop("name", feed.name), clock=clock, **options)


def shown(address: str) -> str:
    """An address for people: no user, password or query."""
    parts = urlsplit(address)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _codec(track: Any, timed: bool) -> CodecConfig:
    return CodecConfig(
        codec=track.codec,
        time_base=track.time_base if timed else TICK,
        extradata=track.extradata,
        sample_rate=track.sample_rate,
        channels=track.channels,
        sample_format=track.sample_format,
        width=track.width,
        height=track.height,
        pixel_format=track.pixel_format,
        frame_rate=track.frame_rate if timed else None,
        rotation=track.rotation,
    )
