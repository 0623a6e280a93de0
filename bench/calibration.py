"""Which calibration holds for speakers it never saw: ``python -m bench.calibration FEATURES.safetensors ...``.

For every feature file (``legato features``) and seed, speakers are divided into three parts. A head learns on one,
unmodified and filled by lerp, and one trained with drops (zeros); on every split of the speakers that are left into
*few* to fit on and the rest to judge, each kind of calibration is fitted with every loss rate, and judged by rate:
negative log-likelihood, and calibration error (10 bins of equal mass, debiased). ``chosen`` is what ships:
``imputation.cross_fit`` picks the form on the few alone.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.record import write_results
from imputation.baselines import Lerp, Zero
from imputation.calibration_error import calibration_error
from imputation.cross_fit import FORMS, ONE, fit_crossed
from imputation.evaluate import Arm, calibration_data
from imputation.features import FeatureSet
from imputation.train_head import HeadTraining, train_head

RESULTS = Path(__file__).parent / "results"
STEPS = 400
DRAWS = 3
LEAST = 20  # answers that a calibration error is told of
FEW = 4  # speakers that calibration is fitted on
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
ONLY = ("one temperature", "by share", "one temperature and offsets", "by share and offsets")
Mapped = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), share (B,) -> probabilities (B, K)


@dataclass(frozen=True, kw_only=True)
class Said:
    """An arm's answers: logits (B, K), observed share (B,), label (B,), speakers and windows of each."""

    logits: Tensor
    share: Tensor
    label: Tensor
    speaker: np.ndarray
    window: np.ndarray

    def of(self, speakers: Sequence[str]) -> "Said":
        rows = np.isin(self.speaker, speakers)
        at = torch.from_numpy(rows)
        return Said(logits=self.logits[at], share=self.share[at], label=self.label[at], speaker=self.speaker[rows],
                    window=self.window[rows])  # fmt: skip


def as_they_are(_: Said) -> Mapped:
    """Nothing is fitted."""
    return lambda logits, _share: logits.softmax(-1)


def isotonic(said: Said) -> Mapped:
    """One temperature, then the confidence of the likeliest class by a rising step function (Zadrozny, Elkan 2002)."""
    first = ONE.fitted(said.logits, said.share, said.label)
    confidence, guess = first(said.logits, said.share)[0].max(dim=1)
    steps, levels = rising(confidence.double().numpy(), (guess == said.label).double().numpy())

    def mapped(logits: Tensor, share: Tensor) -> Tensor:
        p = first(logits, share)[0]
        top = np.interp(p.amax(1).double().numpy(), steps, levels)
        return with_top(p, torch.from_numpy(top).float())

    return mapped


