"""One trunk for picture, clip and sound: ``python -m bench.polyvit --runs DIR``.

PolyViT (small) learns three tasks of GRID: words from the lips (video), spoken digits (audio) and who it is (image).
Each alone is a baseline; then all three together by each of the five schedules, every task with the batch, learning
rate and number of steps that it has alone. Measured on unseen sentences. Runs that are there are not made again;
``--only`` makes some of them, so that several processes can share the work.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, pstdev

import torch

from bench.record import write_results
from encoders.checkpoint import write_json
from encoders.cotrain import cotrain, test_run
from encoders.cotrain_recipes import CotrainConfig, run_of
from runtime.bundle import SHIPPED

SCHEDULES = ("task_by_task", "alternating", "uniform", "weighted", "accumulated")
TASKS = {  # name of the task: its data
    "grid_lips": "grid_lips",
    "grid_digits_audio": "audio=grid_digits",
    "grid_speakers": "grid_speakers",
}
VALUES = {
    "optimizer": "adamw", "betas": "0.9,0.98", "weight_decay": 0.05, "cache": "memory", "workers": 0, "lr": 1e-3,
    "log_every": 50, "save_every": 400, "batch": 32, "warmup": 2.5,
    "model.video.motion": True, "model.video.region": "face", "model.video.crop_share": 64 / 68,
}  # fmt: skip
# AudioSet's masks of 48 frames are longer than a word's spectrogram
QUIET = {"spec_augment.time_masks": 1, "spec_augment.time_width": 4, "spec_augment.frequency_width": 8}
OWN = {
    "grid_lips": {"epochs": 12, "stride": 0, "views": "1x1", "augment.scale": "1,1", "augment.colour": 0.0,
                  "augment.grayscale": 0.0},
    "grid_digits_audio": {"epochs": 24, "stochastic_depth": 0.0, "mixup": 0.0, "views": "4x1", **QUIET},
    "grid_speakers": {"epochs": 60, "warmup_steps": 20, "stochastic_depth": 0.0},
}  # fmt: skip
WITHIN = 0.02  # of its baseline each task is asked to stay


def config_of(tasks: tuple[str, ...], schedule: str, seed: int) -> CotrainConfig:
    """A run of some tasks."""
    own = {f"{task}.{key}": value for task in tasks for key, value in OWN[task].items()}
    if "grid_lips" in tasks:
        own["grid_lips.face"] = str(SHIPPED / "talk" / "face.safetensors")
    changes = {**VALUES, **own, "seed": seed, "plan.schedule": schedule, "plan.seed": seed}
    return run_of("polyvit_tiny", [TASKS[task] for task in tasks], **changes)


def plans() -> dict[str, tuple[tuple[str, ...], str]]:
    """Name of a run: its tasks and schedule."""
    alone = {f"alone {task}": ((task,), "weighted") for task in TASKS}
    return alone | {schedule: (tuple(TASKS), schedule) for schedule in SCHEDULES}


def make(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train and judge, unless that is done: accuracy by task."""
    out: Path = args.runs / f"{name.replace(' ', '-')}-{seed}"
    if not (out / "found.json").exists():
        if args.no_train:
            return {}
        began = time.process_time()
        cotrain(config_of(*plans()[name], seed), out, resume=(out / "checkpoint.json").exists(), say=print)
        found = {task: values["top1"] for task, values in test_run(out, splits=("test",)).items()}
        write_json(out / "found.json", {**found, "cpu_seconds": time.process_time() - began})
    return dict(json.loads((out / "found.json").read_text()))


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {pstdev(values):.3f}" if len(values) > 1 else "")


def page(rows: dict[str, list[dict[str, float]]], seeds: int) -> list[str]:
    """The page of results."""
    alone = {task: [f[task] for f in rows.get(f"alone {task}", [])] for task in TASKS}
    lines = [
        "# PolyViT, small: three tasks of GRID in one trunk",
        "",
        f"Accuracy on unseen sentences, mean ± standard deviation over {seeds} seed(s): fourteen words from the lips",
        "of speaker s1 (video, 244 words), ten spoken digits (audio, 122), nine speakers from one picture (image, 19).",
        "",
        "| | " + " | ".join(TASKS) + " | mean |",
        "|---" * (len(TASKS) + 2) + "|",
    ]
    if all(alone.values()):
        means = [mean(row) for row in zip(*alone.values(), strict=True)]
        lines.append("| each alone | " + " | ".join(spread(alone[t]) for t in TASKS) + f" | {spread(means)} |")
    close = []
    for schedule in SCHEDULES:
        if found := rows.get(schedule):
            means = [mean(f[t] for t in TASKS) for f in found]
            cells = " | ".join(spread([f[t] for f in found]) for t in TASKS)
            lines.append(f"| together, {schedule.replace('_', ' ')} | {cells} | {spread(means)} |")
            if all(alone.values()) and all(mean(f[t] for f in found) >= mean(alone[t]) - WITHIN for t in TASKS):
                close.append(schedule.replace("_", " "))
    said = ", ".join(close) or "none"
    return [*lines, "", f"Within {WITHIN * 100:.0f} points of its baseline in every task: **{said}**."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="runs to make now, comma-separated; no page is written")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name in args.only.split(",") if args.only else plans():
            if found := make(name, seed, args):
                rows.setdefault(name, []).append(found)
                print(name, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
    if not args.only:
        write_results(args.out, "polyvit", {"rows": rows}, page(rows, args.seeds))


if __name__ == "__main__":
    main()
