"""Reading lips with every small video transformer: ``python -m bench.words --runs DIR``.

Digits and commands of GRID's speaker s1 (599 sentences to learn from), from the picture alone: one run for each preset
and seed, fourteen words, the mouth as the default bundle's face net finds it. Measured on the test sentences, each kind
among its own words (chance 0.10 and 0.25). Runs that are there are not made again; ``--only`` makes some of them, so
that several processes can share the work. Beside them a linear classifier of small pictures of the same mouths.
"""

import argparse
import copy
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.record import write_results
from encoders.checkpoint import load_weights, write_json
from encoders.classifier import build_classifier
from encoders.cost import clip_macs
from encoders.datasets.grid_words import WORDS
from encoders.datasets.labelled import LabelledClips
from encoders.datasets.views import views_of
from encoders.finetune import finetune, weights_of
from encoders.labelled_data import open_splits
from encoders.multi_view import score
from encoders.recipes import FinetuneConfig, recipe
from runtime.bundle import SHIPPED

PRESETS = (
    "vivit_tiny", "vivit_tiny_fe", "vivit_tiny_fsa", "vivit_tiny_fdp",
    "mtv_tiny", "mtv_tiny_bottleneck", "mtv_tiny_mlp", "mtv_tiny_late",
    "token_learner_tiny", "token_learner_tiny_full",
)  # fmt: skip
KINDS = ("digit", "command")
ASKED = {"digit": 0.25, "command": 0.45}
BY_HAND = {"digit": 0.53, "command": 0.66}  # lip features made by hand, a quick trial's figures
COMPONENTS = 100  # of the linear classifier's pictures


def config_of(preset: str, seed: int, data: str, changes: dict[str, str]) -> FinetuneConfig:
    """A run as ``legato train PRESET --data grid_lips`` makes it, tested on sentences that chose nothing."""
    face = str(SHIPPED / "talk" / "face.safetensors")
    return recipe(preset, data, **{"face": face, "seed": seed, "log_every": 20, **changes})


def by_kind(scores: Tensor, words: list[str], classes: tuple[str, ...]) -> dict[str, float]:
    """Accuracy of digits and of commands, each among its own words."""
    found = {}
    for kind in KINDS:
        rows = [i for i, word in enumerate(words) if word in WORDS[kind]]
        columns = [classes.index(word) for word in WORDS[kind]]
        guessed = scores[rows][:, columns].argmax(1).tolist()
        found[kind] = mean(WORDS[kind][g] == words[i] for g, i in zip(guessed, rows, strict=True))
    return found


def judged(config: FinetuneConfig, out: Path, splits: tuple[str, ...]) -> dict[str, float]:
    """A finished run on other splits."""
    task, split, _ = open_splits(FinetuneConfig(**{**vars(config), "train_splits": splits, "validation_splits": ()}))
    model = build_classifier(config.preset, len(task.classes), config.encoder)
    load_weights(model, weights_of(out), what=f"the model in {out}")
    clips = split.open(model.spec)
    scores, read = score(model, clips, views_of(config.views), len(task.classes))
    assert read.all(), "every sentence can be read"
    found = by_kind(scores, [s.label for s in clips.samples], task.classes)
    counted = copy.deepcopy(model).to("meta")
    return {**found, "macs": clip_macs(counted, model.spec), "parameters": sum(p.numel() for p in model.parameters())}


