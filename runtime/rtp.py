"""RTP packets: bytes to fields and back (RFC 3550, section 5.1; header extensions RFC 8285). Pure: no socket, no clock.

A datagram that is no RTP packet raises RtpError in one sentence; whoever reads from a network counts it and goes on.
What a packet carries is read by ``runtime.payloads``.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RtpError", "RtpPacket", "is_rtcp", "pack_extensions", "parse_extensions", "parse_rtp"]

VERSION = 2
HEADER = struct.Struct(">BBHII")
ONE_BYTE = 0xBEDE  # profile of extensions with one-byte element headers
TWO_BYTES = 0x1000  # with two-byte ones; its low four bits are the application's


class RtpError(ValueError):
    """Bytes from the network that are not what they claim to be. Counted by the sources, never shown to a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RtpPacket:
    """One RTP packet, as on the wire; numbers are not unwrapped."""

    payload_type: int  # 0 to 127
    seq: int  # 16 bits
    timestamp: int  # 32 bits, ticks of the payload's clock
    ssrc: int  # 32 bits
    payload: bytes = b""
    marker: bool = False
    csrc: tuple[int, ...] = ()
    profile: int | None = None  # of the header extension; None = there is none
    extension: bytes = b""  # its bytes, a multiple of 4
    padding: int = 0  # bytes at the end, the last of which counts them

    def __bytes__(self) -> bytes:
        """The packet on the wire; padding is written as zeros."""
        assert self.padding in range(256) and len(self.csrc) < 16 and len(self.extension) % 4 == 0, self
        flags = VERSION << 6 | (self.padding > 0) << 5 | (self.profile is not None) << 4 | len(self.csrc)
        kind = self.marker << 7 | self.payload_type
        parts = [HEADER.pack(flags, kind, self.seq, self.timestamp, self.ssrc)]
        parts.append(struct.pack(f">{len(self.csrc)}I", *self.csrc))
        if self.profile is not None:
            parts.append(struct.pack(">HH", self.profile, len(self.extension) // 4) + self.extension)
        parts.append(self.payload)
        if self.padding:
            parts.append(bytes(self.padding - 1) + bytes([self.padding]))
        return b"".join(parts)


def parse_rtp(data: bytes) -> RtpPacket:
    """The packet in a datagram. Raises RtpError."""
    if len(data) < HEADER.size:
        raise RtpError(f"RTP packet has {len(data)} bytes; a header takes {HEADER.size}")
    flags, kind, seq, timestamp, ssrc = HEADER.unpack_from(data)
    if flags >> 6 != VERSION:
        raise RtpError(f"RTP version is {flags >> 6}; only {VERSION} is known")
    at, count = HEADER.size, flags & 15
    if at + 4 * count > len(data):
        raise RtpError(f"RTP packet ends within its list of {count} contributing sources")
    csrc = struct.unpack_from(f">{count}I", data, at)
    at += 4 * count
    profile, extension = None, b""
    if flags & 0x10:
        profile, extension = _extension(data, at)
        at += 4 + len(extension)
    padding = _padding(data, at) if flags & 0x20 else 0
    return RtpPacket(
        payload_type=kind & 127,
        seq=seq,
        timestamp=timestamp,
        ssrc=ssrc,
        payload=bytes(data[at : len(data) - padding]),
        marker=kind >= 128,
        csrc=csrc,
        profile=profile,
        extension=extension,
        padding=padding,
    )


def _extension(data: bytes, at: int) -> tuple[int, bytes]:
    if at + 4 > len(data):
        raise RtpError("RTP packet ends within the head of its header extension")
    profile, words = struct.unpack_from(">HH", data, at)
    extension = bytes(data[at + 4 : at + 4 + 4 * words])
    if len(extension) != 4 * words:
        raise RtpError(f"RTP header extension announces {4 * words} bytes, and {len(extension)} are left")
    return profile, extension


def _padding(data: bytes, at: int) -> int:
    left = len(data) - at
    padding = data[-1] if left else 0
    if padding == 0:
        raise RtpError("RTP padding has length 0; its last byte counts itself")
    if padding > left:
        raise RtpError(f"RTP padding of {padding} bytes is longer than the {left} bytes after the header")
    return padding


def is_rtcp(data: bytes) -> bool:
    """Whether a datagram on a shared port is RTCP: packet types 192 to 223 (RFC 5761, section 4)."""
    return len(data) >= 2 and data[0] >> 6 == VERSION and 192 <= data[1] <= 223


def parse_extensions(profile: int | None, data: bytes) -> dict[int, bytes]:
    """Elements of a header extension by local identifier (RFC 8285, sections 4.2 and 4.3); {} for other profiles.

    Raises RtpError where an element is longer than what is left.
    """
    if profile == ONE_BYTE:
        return _elements(data, 1)
    if profile is not None and profile & 0xFFF0 == TWO_BYTES:
        return _elements(data, 2)
    return {}


def _elements(data: bytes, head: int) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if data[at] == 0:  # padding
            at += 1
            continue
        if head == 1 and data[at] >> 4 == 15:  # reserved: the rest is to be ignored
            break
        if at + head > len(data):
            raise RtpError("RTP header extension ends within the head of an element")
        number, size = (data[at] >> 4, (data[at] & 15) + 1) if head == 1 else (data[at], data[at + 1])
        at += head
        if at + size > len(data):
            raise RtpError(f"RTP header extension element {number} has {size} bytes, and {len(data) - at} are left")
        out[number] = bytes(data[at : at + size])
        at += size
    return out


def pack_extensions(elements: Mapping[int, bytes]) -> tuple[int, bytes]:
    """(profile, data) of a header extension: one-byte heads where every element allows it. Raises RtpError."""
    short = all(1 <= number <= 14 and 1 <= len(data) <= 16 for number, data in elements.items())
    out = bytearray()
    for number, data in elements.items():
        if not 1 <= number <= 255 or len(data) > 255:
            raise RtpError(f"RTP header extension element {number} of {len(data)} bytes fits no form; 255 is the most")
        out += bytes([number << 4 | len(data) - 1]) if short else bytes([number, len(data)])
        out += data
    out += bytes(-len(out) % 4)
    return ONE_BYTE if short else TWO_BYTES, bytes(out)
