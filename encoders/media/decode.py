"""Packets to pictures and sound: one decoder per track, fed only with packets, never with a file.

Each picture and each run of samples comes back with the caller's ``note`` (in serving: what damage tracking said), so
nothing is matched by time afterwards. Errors of a codec are counted, never raised: a broken packet is data.
One thread per decoder keeps replay deterministic.
"""

import heapq
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any, Protocol

import av
import av.error
import numpy as np
from av.codec.context import CodecContext, Flags2, ThreadType
from av.video.reformatter import VideoReformatter

from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import SourceError
from encoders.media.resample import Resampler

# Where FFmpeg's first choice needs a GPU, or dithers to integers by a state that depends on all that was before.
_DECODERS = {"av1": "libdav1d", "mp3": "mp3float", "mp2": "mp2float", "mp1": "mp1float"}
_MAX_PIXELS = 8192 * 8192
_RESET_AFTER = 50  # consecutive errors after which a decoder's state is thrown away
_OUTSTANDING = 64  # packets whose picture may still come; more than any codec reorders
_SLACK = Fraction(4, 1000)  # seconds a container's clock may round or drift before sound is cut into a new run
_RATES = range(1000, 768_001)  # Hz; what a sample rate may be
_SAMPLES: dict[str, tuple[type, float, float]] = {  # FFmpeg's name: type, zero level, size of one step
    "u8": (np.uint8, 128.0, 2.0**-7),
    "s16": (np.int16, 0.0, 2.0**-15),
    "s32": (np.int32, 0.0, 2.0**-31),
    "s64": (np.int64, 0.0, 2.0**-63),
    "flt": (np.float32, 0.0, 1.0),
    "dbl": (np.float64, 0.0, 1.0),
}


class Encoded(Protocol):
    """What the decoders read of a packet (``encoders.media.Demuxed`` or ``runtime.packet.Packet``)."""

    @property
    def seq(self) -> int: ...
    @property
    def capture_time(self) -> int: ...
    @property
    def time_base(self) -> Fraction: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def skip(self) -> int: ...
    @property
    def padding(self) -> int: ...


class Codec(Protocol):
    """What the decoders read of a track (``encoders.media.Track`` or ``runtime.packet.CodecConfig``)."""

    @property
    def codec(self) -> str: ...
    @property
    def extradata(self) -> bytes: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def pixel_format(self) -> str: ...
    @property
    def rotation(self) -> int: ...


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
        return self.ticks * self.packet.time_base


@dataclass(slots=True, eq=False)
class Sound:
    """Samples ``index .. index + len(samples)`` of the track, counted at the spec's rate from capture time 0."""

    index: int
    samples: np.ndarray  # float32 (S,)
    seqs: tuple[int, ...]  # of the packets that it was coded in
    note: Any


class _Decoder:
    """The part that both modalities share: a codec context, an error count, a reset."""

    def __init__(self, config: Codec, kind: str) -> None:
        self.errors = 0  # packets that the codec refused
        self.corrupt = 0  # pictures or frames that it called corrupt
        self._failures = 0  # in a row
        self._config = config
        self._context = _context(config, kind)

    def _decode(self, packet: Any) -> list[Any]:
        """Frames that a PyAV packet (None: the end) gives; [] and a count where the codec fails."""
        try:
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, ValueError, MemoryError):
            self.errors += 1
            self._failures += 1
            if self._failures % _RESET_AFTER == 0 and self._context.is_open:
                self._context.flush_buffers()
            return []
        if frames:
            self._failures = 0
        return frames


class VideoPacketDecoder(_Decoder):
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


