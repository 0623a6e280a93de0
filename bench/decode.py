"""What the decode path costs beside bare PyAV, in one run: `python -m bench.decode [--seconds 60]`.

Both sides read the same 320x240 H.264 and AAC file, make every picture gray and all sound 16 kHz mono. Figures are CPU
seconds of one thread; only their ratios mean something on another machine.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from bench.record import write_results
from encoders.clips import AudioSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.decode import AudioDecoder, VideoDecoder
from runtime.sources import open_source


def recording(folder: Path, seconds: int) -> Path:
    """A smooth picture that drifts, with a tone."""
    y, x = np.mgrid[0:640, 0:720]
    scene = (128 + 60 * np.sin(x / 7) + 50 * np.cos(y / 11)).astype(np.uint8)
    frames = [scene[i % 400 : i % 400 + 240, i % 397 : i % 397 + 320] for i in range(25 * seconds)]
    tone = (0.3 * np.sin(2000 * np.arange(44_100 * seconds) / 44_100)).astype(np.float32)
    tracks = [VideoTrack(frames=frames, bit_rate=400_000), AudioTrack(samples=tone, sample_rate=44_100)]
    return write_media(folder / "bench.mp4", tracks)


def decode_only(path: Path) -> None:
    """PyAV, nothing converted."""
    with av.open(str(path)) as file:
        for stream in file.streams:
            stream.thread_count, stream.thread_type = 1, "NONE"
        for packet in file.demux():
            packet.decode()


def bare(path: Path) -> None:
    """PyAV as its documentation would have it: decode, reformat, resample, to numpy."""
    reformatter, resampler = VideoReformatter(), av.AudioResampler("fltp", "mono", 16_000)
    with av.open(str(path)) as file:
        for stream in file.streams:
            stream.thread_count, stream.thread_type = 1, "NONE"
        for packet in file.demux():
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    reformatter.reformat(frame, format="gray", threads=1).to_ndarray()
                else:
                    _ = [block.to_ndarray() for block in resampler.resample(frame)]


def packets(path: Path) -> None:
    """Our source alone: packets in order of time."""
    with open_source(path) as source:
        for _ in source.packets():
            pass


def ours(path: Path) -> None:
    """Our source and decoders, as in serving."""
    with open_source(path) as source:
        video = VideoDecoder(source.info.codecs["video"], VideoSpec(frames=8, size=112))
        audio = AudioDecoder(source.info.codecs["audio"], AudioSpec())
        for packet in source.packets():
            if packet.modality == "video":
                video.decode(packet)
            else:
                audio.decode(packet)


def cost(work: Callable[[Path], None], path: Path, repeats: int) -> float:
    """The least CPU seconds of several runs."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        work(path)
        best = min(best, time.process_time() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="length of the recording")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = recording(Path(folder), args.seconds)
        found = {work.__name__: cost(work, path, args.repeats) for work in (decode_only, bare, packets, ours)}
    shares = {
        "ours over bare": found["ours"] / found["bare"],
        "ours over decode only": found["ours"] / found["decode_only"],
        "times real time": args.seconds / found["ours"],
    }
    lines = ["# The decode path beside bare PyAV", "", "| what | CPU seconds of one thread |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in found.items()]
    lines += ["", *(f"- {name}: {value:.2f}" for name, value in shares.items())]
    write_results(args.out, "decode", {"seconds": found, "shares": shares}, lines)


if __name__ == "__main__":
    main()
