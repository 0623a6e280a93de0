"""Messages of ``legato.v1`` to our dataclasses and back.

Wire types stop here and in ``runtime/recording.py``: everything behind them speaks Packet, CodecConfig and Decision.
Towards the wire a value that does not fit its field is an OutputError; from the wire it is a ValueError (or KeyError
for an unknown enumeration value), which the caller counts or answers as its protocol says.
"""

import math
from fractions import Fraction
from typing import Any

from protos import stream_pb2 as pb
from runtime.errors import OutputError
from runtime.packet import CodecConfig, Packet

MODALITY_TO_WIRE = {"video": pb.MODALITY_VIDEO, "audio": pb.MODALITY_AUDIO}
MODALITY_FROM_WIRE = {number: name for name, number in MODALITY_TO_WIRE.items()}


def packet_to_wire(packet: Packet, time_base: Fraction | None) -> pb.Packet:
    """A packet as a message; its time base is left out where it equals ``time_base``, the codec's.

    Raises:
        OutputError: a value does not fit its field.
    """
    return build(
        pb.Packet,
        f"{packet.modality} packet {packet.seq}",
        modality=modality_to_wire(packet.modality),
        seq=packet.seq,
        capture_time=packet.capture_time,
        duration=packet.duration,
        keyframe=packet.keyframe,
        disposable=packet.disposable,
        payload=bytes(packet.payload),
        decode_time=packet.decode_time,
        corrupt=packet.corrupt,
        time_base=None if packet.time_base == time_base else rational(packet.time_base),
        skip=packet.skip,
        padding=packet.padding,
    )


def packet_from_wire(wire: pb.Packet, time_base: Fraction | None, arrival: float | None = None) -> Packet:
    """A message as a packet; ``time_base`` is the codec's, used where the message has none.

    Raises:
        ValueError: no modality, no time base, or one that is not positive.
    """
    own = fraction(wire.time_base) if wire.HasField("time_base") else time_base
    if own is None or own <= 0:
        raise ValueError(f"time_base {own} is not positive")
    return Packet(
        modality=MODALITY_FROM_WIRE[wire.modality],
        seq=wire.seq,
        capture_time=wire.capture_time,
        time_base=own,
        payload=wire.payload,
        duration=wire.duration,
        keyframe=wire.keyframe,
        disposable=wire.disposable,
        decode_time=wire.decode_time if wire.HasField("decode_time") else None,
        arrival=arrival,
        corrupt=wire.corrupt,
        skip=wire.skip,
        padding=wire.padding,
    )


def codec_to_wire(modality: str, codec: CodecConfig) -> pb.CodecConfig:
    """A codec as a message. Raises OutputError where a value does not fit its field."""
    return build(
        pb.CodecConfig,
        f"{modality} codec",
        modality=modality_to_wire(modality),
        codec=text(codec.codec),
        time_base=rational(codec.time_base),
        extradata=bytes(codec.extradata),
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        sample_format=text(codec.sample_format),
        width=codec.width,
        height=codec.height,
        pixel_format=text(codec.pixel_format),
        frame_rate=None if codec.frame_rate is None else rational(codec.frame_rate),
        rotation=codec.rotation,
    )


def codec_from_wire(wire: pb.CodecConfig) -> tuple[str, CodecConfig]:
    """A message as (modality, codec). Raises ValueError where a field has no meaning."""
    time_base = fraction(wire.time_base)
    if time_base <= 0:
        raise ValueError(f"time_base {time_base} is not positive")
    return MODALITY_FROM_WIRE[wire.modality], CodecConfig(
        codec=wire.codec,
        time_base=time_base,
        extradata=wire.extradata,
        sample_rate=wire.sample_rate,
        channels=wire.channels,
        sample_format=wire.sample_format,
        width=wire.width,
        height=wire.height,
        pixel_format=wire.pixel_format,
        frame_rate=fraction(wire.frame_rate) if wire.HasField("frame_rate") else None,
        rotation=wire.rotation,
    )


def rational(value: Fraction) -> pb.Rational:
    """A fraction as a message. Raises OutputError beyond 64 bits."""
    return build(pb.Rational, f"time {value}", numerator=value.numerator, denominator=value.denominator)


def fraction(wire: pb.Rational) -> Fraction:
    """A message as a fraction. Raises ValueError where the denominator is not positive."""
    if wire.denominator <= 0:
        raise ValueError(f"denominator {wire.denominator} is not positive")
    return Fraction(wire.numerator, wire.denominator)


def build(message: Any, what: str, **values: Any) -> Any:
    """A message of type ``message``; ``what`` names it in the OutputError of a value that does not fit."""
    try:
        return message(**values)
    except (ValueError, TypeError, OverflowError) as error:
        raise OutputError(f"{what} does not fit the wire: {error}") from error


def modality_to_wire(name: str) -> int:
    """The enumeration value of a modality."""
    if name not in MODALITY_TO_WIRE:
        raise OutputError(f"modality {name!r} is unknown; known: {', '.join(MODALITY_TO_WIRE)}")
    return MODALITY_TO_WIRE[name]


def text(value: str) -> str:
    """Text as UTF-8 can carry it.

    Names that come from a file system may hold bytes that are no UTF-8; protobuf takes none of
    them.
    """
    return value.encode("utf-8", "replace").decode("utf-8")


def finite(value: float) -> float:
    """The value itself; ValueError for NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a time")
    return value
