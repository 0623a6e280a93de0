"""Fine-tuning a classifier of recordings: one loop, top to bottom, with the recipes of ViViT, MTV and their relatives.

A run's folder holds ``config.json`` (resolved), ``log.jsonl``, the checkpoint, and at the end ``model.safetensors``
(with the head), the encoder by itself, as bundles want it (``video.safetensors``, ``audio.safetensors``, or
``encoder.safetensors`` where it takes both), ``classes.json`` and ``metrics.json`` (the validation split). In the log
``unreadable`` counts the epoch's recordings that were replaced by another, and what had left the list before.

Shapes: B batch, T frame, H W pixels, K class.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.batches import Part, micro_batches
from encoders.classifier import build_classifier, encoder_file, encoder_weights, head_names, start_from
from encoders.cost import clip_macs, how_much
from encoders.datasets.balance import balanced_weights
from encoders.datasets.labelled import Instances
from encoders.datasets.labelled_pairs import LabelledPairs, require_both
from encoders.datasets.labelled_sounds import LabelledSounds, require_sound
from encoders.datasets.mixup import mixed, unmixed
from encoders.ema import EMA, EpochMean
from encoders.errors import ConfigError, UsageError
from encoders.labelled_data import open_splits
from encoders.layer_decay import with_head_lr, with_layer_decay
from encoders.multi_view import test
from encoders.objectives import StepTargets, check_run, losses_of
from encoders.processes import wait_for_all
from encoders.readings import MODALITIES, is_joint, prepared, to_device
from encoders.recipes import STOCHASTIC_DEPTH, FinetuneConfig
from encoders.settings import to_dict
from encoders.sgd import SGD
from encoders.starts import carried
from encoders.tasks import LabelTask
from encoders.training import (
    Interrupted,
    Logs,
    Schedule,
    any_process,
    average_buffers,
    average_gradients,
    check_finite,
    constant,
    cosine,
    linear,
    load_checkpoint,
    mean_over_processes,
    multistep,
    parameter_groups,
    restore,
    save_checkpoint,
    save_weights,
    seed_everything,
    snapshot,
    stop_requests,
    world,
    write_json,
)

__all__ = [
    "Progress",
    "clip_and_average",
    "finetune",
    "make_optimizer",
    "make_schedule",
    "micro_batches",
    "train_step",
    "weights_of",
]

Say = Callable[[str], None]
LACKED = ("unreadable", "without_video", "without_audio")
Progress = Callable[[int, int, int, float], None]  # (epoch, batches of it done, batches in it, loss)


@dataclass
class _Run:
    """What a checkpoint holds, and where in the run it is."""

    config: FinetuneConfig
    out: Path
    task: LabelTask
    model: Any
    optimizer: torch.optim.Optimizer
    ema: EMA | EpochMean | None
    weights: np.ndarray | None = None  # of the training samples, where some are read more often
    epoch: int = 0
    batches: int = 0  # of the epoch, done
    step: int = 0
    told: bool = False  # that something cannot be read
    # What the epoch's readings lacked so far, in this process: whole recordings, or one modality.
    lacked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LACKED, 0))

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, **({"ema": self.ema} if self.ema is not None else {})}

    @property
    def best(self) -> Any:
        """The weights that are judged and kept."""
        return self.model if self.ema is None or not int(self.ema.steps) else self.ema.model

    def save(self) -> None:
        """Write the checkpoint; every process must call this, one writes."""
        average_buffers(self.model)
        lacked = self.lacked_by_all()
        if world()[0] == 0:
            values = {"epoch": self.epoch, "batches": self.batches, "step": self.step, **lacked}
            save_checkpoint(self.out, snapshot(self.modules, self.optimizer, {}, values))
        wait_for_all()  # or a faster process might read the older one

    def lacked_by_all(self) -> dict[str, int]:
        """What readings of all processes lacked; every process must call this."""
        device = next(self.model.parameters()).device
        counts = torch.tensor([float(self.lacked[name]) for name in LACKED], device=device)
        sums = (mean_over_processes(counts) * world()[1]).tolist()
        return {name: round(x) for name, x in zip(LACKED, sums, strict=True)}

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        checkpoint = load_checkpoint(self.out)
        restore(checkpoint, self.modules, self.optimizer, {})
        self.epoch, self.batches, self.step = (int(checkpoint.values[k]) for k in ("epoch", "batches", "step"))
        if world()[0] == 0:  # the others' counts are in the first one's
            self.lacked = {k: int(checkpoint.values.get(k, 0)) for k in LACKED}

    def export(self, metrics: dict[str, float]) -> None:
        """The weights by themselves, as bundles and feature extraction want them, and how good they are."""
        config = self.config
        save_weights(self.out / "model.safetensors", self.best.state_dict())
        encoder = encoder_weights(self.best, config.preset, config.encoder)
        # With its own config, so that a bundle made of it sees what it was trained to see.
        own = {k: v for k, v in to_dict(config)["overrides"].items() if k not in STOCHASTIC_DEPTH}
        header = {"preset": config.preset, "config": json.dumps(own)}
        save_weights(self.out / encoder_file(config.preset, config.encoder), encoder, header)
        about = {"split": list(config.validation_splits), "views": config.views}
        write_json(self.out / "metrics.json", {**about, **metrics})


def finetune(
    config: FinetuneConfig,
    out: Path,
    *,
    resume: bool = False,
    init: Path | Sequence[Path] | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
    say: Say = lambda sentence: None,
) -> Path:
    """Train and give the folder of the weights. ``init``: weights (safetensors) or the folder of a run to start from;
    several where each starts a part of the model (`encoders.starts`).

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run, instances, validation = _set_up(config, out, device, resume, init, say)
    steps = len(instances.samples) // config.batch
    total = config.steps or steps * config.epochs
    schedule = make_schedule(config, steps)
    first = world()[0] == 0
    if first:
        write_json(out / "config.json", to_dict(config))
        write_json(out / "classes.json", to_dict(run.task))
    with Logs(out, from_step=run.step, tensorboard=tensorboard, on=first) as logs, stop_requests() as stop_requested:
        while run.step < total:
            parts: list[Part] = []
            for part in _epoch(run, instances):
                parts.append(part)
                _count(run, part, instances, say)
                if len(parts) < config.accumulate:
                    continue
                lr, started = config.lr * schedule(run.step / total), time.perf_counter()
                losses, norm = train_step(run, parts, instances, lr, device)
                run.batches, run.step, parts = run.batches + 1, run.step + 1, []
                if run.step % config.log_every == 0 or run.batches == steps:
                    seconds = time.perf_counter() - started
                    logs.write(run.step, epoch=run.epoch, lr=lr, **losses, gradient_norm=norm, seconds=seconds,
                               **_lacked(run, instances))  # fmt: skip
                if progress is not None:
                    progress(run.epoch, run.batches, steps, losses["loss"])
                if any_process(stop_requested()):
                    run.save()
                    raise Interrupted(f"stopped after {run.step} steps; all is saved, go on with --resume")
                if run.step == total:
                    break
            if run.batches == steps:
                _end_epoch(run)
            if validation is not None and run.epoch % config.eval_every == 0 and run.step < total:
                logs.write(run.step, epoch=run.epoch, **_judged(run, validation, "1x1", device))
            if run.epoch % config.save_every == 0 or run.step == total:
                run.save()
        metrics = {} if validation is None else _judged(run, validation, config.views, device)
        if metrics:
            logs.write(run.step, epoch=run.epoch, **metrics)
    if first:
        run.export(metrics)
    wait_for_all()
    return out


