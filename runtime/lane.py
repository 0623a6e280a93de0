"""Lane: everything the receiver keeps of one modality: jitter buffer, damage tracker, decoder, and what they need.

A lane also remembers the newest packets, so that a late one can be decoded among its neighbours by a decoder of its
own: a codec's state runs forwards only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from encoders.clips import FLICKS, AudioSpec, VideoSpec, to_flicks
from runtime.clip import Fate
from runtime.clock import EPOCH_JUMP
from runtime.entries import Entries
from runtime.epochs import OUTAGE
from runtime.groups import Groups
from runtime.jitter import AdaptiveDelay, JitterBuffer, TransitFloor
from runtime.packet import CodecConfig, Gap, Packet

REMEMBERED = 512  # packets whose outcome may still change; far more than any decoder holds back
OUTAGE_SECONDS = OUTAGE / FLICKS
NEIGHBOURS = 8  # packets decoded before and after a late one, so that the codec's state is right where it matters
FRAME_SECONDS = 0.04  # until packets tell
INTRA_ONLY = frozenset(
    {"apng", "bmp", "dnxhd", "dvvideo", "ffvhuff", "huffyuv", "jpeg2000", "mjpeg", "mjpegb", "png", "prores", "qoi"}
    | {"rawvideo", "tiff", "utvideo", "v210", "webp"}
)

Parts = Callable[[str, CodecConfig, Any, bool], tuple[Any, Any]]


def build_parts(modality: str, config: CodecConfig, spec: Any, sequenced: bool) -> tuple[Any, Any]:
    """A damage tracker and a decoder for one track; imports PyAV."""
    from runtime.damage import AudioDamage, VideoDamage
    from runtime.decode import AudioDecoder, VideoDecoder

    if modality == "video":
        return VideoDamage(config, sequence_numbers=sequenced), VideoDecoder(config, spec)
    return AudioDamage(config, sequence_numbers=sequenced), AudioDecoder(config, spec)


class Lane:
    """One modality of a stream, from the wire to decoded pieces."""

    def __init__(
        self,
        modality: str,
        config: CodecConfig,
        spec: VideoSpec | AudioSpec,
        delay: float | AdaptiveDelay,
        offset: float | None,
        parts: Parts,
        sequenced: bool,
        late_repair: bool = False,
    ) -> None:
        self.modality, self.config, self.spec = modality, config, spec
        self.shift = 0  # flicks added to capture times
        self.heard = False  # a packet came
        self.silent = False  # not waited for
        self.silent_at: float | None = None  # when it will be
        self.transit = TransitFloor()
        self.bias = 0.0  # seconds added to a sending time where no arrival is known
        self.last_end: int | None = None  # flicks where the packet before ended
        self.failed = False  # the packet decoded last was refused
        self._parts, self._sequenced = parts, sequenced
        self.jitter = JitterBuffer(modality, delay, offset=offset)
        self.damage, self._decoder = parts(modality, config, spec, sequenced)
        self.entries = Entries(config, spec)
        self._follows = modality == "video" and not sequenced  # a container: lost packets leave no number behind
        self._decoded: int | None = None  # decode time of the packet before, ticks
        self._step = 0  # usual ticks between two
        self._base: Fraction | None = None
        self._scale = 0  # flicks to a tick of that base
        self._fates: dict[int, Fate | None] = {}  # packet -> its Fate, None if that is settled
        self._recent: dict[int, Packet] = {}
        self._regroups = late_repair and modality == "video" and sequenced
        self._groups: Groups | None = self._new_groups()
        self._newest: float | None = None  # capture time, seconds
        self._reorder = 0.0  # seconds by which packets come after ones of later capture time (B frames)
        self._period = 0.0  # seconds from one packet to the next

    @property
    def slack(self) -> float:
        """Seconds beyond the playout delay that order and decoder may take."""
        return self._reorder + 2 * (self._period or FRAME_SECONDS)

    @property
    def lead(self) -> float:
        """Seconds from a capture time on the stream's axis to the earliest it can arrive; infinite if not known."""
        return self.transit.value - self.shift / FLICKS

    @property
    def dependent(self) -> bool:
        """Whether its packets build on those before: pictures, but of codecs that have none but whole ones."""
        return self.modality == "video" and self.config.codec not in INTRA_ONLY

    @property
    def timed(self) -> bool:
        """Whether it is known how long packets are under way."""
        return self.transit.value < math.inf

    @property
    def repairable(self) -> bool:
        """Whether a late packet can still be decoded: sound, pictures that need no other, and groups that are kept."""
        return self._groups is not None or self.modality == "audio" or self.config.codec in INTRA_ONLY

    @property
    def regroups(self) -> bool:
        """Whether a late packet may still count although nothing comes of it yet: another one may be missing."""
        return self._groups is not None

    def goes_on(self, packet: Packet) -> bool:
        """Whether a packet is the next of a lane that runs: in order, of the same time base, and not empty."""
        return (
            packet.time_base is self._base
            and self._scale > 0
            and self.heard
            and not self.silent
            and self.jitter.lets_through(packet)
            and len(packet.payload) > 0
        )

    def arrived(self, packet: Packet, now: float, seconds: float | None = None) -> None:
        """Learn from one arrival; its capture time in ``seconds`` where that is known."""
        if seconds is None:
            seconds = packet.seconds
        newest = self._newest
        self.transit.update(seconds, now)
        if newest is None or seconds > newest:
            if newest is not None and seconds - newest < 1:
                step = seconds - newest
                self._period += ((packet.end_seconds - seconds or step) - self._period) / (8 if self._period else 1)
            self._newest = seconds
        elif newest - seconds < 1:
            self._reorder = max(self._reorder, newest - seconds)

    def decode(self, packet: Packet, damage: Any) -> list[Any]:
        """What became ready, with the final verdict on each."""
        before = self._decoder.errors
        pieces: list[Any] = self._decoder.decode(packet, damage)
        self.failed = self._decoder.errors != before
        if self.failed:
            self.damage.decode_error()
        if pieces and self.modality == "video":
            for piece in pieces:
                self._judge(piece)
                if self._groups is not None and not piece.damaged:
                    self._groups.whole.update(piece.seqs)
        return pieces

    def hole_before(self, packet: Packet) -> bool:
        """Whether a container without sequence numbers lacks packets before this one: a step of the decode time.

        The damage tracker has the rule; here it only matters that time is missing.
        """
        if not self._follows:
            return False
        at = packet.capture_time if packet.decode_time is None else packet.decode_time
        step = at - self._decoded if self._decoded is not None else 0
        self._decoded = at
        if step <= 0:
            return False
        usual, self._step = self._step, step if 2 * step < 3 * self._step or not self._step else self._step
        return 0 < 3 * usual < 2 * step and not getattr(self.damage, "unknown", True)

    def flicks(self, ticks: int, base: Fraction) -> int:
        """Ticks of a packet's time base in flicks; quick for the base it had before."""
        if base is not self._base:
            self._base = base
            scale = FLICKS * base.numerator
            self._scale = scale // base.denominator if scale % base.denominator == 0 else 0
        return ticks * self._scale if self._scale else to_flicks(ticks, base)

    def bounded(self, gap: Gap) -> Gap:
        """A gap no longer than its packets can explain: the one after it may be of another epoch."""
        if gap.start is None or gap.end is None:
            return gap
        usual = gap.count * (self._period or FRAME_SECONDS)
        if gap.end - gap.start <= 1.5 * usual + EPOCH_JUMP and gap.end - gap.start <= OUTAGE_SECONDS:
            return gap
        return replace(gap, end=gap.start + min(usual, OUTAGE_SECONDS))

    def flush(self) -> list[Any]:
        """What is still inside the decoder."""
        pieces: list[Any] = self._decoder.flush()
        if self.modality == "video":
            for piece in pieces:
                self._judge(piece)
        return pieces

    def remember(self, packet: Packet, fate: Fate | None) -> None:
        """Keep a packet and its fate for the frames that will name it."""
        self._fates[packet.seq] = fate
        if len(self._fates) > 2 * REMEMBERED:
            self._fates = dict(list(self._fates.items())[-REMEMBERED:])
        if self.repairable and self._groups is None:
            self._recent[packet.seq] = packet
            if len(self._recent) > 2 * REMEMBERED:
                self._recent = dict(sorted(self._recent.items())[-REMEMBERED:])

    def enter(self, epoch: int, time: int, packet: Packet, intact: bool) -> None:
        """Note whether a fresh receiver could begin at a packet just decoded; ``time`` is its place, flicks."""
        if self.modality == "audio":
            self.entries.add(epoch, time, packet.seq, len(packet.payload))
            return
        entry = self._entry(self.damage, packet) if intact else None
        if entry is not None:
            self.entries.add(epoch, time, entry)
        if self._groups is not None:
            self._groups.add(packet, entry == packet.seq)

    def fates_of(self, seqs: Sequence[int]) -> list[Fate] | None:
        """The open fates of these packets; None if none of them belongs to this epoch."""
        if len(seqs) == 1:  # nearly always
            seq = seqs[0]
            if seq not in self._fates:
                return None
            only = self._fates[seq]
            return [] if only is None else [only]
        known = [s for s in seqs if s in self._fates]
        if not known and seqs:
            return None
        return [fate for s in known if (fate := self._fates[s]) is not None]

    def repair(self, packet: Packet) -> list[Any]:
        """Decode a late packet among its neighbours: its own pieces, and those next to it, which a hole had spoiled.

        Neighbours further off only bring the decoder into the right state; what they give is left out.
        """
        if self._groups is not None:
            return self._decode_again(self._groups, packet)
        first = last = packet.seq
        known = {**self._recent, packet.seq: packet}
        if self.modality == "audio":
            while first - 1 in known and packet.seq - first < NEIGHBOURS:
                first -= 1
            while last + 1 in known and last - packet.seq < NEIGHBOURS:
                last += 1
        damage, decoder = self._parts(self.modality, self.config, self.spec, True)
        if self.modality == "audio":
            damage.push(Gap(modality=self.modality, first_seq=first - 1, count=1))
        pieces: list[Any] = []
        for seq in range(first, last + 1):
            errors = decoder.errors
            decoded = decoder.decode(known[seq], damage.push(known[seq]))
            pieces += decoded if decoder.errors == errors else []
        pieces += decoder.flush()
        final = last if last - packet.seq < NEIGHBOURS else last - 1  # the sound of the last lacks what follows it
        kept = range(packet.seq - 1, final + 1)
        return [p for p in pieces if not p.damaged and all(seq in kept for seq in p.seqs)]

    def _decode_again(self, groups: Groups, late: Packet) -> list[Any]:
        """Decode the group of a late packet anew: the pictures that are intact now and were not before.

        Of the group that runs, the decoder that did it goes on in place of the one that missed the packet.
        """
        damage, decoder = self._parts(self.modality, self.config, self.spec, self._sequenced)
        groups.insert(late, late.keyframe and self._begins(late))
        pieces: list[Any] = []
        before: int | None = None
        for packet in groups.of(late.seq):
            if before is not None and packet.seq > before + 1:
                damage.push(Gap(modality=self.modality, first_seq=before + 1, count=packet.seq - before - 1))
            before, errors = packet.seq, decoder.errors
            verdict = damage.push(packet)
            pieces += self._judged(damage, decoder.decode(packet, verdict))
            failed = decoder.errors != errors
            if failed:
                damage.decode_error()
            fate = self._fates.get(packet.seq)
            if fate is not None and not verdict.damaged and not failed:
                fate.damaged = False
        if before is None:
            return []
        if groups.runs(late.seq):
            self.damage, self._decoder = damage, decoder
        else:
            pieces += self._judged(damage, decoder.flush())
        mended = [p for p in pieces if not p.damaged and not groups.whole.issuperset(p.seqs)]
        groups.whole.update(*(p.seqs for p in mended))
        return mended

    def _begins(self, packet: Packet) -> bool:
        """Whether decoding may begin with a packet, as a tracker of its own sees it."""
        damage, _ = self._parts(self.modality, self.config, self.spec, self._sequenced)
        return not damage.push(packet).damaged and self._entry(damage, packet) == packet.seq

    @staticmethod
    def _entry(damage: Any, packet: Packet) -> int | None:
        entry: int | None = getattr(damage, "entry", packet.seq if packet.keyframe else None)
        return entry

    def _new_groups(self) -> Groups | None:
        return Groups() if self._regroups and self.config.codec not in INTRA_ONLY else None

    def length_of(self, packet: Packet) -> int:
        """How long a packet lasts, in flicks; never longer than a hole that ends the epoch."""
        if packet.duration > 0:
            return min(self.flicks(packet.duration, packet.time_base), OUTAGE)
        return int((self._period or FRAME_SECONDS) * FLICKS)

    def forget(self) -> None:
        """The epoch ended."""
        self._fates.clear()
        self._recent.clear()
        if self._groups is not None:
            self._groups.clear()
        self.last_end = None

    def untie(self) -> None:
        """A new epoch: when its times arrive is not known until a packet of it comes."""
        self.transit = TransitFloor()

    def restart(self) -> None:
        """The capture clock changed: what was learned of arrivals holds no more."""
        self.jitter.clock_changed()
        self.untie()
        self._newest, self._reorder = None, 0.0

    def change(self, config: CodecConfig) -> None:
        """The packets from here on are of another format."""
        self.config, self.entries = config, Entries(config, self.spec)
        self._groups = self._new_groups()
        self.damage, self._decoder = self._parts(self.modality, config, self.spec, self._sequenced)

    def _judged(self, damage: Any, frames: list[Any]) -> list[Any]:
        for frame in frames:
            self._judge(frame, damage)
        return frames

    def _judge(self, frame: Any, damage: Any = None) -> None:
        """Ask the damage tracker about a frame that left the decoder."""
        flag = getattr(damage or self.damage, "frame_flag", None)
        if flag is None:
            return
        verdict = flag(frame.seqs[0], corrupt=frame.corrupt)
        frame.damaged, frame.reason, frame.severity = verdict.damaged, verdict.reason, verdict.severity
