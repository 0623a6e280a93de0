"""H.264 and H.265 as a wire wants them: Annex B byte streams, parameter sets in front (pure byte work).

MP4 and Matroska keep NAL units behind lengths and parameter sets in a record of their own (avcC and hvcC, ISO/IEC
14496-15 sections 5.3.3 and 8.3.3). RTP, transport streams and ``legato.v1`` know neither. What is in Annex B already
passes unchanged, and so does every other codec. No byte inside a NAL unit is touched, so a decoder gives the same
pictures (tests/test_annexb.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from runtime.nal import nal_units
from runtime.packet import CodecConfig

__all__ = ["START_CODE", "to_annexb"]

START_CODE = b"\0\0\0\1"  # of the first unit of an access unit, and of parameter sets (H.264, annex B.1.2)
SHORT = b"\0\0\1"
HEVC = ("hevc", "h265")

Convert = Callable[[bytes], bytes]


def to_annexb(config: CodecConfig) -> tuple[CodecConfig, Convert]:
    """The codec as it goes over a wire, and what turns a payload of it into one of that.

    A record that is cut short gives the parameter sets that are whole.
    """
    read = _record(config)
    if read is None:
        return config, _unchanged
    length_size, units = read

    def convert(payload: bytes) -> bytes:
        # one zero byte before the access unit, none between its units: behind a unit it would be read as its last byte
        units = [SHORT + unit for unit in nal_units(payload, length_size)]
        return b"\0" + b"".join(units) if units else payload  # what cannot be read is for the other side to count

    return replace(config, extradata=b"".join(START_CODE + unit for unit in units)), convert


def _unchanged(payload: bytes) -> bytes:
    return payload


def _record(config: CodecConfig) -> tuple[int, Iterator[bytes]] | None:
    """Bytes of a length and the parameter sets, where the extradata is avcC or hvcC; None where it is not."""
    data = config.extradata
    if config.codec == "h264" and len(data) >= 7 and data[0] == 1:
        return (data[4] & 3) + 1, _avcc(data)
    if config.codec in HEVC and len(data) >= 23 and not data.startswith((b"\0\0\0", b"\0\0\1")):
        return (data[21] & 3) + 1, _hvcc(data)
    return None


def _avcc(data: bytes) -> Iterator[bytes]:
    """Sequence parameter sets, then picture parameter sets."""
    at = 5
    for mask in (0x1F, 0xFF):
        if at >= len(data):
            return
        count, at = data[at] & mask, at + 1
        for _ in range(count):
            unit, at = _sized(data, at)
            if unit:
                yield unit


def _hvcc(data: bytes) -> Iterator[bytes]:
    """Arrays of one NAL unit type each: video, sequence and picture parameter sets, SEI."""
    at = 23
    for _ in range(data[22]):
        count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            if at >= len(data):
                return
            unit, at = _sized(data, at)
            if unit:
                yield unit


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    """A NAL unit behind its 16-bit length, and where it ends; empty where it is cut."""
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    return (data[at + 2 : end] if end <= len(data) else b""), end
