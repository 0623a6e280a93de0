"""Features of real recordings by several frozen encoders: ``python -m bench.robust_features --out DIR``.

What experiments on lost clips run on: for each encoder and dataset a file, ``DIR/ENCODER-DATASET.safetensors``.

- ``talk``: the encoders of the default bundle, which learned who speaks.
- ``external``: networks nobody here trained: openwakeword's speech embedding beside mel statistics, fer's face net.
- ``hand``: mel statistics, and principal components of faces (`bench.face_components`).
- ``avid``, ``crisscross``: trained here without labels on GRID's training sentences of its training speakers, the
  mouth's neighbourhood cut out; nothing of Java-SED.

Datasets are Java-SED's emotions, ten clips of every recording (``java_sed``, where short recordings' clips overlap,
and ``java_sed_apart``, where they have fewer), with other cuts of the same recordings as ``NAME@1`` to learn from; and
a word of GRID's sentences, seven clips of each: ``grid_within`` (speaker s1, unseen sentences) and ``grid_unseen``
(unseen speakers). Every stage is skipped where its result is there; what was decoded is kept for other encoders.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.record import circumstances, write_results
from bench.robust_encoders import ENCODERS, Made, epochs_of, legato
from bench.robust_probe import probe
from encoders.checkpoint import write_json
from encoders.datasets.grid_words import WORDS
from encoders.datasets.java_sed import FOLDS
from encoders.datasets.sample import DATASETS, read_table, shipped
from encoders.errors import LegatoError, UsageError
from imputation.features import FeatureSet
from runtime.output import check_folder

SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Cut:
    """A dataset's recordings as windows."""

    corpus: str
    clips: int
    later: tuple[float, ...] = (0.0,)  # seconds; the first is what is tested on
    apart: bool = False
    speaker: str = ""  # of one speaker only; splits are then within the speaker
    folds: str = ""  # speakers to be left out by turns, of whom no encoder here knows anything; none: its own splits
    about: str = ""


ACTORS = ",".join("+".join(fold) for fold in FOLDS)
CUTS = {
    "java_sed": Cut("java_sed", 10, (0.0, 0.1, 0.2, 0.3), folds=ACTORS, about="overlapping in short recordings"),
    "java_sed_apart": Cut("java_sed", 10, (0.0, 0.1, 0.2, 0.3), True, folds=ACTORS, about="none overlaps"),
    "grid_within": Cut("grid", 7, speaker="s1", about="s1, split by sentence"),
    "grid_unseen": Cut("grid", 7, folds="s4,s31,s32+s33", about="nine speakers, split by speaker"),
}


# --- feature files ------------------------------------------------------------------------------------------------


def part(made: Made, cut: Cut, later: float, args: argparse.Namespace) -> FeatureSet:
    """One cut of all recordings by one encoder, as ``legato features`` makes it."""
    place = "-".join([made.name, cut.corpus, *["apart"] * cut.apart, *[f"{later:g}"] * (later > 0)])
    path = args.out / "parts" / f"{place}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        legato("features", "--dataset", f"{cut.corpus}:{folder_of(cut.corpus, args)}", "--clips", str(cut.clips),
               "--bundle", made.bundle, "--out", str(path), "--keep", str(args.keep),
               *(["--later", f"{later:g}"] if later else []), *["--apart"] * cut.apart)  # fmt: skip
        write_json(path.with_suffix(".json"), {"cpu_seconds": time.process_time() - began})
    return FeatureSet.load(path)


def cost(encoder: str, cut: Cut, args: argparse.Namespace) -> float:
    """CPU seconds that the parts of a file took; what was kept from another encoder is not counted again."""
    prefix = "-".join([encoder, cut.corpus, *["apart"] * cut.apart])
    places = [f"{prefix}-{later:g}" if later else prefix for later in cut.later]
    known = [args.out / "parts" / f"{place}.json" for place in places]
    return sum(json.loads(path.read_text())["cpu_seconds"] for path in known if path.exists())


