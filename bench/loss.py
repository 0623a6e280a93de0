"""What the loss profiles do to clips: ``python -m bench.loss`` writes bench/results/loss.md.

A reference call (imputation.reception) of some hours over every profile: packets lost, length of runs, clips touched
and absent, video under four ways of recovery, and how the modalities fall out together. Beside each number, in
brackets, the value that the profiles were specified with, from an independent simulation of 60 000 s.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.record import write_results
from imputation.channel import PROFILES, Channel
from imputation.reception import FRAME_RATE, audio_losses, bad_frames

STRETCH = 60.0  # seconds; a row of the simulation
WARM_UP = 12.0  # seconds of video before a row counts
RESULTS = Path(__file__).parent / "results"

# loss %, mean run, loss with FEC %; then per cent of 400 ms clips with any, >= 25 %, >= 50 %, all of their packets lost
AUDIO = {
    "wired": (0.05, 1.0, 0.00, 1.0, 0, 0, 0),
    "iid-1": (1.01, 1.0, 0.01, 18.3, 0.0, 0, 0),
    "iid-5": (5.00, 1.1, 0.25, 64.1, 0.3, 0, 0),
    "iid-10": (10.0, 1.1, 1.01, 87.8, 4.4, 0, 0),
    "iid-20": (20.0, 1.2, 4.00, 98.9, 37.1, 0.2, 0),
    "wifi-good": (1.07, 2.2, 0.59, 9.8, 0.9, 0.1, 0),
    "wifi-burst": (2.90, 2.0, 1.48, 20.4, 3.9, 0.5, 0),
    "wifi-poor": (8.67, 2.1, 4.52, 50.2, 13.8, 2.6, 0),
    "lte-handover": (1.82, 4.6, 1.42, 9.1, 2.5, 1.3, 0.4),
    "lte-driving": (7.06, 8.5, 6.23, 21.6, 10.1, 6.2, 1.9),
    "congestion": (7.27, 1.3, 1.71, 38.4, 14.6, 0.3, 0),
    "congestion-severe": (19.2, 1.7, 8.07, 64.1, 39.4, 14.4, 0),
    "mic-mute": (9.04, 198, 9.00, 9.9, 9.6, 9.1, 8.2),
    "both-drop": (7.46, 29, 7.21, 12.2, 8.1, 7.4, 5.9),
}
# per cent of frames bad with gop, pli, nack; of 400 ms clips half bad with intra, gop, pli, nack
VIDEO = {
    "wired": (8.8, 2.2, 0, 0, 8.9, 2.5, 0),
    "iid-1": (77.9, 31.2, 0, 0, 78.7, 37.6, 0),
    "iid-5": (98.9, 71.3, 0.0, 4.2, 99.4, 87.3, 0),
    "iid-10": (99.9, 85.2, 0.4, 38.4, 100, 98.1, 0.5),
    "iid-20": (100, 94.4, 6.6, 94.3, 100, 100, 7.8),
    "wifi-good": (30.2, 8.6, 0.1, 0.1, 30.6, 10.0, 0.1),
    "wifi-burst": (52.6, 17.6, 1.1, 1.8, 53.3, 20.6, 1.3),
    "wifi-poor": (88.1, 46.1, 4.7, 8.7, 89.0, 55.5, 5.4),
    "lte-handover": (44.2, 13.7, 1.2, 1.4, 44.8, 16.0, 1.3),
    "lte-driving": (64.8, 25.2, 5.5, 6.7, 65.6, 29.2, 5.9),
    "congestion": (73.8, 41.2, 3.7, 26.1, 74.4, 45.4, 4.3),
    "congestion-severe": (95.6, 69.2, 25.5, 41.4, 96.1, 76.8, 30.9),
    "camera-stall": (9.3, 6.1, 5.4, 5.8, 9.4, 6.3, 5.6),
    "both-drop": (37.2, 15.3, 7.1, 7.4, 37.6, 16.7, 7.2),
}
# per cent of 400 ms clips without audio only, video only (pli), both; and phi
JOINT = {
    "iid-5": (0.0, 87.1, 0.2, 0),
    "wifi-good": (0.2, 9.3, 0.7, 0.22),
    "wifi-burst": (0.6, 17.3, 3.3, 0.32),
    "wifi-poor": (1.1, 42.7, 12.8, 0.30),
    "lte-handover": (0.4, 14.0, 2.0, 0.29),
    "lte-driving": (1.3, 20.4, 8.8, 0.43),
    "congestion": (0.0, 30.9, 14.5, 0.45),
    "congestion-severe": (0.1, 37.5, 39.3, 0.44),
    "camera-stall": (0, 6.3, 0, None),
    "mic-mute": (9.6, 0, 0, None),
    "both-drop": (0.3, 9.0, 7.7, 0.63),
}
RECOVERY = ("gop", "pli", "nack", "intra")
Floats = NDArray[np.float64]


def audio_figures(name: str, starts: Floats, seed: int) -> tuple[float, ...]:
    """The columns of AUDIO, measured."""
    lost = audio_losses(Channel(PROFILES[name], seed), starts, STRETCH)
    repaired = audio_losses(Channel(PROFILES[name], seed), starts, STRETCH, fec=True)
    shares = lost.reshape(-1, 20).mean(axis=1)
    # Rows follow one another without a break, so that a run may go on from one to the next.
    line = lost.ravel()
    runs = int(line[0]) + np.count_nonzero(line[1:] & ~line[:-1])
    clips = (shares > 0, shares >= 0.25 - 1e-9, shares >= 0.5 - 1e-9, shares == 1)
    return (100 * lost.mean(), line.sum() / max(runs, 1), 100 * repaired.mean(), *(100 * c.mean() for c in clips))


def video_absent(name: str, starts: Floats, seed: int, recovery: str) -> tuple[float, NDArray[np.bool_]]:
    """Share of frames bad, and which 400 ms clips are at least half bad."""
    bad = bad_frames(Channel(PROFILES[name], seed), starts - WARM_UP, STRETCH + WARM_UP, recovery)
    bad = bad[:, round(WARM_UP * FRAME_RATE) :]
    return bad.mean(), bad.reshape(-1, 12).mean(axis=1) >= 0.5


def joint_figures(name: str, starts: Floats, seed: int) -> tuple[float | None, ...]:
    """The columns of JOINT, measured."""
    lost = audio_losses(Channel(PROFILES[name], seed), starts, STRETCH).reshape(-1, 20).mean(axis=1) >= 0.25 - 1e-9
    _, bad = video_absent(name, starts, seed, "pli")
    varied = lost.any() and bad.any() and not bad.all()
    phi = float(np.corrcoef(lost, bad)[0, 1]) if varied and JOINT[name][3] is not None else None
    return (100 * (lost & ~bad).mean(), 100 * (bad & ~lost).mean(), 100 * (bad & lost).mean(), phi)


def table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"## {title}", "", "| profile | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows), ""])


def beside(measured: Sequence[float | None], wanted: Sequence[float | None], digits: int = 1) -> list[str]:
    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.{2 if 0 < value < 1 else digits}f}"

    return [f"{text(m)} ({text(w)})" for m, w in zip(measured, wanted, strict=True)]


def tables(seconds: float, seed: int) -> list[str]:
    """The page of results, table by table."""
    starts = 1000.0 + STRETCH * np.arange(round(seconds / STRETCH))
    audio = [(n, beside(audio_figures(n, starts, seed), wanted)) for n, wanted in AUDIO.items()]
    video = []
    for name, wanted in VIDEO.items():
        by = {how: video_absent(name, starts, seed, how) for how in RECOVERY}
        frames = [100 * float(by[how][0]) for how in RECOVERY[:3]]
        clips = [100 * float(by[how][1].mean()) for how in ("intra", "gop", "pli", "nack")]
        video.append((name, beside([*frames, *clips], wanted)))
    joint = [(n, beside(joint_figures(n, starts, seed), wanted)) for n, wanted in JOINT.items()]
    of = "of 400 ms clips: "
    return [
        "# Loss profiles: what they do to clips\n",
        "Per cent, with the value of the specification in brackets.\n",
        table("Audio", ["packets lost", "mean run", "after FEC", of + "any", ">= 25 %", ">= 50 %", "all"], audio),
        table("Video", ["bad frames: gop", "pli", "nack", of + "intra", "gop", "pli", "nack"], video),
        table("Together (audio >= 25 %, video >= 50 % with pli)", ["audio only", "video only", "both", "phi"], joint),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60_000, help="of the call, for each profile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    of = {"seconds": options.seconds, "seed": options.seed}
    write_results(options.out, "loss", of, tables(**of))


if __name__ == "__main__":
    main()
