"""Audio packets to sound: mono float32 on an absolute grid, at the rate that is asked for."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any

import av
import numpy as np

from encoders.clips import AudioSpec
from encoders.media.codec import Codec, Encoded, PacketDecoder
from encoders.media.resample import Resampler

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


@dataclass(slots=True, eq=False)
class Sound:
    """Samples ``index .. index + len(samples)`` of the track, counted at the spec's rate from capture time 0."""

    index: int
    samples: np.ndarray  # float32 (S,)
    seqs: tuple[int, ...]  # of the packets that it was coded in
    note: Any


class AudioPacketDecoder(PacketDecoder):
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
