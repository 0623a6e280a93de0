"""Co-training one model on several tasks: one loop, top to bottom; every step is a batch of one task.

The order of tasks is a pure function of the step (`cotraining`), and so is what each batch holds, so a run resumes
anywhere to the same bits. One optimiser serves all tasks: a head whose task is not drawn has a zero gradient, and its
momentum goes on, as in the public code.

A run's folder holds ``config.json``, ``log.jsonl``, the checkpoint, and at the end ``model.safetensors`` (with heads),
``encoder.safetensors`` (without), ``classes.json`` and ``metrics.json`` by task.

Shapes: B batch, K class.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.audio.log_mel import FRONTS
from encoders.audiovisual.polyvit import PolyViT, PolyViTConfig, TaskHead
from encoders.checkpoint import load_weights
from encoders.cotrain_recipes import FIRST_WARMUP, CotrainConfig, TaskRun, resumed, run_of
from encoders.cotraining import Plan, Task, Turn
from encoders.datasets.corpus import open_corpus
from encoders.datasets.labelled import Instances, LabelledClips, Look, train_or_next
from encoders.datasets.labelled_sounds import LabelledSounds
from encoders.datasets.mixup import mixup
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling, views_of
from encoders.errors import ConfigError
from encoders.finetune import clip_and_average, weights_of
from encoders.labelled_data import face_cut
from encoders.multi_view import test
from encoders.processes import quiet_worker, wait_for_all
from encoders.registry import config_of
from encoders.settings import to_dict
from encoders.sgd import SGD
from encoders.tasks import LabelTask, task_of
from encoders.training import (
    Interrupted,
    Logs,
    any_process,
    check_finite,
    cosine,
    epoch_order,
    load_checkpoint,
    mean_over_processes,
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

__all__ = ["OneTask", "cotrain", "resumed", "run_of", "test_run"]

Progress = Callable[[int, int, int, float], None]  # (0, steps done, steps, loss)


class OneTask(nn.Module):
    """A co-trained model as one task sees it: clips to input, input to logits."""

    def __init__(self, model: PolyViT, head: TaskHead) -> None:
        super().__init__()
        self.model, self.head = model, head

    def prepare(self, clips: Tensor) -> Tensor:
        """uint8 pictures, or spectrograms (B, T, F), to the tokenizer's input."""
        return self.heard(clips) if self.head.modality == "audio" else self.model.prepare(clips, self.head.modality)

    def heard(self, spectrograms: Tensor) -> Tensor:
        """Spectrograms (B, T, F) as the tokenizer takes them, three times."""
        return spectrograms[:, None].expand(-1, 3, -1, -1)

    def forward(self, x: Tensor) -> Tensor:
        """The tokenizer's input to logits (B, K)."""
        return self.model(x, self.head.name)


@dataclass
class _Task:
    """A task with its data."""

    run: TaskRun
    label: LabelTask
    train: Sequence[Sample]
    validation: Sequence[Sample]
    instances: Any = None  # Instances, once opened

    @property
    def per_epoch(self) -> int:
        return len(self.train) // self.run.batch

    @property
    def steps(self) -> int:
        return self.run.steps or self.run.epochs * self.per_epoch

    def keys(self, place: int, turn: Turn, seed: int) -> list[tuple[int, int, int, int]]:
        """This process's share of the task's batch: (task, sample, epoch, place in the epoch)."""
        rank, processes = world()
        epoch, batch = divmod(turn.batch, self.per_epoch)
        order = _order(seed + place, epoch, len(self.train))
        share = self.run.batch // processes
        first = batch * self.run.batch + rank * share
        return [(place, int(order[p]), epoch, p) for p in range(first, first + share)]


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """`epoch_order`, remembering the last few: consecutive batches share it."""
    key = (seed, epoch, size)
    if key not in _orders:
        if len(_orders) > 32:
            _orders.clear()
        _orders[key] = epoch_order(seed, epoch, size)
    return _orders[key]


class _Readings(torch.utils.data.Dataset[tuple[int, int, Tensor, int]]):
    """(task, sample, epoch, place) to (task, sample read, clip, sample); the same whoever reads it, and whenever."""

    def __init__(self, instances: Sequence[Instances], seed: int) -> None:
        self.instances, self.seed = instances, seed

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[int, int, Tensor, int]:
        task, asked, epoch, place = key
        random = np.random.default_rng([self.seed, task, epoch, place])
        index, clip = train_or_next(self.instances[task], asked, random)
        return task, index, torch.from_numpy(np.ascontiguousarray(clip)), asked