class AudioPacketDecoder(_Decoder):
    """Audio packets to mono float32 at the spec's rate, on the absolute grid k / rate.

    Within a run, samples are counted and the container's rounded times only checked (to 4 ms); a larger step ends
    the run, and the next one begins at the time of its packet.
    """

    def __init__(self, config: Codec, spec: AudioSpec) -> None:
        super().__init__(config, "audio")
        self._spec = spec
        self._rate = 0
        self._resampler: Resampler | None = None
        self._next = 0  # number of the next input sample
        self._spans: deque[tuple[int, int, Any]] = deque()  # (output after the span, seq, note), oldest first

    def decode(self, packet: Encoded, note: Any = None) -> list[Sound]:
        """Sound that became ready: that of the packet, less about a millisecond that waits for the next."""
        if not packet.payload:
            self.errors += 1
            return []
        coded = av.Packet(packet.payload)
        coded.pts = coded.dts = 0
        frames = self._decode(coded)
        if not frames:
            return []
        rate = frames[0].sample_rate
        samples = [_mono(f) for f in frames if f.sample_rate == rate]
        whole = samples[0] if len(samples) == 1 else np.concatenate(samples)
        whole = whole[packet.skip : len(whole) - packet.padding] if packet.skip or packet.padding else whole
        if not len(whole) or rate not in _RATES:
            return []
        return self._run(whole, rate, packet, note)

    def flush(self) -> list[Sound]:
        """The sound that waited for a next packet; afterwards the decoder is as new."""
        self._decode(None)  # no supported codec keeps whole frames back
        if self._context.is_open:
            self._context.flush_buffers()
        sounds = self._end_run()
        self._resampler = None
        return sounds

    def _run(self, samples: np.ndarray, rate: int, packet: Encoded, note: Any) -> list[Sound]:
        base = packet.time_base
        index = (2 * packet.capture_time * base.numerator * rate + base.denominator) // (2 * base.denominator)
        sounds: list[Sound] = []
        if self._resampler is None or rate != self._rate:
            sounds = self._end_run()
            self._rate, self._slack = rate, int(rate * _SLACK)
            self._resampler = Resampler(rate, self._spec.sample_rate)
            self._begin_run(index)
        elif abs(index - self._next) > self._slack:
            sounds = self._end_run()
            self._begin_run(index)
        self._next += len(samples)
        end = -(-self._next * self._resampler.up // self._resampler.down)
        self._spans.append((end, packet.seq, note))
        return sounds + self._cut(*self._resampler.push(samples))

    def _begin_run(self, index: int) -> None:
        assert self._resampler is not None
        self._next = index
        self._resampler.start(index)

    def _end_run(self) -> list[Sound]:
        sounds = self._cut(*self._resampler.finish()) if self._resampler is not None else []
        self._spans.clear()
        return sounds

    def _cut(self, first: int, samples: np.ndarray) -> list[Sound]:
        """Split outputs where the notes of their packets differ."""
        sounds: list[Sound] = []
        end = first + len(samples)
        start = first
        seqs: tuple[int, ...] = ()
        while start < end:
            stop, seq, note = self._spans[0]
            seqs = (*seqs, seq)
            if stop < end and len(self._spans) > 1:
                self._spans.popleft()
                if stop <= start:
                    seqs = ()
                    continue
                if self._spans[0][2] == note:
                    continue
            else:
                stop = end
            sounds.append(Sound(start, samples[start - first : stop - first], seqs, note))
            start, seqs = stop, ()
        return sounds


def _context(config: Codec, kind: str) -> Any:
    """A decoder that knows nothing but the config."""
    name = _DECODERS.get(config.codec, config.codec)
    try:
        context: Any = CodecContext.create(name, "r")
    except (av.error.FFmpegError, ValueError):
        raise SourceError(f"codec {config.codec!r} has no decoder here; re-encode to h264 and aac") from None
    if context.type != kind:
        raise SourceError(f"codec {config.codec!r} is not a {kind} codec")
    context.thread_count = 1
    context.thread_type = ThreadType.NONE
    if config.extradata:
        context.extradata = config.extradata
    if kind == "audio":
        context.flags2 |= Flags2.skip_manual  # priming travels with the packets
        if config.sample_rate:
            context.sample_rate = config.sample_rate
        if config.channels:
            context.layout = {1: "mono", 2: "stereo"}.get(config.channels, f"{config.channels} channels")
        return context
    context.options = {"max_pixels": str(_MAX_PIXELS)}
    if config.width and config.height:
        context.width, context.height = config.width, config.height
    if config.pixel_format and config.codec == "rawvideo":
        context.pix_fmt = config.pixel_format
    return context


def _mono(frame: Any) -> np.ndarray:
    """The mean of the channels, float32 (S,). (``frame.to_ndarray`` is three times slower.)"""
    kind, offset, scale = _SAMPLES[frame.format.name.removesuffix("p")]
    channels, count = len(frame.layout.channels), frame.samples
    mono: np.ndarray
    planes: list[np.ndarray]
    if channels == 1:
        mono = np.frombuffer(frame.planes[0], kind, count)
    elif frame.format.is_planar:
        planes = [np.frombuffer(p, kind, count) for p in frame.planes]
        mono = sum(planes[1:], planes[0].astype(np.float32)) / np.float32(channels)
    else:
        mono = np.frombuffer(frame.planes[0], kind, count * channels).reshape(count, channels).mean(1, np.float32)
    mono = mono.astype(np.float32)  # a copy: the decoder may use its buffer again
    if offset or scale != 1.0:
        mono -= np.float32(offset)
        mono *= np.float32(scale)
    if not isfinite(mono.dot(mono)):  # float PCM can hold anything, and a broken packet gives anything
        mono = np.nan_to_num(mono, nan=0.0, posinf=0.0, neginf=0.0)
    np.minimum(mono, 1.0, out=mono)  # np.clip takes three times as long
    return np.maximum(mono, -1.0, out=mono)


def _rows(pixels: np.ndarray, width: int) -> np.ndarray:
    """Drop the padding at the end of each row of an RGB picture."""
    return np.ascontiguousarray(pixels).reshape(len(pixels), width, 3)
