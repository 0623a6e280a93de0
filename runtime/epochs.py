"""Capture times of both modalities on one axis, and when that axis breaks: epochs.

A capture clock that jumps by more than two seconds, or starts again, opens a new epoch. Not every step is a jump: lost
packets explain a step in time by their numbers, an outage by the arrivals, a still picture by its duration or by the
other modality, which went on. When nothing at all came for longer than ``OUTAGE``, what comes then opens a new epoch,
whatever its times are. When only one modality's clock jumps, the other is moved beside it, since both were
captured at one time.

All times are flicks; arrivals are seconds on the receiver's clock.
"""

from dataclasses import dataclass
from enum import Enum

from encoders.clips import FLICKS
from runtime.clock import EPOCH_JUMP, Drift, DriftMonitor
from runtime.packet import Packet

JUMP = int(EPOCH_JUMP * FLICKS)
APART = 10 * FLICKS  # by which two clocks that run together may differ when the second is first heard
OUTAGE = 60 * FLICKS  # a longer hole ends the epoch, whatever explains it: nothing is gained by counting it in clips
FARTHEST = 1e10  # seconds; times further from zero are nonsense (3 centuries; a float there still tells microseconds)
DRIFT_SECONDS = 60.0  # of measuring before drift between the clocks is believed
GRACE_SECONDS = 1.0  # on the receiver's clock: how long the other modality may still send the old epoch's rest


class Step(Enum):
    """What a packet's capture time means for the stream."""

    GOES_ON = "goes on"
    JUMPS = "jumps"  # opens a new epoch
    REJOINS = "rejoins"  # came to the epoch that the other modality opened
    SHIFTED = "shifted"  # its clock did not follow: moved beside the other's
    STALE = "stale"  # belongs to an epoch that has ended


@dataclass(slots=True)
class _Last:
    """The newest packet of a modality, as it came."""

    time: int
    seq: int
    duration: int
    arrival: float | None


