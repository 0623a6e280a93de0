"""Groups: packets of inter-coded video kept since a picture that needs none before it, to decode them once more.

A packet that comes too late leaves every picture after it in its group without the reference that it needs. From the
group's start on, with the late packet in its place, they can be decoded again. The group that runs and the one before
it are kept, bounded in packets and bytes: where a group is longer, it cannot be decoded again.
"""

from collections.abc import Sequence

from runtime.packet import Packet

__all__ = ["Groups"]

MOST_PACKETS = 600  # of both groups
MOST_BYTES = 16 << 20


class Groups:
    """The packets of the group that runs, in decode order, and of the one before."""

    def __init__(self, most_packets: int = MOST_PACKETS, most_bytes: int = MOST_BYTES) -> None:
        self._most_packets, self._most_bytes = most_packets, most_bytes
        self._packets: dict[int, Packet] = {}
        self._bytes = 0
        self._starts: list[int] = []  # of the groups, in order; none: nothing is kept
        self.whole: set[int] = set()  # of these packets, those whose pictures came out intact

    def add(self, packet: Packet, start: bool) -> None:
        """The next packet in decode order; ``start``: decoding may begin with it."""
        if start:
            self._starts.append(packet.seq)
            self._forget(self._starts[-2:])
        if self._starts:
            self._keep(packet)

    def insert(self, packet: Packet, start: bool) -> None:
        """A late packet in its place; ``start``: decoding may begin with it."""
        if start and packet.seq not in self._starts:
            self._starts = sorted([*self._starts, packet.seq])
        if (self._starts and packet.seq > self._starts[0]) or start:
            self._keep(packet)

    def of(self, seq: int) -> Sequence[Packet]:
        """The packets of the group that a number belongs to, in decode order; empty where its start is not known.

        With the packet that begins a group comes the group before: its last pictures may have waited for that packet.
        """
        begins = seq in self._starts
        first = max((s for s in self._starts if s < seq), default=seq if begins else None)
        if first is None:
            return ()
        end = min((s for s in self._starts if s > seq), default=None)
        return [self._packets[s] for s in sorted(self._packets) if s >= first and (end is None or s < end)]

    def runs(self, seq: int) -> bool:
        """Whether the group of this number is the one that the next packet goes on with."""
        return bool(self._starts) and seq >= self._starts[-1]

    def clear(self) -> None:
        """Nothing that came belongs to what comes."""
        self._forget([])

    def _keep(self, packet: Packet) -> None:
        self._packets[packet.seq] = packet
        self._bytes += len(packet.payload)
        while self._starts and (len(self._packets) > self._most_packets or self._bytes > self._most_bytes):
            self._forget(self._starts[1:])

    def _forget(self, starts: list[int]) -> None:
        """Keep only the groups that begin with these."""
        first = starts[0] if starts else None
        self._starts = starts
        if first is None or any(s < first for s in self._packets):
            self._packets = {s: p for s, p in self._packets.items() if first is not None and s >= first}
            self._bytes = sum(len(p.payload) for p in self._packets.values())
        self.whole &= self._packets.keys()
