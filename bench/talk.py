"""The default bundle's figures: unseen speakers, every condition, every loss rate, against its rivals.

    python -m bench.talk --runs runs/talk --plan          what would be trained, and how long that takes
    python -m bench.talk --runs runs/talk                 train what is missing, then tabulate
    python -m bench.talk --runs runs/talk --no-train      tabulate what is there

Folds leave two speakers out; the first is the bundle that ships. Java-SED is judged zero-shot by the shipped weights,
and leave-actors-out by research runs: these take the shipped encoders, which never saw it, and train imputer and heads
on the other actors as well (``--research-encoders`` trains the encoders anew too). Nothing is fitted on a test speaker.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from bench.record import write_results

MAIN = "tuned, curri-MAE"
FOLDS = {
    "ship": ("grid/s32", "grid/s33"),
    "s4+s31": ("grid/s4", "grid/s31"),
    "s2+s26": ("grid/s2", "grid/s26"),
    "s3+s30": ("grid/s3", "grid/s30"),
    "s1+s33": ("grid/s1", "grid/s33"),  # a pair needs two: s33 again
}
SHOWN = ("score", "recall_nobody", "recall_on_screen", "recall_off_screen", "still_noise", "talk_noise", "pair",
         "still_voice", "talk_other", "talk_same", "auc_still", "auc_mismatch")  # fmt: skip

MEANT = ("score", "auc_still", "auc_mismatch")


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ± {pstdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def clean_table(folds: dict[str, dict[str, Any]]) -> list[str]:
    """Scores without loss: one column for each fold's default head, and the mean over speakers."""
    lines = ["| nothing lost | " + " | ".join(folds) + " |", "|---" * (len(folds) + 1) + "|"]
    for key in SHOWN:
        lines.append(f"| {key} | " + " | ".join(f"{fold['all'][key]:.3f}" for fold in folds.values()) + " |")
    return lines


def means(folds: dict[str, dict[str, Any]]) -> list[str]:
    """The mean over the folds of each corpus, nothing lost."""
    java = {name: fold["all"] for name, fold in folds.items() if name.startswith("java ")}
    grid = {name: fold["all"] for name, fold in folds.items() if name in FOLDS}
    named = (("GRID, two speakers left out", grid), ("Java-SED, two actors left out (research)", java))
    return [
        f"- {what}: " + ", ".join(f"{key} {spread([fold[key] for fold in some.values()])}" for key in MEANT)
        for what, some in named
        if some
    ]