def _end_epoch(run: _Run) -> None:
    """On to the next; where the recipe averages epochs, this one counts."""
    run.epoch, run.batches, run.lacked = run.epoch + 1, 0, dict.fromkeys(LACKED, 0)
    first, last = run.config.average
    if isinstance(run.ema, EpochMean) and first <= run.epoch <= last:
        run.ema.update(run.model)


def _epoch(run: _Run, instances: Instances) -> Iterator[Part]:
    config = run.config
    yield from micro_batches(instances, seed=config.seed, epoch=run.epoch, batch=config.batch, workers=config.workers,
                             accumulate=config.accumulate, skip=run.batches, repeats=config.repeats,
                             weights=run.weights)  # fmt: skip


def _count(run: _Run, part: Part, instances: Instances, say: Say) -> None:
    """What a part's readings lacked; the first recording that was replaced is named."""
    replaced = (part.ids != part.asked).nonzero()[:, 0].tolist()
    if replaced and not run.told:
        run.told = True
        sample = instances.samples[int(part.asked[replaced[0]])]
        say(
            f"{sample.path} cannot be read, and the sample after it is taken instead; the log counts such recordings "
            "as unreadable"
        )
    run.lacked["unreadable"] += len(replaced)
    if not isinstance(part.clips, Tensor) and "presence" in part.clips:
        for modality, there in zip(MODALITIES, part.clips["presence"].sum(0).tolist(), strict=True):
            run.lacked[f"without_{modality}"] += len(part.ids) - there


