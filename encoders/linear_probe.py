"""How good frozen features are: a linear classifier on all of them, or a regression from a few per class.

*Linear evaluation* trains a softmax (or sigmoids) on standardised features with L-BFGS; its weight decay is chosen on
a part of the training samples held back. *Few-shot* evaluation is ViT's and TokenLearner's: least squares with a fixed
ridge from one-hot targets to features of N images per class, a mean over several draws; it has a closed form, so it
says nothing of the optimiser.

Shapes: N sample, V view, D width, K class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.datasets.labelled import Instances
from encoders.datasets.views import Views
from encoders.errors import ConfigError, DataError, LegatoError
from encoders.readings import MODALITIES, Batch, as_tensors, count, rows_of, to_device
from encoders.tasks import LabelTask

__all__ = ["Features", "features_of", "few_shot", "fit_linear", "linear_probe", "ridge", "summary"]

DECAYS = tuple(10.0**x for x in range(-6, 2))  # weight decays that are tried
HELD_BACK = 5  # one in so many training samples chooses the decay
RIDGE = 2.0**10  # of the few-shot regression, on features of unit variance (as in the public evaluators)
BIAS = 100.0  # the constant feature: so large that the ridge hardly reaches the bias
DRAWS = 5


@dataclass(frozen=True)
class Features:
    """Features and targets of the samples that could be read."""

    x: Tensor  # (N, D)
    targets: Tensor  # (N, K)
    unreadable: int = 0

    def rows(self, chosen: Tensor) -> "Features":
        """Some of the samples."""
        return Features(self.x[chosen], self.targets[chosen])


@torch.no_grad()
def features_of(
    encode: Callable[[Batch], Tensor],
    task: LabelTask,
    instances: Instances,
    views: Views,
    *,
    device: str = "cpu",
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """The frozen encoder's features, the mean over the views of each sample. ``encode``: clips to (B, D)."""
    rows: list[Tensor] = []
    read = []
    total = len(instances.samples)
    for index in range(total):
        try:
            clips = instances.views(index, views)
        except LegatoError:
            continue  # counted as unreadable
        starts = range(0, count(clips), batch)
        parts = [encode(to_device(as_tensors(rows_of(clips, i, i + batch)), device)).float().cpu() for i in starts]
        rows.append(torch.cat(parts).mean(0))
        read.append(instances.samples[index])
        if progress is not None:
            progress(index + 1, total)
    if not rows:
        raise DataError(f"none of {total} samples can be read; check the dataset's folder")
    return Features(torch.stack(rows), task.targets(read), total - len(rows))


def linear_probe(
    task: LabelTask, train: Features, test: Features, *, decays: Sequence[float] = DECAYS, seed: int = 0
) -> dict[str, float]:
    """The measures of a linear classifier on ``test``; ``weight_decay`` is the one that did best on held-back rows."""
    mean, std = train.x.mean(0), train.x.std(0).clamp_min(1e-6)
    train, test = (Features((f.x - mean) / std, f.targets, f.unreadable) for f in (train, test))
    if len(train.x) < 2 * HELD_BACK:
        raise ConfigError(f"{len(train.x)} training samples are too few for a linear probe; use --few-shot")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train.x)))
    held, kept = order[::HELD_BACK], torch.cat([order[i::HELD_BACK] for i in range(1, HELD_BACK)])
    tried = {decay: _score(task, train.rows(kept), train.rows(held), decay) for decay in decays}
    best = max(decays, key=lambda decay: (tried[decay], decay))
    weight, bias = fit_linear(task, train.x, train.targets, best)
    found = task.measure(test.x @ weight + bias, test.targets)
    return {**found, "weight_decay": best, "samples": float(len(test.x)), "unreadable": float(test.unreadable)}


def _score(task: LabelTask, train: Features, test: Features, decay: float) -> float:
    weight, bias = fit_linear(task, train.x, train.targets, decay)
    return task.measure(test.x @ weight + bias, test.targets)[task.headline]


def fit_linear(
    task: LabelTask, x: Tensor, targets: Tensor, decay: float, *, steps: int = 200
) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and bias (K,) that minimise the task's loss plus ``decay / 2`` times the weight's square."""
    weight = torch.zeros(x.shape[1], targets.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = task.compute_loss(x @ weight + bias, targets) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def few_shot(
    task: LabelTask, train: Features, test: Features, shots: int, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """The measures of a ridge regression from ``shots`` samples of each class, means over ``draws`` of them.

    ``std`` is the headline's standard deviation over the draws.
    """
    if task.kind != "single":
        raise ConfigError(f"few-shot evaluation needs one class per sample, not the kind {task.kind!r}; use linear")
    if shots < 1 or draws < 1:
        raise ConfigError(f"shots {shots} and draws {draws} must be at least 1")
    by_class = [torch.nonzero(train.targets[:, k])[:, 0] for k in range(len(task.classes))]
    short = [name for name, rows in zip(task.classes, by_class, strict=True) if len(rows) < shots]
    if short:
        raise DataError(
            f"{len(short)} of {len(by_class)} classes, such as {short[0]}, have fewer than {shots} training samples; "
            "use fewer shots"
        )
    random, found = np.random.default_rng(seed), []
    for _ in range(draws):
        rows = torch.cat([r[torch.from_numpy(random.choice(len(r), shots, replace=False))] for r in by_class])
        found.append(task.measure(ridge(train.rows(rows), test.x), test.targets))
    means = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    spread = float(np.std([f[task.headline] for f in found]))
    return {**means, "std": spread, "shots": float(shots), "samples": float(len(test.x))}


def ridge(train: Features, x: Tensor, strength: float = RIDGE) -> Tensor:
    """Scores (N, K) of a least-squares regression to targets of -1 and 1, on features standardised by ``train``."""
    mean, std = train.x.double().mean(0), train.x.double().std(0, correction=0).clamp_min(1e-6)
    known, new = (torch.nn.functional.pad((f.double() - mean) / std, (0, 1), value=BIAS) for f in (train.x, x))
    wanted = 2 * train.targets.double() - 1
    # Of the two forms of the solution the one over samples is smaller where they are fewer than dimensions.
    if len(known) <= known.shape[1]:
        inner = known @ known.T + strength * torch.eye(len(known), dtype=torch.double)
        return (new @ (known.T @ torch.linalg.solve(inner, wanted))).float()
    outer = known.T @ known + strength * torch.eye(known.shape[1], dtype=torch.double)
    return (new @ torch.linalg.solve(outer, known.T @ wanted)).float()


def summary(results: Mapping[str, Any]) -> str:
    """One line for people: shares in percent, the rest as it is."""
    shares = ("top1", "top5", "map", "action", "noun", "verb", "std")
    alone = {f"{modality}_{k}" for modality in MODALITIES for k in shares}
    parts = [f"{k} {100 * v:.1f} %" if k in {*shares, *alone} else f"{k} {v:g}" for k, v in results.items()]
    return ", ".join(parts)