def windows(made: Made, name: str, args: argparse.Namespace) -> FeatureSet:
    """All windows of a feature file: names, speakers, splits and labels as experiments want them."""
    cut = CUTS[name]
    parts = [part(made, cut, later, args) for later in cut.later]
    whole = parts[0]
    splits = [SPLITS[split] for split in whole.split]
    label, labels = whole.label, whole.labels
    if cut.corpus == "grid":
        rows = {f"{Path(r['file']).parent.name}/{Path(r['file']).stem}": r for r in table(cut.corpus, args)}
        labels = WORDS[args.word]
        label = torch.tensor([labels.index(rows[n][args.word]) for n in whole.names])
        if cut.speaker:
            splits = [SPLITS[rows[n]["split_within_speaker"]] for n in whole.names]
    data = replace(whole, split=tuple(splits), label=label, labels=labels, standardiser=None)
    if cut.speaker:
        data = data.rows(torch.tensor([i for i, s in enumerate(data.speaker) if s == cut.speaker]))
    data = joined([data, *(others(p, data, i) for i, p in enumerate(parts[1:], 1))])
    about = {"encoder": made.name, "bundle": whole.notes["bundle"], "weights": dict(made.weights), "cut": cut.about,
             "widths": widths(data), "clip_seconds": whole.notes["clip_seconds"], "dataset": cut.corpus,
             "clips": cut.clips, "folds": cut.folds, "later": list(cut.later), "apart": cut.apart,
             "overlapping": whole.notes["overlapping"], "faceless": whole.notes["faceless"],
             "learned_from": made.learned_from, **({"word": args.word} if cut.corpus == "grid" else {}),
             "command": f"{circumstances()['command'].split(' --')[0]} --only {made.name}:{name}",
             "commit": circumstances()["commit"]}  # fmt: skip
    return replace(data, notes=about)


def others(more: FeatureSet, data: FeatureSet, number: int) -> FeatureSet:
    """Another cut of the same recordings: to learn from, and of those that are tested on for other splits only."""
    splits = tuple("train" if split == "train" else "extra" for split in data.split)
    names = tuple(f"{name}@{number}" for name in more.names)
    return replace(more, names=names, split=splits, label=data.label, labels=data.labels, standardiser=None)


def joined(parts: Sequence[FeatureSet]) -> FeatureSet:
    """Windows one after the other, the shorter ones ending in places that do not exist."""
    length = max(p.length for p in parts)
    tensors: dict[str, Any] = {
        n: torch.cat([longer(getattr(p, n), length) for p in parts]) for n in ("features", "presence", "exists")
    }
    lists: dict[str, Any] = {n: tuple(x for p in parts for x in getattr(p, n)) for n in ("names", "speaker", "split")}
    return replace(parts[0], **tensors, **lists, label=torch.cat([p.label for p in parts]))


def longer(x: Tensor, length: int) -> Tensor:
    """(n, L, ...) with ``length`` places, the new ones empty."""
    return torch.cat([x, x.new_zeros(len(x), length - x.shape[1], *x.shape[2:])], 1)


def widths(data: FeatureSet) -> dict[str, int]:
    """Numbers of a feature that are ever different from zero: the narrower modality ends in zeros."""
    used = [data.features[:, :, m].flatten(0, 1).any(0).nonzero() for m in range(2)]
    return {name: int(u.max()) + 1 if len(u) else 0 for name, u in zip(("video", "audio"), used, strict=True)}


def table(corpus: str, args: argparse.Namespace) -> list[dict[str, str]]:
    return read_table(folder_of(corpus, args) / "labels.csv", ("file", "speaker", "split"))


def folder_of(corpus: str, args: argparse.Namespace) -> Path:
    return shipped(corpus, DATASETS[corpus][1]) if args.data is None else args.data / DATASETS[corpus][1]