def _lacked(run: _Run, instances: Instances) -> dict[str, int]:
    """What is logged of it, over all processes; every process must call this."""
    found = run.lacked_by_all()
    named = [name for name in LACKED if name == "unreadable" or is_joint(run.model)]
    return {name: found[name] + (getattr(instances, "lost", 0) if name == "unreadable" else 0) for name in named}


def train_step(
    run: _Run, parts: Sequence[Part], instances: Instances, lr: float, device: str
) -> tuple[dict[str, float], float]:
    """One step on this process's share of a batch, in parts; ``loss`` and what it is the sum of, the gradient's norm.

    A loss that is the task's alone is not named twice. Raises NotFinite before the weights have seen a bad loss.
    """
    config, total = run.config, dict[str, Tensor]()
    run.optimizer.zero_grad(set_to_none=True)
    for place, (ids, clips, _) in enumerate(parts):
        # Chance is a function of the step, so that a resumed run draws what an uninterrupted one draws.
        random = np.random.default_rng([config.seed, run.step, world()[0], place])
        torch.manual_seed(int(random.integers(2**63)))
        clips, targets = unmixed(clips, lambda at: run.task.targets([instances.samples[i] for i in at]), ids)
        x = prepared(run.model, to_device(clips, device))
        x, targets = mixed(x, targets.to(device), config.mixup, config.cutmix, random)
        step = StepTargets(task=run.task, targets=targets, smoothing=config.smoothing, repeats=config.repeats)
        losses = losses_of(run.model, x, step, bf16=config.precision == "bf16")
        loss = torch.stack(list(losses.values())).sum() / len(parts)
        for name, value in [("loss", loss), *((n, v / len(parts)) for n, v in losses.items() if len(losses) > 1)]:
            total[name] = total.get(name, 0) + value.detach()
        check_finite(mean_over_processes(loss.detach()), epoch=run.epoch, step=run.step)
        loss.backward()
    norm = clip_and_average(run.model, config.clip, config.clip_where)
    for group in run.optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)  # encoders.layer_decay
    run.optimizer.step()
    if isinstance(run.ema, EMA):
        run.ema.update(run.model)
    means = mean_over_processes(torch.stack(list(total.values()))).tolist()
    return dict(zip(total, means, strict=True)), norm


