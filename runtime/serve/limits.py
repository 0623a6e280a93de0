"""Limits: what a stranger's config and packets may be, checked before a byte of theirs reaches a decoder.

A config is turned into a ``Plan`` or refused with the name of the field; a bad packet is no packet (``Gate`` returns
None and the caller counts it). Nothing here decodes; the bitstream's headers are read by ``runtime.bitstream``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

from protos import stream_pb2 as pb
from runtime.bitstream import picture_parser
from runtime.packet import MODALITIES, CodecConfig, Packet, StreamInfo
from runtime.serve.convert import MODALITY_FROM_WIRE, codec_from_wire, fraction, packet_from_wire
from runtime.serve.status import Refused, invalid

__all__ = ["CODECS", "Gate", "Limits", "Plan", "Resumption", "check_codec", "plan_stream"]

# What is decoded for strangers. Codecs that many people fuzz and everybody uses; none that reads other files,
# none that inflates (png, apng), none of the hundreds of game formats that FFmpeg knows too.
CODECS: dict[str, frozenset[str]] = {
    "video": frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "rawvideo", "vp8", "vp9"}),
    "audio": frozenset(
        {"aac", "ac3", "eac3", "flac", "mp2", "mp3", "opus", "vorbis"}
        | {"pcm_alaw", "pcm_f32le", "pcm_mulaw", "pcm_s16be", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_u8"}
    ),
}
PIXEL_FORMATS = frozenset(
    {"bgr24", "bgra", "gray", "nv12", "rgb24", "rgba", "yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p"}
)
SAMPLE_FORMATS = frozenset({"u8", "u8p", "s16", "s16p", "s32", "s32p", "flt", "fltp", "dbl", "dblp"})
RESETTING = frozenset({"h264", "hevc"})  # codecs that tell an intra picture from a clean start
STREAM_ID = re.compile(r"[0-9a-zA-Z-]{1,64}")
FARTHEST = 10**10  # seconds from zero that a capture time may lie; later than the year 2286, and flicks fit 64 bits
MOST_PIXELS = 1 << 16  # of a box, in any direction
LARGEST_SEQ = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one stream. The defaults are what design and wire format state."""

    width: int = 4096  # pixels
    height: int = 2304
    frame_rate: int = 60  # pictures per second of capture time
    extradata: int = 64 << 10  # bytes
    sample_rate: int = 192_000  # Hz
    channels: int = 8
    name: int = 256  # bytes of UTF-8
    batch: int = 1024  # packets in one message
    duration: float = 600.0  # seconds that one packet may claim to last
    arrival_back: float = 10.0  # seconds by which a recorded arrival may lie before one that was sent earlier
    arrival_ahead: float = 86_400.0  # and behind it: recordings may pause
    playout_delay: float = 10.0  # seconds
    decode_burst: float = 10.0  # seconds of CPU for decoding that a stream may take beyond its share
    decode_share: float = 1.0  # seconds of CPU for decoding, per second of media

    @property
    def pixels(self) -> int:
        """Of one picture; what a decoder refuses to go beyond, whatever its bitstream says."""
        return self.width * self.height


class BundleFacts(Protocol):
    """What of a bundle bounds a stream's wishes."""

    @property
    def name(self) -> str: ...
    @property
    def heads(self) -> Sequence[str]: ...
    @property
    def lookahead(self) -> int:
        """Clips, the most."""
        ...

    @property
    def default_lookahead(self) -> int: ...
    @property
    def modalities(self) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a stream that another server began goes on."""

    stream: str
    epoch: int
    first_clip: int
    origin: Fraction
    next_clip: int
    oldest_clip: int = 0
    face: tuple[float, ...] = ()  # x, y, side in pixels before the oldest clip; empty: not known


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A StreamConfig that was found to make sense."""

    info: StreamInfo
    heads: tuple[str, ...]
    lookahead: int  # clips
    playout_delay: float | None  # seconds; None = the server's preset
    token: bytes
    recording_consent: bool
    resumption: Resumption | None
    recorded: bool = False  # packets come when they were sent, by their own times


