"""How well damage tracking finds the frames that a loss spoiled: ``python -m bench.damage``.

Files are made here (moving pictures, no dataset), packets are dropped or bits flipped, and what the tracker says is
held against the truth: a frame is damaged if its mean absolute luma error against the clean decode is above 0.5 grey
levels, or if it is missing. Recall is the share of damaged frames that were found, false alarms the share of all
frames that were flagged although nothing is wrong. FFmpeg's own flag on the same frames is printed beside it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.record import write_results
from encoders.clips import VideoSpec
from encoders.errors import OutputError
from encoders.media import VideoTrack, write_media
from runtime.damage import VideoDamage
from runtime.decode import Frame, VideoDecoder
from runtime.packet import Gap, Packet, StreamInfo
from runtime.sources.replay import FileSource

FRAMES = 250
SIZE = (240, 320)
GREY_LEVELS = 0.5  # mean absolute luma error above which a frame counts as damaged
HIT = 14  # packets of 250 that are dropped or have bits flipped
FLIPS = 4  # bits in each
SEEDS = 5
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of coding and one way of breaking it."""

    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    suffix: str = "mkv"
    pixel_format: str = ""
    gop: int = 50
    fault: str = "drop"  # drop, flip, hole (dropped without leaving a sequence number)
    required: bool = True  # held to recall >= 98 %, false alarms <= 3 %


