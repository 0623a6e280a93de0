"""What is absent, dropped, filled or zeroed: ``python -m bench.missing --runs DIR``.

Emotions of Java-SED, leave-actors-out, from clips of 0.4 s of which some are lost. For each fold and seed a small
model that sees and hears is fine-tuned on the other actors; then, of recordings of actors it never saw, the same clips
are lost for every arm:

- the model itself, clip by clip, its answers averaged: what is lost is *masked* (no token attends to it) or *zeros*
  (black pictures, silence);
- a fused head (MBT over the window) on its frozen features: lost clips *masked*, *filled* by curri-MAE or by lines
  between neighbours, or *zeros*; trained on whole windows, or with clips taken away.

Beside it ``talk``: heads on the encoders that ship, which never saw the corpus; those are frozen, and only heads and
imputer learn. Runs that are there are not made again, ``--only`` makes some of them, and the page is written from what
is there.
"""

import argparse
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.folds import FACE_NET, FOLDS, fold_folder, words
from bench.record import write_results
from encoders.audio.log_mel import FRONTS
from encoders.checkpoint import load_weights, write_json
from encoders.classifier import build_classifier
from encoders.datasets.augment import crop_at
from encoders.datasets.labelled_pairs import LabelledPairs
from encoders.finetune import finetune, weights_of
from encoders.labelled_data import open_splits
from encoders.recipes import FinetuneConfig, recipe
from imputation.baselines import Lerp, Zero
from imputation.evaluate import Arm, answer
from imputation.features import FeatureSet
from imputation.masks import paired_seed, uniform_k
from imputation.train import MAETraining, train_mae
from imputation.train_head import HeadTraining, train_head
from runtime.bundle import Bundle

MODELS = ("mbt_tiny", "mmt_tiny", "talk")
WINDOW = 10  # clips
SECONDS = Fraction(2, 5)
SHORT: dict[str, dict[str, Any]] = {  # whose recipes show them longer clips
    "mbt_tiny": {"model.video.clip_seconds": SECONDS, "model.audio.clip_seconds": SECONDS, "model.audio.frames": 40},
    "mmt_tiny": {"model.clip_seconds": SECONDS, "model.audio.frames": 40},
}
PHASES = 2  # grids of clips that training recordings are cut by
RATES = tuple(round(0.1 * i, 1) for i in range(10))
WHOLE = {"no sound": 1, "no picture": 0}  # column of the M axis that is lost
STATES = ((True, True), (True, False), (False, True), (False, False))  # of a clip: what is there, video and audio
ARMS = {
    "itself, masked": "the model clip by clip; no token attends to what is lost",
    "itself, zeros": "the model clip by clip; black pictures and silence",
    "head, masked": "fused head; lost clips dropped from attention",
    "head, masked, trained with drops": "the same, trained so",
    "head, curri-MAE": "fused head; lost clips filled by the imputer",
    "head, curri-MAE, tuned": "the same, trained on filled windows",
    "head, lerp": "fused head; lost clips on the line between their neighbours",
    "head, zeros": "fused head; lost clips are the mean feature",
    "head, zeros, trained with drops": "the same, trained so",
}


class Shipped:
    """The encoders of the default bundle, with what is asked of a model that hears and sees."""

    modalities, sees, clip_seconds = ("video", "audio"), (), SECONDS

    def __init__(self) -> None:
        models = Bundle.load("talk").models()
        self.encoders: dict[str, Any] = {"video": models.video_encoder, "audio": models.audio_encoder}
        self.specs = {m: encoder.spec for m, encoder in self.encoders.items()}
        self.front = FRONTS["log_mel_talk"]

    def encode(self, clips: Tensor, modality: str) -> Tensor:
        features: Tensor = self.encoders[modality].encode(clips)
        return features

    def logits(self, *_: Any) -> Tensor:
        raise AssertionError("it has no classes")


# --- the data ---------------------------------------------------------------------------------------------------


def run_config(model: str, folder: Path, seed: int, changes: Mapping[str, str]) -> FinetuneConfig:
    """As ``legato train MODEL --data java_sed`` makes it, on clips as short as those that a stream is cut into."""
    given: dict[str, Any] = {"face": FACE_NET, "seed": seed, "stride": 1, "validation_splits": (), "log_every": 50}
    given |= SHORT.get(model, {})
    return recipe(model, f"java_sed:{folder}", **{**given, **changes})