class CaptureClocks:
    """Places each delivered packet on the stream's axis."""

    def __init__(self) -> None:
        self.shift: dict[str, int] = {}  # flicks added to a modality's capture times, all in all
        self._drift: dict[str, int] = {}  # of it, what was measured as drift
        self.front: int | None = None  # the newest time of this epoch
        self._last: dict[str, _Last] = {}
        self._step: dict[str, int] = {}  # usual flicks from one number to the next
        self._behind: dict[str, float] = {}  # modality still on the old epoch's clock -> since when

    def follow(self, packet: Packet, raw: int, duration: int) -> int | None:
        """``place`` for a packet whose clock simply goes on; None, and nothing changes, if that takes a closer look."""
        last = self._last.get(packet.modality)
        if last is None or self._behind:
            return None
        difference = raw - last.time
        if not -JUMP <= difference <= JUMP:
            return None
        if difference > 0 and packet.seq == last.seq + 1:
            self._step[packet.modality] = difference
        last.time, last.seq, last.duration, last.arrival = raw, packet.seq, duration, packet.arrival
        time = raw + self.shift.get(packet.modality, 0)
        if self.front is None or time > self.front:
            self.front = time
        return time

    def place(self, packet: Packet, raw: int, duration: int, now: float) -> tuple[int, Step]:
        """The time of a packet on the stream's axis, and what it means. Packets come in order, per modality.

        ``raw`` is its capture time, ``duration`` how long it lasts, both in flicks.
        """
        modality = packet.modality
        last = self._last.get(modality)
        time, step = raw + self.shift.get(modality, 0), Step.GOES_ON
        if last is None:
            self._last[modality] = _Last(raw, packet.seq, duration, packet.arrival)
            time, step = self._join(packet, raw, time)
            if step is Step.JUMPS:
                return self._jump(modality, raw)
        else:
            difference, following = raw - last.time, packet.seq == last.seq + 1
            jumped = not -JUMP <= difference <= JUMP and (self._far(time) or self._unexplained(packet, raw, time, last))
            last.time, last.seq, last.duration, last.arrival = raw, packet.seq, duration, packet.arrival
            if jumped:
                return self._jump(modality, raw)
            if following and 0 < difference <= JUMP:
                self._step[modality] = difference
        if self._behind and modality in self._behind:
            time, step = self._lagging(modality, raw, time, now)
        if step is not Step.STALE and (self.front is None or time > self.front):
            self.front = time
        return time, step

    def begin_again(self) -> None:
        """Nothing came for so long that what was learned of the clocks says nothing about what comes now."""
        self.shift.clear()
        self._drift.clear()
        self._last.clear()
        self._behind.clear()
        self.front = None

    def correct(self, modality: str, offset: int) -> None:
        """From now on so many flicks of a modality's shift are drift against the other's clock."""
        self.shift[modality] = self.shift.get(modality, 0) + offset - self._drift.get(modality, 0)
        self._drift[modality] = offset

    def _far(self, time: int) -> bool:
        return self.front is not None and abs(time - self.front) > OUTAGE

    def _join(self, packet: Packet, raw: int, time: int) -> tuple[int, Step]:
        """The first packet of a modality: does its clock run with the other's?"""
        others = [(m, last) for m, last in self._last.items() if m != packet.modality]
        if not others or self.front is None:
            return time, Step.GOES_ON
        modality, other = others[0]
        if packet.arrival is None or other.arrival is None:
            return time, Step.JUMPS if abs(time - self.front) > OUTAGE else Step.GOES_ON
        expected = other.time + self.shift.get(modality, 0) + int((packet.arrival - other.arrival) * FLICKS)
        if abs(time - expected) <= APART:
            return time, Step.GOES_ON
        self.shift[packet.modality] = expected - raw
        return expected, Step.SHIFTED

    def _unexplained(self, packet: Packet, raw: int, time: int, last: _Last) -> bool:
        difference = raw - last.time
        if difference > 0:
            missing = packet.seq - last.seq - 1
            usual = self._step.get(packet.modality, last.duration)
            if missing > 0 and abs(difference - (missing + 1) * usual) <= max(JUMP, difference // 4):
                return False  # lost packets
            if abs(difference - last.duration) <= JUMP:
                return False  # it was announced to last so long
        if packet.arrival is not None and last.arrival is not None:
            waited = int((packet.arrival - last.arrival) * FLICKS)
            return abs(difference - waited) > JUMP  # else both clocks went on: an outage
        others = len(self._last) > 1 and self.front is not None
        return not (others and difference > 0 and abs(time - (self.front or 0)) <= JUMP)

    def _jump(self, modality: str, raw: int) -> tuple[int, Step]:
        rejoins = self.front is not None and abs(raw - self.front) <= JUMP
        if rejoins and (modality in self._behind or self.shift.get(modality)):
            self._behind.pop(modality, None)
            self.shift[modality] = self._drift.get(modality, 0)
            self.front = max(self.front or raw, raw)
            return raw, Step.REJOINS
        self.front = raw
        self.shift[modality] = self._drift.get(modality, 0)
        arrival = self._last[modality].arrival
        since = arrival if arrival is not None else float("nan")
        self._behind = {m: since for m in self._last if m != modality}
        return raw, Step.JUMPS

    def _lagging(self, modality: str, raw: int, time: int, now: float) -> tuple[int, Step]:
        """A packet on the old clock, after the other modality opened a new epoch."""
        assert self.front is not None
        since = self._behind[modality]
        if since != since:  # not known yet: a replay without arrivals
            since = self._behind[modality] = now
        if now - since < GRACE_SECONDS:
            return time, Step.STALE
        del self._behind[modality]
        self.shift[modality] = self.front - raw
        return self.front, Step.SHIFTED


def drift_monitor() -> DriftMonitor:
    """Network jitter moves the least transit by milliseconds: only over a minute does 100 ppm stand out."""
    monitor = DriftMonitor()
    monitor.video, monitor.audio = Drift(least=DRIFT_SECONDS), Drift(least=DRIFT_SECONDS)
    return monitor


def believable(seconds: float) -> bool:
    """Whether a time can be one at all; NaN cannot."""
    return -FARTHEST < seconds < FARTHEST
