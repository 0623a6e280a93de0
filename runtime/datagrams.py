"""UDP datagrams in captured frames: link layers, IPv4 and IPv6 with their fragments. Pure, bounded, never raises.

Checksums are not looked at: captures taken on the sending machine hold wrong ones, filled in later by the adapter.
"""

import struct
from collections import OrderedDict
from dataclasses import dataclass, field

__all__ = ["Datagram", "Datagrams"]

# link layer types of captures (https://www.tcpdump.org/linktypes.html)
NULL, ETHERNET, LOOP, COOKED, COOKED_2, IPV4, IPV6 = 0, 1, 108, 113, 276, 228, 229
RAW = (12, 14, 101)
TAGS = (0x8100, 0x88A8, 0x9100)  # VLAN
ETHER_IPV4, ETHER_IPV6 = 0x0800, 0x86DD
UDP, HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS = 17, 0, 43, 44, 60  # IP protocols
MOST_PENDING = 64  # datagrams of which fragments are missing
MOST_FRAGMENTS = 64  # of one datagram
MOST_BYTES = 1 << 16  # of one datagram


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram; addresses are 4 or 16 bytes."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int
    payload: bytes

    @property
    def flow(self) -> tuple[bytes, int, bytes, int]:
        return self.source, self.source_port, self.target, self.target_port


@dataclass(slots=True)
class _Pending:
    """Fragments by offset, and the length once the last has come."""

    parts: dict[int, bytes] = field(default_factory=dict)
    length: int | None = None

    def joined(self) -> bytes | None:
        if self.length is None:
            return None
        out = b""
        for offset, part in sorted(self.parts.items()):
            if offset > len(out):
                return None
            out += part[len(out) - offset :]
        return out[: self.length] if len(out) >= self.length else None


class Datagrams:
    """Reads the frames of one capture, in order."""

    def __init__(self, link: int) -> None:
        self.link = link
        self.unread = 0  # frames that are cut off, or not what they claim to be
        self.fragments_lost = 0  # datagrams of which a fragment never came
        self._pending: OrderedDict[tuple[bytes, bytes, int], _Pending] = OrderedDict()

    @property
    def known(self) -> bool:
        """Whether frames of this link layer can be read."""
        return self.link in (NULL, ETHERNET, LOOP, COOKED, COOKED_2, IPV4, IPV6, *RAW)

    def read(self, frame: bytes) -> Datagram | None:
        """The UDP datagram that a frame completes; None if it holds none."""
        try:
            packet = self._network(frame)
            if packet is None:
                return None
            if packet[0] >> 4 == 4:
                return self._ipv4(packet)
            if packet[0] >> 4 == 6:
                return self._ipv6(packet)
        except (struct.error, IndexError):
            pass
        self.unread += 1
        return None

    def finish(self) -> None:
        """The capture ends: what is pending never came."""
        self.fragments_lost += len(self._pending)
        self._pending.clear()

    def _network(self, frame: bytes) -> bytes | None:
        """The IP packet in a frame; None for other protocols."""
        if self.link in (*RAW, IPV4, IPV6):
            return frame
        if self.link in (NULL, LOOP):
            return frame[4:] if frame[4] >> 4 in (4, 6) else None
        at = {ETHERNET: 12, COOKED: 14, COOKED_2: 0}[self.link]
        (kind,) = struct.unpack_from(">H", frame, at)
        at += 2 if self.link != COOKED_2 else 20
        while kind in TAGS:
            (kind,) = struct.unpack_from(">H", frame, at + 2)
            at += 4
        return frame[at:] if kind in (ETHER_IPV4, ETHER_IPV6) else None

    def _ipv4(self, packet: bytes) -> Datagram | None:
        """RFC 791."""
        head = (packet[0] & 15) * 4
        length, number, flags = struct.unpack_from(">HHH", packet, 2)
        if head < 20 or not head <= (length or len(packet)) <= len(packet):  # 0: the adapter fills it in
            self.unread += 1
            return None
        if packet[9] != UDP:
            return None
        source, target, body = packet[12:16], packet[16:20], packet[head : length or None]
        if flags & 0x3FFF:
            joined = self._fragment((source, target, number), (flags & 0x1FFF) * 8, bool(flags & 0x2000), body)
            return None if joined is None else self._udp(source, target, joined)
        return self._udp(source, target, body)

    def _ipv6(self, packet: bytes) -> Datagram | None:
        """RFC 8200."""
        length, following = struct.unpack_from(">HB", packet, 4)
        source, target = packet[8:24], packet[24:40]
        at, end = 40, 40 + length if length else len(packet)
        if end > len(packet):
            self.unread += 1
            return None
        while following in (HOP_BY_HOP, ROUTING, OPTIONS):
            following, words = packet[at], packet[at + 1]
            at += 8 + 8 * words
        if following == FRAGMENT:
            following, _, place, number = struct.unpack_from(">BBHI", packet, at)
            if following != UDP:
                return None
            joined = self._fragment((source, target, number), place & 0xFFF8, bool(place & 1), packet[at + 8 : end])
            return None if joined is None else self._udp(source, target, joined)
        return self._udp(source, target, packet[at:end]) if following == UDP else None

    def _fragment(self, key: tuple[bytes, bytes, int], offset: int, more: bool, body: bytes) -> bytes | None:
        """The datagram that this fragment completes, or None."""
        pending = self._pending.setdefault(key, _Pending())
        if offset + len(body) > MOST_BYTES or len(pending.parts) >= MOST_FRAGMENTS:
            del self._pending[key]
            self.fragments_lost += 1
            return None
        pending.parts.setdefault(offset, body)
        if not more:
            pending.length = offset + len(body)
        joined = pending.joined()
        if joined is not None:
            del self._pending[key]
        elif len(self._pending) > MOST_PENDING:
            self._pending.popitem(last=False)
            self.fragments_lost += 1
        return joined

    def _udp(self, source: bytes, target: bytes, body: bytes) -> Datagram | None:
        """RFC 768."""
        source_port, target_port, length = struct.unpack_from(">HHH", body)
        if length == 0:
            length = len(body)
        if not 8 <= length <= len(body):
            self.unread += 1
            return None
        return Datagram(source, source_port, target, target_port, body[8:length])
