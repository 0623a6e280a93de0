"""What masked pre-training is worth, by encoder, decoder and objective: ``python -m bench.av_mae_grid --runs DIR``.

On GRID's speaker s1, sound and mouth of single words: pre-training sees the words of the training sentences without
their labels, fine-tuning some of them with (``--labels``, a quarter). The arms are ``none`` (no pre-training), the
baselines of one modality, every allowed pair of encoder and decoder with joint reconstruction, and the inpainting
objectives with an early encoder and a shared decoder, as in the paper; ``--full`` makes every pair with every
objective. All are fine-tuned alike, by the recipe of ``legato train mbt_av_mae_tiny --data grid_lips``, and measured on
the test sentences with both modalities and with either alone (one model; the paper trains three).

Runs that are there are not made again; ``--only`` makes some of them, so that several processes can share the work.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from bench.record import write_results
from encoders.checkpoint import write_json
from encoders.errors import ConfigError
from encoders.finetune import finetune
from encoders.judge import test_run
from encoders.pretrain_mae import AVMAERun, open_instances, pretrain
from encoders.pretrain_mae import recipe as masked_recipe
from encoders.recipes import FinetuneConfig, recipe
from runtime.bundle import SHIPPED

FACE = str(SHIPPED / "talk" / "face.safetensors")
FUSIONS = ("early", "separate", "mid", "shared")
DECODERS = ("shared", "separate", "early", "mid")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "joint": {},
    "inpaint-video": {"objective.inpaint": True, "objective.targets": ("video",)},
    "inpaint-audio": {"objective.inpaint": True, "objective.targets": ("audio",)},
    "inpaint-both": {"objective.inpaint": True},
}
ALONE = {"video-mae": "model.audio", "audio-mae": "model.video"}  # the baselines, and what they lack
MEASURES = {"audio_top1": "A", "video_top1": "V", "top1": "AV"}
CHANCE = 1 / 14
# VGGSound top-1 in %, by the paper's authors: A, V, AV, each fine-tuned by itself.
PAPER = {
    "early+shared joint": (55.5, 46.5, 62.2), "early+separate joint": (55.7, 43.6, 61.1),
    "separate+shared joint": (55.4, 48.9, 63.0), "shared+separate joint": (55.4, 45.9, 61.3),
    "mid+shared joint": (55.8, 48.5, 63.5), "mid+early joint": (55.5, 48.5, 63.3),
    "early+shared inpaint-video": (51.5, 39.9, 58.4), "early+shared inpaint-audio": (52.5, 38.1, 58.2),
    "early+shared inpaint-both": (54.1, 38.6, 58.4), "audio-mae": (55.7, 42.1, 58.3), "video-mae": (52.8, 49.3, 62.1),
}  # fmt: skip


def allowed(encoder: str, decoder: str) -> bool:
    """Whether the pair may be pre-trained at all; the model itself says so."""
    changes = {"model.encoder": encoder, "decoder.kind": decoder}
    try:
        masked_recipe("av_mae_tiny", "synthetic:1", name="av_mae_small", **changes)
    except ConfigError:
        return False
    return True


def arms(full: bool) -> list[str]:
    """Names of all arms, such as ``mid+shared joint``."""
    pairs = [f"{e}+{d}" for e in FUSIONS for d in DECODERS if allowed(e, d)]
    some = OBJECTIVES if full else {"joint": {}}
    grid = [f"{pair} {objective}" for objective in some for pair in pairs]
    grid += [] if full else [f"early+shared {objective}" for objective in OBJECTIVES if objective != "joint"]
    return ["none", *ALONE, *grid]


def masked_config(arm: str, seed: int, args: argparse.Namespace) -> AVMAERun:
    """The pre-training of an arm."""
    if arm in ALONE:
        changes: dict[str, Any] = {ALONE[arm]: None}
    else:
        pair, objective = arm.split(" ")
        encoder, decoder = pair.split("+")
        changes = {"model.encoder": encoder, "decoder.kind": decoder, **OBJECTIVES[objective]}
    config = masked_recipe("av_mae_tiny", args.data, **{"seed": seed, "splits": ("train",), **changes, **args.pre})
    return replace(config, reading=replace(config.reading, face=FACE))


def tuned_config(seed: int, args: argparse.Namespace) -> FinetuneConfig:
    """The fine-tuning of every arm."""
    changes = {"seed": seed, "face": FACE, "train_splits": (args.labels,), "validation_splits": (), **args.set}
    return recipe("mbt_av_mae_tiny", args.data, **changes)


READ: dict[tuple[str, ...], Any] = {}


def readings(config: AVMAERun) -> Any:
    """Decoded once for all arms of the same modalities."""
    names = tuple(config.inputs)
    if names not in READ:
        READ[names] = open_instances(config, print)
    return READ[names]


def make(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Pre-train, fine-tune and judge, unless that is done."""
    out: Path = args.runs / f"{arm.replace(' ', '-')}-{seed}"
    if (out / "found.json").exists() or args.no_train:
        return dict(json.loads((out / "found.json").read_text())) if (out / "found.json").exists() else {}
    init, drawn, started = None, {}, time.process_time()
    if arm != "none":
        config, init = masked_config(arm, seed, args), out / "masked"
        if not (init / "encoder.safetensors").exists():
            pretrain(config, init, resume=(init / "checkpoint.json").exists(), instances=readings(config), say=print)
        last = [json.loads(line) for line in (init / "log.jsonl").read_text().splitlines()][-1]
        drawn = {f"drawn_{m}": last[m] for m in ("video", "audio") if m in last}
    masked_seconds, started = time.process_time() - started, time.process_time()
    tuned = out / "tuned"
    if not (tuned / "metrics.json").exists():
        finetune(tuned_config(seed, args), tuned, init=init, resume=(tuned / "checkpoint.json").exists(), say=print)
    found = {**test_run(tuned, splits=("test",)), **drawn}
    seconds = {"masked_cpu_seconds": masked_seconds, "tuned_cpu_seconds": time.process_time() - started}
    write_json(out / "found.json", {**found, **seconds})
    return {**found, **seconds}


