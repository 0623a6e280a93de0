"""Receiver: packets of one stream in, closed clips out.

    packet -> jitter buffer -> damage -> decoder -> clip assembler -> clip
              (order, gaps)   (spoiled?)            (grid, coverage)

A clip closes when everything of it has come, in every modality that is alive; or when its playout deadline has
passed; or when the stream ends. The receiver has no clock: time is what arrivals say, and deadlines that lie between
two arrivals are worked off in order before the later one. So clips depend only on packets and when they arrived, not
on how calls are grouped nor on extra calls of ``advance`` (tests/test_receive.py).
"""

import math
import time
from collections.abc import Callable
from copy import copy
from fractions import Fraction
from typing import Any

from encoders.clips import FLICKS, ClipSpec, from_flicks, grid_floor
from imputation.presence import PresenceRule
from runtime.clip import Clip, ClipAssembler, Fate
from runtime.clock import DriftMonitor
from runtime.deadlines import Deadlines
from runtime.epochs import JUMP, OUTAGE, CaptureClocks, Step, believable, drift_monitor
from runtime.jitter import AdaptiveDelay, Late
from runtime.lane import Lane, build_parts
from runtime.metrics import Ledgers
from runtime.packet import MODALITIES, Decision, Gap, Packet, StreamInfo
from runtime.questions import Event, Questions
from runtime.skipping import Skips

__all__ = ["Event", "Receiver"]