class _Keys:
    """The keys of every batch from a step on, drawn as they are wanted."""

    def __init__(self, plan: Plan, tasks: Sequence[_Task], seed: int, step: int) -> None:
        self.plan, self.tasks, self.seed, self.step = plan, tasks, seed, step

    def __iter__(self) -> Iterator[list[tuple[int, int, int, int]]]:
        for step in range(self.step, len(self.plan)):
            for turn in self.plan[step].turns:
                yield self.tasks[turn.task].keys(turn.task, turn, self.seed)


@dataclass
class _Run:
    """What a checkpoint holds, and where in the run it is."""

    config: CotrainConfig
    out: Path
    tasks: Sequence[_Task]
    plan: Plan
    model: PolyViT
    optimizer: torch.optim.Optimizer
    step: int = 0
    unreadable: int = 0  # samples of this process that were replaced by another

    def save(self) -> None:
        """Write the checkpoint; every process must call this, one writes."""
        if world()[0] == 0:
            values = {"epoch": 0, "step": self.step}
            save_checkpoint(self.out, snapshot({"model": self.model}, self.optimizer, {}, values))
        wait_for_all()

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        checkpoint = load_checkpoint(self.out)
        restore(checkpoint, {"model": self.model}, self.optimizer, {})
        self.step = int(checkpoint.values["step"])

    def export(self, metrics: dict[str, dict[str, float]]) -> None:
        """The weights by themselves, and how good they are."""
        weights = self.model.state_dict()
        save_weights(self.out / "model.safetensors", weights)
        trunk = {k: v for k, v in weights.items() if not k.startswith("heads.")}
        save_weights(self.out / "encoder.safetensors", trunk)
        write_json(self.out / "metrics.json", metrics)


