"""Emotions of people never seen, from face and voice: ``python -m bench.emotions --runs DIR``.

Java-SED's six emotions, two of eight actors left out at a time (chance 1/6): MMT's two encoders each alone, and
together, by each part of its objective and each way to meet. All read 2 s of a sentence, ten pictures of what moves in
the face and a log-mel spectrogram; a test is the mean over three places. What is judged is the last step of a run whose
settings do not know the actors left out.

144 recordings are too few to learn to see and to hear from. What hears learns from all seven takes that the corpus has
of the sound (its other six have no pictures), of the same actors; what sees has first learned to tell the words that
GRID's speakers say, who are nobody of these. MMT starts from those two, in every row the same.

Runs that are there are not made again, ``--only`` makes some of them so that several processes can share the work, and
the page is written from what is there.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from bench.folds import FACE, FACE_NET, FOLDS, fold_folder, with_rows, words
from bench.record import write_results
from encoders.finetune import finetune
from encoders.recipes import FinetuneConfig, recipe
from encoders.training import write_json

CHANCE = 1 / 6
ASKED = {"one": 2.0, "both": 3.0}  # times chance


def objective(between: str, within: str) -> dict[str, Any]:
    """MMT by parts of its losses."""
    return {"model.objective.between": between, "model.objective.within": within}


TAKES = {"model.frames": 200, "epochs": 16, "batch": 32, "repeats": 1}  # 31 steps an epoch instead of 9
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "picture": ("mvitv2_tiny", FACE),
    "sound": ("mat_tiny", TAKES),
}
FRESH: dict[str, tuple[str, dict[str, Any]]] = {  # from nothing, on the recordings alone
    "picture, from nothing": ("mvitv2_tiny", FACE),
    "sound, from one take": ("mat_tiny", {"model.frames": 200}),
}
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy alone": objective("none", "none"),
    "+ AL": objective("instance", "none"),
    "+ AVC": objective("label", "none"),
    "+ IMC": objective("none", "label"),
    "+ AVC + IM-AL": objective("label", "instance"),
    "+ AVC + IMC (MMT)": {},
}
MEETINGS: dict[str, dict[str, Any]] = {
    "average of two classifiers": {"model.fusion": "average", **objective("none", "none")},
    "all tokens with all": {"model.fusion": "concatenation", **objective("none", "none")},
    "bottleneck, nothing dropped": {"model.drop_modality": 0.0, **objective("none", "none")},
}
TOGETHER = {"epochs": 3, "lr": 1e-4, "warmup": 1.0}  # both sides know the task already
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **ALONE,
    **{name: ("mmt_tiny", {**TOGETHER, **changes}) for name, changes in {**LOSSES, **MEETINGS}.items()},
    **FRESH,
}
MAIN, PLAIN = "+ AVC + IMC (MMT)", "cross-entropy alone"


def slug(name: str) -> str:
    """A row's name as a folder's, and on the command line."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def config_of(name: str, folder: Path, seed: int, changes: Mapping[str, str], preset: str = "") -> FinetuneConfig:
    """The run of a row, or of another preset by its own recipe."""
    common: dict[str, Any] = {"face": FACE_NET, "seed": seed, "validation_splits": ("test",), "eval_every": 1000,
                              "save_every": 4, "log_every": 9}  # fmt: skip
    data = f"java_sed:{folder}"
    if preset:
        return recipe(preset, data, **{**common, **changes})
    preset, own = ROWS[name]
    return recipe(preset, data, name="mmt_emotions", **{**common, **own, **changes})


def folder_of(name: str, fold: int, args: argparse.Namespace) -> Path:
    """The fold's recordings; for what hears, with all takes of the actors that are learned from."""
    folder = fold_folder(fold, args.runs, args.data)
    if name != "sound":
        return folder
    takes = fold_folder(fold, args.runs, args.takes, "java_sed_takes")
    return with_rows(args.runs / f"sound_fold{fold}", (takes, "train"), (folder, "test"))


def starts_of(name: str, fold: int, seed: int, args: argparse.Namespace) -> list[Path]:
    """What a row's run starts from."""
    if name == "picture":
        return [words(args.runs)]
    if name in ROWS and ROWS[name][0] == "mmt_tiny":
        for one in ALONE:
            make(one, fold, seed, args)
        return [args.runs / f"{one}-{fold}-{seed}" for one in ALONE]
    return []