def clip_and_average(model: torch.nn.Module, clip: float, where: str) -> float:
    """Gradients clipped to a global norm, averaged over processes, in the order that ``where`` says; the norm before.

    ``process``: each process clips its own, then they are averaged (ViViT's code, a process being a device);
    ``mean``: the average is clipped.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    limit = clip or float("inf")
    if where == "mean":
        average_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if where == "process":
        average_gradients(parameters)
    return float(mean_over_processes(norm))


def _judged(run: _Run, validation: Instances, views: str, device: str) -> dict[str, float]:
    from encoders.datasets.views import views_of

    average_buffers(run.model)
    return test(run.best, run.task, validation, views_of(views), device=device, batch=run.config.eval_batch,
                bf16=run.config.precision == "bf16")  # fmt: skip


# --- before the first step --------------------------------------------------------------------------------------


def _set_up(
    config: FinetuneConfig, out: Path, device: str, resume: bool, init: Path | Sequence[Path] | None, say: Say
) -> tuple[_Run, Instances, Instances | None]:
    """Everything before the first step; contradictions are refused here."""
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    seed_everything(config.seed, deterministic=device == "cpu")
    task, train, held_out = open_splits(config)
    check_batch(config.batch, config.accumulate, len(train.samples))
    make_schedule(config, len(train.samples) // config.batch)
    model = build_classifier(config.preset, len(task.classes), config.encoder)
    started = "fresh" if resume else _start(model, config, init)
    check_run(model, config)
    parameters, count = sum(p.numel() for p in model.parameters()), len(train.samples)
    steps = config.steps or count // config.batch * config.epochs
    with torch.device("meta"):
        macs = clip_macs(build_classifier(config.preset, len(task.classes), config.encoder), model.spec)
    say(
        f"{config.preset}: {parameters / 1e6:.1f} M parameters ({started}), {count} samples of {len(task.classes)} "
        f"classes, {steps} steps of {config.batch}; {how_much(macs, steps * config.batch * config.repeats)}"
    )
    instances = train.open_for(model)
    if isinstance(instances, LabelledPairs):
        require_both(instances)
    elif isinstance(instances, LabelledSounds):
        require_sound(instances)
    if instances.lost:
        say(f"{instances.lost} of {count} samples cannot be read and are left out; the log counts them as unreadable")
    validation = held_out.open_for(model) if held_out is not None else None
    check_batch(config.batch, config.accumulate, len(instances.samples))  # what cannot be decoded is gone
    model = model.to(device).train()
    ema = EMA(model, config.ema) if config.ema else EpochMean(model) if any(config.average) else None
    weights = balanced_weights(task.targets(instances.samples).numpy()) if config.sampling == "balanced" else None
    run = _Run(config, out, task, model, make_optimizer(config, model), ema, weights)
    if resume:
        run.load()
    return run, instances, validation


def _start(model: Any, config: FinetuneConfig, init: Path | Sequence[Path] | None) -> str:
    """What the model starts from, and with these words."""
    starts = [init] if isinstance(init, Path) else list(init or ())
    if not starts:
        return "fresh"
    for one in starts:
        if carried(model, one):
            continue
        if len(starts) > 1:
            raise UsageError(f"{one} is no part that {config.preset} starts from; give one start, or one for each part")
        head = start_from(model, weights_of(one), config.preset, config.encoder)
        return f"{one} with{'' if head else 'out'} its head"
    return f"{' and '.join(map(str, starts))} without its head"


def check_batch(batch: int, accumulate: int, samples: int) -> None:
    """Raises ConfigError unless every process gets equal parts of a batch that the data can fill."""
    processes = world()[1]
    if batch % (processes * accumulate):
        raise ConfigError(
            f"batch {batch} cannot be shared by {processes} processes in {accumulate} parts each; "
            f"use a multiple of {processes * accumulate}"
        )
    if samples < batch:
        raise ConfigError(f"batch {batch} is more than the {samples} samples of the training split; use a smaller one")


def make_optimizer(config: FinetuneConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """As the config says, over all weights that learn."""
    groups = parameter_groups([model], config.weight_decay, decay_vectors=config.optimizer != "adamw")
    groups = with_layer_decay(groups, model, config.layer_decay)
    if config.head_lr != 1:
        groups = with_head_lr(groups, model, head_names(model, config.preset, config.encoder), config.head_lr)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas)
    dtype = torch.bfloat16 if config.momentum_precision == "bf16" else None
    return SGD(groups, lr=config.lr, momentum=config.momentum, momentum_dtype=dtype)


def make_schedule(config: FinetuneConfig, steps: int) -> Schedule:
    """The factor on the learning rate over the share of training done; ``steps`` make an epoch."""
    total = config.steps or steps * config.epochs
    warmup = (config.warmup_steps or config.warmup * steps) / total
    if warmup >= 1 and config.schedule != "constant":
        raise ConfigError(f"the warm-up of {warmup * total:g} steps takes all {total}; shorten it or train longer")
    if config.schedule == "constant":
        return constant()
    if config.schedule == "step":
        ends = range(config.decay_from, ceil(total / steps), config.decay_every)
        rise = config.warmup_every / total if config.warmup_steps else 0.0
        return multistep([epoch * steps / total for epoch in ends], config.decay, warmup, rise)
    return (cosine if config.schedule == "cosine" else linear)(warmup, config.floor)


def weights_of(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from encoders.errors import DataError

    file = path / "model.safetensors" if path.is_dir() else path
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or "it is no whole safetensors file"
        raise DataError(f"{file} cannot be read ({why}); name weights, or the folder of a finished run") from None