def beta(said: Said) -> Mapped:
    """One temperature, then the beta curve of the likeliest class (Kull, Silva Filho, Flach 2017)."""
    first = ONE.fitted(said.logits, said.share, said.label)
    confidence, guess = first(said.logits, said.share)[0].max(dim=1)
    hit = (guess == said.label).float()
    weights = torch.tensor([1.0, 1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def curve(p: Tensor) -> Tensor:
        p = p.clamp(1e-4, 1 - 1e-4)
        a, b = weights[:2].clamp(min=0)
        return a * p.log() - b * torch.log1p(-p) + weights[2]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(curve(confidence), hit)
        loss.backward()
        return loss

    optimizer.step(closure)

    def mapped(logits: Tensor, share: Tensor) -> Tensor:
        p = first(logits, share)[0]
        with torch.no_grad():
            return with_top(p, curve(p.amax(1)).sigmoid())

    return mapped


def chosen(said: Said) -> Mapped:
    """The form that the speakers themselves confirm (``imputation.cross_fit``)."""
    made = fit_crossed(said.logits, said.share, said.label, said.speaker.tolist()).calibration
    return lambda logits, share: made(logits, share)[0]


def formed(name: str) -> Callable[[Said], Mapped]:
    """A form of ``imputation.cross_fit`` by name, fitted as it is."""
    form = next(f for f in FORMS if f.name == name)

    def fitted(said: Said) -> Mapped:
        made = form.fitted(said.logits, said.share, said.label)
        return lambda logits, share: made(logits, share)[0]

    return fitted


KINDS: dict[str, Callable[[Said], Mapped]] = {
    "as it is": as_they_are,
    **{name: formed(name) for name in ONLY},
    "isotonic": isotonic,
    "beta": beta,
    "chosen": chosen,
}


def rising(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rising function nearest to y at x in squares (pool adjacent violators): places and levels, as points."""
    order = np.argsort(x, kind="stable")
    blocks: list[list[float]] = []  # sum of x, sum of y, count
    for a, b in zip(x[order].tolist(), y[order].tolist(), strict=True):
        blocks.append([a, b, 1.0])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            last = blocks.pop()
            blocks[-1] = [p + q for p, q in zip(blocks[-1], last, strict=True)]
    sums = np.array(blocks)
    return sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]


def with_top(p: Tensor, top: Tensor) -> Tensor:
    """Probabilities (B, K) whose largest is ``top`` (B,), the others in proportion."""
    top = top.clamp(1.0 / p.shape[1], 1 - 1e-4)
    likeliest = F.one_hot(p.argmax(1), p.shape[1]).bool()
    rest = p.masked_fill(likeliest, 0.0)
    rest = rest / rest.sum(1, keepdim=True).clamp_min(1e-9) * (1 - top).unsqueeze(1)
    return torch.where(likeliest, top.unsqueeze(1), rest)


def said_by(data: FeatureSet, seed: int, steps: int) -> tuple[dict[str, Said], list[str]]:
    """What two arms say of speakers that their head did not learn from, and who these are."""
    speakers = sorted(set(data.speaker))
    most = max(speakers, key=data.speaker.count)  # one who fills a corpus is learned from, not judged
    others = [s for s in speakers if s != most]
    order = np.random.default_rng(seed).permutation(len(others))
    learning = [most, *(others[i] for i in order[: max(1, len(speakers) // 3 - 1)])]
    left = [s for s in speakers if s not in learning]
    split = ["train" if s in learning else "test" for s in data.speaker]
    parted = replace(data, split=tuple(split), standardiser=None).fitted()
    train, rest = parted.of_split("train"), parted.of_split("test")
    out = {}
    for name, sampling, fill in (("pristine + lerp", "none", Lerp()), ("with drops", "all", Zero())):
        config = HeadTraining(sampling=sampling, steps=steps, seed=seed, overrides={"hidden": 64}, evaluate_every=steps,
                              save_every=steps, log_every=steps)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            head, _ = train_head(config, train, train, Path(folder) / "head")
        logits, share, label = calibration_data(Arm(name, head, fill), rest, draws=DRAWS)
        times = len(logits) // len(rest)
        out[name] = Said(logits=logits, share=share, label=label, speaker=np.tile(np.array(rest.speaker), times),
                         window=np.tile(np.arange(len(rest)), times))  # fmt: skip
    return out, left


def folds(speakers: Sequence[str], few: int, count: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Few to fit on, the others to judge."""
    rng = np.random.default_rng([seed, few])
    for _ in range(count):
        order = rng.permutation(len(speakers))
        yield [speakers[i] for i in order[:few]], [speakers[i] for i in order[few:]]


def judged(mapped: Mapped, said: Said) -> dict[str, Any]:
    """Over all rates, and the calibration error of each."""
    p = mapped(said.logits, said.share)
    confidence, guess = p.max(dim=1)
    right = (guess == said.label).numpy()
    nll = F.nll_loss(p.clamp_min(1e-6).log(), said.label, reduction="none").numpy()
    by_rate = {}
    for rate in RATES:
        here = np.abs(said.share.numpy() - (1 - rate)) < 0.0999  # seven clips have no fifths
        if here.sum() >= LEAST:
            by_rate[f"{rate:g}"] = calibration_error(
                np.minimum(confidence.numpy()[here], 1.0), right[here], groups=said.window[here]
            )
    return {"nll": float(nll.mean()), "accuracy": float(right.mean()), "ece": by_rate}


def measure(path: Path, seeds: int, few: int, count: int, steps: int) -> list[dict[str, Any]]:
    """One row for each seed, arm, fold and kind of calibration."""
    data, rows = FeatureSet.load(path), []
    if len(set(data.speaker)) < few + 4:
        print(f"{path.stem}: {len(set(data.speaker))} speakers are too few to divide; left out")
        return []
    for seed in range(seeds):
        arms, left = said_by(data, seed, steps)
        for arm, said in arms.items():
            for fold, (fitting, judging) in enumerate(folds(left, min(few, len(left) - 2), count, seed)):
                for kind, fit in KINDS.items():
                    about = {"file": path.stem, "seed": seed, "arm": arm, "fold": fold, "kind": kind}
                    rows.append({**about, **judged(fit(said.of(fitting)), said.of(judging))})
        print(f"{path.stem}, seed {seed}: {len(rows)} rows", flush=True)
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By file, arm and kind: means over seeds and folds, and the paired difference in likelihood to one temperature."""
    cells: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["file"], row["arm"], row["kind"]].append(row)
    out = []
    for (file, arm, kind), mine in cells.items():
        base = cells[file, arm, ONE.name]
        gaps = np.array([b["nll"] - m["nll"] for m, b in zip(mine, base, strict=True)])
        errors = {r: float(np.mean([m["ece"][r] for m in mine if r in m["ece"]])) for r in mine[0]["ece"]}
        out.append({
            "file": file, "arm": arm, "kind": kind, "trials": len(mine),
            "nll": float(np.mean([m["nll"] for m in mine])),
            "accuracy": float(np.mean([m["accuracy"] for m in mine])),
            "gain": float(gaps.mean()), "spread": float(gaps.std(ddof=1)) if len(gaps) > 1 else math.nan,
            "worse": float((gaps < -1e-3).mean()), "ece": errors,
        })  # fmt: skip
    return out


def lines_of(found: Sequence[Mapping[str, Any]], few: int) -> list[str]:
    """The page."""
    lines = [
        "# Calibration for speakers it was not fitted on",
        "",
        f"Fitted on {few} speakers, judged on others; all loss rates together, {DRAWS} masks each. Gain: negative "
        "log-likelihood (nats) below that of one temperature, ± standard deviation over seeds and folds; *worse*: in "
        "how many of them it was above. Calibration error: 10 bins of equal mass, debiased, by loss rate.",
        "",
    ]
    rates = [f"{r:g}" for r in RATES]
    for file, arm in dict.fromkeys((r["file"], r["arm"]) for r in found):
        mine = [r for r in found if (r["file"], r["arm"]) == (file, arm)]
        lines += [f"{file}, {arm} (accuracy {100 * mine[0]['accuracy']:.1f} %, {mine[0]['trials']} fits):", "",
                  "| calibration | gain | worse | " + " | ".join(f"at {100 * float(r):.0f} %" for r in rates) + " |",
                  "|---" * (3 + len(rates)) + "|"]  # fmt: skip
        for r in mine:
            errors = " | ".join(f"{r['ece'][x]:.3f}" if x in r["ece"] else "" for x in rates)
            lines.append(
                f"| {r['kind']} | {r['gain']:+.4f} ± {r['spread']:.4f} | {100 * r['worse']:.0f} % | {errors} |"
            )
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("features", type=Path, nargs="+", help="feature files with labels and speakers")
    parser.add_argument("--seeds", type=int, default=3, help="of heads and of who is in which part")
    parser.add_argument("--folds", type=int, default=4, help="choices of the speakers to fit on, for each seed")
    parser.add_argument("--few", type=int, default=FEW, help="how many they are")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each head")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for calibration.json and calibration.md")
    options = parser.parse_args()
    rows = [row for path in options.features
            for row in measure(path, options.seeds, options.few, options.folds, options.steps)]  # fmt: skip
    if not rows:
        parser.error(f"no file has enough speakers for --few {options.few}; give others, or fit on fewer")
    found = summary(rows)
    write_results(options.out, "calibration", {"few": options.few, "cells": found}, lines_of(found, options.few))


if __name__ == "__main__":
    main()
