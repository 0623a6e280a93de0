"""When a half-arrived clip is worth using: ``python -m bench.severity`` (recordings through ``LEGATO_DATA``).

Recordings of talking heads (GRID, Java-SED), standing still and panned, are coded again, lost by the repository's
profiles and received by the runtime (``bench.severity_streams``). Of every clip that did not come whole there are
three features: of what is good of it, its holes closed as in serving (*kept*); of everything that the decoder gave,
spoiled pictures and sound included (*spoilt*); and what a fill makes of the window without it (lerp, and the bundle's
imputer). Each is held against the feature of the whole clip, in units of a feature's deviation, and the bundle's head
answers with each in its place. Then: from which coverage, and up to which estimated severity, a clip beats a fill, and
how well estimates of the severity rank the true error.

Thresholds are chosen on the speakers of ``CHOOSING`` (validation) and judged on the others.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import severity_streams as streams
from bench.record import write_results
from bench.severity_policy import Windows
from bench.severity_report import lines_of, plot, summary_of
from imputation.baselines import Lerp
from runtime.bundle import Bundle
from runtime.pipeline import Pipeline

COUNTS = {"grid": 18, "java_sed": 16}  # streams of three sentences
CHOOSING = {"grid": ("s2", "s3", "s30", "s26"), "java_sed": ("01", "03", "06", "08")}
MODALITIES = ("video", "audio")
WAYS = ("kept", "spoilt", "lerp", "imputer")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Clips that did not come whole, N of them, one modality each.

    ``about``: name -> (N,) numbers; ``context``: (N, P, M, D) standardised features of the window that ends with the
    clip and of what follows, zero where absent; ``presence`` (N, P, M) and ``exists`` (N, P) of it; ``features``
    (N, 3, D): the whole clip's, kept, spoilt.
    """

    about: dict[str, np.ndarray]
    context: np.ndarray
    presence: np.ndarray
    exists: np.ndarray
    features: np.ndarray

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {f"about_{name}": value for name, value in self.about.items()}
        arrays |= {"context": self.context, "presence": self.presence, "exists": self.exists, "features": self.features}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Measured":
        with np.load(path, allow_pickle=False) as file:
            about = {k[6:]: file[k] for k in file.files if k.startswith("about_")}
            return cls(about=about, **{k: file[k] for k in file.files if not k.startswith("about_")})


