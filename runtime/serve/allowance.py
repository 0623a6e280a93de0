"""Allowance: how far a live stream may run ahead of the clock before it is held back, and for how long before it ends.

A camera brings a second of media in a second. What is sent faster is a backlog (a link that was away for a moment), a
file whose sender forgot to say ``recorded``, or a flood. A bucket of media seconds tells them apart: it fills with what
is sent, and leaks with the time that passes, connected or not. Once it holds a few seconds it is read from at a few
times the pace of a live stream, so that whoever fills it costs no more than as many neighbours; a full one is not read
from at all, and whoever keeps it full is no live stream. A packet costs a little whatever its time says, so that times
which stand still or jump are no way around. A recorded stream needs no allowance: it has no clock, and gives way to
those that have (``pacing.Pace``).
"""

from collections.abc import Iterable, Mapping

from protos import stream_pb2 as pb
from runtime.packet import CodecConfig
from runtime.serve.convert import MODALITY_FROM_WIRE

__all__ = ["Allowance"]

JUMP = 2.0  # seconds of capture time: a longer step is no media but a clock that was set
JUMP_COST = 0.05  # seconds of media that such a step counts for
EASY = 1 / 4  # of a bucket, up to which it is read from as fast as it is filled
CATCH_UP = 8.0  # times the pace of a live stream at which it is read from beyond that
BANK = 120.0  # seconds of media that a stream may be behind the clock, and so bring at once


class Allowance:
    """One stream's bucket. Times are seconds on the real clock.

    ``ahead``: seconds of media that may be sent before their time; ``patience``: seconds that the bucket may stay full;
    ``packets``: the most that count as live in a second; ``credit``: seconds that the stream is behind already.
    """

    def __init__(
        self,
        codecs: Mapping[str, CodecConfig],
        now: float,
        *,
        ahead: float,
        patience: float,
        packets: int,
        credit: float = 0.0,
    ) -> None:
        self._most, self._patience, self._least = ahead, patience, 1 / packets
        self._ticks = {wire: float(codecs[m].time_base) for wire, m in MODALITY_FROM_WIRE.items() if m in codecs}
        self._newest: dict[int, float] = {}  # by modality, capture time in seconds
        self._brought = dict.fromkeys(self._ticks, 0.0)  # seconds of media
        self._level, self._at = -min(credit, BANK), now
        self._full_since: float | None = None
        self._not_before = now

    def spend(self, packets: Iterable[pb.Packet], now: float) -> None:
        """These were read."""
        before, count = max(self._brought.values()), 0
        for wire in packets:
            count += 1
            tick = self._ticks.get(wire.modality)
            if tick is None:
                continue
            at = wire.capture_time * tick
            step = at - self._newest.get(wire.modality, at)
            if step > 0 or step < -JUMP or wire.modality not in self._newest:
                self._newest[wire.modality] = at
                self._brought[wire.modality] += step if 0 <= step <= JUMP else JUMP_COST
        self._leak(now)
        cost = max(count * self._least, max(self._brought.values()) - before)
        self._level += cost
        if self._level > EASY * self._most:
            self._not_before = max(self._not_before, now) + cost / CATCH_UP
        if self._full_since is None and self._level > self._most:
            self._full_since = now

    def full(self, now: float) -> bool:
        """Whether nothing is to be read now."""
        self._leak(now)
        return self._level > self._most or now < self._not_before

    def abused(self, now: float) -> bool:
        """Whether it was filled up again and again for longer than patience lasts."""
        return self._full_since is not None and now - self._full_since >= self._patience

    @property
    def ahead(self) -> float:
        """Seconds of media that came before their time."""
        return max(0.0, self._level)

    def _leak(self, now: float) -> None:
        self._level = max(self._level - max(0.0, now - self._at), -BANK)
        self._at = now
        if self._level < self._most / 2:  # it did wait
            self._full_since = None
