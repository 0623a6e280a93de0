"""Whole files and spans of files, through the same demuxer and decoders as serving."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.clips import AudioSpec, ClipSpec, VideoSpec, lay_audio, lay_video, to_flicks
from encoders.errors import SourceError
from encoders.media.demux import Demuxed, MediaFile
from encoders.media.pictures import Picture, VideoPacketDecoder
from encoders.media.sounds import AudioPacketDecoder, Sound

_PREROLL = Fraction(1, 2)  # seconds of sound decoded before a span, so that codecs with memory have settled


@dataclass
class Reading:
    """What came out of a file: pictures in presentation order, sound as runs on the grid k / rate."""

    origin: Fraction  # seconds; presentation time of the file's beginning
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[Sound] = field(default_factory=list)
    errors: int = 0  # packets that a decoder refused, damaged places of the container
    notes: list[str] = field(default_factory=list)

    def samples(self, start: Fraction, count: int, rate: int) -> np.ndarray:
        """``count`` samples from ``start`` seconds on, float32 (S,); silence where there is no sound."""
        out = np.zeros(count, np.float32)
        begin = round(start * rate)
        for sound in self.sounds:
            left = max(sound.index, begin)
            right = min(sound.index + len(sound.samples), begin + count)
            if left < right:
                out[left - begin : right - begin] = sound.samples[left - sound.index : right - sound.index]
        return out

    def clip(self, start: Fraction, spec: ClipSpec) -> "MediaClip":
        """The cell ``start .. start + spec.seconds`` (presentation time), laid out as in serving.

        Frames keep their decoded size for the face region. None for a modality that has nothing in the cell.
        """
        audio = None
        if spec.audio is not None:
            rate = spec.audio.sample_rate
            first, count = round(start * rate), round(spec.seconds * rate)
            near = [s for s in self.sounds if s.index < first + count and s.index + len(s.samples) > first]
            audio = lay_audio([s.samples for s in near], [s.index - first for s in near], count) if near else None
        return MediaClip(self._video(start, spec), audio)

    def _video(self, start: Fraction, spec: ClipSpec) -> NDArray[np.uint8] | None:
        if spec.video is None or not self.pictures:
            return None
        begin, length = to_flicks(1, start), spec.flicks
        starts = [to_flicks(p.ticks, p.packet.time_base) for p in self.pictures]
        last = self.pictures[-1].packet
        ends = [*starts[1:], starts[-1] + max(to_flicks(last.duration, last.time_base), 1)]
        shown = [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < begin + length and b > begin]
        if not shown:
            return None
        spans = [(starts[i], ends[i]) for i in shown]
        return lay_video([self.pictures[i].pixels for i in shown], spans, begin, length, spec.video)


class MediaClip(NamedTuple):
    """One span of a file: ``video`` uint8 (T, H, W[, 3]), ``audio`` float32 (S,); None where there is nothing."""

    video: NDArray[np.uint8] | None
    audio: NDArray[np.float32] | None


def read_all(
    path: str | Path,
    spec: ClipSpec,
    *,
    tracks: dict[str, int | None] | None = None,
) -> Reading:
    """Everything in a file. Raises SourceError where there is neither a picture nor a sample."""
    with MediaFile(path, tracks=_tracks(spec, tracks)) as file:
        reading = _decode(file, spec, file.demux())
    if not reading.pictures and not any(len(s.samples) for s in reading.sounds):
        raise SourceError(f"{path} gives neither a picture nor a sound ({reading.errors} packets could not be decoded)")
    return reading


def read_clip(
    path: str | Path,
    start: Fraction | float,
    seconds: Fraction | float,
    spec: ClipSpec,
    *,
    tracks: dict[str, int | None] | None = None,
) -> MediaClip:
    """One span of a file, ``start`` counted in seconds from the file's beginning.

    Laid out by ``encoders.clips`` exactly as in serving: the frames on screen at ``start + (i + 0.5) * seconds / T``,
    sound at the spec's rate with silence where the file has none. Equal to the same span of ``read_all``, but for sound
    in containers that round times (Matroska: to 1 ms), which a span from the middle takes as they stand.
    Raises SourceError where the span holds nothing.
    """
    spec = replace(spec, seconds=Fraction(seconds).limit_denominator(1_000_000))
    with MediaFile(path, tracks=_tracks(spec, tracks)) as file:
        begin = (file.origin or Fraction(0)) + Fraction(start)
        if start > _PREROLL:
            file.seek(float(begin - _PREROLL))
        reading = _decode(file, spec, _until(file, begin + spec.seconds))
    clip = reading.clip(begin, spec)
    if clip.video is None and clip.audio is None:
        raise SourceError(f"{path} gives neither a picture nor a sound at {float(start):.2f} s")
    return clip


def _tracks(spec: ClipSpec, tracks: dict[str, int | None] | None) -> dict[str, int | None]:
    left_out = {m: None for m, s in (("video", spec.video), ("audio", spec.audio)) if s is None}
    return {**(tracks or {}), **left_out}


def _until(file: MediaFile, end: Fraction) -> Iterable[Demuxed]:
    """Packets until each track has passed ``end`` by a second, which is more than any reordering."""
    going = set(file.tracks)
    for packet in file.demux(Demuxed):
        if packet.modality in going:
            yield packet
            time = packet.decode_time if packet.decode_time is not None else packet.capture_time
            if time * packet.time_base > end + 1:
                going.discard(packet.modality)
                if not going:
                    return


def _decode(file: MediaFile, spec: ClipSpec, packets: Iterable[Demuxed]) -> Reading:
    reading = Reading(file.origin or Fraction(0), notes=file.notes)
    decoders: dict[str, VideoPacketDecoder | AudioPacketDecoder] = {}
    if "video" in file.tracks:
        decoders["video"] = VideoPacketDecoder(file.tracks["video"], spec.video or VideoSpec(frames=1, size=1))
    if "audio" in file.tracks:
        decoders["audio"] = AudioPacketDecoder(file.tracks["audio"], spec.audio or AudioSpec())
    out: dict[str, list[Any]] = {"video": reading.pictures, "audio": reading.sounds}
    for packet in packets:
        out[packet.modality] += decoders[packet.modality].decode(packet)
    for modality, decoder in decoders.items():
        out[modality] += decoder.flush()
        reading.errors += decoder.errors
    reading.errors += file.demux_errors
    return reading
