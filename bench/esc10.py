"""Environmental sounds with every small transformer of sound: ``python -m bench.esc10 --runs DIR``.

ESC-10's five published folds (400 sounds of 5 s, ten classes; chance 0.10): learned on four of them, measured on the
fifth, each in turn; a run for each preset, fold and seed, as ``legato train PRESET --data esc10`` makes it. The recipe
was chosen once, by learning from folds 1 to 3 and looking at fold 4; the page says what the mean is without fold 4.
Runs that are there are not made again; ``--only`` and ``--folds`` make some of them, so that several processes can
share the work. Beside them a linear classifier of each recording's mean and deviation in every mel bin.
"""

import argparse
import csv
import json
import resource
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch

from bench.record import write_results
from encoders.audio.log_mel import FRONTS
from encoders.checkpoint import write_json
from encoders.classifier import build_classifier
from encoders.cost import clip_macs
from encoders.datasets.labelled_sounds import LabelledSounds
from encoders.datasets.sample import DATASETS, list_samples, read_table, shipped
from encoders.finetune import finetune
from encoders.judge import test_run
from encoders.recipes import FinetuneConfig, recipe

PRESETS = ("ast_tiny", "mat_tiny")
FOLDS = ("1", "2", "3", "4", "5")
CHOSEN_ON = "4"  # the fold that the recipe was chosen on
ASKED = 0.6
COLUMNS = ("file", "speaker", "label", "split", "fold")
Rows = dict[str, dict[str, list[dict[str, float]]]]  # by preset and fold, one for each seed


def folder_of(data: str) -> Path:
    """Where the dataset lies: ``esc10:PATH``, or the folder that LEGATO_DATA names."""
    path = data.partition(":")[2]
    return Path(path).expanduser().resolve() if path else shipped("esc10", DATASETS["esc10"][1]).resolve()


