"""Pre-training with AVID, then CMA: one loop, top to bottom.

Recipes are those of the paper's public configuration: Adam, constant learning rate, batch over all processes.
A run's folder holds ``config.json`` (resolved), ``log.jsonl``, the checkpoint, and at the end the weights:
``video.safetensors``, ``audio.safetensors`` (the encoders) and ``model.safetensors`` (with projections).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.audiovisual.avid_cma import AVIDCMA, PRESETS, AVIDCMAConfig, Objective, ObjectiveConfig
from encoders.datasets.reader import Pairs, PairSpec, open_pairs, read_or_next
from encoders.datasets.transforms import ClipAugment
from encoders.errors import ConfigError, DataError, LegatoError
from encoders.processes import quiet_worker, wait_for_all
from encoders.settings import from_dict, override, pick, to_dict
from encoders.training import (
    Interrupted,
    Logs,
    any_process,
    average_buffers,
    average_gradients,
    check_finite,
    constant,
    cosine,
    epoch_order,
    load_checkpoint,
    load_weights,
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

__all__ = ["RECIPES", "PretrainConfig", "pretrain", "recipe", "resumed", "train_step"]

MAY_CHANGE = ("epochs", "workers", "log_every", "save_every")  # when a run is resumed


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole run. Defaults are stage AVID on Kinetics at paper scale."""

    data: str  # grid:PATH, java_sed:PATH, folder:PATH, synthetic:N
    splits: tuple[str, ...] = ()  # none: all
    model: AVIDCMAConfig = field(default_factory=AVIDCMAConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: ClipAugment = field(default_factory=ClipAugment)
    offset_seconds: float = 0.5  # how far the picture may lie outside the sound's window
    epochs: int = 30
    clips_per_video: int = 10  # readings of each instance in an epoch
    batch: int = 256  # over all processes
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-5
    schedule: str = "constant"  # constant, cosine
    warmup: float = 0.0  # share of training, cosine only
    resample_every: int = 5  # epochs between searches for agreeing instances (cma)
    precision: str = "fp32"  # fp32, bf16 (activations)
    seed: int = 0
    workers: int = 2  # processes that read data; 0: none but this one
    log_every: int = 10  # steps
    save_every: int = 1  # epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "clips_per_video", "batch", "resample_every", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.lr <= 100:
            raise ConfigError(f"lr {self.lr} must lie in (0, 100]")
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"schedule {self.schedule!r} is unknown; use constant or cosine")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision {self.precision!r} is unknown; use fp32 or bf16")


_AUDIOSET = {"epochs": 40, "clips_per_video": 5, "batch": 160}
_TINY = {"epochs": 4, "clips_per_video": 2, "batch": 8, "lr": 1e-3, "workers": 0, "resample_every": 2}
_FEW = {"objective.negatives": 16, "objective.positives": 4, "objective.within_negatives": 8}
_TALK = {"epochs": 60, "clips_per_video": 7, "batch": 128, "lr": 1e-3, "objective.negatives": 256}
# Preset to (model, changes in stage avid, changes in stage cma).
RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "avid_cma_base": ("avid_cma_base", {}, {"epochs": 20}),
    "avid_cma_base_audioset": (
        "avid_cma_base",
        {**_AUDIOSET, "lr": 5e-4},
        {**_AUDIOSET, "lr": 1e-4, "resample_every": 10},
    ),
    "avid_cma_talk": ("avid_cma_talk", _TALK, {**_TALK, "epochs": 20}),
    "avid_cma_tiny": ("avid_cma_tiny", {**_TINY, **_FEW}, {**_TINY, **_FEW}),
}


def recipe(preset: str, stage: str, data: str, **changes: Any) -> PretrainConfig:
    """The run a preset stands for, with changes (dotted keys reach inside); UsageError on unknown names."""
    model, avid, cma = pick(RECIPES, preset, "preset")
    start = PretrainConfig(data=data, model=PRESETS[model], objective=ObjectiveConfig(stage=stage))
    config: PretrainConfig = override(override(start, cma if stage == "cma" else avid), changes)
    return config


