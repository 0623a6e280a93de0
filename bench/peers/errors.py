"""Errors of filling by k, peers beside ours: ``python -m bench.peers.errors --features FILE --filled FILES ...``.

Mean squared error of hidden features in units of the training deviation, the same masks for
all: those of ``imputation.evaluate``. Peers answer from the files that ``bench.peers.pypots.fill`` wrote; ours are
rules, and trained imputers by their folders.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.peers.prefilled import Prefilled
from bench.record import write_results
from encoders.errors import LegatoError, UsageError
from encoders.settings import assignments
from imputation.evaluate import fill_error, trials
from imputation.features import FeatureSet
from imputation.stored import RULES, load_imputer

RESULTS = Path(__file__).parents[1] / "results"
MODALITIES = ("video", "audio")


def errors(
    imputers: Mapping[str, nn.Module], data: FeatureSet, *, draws: int, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Of each imputer, by condition: [video, audio] mean squared error over all hidden places and draws."""
    features = data.standardised()
    totals: dict[tuple[str, str], list[torch.Tensor]] = {}
    for trial in trials(data, data.exists, levels=range(1, data.length), draws=draws, seed=seed):
        for name, imputer in imputers.items():
            error, filled = fill_error(imputer, features, trial.presence | trial.hidden, data.exists, trial.hidden)
            total = torch.where(filled, error, 0).double().sum(dim=(0, 1))
            before = totals.setdefault((name, trial.condition), [torch.zeros(2).double(), torch.zeros(2)])
            totals[name, trial.condition] = [before[0] + total, before[1] + filled.sum(dim=(0, 1))]
    out: dict[str, dict[str, list[float]]] = {name: {} for name in imputers}
    for (name, condition), (total, count) in totals.items():
        out[name][condition] = (total / count.clamp(min=1)).tolist()
    return out


def page(found: Mapping[str, Mapping[str, Sequence[float]]], about: Mapping[str, Any]) -> list[str]:
    """One table: fills down, k across, the mean over modalities; and the mean over k of each modality."""
    conditions = list(next(iter(found.values())))
    lines = [
        "# Filling features: peers beside ours",
        "",
        f"{about['windows']} windows of {about['length']} clips, {about['width']} features of each modality, "
        f"{about['draws']} draws of the masks. Mean squared error of hidden features, 1 = variance of a feature in "
        "training; by clips hidden in each modality, both modalities together; then over all k, each alone.",
        "",
        "| | " + " | ".join([*conditions, *MODALITIES]) + " |",
        "|---" + "|---:" * (len(conditions) + 2) + "|",
    ]
    for name, by in found.items():
        cells = [sum(by[c]) / 2 for c in conditions] + [sum(by[c][m] for c in conditions) / len(by) for m in (0, 1)]
        lines.append(f"| {name} | " + " | ".join(f"{x:.3f}" for x in cells) + " |")
    lines += ["", "What was trained:", ""] if about["peers"] or about["ours"] else []
    for name, made in about["ours"].items():
        lines.append(f"- {name}: {made['preset']} {made['overrides']}, {made.get('steps', 'unknown')} steps.")
    for name, peer in about["peers"].items():
        lost = ", ".join(f"{100 * x:.0f} % of {m}" for x, m in zip(peer["variance_lost"], MODALITIES, strict=True))
        training = peer["training"]
        kept = f"{training['components']} components of each modality, which leave out {lost}"
        lines.append(
            f"- {name}: {training['peer']}, {peer['parameters'] / 1e6:.2f} M parameters, {training['steps']} steps of "
            f"{training['batch']}, " + (kept if training["components"] else "all features") + _sizes(training) + "."
        )
    return lines


def _sizes(training: Mapping[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in training["sizes"].items())


def run(args: argparse.Namespace) -> None:
    data = FeatureSet.load(args.features)
    data = data if data.standardiser is not None else data.fitted()
    test = data.of_split(args.split)
    filled = {name: Prefilled(path) for name, path in assignments(args.filled).items()}
    trained = {name: load_imputer(path) for name, path in assignments(args.imputer).items()}
    if twice := filled.keys() & trained.keys() | (filled.keys() | trained.keys()) & set(RULES):
        raise UsageError(f"{min(twice)} names two fills; give each its own name")
    imputers = {**{name: load_imputer(name) for name in RULES}, **trained, **filled}
    found = errors(imputers, test, draws=args.draws, seed=args.draw_seed)
    folders = {name: Path(path) for name, path in assignments(args.imputer).items() if path not in RULES}
    ours = {name: json.loads((folder / "imputer.json").read_text()) for name, folder in folders.items()}
    about = {"windows": len(test), "length": test.length, "width": test.width, "draws": args.draws, "ours": ours,
             "peers": {name: fill.about["about"]["peer"] for name, fill in filled.items()}}  # fmt: skip
    write_results(args.results, args.name, {**about, "errors": found}, page(found, about))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--filled", nargs="*", default=[], metavar="NAME=FILE", help="of bench.peers.pypots.fill")
    parser.add_argument("--imputer", nargs="*", default=[], metavar="NAME=FOLDER", help="of `legato train curri-mae`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--draw-seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--name", default="peers_fill")
    try:
        run(parser.parse_args(arguments))
    except LegatoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