def without(fold: str, source: Path, runs: Path) -> str:
    """The dataset with one fold as its split ``test``, and all others as ``train``."""
    out = runs / "data" / f"fold{fold}"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "clips").exists():
        (out / "clips").symlink_to(source / "clips", target_is_directory=True)
    rows = read_table(source / "labels.csv", COLUMNS)
    with (out / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows({**row, "split": "test" if row["fold"] == fold else "train"} for row in rows)
    return f"esc10:{out}"


def config_of(preset: str, data: str, seed: int, changes: dict[str, str]) -> FinetuneConfig:
    """A run that looks at no other fold than those it learns from."""
    return recipe(preset, data, **{"seed": seed, "validation_splits": (), **changes})


def make(preset: str, fold: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train and judge, unless that is done."""
    out: Path = args.runs / f"{preset}-{fold}-{seed}"
    if not (out / "found.json").exists():
        if args.no_train:
            return {}
        config = config_of(preset, without(fold, folder_of(args.data), args.runs), seed,
                           dict(pair.split("=", 1) for pair in args.set))  # fmt: skip
        started = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        finetune(config, out, resume=(out / "checkpoint.json").exists(), say=print, device="cpu")
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - started
        found = test_run(out, splits=("test",))
        write_json(out / "found.json", {**found, "cpu_seconds": seconds, **sizes(config)})
    return dict(json.loads((out / "found.json").read_text()))


def sizes(config: FinetuneConfig) -> dict[str, float]:
    """Parameters, and multiply-adds of a clip."""
    with torch.device("meta"):
        model = build_classifier(config.preset, 10, config.encoder)
    return {"macs": clip_macs(model, model.spec), "parameters": sum(p.numel() for p in model.parameters())}


def linear(args: argparse.Namespace) -> dict[str, float]:
    """What a linear classifier of every bin's mean and deviation over time finds, fold by fold; ridge 100."""
    samples = list_samples(f"esc10:{folder_of(args.data)}")
    classes = sorted({s.label for s in samples})
    front: Any = FRONTS["filterbank"]
    sounds = LabelledSounds(samples, Fraction(1), front.sample_rate, front)
    heard = [front(torch.from_numpy(sounds.whole(i))[None])[0].numpy() for i in range(len(samples))]
    x = np.stack([np.r_[h.mean(0), h.std(0)] for h in heard]).astype(np.float64)
    wanted, fold = np.eye(len(classes))[[classes.index(s.label) for s in samples]], [s.notes["fold"] for s in samples]
    found = {}
    for name in FOLDS:
        new = np.array([f == name for f in fold])
        known = (x - x[~new].mean(0)) / (x[~new].std(0) + 1e-6)
        known = np.c_[known, np.ones(len(known))]
        inner = known[~new].T @ known[~new] + 100 * np.eye(known.shape[1])
        guessed = (known[new] @ np.linalg.solve(inner, known[~new].T @ wanted[~new])).argmax(1)
        found[name] = float((guessed == wanted[new].argmax(1)).mean())
    return found


def page(rows: Rows, line: dict[str, float], seeds: int) -> list[str]:
    """The page of results."""
    lines = [
        "# ESC-10: environmental sounds, five folds",
        "",
        f"400 sounds, chance 0.10. Learned on four folds, measured on the fifth; mean over {seeds} seed(s). The recipe",
        f"was chosen by looking at fold {CHOSEN_ON} alone; beside the mean of all stands that of the others.",
        "",
        f"| preset | {' | '.join(FOLDS)} | all | without {CHOSEN_ON} | MMAC a clip | parameters, M | CPU s a run |",
        f"|{'---|' * (len(FOLDS) + 6)}",
    ]
    for preset, by_fold in rows.items():
        means = {fold: mean(f["top1"] for f in found) for fold, found in by_fold.items()}
        every = [f for found in by_fold.values() for f in found]
        alike = range(min(map(len, by_fold.values())))  # seeds that every fold has
        per_seed = [mean(found[i]["top1"] for found in by_fold.values()) for i in alike]
        spread = f" ± {pstdev(per_seed):.3f}" if len(per_seed) > 1 else ""
        costs = f"{every[0]['macs'] / 1e6:.1f} | {every[0]['parameters'] / 1e6:.2f} | "
        lines.append(_row(preset, means, spread) + f"{costs}{mean(f['cpu_seconds'] for f in every):.0f} |")
    if line:
        lines.append(_row("linear, mean and deviation of each bin", line) + " | | |")
    whole = {preset: mean(f["top1"] for found in by_fold.values() for f in found) for preset, by_fold in rows.items()}
    below = [preset for preset, value in whole.items() if value < ASKED]
    verdict = "met" if not below else f"missed by {', '.join(below)}"
    return [*lines, "", f"Asked for: {ASKED} over the folds: **{verdict}**."]


def _row(name: str, by_fold: dict[str, float], spread: str = "") -> str:
    cells = [f"{by_fold[fold]:.3f}" if fold in by_fold else "" for fold in FOLDS]
    others = [value for fold, value in by_fold.items() if fold != CHOSEN_ON]
    rest = f"{mean(others):.3f}" if others else ""
    return f"| {name} | {' | '.join(cells)} | {mean(by_fold.values()):.3f}{spread} | {rest} | "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="esc10", help="esc10:PATH")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", default=",".join(FOLDS), help="to make now, comma-separated")
    parser.add_argument("--only", default="", help="presets to make now, comma-separated; no page is written")
    parser.add_argument("--set", action="append", default=[], help="key=value of every run")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--name", default="esc10", help="of the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: Rows = defaultdict(lambda: defaultdict(list))
    for seed in range(args.seeds):
        for preset in args.only.split(",") if args.only else PRESETS:
            for fold in args.folds.split(","):
                if found := make(preset, fold, seed, args):
                    rows[preset][fold].append(found)
                    print(preset, fold, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
    if not args.only and rows:
        line = linear(args)
        write_results(args.out, args.name, {"rows": rows, "linear": line}, page(rows, line, args.seeds))


if __name__ == "__main__":
    main()