def plan_stream(config: pb.StreamConfig, facts: BundleFacts, limits: Limits) -> Plan:
    """What a config asks for. Raises Refused naming the field."""
    if len(config.name.encode()) > limits.name:
        raise invalid("name", f"longer than {limits.name} bytes; shorten it")
    if config.resume_token and len(config.resume_token) != 16:
        raise invalid("resume_token", f"{len(config.resume_token)} bytes; send the 16 that were received, or none")
    resumption = _resumption(config)
    origin = _time("origin", config.origin) if config.HasField("origin") else None
    return Plan(
        info=StreamInfo(
            name=_printable(config.name),
            codecs=_codecs(config, facts, limits),
            origin=resumption.origin if resumption is not None else origin,
            duration=_duration(config),
            sequence_numbers=not config.HasField("sequence_numbers") or config.sequence_numbers,
        ),
        heads=_heads(config, facts),
        lookahead=_lookahead(config, facts),
        playout_delay=_delay(config, limits),
        token=config.resume_token,
        recording_consent=config.recording_consent,
        resumption=resumption,
        recorded=config.recorded,
    )


def check_codec(field: str, wire: pb.CodecConfig, limits: Limits) -> tuple[str, CodecConfig]:
    """A codec that may be opened, by modality. Raises Refused naming the field below ``field``."""
    if wire.modality not in MODALITY_FROM_WIRE:
        raise invalid(f"{field}.modality", f"{wire.modality} is neither video (1) nor audio (2)")
    if not wire.HasField("time_base"):
        raise invalid(f"{field}.time_base", "missing; send the seconds per tick, such as 1/90000")
    _time_base(f"{field}.time_base", wire.time_base)
    allowed = CODECS[MODALITY_FROM_WIRE[wire.modality]]
    if wire.codec not in allowed:
        raise invalid(f"{field}.codec", f"{_short(wire.codec)} is not served; use one of {', '.join(sorted(allowed))}")
    if len(wire.extradata) > limits.extradata:
        raise invalid(f"{field}.extradata", f"{len(wire.extradata)} bytes; at most {limits.extradata}")
    _check_picture(field, wire, limits)
    _check_sound(field, wire, limits)
    try:
        return codec_from_wire(wire)
    except ValueError as error:
        raise invalid(field, str(error)) from None


def _check_picture(field: str, wire: pb.CodecConfig, limits: Limits) -> None:
    if wire.width > limits.width:
        raise invalid(f"{field}.width", f"{wire.width} pixels; at most {limits.width}")
    if wire.height > limits.height:
        raise invalid(f"{field}.height", f"{wire.height} pixels; at most {limits.height}")
    if wire.HasField("frame_rate"):
        rate = _rational(f"{field}.frame_rate", wire.frame_rate)
        if not 0 < rate <= limits.frame_rate:
            raise invalid(f"{field}.frame_rate", f"{float(rate):g} a second; above 0, at most {limits.frame_rate}")
    if wire.rotation not in (0, 90, 180, 270):
        raise invalid(f"{field}.rotation", f"{wire.rotation} degrees; use 0, 90, 180 or 270")
    if wire.codec != "rawvideo":
        return
    if wire.pixel_format not in PIXEL_FORMATS:
        known = ", ".join(sorted(PIXEL_FORMATS))
        raise invalid(f"{field}.pixel_format", f"{_short(wire.pixel_format)} is not served; use one of {known}")
    if not wire.width or not wire.height:
        raise invalid(f"{field}.width", "raw video says nothing of its size; send width and height")


def _check_sound(field: str, wire: pb.CodecConfig, limits: Limits) -> None:
    if wire.sample_rate > limits.sample_rate:
        raise invalid(f"{field}.sample_rate", f"{wire.sample_rate} Hz; at most {limits.sample_rate}")
    if wire.channels > limits.channels:
        raise invalid(f"{field}.channels", f"{wire.channels}; at most {limits.channels}")
    if wire.sample_format and wire.sample_format not in SAMPLE_FORMATS:
        known = ", ".join(sorted(SAMPLE_FORMATS))
        raise invalid(f"{field}.sample_format", f"{_short(wire.sample_format)} is unknown; use one of {known}")
    if wire.codec.startswith("pcm_") and not (wire.sample_rate and wire.channels):
        raise invalid(f"{field}.sample_rate", "raw sound says nothing of itself; send sample_rate and channels")