def measure(pipeline: Pipeline, data: Path, counts: dict[str, int], seed: int) -> Measured:
    """Every stream, camera and coding, at two of the losses each."""
    rows: list[dict[str, Any]] = []
    arrays: dict[str, list[np.ndarray]] = {"context": [], "presence": [], "exists": [], "features": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coded.mkv"
        for corpus, count in counts.items():
            for number, scene in enumerate(streams.scenes(data, corpus, count, seed)):
                for turn, (camera, coding) in enumerate((a, b) for a in streams.CAMERAS for b in streams.CODINGS):
                    streams.coded(scene, camera, coding, path)
                    losses = [streams.LOSSES[(number + turn + i) % len(streams.LOSSES)] for i in (0, 1)]
                    known = {"corpus": corpus, "speaker": scene.speaker, "stream": f"{corpus}-{number}",
                             "camera": camera, "coding": coding,
                             "label": streams.LABELS[scene.voice]}  # fmt: skip
                    for loss in losses:
                        _one(pipeline, path, {**known, "loss": loss}, seed + number, rows, arrays)
                print(f"{corpus} {number + 1}/{count}: {len(rows)} clips", flush=True)
    about = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Measured(about=about, **{name: np.stack(values) for name, values in arrays.items()})


def _one(
    pipeline: Pipeline, path: Path, known: dict[str, Any], seed: int, rows: list[dict[str, Any]],
    arrays: dict[str, list[np.ndarray]],
) -> None:  # fmt: skip
    """One stream through one loss."""
    whole = streams.received(pipeline, path, "", 0, forgives=False)
    strict = streams.received(pipeline, path, known["loss"], seed, forgives=False)
    lenient = streams.received(pipeline, path, known["loss"], seed, forgives=True)
    truth = streams.encoded(pipeline, whole.clips)
    faces = dict(zip([c.start for c in whole.clips], [None, *(e.face for e in truth[:-1])], strict=True))
    good, all_of_it = ({c.start: c for c in r.clips} for r in (strict, lenient))
    broken = [i for i, c in enumerate(whole.clips) if c.start in good and min(good[c.start].coverage.values()) < 1]
    told = picture_facts(whole, lenient)
    start = pipeline.engine.initial_face()
    made = {
        (i, way): streams.feature(pipeline, clips[c.start], faces[c.start] or start)
        for i, c in ((i, whole.clips[i]) for i in broken)
        for way, clips in (("kept", good), ("spoilt", all_of_it))
        if c.start in clips
    }
    window = _window(pipeline, whole.clips, good, truth, made)
    for i in broken:
        clip = good[whole.clips[i].start]
        for m, modality in enumerate(MODALITIES):
            if clip.coverage[modality] >= 1 - 1e-9:
                continue
            with_all = all_of_it.get(clip.start)
            row = {**known, "modality": modality, "clip": i, "coverage": clip.coverage[modality],
                   "came": 0.0 if with_all is None else with_all.coverage[modality],
                   "severity": clip.severity[modality],
                   **(told(clip) if modality == "video" else dict.fromkeys(PICTURE_FACTS, 0.0))}  # fmt: skip
            features = [truth[i].features[m]]
            for way in ("kept", "spoilt"):
                got = made.get((i, way))
                there = got is not None and bool(got.presence[m])
                row[f"has_{way}"] = there
                features.append(got.features[m] if got is not None and there else np.zeros_like(features[0]))
            rows.append(row)
            for name, value in window(i).items():
                arrays[name].append(value)
            arrays["features"].append(np.stack(features))


PICTURE_FACTS = ("luma", "by_severity", "by_lost", "by_share", "by_motion", "by_bits", "by_bits_kept")


def picture_facts(whole: streams.Received, lenient: streams.Received) -> Callable[[Any], dict[str, float]]:
    """Of a clip: the true luma error of its pictures (grey levels), and sums of what was known of them."""
    clean = {f.time: f.pixels.astype(np.int16) for f in whole.frames}
    got = [(f, lenient.facts.get(f.seqs[0])) for f in lenient.frames]
    step = 1.0 / streams.RATE

    def of(clip: Any) -> dict[str, float]:
        inside = [(f, k) for f, k in got if clip.start <= f.time < clip.start + clip.seconds and f.time in clean]
        errors = [float(np.abs(f.pixels - clean[f.time]).mean()) for f, _ in inside]
        spoiled = [k for _, k in inside if k is not None and k.lost]
        weight = step / float(clip.seconds)
        sums = {
            "by_severity": sum(k.severity for k in spoiled),
            "by_lost": sum(1 - 0.75**k.lost for k in spoiled),
            "by_share": sum(1 - (1 - min(k.share, 1)) ** k.lost for k in spoiled),
            "by_motion": sum((1 - (1 - min(k.share, 1)) ** k.lost) * math.exp(-k.renewed) for k in spoiled),
            "by_bits": sum(k.lost * k.bits * math.exp(-k.renewed) for k in spoiled),
            "by_bits_kept": sum(k.lost * k.bits for k in spoiled),
        }
        return {"luma": float(np.mean(errors)) if errors else 0.0, **{k: v * weight for k, v in sums.items()}}

    return of


def _window(
    pipeline: Pipeline, clips: Sequence[Any], good: dict[Any, Any], truth: Sequence[Any], made: dict[Any, Any]
) -> Callable[[int], dict[str, np.ndarray]]:
    """Of clip i: the window that ends with it, with the neighbours that today's rule believes."""
    rule, task = pipeline.config.presence, pipeline.engine.task
    features = np.stack([e.features for e in truth])
    present = np.ones(features.shape[:2], bool)
    for i, clip in enumerate(clips):
        here = good.get(clip.start)
        for m, modality in enumerate(MODALITIES):
            share = here.coverage[modality] if here is not None else 0.0
            present[i, m] = share > getattr(rule, modality) + 1e-9
            if share < 1 and present[i, m] and (i, "kept") in made:
                features[i, m] = made[i, "kept"].features[m]
    features *= present[..., None]

    def of(i: int) -> dict[str, np.ndarray]:
        first, last = max(0, i + 1 - task.window), min(len(clips), i + 1 + task.ahead)
        at = task.window - (i + 1 - first)
        out = {
            "context": np.zeros((task.window + task.ahead, *features.shape[1:]), np.float32),
            "presence": np.zeros((task.window + task.ahead, features.shape[1]), bool),
            "exists": np.zeros(task.window + task.ahead, bool),
        }
        for name, values in (("context", features), ("presence", present), ("exists", np.ones(len(clips), bool))):
            out[name][at : at + last - first] = values[first:last]
        return out

    return of


@torch.inference_mode()
def answered(pipeline: Pipeline, found: Measured) -> dict[str, np.ndarray]:
    """Of every clip and way (and "whole"): squared error ``error_WAY`` (1 = a feature's variance), the probability of
    the true label ``right_WAY`` and whether it was said ``hit_WAY``, with the way's feature in its place."""
    task, engine = pipeline.engine.task, pipeline.engine
    place, rows = task.window - 1, torch.arange(len(found.context))
    column = torch.tensor([MODALITIES.index(m) for m in found.about["modality"].tolist()])
    context, presence = torch.from_numpy(found.context.copy()), torch.from_numpy(found.presence.copy())
    exists, label = torch.from_numpy(found.exists), torch.from_numpy(found.about["label"])
    presence[rows, place, column] = False
    context[rows, place, column] = 0
    imputer, head = engine.ladder, next(iter(engine.heads.values()))
    fills = {"lerp": Lerp(), "imputer": imputer}
    features = torch.from_numpy(found.features)
    out: dict[str, np.ndarray] = {}
    for way in ("whole", *WAYS):
        x, p = context.clone(), presence.clone()
        if way in fills:
            mine = fills[way](x, p, exists).features[rows, place, column]
        else:
            mine = features[:, ("whole", "kept", "spoilt").index(way)]
            x[rows, place, column], p[rows, place, column] = mine, True
        filled = imputer(x, p, exists) if way != "lerp" else fills["lerp"](x, p, exists)
        views = (filled.features, p, filled.variance, exists)
        logits = head(*(v[:, : task.window] for v in views))
        share = (p & exists[..., None])[:, : task.window].flatten(1).sum(1) / (2 * exists[:, : task.window].sum(1))
        probabilities, _ = engine.models.calibration["final"](logits, share.clamp(min=1e-3))
        out[f"error_{way}"] = (mine - features[:, 0]).square().mean(1).numpy()
        out[f"right_{way}"] = probabilities.gather(1, label[:, None])[:, 0].numpy()
        out[f"hit_{way}"] = (probabilities.argmax(1) == label).numpy()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=float, default=1.0, help="share of the streams; 0.2 is a look")
    parser.add_argument("--seed", type=int, default=0, help="of recordings, voices and losses")
    parser.add_argument("--cache", type=Path, default=None, help="keep what was measured in this .npz, or take it")
    parser.add_argument("--every", type=int, default=2, help="rules are tried on windows that end with every n-th clip")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for severity.json, severity.md, severity.png")
    options = parser.parse_args()
    data = os.environ.get("LEGATO_DATA")
    if data is None:
        parser.error("LEGATO_DATA is not set; let it name the folder with grid-av and javanese-av-emotion")
    overrides = ["engine.decode_ahead=0", "presence.audio=0.75"]  # neighbours by the rule it is held against
    pipeline = Pipeline.from_bundle(Bundle.load("talk"), device="cpu", overrides=overrides)
    if options.cache is not None and options.cache.exists():
        found = Measured.load(options.cache)
    else:
        counts = {corpus: max(2, round(options.streams * n)) for corpus, n in COUNTS.items()}
        found = measure(pipeline, Path(data), counts, options.seed)
        if options.cache is not None:
            found.save(options.cache)
    values = {**found.about, **answered(pipeline, found)}
    choosing = np.array([
        speaker.split("/")[-1] in CHOOSING[corpus]
        for corpus, speaker in zip(found.about["corpus"], found.about["speaker"], strict=True)
    ])  # fmt: skip
    windows = Windows(pipeline, found, options.every)
    summary = {"losses": np.unique(found.about["loss"]).tolist(), **summary_of(values, windows, choosing, print)}
    options.out.mkdir(parents=True, exist_ok=True)
    plot(values, summary, options.out / "severity.png")
    write_results(options.out, "severity", {"seed": options.seed, **summary}, lines_of(summary))


if __name__ == "__main__":
    main()
