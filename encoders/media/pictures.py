"""Video packets to pictures.

Each picture comes back with the caller's ``note`` (in serving: what damage tracking said of its packet), so nothing is
matched by time afterwards.
"""

import heapq
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from encoders.clips import VideoSpec
from encoders.media.codec import Codec, Encoded, PacketDecoder

_OUTSTANDING = 64  # packets whose picture may still come; more than any codec reorders


@dataclass(slots=True, eq=False)
class Picture:
    """One decoded image: ``pixels`` uint8 (H, W) or (H, W, 3), upright, no side above the spec's ``max_side``."""

    packet: Any  # the packet it was coded in
    note: Any
    ticks: int  # presentation time, in the packet's time base
    pixels: np.ndarray
    corrupt: bool  # the decoder says that it is not whole

    @property
    def time(self) -> Fraction:
        """Presentation time in seconds."""
        base = self.packet.time_base
        return Fraction(self.ticks * base.numerator, base.denominator)  # the product of two would take thrice as long


class VideoPacketDecoder(PacketDecoder):
    """Video packets in decode order to pictures in presentation order."""

    def __init__(self, config: Codec, spec: VideoSpec) -> None:
        super().__init__(config, "video")
        self._spec = spec
        self._gray = spec.pixel_format == "gray"
        self._turns = config.rotation // 90 % 4
        self._reformatter = VideoReformatter()
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._serial = 0  # given to packets as their pts, so that a picture finds its packet whatever the times say
        self._waiting: dict[int, tuple[Any, Any]] = {}
        self._last: tuple[int, int] | None = None  # serial and ticks of the last picture
        self._sorter: _TimeSorter | None = None
        self._newest: int | None = None  # the latest capture time so far
        self._reordered = False  # packets came out of order of time: these are presentation times, beyond doubt

    def decode(self, packet: Encoded, note: Any = None) -> list[Picture]:
        """Pictures that became ready; none where the packet is broken, hidden, or later pictures come first."""
        if not packet.payload:  # to a codec, no bytes mean the end
            self.errors += 1
            return []
        coded = av.Packet(packet.payload)
        coded.pts = coded.dts = self._serial
        self._waiting[self._serial] = packet, note
        self._waiting.pop(self._serial - _OUTSTANDING, None)
        self._serial += 1
        if self._newest is None or packet.capture_time > self._newest:
            self._newest = packet.capture_time
        elif packet.capture_time < self._newest:
            self._reordered = True
        if self._sorter is not None:
            self._sorter.add(packet.capture_time)
        return self._pictures(self._decode(coded))

    def flush(self) -> list[Picture]:
        """The pictures still inside; afterwards the decoder is as new."""
        pictures = self._pictures(self._decode(None))
        if self._context.is_open:
            self._context.flush_buffers()
        self._waiting.clear()
        self._last = None
        return pictures

    def _pictures(self, frames: list[Any]) -> list[Picture]:
        pictures = []
        for frame in frames:
            found = self._waiting.pop(frame.pts, None)
            if found is None:  # a second picture of the same packet, or one without a pts
                continue
            packet, note = found
            ticks = self._ticks(frame.pts, packet)
            if packet.skip:
                continue
            try:
                pixels = self._pixels(frame)
            except (av.error.FFmpegError, ValueError, MemoryError):
                self.errors += 1
                continue
            self.corrupt += frame.is_corrupt
            pictures.append(Picture(packet, note, ticks, pixels, frame.is_corrupt))
        return pictures

    def _ticks(self, serial: int, packet: Any) -> int:
        """The picture's presentation time.

        Some containers (AVI, elementary streams) store decode times only. It shows when the decoder puts a packet
        after a later one although its time is earlier; from then on the times are dealt out in their own order. Not so
        where packets come out of order of time: after a loss a decoder may put pictures out of order, with true times.
        """
        ticks = packet.capture_time
        if self._sorter is not None:
            ticks = self._sorter.take(ticks)
        elif self._last is not None and serial < self._last[0] and ticks < self._last[1] and not self._reordered:
            self._sorter = _TimeSorter(self._last[1], [p.capture_time for p, _ in self._waiting.values()])
            ticks = self._sorter.take(ticks)
        self._last = serial, ticks
        return ticks

    def _pixels(self, frame: Any) -> np.ndarray:
        """One swscale call: colour, range and size together."""
        size = frame.width, frame.height
        width, height = self._sizes.get(size) or self._fit(size)
        image = self._reformatter.reformat(
            frame, width, height, "gray" if self._gray else "rgb24", dst_color_range=2, threads=1
        )
        plane: Any = image.planes[0]
        row = width if self._gray else width * 3
        pixels = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)[:, :row]
        if not self._gray:
            pixels = pixels.reshape(height, width, 3) if row == plane.line_size else _rows(pixels, width)
        return np.ascontiguousarray(np.rot90(pixels, self._turns)) if self._turns else pixels.copy()

    def _fit(self, size: tuple[int, int]) -> tuple[int, int]:
        share = min(1.0, self._spec.max_side / max(size))
        self._sizes[size] = max(1, round(size[0] * share)), max(1, round(size[1] * share))
        return self._sizes[size]


class _TimeSorter:
    """Deals out presentation times, smallest first, where packets carry decode times only."""

    def __init__(self, last: int, times: list[int]) -> None:
        self._last = last
        self._heap = times
        heapq.heapify(self._heap)

    def add(self, ticks: int) -> None:
        heapq.heappush(self._heap, ticks)
        if len(self._heap) > _OUTSTANDING:  # packets that gave no picture
            heapq.heappop(self._heap)

    def take(self, ticks: int) -> int:
        while self._heap and self._heap[0] <= self._last:
            heapq.heappop(self._heap)
        self._last = heapq.heappop(self._heap) if self._heap else max(ticks, self._last + 1)
        return self._last


def _rows(pixels: np.ndarray, width: int) -> np.ndarray:
    """Drop the padding at the end of each row of an RGB picture."""
    return np.ascontiguousarray(pixels).reshape(len(pixels), width, 3)