def _codecs(config: pb.StreamConfig, facts: BundleFacts, limits: Limits) -> dict[str, CodecConfig]:
    codecs: dict[str, CodecConfig] = {}
    for place, wire in enumerate(config.codecs):
        modality, codec = check_codec(f"codecs[{place}]", wire, limits)
        if modality in codecs:
            raise invalid(f"codecs[{place}].modality", f"a second {modality} track; send one of each modality")
        codecs[modality] = codec
    if not set(codecs) & set(facts.modalities):
        needs = " or ".join(facts.modalities)
        raise invalid("codecs", f"none that bundle {facts.name} can use; send {needs}")
    return {m: codecs[m] for m in MODALITIES if m in codecs}


def _heads(config: pb.StreamConfig, facts: BundleFacts) -> tuple[str, ...]:
    for place, head in enumerate(config.heads):
        if head not in facts.heads:
            known = ", ".join(facts.heads)
            raise invalid(f"heads[{place}]", f"{_short(head)} is not in bundle {facts.name}; choose from {known}")
    return tuple(dict.fromkeys(config.heads)) or tuple(facts.heads[:1])


def _lookahead(config: pb.StreamConfig, facts: BundleFacts) -> int:
    if not config.HasField("lookahead"):
        return facts.default_lookahead
    if config.lookahead > facts.lookahead:
        raise invalid("lookahead", f"{config.lookahead} clips; bundle {facts.name} knows at most {facts.lookahead}")
    return config.lookahead


def _delay(config: pb.StreamConfig, limits: Limits) -> float | None:
    if not config.HasField("playout_delay_ms"):
        return None
    if not 0 <= config.playout_delay_ms <= limits.playout_delay * 1e3:  # NaN is neither
        raise invalid("playout_delay_ms", f"{config.playout_delay_ms:g}; from 0 to {limits.playout_delay * 1e3:g}")
    return config.playout_delay_ms / 1e3


def _duration(config: pb.StreamConfig) -> float | None:
    """Seconds from the origin; it bounds the first epoch only, and a receiver that goes on in a later one must not."""
    if not config.HasField("duration_seconds"):
        return None
    if not 0 <= config.duration_seconds <= FARTHEST:  # NaN is neither
        raise invalid("duration_seconds", f"{config.duration_seconds:g}; from 0 to {FARTHEST} s")
    bounds = config.HasField("origin") and not config.resume_point.epoch
    return config.duration_seconds if bounds else None


def _resumption(config: pb.StreamConfig) -> Resumption | None:
    if not config.HasField("resume_point"):
        return None
    point = config.resume_point
    if not STREAM_ID.fullmatch(point.stream):
        raise invalid("resume_point.stream", "no id of a stream; send the resume point as it was received")
    if not point.HasField("origin"):
        raise invalid("resume_point.origin", "missing; send the resume point as it was received")
    if not point.first_clip <= point.oldest_clip <= point.next_clip <= LARGEST_SEQ:
        raise invalid("resume_point.next_clip", "no index of a clip; send the resume point as it was received")
    if len(point.face) not in (0, 3) or not all(abs(value) <= MOST_PIXELS for value in point.face):  # NaN is neither
        raise invalid("resume_point.face", "no box; send the resume point as it was received")
    return Resumption(
        stream=point.stream,
        epoch=point.epoch,
        first_clip=point.first_clip,
        origin=_time("resume_point.origin", point.origin),
        next_clip=point.next_clip,
        oldest_clip=point.oldest_clip,
        face=tuple(point.face),
    )


def _rational(field: str, wire: pb.Rational) -> Fraction:
    try:
        return fraction(wire)
    except ValueError as error:
        raise invalid(field, str(error)) from None


def _time(field: str, wire: pb.Rational) -> Fraction:
    seconds = _rational(field, wire)
    if abs(seconds) > FARTHEST:
        raise invalid(field, f"{float(seconds):g} s is no capture time; at most {FARTHEST} s from zero")
    return seconds


def _time_base(field: str, wire: pb.Rational) -> None:
    base = _rational(field, wire)
    if not Fraction(1, 10**9) <= base <= 1:
        raise invalid(field, f"{float(base):g} s a tick; from a nanosecond to a second")


def _short(value: str) -> str:
    """What a client sent, fit to stand in an error."""
    return repr(value if len(value) <= 40 else value[:37] + "...")


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


