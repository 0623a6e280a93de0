"""Media files from arrays: for tests, benches and demo recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from encoders.errors import OutputError


@dataclass(frozen=True, kw_only=True)
class VideoTrack:
    """Pictures to encode: uint8 (H, W) gray or (H, W, 3) RGB, all of one size."""

    frames: Sequence[np.ndarray]
    rate: Fraction | int = 25  # frames per second
    codec: str = "libx264"
    pixel_format: str = ""  # the encoder's; empty: yuv420p where it takes that
    options: dict[str, str] = field(default_factory=dict)  # of the encoder
    ticks: Sequence[int] | None = None  # presentation times, in 1 / (1000 * rate) seconds; None: evenly spaced
    bit_rate: int = 0  # 0: the encoder's default
    gop: int = 0  # frames from keyframe to keyframe; 0: the encoder's default


@dataclass(frozen=True, kw_only=True)
class AudioTrack:
    """Sound to encode: float32 (S,) or (C, S) in [-1, 1]."""

    samples: np.ndarray
    sample_rate: int = 16_000
    codec: str = "aac"
    options: dict[str, str] = field(default_factory=dict)
    start: Fraction = Fraction(0)  # seconds
    bit_rate: int = 0


def write_media(
    path: str | Path,
    tracks: Sequence[VideoTrack | AudioTrack],
    *,
    container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode the tracks into one file, interleaved by time; the path's suffix names the container.

    Raises OutputError when the file cannot be written or the container does not take a codec.
    """
    path = Path(path)
    try:
        with av.open(f"file:{path}", "w", format=container, options=options or {}) as file:
            streams = [_video_stream(file, t) if isinstance(t, VideoTrack) else _audio_stream(file, t) for t in tracks]
            frames = [
                (float(f.pts * f.time_base), i, f)
                for i, (s, t) in enumerate(zip(streams, tracks, strict=True))
                for f in (_pictures(t, s) if isinstance(t, VideoTrack) else _sounds(t, s))
            ]
            for _, i, frame in sorted(frames, key=lambda x: x[:2]):
                file.mux(streams[i].encode(frame))
            for stream in streams:
                file.mux(stream.encode(None))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written ({error})") from None
    return path


def _video_stream(file: Any, track: VideoTrack) -> Any:
    stream = file.add_stream(track.codec, rate=Fraction(track.rate), options=dict(track.options))
    context = stream.codec_context
    context.height, context.width = track.frames[0].shape[:2]
    context.pix_fmt = track.pixel_format or _pixel_format(context)
    context.time_base = 1 / Fraction(track.rate) if track.ticks is None else 1 / (1000 * Fraction(track.rate))
    context.thread_count = 1
    if track.bit_rate:
        context.bit_rate = track.bit_rate
    if track.gop:
        context.gop_size = track.gop
    return stream


def _audio_stream(file: Any, track: AudioTrack) -> Any:
    channels = len(np.atleast_2d(track.samples))
    options = {"strict": "-2", **track.options}  # FFmpeg's own Vorbis and Opus encoders count as experimental
    layout = "mono" if channels == 1 else "stereo"
    stream = file.add_stream(track.codec, rate=track.sample_rate, layout=layout, options=options)
    if track.bit_rate:
        stream.codec_context.bit_rate = track.bit_rate
    return stream


def _pictures(track: VideoTrack, stream: Any) -> list[Any]:
    frames = []
    for i, pixels in enumerate(track.frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "gray" if pixels.ndim == 2 else "rgb24")
        frame = frame.reformat(format=stream.codec_context.pix_fmt)
        frame.pts = i if track.ticks is None else track.ticks[i]
        frame.time_base = stream.codec_context.time_base
        frames.append(frame)
    return frames


def _sounds(track: AudioTrack, stream: Any) -> list[Any]:
    samples = np.ascontiguousarray(np.atleast_2d(track.samples), np.float32)
    context = stream.codec_context
    context.open(strict=False)
    layout = "mono" if len(samples) == 1 else "stereo"
    whole = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    whole.sample_rate = track.sample_rate
    whole.time_base = Fraction(1, track.sample_rate)
    whole.pts = round(track.start * track.sample_rate)
    size = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format, layout=layout, rate=track.sample_rate, frame_size=size)
    return [*resampler.resample(whole), *resampler.resample(None)]


def _pixel_format(context: Any) -> str:
    if context.codec.name == "mjpeg":
        return "yuvj420p"  # JPEG is full range; the encoder refuses anything else
    offered = [f.name for f in context.codec.video_formats or []]
    return "yuv420p" if not offered or "yuv420p" in offered else offered[0]
