"""Files to packets: which tracks there are, which are chosen, and their packets in container order.

Nothing is decoded here, except one picture of a file that may be rotated. Only local regular files are opened;
playlists, concatenations and network addresses are refused by an allow-list of protocols and containers.
"""

import stat
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import av.error

from encoders.errors import SourceError, UsageError

MODALITIES = ("video", "audio")

# Containers that hold their own media. Absent on purpose: playlists (hls, dash, concat, sdp), picture lists
# (image2), devices and filter graphs, all of which open something other than the file that was named.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,flv,live_flv,f4v,kux,ogg,wav,w64,"
    "aiff,au,caf,mp3,aac,ac3,eac3,flac,asf,mxf,ivf,h264,hevc,obu,av1,vc1,h263,mjpeg,mpjpeg,nut,gif,apng,amr,amrnb,amrwb,"
    "dv,rm,yuv4mpegpipe,wv,tta,ape,gxf,loas,latm,truehd,dts,swf,vob,ffm,smjpeg,avs2,vvc,dsf,wtv,nsv,r3d,sox,voc,webp_pipe"
)
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": _CONTAINERS,
    "probesize": "20000000",  # bytes; a track that starts later than this is not announced by streams without headers
    "analyzeduration": "20000000",  # microseconds
    "max_pixels": str(8192 * 8192),  # a header that claims more is not believed
}
_TIMEOUT = 60.0  # seconds without an answer from the file system or the demuxer
_PROBE_PACKETS = 3000  # packets read to learn which tracks really have some
_PROBE_BYTES = 32 << 20
_MAX_DEMUX_ERRORS = 20  # damaged places that are stepped over before the rest of a file is given up
_ROTATING = {"mov", "matroska"}  # containers that carry a display matrix
_HIDDEN = (1 << 31) - 1  # skip of an audio packet that is decoded and never heard
_WRAP = 1 << 33  # MPEG-TS and MPEG-PS count 33 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What a decoder must know of a track; the fields of ``runtime.packet.CodecConfig``."""

    codec: str  # FFmpeg's name of the codec, not of a decoder: av1, mp3, h264
    time_base: Fraction
    extradata: bytes = b""
    sample_rate: int = 0  # Hz
    channels: int = 0
    sample_format: str = ""
    width: int = 0
    height: int = 0
    pixel_format: str = ""
    frame_rate: Fraction | None = None
    rotation: int = 0  # degrees counter-clockwise that show the picture upright


@dataclass(slots=True, kw_only=True)
class Demuxed:
    """A packet of a container; the fields of ``runtime.packet.Packet``."""

    modality: str
    seq: int
    capture_time: int
    time_base: Fraction
    payload: bytes
    duration: int = 0
    keyframe: bool = False
    disposable: bool = False
    decode_time: int | None = None
    corrupt: bool = False
    skip: int = 0
    padding: int = 0


class Record(Protocol):
    """What ``MediaFile.demux`` can make: Demuxed here, Packet in the runtime."""

    def __init__(self, **fields: Any) -> None: ...


R = TypeVar("R")