def resumed(out: Path, **changes: Any) -> PretrainConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    try:
        before = from_dict(PretrainConfig, json.loads((out / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{out} holds no run to resume ({why}); leave out --resume to start anew") from None
    after: PretrainConfig = override(before, changes)
    for name, value in to_dict(after).items():
        if name not in MAY_CHANGE and value != to_dict(before)[name]:
            raise ConfigError(f"{name} of the run in {out} is fixed; leave it, or start anew in another --out")
    if after.schedule != "constant" and after.epochs != before.epochs:
        raise ConfigError(f"epochs {after.epochs} would bend the {after.schedule} schedule; keep {before.epochs}")
    return after


class _Readings(torch.utils.data.Dataset[tuple[int, Tensor, Tensor]]):
    """(instance, epoch, place in the epoch) to one reading; the same whoever reads it, and whenever."""

    def __init__(self, pairs: Pairs, seed: int) -> None:
        self.pairs, self.seed = pairs, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, Tensor, Tensor]:
        index, epoch, place = key
        random = np.random.default_rng([self.seed, epoch, place])
        index, video, audio = read_or_next(self.pairs, index, random)
        return index, torch.from_numpy(video), torch.from_numpy(audio)


def _batches(config: PretrainConfig, pairs: Pairs, epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of an epoch's batches, from batch ``skip`` on; an incomplete last one is left out."""
    rank, processes = world()
    share = config.batch // processes
    order = epoch_order(config.seed, epoch, len(pairs), config.clips_per_video)
    keys = [
        [(int(order[p]), epoch, p) for p in range(start + rank * share, start + (rank + 1) * share)]
        for start in range(skip * config.batch, len(order) - config.batch + 1, config.batch)
    ]
    loader = torch.utils.data.DataLoader(
        _Readings(pairs, config.seed),
        batch_sampler=keys,
        num_workers=config.workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would draw from the global one, and resuming would differ
    )
    yield from loader


@dataclass
class _Run:
    """What a checkpoint holds, and where in the run it is."""

    config: PretrainConfig
    out: Path
    model: AVIDCMA
    objective: Objective
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of the negatives
    epoch: int = 0
    batches: int = 0  # of the epoch, done
    step: int = 0

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "objective": self.objective}

    def save(self) -> None:
        """Write the checkpoint; every process must call this, one writes."""
        average_buffers(self.model)
        if world()[0] == 0:
            values = {"epoch": self.epoch, "batches": self.batches, "step": self.step}
            save_checkpoint(self.out, snapshot(self.modules, self.optimizer, {"negatives": self.generator}, values))
        wait_for_all()  # or a faster process might read the older one

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        checkpoint = load_checkpoint(self.out)
        self.objective.expect_positives()
        restore(checkpoint, self.modules, self.optimizer, {"negatives": self.generator})
        self.epoch, self.batches, self.step = (int(checkpoint.values[k]) for k in ("epoch", "batches", "step"))

    def start_from(self, stage_one: Path) -> None:
        """Stage 2 takes over stage 1's weights, memory and partition constant."""
        checkpoint = load_checkpoint(stage_one)
        load_weights(self.model, checkpoint.part("model"), what=f"the model in {stage_one}")
        self.objective.continue_from(checkpoint.part("objective"))

    def export(self) -> None:
        """The weights by themselves, as bundles and feature extraction want them."""
        for name, module in (
            ("model", self.model),
            ("video", self.model.video_model),
            ("audio", self.model.audio_model),
        ):
            save_weights(self.out / f"{name}.safetensors", module.state_dict())


Progress = Callable[[int, int, int, float], None]  # (epoch, batches of it done, batches in it, loss)


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    stage_one: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train and give the folder of the weights. ``stage_one``: the run whose model and memory stage cma starts from.

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run, pairs = _set_up(config, out, device, resume, stage_one)
    steps = len(pairs) * config.clips_per_video // config.batch
    schedule = constant() if config.schedule == "constant" else cosine(config.warmup)
    first = world()[0] == 0
    if first:
        write_json(out / "config.json", to_dict(config))
    with Logs(out, from_step=run.step, tensorboard=tensorboard, on=first) as logs, stop_requests() as stop_requested:
        while run.epoch < config.epochs:
            if _resampling_is_due(run):
                run.objective.resample()
            for batch in _batches(config, pairs, run.epoch, run.batches):
                lr = config.lr * schedule(run.step / (steps * config.epochs))
                losses = train_step(run, [x.to(device, non_blocking=True) for x in batch], lr)
                run.batches, run.step = run.batches + 1, run.step + 1
                if run.step % config.log_every == 0 or run.batches == steps:
                    logs.write(run.step, epoch=run.epoch, lr=lr, **losses)
                if progress is not None:
                    progress(run.epoch, run.batches, steps, losses["loss"])
                if any_process(stop_requested()):
                    run.save()
                    raise Interrupted(f"stopped after {run.step} steps; all is saved, go on with --resume")
            run.epoch, run.batches = run.epoch + 1, 0
            if run.epoch % config.save_every == 0 or run.epoch == config.epochs:
                run.save()
    if first:
        run.export()
    return out


def _resampling_is_due(run: _Run) -> bool:
    """At the beginning of every so-many epochs; the first follows the search that stage cma starts with."""
    due = run.epoch % run.config.resample_every == 0 < run.epoch
    return run.config.objective.stage == "cma" and due and run.batches == 0


def train_step(run: _Run, batch: Sequence[Tensor], lr: float) -> dict[str, float]:
    """One step on (ids, video, audio), this process's share of the batch; gives the losses, means over processes.

    Raises NotFinite before weights or memory have seen a bad loss.
    """
    ids, video, audio = batch
    bf16 = run.config.precision == "bf16"
    with torch.autocast(video.device.type, torch.bfloat16) if bf16 else nullcontext():
        v, a = run.model(video, audio)
    losses = run.objective(v, a, ids, run.generator)
    means = {name: mean_over_processes(loss.detach()) for name, loss in losses.items()}
    check_finite(means["loss"], epoch=run.epoch, step=run.step)
    run.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    average_gradients(run.model.parameters())
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.objective.update(ids, v, a)
    return {name: float(value) for name, value in means.items()}


def _set_up(config: PretrainConfig, out: Path, device: str, resume: bool, stage_one: Path | None) -> tuple[_Run, Pairs]:
    """Everything before the first step; contradictions are refused here."""
    if not resume and config.objective.stage == "cma" and stage_one is None:
        raise ConfigError("stage cma starts from a run of stage avid; name its folder with --init")
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    generator = seed_everything(config.seed, deterministic=device == "cpu")
    model = AVIDCMA(config.model)
    pairs = _open(config, model)
    _check_batch(config, len(pairs))
    objective = Objective(config.objective, len(pairs), config.model.projection[-1], generator).to(device)
    model = model.to(device).train()
    groups = parameter_groups([model], config.weight_decay)
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas)
    run = _Run(config, out, model, objective, optimizer, generator)
    if resume:
        run.load()
    elif stage_one is not None:
        run.start_from(stage_one)
    return run, pairs


def _open(config: PretrainConfig, model: AVIDCMA) -> Pairs:
    spec = PairSpec(
        video=model.video_model.spec,
        video_seconds=model.video_model.clip_seconds,
        audio=model.audio_model.spec,
        audio_seconds=model.audio_model.clip_seconds,
    )
    return open_pairs(
        config.data,
        spec,
        splits=config.splits,
        augment=config.augment,
        offset_seconds=config.offset_seconds,
        seed=config.seed,
    )


def _check_batch(config: PretrainConfig, instances: int) -> None:
    processes, readings = world()[1], instances * config.clips_per_video
    if config.batch % processes:
        raise ConfigError(f"batch {config.batch} cannot be shared by {processes} processes; use a multiple of them")
    if readings < config.batch:
        raise ConfigError(
            f"batch {config.batch} is more than the {readings} readings of an epoch; "
            "use a smaller batch or more clips_per_video"
        )
