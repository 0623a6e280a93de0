"""Training of curri-MAE: batch, mask, loss, step, log, save; one loop, top to bottom.

Adam with betas (0.95, 0.999), weight decay 5e-7, batch 64, constant learning rate (curri-mae.md d). A run's folder
holds ``config.json``, ``log.jsonl``, a checkpoint, and at the end ``imputer.json`` and ``imputer.safetensors``,
whose variance table was fitted on the validation windows.

Shape legend: B batch, L position, M modality, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.errors import ConfigError
from encoders.settings import pick, to_dict
from encoders.training import (
    average_gradients,
    check_finite,
    mean_over_processes,
    parameter_groups,
    seed_everything,
    stop_requests,
    world,
)
from imputation.baselines import Lerp, ObservedMean, Zero
from imputation.curri_mae import CurriMAEImputer, preset
from imputation.evaluate import fill_error
from imputation.features import FeatureSet
from imputation.residual import BASES, ResidualImputer, new_base
from imputation.run import Batches, Progress, Run, positive
from imputation.sampling import Sampling, paired_hidden
from imputation.stored import save_imputer

__all__ = ["MAETraining", "fit_variance", "train_mae", "validation_error"]


@dataclass(frozen=True, kw_only=True)
class MAETraining:
    """A whole run. Defaults are the paper's fine-tuning for L = 10."""

    preset: str = "curri_mae_small"
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the preset; dim and length follow the features
    base: str = ""  # fill that it starts from, learning only what is left over: gaussian, lerp, observed_mean, hold
    base_options: Mapping[str, Any] = field(default_factory=dict)  # of the base's config
    sampling: str = "curriculum"  # see imputation.sampling: curriculum, k=7, uniform, all, whole, profile=NAME, a+b
    epochs: int = 50
    steps: int = 0  # optimizer steps in all, for equal budgets; 0: epochs x batches. The curriculum stretches to fit
    curriculum_step: int = 5  # epochs per level: 5 for L = 10, 10 for L = 5
    batch: int = 64  # over all processes
    lr: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 5e-7
    lookahead: int = 0  # F: the last positions of a window that may not be there yet
    short: float = 0.0  # share of rows that begin before their stream does
    min_clips: int = 3
    seed: int = 0
    log_every: int = 20  # steps
    evaluate_every: int = 0  # steps; 0: once at the end
    save_every: int = 0  # steps; 0: at every epoch

    def __post_init__(self) -> None:
        positive(self, "epochs", "curriculum_step", "batch", "lr", "min_clips", "log_every")
        if self.base:
            pick(BASES, self.base, "base")
        elif self.base_options:
            raise ConfigError(f"base_options {dict(self.base_options)} belong to no base; name one, such as gaussian")
        for name in ("steps", "lookahead", "evaluate_every", "save_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative")


def train_mae(
    config: MAETraining,
    train: FeatureSet,
    validation: FeatureSet,
    out: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> CurriMAEImputer:
    """Train on standardised features; gives the imputer, on the device, in eval mode.

    ``start``: weights of a CurriMAE to begin from (the paper pre-trains on AudioSet). On Ctrl-C the state is saved
    and Interrupted raised; ``resume`` goes on, on a CPU to the same bits as a run never interrupted.
    """
    seed_everything(config.seed, deterministic=device == "cpu")
    sizes = {"dim": train.width, "length": train.length, **config.overrides}
    imputer = _new(config, sizes, train, start).to(device)
    model = imputer.model
    batches = Batches(train, config.batch, config.seed, device, config.lookahead, config.short, config.min_clips)
    total = config.steps or config.epochs * batches.per_epoch
    seconds = float(train.notes.get("clip_seconds", 0.4))
    sampling = Sampling.parse(config.sampling, length=train.length, epochs=config.epochs,
                              step=config.curriculum_step, clip_seconds=seconds)  # fmt: skip
    groups = parameter_groups([model], config.weight_decay)
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas)
    parts = {"model": model} | ({"base": imputer.base} if isinstance(imputer, ResidualImputer) else {})
    run = Run(out, config, parts, optimizer, resume=resume, tensorboard=tensorboard)

    model.train()
    with run, stop_requests() as stop_requested:
        while run.step < total:
            epoch = run.step * config.epochs // total  # of the curriculum
            loss, mse = _step(imputer, optimizer, batches, sampling, run.step, epoch)
            run.step += 1
            if run.step % config.log_every == 0 or run.step == total:
                run.log(epoch=epoch, loss=loss, mse_video=mse[0], mse_audio=mse[1], lr=config.lr)
            if progress is not None:
                progress(run.step, total, loss)
            if config.evaluate_every and run.step % config.evaluate_every == 0:
                run.log(**validation_error(imputer, validation))
            if run.step % (config.save_every or batches.per_epoch) == 0 or run.step == total:
                run.save()
            run.stop_if(stop_requested())
        imputer.eval()
        fit_variance(imputer, validation)
        found = validation_error(imputer, validation)
        run.log(**found)
    if world()[0] == 0:
        save_imputer(out, imputer, *_made(config, sizes, imputer), metrics=found, steps=total)
    return imputer