def make(preset: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train and judge, unless that is done."""
    out: Path = args.runs / f"{preset}-{seed}"
    config = config_of(preset, seed, args.data, dict(pair.split("=", 1) for pair in args.set))
    if not (out / "found.json").exists():
        if args.no_train:
            return {}
        finetune(config, out, resume=(out / "checkpoint.json").exists(), say=print, device="cpu",
                 init=None if args.init is None else args.init / f"{preset}-{seed}")  # fmt: skip
        found = {f"val_{k}": v for k, v in judged(config, out, ("val",)).items() if k in KINDS}
        write_json(out / "found.json", {**found, **judged(config, out, ("test",))})
    return dict(json.loads((out / "found.json").read_text()))


def linear(args: argparse.Namespace) -> dict[str, float]:
    """What a linear classifier reads from ten pictures of 16 pixels: 100 whitened components, ridge chosen on val."""
    config = config_of("vivit_tiny", 0, args.data, {})
    sets = [small(config, split) for split in ("train", "val", "test")]
    (x, words), middle = sets[0], sets[0][0].mean(0)
    axes = np.linalg.svd(x - middle, full_matrices=False)
    basis = axes[2][:COMPONENTS].T / axes[1][:COMPONENTS] * len(x) ** 0.5
    classes = tuple(word for kind in KINDS for word in WORDS[kind])
    target = np.eye(len(classes))[[classes.index(w) for w in words]]
    known = np.c_[(x - middle) @ basis, np.ones(len(x))]
    best: tuple[float, dict[str, float]] = (-1.0, {})
    for ridge in (1.0, 10.0, 100.0, 1000.0):
        weights = np.linalg.solve(known.T @ known + ridge * np.eye(known.shape[1]), known.T @ target)
        val, test = (
            by_kind(torch.from_numpy(np.c_[(a - middle) @ basis, np.ones(len(a))] @ weights), said, classes)
            for a, said in sets[1:]
        )
        best = max(best, (sum(val.values()), test), key=lambda pair: pair[0])
    return best[1]


def small(config: FinetuneConfig, split: str) -> tuple[np.ndarray, list[str]]:
    """Mouths of a split as rows of pixels, 10 pictures of 16x16, and their words."""
    import cv2

    _, found, _ = open_splits(FinetuneConfig(**{**vars(config), "train_splits": (split,), "validation_splits": ()}))
    clips: LabelledClips = found.open(build_classifier(config.preset, 2, config.encoder).spec)
    rows = []
    for i in range(len(clips)):
        pictures = clips.views(i, views_of("1x1"))[0]
        shrunk = [cv2.resize(p, (16, 16), interpolation=cv2.INTER_AREA) for p in pictures]
        rows.append(np.stack(shrunk)[..., :1].ravel() if pictures.ndim == 4 else np.stack(shrunk).ravel())
    return np.stack(rows).astype(np.float64) / 255, [s.label for s in clips.samples]


def page(rows: dict[str, list[dict[str, float]]], line: dict[str, float], seeds: int) -> list[str]:
    """The page of results."""
    def cell(found: list[dict[str, float]], kind: str) -> str:
        values = [f[kind] for f in found]
        return f"{mean(values):.3f}" + (f" ± {pstdev(values):.3f}" if len(values) > 1 else "")

    lines = [
        "# Words read from the lips: GRID's speaker s1, unseen sentences, the picture alone",
        "",
        f"Test sentences: 122; chance 0.10 and 0.25. Mean ± standard deviation over {seeds} seed(s). One run learns",
        "all fourteen words, as `legato train PRESET --data grid_lips` does; a guess is among the words of its kind.",
        "",
        "| preset | digits | commands | MMAC a clip | parameters, M |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for preset, found in rows.items():
        lines.append(
            f"| {preset} | {cell(found, 'digit')} | {cell(found, 'command')} | {found[0]['macs'] / 1e6:.1f} "
            f"| {found[0]['parameters'] / 1e6:.2f} |"
        )
    if line:
        said = " | ".join(f"{line[kind]:.3f}" for kind in KINDS)
        lines.append(f"| linear classifier of 10 pictures of 16x16 | {said} | | |")
    lines.append(f"| lip features made by hand (a trial's figures) | {BY_HAND['digit']} | {BY_HAND['command']} | | |")
    lines += few_tokens(rows)
    below = [p for p, found in rows.items() if any(mean(f[k] for f in found) < ASKED[k] for k in KINDS)]
    above = [p for p, found in rows.items() if all(mean(f[k] for f in found) > BY_HAND[k] for k in KINDS)]
    lines += ["", f"Asked for: digits {ASKED['digit']}, commands {ASKED['command']} with every preset: "
              f"**{'met' if not below else 'missed by ' + ', '.join(below)}**. Above the features made by hand: "
              f"{', '.join(above) or 'none'}."]  # fmt: skip
    return lines


def few_tokens(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """TokenLearner's 8 tokens against all 64 of the same trunk, seed by seed."""
    few, full = rows.get("token_learner_tiny", []), rows.get("token_learner_tiny_full", [])
    if not (few and full):
        return []
    above = {kind: mean(a[kind] - b[kind] for a, b in zip(few, full, strict=False)) for kind in KINDS}
    share = few[0]["macs"] / full[0]["macs"]
    near = all(value >= -0.01 for value in above.values())
    said = ", ".join(f"{kind}s {value * 100:+.1f} points" for kind, value in above.items())
    return ["", f"TokenLearner with 8 tokens against all 64, at {share:.1%} of the MACs: {said}. Asked for: within 1 "
            f"point at less than 60 %: **{'met' if near and share < 0.6 else 'missed'}**."]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="grid_lips")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="presets to make now, comma-separated; no page is written")
    parser.add_argument("--set", action="append", default=[], help="key=value of every run")
    parser.add_argument("--init", type=Path, default=None, help="folder of runs to start from, preset by preset")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--name", default="words", help="of the results")
    parser.add_argument("--about", default="", help="what else there is to say of these runs, for the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in range(args.seeds):
        for preset in args.only.split(",") if args.only else PRESETS:
            if found := make(preset, seed, args):
                rows[preset].append(found)
                print(preset, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
    if not args.only:
        line = linear(args)
        lines = page(rows, line, args.seeds) + (["", args.about] if args.about else [])
        write_results(args.out, args.name, {"rows": rows, "linear": line}, lines)


if __name__ == "__main__":
    main()
