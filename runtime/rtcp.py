"""RTCP: compound packets to values and back (RFC 3550, section 6), and what sender reports say about clocks. Pure.

A sender report ties an RTP timestamp to the sender's wall clock (NTP). Audio and video of one sender have timestamps
that start anywhere; only their reports say what was captured together.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from runtime.packet import unwrap
from runtime.rtp import RtpError

__all__ = [
    "CNAME",
    "Goodbye",
    "ReceiverReport",
    "ReportBlock",
    "RtcpPacket",
    "SenderClock",
    "SenderReport",
    "SourceDescription",
    "pack_rtcp",
    "parse_rtcp",
]

SR, RR, SDES, BYE = 200, 201, 202, 203  # packet types
CNAME = 1  # SDES item: the sender's canonical name, one for all of its streams
BLOCK = struct.Struct(">IIIIII")
SENDER = struct.Struct(">IQIII")
LEAP = 5.0  # seconds; a report further from the line of the one before means that a clock was set anew


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBlock:
    """What a receiver says about one source."""

    ssrc: int
    fraction_lost: int = 0  # of 256, since the last report
    packets_lost: int = 0  # since the start; duplicates can make it negative
    highest_seq: int = 0  # extended, 32 bits
    jitter: int = 0  # ticks
    last_report: int = 0  # middle 32 bits of the NTP time of the last sender report
    delay: int = 0  # 1/65536 s since that report came


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderReport:
    """``timestamp`` is what the sender's RTP clock showed at ``ntp`` (1/2**32 s since 1900)."""

    ssrc: int
    ntp: int
    timestamp: int
    packets: int = 0
    octets: int = 0
    blocks: tuple[ReportBlock, ...] = ()

    @property
    def wall(self) -> Fraction:
        """Seconds of the sender's wall clock, since 1900."""
        return Fraction(self.ntp, 1 << 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverReport:
    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDescription:
    """Items by source: ``(ssrc, ((item type, bytes), ...))``."""

    chunks: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]

    def cname(self, ssrc: int) -> bytes | None:
        """The canonical name of a source, where it is told."""
        return next((text for s, items in self.chunks if s == ssrc for kind, text in items if kind == CNAME), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye:
    ssrcs: tuple[int, ...]
    reason: bytes = b""


RtcpPacket = SenderReport | ReceiverReport | SourceDescription | Goodbye


def parse_rtcp(data: bytes) -> list[RtcpPacket]:
    """The packets of a compound that we know; others (feedback, extended reports) are passed over. Raises RtpError."""
    out: list[RtcpPacket] = []
    for kind, count, body in _packets(data):
        try:
            if kind == SR:
                out.append(_sender(body, count))
            elif kind == RR:
                out.append(ReceiverReport(ssrc=struct.unpack_from(">I", body)[0], blocks=_blocks(body, 4, count)))
            elif kind == SDES:
                out.append(SourceDescription(chunks=tuple(_chunks(body, count))))
            elif kind == BYE:
                out.append(_goodbye(body, count))
        except struct.error:
            raise RtpError(f"RTCP packet of type {kind} ends early, after {len(body)} bytes") from None
    return out


def _packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, count, body) of each packet of a compound."""
    if not data:
        raise RtpError("RTCP compound is empty")
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise RtpError(f"RTCP packet has {len(data) - at} bytes; a header takes 4")
        flags, kind, words = struct.unpack_from(">BBH", data, at)
        if flags >> 6 != 2:
            raise RtpError(f"RTCP version is {flags >> 6}; only 2 is known")
        end = at + 4 + 4 * words
        if end > len(data):
            raise RtpError(f"RTCP packet announces {4 * words} bytes, and {len(data) - at - 4} are left")
        body = bytes(data[at + 4 : end])
        if flags & 0x20:
            padding = body[-1] if body else 0
            if not 0 < padding <= len(body):
                raise RtpError(f"RTCP padding of {padding} bytes does not fit its packet of {len(body)} bytes")
            body = body[:-padding]
        yield kind, flags & 31, body
        at = end


def _sender(body: bytes, count: int) -> SenderReport:
    ssrc, ntp, timestamp, packets, octets = SENDER.unpack_from(body)
    blocks = _blocks(body, SENDER.size, count)
    return SenderReport(ssrc=ssrc, ntp=ntp, timestamp=timestamp, packets=packets, octets=octets, blocks=blocks)


def _blocks(body: bytes, at: int, count: int) -> tuple[ReportBlock, ...]:
    out = []
    for i in range(count):
        ssrc, lost, highest, jitter, last, delay = BLOCK.unpack_from(body, at + i * BLOCK.size)
        total = lost & 0xFFFFFF
        out.append(
            ReportBlock(
                ssrc=ssrc,
                fraction_lost=lost >> 24,
                packets_lost=total - (1 << 24) if total >> 23 else total,
                highest_seq=highest,
                jitter=jitter,
                last_report=last,
                delay=delay,
            )
        )
    return tuple(out)


def _chunks(body: bytes, count: int) -> Iterator[tuple[int, tuple[tuple[int, bytes], ...]]]:
    at = 0
    for _ in range(count):
        (ssrc,) = struct.unpack_from(">I", body, at)
        at += 4
        items = []
        while at < len(body) and body[at]:
            kind, size = struct.unpack_from(">BB", body, at)
            text = body[at + 2 : at + 2 + size]
            if len(text) != size:
                raise RtpError(f"RTCP item {kind} announces {size} bytes, and {len(text)} are left")
            items.append((kind, text))
            at += 2 + size
        at += 4 - at % 4  # at least one zero ends the list
        yield ssrc, tuple(items)


def _goodbye(body: bytes, count: int) -> Goodbye:
    ssrcs = struct.unpack_from(f">{count}I", body)
    rest = body[4 * count :]
    return Goodbye(ssrcs=ssrcs, reason=rest[1 : 1 + rest[0]] if rest else b"")


def pack_rtcp(*packets: RtcpPacket) -> bytes:
    """A compound packet on the wire."""
    return b"".join(map(_pack, packets))


def _pack(packet: RtcpPacket) -> bytes:
    match packet:
        case SenderReport():
            body = SENDER.pack(packet.ssrc, packet.ntp, packet.timestamp, packet.packets, packet.octets)
            return _head(SR, len(packet.blocks), body + _pack_blocks(packet.blocks))
        case ReceiverReport():
            return _head(RR, len(packet.blocks), struct.pack(">I", packet.ssrc) + _pack_blocks(packet.blocks))
        case SourceDescription():
            return _head(SDES, len(packet.chunks), b"".join(_pack_chunk(*chunk) for chunk in packet.chunks))
        case Goodbye():
            body = struct.pack(f">{len(packet.ssrcs)}I", *packet.ssrcs)
            if packet.reason:
                body += bytes([len(packet.reason)]) + packet.reason
            return _head(BYE, len(packet.ssrcs), body + bytes(-len(body) % 4))


def _head(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 2 << 6 | count, kind, len(body) // 4) + body


def _pack_blocks(blocks: tuple[ReportBlock, ...]) -> bytes:
    return b"".join(
        BLOCK.pack(
            b.ssrc, b.fraction_lost << 24 | b.packets_lost & 0xFFFFFF, b.highest_seq, b.jitter, b.last_report, b.delay
        )
        for b in blocks
    )


def _pack_chunk(ssrc: int, items: tuple[tuple[int, bytes], ...]) -> bytes:
    out = struct.pack(">I", ssrc) + b"".join(bytes([kind, len(text)]) + text for kind, text in items)
    return out + bytes(4 - len(out) % 4)


class SenderClock:
    """One stream's RTP clock on its sender's wall clock, by the newest sender report."""

    def __init__(self, rate: int) -> None:
        self.rate = rate  # Hz
        self.resets = 0  # reports that contradicted the one before: a clock was set anew
        self._wall: Fraction | None = None
        self._timestamp = 0  # unwrapped beside the packets' own

    @property
    def known(self) -> bool:
        return self._wall is not None

    def report(self, report: SenderReport, near: int) -> None:
        """Take in a report. ``near`` is an unwrapped timestamp of the stream: the report's is the one closest to it."""
        if report.ntp == 0:  # the sender has no wall clock (RFC 3550, section 6.4.1)
            return
        timestamp = unwrap(report.timestamp, near, 32)
        if self._wall is not None and abs(self.wall(timestamp) - report.wall) > LEAP:
            self.resets += 1
        self._wall, self._timestamp = report.wall, timestamp

    def wall(self, timestamp: int) -> Fraction:
        """Seconds of the sender's wall clock at an unwrapped timestamp."""
        assert self._wall is not None
        return self._wall + Fraction(timestamp - self._timestamp, self.rate)

    def forget(self) -> None:
        """The sender began anew."""
        self._wall = None