def make(name: str, fold: int, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train and judge, unless that is done."""
    out: Path = args.runs / f"{slug(name)}-{fold}-{seed}"
    if not (out / "found.json").exists():
        if args.no_train:
            return {}
        changes = dict(pair.split("=", 1) for pair in args.set)
        config = config_of(name, folder_of(name, fold, args), seed, changes, "" if name in ROWS else name)
        starts, began = starts_of(name, fold, seed, args), time.process_time()
        finetune(config, out, resume=(out / "checkpoint.json").exists(), init=starts, say=print, device="cpu")
        steps = max(json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines())
        spent = time.process_time() - began
        found = json.loads((out / "metrics.json").read_text())
        kept = {k: v for k, v in found.items() if k.endswith("top1")}
        write_json(out / "found.json", {**kept, "cpu_seconds": spent, "steps": steps})
    return dict(json.loads((out / "found.json").read_text()))


# --- the page ---------------------------------------------------------------------------------------------------


def by_seed(runs: Mapping[tuple[int, int], Mapping[str, float]], key: str) -> list[float]:
    """The mean over folds for each seed: folds hold as many recordings of each emotion."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for (_, seed), found in sorted(runs.items()):
        if key in found:
            seeds[seed].append(found[key])
    return [mean(values) for values in seeds.values()]


def cell(runs: Mapping[tuple[int, int], Mapping[str, float]], key: str) -> str:
    values = by_seed(runs, key)
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {pstdev(values):.3f}" if len(values) > 1 else "")


def page(rows: Mapping[str, Mapping[tuple[int, int], Mapping[str, float]]]) -> list[str]:
    """The page of results."""
    whole = sorted({len(runs) for runs in rows.values()})
    lines = [
        "# Emotions of unseen actors, from face and voice",
        "",
        f"Java-SED, two actors left out at a time; six emotions, chance {CHANCE:.2f}. Accuracy on recordings of actors",
        "left out: the mean over folds, ± the standard deviation over seeds; over folds it is larger. "
        f"{' or '.join(map(str, whole))} runs a row.",
        "",
        "| | picture and sound | picture alone | sound alone | CPU minutes a run |",
        "|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        alone = {"picture": 1, "sound": 2}.get(name.partition(",")[0])
        cells = [cell(runs, key) for key in ("top1", "video_top1", "audio_top1")]
        if alone is not None:
            cells[0], cells[alone] = "", cells[0]
        minutes = mean(found["cpu_seconds"] for found in runs.values()) / 60
        said = f"{name}, trained alone" if name in {**ALONE, **FRESH} else name
        lines.append(f"| {said} | {' | '.join(cells)} | {minutes:.1f} |")
    lines += [
        "",
        "A model of both is also asked about each alone; what is absent is left out of attention. What hears learned",
        "from seven takes of the sound, what sees first from GRID's words; models of both start from these two, and",
        "have the same number of steps after that.",
        "",
    ]
    return [*lines, *verdict(rows)]


def verdict(rows: Mapping[str, Mapping[tuple[int, int], Mapping[str, float]]]) -> list[str]:
    """What was asked for, and whether it was met: each modality alone; MMT, and MMT without its contrasts."""
    if not all(name in rows for name in (*ALONE, MAIN, PLAIN)):
        return []
    one = {name: mean(by_seed(rows[name], "top1")) for name in ALONE}
    least, most = ASKED["one"] * CHANCE, ASKED["both"] * CHANCE
    asked = [
        (f"twice chance from the {name} alone ({least:.2f})", value >= least, f"{value:.3f}")
        for name, value in one.items()
    ]
    for name in (MAIN, PLAIN):
        both = mean(by_seed(rows[name], "top1"))
        asked.append((f"three times chance from both ({most:.2f}), {name}", both >= most, f"{both:.3f}"))
        asked.append(
            (f"both above the better one, {name}", both > max(one.values()), f"{both - max(one.values()):+.3f}")
        )
    return [f"- {what}: **{'met' if met else 'missed'}**, {value}" for what, met, value in asked]


def chosen(args: argparse.Namespace) -> Sequence[str]:
    """The rows that are wanted: all, or those named; other presets after them."""
    others = [name for name in args.presets.split(",") if name]
    return [*ROWS, *others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="", help="folder of Java-SED; default: below LEGATO_DATA")
    parser.add_argument("--takes", default="", help="folder of all takes of its sound; default: below LEGATO_DATA")
    parser.add_argument("--presets", default="", help="other presets as rows, each by its own recipe, comma-separated")
    parser.add_argument("--folds", type=int, default=len(FOLDS), choices=range(1, len(FOLDS) + 1))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="rows, or ROW-FOLD-SEED, to make now, comma-separated; no page")
    parser.add_argument("--set", action="append", default=[], help="key=value of every run")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--list", action="store_true", help="name all runs, and stop")
    parser.add_argument("--name", default="emotions", help="of the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    only = set(args.only.split(",")) if args.only else set()
    rows: dict[str, dict[tuple[int, int], dict[str, float]]] = defaultdict(dict)
    for seed in range(args.seeds):
        for name in chosen(args):
            for fold in range(args.folds):
                run = f"{slug(name)}-{fold}-{seed}"
                if args.list:
                    print(run)
                elif (not only or {slug(name), run} & only) and (found := make(name, fold, seed, args)):
                    rows[name][fold, seed] = found
                    print(run, {k: round(v, 3) for k, v in found.items()}, flush=True)
    if rows and not only:
        kept = {name: {f"{fold}-{seed}": v for (fold, seed), v in runs.items()} for name, runs in rows.items()}
        write_results(args.out, args.name, {"rows": kept}, page(rows))


if __name__ == "__main__":
    main()