def loss_table(rows: list[dict[str, Any]]) -> list[str]:
    """Score by arm and loss: mean ± standard deviation over speakers and seeds."""
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cell: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        cell[row["arm"], row["loss"]].append(row["score"])
    lines = ["| loss | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    return lines + [f"| {loss} | " + " | ".join(spread(cell[arm, loss]) for arm in arms) + " |" for loss in losses]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """At which losses the bundle is not above a rival, by the mean over speakers and seeds."""
    score: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        score[row["arm"], row["loss"]].append(row["score"])
    out = []
    for arm in dict.fromkeys(arm for arm, _ in score):
        if arm == MAIN:
            continue
        gaps = {loss: mean(score[MAIN, loss]) - mean(values) for (a, loss), values in score.items() if a == arm}
        worst = min(gaps, key=gaps.__getitem__)
        behind = [loss for loss, gap in gaps.items() if gap < 0]
        out.append(f"- {MAIN} against {arm}: mean {mean(gaps.values()):+.3f}, least {gaps[worst]:+.3f} at {worst}; "
                   f"behind at {', '.join(behind) or 'none'}")  # fmt: skip
    return out


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score against the share of clips lost, a line per arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=150)
    shown = [MAIN, "drops, zero", "plain, curri-MAE", "plain, lerp", "plain, hold", "plain, zero"]
    names = {MAIN: "Legato: curri-MAE, head tuned with it", "drops, zero": "head trained with drops (no filling)",
             "plain, curri-MAE": "unmodified head, curri-MAE fills", "plain, lerp": "unmodified head, lerp",
             "plain, hold": "unmodified head, hold", "plain, zero": "unmodified head, zeros"}  # fmt: skip
    for arm in shown:
        points: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row["arm"] == arm and (row["loss"] == "none" or row["loss"].startswith("clips-")):
                points[0 if row["loss"] == "none" else int(row["loss"][6:])].append(row["score"])
        at = sorted(points)
        middle, wide = [mean(points[x]) for x in at], [pstdev(points[x]) for x in at]
        line = axes.plot(at, middle, marker="o", markersize=3, linewidth=2 if arm == MAIN else 1.3, label=names[arm])[0]
        if arm in (MAIN, "drops, zero"):
            low, high = ([m + sign * w for m, w in zip(middle, wide, strict=True)] for sign in (-1, 1))
            axes.fill_between(at, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.axhline(1 / 3, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="clips lost, % of each modality, independently", ylabel="score (mean of class recalls)",
             ylim=(0.3, 1.0), title="Who speaks? Speakers never seen in training")  # fmt: skip
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def folds(args: argparse.Namespace, say: Callable[[str, int, int], None]) -> list[tuple[str, Any]]:
    """(name, Making) of every fold and seed; nothing is run yet."""
    from runtime.talk.making import Making
    from runtime.talk.recipe import JAVA_PAIRS, Recipe, folded

    data, out = Path(os.environ["LEGATO_DATA"]), []
    plans = {name: folded(Recipe(), test) for name, test in FOLDS.items()}
    if args.research or args.research_encoders:
        plans |= {"java " + "+".join(a[-2:] for a in pair): folded(Recipe(), pair) for pair in JAVA_PAIRS}
    for name, recipe in plans.items():
        if args.fold_steps and name != "ship":
            recipe = replace(recipe, encoders=replace(recipe.encoders, steps=args.fold_steps))
        for seed in range(args.seeds if name == "ship" else 1):
            one = replace(recipe, fill=replace(recipe.fill, seed=seed))
            frozen = args.runs / "ship" if name.startswith("java") and not args.research_encoders else None
            folder = args.runs / name.replace(" ", "_")
            out.append((name, Making(one, data, folder, say, args.runs / "cache", frozen)))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; what is there is not made again")
    parser.add_argument("--seeds", type=int, default=3, help="of imputer and heads, for the fold that ships")
    parser.add_argument("--fold-steps", type=int, default=0, help="encoder steps of the folds that do not ship")
    parser.add_argument("--only", default="", help="folds, comma-separated; default: all")
    parser.add_argument("--zero-shot", action="store_true", help="the shipped weights on Java-SED too")
    parser.add_argument("--research", action="store_true", help="the folds whose heads train on Java-SED too")
    parser.add_argument("--research-encoders", action="store_true", help="the same, and their encoders as well")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--plan", action="store_true", help="say what is missing and stop")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()

    def say(step: str, done: int, of: int) -> None:
        if done in (0, of) or done % max(1, of // 10) == 0:
            print(f"  {step} {done}/{of}", flush=True)

    clean: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, making in folds(args, say):
        if args.only and name not in args.only.split(","):
            continue
        seed = making.recipe.fill.seed
        there = (making.out / f"table-{seed}.json").exists()
        print(f"{name}, seed {seed}: {'there' if there else 'missing, about 25 minutes on two cores'}", flush=True)
        if args.plan or (args.no_train and not there):
            continue
        making.prepare()
        found, table = making.judge()
        clean.setdefault(name, found["tuned"])
        if name == "ship" and args.zero_shot and not clean.get("Java-SED, zero-shot"):
            clean["Java-SED, zero-shot"] = making.elsewhere()
        rows["java" if name.startswith("java") else "grid"] += [
            {**asdict(r), "fold": name, "seed": seed} for r in table
        ]
    if not args.plan:
        report(clean, rows, args)


def report(clean: dict[str, dict[str, Any]], rows: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ["# Who speaks: the bundle `talk` on speakers it never saw", "", *clean_table(clean), "", *means(clean), ""]
    values: dict[str, Any] = {"clean": clean, "loss": rows}
    for corpus, table in rows.items():
        lines += [f"Score under loss, {corpus} (mean ± std over speakers and seeds):", "", *loss_table(table), ""]
        lines += [*verdicts(table), ""]
    if rows["grid"]:
        plot(rows["grid"], args.out / "talk.png")
    write_results(args.out, "talk", values, lines)


if __name__ == "__main__":
    main()