_X264 = {"preset": "veryfast", "crf": "23", "threads": "1"}
CASES = (
    Case(name="H.264, P only", codec="libx264", options={**_X264, "bf": "0"}),
    Case(name="H.264, B frames", codec="libx264", options={**_X264, "bf": "3"}),
    Case(name="VP8", codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}, suffix="webm"),
    Case(name="MPEG-1", codec="mpeg1video", gop=12, suffix="mpg"),
    Case(name="H.264, bit flips", codec="libx264", options={**_X264, "bf": "0"}, fault="flip"),
    Case(
        name="H.264, B frames, bit flips", codec="libx264", options={**_X264, "bf": "3"}, fault="flip", required=False
    ),
    Case(
        name="H.264, open groups",
        codec="libx264",
        options={**_X264, "bf": "3", "x264-params": "open-gop=1"},
        required=False,
    ),
    Case(
        name="H.264, intra refresh",
        codec="libx264",
        options={**_X264, "bf": "0", "x264-params": "intra-refresh=1"},
        required=False,
    ),
    Case(
        name="H.264, default preset, three references",
        codec="libx264",
        options={**_X264, "preset": "medium", "bf": "3"},
        required=False,
    ),
    Case(
        name="H.264, B frames, no numbers", codec="libx264", options={**_X264, "bf": "3"}, fault="hole", required=False
    ),
    Case(name="MPEG-1, B frames", codec="mpeg1video", options={"bf": "2"}, gop=12, suffix="mpg", required=False),
    Case(name="MPEG-4", codec="mpeg4", options={"bf": "2"}, gop=25, required=False),
    Case(
        name="H.265", codec="libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}, required=False
    ),
    Case(
        name="VP9", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, suffix="webm", required=False
    ),
    Case(name="AV1", codec="libsvtav1", options={"preset": "10"}, required=False),
    Case(name="MJPEG", codec="mjpeg", suffix="avi", pixel_format="yuvj420p", required=False),
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Frames of one run."""

    frames: int
    damaged: int
    found: int
    false_alarms: int
    found_by_flag: int  # by FFmpeg's corrupt flag alone, missing frames included

    @property
    def recall(self) -> float:
        return self.found / max(1, self.damaged)


def moving_pictures(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Gray pictures uint8 (H, W): a panning texture, bars that slide, a box that circles; nothing stands still."""
    height, width = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (height // 8 + 40, width // 8 + 80))
    texture = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    pictures = []
    for i in range(count):
        picture = texture[i % 160 : i % 160 + height, 2 * i % 320 : 2 * i % 320 + width].copy()
        bars = (x + 5 * i) // 20 % 2 == 0
        picture[: height // 6] = np.where(bars, 230, 30)[: height // 6]
        cy, cx = height / 2 + 60 * np.sin(i / 9), width / 2 + 90 * np.cos(i / 9)
        picture[(abs(y - cy) < 25) & (abs(x - cx) < 25)] = (i * 7) % 256
        pictures.append(picture)
    return pictures


def coded(case: Case, folder: Path) -> tuple[StreamInfo, list[Packet]]:
    """The case's pictures, coded into a file and read back as packets."""
    path = folder / f"coded.{case.suffix}"
    track = VideoTrack(
        frames=moving_pictures(FRAMES),
        codec=case.codec,
        options=case.options,
        gop=case.gop,
        pixel_format=case.pixel_format,
    )
    write_media(path, [track])
    with FileSource(path) as source:
        return source.info, [p for p in source.packets() if isinstance(p, Packet)]


def damage_packets(packets: Sequence[Packet], fault: str, seed: int) -> list[Packet | Gap]:
    """The same stream with ``HIT`` of every 250 packets dropped or hit by bit flips; the first stays."""
    rng = np.random.default_rng(seed)
    hit = set(rng.choice(np.arange(1, len(packets)), HIT * len(packets) // 250, replace=False).tolist())
    out: list[Packet | Gap] = []
    for i, packet in enumerate(packets):
        if i not in hit:
            out.append(packet)
        elif fault == "flip":
            out.append(replace(packet, payload=flip_bits(packet.payload, rng)))
        elif fault == "drop":
            out.append(Gap(modality="video", first_seq=packet.seq, count=1))
    return out


def flip_bits(payload: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(payload)
    for bit in rng.choice(len(data) * 8, FLIPS, replace=False).tolist():
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def receive(info: StreamInfo, items: Sequence[Packet | Gap], *, numbered: bool = True) -> list[Frame]:
    """What serving does with these packets: judge, decode, judge again."""
    config = info.codecs["video"]
    tracker = VideoDamage(config, sequence_numbers=numbered)
    decoder = VideoDecoder(config, VideoSpec(frames=1, size=1))
    frames: list[Frame] = []
    for item in items:
        verdict = tracker.push(item)
        if isinstance(item, Packet):
            errors = decoder.errors
            ready = decoder.decode(item, verdict)
            if decoder.errors != errors:
                tracker.decode_error()
            frames += [_judged(frame, tracker) for frame in ready]
    return frames + [_judged(frame, tracker) for frame in decoder.flush()]


def _judged(frame: Frame, tracker: VideoDamage) -> Frame:
    verdict = tracker.frame_flag(frame.seqs[0], corrupt=frame.corrupt)
    frame.damaged, frame.reason, frame.severity = verdict.damaged, verdict.reason, verdict.severity
    return frame


def score(clean: Sequence[Frame], lossy: Sequence[Frame]) -> Score:
    """Hold what was flagged against the truth, for every frame of the clean decode."""
    got = {frame.time: frame for frame in lossy}
    damaged = found = by_flag = false_alarms = 0
    for frame in clean:
        other = got.get(frame.time)
        error = 255.0 if other is None else luma_error(frame.pixels, other.pixels)
        flagged = other is None or other.damaged
        if error > GREY_LEVELS:
            damaged += 1
            found += flagged
            by_flag += other is None or other.corrupt
        else:
            false_alarms += flagged
    return Score(
        frames=len(clean),
        damaged=damaged,
        found=found,
        false_alarms=false_alarms,
        found_by_flag=by_flag,
    )


def luma_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, grey levels; 255 where the sizes differ."""
    return float(np.abs(a.astype(np.int16) - b).mean()) if a.shape == b.shape else 255.0


def run_case(case: Case, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """One row of the table: sums over the seeds."""
    info, packets = coded(case, folder)
    clean = receive(info, packets)
    runs = []
    for seed in seeds:
        items = damage_packets(packets, case.fault, seed)
        runs.append(score(clean, receive(info, items, numbered=case.fault != "hole")))
    frames, damaged = sum(r.frames for r in runs), sum(r.damaged for r in runs)
    recall = sum(r.found for r in runs) / max(1, damaged)
    false_alarms = sum(r.false_alarms for r in runs) / frames
    clean_alarms = sum(frame.damaged for frame in clean)
    return {
        "case": case.name,
        "fault": case.fault,
        "frames": frames,
        "damaged": damaged,
        "recall": round(recall, 4),
        "false_alarms": round(false_alarms, 4),
        "worst_recall": round(min(r.recall for r in runs), 4),
        "worst_false_alarms": round(max(r.false_alarms / r.frames for r in runs), 4),
        "ffmpeg_flag_recall": round(sum(r.found_by_flag for r in runs) / max(1, damaged), 4),
        "alarms_without_loss": clean_alarms,
        "required": case.required,
        "passes": recall >= 0.98 and false_alarms <= 0.03 and clean_alarms == 0,
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| case | damaged frames | recall | worst | false alarms | worst | FFmpeg's flag finds | required |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = ("yes, passes" if row["passes"] else "yes, **fails**") if row["required"] else ""
        shares = [f"{100 * row[key]:.1f} %" for key in SHARES]
        lines.append(f"| {row['case']} | {row['damaged']} of {row['frames']} | {' | '.join(shares)} | {verdict} |")
    return lines


SHARES = ("recall", "worst_recall", "false_alarms", "worst_false_alarms", "ffmpeg_flag_recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each case; seeds count from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for damage.json and damage.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.case not in case.name:
                continue
            try:
                row = run_case(case, Path(folder), range(options.seeds))
            except OutputError as error:
                print(f"{case.name}: left out, this FFmpeg cannot encode it ({error})")
                continue
            rows.append(row)
            print(
                f"{case.name:28} recall {row['recall']:.4f} (worst {row['worst_recall']:.3f})  "
                f"false alarms {row['false_alarms']:.4f} (worst {row['worst_false_alarms']:.3f})",
                flush=True,
            )
    lines = [
        "# Damage: which frames a loss spoiled",
        "",
        f"{FRAMES} moving pictures of {SIZE[1]}x{SIZE[0]}, {HIT} of 250 packets hit, seeds 0 to {options.seeds - 1}. "
        f"Truth: mean absolute luma error above {GREY_LEVELS} grey levels against the clean decode, or frame missing. "
        "Required: recall >= 98 %, false alarms <= 3 % of all frames, none without loss.",
        "",
        *table(rows),
    ]
    if options.case:
        print("\n".join(lines))
    else:
        write_results(options.out, "damage", {"seeds": options.seeds, "rows": rows}, lines)


if __name__ == "__main__":
    main()
