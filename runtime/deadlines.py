"""When to stop waiting: for a hole, for a modality, for a clip. Times are seconds on the receiver's clock.

A clip's playout deadline is the latest, over the modalities that still owe something of it, of: the clip's end, plus
the least transit time, plus the playout delay, plus what order and decoder may take. A modality that sent nothing for
two seconds is not waited for.
"""

import math
from collections.abc import Mapping

from encoders.clips import FLICKS
from runtime.clip import ClipAssembler
from runtime.clock import EPOCH_JUMP
from runtime.epochs import OUTAGE
from runtime.lane import Lane
from runtime.packet import Packet

SILENT_SECONDS = 2.0  # a modality that sent nothing for so long is not waited for
PATIENCE = 2.0  # further seconds for packets without arrival times: nothing is late in a file, only interleaved


class Deadlines:
    """What is due next, given what each lane waits for. ``ends`` is where the next clip to close ends (capture)."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self._lanes = list(lanes.values())
        self.ends = math.inf  # no clip is open
        self.untimed = False  # packets carry no arrival times
        self._heard = -math.inf  # when the newest packet came through
        self._quiet_until = -math.inf  # nothing is due before, as long as every packet simply goes on

    def hear(self, lane: Lane, now: float) -> bool:
        """A packet of a modality came through; True if that had been silent, or never heard."""
        news = lane.silent or not lane.heard
        lane.silent, lane.heard, lane.silent_at = False, True, now + SILENT_SECONDS
        self._heard = now
        if news:
            for other in self._lanes:
                if other.silent_at is None and not other.silent:
                    other.silent_at = now + SILENT_SECONDS
        return news

    def arrival(self, packet: Packet, now: float) -> float:
        """When a packet came, on the receiver's clock, which stands at ``now``; without an arrival, when it was sent.

        A capture clock that jumps must not take the receiver's clock along.
        """
        if packet.arrival is not None:
            return packet.arrival
        self.untimed = True
        bias = next((lane.bias for lane in self._lanes if lane.modality == packet.modality), 0.0)
        sent = packet.decode_seconds + bias
        return min(sent, now + EPOCH_JUMP) if now > -math.inf else sent

    def outage(self, now: float) -> bool:
        """Whether nothing came through for so long that no clips were closed any more; what comes opens a new epoch."""
        return now - self._heard > OUTAGE / FLICKS

    def disturb(self) -> None:
        """Something happened that may bring a deadline nearer."""
        self._quiet_until = -math.inf

    def hear_again(self, lane: Lane, now: float) -> None:
        """``hear`` for a modality that was heard before and is waited for."""
        lane.silent_at = now + SILENT_SECONDS
        self._heard = now

    def miss(self, lane: Lane) -> None:
        """A modality was silent for too long."""
        lane.silent, lane.silent_at = True, None

    def nothing_due(self, now: float) -> bool:
        """A quick no, right for nearly every packet: nobody waits for a hole, and the next clip has not ended.

        It holds until some moment, as long as packets simply go on: silence and the end of the next clip then only move
        further away. Whatever else happens must be told: ``disturb``.
        """
        if now < self._quiet_until:
            return True
        lead = silent_at = math.inf
        for lane in self._lanes:
            if lane.jitter.stats.queued:
                return False
            if lane.silent_at is not None and lane.silent_at < silent_at:
                silent_at = lane.silent_at
            if lane.lead < lead:
                lead = lane.lead
        self._quiet_until = min(silent_at, self.ends + lead + (PATIENCE if self.untimed else 0.0))
        return now < self._quiet_until

    def next(self, assembler: ClipAssembler | None) -> tuple[float, Lane | None] | None:
        """The earliest of: a hole given up, a modality given up (its lane), a clip whose time has come (None)."""
        best: tuple[float, Lane | None] | None = None
        for lane in self._lanes:
            for at in (lane.jitter.next_deadline, lane.silent_at):
                if at is not None and (best is None or at < best[0]):
                    best = at, lane
        clip = None if assembler is None else self._clip(assembler)
        if clip is not None and (best is None or clip < best[0]):
            best = clip, None
        return best

    def _clip(self, assembler: ClipAssembler) -> float | None:
        """When the next clip closes whatever is missing; None if nothing is missing, or nothing will ever come."""
        leads = [lane.lead for lane in self._lanes if lane.timed]
        if not leads:
            return None
        first = min(leads)
        waited = [lane for lane in self._lanes if not lane.silent]
        if not waited:
            if self.ends + first > self._heard + OUTAGE / FLICKS:
                return None  # the outage is long enough; what comes after it opens a new epoch
            waited = self._lanes
        latest = -math.inf
        for lane in waited:
            if not assembler.complete(lane.modality):
                lead = lane.lead if lane.timed else first
                latest = max(latest, self.ends + lead + lane.jitter.delay + lane.slack)
        return latest + PATIENCE * self.untimed if latest > -math.inf else None