def clips_of(pairs: LabelledPairs, index: int, phase: float) -> Iterator[tuple[Tensor, Tensor, list[bool]]]:
    """At most WINDOW clips of 0.4 s from the middle of a recording: pictures, samples, and which of them are there."""
    length = pairs.length(index)
    count = int((length - phase * SECONDS) / SECONDS)
    skipped = max(0, count - WINDOW) // 2
    assert pairs.hearing is not None
    for k in range(skipped, skipped + min(count, WINDOW)):
        span = pairs.span(index, SECONDS * k + SECONDS * Fraction(phase))
        colours = (3,) * (pairs.look.pixel_format != "gray")
        video = np.zeros((pairs.sampling.frames, pairs.look.size, pairs.look.size, *colours), np.uint8)
        sound = np.zeros(int(SECONDS * pairs.hearing.rate), np.float32)
        if span.frames is not None:
            video = crop_at(span.frames, pairs.look.size, 0, 1)
        if span.sound is not None:
            sound = np.resize(span.sound, len(sound))
        yield torch.from_numpy(video), torch.from_numpy(sound), [span.frames is not None, span.sound is not None]


@torch.inference_mode()
def read(model: Any, config: FinetuneConfig) -> tuple[FeatureSet, dict[str, Tensor]]:
    """Windows of frozen features, newest clip last, and what the model says of each clip by itself: ``masked`` in every
    state (n, L, S, K), and of ``zeros`` (n, L, S, K)."""
    task, train, _ = open_splits(replace(config, validation_splits=()))
    _, test, _ = open_splits(replace(config, train_splits=("test",), validation_splits=()))
    rows: list[dict[str, Any]] = []
    for split, phases in ((train, PHASES), (test, 1)):
        pairs = split.open_for(model)
        assert isinstance(pairs, LabelledPairs)
        for index, sample in enumerate(pairs.samples):
            for phase in range(phases):
                clips = list(clips_of(pairs, index, phase / PHASES))
                if not clips:
                    continue
                about = {"name": f"{sample.id}/{phase}", "label": task.places(sample)[0], "speaker": sample.speaker,
                         "split": sample.split}  # fmt: skip
                rows.append(about | said_of(model, clips))
    return gathered(rows, task.classes)


def said_of(model: Any, clips: list[tuple[Tensor, Tensor, list[bool]]]) -> dict[str, Tensor]:
    """Features (L, M, D) and logits (L, S, K) of a window, front-padded to WINDOW clips."""
    video, sound = torch.stack([c[0] for c in clips]), torch.stack([c[1] for c in clips])
    there = torch.tensor([c[2] for c in clips])
    features = torch.stack([model.encode(video, "video"), model.encode(sound, "audio")], 1)
    everything = {"features": features, "presence": there, "exists": torch.ones(len(clips), dtype=torch.bool)}
    if not isinstance(model, Shipped):
        everything |= by_itself(model, video, sound, there)
    return {name: torch.cat([x.new_zeros(WINDOW - len(clips), *x.shape[1:]), x]) for name, x in everything.items()}


def by_itself(model: Any, video: Tensor, sound: Tensor, there: Tensor) -> dict[str, Tensor]:
    """Logits (L, S, K) of each clip in every state, what is not there masked, or zeros."""
    seen = {**model.prepare(video, "video"), **model.prepare(sound, "audio")}
    blank = {**model.prepare(torch.zeros_like(video), "video"), **model.prepare(torch.zeros_like(sound), "audio")}
    masked, zeros = [], []
    for state in STATES:
        presence = there & torch.tensor(state)
        masked.append(model.logits(seen, presence))
        names = dict(zip(("rgb", "audio"), state, strict=True))
        given = {n: seen[n] if names.get(n, names["rgb"]) else blank[n] for n in seen}
        zeros.append(model.logits(given))
    return {"masked": torch.stack(masked, 1), "zeros": torch.stack(zeros, 1)}