class Gate:
    """Packets of one stream, from the wire to something that may be decoded; None for a bad one.

    The claim ``keyframe`` is put right where the bitstream can tell. More pictures than ``frame_rate`` for each second
    of capture time are bad packets: a burst of two seconds passes, so that a clock that jumps or stands still for a
    moment costs nothing.
    """

    def __init__(self, codecs: Mapping[str, CodecConfig], limits: Limits) -> None:
        self._limits = limits
        self._codecs = dict(codecs)
        self._parser: Any = None
        self._newest: float | None = None  # capture time of video, seconds
        self._allowed = 2.0 * limits.frame_rate  # pictures
        self.media_seconds = 0.0  # of capture time that packets have brought, both modalities
        self._heard: dict[str, float] = {}
        self._arrived: float | None = None  # the latest recorded arrival, seconds
        self._tell_keyframes()

    def change(self, modality: str, codec: CodecConfig) -> None:
        """What follows is coded otherwise."""
        self._codecs[modality] = codec
        self._tell_keyframes()

    def packet(self, wire: pb.Packet, arrival: float | None) -> Packet | None:
        """A packet as it may go to the receiver."""
        modality = MODALITY_FROM_WIRE.get(wire.modality)
        codec = self._codecs.get(modality or "")
        if modality is None or codec is None or wire.seq > LARGEST_SEQ:
            return None
        try:
            packet = packet_from_wire(wire, codec.time_base, arrival)
        except ValueError:
            return None
        if not self._sane(packet) or not self._on_time(packet) or (modality == "video" and not self._paced(packet)):
            return None
        self._progress(packet)
        return self._checked(packet) if modality == "video" else packet

    def _sane(self, packet: Packet) -> bool:
        base = packet.time_base
        if packet.time_base is not self._codecs[packet.modality].time_base and not Fraction(1, 10**9) <= base <= 1:
            return False
        farthest = FARTHEST * base.denominator // base.numerator
        if abs(packet.capture_time) > farthest or abs(packet.decode_time or 0) > farthest:
            return False
        lasts = packet.duration * base.numerator / base.denominator
        return lasts <= self._limits.duration and bool(packet.payload)

    def _on_time(self, packet: Packet) -> bool:
        """Whether an arrival goes on from those before it, so that no packet takes the receiver's clock away."""
        at, before, limits = packet.arrival, self._arrived, self._limits
        if at is None:
            return True
        near = before is None or before - limits.arrival_back <= at <= before + limits.arrival_ahead
        if not (abs(at) <= FARTHEST and near):  # NaN is neither
            return False
        self._arrived = at if before is None else max(at, before)
        return True

    def _paced(self, packet: Packet) -> bool:
        """Whether this picture is within the frame rate that is served."""
        now = packet.decode_seconds
        if self._newest is None or abs(now - self._newest) > 2:
            self._newest = now
        elif now > self._newest:
            rate = self._limits.frame_rate
            self._allowed = min(2.0 * rate, self._allowed + 1.05 * rate * (now - self._newest))
            self._newest = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    def _progress(self, packet: Packet) -> None:
        """Credit for decoding: a second of media at most for each packet, whatever its time says."""
        before = self._heard.get(packet.modality, packet.seconds)
        if packet.seconds > before or before - packet.seconds > 2:
            self.media_seconds += min(max(packet.seconds - before, 0.0), 1.0)
            self._heard[packet.modality] = packet.seconds
        self._heard.setdefault(packet.modality, packet.seconds)

    def _checked(self, packet: Packet) -> Packet:
        if self._parser is None:
            return packet
        pictures = self._parser(packet.payload)
        if not pictures:
            return packet  # nothing could be read: damage tracking will say so
        first, coded = pictures[0], self._codecs["video"].codec
        keyframe = bool(first.reset or first.recovery == 0)
        if first.independent and coded not in RESETTING:
            keyframe |= packet.keyframe  # their headers do not say whether later pictures reach behind it
        return packet if keyframe == packet.keyframe else replace(packet, keyframe=keyframe)

    def _tell_keyframes(self) -> None:
        video = self._codecs.get("video")
        self._parser = None if video is None else picture_parser(video)


def refuse_batch(count: int, limits: Limits) -> Refused | None:
    """A message with too many packets ends its stream: no sender makes one by accident."""
    if count <= limits.batch:
        return None
    return invalid("packets", f"{count} packets in one message; at most {limits.batch}", "batch")