def cotrain(
    config: CotrainConfig,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Train on all tasks and give the folder of the weights; ``init`` are weights of the trunk to start from.

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run = _set_up(config, out, device, resume, init, say)
    total, schedule = len(run.plan), cosine(_warmup(run.tasks) / len(run.plan))
    first = world()[0] == 0
    if first:
        write_json(out / "config.json", to_dict(config))
        write_json(out / "classes.json", {task.run.name: to_dict(task.label) for task in run.tasks})
    batches = iter(_loader(run))
    with Logs(out, from_step=run.step, tensorboard=tensorboard, on=first) as logs, stop_requests() as stop_requested:
        while run.step < total:
            step = run.plan[run.step]
            lr = step.lr * schedule(run.step / total)
            losses = train_step(run, [(turn, _read(run, turn, next(batches), say)) for turn in step.turns], lr, device)
            run.step += 1
            loss = sum(losses.values()) / len(losses)
            if run.step % config.log_every == 0 or run.step == total:
                parts = {f"loss_{name}": value for name, value in losses.items()}
                logs.write(run.step, lr=lr, loss=loss, unreadable=run.unreadable, **parts)
            if progress is not None:
                progress(0, run.step, total, loss)
            if any_process(stop_requested()):
                run.save()
                raise Interrupted(f"stopped after {run.step} steps; all is saved, go on with --resume")
            if run.step % config.save_every == 0 or run.step == total:
                run.save()
        metrics = {task.run.name: _judged(run, task, device) for task in run.tasks if task.validation}
        for name, values in metrics.items():
            logs.write(run.step, **{f"{name}_{key}": value for key, value in values.items()})
    if first:
        run.export(metrics)
    wait_for_all()
    return out


def _read(run: _Run, turn: Turn, batch: Sequence[Tensor], say: Callable[[str], None]) -> Sequence[Tensor]:
    """A batch, what it lacked counted: the first sample that was replaced is named."""
    _, ids, _, asked = batch
    replaced = (ids != asked).nonzero()[:, 0].tolist()
    if replaced and not run.unreadable:
        sample = run.tasks[turn.task].instances.samples[int(asked[replaced[0]])]
        say(
            f"{sample.path} cannot be read, and the sample after it is taken instead; the log counts such recordings "
            "as unreadable"
        )
    run.unreadable += len(replaced)
    return batch


def train_step(
    run: _Run, turns: Sequence[tuple[Turn, Sequence[Tensor]]], lr: float, device: str
) -> dict[str, float]:
    """One update from one batch, or one of every task; the losses by task, means over processes.

    Raises NotFinite before the weights have seen a bad loss.
    """
    config, losses = run.config, {}
    sums: list[Tensor] | None = None
    for place, (turn, (_, ids, clips, _)) in enumerate(turns):
        task = run.tasks[turn.task]
        random = np.random.default_rng([config.seed, run.step, world()[0], place])
        torch.manual_seed(int(random.integers(2**63)))
        run.optimizer.zero_grad(set_to_none=True)
        loss = _loss(run, task, ids, clips.to(device, non_blocking=True), random, device)
        mean = mean_over_processes(loss.detach())
        check_finite(mean, epoch=0, step=run.step)
        loss.backward()
        for p in run.model.parameters():  # other tasks' heads: zero, so that their momentum goes on
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        clip_and_average(run.model, config.clip, task.run.clip_where)
        losses[task.run.name] = float(mean)
        if len(turns) > 1:
            weighed = [p.grad * turn.weight for p in run.model.parameters() if p.grad is not None]
            sums = weighed if sums is None else [a.add_(b) for a, b in zip(sums, weighed, strict=True)]
    for p, gradient in zip(run.model.parameters(), sums or (), strict=False):
        p.grad = gradient
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    return losses


def _loss(run: _Run, task: _Task, ids: Tensor, clips: Tensor, random: np.random.Generator, device: str) -> Tensor:
    model = OneTask(run.model, run.model.task(task.run.name))
    targets = task.label.targets([task.instances.samples[i] for i in ids.tolist()]).to(device)
    x, targets = mixup(model.prepare(clips), targets, task.run.mixup, random)
    with torch.autocast(x.device.type, torch.bfloat16) if run.config.precision == "bf16" else nullcontext():
        logits = model(x)
    return task.label.compute_loss(logits, targets, task.run.smoothing)


def _judged(run: _Run, task: _Task, device: str) -> dict[str, float]:
    model = OneTask(run.model, run.model.task(task.run.name))
    held_out = _open(run.config, task.run, task.validation, run.model.config)
    return test(model, task.label, held_out, views_of(task.run.views), device=device, batch=run.config.eval_batch,
                bf16=run.config.precision == "bf16")  # fmt: skip


def _loader(run: _Run) -> Any:
    readings = _Readings([task.instances for task in run.tasks], run.config.seed)
    return torch.utils.data.DataLoader(
        readings,
        batch_sampler=_Keys(run.plan, run.tasks, run.config.seed, run.step),
        num_workers=run.config.workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def test_run(
    folder: Path, *, splits: Sequence[str] = (), views: str = "", device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """The measures of a finished run by task, on its validation splits and views or on others."""
    config = resumed(folder)
    tasks = [
        replace(t, validation_splits=tuple(splits) or t.validation_splits, views=views or t.views) for t in config.tasks
    ]
    config = replace(config, tasks=tuple(tasks), cache="none")
    listed = [_listed(config, task) for task in config.tasks]
    model = _model(config, listed)
    load_weights(model, weights_of(folder), what=f"the model in {folder}")
    plan = Plan(config.plan, [Task(name=t.run.name, steps=max(1, t.steps)) for t in listed])
    run = _Run(config, folder, listed, plan, model.to(device).eval(), _optimizer(config, model))
    return {task.run.name: _judged(run, task, device) for task in listed if task.validation}


# --- before the first step --------------------------------------------------------------------------------------


def _set_up(
    config: CotrainConfig, out: Path, device: str, resume: bool, init: Path | None, say: Callable[[str], None]
) -> _Run:
    """Everything before the first step; contradictions are refused here."""
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    base = config_of(config.preset, **config.overrides)
    if not isinstance(base, PolyViTConfig):
        raise ConfigError(f"preset {config.preset} learns one task; co-train a polyvit preset")
    tasks = [_listed(config, task) for task in config.tasks]
    plan = Plan(config.plan, [Task(name=t.run.name, steps=t.steps, lr=t.run.lr) for t in tasks])
    if _warmup(tasks) >= len(plan):
        raise ConfigError(f"the warm-up of {_warmup(tasks):g} steps takes all {len(plan)}; shorten it or train longer")
    seed_everything(config.seed, deterministic=device == "cpu")
    model = _model(config, tasks)
    if init is not None and not resume:
        _start(model, weights_of(init))
    say(f"{config.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(plan)} steps: "
        + ", ".join(f"{t.run.name} {t.steps} of {t.run.batch}" for t in tasks))  # fmt: skip
    for task in tasks:
        task.instances = _open(config, task.run, task.train, base)
        task.train = task.instances.samples  # what cannot be decoded is gone
        _check_batch(task.run, len(task.train))
    model = model.to(device).train()
    run = _Run(config, out, tasks, plan, model, _optimizer(config, model))
    if resume:
        run.load()
    return run


def _model(config: CotrainConfig, tasks: Sequence[_Task]) -> PolyViT:
    losses: Any = {t.run.name: t.label.loss for t in tasks}  # which a head refuses where it has no such
    heads = tuple(
        TaskHead(name=t.run.name, modality=t.run.modality, classes=len(t.label.classes), loss=losses[t.run.name],
                 stochastic_depth=t.run.stochastic_depth)
        for t in tasks
    )  # fmt: skip
    return PolyViT(replace(config_of(config.preset, **config.overrides), tasks=heads))


def _listed(config: CotrainConfig, task: TaskRun) -> _Task:
    """A task's samples and classes, checked."""
    train = open_corpus(task.data, splits=task.train_splits, skip_bad=config.skip_bad)
    label = task_of(train, task.kind, task.loss)
    held_out: Sequence[Sample] = ()
    if task.validation_splits:
        held_out = open_corpus(task.data, splits=task.validation_splits, skip_bad=config.skip_bad).samples
    for sample in (*train.samples, *held_out):
        label.places(sample)
    _check_batch(task, len(train.samples))
    return _Task(task, label, train.samples, held_out)


def _check_batch(task: TaskRun, samples: int) -> None:
    processes = world()[1]
    if task.batch % processes:
        raise ConfigError(
            f"batch {task.batch} of task {task.name} cannot be shared by {processes} processes; use a multiple of them"
        )
    if samples < task.batch:
        raise ConfigError(f"batch {task.batch} of task {task.name} is more than its {samples} samples; use less")


def _open(config: CotrainConfig, task: TaskRun, samples: Sequence[Sample], model: PolyViTConfig) -> Any:
    """The samples as the tokenizer of the task's modality takes them."""
    if task.modality not in model.inputs:
        raise ConfigError(f"{config.preset} has no tokenizer for {task.modality}, which task {task.name} needs")
    opened: LabelledSounds | LabelledClips
    if task.modality == "audio":
        part = model.audio
        assert part is not None, "looked up above"
        if not part.front:
            raise ConfigError(f"{config.preset} takes spectrograms but task {task.name} brings sound; set audio.front")
        front = FRONTS[part.front]
        opened = LabelledSounds(samples, part.clip_seconds, front.sample_rate, front, task.spec_augment)
    else:
        spec: Any = model.inputs[task.modality].spec
        short_side = max(spec.size, round(spec.size / spec.crop_share))
        face = face_cut(task.face, task.name, short_side / spec.size) if spec.region == "face" else None
        look = Look(size=spec.size, short_side=short_side, pixel_format=spec.pixel_format, box=task.box, face=face)
        sampling = ClipSampling(frames=spec.frames, stride=1 if spec.frames == 1 else task.stride)
        opened = LabelledClips(samples, sampling, look, task.augment)
    if config.cache == "memory":
        opened.keep(config.cache_gb)
    return opened


def _warmup(tasks: Sequence[_Task]) -> float:
    """Steps: one warm-up for all image tasks (of a single one its own), 2.5 epochs for each of the others."""
    images = [t.run.warmup_steps for t in tasks if t.run.modality == "image"]
    others = [t.run.warmup_steps or t.run.warmup * t.per_epoch for t in tasks if t.run.modality != "image"]
    return (min(FIRST_WARMUP, max(images)) if images else 0) + sum(others)


def _start(model: PolyViT, weights: dict[str, Tensor]) -> None:
    """Weights of the trunk into the model; heads stay new, unless they came along and fit."""
    own = model.state_dict()
    heads = {k: v for k, v in own.items() if k.startswith("heads.")}
    brought = {k: v for k, v in weights.items() if k in heads and heads[k].shape == v.shape}
    trunk = {k: v for k, v in weights.items() if not k.startswith("heads.")}
    load_weights(model, {**heads, **brought, **trunk}, what="the weights to start from")


def _optimizer(config: CotrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    groups = parameter_groups([model], config.weight_decay, decay_vectors=config.optimizer == "sgd")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas)
    dtype = torch.bfloat16 if config.momentum_precision == "bf16" else None
    return SGD(groups, lr=0.0, momentum=config.momentum, momentum_dtype=dtype)
