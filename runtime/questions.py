"""What can be asked of a receiver while it runs, and the events that it tells of itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from encoders.clips import FLICKS
from runtime.clip import ClipAssembler
from runtime.clock import DriftMonitor
from runtime.deadlines import Deadlines
from runtime.epochs import OUTAGE, CaptureClocks
from runtime.lane import Lane
from runtime.packet import Packet, StreamInfo

__all__ = ["Event", "Questions"]

NEAR = 64  # clips ahead of the next to close that a packet may be of; further off, its clock was set


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the stream: epoch, started, ended, absent, remap, shifted, format, device, decision.

    ``arrival`` is when, in seconds on the receiver's clock; ``clip`` the next clip to close then.
    """

    kind: str
    modality: str
    arrival: float
    clip: int
    detail: str = ""


class Questions:
    """The answers, from what the receiver keeps; asking changes nothing."""

    info: StreamInfo
    _lanes: Mapping[str, Lane]
    _deadlines: Deadlines
    _clocks: CaptureClocks
    _drift: DriftMonitor | None
    _assembler: ClipAssembler | None
    _agreed: Fraction | None
    _epoch: int
    _index: int
    _origin: int
    _now: float
    events: list[Event]

    @property
    def next_deadline(self) -> float | None:
        """When ``advance`` will have something to do if nothing more arrives; None = never."""
        due = self._deadlines.next(self._assembler)
        return None if due is None else due[0]

    @property
    def drift_ppm(self) -> float | None:
        """How much audio's clock runs slow against video's; None until known."""
        return None if self._drift is None else self._drift.drift_ppm

    @property
    def av_offset_ms(self) -> float | None:
        """Audio's least transit time minus video's; None until known."""
        if self._drift is None or self._clocks.front is None:
            return None
        return self._drift.av_offset_ms(self._clocks.front / FLICKS)

    @property
    def spec_origin(self) -> Fraction | None:
        """The agreed zero of the clip grid in the epoch that runs (capture time, seconds); None until known."""
        return self._agreed

    def jitter_ms(self, modality: str) -> float:
        """Interarrival jitter (RFC 3550, 6.4.1) where the playout delay follows it; else 0."""
        lane = self._lanes.get(modality)
        return 0.0 if lane is None else lane.jitter.jitter * 1e3

    def delay_ms(self, modality: str) -> float:
        """The playout delay now; 0 for a modality without a track."""
        lane = self._lanes.get(modality)
        return 0.0 if lane is None else lane.jitter.delay * 1e3

    def needed(self, modality: str, seconds: Fraction | float, epoch: int | None = None) -> int | None:
        """The highest sequence number that nobody needs any more to rebuild all clips from ``seconds`` on.

        A fresh receiver with the origin ``spec_origin``, fed only the packets above it, gives the same clips; but in an
        open group of H.264 it judges further losses more strictly, until the next IDR picture.
        ``seconds`` is capture time, of the epoch that runs unless another is named. None: everything may be needed.
        """
        lane = self._lanes.get(modality)
        if lane is None:
            return None
        if epoch is None:
            epoch = self._epoch if self._assembler is not None else max(self._epoch - 1, 0)
        return lane.entries.needed(epoch, round(seconds * FLICKS))

    def clip_of(self, packet: Packet) -> int | None:
        """The index of the clip that a packet to come is of; None if it is not known, or closed."""
        lane, assembler = self._lanes.get(packet.modality), self._assembler
        if lane is None or assembler is None:
            return None
        clip = assembler.index_at(lane.flicks(packet.capture_time, packet.time_base) + lane.shift - self._origin)
        return clip if 0 <= clip - assembler.next_index < NEAR else None

    def _end(self, last: bool) -> int:
        """Where the epoch ends: the last that was seen or heard, or the length that the source announced."""
        assert self._assembler is not None
        end = self._assembler.latest() or 0
        if last and self._epoch == 0 and self.info.duration is not None and self.info.origin is not None:
            end = max(end, min(int(self.info.duration * FLICKS), end + OUTAGE))
        return end

    def _event(self, kind: str, modality: str, detail: str = "") -> None:
        """Tell of something that happened just now."""
        clip = self._assembler.next_index if self._assembler is not None else self._index
        arrival = self._now if math.isfinite(self._now) else 0.0
        self.events.append(Event(kind=kind, modality=modality, arrival=arrival, clip=clip, detail=detail))