def make(encoder: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A feature file and what a linear classifier reads from it, unless they are there."""
    path = args.out / f"{encoder}-{name}.safetensors"
    if not path.exists():
        windows(ENCODERS[encoder](args), name, args).save(path)
    found, cut = path.with_suffix(".json"), CUTS[name]
    data = FeatureSet.load(path)
    if not found.exists() or found.stat().st_mtime_ns < path.stat().st_mtime_ns:
        whole = sum("@" not in n for n in data.names)
        about = {"windows": whole, "cuts": len(data) - whole, "clips": data.length,
                 "there": float(data.exists.double().mean())}  # fmt: skip
        said = probe(data, cut.folds, in_place=cut.corpus == "grid")
        write_json(found, {**about, **dict(data.notes), "cpu_seconds": cost(encoder, cut, args), "probe": said})
    return dict(json.loads(found.read_text()))


# --- the page -----------------------------------------------------------------------------------------------------


def page(rows: Mapping[str, Mapping[str, Any]], word: str) -> list[str]:
    """The table of feature files."""
    lines = [
        "# Features of real recordings by frozen encoders",
        "",
        "A linear classifier of whole windows, nothing lost: accuracy from the picture, from the sound, from both.",
        "Java-SED: two of eight actors left out by turns, ± the standard deviation from fold to fold (chance 0.17).",
        f"GRID: the {word} of a sentence; s1's test sentences, and the four speakers that no encoder knows, by turns.",
        "",
        "| file | windows (+ cuts) | clips | width video, audio | picture | sound | both | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [cell(row["probe"][m]) for m in ("video", "audio", "both")]
        size = f"{row['widths']['video']}, {row['widths']['audio']}"
        lines.append(f"| {name} | {row['windows']} + {row['cuts']} | {row['clips']} | {size} | {' | '.join(cells)} "
                     f"| {row['cpu_seconds']:.0f} |")  # fmt: skip
    return [*lines, "", *(f"- {name}: {cut.about}." for name, cut in CUTS.items())]


def cell(found: Mapping[str, float]) -> str:
    return f"{found['top1']:.3f}" + (f" ± {found['std']:.3f}" if found.get("std") else "")


def wanted(text: str) -> list[tuple[str, str]]:
    """``ENCODER``, ``ENCODER:DATASET``, with commas between; raises UsageError on an unknown name."""
    pairs = []
    for item in text.split(",") if text else list(ENCODERS):
        encoder, _, dataset = item.partition(":")
        if encoder not in ENCODERS or (dataset and dataset not in CUTS):
            known = f"encoders are {', '.join(ENCODERS)}, datasets {', '.join(CUTS)}"
            raise UsageError(f"--only {item!r} is not ENCODER:DATASET; {known}")
        pairs += [(encoder, name) for name in ([dataset] if dataset else CUTS)]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the feature files")
    parser.add_argument("--keep", type=Path, help="folder of decoded clips; default: below --out")
    parser.add_argument("--data", type=Path, help="folder of the datasets; default: LEGATO_DATA")
    parser.add_argument("--only", default="", help="ENCODER or ENCODER:DATASET, comma-separated; no page is written")
    parser.add_argument("--word", default="digit", choices=sorted(WORDS), help="of GRID's sentences, to be told")
    parser.add_argument("--epochs", default="", help="avid=N,cma=N,crisscross=N instead of the usual")
    parser.add_argument("--name", default="robust_features", help="of the results")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    args.keep = args.keep or args.out / "keep"
    torch.set_num_threads(1)
    os.environ["LEGATO_TRUST"] = ",".join(filter(None, [os.environ.get("LEGATO_TRUST"), "bench.face_components"]))
    try:
        rows = {}
        args.epochs = epochs_of(args.epochs)
        for folder in (args.out, args.keep):
            check_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
        for encoder, name in wanted(args.only):
            rows[f"{encoder}-{name}"] = found = make(encoder, name, args)
            print(f"{encoder}-{name}", {m: round(f["top1"], 3) for m, f in found["probe"].items()}, flush=True)
    except (LegatoError, OSError) as error:
        raise SystemExit(str(error)) from None
    if not args.only:
        write_results(args.results, args.name, {"rows": rows}, page(rows, args.word))


if __name__ == "__main__":
    main()