class MediaFile:
    """A media file, its chosen tracks, and their packets.

    tracks: which track of a modality to take, counted from 0 among the tracks of that modality; None leaves the
    modality out; a modality that is not named takes the best track that has packets.

    Raises SourceError, in one sentence, for anything that is not a local file with at least one packet of sound
    or picture, and UsageError for a track that is not there.
    """

    def __init__(self, path: str | Path, *, tracks: Mapping[str, int | None] | None = None) -> None:
        self.path = Path(path)
        self.notes: list[str] = []  # what was passed over, for people
        self.demux_errors = 0
        self._container = _open(self.path)
        try:
            self._source = self._read()
            self._held: deque[Any] = deque()  # packets read while looking for tracks
            self._streams = self._choose(tracks or {})
            if not self._streams:
                raise SourceError(f"{self.path} holds no packet of sound or picture{_because(self.notes)}; {_CUT}")
            self.tracks = {m: _track(s, self._rotation(s)) for m, s in self._streams.items()}
        except BaseException:
            self._container.close()
            raise

    @property
    def origin(self) -> Fraction | None:
        """Presentation time, in seconds, of the first thing to be seen or heard; None where the file does not say."""
        starts = [s.start_time * s.time_base for s in self._streams.values() if s.start_time is not None]
        if starts:
            return Fraction(min(starts))
        start = self._container.start_time
        return None if start is None else Fraction(start, 1_000_000)

    @property
    def duration(self) -> float | None:
        """Seconds, as the container claims; None where it does not."""
        length = self._container.duration
        return None if length is None or length <= 0 else length / 1e6

    def demux(self, record: type[R] = Demuxed) -> Iterator[R]:  # type: ignore[assignment]
        """Every packet of the chosen tracks from here on, in container order, numbered from 0 in each modality."""
        clocks = {s.index: _Clock(m, s) for m, s in self._streams.items()}
        while True:
            packet = self._held.popleft() if self._held else next(self._source, None)
            if packet is None:
                return
            clock = clocks.get(packet.stream_index)
            if clock is not None:
                yield clock.read(packet, record)

    def seek(self, seconds: float) -> None:
        """Go to the last keyframe at or before ``seconds`` (presentation time); the start where that is impossible."""
        try:
            self._container.seek(int(max(seconds * 1e6, -(1 << 62))), backward=True)
        except av.error.FFmpegError:
            self._container.seek(0)
        self._held.clear()
        self._source = self._read()

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "MediaFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Iterator[Any]:
        """Packets with bytes in them; damaged places are counted and stepped over, a bounded number of times."""
        while True:
            try:
                for packet in self._container.demux():
                    if packet.size:
                        yield packet
                return
            except (av.error.FFmpegError, ValueError):
                self.demux_errors += 1
                if self.demux_errors >= _MAX_DEMUX_ERRORS:
                    return

    def _choose(self, wanted: Mapping[str, int | None]) -> dict[str, Any]:
        candidates = {m: self._candidates(m, wanted) for m in MODALITIES}
        filled, ended = self._probe(candidates)
        chosen = {}
        for modality, streams in candidates.items():
            live = [s for s in streams if s.index in filled]
            if live:
                chosen[modality] = live[0]
            elif streams and not ended and _may_start_late(streams[0]):
                chosen[modality] = streams[0]
            elif streams:
                self.notes.append(f"its {modality} track is announced but has no packets")
        for stream in self._container.streams:
            if stream not in chosen.values():
                stream.discard = av.stream.Discard.all
        return chosen

    def _candidates(self, modality: str, wanted: Mapping[str, int | None]) -> list[Any]:
        """The streams of a modality, best first, without cover art; or the one that was asked for."""
        streams = [s for s in self._container.streams if s.type == modality]
        streams = [s for s in streams if not s.disposition & av.stream.Disposition.attached_pic]
        undecodable = [s for s in streams if s.codec_context is None]
        if undecodable:
            self.notes.append(f"{len(undecodable)} {modality} track(s) have no decoder here")
        streams = [s for s in streams if s.codec_context is not None]
        if modality not in wanted:
            best = self._container.streams.best(modality)
            return sorted(streams, key=lambda s: (s is not best and s != best, s.index))
        number = wanted[modality]
        if number is None:
            return []
        if not 0 <= number < len(streams):
            raise UsageError(f"{modality} track {number} is not in {self.path}, which has {len(streams)}; count from 0")
        return [streams[number]]

    def _probe(self, candidates: Mapping[str, list[Any]]) -> tuple[set[int], bool]:
        """Read ahead until the first choice of each modality showed a packet. Returns who did, and if that was all."""
        missing = {streams[0].index for streams in candidates.values() if streams}
        filled: set[int] = set()
        size = 0
        while missing and len(self._held) < _PROBE_PACKETS and size < _PROBE_BYTES:
            packet = next(self._source, None)
            if packet is None:
                return filled, True
            self._held.append(packet)
            size += packet.size
            filled.add(packet.stream_index)
            missing.discard(packet.stream_index)
        return filled, False

    def _rotation(self, stream: Any) -> int:
        """Degrees counter-clockwise. PyAV shows a stream's display matrix only on a decoded picture of it."""
        if stream.type != "video" or not _ROTATING & set(self._container.format.name.split(",")):
            return 0
        packet = next((p for p in self._held if p.stream_index == stream.index and p.is_keyframe), None)
        if packet is None:
            return 0
        try:
            stream.codec_context.thread_count = 1
            frames = stream.codec_context.decode(packet) or stream.codec_context.decode(None)
        except (av.error.FFmpegError, ValueError, MemoryError):
            return 0
        return round(frames[0].rotation / 90) * 90 % 360 if frames else 0


