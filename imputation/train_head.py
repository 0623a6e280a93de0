"""Training of heads, of an imputer through a frozen head, or of both: one loop, three weights of one loss.

    loss = task * cross-entropy + consistency * KL(head on complete || head on filled) + reconstruction * MSE

Every arm of a comparison is this loop with the same number of steps: the pristine head (sampling ``none``), the head
trained with drops (fill ``zero``, ``all``), curri-MAE-ft (``max``) and -ft-all (``all``), mixtures (``k=4+k=7``), an
imputer for a head that may not change (train ``imputer``), both together, and backoff's three classifiers.
Adam, learning rate 1e-3, batch 64; the weights that did best on validation, under the masks of the run's own
sampling, are kept (curri-mae.md d.5).

Shape legend: B batch, L position, W what the head sees, M modality, D width, K class.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.errors import ConfigError, DataError
from encoders.heads import HEADS, build_head
from encoders.settings import pick
from encoders.training import (
    average_gradients,
    check_finite,
    mean_over_processes,
    parameter_groups,
    seed_everything,
    stop_requests,
    world,
)
from imputation.baselines import Backoff, Zero
from imputation.features import FeatureSet
from imputation.run import Batches, Progress, Run, positive
from imputation.sampling import Sampling
from imputation.stored import new_backoff, save_head

__all__ = ["HeadTraining", "new_head", "train_head"]

TRAINABLE = {"head": ("head",), "imputer": ("imputer",), "both": ("head", "imputer")}


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """A whole run. Defaults are the pristine GRU head of the paper."""

    kind: str = "gru"  # linear, gru, backoff
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the head's config; dim and classes follow the data
    sampling: str = "none"  # none: pristine; max: -ft; all: -ft-all; k=4+k=7: mixture; profile=NAME
    train: str = "head"  # head, imputer, both
    task: float = 1.0
    consistency: float = 0.0
    reconstruction: float = 0.0
    epochs: int = 50
    steps: int = 0  # optimizer steps in all, for equal budgets; 0: epochs x batches
    batch: int = 64  # over all processes
    lr: float = 1e-3
    imputer_lr: float = 1e-4
    weight_decay: float = 0.0
    balance: bool = False  # classes weigh the same in the cross-entropy
    lookahead: int = 0
    short: float = 0.0
    min_clips: int = 3
    seed: int = 0
    log_every: int = 20  # steps
    evaluate_every: int = 0  # steps; 0: every epoch
    save_every: int = 0  # steps; 0: every epoch

    def __post_init__(self) -> None:
        positive(self, "epochs", "batch", "lr", "imputer_lr", "min_clips", "log_every")
        parts = pick(TRAINABLE, self.train, "train")
        pick({"backoff": None, **HEADS}, self.kind, "head")
        for name in ("task", "consistency", "reconstruction", "steps", "lookahead", "evaluate_every", "save_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative")
        if self.task == self.consistency == self.reconstruction == 0:
            raise ConfigError("task, consistency and reconstruction are all 0; set one, or there is nothing to learn")
        if "imputer" in parts and self.sampling == "none":
            raise ConfigError("sampling 'none' hides nothing for an imputer to learn from; use all")
        if self.kind == "backoff" and (self.train != "head" or self.sampling != "none"):
            raise ConfigError("backoff's classifiers are trained on complete windows; use train=head and sampling=none")


def new_head(config: HeadTraining, data: FeatureSet) -> nn.Module:
    """An untrained head for these features."""
    if config.kind == "backoff":
        return new_backoff(len(data.labels), data.width)
    return build_head(config.kind, **{"classes": len(data.labels), "dim": data.width, **config.overrides})


def train_head(
    config: HeadTraining,
    train: FeatureSet,
    validation: FeatureSet,
    out: Path,
    *,
    imputer: nn.Module | None = None,
    head: nn.Module | None = None,
    resume: bool = False,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> tuple[nn.Module, nn.Module]:
    """(head, imputer) as trained, the best on validation, in eval mode.

    ``head``: weights to start from (fine-tuning); ``imputer``: what fills, default zeros. What is not trained is
    not changed. Ctrl-C and ``resume`` as in ``train_mae``.
    """
    seed_everything(config.seed, deterministic=device == "cpu")
    if int(train.label.min()) < 0:
        raise DataError(f"row {int(train.label.argmin())} of the training windows has no label; leave it out")
    parts = {
        "head": (new_head(config, train) if head is None else deepcopy(head)).to(device),
        "imputer": (Zero() if imputer is None else deepcopy(imputer)).to(device),
    }
    chosen = TRAINABLE[config.train]
    if "imputer" in chosen and not list(parts["imputer"].parameters()):
        raise ConfigError(f"train={config.train} needs an imputer that can learn; give a trained curri-MAE")
    batches = Batches(train, config.batch, config.seed, device, config.lookahead, config.short, config.min_clips)
    total = config.steps or config.epochs * batches.per_epoch
    objective = _Objective(config, parts, train, device)
    rates = {"head": config.lr, "imputer": config.imputer_lr}
    groups = [g | {"lr": rates[n]} for n in chosen for g in parameter_groups([parts[n]], config.weight_decay)]
    optimizer = torch.optim.Adam(groups)
    best = {f"best_{n}": deepcopy(parts[n]) for n in chosen}
    run = Run(out, config, {**{n: parts[n] for n in chosen}, **best}, optimizer, resume=resume, tensorboard=tensorboard)

    with run, stop_requests() as stop_requested:
        while run.step < total:
            loss = _step(objective, optimizer, batches, run.step, run.step * config.epochs // total)
            run.step += 1
            if run.step % config.log_every == 0 or run.step == total:
                run.log(loss=loss)
            if progress is not None:
                progress(run.step, total, loss)
            if run.step % (config.evaluate_every or batches.per_epoch) == 0 or run.step == total:
                _judge(objective, validation, run, chosen)
            if run.step % (config.save_every or batches.per_epoch) == 0 or run.step == total:
                run.save()
            run.stop_if(stop_requested())
    for name in chosen:
        parts[name].load_state_dict(best[f"best_{name}"].state_dict())
    if world()[0] == 0 and "head" in chosen:
        save_head(out, parts["head"], metrics={"validation": run.values.get("best", {})}, labels=list(train.labels))
    return parts["head"].eval(), parts["imputer"].eval()


class _Objective:
    """The loss of a batch, and what a head scores on validation."""

    def __init__(self, config: HeadTraining, parts: Mapping[str, nn.Module], data: FeatureSet, device: str) -> None:
        self.config, self.head, self.imputer, self.device = config, parts["head"], parts["imputer"], device
        self.window = data.length - config.lookahead
        seconds = float(data.notes.get("clip_seconds", 0.4))
        self.sampling = Sampling.parse(config.sampling, length=data.length, epochs=config.epochs, clip_seconds=seconds)
        count = torch.bincount(data.label, minlength=len(data.labels)).clamp(min=1).float()
        self.class_weight = (count.sum() / (len(count) * count)).to(device) if config.balance else None
        # the teacher of consistency is the head as it came; while it learns itself, its own answer without gradient
        self.teacher = self.head if config.train != "imputer" else deepcopy(self.head).eval()
        for name, module in parts.items():
            learns = name in TRAINABLE[config.train]
            module.train(learns)
            module.requires_grad_(learns)

    @property
    def trained(self) -> list[nn.Module]:
        return [getattr(self, name) for name in TRAINABLE[self.config.train]]

    def loss(self, features: Tensor, presence: Tensor, exists: Tensor, hidden: Tensor, label: Tensor) -> Tensor:
        """features (B, L, M, D), presence and hidden (B, L, M), exists (B, L), label (B,) -> ()."""
        c, known = self.config, presence & ~hidden
        if isinstance(self.head, Backoff):
            return _backoff_loss(self.head, features, presence, exists, label)
        learns = "imputer" in TRAINABLE[c.train]
        with nullcontext() if learns else torch.no_grad():
            filled = self.imputer(torch.where(known.unsqueeze(-1), features, 0), known, exists)
        view = (filled.features, known, filled.variance, exists)
        total = features.new_zeros(())
        if c.task:
            total = total + c.task * self._cross_entropy(view, label)
        if c.consistency:
            with torch.no_grad():
                whole = self._logits((features, presence, torch.zeros_like(filled.variance), exists), self.teacher)
            now = self._logits(view, self.head).log_softmax(-1)
            total = total + c.consistency * F.kl_div(now, whole.log_softmax(-1), log_target=True, reduction="batchmean")
        if c.reconstruction:
            asked = hidden & presence & exists.unsqueeze(-1)
            error = (filled.features - features).square().mean(-1)
            mse = torch.where(asked, error, 0).sum(dim=(0, 1)) / asked.sum(dim=(0, 1)).clamp(min=1)
            total = total + c.reconstruction * mse.sum()
        return total

    def _logits(self, view: tuple[Tensor, Tensor, Tensor, Tensor], head: nn.Module) -> Tensor:
        logits: Tensor = head(*(x[:, : self.window] for x in view))
        return logits

    def _cross_entropy(self, view: tuple[Tensor, Tensor, Tensor, Tensor], label: Tensor) -> Tensor:
        """Of the window; of each existing clip by itself where the head votes by clip; where it answers from each
        modality, the mean of their own, each over the windows that have it (MBT)."""
        if hasattr(self.head, "each"):
            return self._of_each(view, label)
        if not hasattr(self.head, "votes"):
            return F.cross_entropy(self._logits(view, self.head), label, self.class_weight)
        features, exists = view[0][:, : self.window], view[3][:, : self.window]
        head: Any = self.head
        votes = head.votes(features)[exists]  # (clips, K)
        return F.cross_entropy(votes, label.unsqueeze(1).expand(exists.shape)[exists], self.class_weight)

    def _of_each(self, view: tuple[Tensor, Tensor, Tensor, Tensor], label: Tensor) -> Tensor:
        head: Any = self.head
        features, presence, _, exists = (x[:, : self.window] for x in view)
        logits, has = head.each(features, presence, exists)  # (B, M, K), (B, M)
        losses = [
            F.cross_entropy(logits[rows, m], label[rows], self.class_weight)
            for m, rows in enumerate(has.unbind(1))
            if rows.any()
        ]
        return torch.stack(losses).mean() if losses else logits.sum() * 0

    @torch.no_grad()
    def score(self, data: FeatureSet, batch: int = 512) -> dict[str, float]:
        """Accuracy, and the loss by which equal accuracies are told apart, under fixed masks of the run's sampling."""
        for module in self.trained:
            module.eval()
        right, losses = 0, 0.0
        features = data.standardised()
        for start in range(0, len(data), batch):
            rows = slice(start, start + batch)
            there = data.exists[rows]
            rng = np.random.Generator(np.random.PCG64([20_000, start]))
            hidden = self.sampling.draw(rng, self.config.epochs - 1, there.numpy())
            h = torch.from_numpy(hidden).to(self.device)
            x, p, e, y = (t[rows].to(self.device) for t in (features, data.presence, data.exists, data.label))
            losses += float(self.loss(x, p, e, h, y)) * len(y)
            right += int((self._answer(x, p & ~h, e).argmax(-1) == y).sum())
        for module in self.trained:
            module.train()
        return {"val_accuracy": right / len(data), "val_loss": losses / len(data)}

    def _answer(self, features: Tensor, known: Tensor, exists: Tensor) -> Tensor:
        if isinstance(self.head, Backoff):
            backoff: Tensor = self.head(features, known, exists)
            return backoff
        filled = self.imputer(torch.where(known.unsqueeze(-1), features, 0), known, exists)
        return self._logits((filled.features, known, filled.variance, exists), self.head)


