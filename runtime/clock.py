"""Time: ticks and seconds without floats, unwrapping, epochs, drift between clocks, and the clock that callers pass in.

Capture time counts integer ticks of a ``Fraction`` of a second. Float seconds appear only where a measurement is
made (drift, deadlines), never where clips are cut.
"""

import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from runtime.packet import unwrap

__all__ = [
    "EPOCH_JUMP",
    "Clock",
    "Drift",
    "DriftMonitor",
    "Remap",
    "SystemClock",
    "TimestampUnwrapper",
    "VirtualClock",
    "floor_to",
    "rescale",
    "seconds_to_ticks",
    "ticks_to_seconds",
]

EPOCH_JUMP = 2.0  # seconds; a larger jump of the capture clock opens a new epoch
REMAP_PPM = 100.0  # drift between the modalities that is put right
REMAP_SECONDS = 10.0  # the shortest time between two remaps


def ticks_to_seconds(ticks: int, time_base: Fraction) -> Fraction:
    """Exact seconds."""
    return ticks * time_base


def seconds_to_ticks(seconds: Fraction, time_base: Fraction) -> int:
    """The nearest tick, halves away from zero."""
    return _divide(seconds.numerator * time_base.denominator, seconds.denominator * time_base.numerator)


def rescale(ticks: int, source: Fraction, target: Fraction) -> int:
    """Ticks of one time base in another: the nearest, halves away from zero (FFmpeg's ``av_rescale_q``)."""
    return _divide(ticks * source.numerator * target.denominator, source.denominator * target.numerator)


def floor_to(seconds: Fraction, step: Fraction) -> Fraction:
    """The largest multiple of ``step`` that is not after ``seconds``: an origin agreed without talking."""
    return (seconds // step) * step


def _divide(a: int, b: int) -> int:
    return (2 * a + b) // (2 * b) if a >= 0 else -((2 * -a + b) // (2 * b))


class TimestampUnwrapper:
    """Timestamps of ``bits`` bits (RTP has 32) as integers that go on growing; steps back of less than half stay so."""

    def __init__(self, bits: int = 32) -> None:
        self._bits = bits
        self._last: int | None = None

    def unwrap(self, timestamp: int) -> int:
        self._last = timestamp if self._last is None else unwrap(timestamp, self._last, self._bits)
        return self._last


class Drift:
    """How fast a sender's clock runs against the receiver's: a line under the cloud of ``arrival - capture``.

    Queueing only ever adds to the transit time, so the lower envelope is the clock. The line is the edge of the lower
    convex hull that lies closest to the cloud's middle: the line below all points with the least mean distance
    (Moon, Skelly and Towsley, INFOCOM 1999). One minimum per second is kept, ``span`` seconds of them.
    """

    def __init__(self, span: int = 600, least: float = 20.0) -> None:
        self._span = span
        self._least = least  # seconds before a slope is believed
        self._floor: dict[int, tuple[float, float]] = {}  # capture second -> the point with the least transit
        self._line: tuple[float, float] | None = None

    def add(self, capture: float, arrival: float) -> None:
        """One packet: its capture time and when it arrived, seconds on their own clocks."""
        second, transit = int(capture // 1), arrival - capture
        kept = self._floor.get(second)
        if kept is None or transit < kept[1]:
            self._floor[second] = (capture, transit)
            self._line = None
        if len(self._floor) > self._span:
            del self._floor[min(self._floor)]

    def reset(self) -> None:
        """A new epoch: the old points say nothing about it."""
        self._floor.clear()
        self._line = None

    @property
    def ppm(self) -> float | None:
        """Parts per million by which arrivals outrun captures (> 0: the sender's clock is slow); None = too early."""
        if not self._floor or max(self._floor) - min(self._floor) < self._least:
            return None
        return self._fit()[1] * 1e6

    def transit(self, capture: float) -> float | None:
        """The least transit time expected at a capture time, seconds, clock offset included."""
        if not self._floor:
            return None
        start, slope = self._fit()
        return start + slope * capture

    def _fit(self) -> tuple[float, float]:
        if self._line is None:
            points = sorted(self._floor.values())
            hull = _lower_hull(points)
            middle = sum(x for x, _ in points) / len(points)
            (x0, y0), (x1, y1) = next((edge for edge in pairwise(hull) if edge[1][0] >= middle), (hull[-1], hull[-1]))
            slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
            self._line = (y0 - slope * x0, slope)
        return self._line


def _lower_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Andrew's monotone chain over points sorted by x."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (ax, ay), (bx, by) = hull[-2:]
            if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                break
            hull.pop()
        hull.append((x, y))
    return hull


@dataclass(frozen=True, slots=True)
class Remap:
    """From now on ``offset`` seconds are added to audio capture times; ``drift_ppm`` is what was measured."""

    offset: Fraction
    drift_ppm: float


class DriftMonitor:
    """Holds audio's capture clock to video's: measures both against the receiver's, asks for a remap when it pays.

    Below ``REMAP_PPM`` nothing is done (100 ppm is 1.6 samples a second at 16 kHz); remaps are at least
    ``REMAP_SECONDS`` apart. Offsets are whole microseconds, so that a recording holds them exactly.
    """

    def __init__(self) -> None:
        self.video = Drift()
        self.audio = Drift()
        self._since: float | None = None  # audio capture time of the last remap
        self._offset = Fraction(0)

    @property
    def drift_ppm(self) -> float | None:
        """By how much audio's clock runs slow against video's; None until both are known."""
        video, audio = self.video.ppm, self.audio.ppm
        return None if video is None or audio is None else audio - video

    def av_offset_ms(self, capture: float) -> float | None:
        """Audio's least transit time minus video's: what a viewer without buffering would hear sound come late."""
        video, audio = self.video.transit(capture), self.audio.transit(capture)
        return None if video is None or audio is None else (audio - video) * 1000

    def update(self, capture: float) -> Remap | None:
        """At audio capture time ``capture`` (seconds, as captured): the remap that is due, if any."""
        if self._since is None:
            self._since = capture
        ppm = self.drift_ppm
        elapsed = capture - self._since
        if ppm is None or elapsed < REMAP_SECONDS or abs(ppm) <= REMAP_PPM:
            return None
        self._offset += Fraction(round(elapsed * ppm), 1_000_000)
        self._since = capture
        return Remap(self._offset, ppm)

    def reset(self) -> None:
        """A new epoch: measure afresh."""
        self.video.reset()
        self.audio.reset()
        self._since, self._offset = None, Fraction(0)


class Clock(Protocol):
    """What time it is, and waiting for it; passed in, never imported."""

    def now(self) -> float:
        """Seconds on an axis that never goes back."""
        ...

    def sleep_until(self, seconds: float) -> None:
        """Return when ``now() >= seconds``."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, seconds: float) -> None:
        if (wait := seconds - time.monotonic()) > 0:
            time.sleep(wait)


class VirtualClock:
    """A clock that jumps to where it is told: replay as fast as possible, and tests."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, seconds: float) -> None:
        self._now = max(self._now, seconds)
