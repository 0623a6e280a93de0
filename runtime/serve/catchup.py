"""Catching up: what of a live stream is not decoded, when the server has more to do than time.

The receiver and its decoders are the first to fall behind, for they share the interpreter's lock. A packet that waited
for its turn longer than ``behind`` is stale: pictures are left out from there to the next keyframe, and sound, which is
cheap, once it waited twice as long. A clip of which pictures were decoded is given some more time, for what went into
it would be lost. Their clips are shed (``packet.BACKLOG``), a decision that is recorded and that a
replay obeys; the stream goes on with what is new, and its answers stay in time with less to see. Every stream judges
its own line, and the pool serves lines in turn, so that all streams give up the same share.

A burst is no backlog: what a sender brings ahead of its time, after a link was away, is due at twice the pace of time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runtime.lane import INTRA_ONLY
from runtime.packet import BACKLOG, CodecConfig, Decision, Packet

__all__ = ["CatchUp"]

PACE = 0.5  # seconds in which a second of a burst is due
LONGEST_STEP = 1.0  # seconds of media between two packets; a longer one is a clock that was set
PATIENCE = {"video": 1.0, "audio": 2.0}  # times ``behind``
BEGUN = 1.5  # times that, for a clip of which pictures were decoded


class CatchUp:
    """Of one live stream. ``receiver`` knows which clip a packet is of; ``behind`` is in seconds."""

    def __init__(self, receiver: Any, codecs: Mapping[str, CodecConfig], behind: float) -> None:
        self._receiver, self._codecs, self._behind = receiver, codecs, behind
        self._media: float | None = None  # capture time of the newest packet
        self._due = float("-inf")
        self._before: dict[str, Packet] = {}  # the packet before
        self._late: set[str] = set()  # modalities of which nothing is decoded now
        self._decided: dict[str, int] = {}  # the last clip that was shed
        self.shed = 0  # clips, each modality by itself

    def decide(self, packet: Packet, now: float) -> Iterator[Decision]:
        """What is shed from this packet on, which goes to the receiver next. ``now`` is on the axis of arrivals."""
        modality = packet.modality
        alone = modality == "audio" or self._codecs[modality].codec in INTRA_ONLY
        waited, patience = now - self._expected(packet), self._behind * PATIENCE[modality]
        before, self._before[modality] = self._before.get(modality), packet
        if waited > patience:
            if alone or waited > BEGUN * patience or not self._begun(before, packet):
                self._late.add(modality)
        elif alone or packet.keyframe:
            self._late.discard(modality)
        if modality not in self._late:
            return
        clip = self._receiver.clip_of(packet)
        if clip is None:
            return
        # a keyframe of a clip that is followed by one which is decoded would be, too
        last = clip + 1 if packet.keyframe and not alone else clip
        for shed in range(max(clip, self._decided.get(modality, -1) + 1), last + 1):
            self._decided[modality] = shed
            self.shed += 1
            at = now if packet.arrival is None else packet.arrival
            yield Decision(kind="shed", modality=modality, arrival=at, clip=shed, reason=BACKLOG)

    def _begun(self, before: Packet | None, packet: Packet) -> bool:
        """Whether the packet before was of the same clip."""
        return before is not None and self._receiver.clip_of(before) == self._receiver.clip_of(packet)

    def _expected(self, packet: Packet) -> float:
        """When a packet was to be decoded: when it came, or later if it came before its time."""
        at, before = packet.decode_seconds, self._media
        step = 0.0 if before is None else min(max(at - before, 0.0), LONGEST_STEP)
        if before is None or at > before or before - at > LONGEST_STEP:
            self._media = at
        arrival = self._due if packet.arrival is None else packet.arrival
        self._due = max(arrival, self._due + PACE * step)
        return self._due
