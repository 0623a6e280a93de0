"""What an RTP stream without a description carries, told from its packets. Pure.

Careful rather than clever: a stream is taken for what it seems only if every one of several packets agrees, in its
numbers, its timestamps and its bytes. Encrypted or unknown payloads are nothing.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from runtime.payloads import OPUS_RATE, looks_like_h264, opus_samples
from runtime.rtp import RtpError, RtpPacket
from runtime.sdp import Format, static_format

__all__ = ["LEAST", "Sample", "recognise"]

LEAST = 8  # packets before anything is believed
MOST = 64  # packets that are looked at
DYNAMIC = range(96, 128)  # payload types whose meaning is agreed elsewhere
G711_RATE = 8000  # Hz
CANDIDATES = 8  # senders sampled at once
SHARE = 0.75  # of neighbours whose timestamps must agree with their lengths


class Sample:
    """The first packets of the senders on one channel, bounded."""

    def __init__(self) -> None:
        self.packets: dict[tuple[int, int], deque[RtpPacket]] = {}  # by (SSRC, payload type)

    def add(self, packet: RtpPacket) -> None:
        key = packet.ssrc, packet.payload_type
        if key not in self.packets and len(self.packets) >= CANDIDATES:
            weakest = min(self.packets, key=lambda k: len(self.packets[k]))
            del self.packets[weakest]
        if packet.payload:
            self.packets.setdefault(key, deque(maxlen=MOST)).append(packet)

    def formats(self) -> dict[str, Format]:
        """The format of each modality that is recognised, by the sender of which most was seen."""
        found: dict[str, Format] = {}
        for _, packets in sorted(self.packets.items(), key=lambda item: -len(item[1])):
            chosen = recognise(list(packets))
            if chosen is not None:
                found.setdefault(chosen.modality, chosen)
        return found


def recognise(packets: Sequence[RtpPacket]) -> Format | None:
    """The format of packets of one sender and payload type, in order of arrival; None if it is not certain."""
    if len(packets) < LEAST or not _numbered(packets):
        return None
    number = packets[0].payload_type
    fixed = static_format(number)
    if fixed is not None:
        return fixed if _paced(packets, [len(p.payload) for p in packets], G711_RATE) else None
    if number not in DYNAMIC:
        return None
    try:
        lengths = [opus_samples(p.payload) for p in packets]
    except RtpError:
        lengths = []
    if lengths and _paced(packets, lengths, OPUS_RATE):
        return Format(payload_type=number, encoding="OPUS", rate=OPUS_RATE, channels=2)
    if looks_like_h264([p.payload for p in packets]) and any(p.marker for p in packets):
        return Format(payload_type=number, encoding="H264", rate=90_000)
    return None


def _numbered(packets: Sequence[RtpPacket]) -> bool:
    """Numbers grow, with few holes."""
    steps = [(b.seq - a.seq) % 65536 for a, b in pairwise(packets)]
    return sum(0 < step < 16 for step in steps) >= SHARE * len(steps)


def _paced(packets: Sequence[RtpPacket], lengths: Sequence[int], rate: int) -> bool:
    """Neighbours are as far apart in time as the first of them is long, and short enough to be sound."""
    steps = [
        (b.timestamp - a.timestamp) % (1 << 32) == length
        for (a, b), length in zip(pairwise(packets), lengths, strict=False)
        if b.seq == (a.seq + 1) % 65536
    ]
    return bool(steps) and sum(steps) >= SHARE * len(steps) and max(lengths) <= rate