def _step(objective: _Objective, optimizer: torch.optim.Optimizer, batches: Batches, step: int, epoch: int) -> float:
    """One update; gives the loss, the mean over the processes."""
    rows, rng = batches.indices(step), batches.rng(step)
    exists = batches.existing(rng, rows)
    hidden = batches.to_tensor(objective.sampling.draw(rng, epoch, exists))
    index = batches.to_tensor(rows)
    loss = objective.loss(
        batches.features[index], batches.presence[index], batches.to_tensor(exists), hidden, batches.label[index]
    )
    value = check_finite(mean_over_processes(loss.detach()), epoch=epoch, step=step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(p for module in objective.trained for p in module.parameters())
    optimizer.step()
    return value


def _judge(objective: _Objective, validation: FeatureSet, run: Run, chosen: tuple[str, ...]) -> None:
    """Log the validation score and keep the weights if they are the best so far."""
    found = objective.score(validation)
    run.log(**found)
    rank = [-found["val_accuracy"], found["val_loss"]] if "head" in chosen else [found["val_loss"]]
    if "rank" not in run.values or rank < run.values["rank"]:
        run.values |= {"rank": rank, "best": {**found, "step": run.step}}
        for name in chosen:
            run.modules[f"best_{name}"].load_state_dict(run.modules[name].state_dict())


def _backoff_loss(head: Backoff, features: Tensor, presence: Tensor, exists: Tensor, label: Tensor) -> Tensor:
    """The sum of three cross-entropies, each over the clips that have what its classifier reads."""
    present = presence & exists.unsqueeze(-1)
    inputs = {"both": features.flatten(2), "video": features[:, :, 0], "audio": features[:, :, 1]}
    usable = {"both": present.all(-1), "video": present[..., 0], "audio": present[..., 1]}
    target = label.unsqueeze(1).expand(exists.shape)
    losses = [
        F.cross_entropy(head.classifiers[name](inputs[name][usable[name]]), target[usable[name]])
        for name in inputs
        if usable[name].any()
    ]
    return sum(losses, features.new_zeros(()))