def gathered(rows: list[dict[str, Any]], labels: tuple[str, ...]) -> tuple[FeatureSet, dict[str, Tensor]]:
    whole = {name: torch.stack([row[name] for row in rows]) for name in ("features", "presence", "exists")}
    features = whole.pop("features")
    data = FeatureSet.of(
        features, torch.tensor([row["label"] for row in rows]), labels,
        names=[row["name"] for row in rows], speaker=[row["speaker"] for row in rows],
        split=[row["split"] for row in rows], notes={"clip_seconds": float(SECONDS)}, **whole,
    ).fitted()  # fmt: skip
    return data, {name: torch.stack([row[name] for row in rows]) for name in ("masked", "zeros") if name in rows[0]}


# --- the arms ---------------------------------------------------------------------------------------------------


def losses(data: FeatureSet, draws: int) -> Iterator[tuple[str, Tensor]]:
    """Every condition, as often as it is drawn: its name and what is left of ``presence``; the same for every arm.

    Of a window's n clips ``rate`` n are lost in each modality, rounded, and one of each is kept.
    """
    for rate in RATES:
        for draw in range(draws if rate else 1):
            left = data.presence.clone()
            for row, name in enumerate(data.names):
                there = data.exists[row].nonzero()[:, 0]
                k = min(round(rate * len(there)), len(there) - 1)
                rng = np.random.Generator(np.random.PCG64(paired_seed(name, int(100 * rate), draw)))
                left[row, there] &= ~torch.from_numpy(uniform_k(rng, 1, len(there), k)[0])
            yield f"{rate:.1f}", left
    for name, column in WHOLE.items():
        left = data.presence.clone()
        left[..., column] = False
        yield name, left


