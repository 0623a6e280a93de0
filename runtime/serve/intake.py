"""Intake: the half of a session that runs in the decode pool, one thread at a time: packets to closed clips.

Everything that a client sent is judged here (``runtime.serve.limits``) before the receiver sees it; a bad packet is
counted as malformed and skipped. A resume sends packets again that came before: they are recognised and left out, so
that totals and jitter are those of an uninterrupted stream.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from protos import stream_pb2 as pb
from runtime.clip import Clip
from runtime.errors import SourceError
from runtime.observe import Observer
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.serve.answers import StreamStats
from runtime.serve.catchup import CatchUp
from runtime.serve.convert import MODALITY_FROM_WIRE
from runtime.serve.fragments import Fragments
from runtime.serve.limits import Gate, Limits
from runtime.serve.status import exhausted, invalid
from runtime.serve.totals import Totals

__all__ = ["Intake"]

REMEMBERED = 16384  # numbers of frames, by modality: minutes of video, more than a client keeps unacknowledged
LONGEST_TAIL = 1 << 20  # packets that a client may say were lost at its end


class Intake:
    """Feeds one receiver. Arrivals and ``now`` are seconds on the session's clock and never go back.

    A live stream whose packets waited for more than ``behind`` seconds catches up (``runtime.serve.catchup``);
    without ``now`` a stream is recorded, and nothing of it is ever stale.
    """

    def __init__(
        self,
        receiver: Any,
        info: StreamInfo,
        limits: Limits,
        observer: Observer,
        tap: Any = None,
        *,
        now: Callable[[], float] | None = None,
        behind: float = math.inf,
    ) -> None:
        self.receiver, self.tap = receiver, tap
        self._now, self._observer = now, observer
        self.cpu = 0.0  # seconds spent here
        self.finished = False
        self._limits = limits
        self._gate = Gate(info.codecs, limits)
        self._fragments = Fragments()
        self._totals = Totals(receiver, observer)
        self._codecs: dict[str, CodecConfig] = dict(info.codecs)
        self._catchup = CatchUp(receiver, self._codecs, behind)
        self._sent = 0.0  # when the newest packet was, by its own time
        self._ended: set[str] = set()
        self._recent: dict[str, deque[int]] = {m: deque(maxlen=REMEMBERED) for m in info.codecs}
        self._again: dict[str, set[int]] = {}  # numbers that will be sent once more

    def packet(self, wire: pb.Packet, arrival: float | None) -> list[Clip]:
        """One packet, as it was read; without an arrival it is recorded, and came when it says, or when it was sent."""
        modality = MODALITY_FROM_WIRE.get(wire.modality)
        if modality is None or modality not in self._codecs:
            self.receiver.ledger[next(iter(self._codecs))].malformed()
            return []
        packet = None if self.finished else self._read(wire, modality, arrival)
        if packet is None:
            return []
        clips: list[Clip] = [] if self._now is None else self._catch_up(packet, self._now())
        if self.tap is not None:
            self.tap.packet(packet)
        self._sent = packet.decode_seconds if packet.arrival is None else packet.arrival
        clips += self.receiver.push(packet, self._sent)
        return clips

    def _catch_up(self, packet: Packet, now: float) -> list[Clip]:
        """Shed what this packet waited too long for."""
        clips: list[Clip] = []
        for decision in self._catchup.decide(packet, now):
            clips += self.receiver.push(decision, decision.arrival)
            self._observer.shed(decision.modality)
            self.decided(decision)
        return clips

    @property
    def shed(self) -> int:
        """Clips of which a modality was not even decoded."""
        return self._catchup.shed

    def _read(self, wire: pb.Packet, modality: str, arrival: float | None) -> Packet | None:
        """What may go to the receiver: None for a bad packet, which is counted, and for a part of a frame."""
        try:
            whole = self._fragments.push(wire, modality)
        except ValueError:
            self.receiver.ledger[modality].malformed()
            return None
        if whole is None or whole.seq in self._again.get(modality, ()):
            return None  # the rest is to come, or all of it came before
        self._recent[modality].append(whole.seq)
        if arrival is None and whole.HasField("arrival_seconds"):
            arrival = whole.arrival_seconds
        packet = None if modality in self._ended else self._gate.packet(whole, arrival)
        if packet is None:
            self.receiver.ledger[modality].malformed()
        return packet

    def change(self, modality: str, codec: CodecConfig, arrival: float | None) -> list[Clip]:
        """What follows is coded otherwise. Raises Refused where it cannot be decoded."""
        if codec == self._codecs[modality] or self.finished:
            return []
        at = self._sent if arrival is None else arrival
        decision = Decision(kind="format_change", modality=modality, arrival=at, codec=codec)
        try:
            clips: list[Clip] = self.receiver.push(decision, at)
        except SourceError as error:
            raise invalid("codec", str(error)) from None
        self._codecs[modality] = codec
        self._gate.change(modality, codec)
        self.decided(decision)
        return clips

    def end(self, modality: str, last_seq: int | None) -> list[Clip]:
        """No packet of a modality follows; ``last_seq`` was the last that was sent."""
        if modality not in self._ended:
            self._ended.add(modality)
            numbers = self._recent[modality]
            newest = self._fragments.through(modality, max(numbers)) if numbers else None
            if last_seq is not None and newest is not None and 0 < last_seq - newest <= LONGEST_TAIL:
                self.receiver.ledger[modality].lose(last_seq - newest)
        return self.finish() if self._ended >= set(self._codecs) else []

    def finish(self) -> list[Clip]:
        """Nothing follows at all."""
        self.finished = True
        clips: list[Clip] = self.receiver.finish()
        return clips

    def advance(self, now: float) -> list[Clip]:
        """Nothing came until ``now``."""
        clips: list[Clip] = [] if self.finished else self.receiver.advance(now)
        return clips

    def rewind(self) -> list[Clip]:
        """A client came back and will send again what was not acknowledged."""
        self._again = {m: set(numbers) for m, numbers in self._recent.items()}
        return []

    def decided(self, decision: Decision) -> None:
        """Keep a decision in the recording, where there is one."""
        if self.tap is not None:
            self.tap.decision(decision)

    def stats(self) -> StreamStats:
        """Totals so far."""
        return self._totals.read()

    def settle(self) -> None:
        """Nothing follows, and nobody waits for an answer: what was under way gets its fate, and whoever watches the
        server the last totals.
        """
        self.finished = True
        for _, ledger in self.receiver.ledger.items():
            ledger.settle()
        self._totals.read()

    def needed(self, clip: Clip) -> dict[str, int]:
        """By modality, the newest packet that a fresh receiver would not need for this clip and those after it."""
        found = {}
        for modality in self._codecs:
            seq = self.receiver.needed(modality, clip.start, clip.epoch)
            if seq is not None and seq >= 0:
                found[modality] = self._fragments.through(modality, seq)
        return found

    def received(self) -> list[tuple[str, int]]:
        """The newest packet of each modality."""
        return [(m, self._fragments.through(m, max(numbers))) for m, numbers in self._recent.items() if numbers]

    def check_budget(self) -> None:
        """Raises Refused once decoding took more than this stream's share."""
        limits = self._limits
        if self.cpu > limits.decode_burst + limits.decode_share * self._gate.media_seconds:
            raise exhausted(
                f"decoding took {self.cpu:.1f} s for {self._gate.media_seconds:.1f} s of media; send a smaller "
                "picture, fewer of them, or a cheaper codec",
                "decode_budget",
                None,
            )
