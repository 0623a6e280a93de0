"""Addresses to packets: a live stream that PyAV opens, read with time-outs that interrupt it.

Nothing is decoded. Only protocols and containers of an allow-list are opened, so that what a server sends cannot make
this machine open something else: no playlists, no concatenation, no files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import av
import av.error
import av.logging

from encoders.errors import SourceError
from encoders.media.demux import MODALITIES, Track, _reason, _track

PROTOCOLS = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "tcp", "udp")  # that an address may begin with
_UNDERNEATH = "http,https,httpproxy,tcp,udp,tls,rtp,srtp,rtsp,rtsps,rtmp,rtmps,rtmpt,crypto"
_CONTAINERS = (
    "rtsp,mpjpeg,mjpeg,jpeg_pipe,mpegts,mpegtsraw,flv,live_flv,matroska,webm,mov,mp4,ogg,mp3,aac,flac,wav,nut,h264,"
    "hevc,avi,asf"
)
PLAYLISTS = "hls,dash,sdp,concat"
# Containers that carry no times, or make them up from a frame rate: a packet was captured when it came.
_UNTIMED = frozenset({"mpjpeg", "mjpeg", "jpeg_pipe", "h264", "hevc", "aac", "mp3", "flac"})
_WRAP = 1 << 33  # MPEG-TS counts 33 bits


@dataclass(slots=True, kw_only=True)
class LivePacket:
    """A packet as it came; ``time`` and ``decode_time`` count the track's ticks, None where the stream says nothing."""

    modality: str
    payload: bytes
    time: int | None
    decode_time: int | None
    duration: int
    keyframe: bool
    disposable: bool


class LiveMedia:
    """An open address, its best track of each modality, and their packets as they come.

    open_seconds, read_seconds: after which a server that says nothing counts as gone. ``modalities`` are the ones
    wanted. ``playlists`` also opens HLS, DASH and SDP, which name further addresses.

    Raises SourceError, in one sentence, when it cannot be opened; ``packets`` does when it breaks off.
    """

    def __init__(
        self,
        address: str,
        *,
        modalities: tuple[str, ...] = MODALITIES,
        open_seconds: float = 8.0,
        read_seconds: float = 2.0,
        playlists: bool = False,
    ) -> None:
        check_address(address)
        self._shown = without_secrets(address)
        self._container = _open(address, self._shown, open_seconds, read_seconds, playlists)
        self.timed = self._container.format.name not in _UNTIMED
        self._streams = {m: s for m in modalities if (s := self._container.streams.best(m)) is not None}
        self._streams = {m: s for m, s in self._streams.items() if s.codec_context is not None}
        if not self._streams:
            self.close()
            raise SourceError(f"{self._shown} gives neither picture nor sound; name another address")
        self.tracks: Mapping[str, Track] = {m: _track(s, 0) for m, s in self._streams.items()}
        self._wraps = {m: _Unwrap() for m in self._streams}

    def packets(self) -> Iterator[LivePacket]:
        """Packets until the stream ends; SourceError when it breaks off."""
        modality_of = {s.index: m for m, s in self._streams.items()}
        try:
            for packet in self._container.demux(list(self._streams.values())):
                modality = modality_of.get(packet.stream_index)
                if modality is not None and packet.size:
                    yield self._packet(modality, packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise SourceError(f"{self._shown} broke off ({_reason(error)})") from None

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "LiveMedia":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _packet(self, modality: str, packet: Any) -> LivePacket:
        time, decode_time = self._wraps[modality].times(packet) if self.timed else (None, None)
        return LivePacket(
            modality=modality,
            payload=bytes(packet),
            time=time,
            decode_time=decode_time,
            duration=(packet.duration or 0) if self.timed else 0,
            keyframe=packet.is_keyframe,
            disposable=packet.is_disposable,
        )


class _Unwrap:
    """Presentation and decode times that go on when a 33-bit counter starts anew."""

    def __init__(self) -> None:
        self._offset = 0
        self._last: int | None = None

    def times(self, packet: Any) -> tuple[int | None, int | None]:
        pts, dts = packet.pts, packet.dts
        reference = dts if dts is not None else pts
        if reference is None:
            return None, None
        if Fraction(packet.time_base) == Fraction(1, 90_000):
            if self._last is not None and abs(reference - self._last) > _WRAP // 2:
                self._offset += _WRAP if reference < self._last else -_WRAP
            self._last = reference
        pts = reference if pts is None else pts
        return pts + self._offset, None if dts is None else dts + self._offset


def check_address(address: str) -> None:
    """Raise SourceError for an address that is not opened here."""
    scheme = urlsplit(address).scheme.lower()
    if scheme not in PROTOCOLS:
        raise SourceError(
            f"{without_secrets(address)} begins with {scheme or 'nothing'}, which is not opened; "
            f"use one of {', '.join(PROTOCOLS)}"
        )


def without_secrets(address: str) -> str:
    """An address for people: user, password and query are left out."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the address"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{parts.path}" if parts.scheme else address


def _open(address: str, shown: str, open_seconds: float, read_seconds: float, playlists: bool) -> Any:
    options = {
        "protocol_whitelist": _UNDERNEATH,
        "format_whitelist": _CONTAINERS + (f",{PLAYLISTS}" if playlists else ""),
        "probesize": "1000000",  # bytes; live streams say early what they are
        "analyzeduration": "2000000",  # microseconds
        "max_pixels": str(4096 * 2304),
    }
    if address.lower().startswith("rtsp"):
        options["rtsp_flags"] = "prefer_tcp"  # what UDP would lose on the way, FFmpeg would hide from us
    if address.lower().startswith("udp"):
        options |= {"fifo_size": "65536", "overrun_nonfatal": "1"}
    try:
        return av.open(
            address, mode="r", options=options, timeout=(open_seconds, read_seconds), metadata_errors="replace"
        )
    except av.error.ExitError:
        raise SourceError(f"{shown} did not answer within {open_seconds:g} s") from None
    except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        raise SourceError(f"{shown} cannot be opened ({_reason(error)})") from None