def cell(found: list[dict[str, float]], measure: str) -> str:
    """Mean and deviation over seeds."""
    values = [f[measure] for f in found if measure in f]
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {pstdev(values):.3f}" if len(values) > 1 else "")


def page(rows: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> list[str]:
    """The page of results."""
    lines = [
        "# Masked pre-training on GRID's words: encoders, decoders, objectives",
        "",
        f"Speaker s1, the mouth and the sound of 14 words; labels: `{args.labels}`. Accuracy on the test sentences",
        f"(chance {CHANCE:.2f}), mean ± standard deviation over seeds; one fine-tuned model, asked with sound alone",
        "(A), the picture alone (V) and both (AV). *Drawn* is the loss at the end of pre-training. In brackets the",
        "paper's figures, VGGSound top-1 in %, of models fine-tuned for A, V and AV each. A mid decoder is ours.",
        "",
        "| pre-training | A | V | AV | drawn V | drawn A | seeds |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arm, found in rows.items():
        paper = PAPER.get(arm, ())
        cells = [
            cell(found, measure) + (f" ({paper[i]})" if paper else "") for i, measure in enumerate(MEASURES)
        ]  # fmt: skip
        drawn = [cell(found, f"drawn_{m}") for m in ("video", "audio")]
        lines.append(f"| {arm} | {' | '.join([*cells, *drawn])} | {len(found)} |")
    return [*lines, "", *verdict(rows)]


def verdict(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Whether pre-training helps, and how far apart the arms are beside the noise of seeds."""
    masked = {arm: found for arm, found in rows.items() if arm != "none" and arm not in ALONE}
    if "none" not in rows or not masked:
        return ["Not every arm has been run."]
    none = mean(f["top1"] for f in rows["none"])
    by_arm = {arm: mean(f["top1"] for f in found) for arm, found in masked.items()}
    better = sum(value > none for value in by_arm.values())
    best = max(by_arm, key=by_arm.__getitem__)
    noise = [pstdev(f["top1"] for f in found) for found in rows.values() if len(found) > 1]
    spread = f"; between seeds it moves by {mean(noise):.3f}" if noise else ""
    return [
        "Asked for: audio-visual pre-training helps over none. "
        f"**{better} of {len(by_arm)} arms are above {none:.3f}**; "
        f"their mean is {mean(by_arm.values()):.3f}, the best {best} with {by_arm[best]:.3f}{spread}."
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="grid_lips")
    parser.add_argument("--labels", default="train[:25%]", help="split that is fine-tuned on")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="every pair with every objective")
    parser.add_argument("--only", default="", help="arms to make now, comma-separated; no page is written")
    parser.add_argument("--set", action="append", default=[], help="key=value of every fine-tuning")
    parser.add_argument("--pre", action="append", default=[], help="key=value of every pre-training")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--name", default="av_mae_grid", help="of the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    args.set, args.pre = (dict(pair.split("=", 1) for pair in pairs) for pairs in (args.set, args.pre))
    if unknown := set(filter(None, args.only.split(","))) - set(arms(full=True)):
        parser.error(f"--only {sorted(unknown)[0]!r} is no arm; known: {', '.join(arms(full=True))}")
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(args.seeds):
        for arm in args.only.split(",") if args.only else arms(args.full):
            if found := make(arm, seed, args):
                rows[arm].append(found)
                print(arm, seed, {k: round(found[k], 3) for k in MEASURES}, flush=True)
    if not args.only:
        write_results(args.out, args.name, {"rows": rows}, page(rows, args))


if __name__ == "__main__":
    main()
