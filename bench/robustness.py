"""Missing modalities on real recordings: ``python -m bench.robustness --features DIR --runs DIR``.

Every arm of `imputation.study` on the features that ``bench.robust_features`` makes: emotions of unseen actors
(Java-SED, two of eight left out at a time) and spoken digits (GRID; one speaker's sentences, and speakers never heard),
by encoders that were trained here and by others. All arms are asked under the same masks; everything that learns from
masks has as many steps. What is there is not made again; ``--only`` makes some cases, so that several processes can
share the work, and the page is written from what is there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.record import write_results
from bench.robustness_page import page
from encoders.datasets.java_sed import FOLDS
from encoders.errors import LegatoError
from imputation.features import FeatureSet
from imputation.study import compare, figures
from imputation.study.cases import OWN, Case, open_case
from imputation.study.recipes import Budget
from imputation.study.run import Plan, estimate, run
from runtime.talk.recipe import Recipe

# Small encoders and a hundred recordings: past these, imputers and heads learn their recordings by heart.
BUDGET = Budget(head_steps=300, tune_steps=300, fill_steps=600, batch=32, hidden=128, fill_width=64)
SPLITS = ("train", "validation", "test")
_ACTORS = ",".join("+".join(pair) for pair in FOLDS)
FOLDED = {"java_sed": _ACTORS, "java_sed_apart": _ACTORS}
PROFILES = ("wifi-burst", "congestion")


def cases_of(folder: Path, only: Sequence[str]) -> list[Case]:
    """Every ``ENCODER-DATASET.safetensors`` of the folder, or those that are named ENCODER:DATASET."""
    cases = []
    for file in sorted(folder.glob("*-*.safetensors")):
        encoder, _, dataset = file.stem.partition("-")
        if not only or f"{encoder}:{dataset}" in only:
            cases.append(open_case(f"{encoder}:{dataset}={file}", FOLDED.get(dataset, OWN)))
    return cases


def talk_case(run: Path, features: Path) -> None:
    """The windows of a run of ``legato train talk`` as a file of their own, without the clips that are looked ahead."""
    sets = [FeatureSet.load(run / f"{split}.features.safetensors") for split in SPLITS]
    window = Recipe().window
    names = [f"{split}/{name}" for split, part in zip(SPLITS, sets, strict=True) for name in part.names]
    FeatureSet.of(
        torch.cat([part.features[:, :window] for part in sets]), torch.cat([part.label for part in sets]),
        sets[0].labels, presence=torch.cat([part.presence[:, :window] for part in sets]),
        exists=torch.cat([part.exists[:, :window] for part in sets]), names=names,
        speaker=[s for part in sets for s in part.speaker],
        split=[split for split, part in zip(SPLITS, sets, strict=True) for _ in part.names], notes=sets[0].notes,
    ).save(features / "talk-talk.safetensors")  # fmt: skip


def plan_of(args: argparse.Namespace) -> Plan:
    return Plan(arms=args.arms, seeds=args.seeds, draws=args.draws, profiles=PROFILES, budget=BUDGET)


def curves(cases: Sequence[Case], plan: Plan, runs: Path) -> dict[str, Any]:
    """The last losses and validation errors of every imputer, from the logs of its run: whether it had enough."""
    found: dict[str, Any] = {}
    for case in cases:
        for log in sorted((runs / case.name.replace(":", "-")).glob("*/fills/*/log.jsonl")):
            records = [json.loads(line) for line in log.read_text().splitlines()]
            losses = [r["loss"] for r in records if "loss" in r]
            if len(losses) >= 8:
                quarter = len(losses) // 4
                found.setdefault(f"{case.name} {log.parent.name}", []).append(
                    [sum(losses[i * quarter : (i + 1) * quarter]) / quarter for i in range(4)]
                )
    return {name: [sum(x) / len(x) for x in zip(*rows, strict=True)] for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder of bench.robust_features")
    parser.add_argument("--runs", type=Path, required=True, help="folder of what is trained")
    parser.add_argument("--talk", type=Path, help="run of `legato train talk`, whose windows join as talk:talk")
    parser.add_argument("--arms", default="all", help="paper, beyond, all, or names with ; between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", default="", help="ENCODER:DATASET to run now, comma-separated; no page")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--estimate", action="store_true", help="only say what it would take")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    only = [name for name in args.only.split(",") if name]
    if args.talk is not None and not (args.features / "talk-talk.safetensors").exists():
        talk_case(args.talk, args.features)
    cases, plan = cases_of(args.features, only), plan_of(args)
    if not args.no_train:
        print(estimate(cases, plan, args.runs), flush=True)
    if args.estimate:
        return
    if not args.no_train:
        try:
            run(cases, plan, args.runs, say=lambda text: print(text, flush=True))
        except LegatoError as error:
            print(f"not all of it: {error}")
    if only:
        return
    answers = compare.gather(cases, plan, args.runs)
    figures.write(answers, args.out / "robustness")
    values = {"budget": vars(BUDGET), "curves": curves(cases, plan, args.runs), "cases": [a.case for a in answers]}
    write_results(args.out, "robustness", values, page(answers, plan))


if __name__ == "__main__":
    main()