def _new(
    config: MAETraining, sizes: Mapping[str, Any], train: FeatureSet, start: Mapping[str, Tensor] | None
) -> CurriMAEImputer:
    """An untrained imputer, with weights to start from, over a base that is fitted first."""
    model = preset(config.preset, **sizes)
    if not config.base:
        imputer = CurriMAEImputer(model)
    else:
        imputer = ResidualImputer(model, new_base(config.base, train, config.base_options))
    if start is not None:
        imputer.model.load_state_dict(dict(start))
    if isinstance(imputer, ResidualImputer):
        imputer.begin_as_base()  # whatever the weights predicted before
    return imputer


def _made(config: MAETraining, sizes: Mapping[str, Any], imputer: CurriMAEImputer) -> tuple[str, dict[str, Any]]:
    """The name and the settings that build this imputer again."""
    if not isinstance(imputer, ResidualImputer):
        return config.preset, dict(sizes)
    base: Any = getattr(imputer.base, "config", None)
    options = {} if base is None else to_dict(base)
    return "residual", {"preset": config.preset, "base": config.base, "base_options": options, **sizes}


def _step(
    imputer: CurriMAEImputer,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    sampling: Sampling,
    step: int,
    epoch: int,
) -> tuple[float, list[float]]:
    """One update; gives the loss and the error of each modality, means over the processes."""
    rows, rng = batches.indices(step), batches.rng(step)
    exists = batches.existing(rng, rows)
    hidden = batches.to_tensor(sampling.draw(rng, epoch, exists))
    index = batches.to_tensor(rows)
    loss = imputer.loss(batches.features[index], hidden, batches.to_tensor(exists), batches.presence[index])
    mean = mean_over_processes(loss.total.detach())
    value = check_finite(mean, epoch=epoch, step=step)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    average_gradients(imputer.model.parameters())
    optimizer.step()
    return value, mean_over_processes(loss.mse).tolist()


def validation_masks(data: FeatureSet, draws: int = 1) -> list[np.ndarray]:
    """Every k from 1 to L - 1, the same masks whenever they are asked for."""
    there = data.exists.numpy()
    return [paired_hidden(data.names, there, k, draw) for k in range(1, data.length) for draw in range(draws)]


def validation_error(imputer: torch.nn.Module, data: FeatureSet) -> dict[str, float]:
    """Mean squared error over all k of the imputer and, beside it, of zero, lerp and observed mean."""
    device = next(iter(imputer.state_dict().values())).device
    features, presence, exists = (x.to(device) for x in (data.standardised(), data.presence, data.exists))
    was_training = imputer.training
    imputer.eval()
    rules = {"": imputer, "zero_": Zero(), "lerp_": Lerp(), "observed_mean_": ObservedMean()}
    totals = {name: torch.zeros(2, dtype=torch.double) for name in rules}
    count = torch.zeros(2, dtype=torch.double)
    for mask in validation_masks(data):
        hidden = torch.from_numpy(mask).to(device)
        for name, rule in rules.items():
            error, filled = fill_error(rule.to(device), features, presence, exists, hidden)
            totals[name] += torch.where(filled, error, 0).double().sum(dim=(0, 1)).cpu()
        count += (hidden & presence).sum(dim=(0, 1)).cpu()
    imputer.train(was_training)
    means = {name: (total / count.clamp(min=1)).tolist() for name, total in totals.items()}
    return {f"{name}mse_{m}": means[name][i] for name in rules for i, m in enumerate(("video", "audio"))}


def fit_variance(imputer: Any, data: FeatureSet, draws: int = 2) -> None:
    """Calibrate an imputer's variance on validation windows, over all k.

    Fits the table by situation, or the scale of the imputer's own estimate where it has one.
    """
    device = next(iter(imputer.state_dict().values())).device
    features, presence, exists = (x.to(device) for x in (data.standardised(), data.presence, data.exists))
    masks = [torch.from_numpy(m).to(device) for m in validation_masks(data, draws)]
    parts = [(*fill_error(imputer, features, presence, exists, hidden), presence & ~hidden) for hidden in masks]
    errors, filled, known = (torch.cat(x) for x in zip(*parts, strict=True))
    if hasattr(imputer, "variance"):
        imputer.variance.fit(errors.cpu(), known.cpu(), filled.cpu())
    if getattr(imputer, "estimates", False):
        imputer.scale.fill_(1.0)
        estimates = torch.cat([_estimate(imputer, features, presence & ~hidden, exists) for hidden in masks])
        for m in range(2):
            chosen = filled[..., m]
            if chosen.any():
                imputer.scale[m] = errors[..., m][chosen].mean() / estimates[..., m][chosen].mean().clamp(min=1e-8)


@torch.inference_mode()
def _estimate(imputer: Any, features: Tensor, known: Tensor, exists: Tensor) -> Tensor:
    """The imputer's own variance, (n, L, M)."""
    parts = zip(features.split(512), known.split(512), exists.split(512), strict=True)
    return torch.cat([imputer(x, p, e).variance for x, p, e in parts])