class _Clock:
    """Numbers and times the packets of one stream: missing times are continued, 33-bit ones unwrapped."""

    def __init__(self, modality: str, stream: Any) -> None:
        context = stream.codec_context
        self.modality = modality
        self.trims = modality == "audio"  # packets may say which samples are priming; pictures have none
        self.time_base = Fraction(stream.time_base)
        self.seq = 0
        self.wraps = self.time_base == Fraction(1, 90_000)
        self.offset = 0
        self.last: int | None = None  # dts or pts of the packet before, before unwrapping
        self.next_time = 0
        rate = context.sample_rate if modality == "audio" else 0
        self.ticks_per_sample = 1 / (rate * self.time_base) if rate else Fraction(0)
        frame_rate = stream.average_rate or stream.guessed_rate if modality == "video" else None
        self.step = max(1, round(1 / (frame_rate * self.time_base))) if frame_rate else 0

    def read(self, packet: Any, record: type[R]) -> R:
        """A Demuxed or a Packet."""
        pts, dts = packet.pts, packet.dts
        if self.wraps:
            pts, dts = self._unwrap(pts, dts)
        time = pts if pts is not None else dts if dts is not None else self.next_time
        duration = packet.duration or 0
        self.next_time = time + (duration or self.step)
        skip, padding = _trim(packet) if self.trims else (0, 0)
        if packet.is_discard and not skip:
            skip = 1 if self.modality == "video" else _HIDDEN
        elif skip:  # to the first audible sample; half a tick up, as muxers round the priming they subtract
            time += int(skip * self.ticks_per_sample + Fraction(1, 2))
        seq = self.seq
        self.seq += 1
        return record(
            modality=self.modality,
            seq=seq,
            capture_time=time,
            time_base=self.time_base,
            payload=bytes(packet),
            duration=duration,
            keyframe=packet.is_keyframe,
            disposable=packet.is_disposable,
            decode_time=dts,
            corrupt=packet.is_corrupt,
            skip=skip,
            padding=padding,
        )  # type: ignore[call-arg]

    def _unwrap(self, pts: int | None, dts: int | None) -> tuple[int | None, int | None]:
        reference = dts if dts is not None else pts
        if reference is None:
            return None, None
        if self.last is not None and abs(reference - self.last) > _WRAP // 2:
            self.offset += _WRAP if reference < self.last else -_WRAP
        self.last = reference
        if pts is not None and abs(pts - reference) > _WRAP // 2:  # pts wrapped, dts not yet
            pts += _WRAP if pts < reference else -_WRAP
        return (None if pts is None else pts + self.offset), (None if dts is None else dts + self.offset)


def _trim(packet: Any) -> tuple[int, int]:
    """Samples to drop at the start and at the end, as the container says (AV_PKT_DATA_SKIP_SAMPLES)."""
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    data = bytes(packet.get_sidedata("skip_samples"))
    return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")


def _may_start_late(stream: Any) -> bool:
    """False where the container's index already says that the track has nothing."""
    indexed = "mov" in stream.container.format.name.split(",")
    return not (indexed and stream.frames == 0 and len(stream.index_entries) == 0 and not stream.duration)


def _track(stream: Any, rotation: int) -> Track:
    context = stream.codec_context
    common = {
        "codec": context.codec.canonical_name,
        "time_base": Fraction(stream.time_base),
        "extradata": bytes(context.extradata or b""),
    }
    if stream.type == "audio":
        return Track(
            **common,
            sample_rate=context.sample_rate or 0,
            channels=context.channels or 0,
            sample_format=context.format.name if context.format else "",
        )
    rate = stream.average_rate or stream.guessed_rate
    return Track(
        **common,
        width=context.width,
        height=context.height,
        pixel_format=context.pix_fmt or "",
        frame_rate=Fraction(rate) if rate else None,
        rotation=rotation,
    )


_CUT = "it is cut short, or the first of several parts; copy or join it again"


def _open(path: Path) -> Any:
    _check_regular(path)
    try:
        return av.open(f"file:{path}", mode="r", options=dict(_OPTIONS), timeout=_TIMEOUT, metadata_errors="replace")
    except av.error.ExitError:
        raise SourceError(f"{path} did not answer within {_TIMEOUT:.0f} s; copy it to a local disk first") from None
    except (av.error.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        raise SourceError(
            f"{path} is not a media file that can be read ({_reason(error)}); name another file"
        ) from None


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; give a local media file, folder or *.legato recording") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be opened ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise SourceError(f"{path} is a folder, not a media file; name a file in it")
    if not stat.S_ISREG(mode):
        raise SourceError(f"{path} is not a regular file; pipes, sockets and devices are not read here")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError(f"{path} is empty (0 bytes); copy it again")
    except OSError as error:
        raise SourceError(f"{path} cannot be opened ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).split(":")[0].lower()


def _because(notes: list[str]) -> str:
    return f": {'; '.join(notes)}" if notes else ""
