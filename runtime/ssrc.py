"""One modality of an RTP session: which of the senders (SSRC) speaks, and its packets on the receiver's axes. Pure.

    datagram -> who (SSRC) -> number (16 bits unwrapped) -> order (holes given up) -> frames -> capture clock -> Packet

- **Who.** Two packets with consecutive numbers make a sender (RFC 3550, A.1). One sender is listened to; another takes
  over when it said goodbye or was silent for ``QUIET`` seconds. The new one is the same camera begun anew: frame
  numbers go on behind a hole, so that its first picture is believed only if decoding can start there.
- **When.** The first packet of a sender ties its timestamps to the receiver's clock: captured when it arrived. From
  then on timestamps count. One that jumps by more than ``JUMP`` seconds, when arrivals say otherwise, is believed only
  if the next one follows it, and is then tied anew. Sound is shifted onto the pictures' clock when sender reports tell
  where it belongs (``steer``), by at most ``SLEW`` a packet, which no decoder takes for a hole.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from runtime.depacketize import Pictures, Sound, Unit
from runtime.packet import Decision, ExtendedSequence, Packet, unwrap
from runtime.payloads import opus_samples
from runtime.reorder import Arrived, Hole, ReorderBuffer
from runtime.rtcp import SenderClock
from runtime.rtp import RtpPacket
from runtime.sdp import Format, codec_of

__all__ = ["RtpStats", "Track"]

QUIET = 0.3  # seconds of silence after which another sender may take over
JUMP = 2.0  # seconds; the same as of an epoch (runtime.clock)
SLEW = Fraction(1, 1000)  # seconds a packet
LEAP = 0.25  # seconds; what is further off is put right at once, not slowly
MOST_APART = 5.0  # seconds; reports that would move sound further speak of clocks that were never set
CANDIDATES = 16  # senders that wait for their second packet, or for the other to fall silent
KEPT = 256  # packets of each
HELD = 256  # packets with a timestamp that is not believed yet


@dataclass(slots=True)
class RtpStats:
    """RTP packets of one modality, in the words of W3C webrtc-stats where it has one.

    ``received`` counts every packet that was offered; of these ``discarded`` came too late, ``duplicates`` twice,
    ``malformed`` could not be read, ``ignored`` held no media we know (padding, other payload types), ``foreign`` were
    of a sender that is not listened to, ``refused`` had a number nobody followed up.
    """

    received: int = 0
    lost: int = 0
    discarded: int = 0
    duplicates: int = 0
    malformed: int = 0
    ignored: int = 0
    foreign: int = 0
    refused: int = 0
    restarts: int = 0  # of a sender's numbers or timestamps
    senders: int = 0  # that were listened to


class _Sender:
    """One SSRC and its clocks."""

    def __init__(self, ssrc: int, rate: int, delay: float) -> None:
        self.ssrc = ssrc
        self.sequence = ExtendedSequence()
        self.reorder = ReorderBuffer(delay)
        self.clock = SenderClock(rate)
        self.cname: bytes | None = None
        self.gone = False  # it said goodbye
        self.heard = 0.0  # when it was last
        self.timestamp: int | None = None  # the newest, unwrapped
        self.arrival = 0.0  # of that
        self.offset: int | None = None  # capture time minus timestamp, ticks
        self.target: int | None = None  # where sender reports want the offset
        self.held: list[tuple[Arrived, int]] = []  # packets whose timestamps jumped, unwrapped


class Track:
    """See the module's docstring. ``formats`` by payload type; ``delay``: seconds that a hole in the numbers waits."""

    def __init__(self, modality: str, formats: Mapping[int, Format], delay: float) -> None:
        assert formats, "a track has at least one format"
        self.modality = modality
        self.stats = RtpStats()
        self.formats = dict(formats)
        self.format = next(iter(formats.values()))
        self.sender: _Sender | None = None
        self.steps = 0  # times that sound was moved at once
        self._base = Fraction(1, self.format.rate)
        self._delay = delay
        self._candidates: OrderedDict[int, deque[tuple[RtpPacket, float]]] = OrderedDict()
        self._frames: Pictures | Sound = self._depacketizer(0)

    @property
    def next_deadline(self) -> float | None:
        """When ``advance`` will have something to give; None = not before another packet."""
        return None if self.sender is None else self.sender.reorder.next_deadline

    def receive(self, packet: RtpPacket, now: float) -> list[Packet | Decision]:
        """A packet that arrived; ``advance`` was called up to ``now``."""
        self.stats.received += 1
        if self.sender is None or packet.ssrc != self.sender.ssrc:
            return self._candidate(packet, now)
        return self._accept(self.sender, packet, now, now)

    def advance(self, at: float) -> list[Packet | Decision]:
        """Time passed to ``at``, no later than ``next_deadline``."""
        if self.sender is None:
            return []
        return self._ordered(self.sender, self.sender.reorder.poll(at), at)

    def goodbye(self, ssrc: int, now: float) -> list[Packet | Decision]:
        """A sender leaves."""
        self._candidates.pop(ssrc, None)
        if self.sender is None or self.sender.ssrc != ssrc:
            return []
        self.sender.gone = True
        return self.finish(now)

    def finish(self, now: float) -> list[Packet | Decision]:
        """Nothing more is waited for."""
        if self.sender is None:
            return []
        out = self._ordered(self.sender, self.sender.reorder.flush(now), now)
        return out + self._packets(self.sender, self._frames.flush(), now)

    def steer(self, target: int) -> None:
        """Sender reports say what is to be added to timestamps (ticks)."""
        sender = self.sender
        if sender is not None and sender.offset is not None:
            near = abs(target - sender.offset) <= MOST_APART * self.format.rate
            sender.target = target if near else None

    def _candidate(self, packet: RtpPacket, now: float) -> list[Packet | Decision]:
        """A packet of a sender that is not listened to, yet."""
        if packet.payload_type not in self.formats:
            self.stats.ignored += 1
            return []
        kept = self._candidates.setdefault(packet.ssrc, deque(maxlen=KEPT))
        self._candidates.move_to_end(packet.ssrc)
        if len(self._candidates) > CANDIDATES:
            self._candidates.popitem(last=False)
        follows = bool(kept) and (kept[-1][0].seq + 1) % ExtendedSequence.SIZE == packet.seq
        kept.append((packet, now))
        self.stats.foreign += 1
        current = self.sender
        if not follows or (current is not None and not current.gone and now - current.heard < QUIET):
            return []
        del self._candidates[packet.ssrc]
        return self._adopt(packet.ssrc, kept, now)

    def _adopt(self, ssrc: int, kept: Iterable[tuple[RtpPacket, float]], now: float) -> list[Packet | Decision]:
        out = self.finish(now)
        if self.sender is not None:
            out += self._packets(self.sender, self._frames.restart(), now)
        self.sender = _Sender(ssrc, self.format.rate, self._delay)
        self.stats.senders += 1
        for packet, arrival in kept:
            self.stats.foreign -= 1
            out += self._accept(self.sender, packet, arrival, now)
        return out

    def _accept(self, sender: _Sender, packet: RtpPacket, arrival: float, at: float) -> list[Packet | Decision]:
        """A packet of the sender that is listened to, on its way through the reorder buffer."""
        sender.heard = at
        restarts = sender.sequence.restarts
        number = sender.sequence.extend(packet.seq)
        if number is None:
            self.stats.refused += 1
            return []
        out: list[Packet | Decision] = []
        if sender.sequence.restarts != restarts:
            out += self._restart(sender, at)
        duplicates, early = sender.reorder.duplicates, sender.reorder.early
        out += self._ordered(sender, sender.reorder.push(number, packet, arrival), at)
        self.stats.duplicates += sender.reorder.duplicates - duplicates
        self.stats.discarded += sender.reorder.early - early
        return out

    def _restart(self, sender: _Sender, at: float) -> list[Packet | Decision]:
        """The sender's numbers begin anew."""
        self.stats.restarts += 1
        out = self._ordered(sender, sender.reorder.flush(at), at)
        sender.reorder = ReorderBuffer(self._delay)
        return out + self._packets(sender, self._frames.restart(), at)

    def _ordered(self, sender: _Sender, items: Iterable[Arrived | Hole], at: float) -> list[Packet | Decision]:
        out: list[Packet | Decision] = []
        for item in items:
            if isinstance(item, Hole):
                self.stats.lost += item.count
                out += self._packets(sender, self._frames.lose(item.count), at)
            elif item.late:
                self.stats.lost -= 1
                out += self._late(sender, item, at)
            else:
                out += self._in_order(sender, item, at)
        return out

    def _late(self, sender: _Sender, item: Arrived, at: float) -> list[Packet | Decision]:
        known = self.formats.get(item.packet.payload_type)
        if known is not self.format or not item.packet.payload or sender.timestamp is None:
            self.stats.ignored += 1
            return []
        units = self._frames.late(item, unwrap(item.packet.timestamp, sender.timestamp, 32))
        if not units:
            self.stats.discarded += 1
        return self._packets(sender, units, at)

    def _in_order(self, sender: _Sender, item: Arrived, at: float) -> list[Packet | Decision]:
        packet = item.packet
        chosen = self.formats.get(packet.payload_type)
        if chosen is None or not packet.payload:
            self.stats.ignored += 1
            return self._packets(sender, self._frames.pass_over(item), at)
        out: list[Packet | Decision] = []
        if chosen is not self.format:
            out += self._change(sender, chosen, at)
        timestamp = packet.timestamp if sender.timestamp is None else unwrap(packet.timestamp, sender.timestamp, 32)
        if not self._jumps(sender, timestamp, item.arrival):
            self._drop_held(sender)
            return out + self._place(sender, item, timestamp, at)
        if sender.held and sender.held[-1][1] != timestamp and self._near(timestamp - sender.held[0][1]):
            out += self._packets(sender, self._frames.flush(), at)  # on the clock it was coded on
            held, sender.held = sender.held, []
            sender.offset = sender.target = None  # tied anew
            sender.clock.forget()
            self.stats.restarts += 1
            for before, time in [*held, (item, timestamp)]:
                out += self._place(sender, before, time, at)
            return out
        if sender.held and sender.held[-1][1] != timestamp:
            self._drop_held(sender)
        sender.held.append((item, timestamp))
        if len(sender.held) > HELD:
            self._drop_held(sender)
        return out

    def _drop_held(self, sender: _Sender) -> None:
        """Timestamps that nobody followed up: their packets are malformed, and missed."""
        if sender.held:
            self.stats.malformed += len(sender.held)
            self._frames.lose(len(sender.held))
            sender.held = []

    def _jumps(self, sender: _Sender, timestamp: int, arrival: float) -> bool:
        """Neither goes on from the last, nor did arrivals take as long."""
        if sender.timestamp is None:
            return False
        step = timestamp - sender.timestamp
        waited = (arrival - sender.arrival) * self.format.rate
        return not self._near(step) and not self._near(step - waited)

    def _near(self, ticks: float) -> bool:
        return abs(ticks) <= JUMP * self.format.rate

    def _place(self, sender: _Sender, item: Arrived, timestamp: int, at: float) -> list[Packet | Decision]:
        if sender.offset is None:
            sender.offset = round(item.arrival * self.format.rate) - timestamp
        sender.timestamp, sender.arrival = timestamp, item.arrival
        malformed = self._frames.malformed
        units = self._frames.push(item, timestamp)
        self.stats.malformed += self._frames.malformed - malformed
        return self._packets(sender, units, at)

    def _change(self, sender: _Sender, chosen: Format, at: float) -> list[Packet | Decision]:
        """Another payload type: what it means may be another codec or clock."""
        out = self._packets(sender, self._frames.flush(), at)
        before, self.format = self.format, chosen
        if codec_of(before) == codec_of(chosen):
            return out
        self._frames = self._depacketizer(self._frames.next_seq)
        self._base = Fraction(1, chosen.rate)
        if before.rate != chosen.rate:
            sender.timestamp = sender.offset = sender.target = None
            sender.clock = SenderClock(chosen.rate)
        return [*out, Decision(kind="format_change", modality=self.modality, arrival=at, codec=codec_of(chosen))]

    def _depacketizer(self, next_seq: int) -> Pictures | Sound:
        if self.modality == "video":
            return Pictures(self.format.rate, next_seq)
        if self.format.encoding == "OPUS":
            return Sound(opus_samples, next_seq)
        channels = self.format.channels
        return Sound(lambda payload: len(payload) // channels, next_seq)

    def _packets(self, sender: _Sender, units: list[Unit], at: float) -> list[Packet | Decision]:
        return [self._packet(sender, unit, at) for unit in units]

    def _packet(self, sender: _Sender, unit: Unit, at: float) -> Packet:
        assert sender.offset is not None, "a frame has packets, and the first of them ties the clock"
        if sender.target is not None and sender.target != sender.offset:
            self._approach(sender)
        return Packet(
            modality=self.modality,
            seq=unit.seq,
            capture_time=unit.timestamp + sender.offset,
            time_base=self._base,
            payload=unit.payload,
            duration=unit.duration,
            keyframe=unit.keyframe,
            disposable=unit.disposable,
            corrupt=unit.corrupt,
            arrival=at,
        )

    def _approach(self, sender: _Sender) -> None:
        """One step towards the offset that sender reports want."""
        assert sender.offset is not None and sender.target is not None
        wanted = sender.target - sender.offset
        if abs(wanted) > LEAP * self.format.rate:
            self.steps += 1
            sender.offset = sender.target
            return
        most = max(int(SLEW * self.format.rate), 1)
        sender.offset += min(max(wanted, -most), most)