def by_clips(logits: Tensor, left: Tensor, exists: Tensor, masked: bool) -> Tensor:
    """The class of each window: probabilities averaged over clips; a clip with nothing is as zeros, or says nothing."""
    state = 3 - 2 * left[..., 0].long() - left[..., 1].long()  # a place of STATES
    if masked:
        exists = exists & left.any(-1)
    places = state[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    chosen = logits.gather(2, places)[:, :, 0]  # (n, L, K)
    return (chosen.softmax(-1) * exists[..., None]).sum(1).argmax(1)


def heads(data: FeatureSet, out: Path, seed: int, args: argparse.Namespace) -> dict[str, Arm]:
    """Every trained arm that has a head; all heads learn for as many steps."""
    train = data.of_split("train")
    mae = MAETraining(overrides={"dim": data.width, "length": WINDOW}, steps=args.mae_steps, lr=1e-3, seed=seed)
    imputer = train_mae(mae, train, train, out / "curri_mae")
    sizes = {"width": 64, "depth": 2, "heads": 4, "mlp_dim": 128, "fusion_layer": 1}

    def head(name: str, absent: str, sampling: str, fill: nn.Module | None = None) -> nn.Module:
        config = HeadTraining(kind="mbt", overrides={**sizes, "absent": absent}, sampling=sampling, seed=seed,
                              steps=args.head_steps, weight_decay=1e-3)  # fmt: skip
        return train_head(config, train, train, out / name, imputer=fill or Zero())[0]

    whole = head("whole", "filled", "none")
    drop = head("drop", "drop", "none")
    return {
        "head, masked": Arm("", drop, Zero()),
        "head, masked, trained with drops": Arm("", head("drop_drops", "drop", "all"), Zero()),
        "head, curri-MAE": Arm("", whole, imputer),
        "head, curri-MAE, tuned": Arm("", head("tuned", "filled", "all", imputer), imputer),
        "head, lerp": Arm("", whole, Lerp()),
        "head, zeros": Arm("", whole, Zero()),
        "head, zeros, trained with drops": Arm("", head("zero_drops", "filled", "all"), Zero()),
    }


def judged(data: FeatureSet, said: Mapping[str, Tensor], arms: Mapping[str, Arm], draws: int) -> dict[str, Any]:
    """Accuracy of every arm in every condition, over the recordings of unseen actors."""
    rows = torch.tensor([split == "test" for split in data.split])
    test = data.of_split("test")
    features, found = test.standardised(), defaultdict(lambda: defaultdict(list))  # type: ignore[var-annotated]
    for condition, left in losses(test, draws):
        known = torch.where(left[..., None], features, 0)
        guesses = {f"itself, {how}": by_clips(x[rows], left, test.exists, how == "masked") for how, x in said.items()}
        for name, arm in arms.items():
            answers = answer(arm, known, left, test.exists, window=WINDOW)
            guesses[name] = answers.log_probabilities.argmax(1)
        for name, guess in guesses.items():
            found[name][condition].append(float((guess == test.label).double().mean()))
    return {name: {condition: mean(x) for condition, x in by.items()} for name, by in found.items()}


def tuned(config: FinetuneConfig, out: Path, runs: Path) -> Any:
    """The model, fine-tuned unless that is done; MMT sees as one that learned GRID's words."""
    if not (out / "model.safetensors").exists():
        starts = [words(runs)] if config.preset == "mmt_tiny" else []
        finetune(config, out, resume=(out / "checkpoint.json").exists(), init=starts, say=print, device="cpu")
    model = build_classifier(config.preset, len(open_splits(config)[0].classes), config.encoder)
    load_weights(model, weights_of(out), what=f"the model in {out}")
    return model.eval()


def make(model: str, fold: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and judge, unless that is done."""
    out: Path = args.runs / f"{model}-{fold}-{seed}"
    if not (out / "found.json").exists():
        if args.no_train:
            return {}
        began = time.process_time()
        folder = fold_folder(fold, args.runs, args.data)
        preset = MODELS[0] if model == "talk" else model
        config = run_config(preset, folder, seed, dict(pair.split("=", 1) for pair in args.set))
        data, said = read(Shipped() if model == "talk" else tuned(config, out / "encoder", args.runs), config)
        shutil.rmtree(out / "heads", ignore_errors=True)  # of a run that was stopped: they take a moment
        arms = heads(data, out / "heads", seed, args)
        found = {"arms": judged(data, said, arms, args.draws), "cpu_seconds": time.process_time() - began}
        write_json(out / "found.json", found)
    return dict(json.loads((out / "found.json").read_text()))


# --- the page ---------------------------------------------------------------------------------------------------


def cell(runs: list[dict[str, Any]], arm: str, condition: str) -> str:
    values = [run["arms"][arm][condition] for run in runs]
    return f"{mean(values):.2f}" + (f" ± {pstdev(values):.2f}" if len(values) > 1 else "")


def page(rows: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The page of results."""
    conditions = [f"{rate:.1f}" for rate in RATES] + list(WHOLE)
    lines = [
        "# Emotions of unseen actors while clips are lost: masked, filled, or zeros",
        "",
        "Java-SED, two actors left out at a time; six emotions, chance 0.17. Accuracy over recordings, mean ± standard",
        "deviation over folds and seeds. Columns: the share of 0.4 s clips lost, of pictures and of sound apart.",
    ]
    for model, runs in rows.items():
        lines += ["", f"## {model}: {len(runs)} runs", "", "| | " + " | ".join(conditions) + " |",
                  "|---" * (len(conditions) + 1) + "|"]  # fmt: skip
        known = [arm for arm in ARMS if arm in runs[0]["arms"]]
        lines += [f"| {arm} | " + " | ".join(cell(runs, arm, c) for c in conditions) + " |" for arm in known]
        lines += ["", f"A run took {mean(run['cpu_seconds'] for run in runs) / 60:.1f} CPU minutes."]
    return [*lines, "", *(f"- {arm}: {what}." for arm, what in ARMS.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="", help="folder of Java-SED; default: below LEGATO_DATA")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--folds", type=int, default=len(FOLDS), choices=range(1, len(FOLDS) + 1))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=10, help="of the lost clips")
    parser.add_argument("--head-steps", type=int, default=400)
    parser.add_argument("--mae-steps", type=int, default=1500)
    parser.add_argument("--only", default="", help="runs to make now, MODEL-FOLD-SEED, comma-separated; no page")
    parser.add_argument("--set", action="append", default=[], help="key=value of every fine-tuning")
    parser.add_argument("--no-train", action="store_true", help="only tabulate what is there")
    parser.add_argument("--name", default="missing", help="of the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in range(args.seeds):
        for model in args.models.split(","):
            for fold in range(args.folds):
                if args.only and f"{model}-{fold}-{seed}" not in args.only.split(","):
                    continue
                if found := make(model, fold, seed, args):
                    rows[model].append(found)
                    print(model, fold, seed, {a: x["0.5"] for a, x in found["arms"].items()}, flush=True)
    if not args.only and rows:
        write_results(args.out, args.name, {"rows": rows}, page(rows))


if __name__ == "__main__":
    main()