class Receiver(Questions):
    """All that a stream needs left of the engine; see the module's docstring for its law.

    delay: seconds of playout delay, or an AdaptiveDelay of which each modality gets a copy; lookahead: clips after
    which a clip's final prediction is due, until then late packets may repair it; late_repair: also late packets of
    inter-coded video, whose group is decoded anew. ``parts(modality, config, spec)``
    gives a damage tracker and a decoder (tests pass fakes); ``stopwatch`` measures decoding, in seconds.
    ``offset`` is what a capture time needs to become a time on the receiver's clock; None learns it.
    """

    def __init__(
        self,
        info: StreamInfo,
        spec: ClipSpec,
        rule: PresenceRule | None = None,
        *,
        delay: float | AdaptiveDelay = 0.1,
        lookahead: int = 0,
        late_repair: bool = False,
        offset: float | None = None,
        parts: Callable[..., tuple[Any, Any]] = build_parts,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.info, self.spec, self.rule = info, spec, rule or PresenceRule()
        self.modalities = tuple(m for m in MODALITIES if getattr(spec, m) is not None)
        self.ledger = Ledgers()
        self.events: list[Event] = []
        self.lookahead, self._stopwatch = lookahead, stopwatch
        self._lanes = {
            m: Lane(m, info.codecs[m], getattr(spec, m), copy(delay), offset, parts, info.sequence_numbers, late_repair)
            for m in self.modalities
            if m in info.codecs
        }
        self._clocks = CaptureClocks()
        self._drift = drift_monitor() if len(self._lanes) == 2 else None
        self._obeys = False  # a recording brought clock remaps of its own
        self._assembler: ClipAssembler | None = None
        self._origin = 0  # flicks
        self._agreed = info.origin  # the same, as it was agreed
        self._epoch, self._index = 0, 0
        self._now = -math.inf  # the receiver's clock
        self._deadlines = Deadlines(self._lanes)
        self._pending: list[Gap] = []  # gaps before the first packet
        self._shed: dict[int, set[str]] = {}  # decisions about clips that did not close yet
        self._skips = Skips()  # those of which nothing is decoded
        self._finished = False

    def push(self, item: Packet | Decision, now: float) -> list[Clip]:
        """One packet or decision, in order of arrival; the clips that closed up to its arrival.

        A packet without an arrival time came when it was sent; ``now`` is then not needed, else not before it.
        """
        assert not self._finished, "a finished receiver takes no packets"
        if isinstance(item, Decision):
            return (self.advance(item.arrival) if believable(item.arrival) else []) + self._decide(item)
        lane, at = self._lanes.get(item.modality), self._deadlines.arrival(item, self._now)
        quiet = believable(at) and self._deadlines.nothing_due(at)
        if quiet and lane is not None and self._goes_straight(lane, item, at):
            return self._closed_by(lane)
        if not (believable(at) and believable(item.seconds)):
            self.ledger[item.modality].malformed()
            return []
        out = self.advance(at)
        if lane is None:  # no such track was chosen
            self.ledger[item.modality].receive(item.seq)
            self.ledger.settle(item.modality, "unused", [item.seq])
            return out
        self._now = max(self._now, at)
        out += self._take(lane, self._order(lane, item))
        self._deadlines.disturb()
        return out

    def _goes_straight(self, lane: Lane, packet: Packet, at: float) -> bool:
        """The way of nearly every packet from its arrival to its decoder, in one pass; False, and nothing has changed,
        if it is not one of them.

        It is one if nothing falls due before it, it is the next of its lane, no hole is waited for, and its clock goes
        on. Then it does what ``_order`` and ``_deliver`` would, step for step, and leaves out the questions whose
        answers are known: tests/test_straight.py holds one way against the other.
        """
        if self._assembler is None or not lane.goes_on(packet):
            return False
        raw, lasts = lane.flicks(packet.capture_time, packet.time_base), lane.length_of(packet)
        placed = self._clocks.follow(packet, raw, lasts if packet.duration else 0)
        if placed is None:
            return False
        if at > self._now:
            self._now = at
        seconds, sent = packet.seconds, packet.decode_seconds
        lane.jitter.pass_through(packet, seconds, sent, self._now)
        self.ledger[lane.modality].receive(packet.seq)
        self._deadlines.hear_again(lane, self._now)
        least = lane.transit.value
        lane.arrived(packet, self._now, seconds)
        if lane.transit.value != least:
            self._deadlines.disturb()
        fate = self._assembler.packet(lane.modality, packet.seq, placed - self._origin)
        self._go_on(lane, packet, placed, lasts)
        self._decode(lane, packet, fate, False, placed - self._origin)
        return True

    def _go_on(self, lane: Lane, packet: Packet, placed: int, lasts: int) -> None:
        """What the time of a packet tells beside its place: drift of the clocks, and a hole that left no number."""
        assert self._assembler is not None
        if packet.arrival is not None and self._drift is not None:
            self._measure(self._drift, lane, packet)
        if lane.hole_before(packet) and lane.last_end is not None:
            self._assembler.gap(lane.modality, lane.last_end - self._origin, placed - self._origin)
        lane.last_end = placed + lasts

    def advance(self, now: float) -> list[Clip]:
        """Let time pass to ``now``: every packet that arrived until then has been pushed. Clips that closed."""
        assert now < math.inf, "the end of a stream is finish(), not an endless wait"
        out: list[Clip] = []
        if self._deadlines.nothing_due(now):
            return out
        while (due := self._deadlines.next(self._assembler)) is not None and due[0] <= now:
            at, lane = due
            self._now = max(self._now, at)
            if lane is None:
                out += self._close()
            elif lane.silent_at is not None and lane.silent_at <= at:
                self._deadlines.miss(lane)
                self._event("ended" if lane.heard else "absent", lane.modality)
                out += self._close_complete()
            else:
                out += self._take(lane, lane.jitter.poll(at))
        self._deadlines.disturb()
        return out

    def finish(self) -> list[Clip]:
        """The stream ended: everything that was still waited for, and the last clips."""
        if self._finished:
            return []
        self._finished = True
        out: list[Clip] = []
        for lane in self._lanes.values():
            out += self._take(lane, lane.jitter.flush())
        return out + self._end_epoch(list(self._lanes.values()), last=True)

    def _order(self, lane: Lane, packet: Packet) -> list[Any]:
        """Through the jitter buffer, and into the ledger."""
        stats, ledger = lane.jitter.stats, self.ledger[lane.modality]
        duplicates, late = stats.duplicates, stats.late
        ready = lane.jitter.push(packet, self._now)
        if stats.duplicates != duplicates:
            ledger.duplicate()
        elif stats.late != late:
            reported = any(isinstance(item, Late) and item.reported for item in ready)
            ledger.receive(packet.seq, late=True, was_lost=reported)
        else:
            ledger.receive(packet.seq)
        return ready

    def _take(self, lane: Lane, ready: list[Any]) -> list[Clip]:
        """What the jitter buffer gave, in order."""
        out: list[Clip] = []
        for item in ready:
            if isinstance(item, Gap):
                self._gap(lane, item)
            elif isinstance(item, Late):
                self._late(lane, item)
            else:
                out += self._deliver(lane, item)
                out += self._closed_by(lane)
        return out

    def _closed_by(self, lane: Lane) -> list[Clip]:
        """Clips that the packet delivered last in a lane completed, or mended."""
        if self._assembler is not None and (self._assembler.complete(lane.modality) or self._assembler.mended):
            return self._close_complete()
        return []

    def _deliver(self, lane: Lane, packet: Packet) -> list[Clip]:
        """A packet in its order: place it on the grid, judge it, decode it, lay down what came out."""
        out: list[Clip] = []  # of the epoch that it ends
        outage = self._assembler is not None and self._deadlines.outage(self._now)
        if self._deadlines.hear(lane, self._now):
            self._event("started", lane.modality)
        raw, lasts = lane.flicks(packet.capture_time, packet.time_base), lane.length_of(packet)
        if outage:
            self._clocks.begin_again()
        placed, step = self._clocks.place(packet, raw, lasts if packet.duration else 0, self._now)
        if outage or step is not Step.GOES_ON:
            out = self._clock_changed(lane, packet, placed, Step.JUMPS if outage else step)
        for other in self._lanes.values() if outage else ():
            other.restart()
        stale = step is Step.STALE
        if not stale:
            lane.arrived(packet, self._now)
        assembler, fate = self._assembler or self._open(placed), None
        if stale:
            self.ledger.settle(lane.modality, "late", [packet.seq])
        else:
            fate = assembler.packet(lane.modality, packet.seq, placed - self._origin)
        self._go_on(lane, packet, placed, lasts)
        if packet.payload:
            self._decode(lane, packet, fate, stale, placed - self._origin)
        else:
            self._malformed(lane, packet, fate, placed - self._origin, lasts)
        return out

    def _malformed(self, lane: Lane, packet: Packet, fate: Fate | None, at: int, lasts: int) -> None:
        """A packet that holds nothing: its number came, its time did not."""
        lane.damage.push(Gap(modality=lane.modality, first_seq=packet.seq, count=1))
        if self._assembler is not None:
            self._assembler.gap(lane.modality, at, at + lasts)
        if fate is not None:
            fate.malformed = True

    def _clock_changed(self, lane: Lane, packet: Packet, placed: int, step: Step) -> list[Clip]:
        """The capture clock of a modality did something else than go on."""
        if step is Step.STALE:
            return []
        out: list[Clip] = []
        if step is Step.JUMPS:
            flushed = [other for other in self._lanes.values() if other.modality == "audio"]
            if lane.modality == "video" and packet.keyframe:
                flushed.append(lane)  # without a keyframe the decoder needs the pictures it has
            out = self._end_epoch(flushed)
            for other in self._lanes.values():
                other.untie()
                other.shift = self._clocks.shift.get(other.modality, 0)
            self._event("epoch", lane.modality, f"capture clock jumped to {placed / FLICKS:.3f} s")
        else:
            self._event("shifted", lane.modality, f"moved by {self._clocks.shift[lane.modality] / FLICKS:.3f} s")
        if step is not Step.SHIFTED:
            lane.restart()
            if packet.arrival is None:
                lane.bias = self._now - packet.decode_seconds
        lane.shift = self._clocks.shift.get(lane.modality, 0)
        return out

    def _decode(self, lane: Lane, packet: Packet, fate: Fate | None, stale: bool, at: int) -> None:
        assert self._assembler is not None
        if self._skips and self._skips.skip(lane, self._assembler, packet, at, self._lay):
            return
        began = self._stopwatch()
        damage = lane.damage.push(packet)
        pieces = lane.decode(packet, damage)
        self._assembler.decoding(at, self._stopwatch() - began)
        if fate is not None and (damage.damaged or lane.failed):
            fate.damaged = True
        if not stale:
            lane.remember(packet, fate)
            lane.enter(self._epoch, at + self._origin, packet, not (damage.damaged or lane.failed))
        self._lay(lane, pieces)

    def _lay(self, lane: Lane, pieces: list[Any]) -> None:
        assembler = self._assembler
        assert assembler is not None
        for piece in pieces:
            fates = lane.fates_of(piece.seqs)
            if fates is None:
                continue  # of an epoch that has ended
            at = lane.shift - self._origin + piece.time.numerator * FLICKS // piece.time.denominator
            if lane.modality == "video":
                duration = piece.duration
                length = 0 if duration is None else duration.numerator * FLICKS // duration.denominator
                assembler.frame(at, min(length, OUTAGE), piece.pixels, piece.damaged, piece.severity, fates)
            else:
                assembler.block(at, piece.samples, piece.damaged, piece.severity, fates)

    def _gap(self, lane: Lane, gap: Gap) -> None:
        self.ledger[lane.modality].lose(gap.count)
        lane.damage.push(gap)
        gap = lane.bounded(gap)
        if self._assembler is None:
            self._pending.append(gap)
        elif lane.timed:  # else it is of the epoch before
            self._note_gap(lane, gap)

    def _late(self, lane: Lane, late: Late) -> None:
        """A packet that was given up came after all: repair with it what can be repaired."""
        packet = late.packet
        assembler = self._assembler
        at = lane.flicks(packet.capture_time, packet.time_base) + lane.shift - self._origin
        here = lane.timed and self._clocks.front is not None and 0 <= at <= self._clocks.front - self._origin
        if assembler is None or not here:  # of the epoch before
            self.ledger.settle(lane.modality, "late", [packet.seq])
            return
        mended = lane.repair(packet) if lane.repairable and packet.payload else []
        if not any(packet.seq in m.seqs for m in mended):
            assembler.late(lane.modality, at, at + lane.length_of(packet))
            if not (lane.regroups and packet.payload):
                self.ledger.settle(lane.modality, "late", [packet.seq])
                return
        fate = assembler.packet(lane.modality, packet.seq, at, late=True)
        lane.remember(packet, fate)
        for piece in mended:
            for other in lane.fates_of(piece.seqs) or []:
                other.damaged = False
        self._lay(lane, mended)

    def _close_complete(self) -> list[Clip]:
        """Close clips for which nothing more is to come; then repaired versions that are whole."""
        out: list[Clip] = []
        if (assembler := self._assembler) is None:
            return out
        waited = [lane.modality for lane in self._lanes.values() if not lane.silent]
        while waited and all(map(assembler.complete, waited)):
            out += self._close()
        return out + assembler.repairs()

    def _close(self) -> list[Clip]:
        assembler = self._assembler
        assert assembler is not None
        for modality in self._shed.pop(assembler.next_index, ()):
            assembler.shed(modality, assembler.next_index)
        leads = [lane.lead for lane in self._lanes.values() if lane.timed]
        wait = self._now - (self._deadlines.ends + min(leads, default=0.0))
        out = assembler.close(max(wait, 0.0) * 1e3)
        self._deadlines.ends = (self._origin + assembler.next_end) / FLICKS
        return out

    def _open(self, placed: int) -> ClipAssembler:
        """The grid of a new epoch, given the time of its first packet."""
        length = self.spec.flicks
        first, agreed = 0, self.info.origin if self._epoch == 0 else None
        if agreed is not None:
            self._origin = agreed.numerator * FLICKS // agreed.denominator
            if placed - self._origin > JUMP and not self._pending:
                first = (placed - self._origin) // length  # joined late: what was before does not exist
        if agreed is None or placed < self._origin - JUMP:
            self._origin = grid_floor(placed, length)
            agreed = from_flicks(self._origin)
        self._agreed = agreed
        video = self.info.codecs.get("video")
        self._assembler = ClipAssembler(
            self.spec,
            self.rule,
            agreed,
            self.modalities,
            epoch=self._epoch,
            first_index=self._index + first,
            first_cell=first,
            lookahead=self.lookahead,
            sequenced=self.info.sequence_numbers,
            frame_rate=video.frame_rate if video is not None else None,
            settle=self.ledger.settle,
        )
        for gap in self._pending:
            self._note_gap(self._lanes[gap.modality], gap)
        self._pending.clear()
        self._deadlines.ends = (self._origin + self._assembler.next_end) / FLICKS
        return self._assembler

    def _end_epoch(self, flushed: list[Lane], last: bool = False) -> list[Clip]:
        """Close what exists of this epoch; the next packet opens the next."""
        assembler = self._assembler
        if assembler is None:
            return []
        for lane in flushed:
            self._lay(lane, lane.flush())
        out: list[Clip] = []
        end = self._end(last)
        while assembler.next_end <= end or assembler.worth(end):
            out += self._close()
        out += assembler.finish()
        self._index, self._epoch = assembler.next_index, self._epoch + 1
        self._assembler, self._deadlines.ends = None, math.inf
        self._skips.forget()
        for lane in self._lanes.values():
            lane.forget()
        if self._drift is not None and not last:
            self._drift.reset()
            self._clocks.correct("audio", 0)
        return out

    def _note_gap(self, lane: Lane, gap: Gap) -> None:
        assert self._assembler is not None
        shift = lane.shift - self._origin
        bounds = [None if t is None else round(t * FLICKS) + shift for t in (gap.start, gap.end)]
        self._assembler.gap(lane.modality, *bounds)

    def _measure(self, drift: DriftMonitor, lane: Lane, packet: Packet) -> None:
        """Follow both capture clocks; map audio's onto video's when they drift apart."""
        seconds = packet.seconds
        if lane.modality == "video":
            drift.video.add(seconds, self._now)
            return
        drift.audio.add(seconds, self._now)
        if not self._obeys and (remap := drift.update(seconds)) is not None:
            self._remap(remap.offset, remap.drift_ppm)

    def _remap(self, offset: Fraction, ppm: float) -> None:
        self._clocks.correct("audio", offset.numerator * FLICKS // offset.denominator)
        self._lanes["audio"].shift = self._clocks.shift["audio"]
        self._deadlines.disturb()
        self._event("clock_remap", "audio", f"offset {float(offset) * 1e3:.3f} ms, drift {ppm:.0f} ppm")

    def _decide(self, decision: Decision) -> list[Clip]:
        """Obey what a live run decided."""
        self._event(decision.kind, decision.modality, decision.reason)
        if decision.kind == "clock_remap" and "audio" in self._lanes:
            self._obeys = True
            self._remap(decision.offset, decision.drift_ppm)
        elif decision.kind == "format_change" and decision.codec is not None and decision.modality in self._lanes:
            lane = self._lanes[decision.modality]
            if self._assembler is not None:
                self._lay(lane, lane.flush())
            lane.change(decision.codec)
        elif decision.kind == "shed" and decision.clip is not None and decision.modality in self.modalities:
            self._skips.heed(decision.modality, decision.clip, decision.reason)
            return self._obey_shed(decision.modality, decision.clip)
        return []

    def _obey_shed(self, modality: str, clip: int) -> list[Clip]:
        """Leave out a clip that was not encoded, now or when it closes; of one that is final nothing can be changed."""
        closed = self._index if self._assembler is None else self._assembler.next_index
        if clip >= closed:
            self._shed.setdefault(clip, set()).add(modality)
        elif self._assembler is not None:
            self._assembler.shed(modality, clip)
            return self._assembler.repairs()
        return []
