"""Masked pre-training of AV-MAE and of its baselines of one modality: one loop, top to bottom.

Georgescu et al., "Audiovisual Masked Autoencoders" (ICCV 2023), with the values of google-research/scenic; recipes are
in `encoders.recipe_tables.masked`. CAV-MAE goes through the same loop (`encoders.pretrain_cav_mae`): what differs is
what a run's config says. A run's folder holds ``config.json`` (resolved), ``log.jsonl``, the checkpoint, and at the end
``model.safetensors`` (with the decoder) and ``encoder.safetensors``, from which a bundle serves or an MBT is
fine-tuned (``--init``).

B batch, T frame, H W pixels, U mel frame, F mel bin, N token.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from encoders.audiovisual.av_mae import MODALITIES, AVMAEConfig
from encoders.audiovisual.av_mae_decoder import DecoderConfig, MaskedAutoencoder, Masks, ObjectiveConfig, draw_masks
from encoders.batches import Part, micro_batches
from encoders.datasets.labelled import Instances
from encoders.datasets.labelled_pairs import require_both
from encoders.datasets.labelled_sounds import LabelledSounds, require_sound
from encoders.datasets.unlabelled import BothPairs, Reading, open_readings
from encoders.errors import ConfigError, DataError, LegatoError
from encoders.processes import wait_for_all
from encoders.recipe_tables.masked import CHOICES, DECODERS, RECIPES
from encoders.registry import config_of
from encoders.settings import from_dict, override, pick, to_dict
from encoders.training import (
    Interrupted,
    Logs,
    Schedule,
    any_process,
    average_gradients,
    check_finite,
    cosine,
    load_checkpoint,
    mean_over_processes,
    restore,
    save_checkpoint,
    save_weights,
    seed_everything,
    snapshot,
    stop_requests,
    world,
    write_json,
)

__all__ = ["AVMAERun", "PretrainConfig", "open_instances", "pretrain", "recipe", "resumed", "train_step"]

Say = Callable[[str], None]
Progress = Callable[[int, int, int, float], None]  # (epoch, batches of it done, batches in it, loss)
MAY_CHANGE = ("workers", "log_every", "save_every", "cache", "cache_gb")  # when a run is resumed


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ABC):
    """A whole run; what is learned, and how, a family of models adds. Defaults are AV-MAE's on VGGSound."""

    preset: str  # of the registry
    data: str  # vggsound:PATH, folder:PATH, synthetic:N
    recipe: str = ""  # where the values come from
    splits: tuple[str, ...] = ()  # none: all
    skip_bad: bool = True  # leave recordings out whose file is missing
    reading: Reading = field(default_factory=Reading)
    epochs: int = 400
    steps: int = 0  # optimizer steps in all, instead of epochs; 0: as many epochs
    batch: int = 512  # over all processes
    accumulate: int = 1  # parts of a process's share that go through the network one after another
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # of kernels: the weights of linear layers and convolutions, no others
    warmup: float = 4.0  # epochs; then half a cosine down to 0
    clip: float = 0.0  # global norm of the gradient; 0: none
    precision: Literal["fp32", "bf16"] = "fp32"  # of activations
    seed: int = 0
    cache: Literal["none", "memory"] = "none"  # memory: decode every recording once, for small data
    cache_gb: float = 4.0
    workers: int = 2  # processes that read data; 0: none but this one
    log_every: int = 10  # steps
    save_every: int = 1  # epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("steps", "warmup", "weight_decay", "clip", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative; use 0 for none")
        if not 0 < self.lr <= 100:
            raise ConfigError(f"lr {self.lr} must lie in (0, 100]")

    @property
    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What is read of a recording: ``video`` and ``audio``, or one of them."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What is trained, in a few words."""

    @abstractmethod
    def build(self) -> Any:
        """The model: of what `prepared` gives and masks, `forward` makes the losses, ``loss`` among them."""

    def begin(self, say: Say) -> Any:
        """The model as it is before the first step; what there is to say of that is said."""
        return self.build()

    @abstractmethod
    def masks(self, generator: torch.Generator) -> Masks:
        """What is hidden of a whole batch."""

    @abstractmethod
    def prepared(self, model: Any, readings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Readings by modality to what the model takes."""

    @abstractmethod
    def encoder_weights(self, model: Any) -> dict[str, Tensor]:
        """What is left when the run is over."""

    @abstractmethod
    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Over all weights that learn."""

    def schedule(self, steps: int, total: int) -> Schedule:
        """The factor on the learning rate over the share of ``total`` steps done; ``steps`` make an epoch."""
        return cosine(self.warmup * steps / total)


@dataclass(frozen=True, kw_only=True)
class AVMAERun(PretrainConfig):
    """A whole run of AV-MAE."""

    model: AVMAEConfig = field(default_factory=AVMAEConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @property
    def inputs(self) -> dict[str, Any]:
        return dict(self.model.inputs)

    @property
    def kind(self) -> str:
        return f"{self.model.encoder} encoder, {self.decoder.kind} decoder"

    def build(self) -> MaskedAutoencoder:
        return MaskedAutoencoder(self.model, self.decoder, self.objective)

    def masks(self, generator: torch.Generator) -> Masks:
        return draw_masks(self.model.counts, self.objective, self.batch, generator)

    def prepared(self, model: Any, readings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pictures (B, 3, T, H, W), spectrograms (B, 1, U, F)."""
        return {m: x[:, None] if m == "audio" else model.encoder.prepare(x, m) for m, x in readings.items()}

    def encoder_weights(self, model: Any) -> dict[str, Tensor]:
        return dict(model.encoder.state_dict())

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam whose decay is apart from the gradient, of kernels alone: not of biases, norms, or mask tokens."""
        kernels = [p for name, p in model.named_parameters() if name.endswith(".weight") and p.ndim > 1]
        known = {id(p) for p in kernels}
        others = [p for p in model.parameters() if id(p) not in known]
        groups = [{"params": kernels, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)


def recipe(preset: str, data: str, *, name: str = "", **changes: Any) -> AVMAERun:
    """The run that a preset on a dataset stands for, with changes (dotted keys reach inside).

    ``name`` asks for one of RECIPES. What is drawn follows the model's modalities. Raises UsageError on unknown names,
    ConfigError on contradictions.
    """
    name = name or _recipe_name(preset, data)
    values = pick(RECIPES, name, "recipe")
    model = config_of(preset)
    if not isinstance(model, AVMAEConfig):
        raise ConfigError(f"preset {preset} is no masked autoencoder; name one such as av_mae_tiny")
    size = next((size for beginning, size in DECODERS.items() if preset.startswith(beginning)), {})
    # A shared encoder keeps modalities apart, so that its decoder is the modality's own (section 3.2).
    changes = {**values, **changes}
    fusion = changes.get("model.encoder", model.encoder)
    decoder = DecoderConfig(kind="separate" if fusion == "shared" else "shared", **size)
    start = AVMAERun(preset=preset, data=data, recipe=name, model=model, decoder=decoder)
    absent = [m for m in MODALITIES if changes.get(f"model.{m}", "") in (None, "null", "None") or m not in model.inputs]
    changes = {k: v for k, v in changes.items() if not any(k.startswith(f"model.{m}.") for m in absent)}
    if absent:
        changes = {"objective.targets": tuple(m for m in MODALITIES if m not in absent), "model.encoder": "separate",
                   **changes}  # fmt: skip
    config: AVMAERun = override(start, changes)
    _check(config)
    return config


def _recipe_name(preset: str, data: str) -> str:
    dataset = data.partition(":")[0]
    for wanted in (dataset, ""):
        found = [begin for begin, of in CHOICES if of == wanted and (preset == begin or preset.startswith(f"{begin}_"))]
        if found:
            return CHOICES[max(found, key=len), wanted]
    return "av_mae_vggsound"


def _check(config: PretrainConfig) -> None:
    """Raises ConfigError on models that cannot be built, before anything is read."""
    with torch.device("meta"):
        config.build()


def resumed(out: Path, family: type[PretrainConfig] = AVMAERun, **changes: Any) -> PretrainConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    try:
        before = from_dict(family, json.loads((out / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{out} holds no run to resume ({why}); leave out --resume to start anew") from None
    after: PretrainConfig = override(before, changes)
    for name, value in to_dict(after).items():
        if name not in MAY_CHANGE and value != to_dict(before)[name]:
            raise ConfigError(f"{name} of the run in {out} is fixed; leave it, or start anew in another --out")
    return after


# --- the loop ---------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What a checkpoint holds, and where in the run it is."""

    config: PretrainConfig
    out: Path
    model: Any
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batches: int = 0  # of the epoch, done
    step: int = 0
    replaced: int = 0  # recordings of this epoch that could not be read, in this process

    def save(self) -> None:
        """Write the checkpoint; every process must call this, one writes."""
        if world()[0] == 0:
            values = {"epoch": self.epoch, "batches": self.batches, "step": self.step}
            save_checkpoint(self.out, snapshot({"model": self.model}, self.optimizer, {}, values))
        wait_for_all()  # or a faster process might read the older one

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        checkpoint = load_checkpoint(self.out)
        restore(checkpoint, {"model": self.model}, self.optimizer, {})
        self.epoch, self.batches, self.step = (int(checkpoint.values[k]) for k in ("epoch", "batches", "step"))

    def export(self) -> None:
        """The weights by themselves, with what they are of."""
        about = {"preset": self.config.preset, "config": json.dumps(to_dict(self.config)["model"])}
        save_weights(self.out / "encoder.safetensors", self.config.encoder_weights(self.model), about)
        save_weights(self.out / "model.safetensors", self.model.state_dict())


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
    say: Say = lambda sentence: None,
    instances: Instances | None = None,
) -> Path:
    """Train and give the folder of the weights. ``instances``: readings that are there already, of the config's data.

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run, instances = _set_up(config, out, device, resume, say, instances)
    steps = len(instances.samples) // config.batch
    total = config.steps or steps * config.epochs
    schedule = config.schedule(steps, total)
    first = world()[0] == 0
    if first:
        write_json(out / "config.json", to_dict(config))
    with Logs(out, from_step=run.step, tensorboard=tensorboard, on=first) as logs, stop_requests() as stop_requested:
        while run.step < total:
            parts: list[Part] = []
            for part in _epoch(run, instances):
                parts.append(part)
                run.replaced += int((part.ids != part.asked).sum())
                if len(parts) < config.accumulate:
                    continue
                lr, started = config.lr * schedule(run.step / total), time.perf_counter()
                losses = train_step(run, parts, lr, device)
                run.batches, run.step, parts = run.batches + 1, run.step + 1, []
                if run.step % config.log_every == 0 or run.batches == steps:
                    seconds = time.perf_counter() - started
                    logs.write(run.step, epoch=run.epoch, lr=lr, unreadable=run.replaced, seconds=seconds, **losses)
                if progress is not None:
                    progress(run.epoch, run.batches, steps, losses["loss"])
                if any_process(stop_requested()):
                    run.save()
                    raise Interrupted(f"stopped after {run.step} steps; all is saved, go on with --resume")
                if run.step == total:
                    break
            if run.batches == steps:
                run.epoch, run.batches, run.replaced = run.epoch + 1, 0, 0
            if run.epoch % config.save_every == 0 or run.step == total:
                run.save()
    if first:
        run.export()
    wait_for_all()
    return out


def _epoch(run: _Run, instances: Instances) -> Iterator[Part]:
    config = run.config
    yield from micro_batches(instances, seed=config.seed, epoch=run.epoch, batch=config.batch, workers=config.workers,
                             accumulate=config.accumulate, skip=run.batches)  # fmt: skip


def train_step(run: _Run, parts: Sequence[Part], lr: float, device: str) -> dict[str, float]:
    """One step on this process's share of a batch, in parts; the losses, means over all of it.

    Raises NotFinite before the weights have seen a bad loss.
    """
    config, sums = run.config, dict[str, Tensor]()
    run.optimizer.zero_grad(set_to_none=True)
    for place, part in enumerate(parts):
        seen = _prepared(run, part.clips, device)
        masks = _masks_of(run, place, len(parts)).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16) if config.precision == "bf16" else nullcontext():
            losses = run.model(seen, masks)
        check_finite(mean_over_processes(losses["loss"].detach()), epoch=run.epoch, step=run.step)
        (losses["loss"] / len(parts)).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + loss.detach() / len(parts)
    average_gradients([p for p in run.model.parameters() if p.grad is not None])
    if config.clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    return {name: float(mean_over_processes(loss)) for name, loss in sums.items()}


def _prepared(run: _Run, clips: Any, device: str) -> dict[str, Tensor]:
    """A part's readings to what the model takes."""
    names = tuple(run.config.inputs)
    found: Mapping[str, Tensor] = {names[0]: clips} if isinstance(clips, Tensor) else clips
    return run.config.prepared(run.model, {m: found[m].to(device, non_blocking=True) for m in names})


def _masks_of(run: _Run, place: int, parts: int) -> Masks:
    """What is hidden of a part. All processes draw for the whole batch, a function of the step, and take their rows:
    a run is the same on however many, and resumed."""
    config, (rank, processes) = run.config, world()
    generator = torch.Generator().manual_seed(int(np.random.default_rng([config.seed, run.step]).integers(2**63)))
    whole = config.masks(generator)
    share = config.batch // processes // parts
    first = (rank * parts + place) * share
    return whole.rows(slice(first, first + share))


# --- before the first step --------------------------------------------------------------------------------------


def _set_up(
    config: PretrainConfig, out: Path, device: str, resume: bool, say: Say, instances: Instances | None
) -> tuple[_Run, Instances]:
    """Everything before the first step; contradictions are refused here."""
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    seed_everything(config.seed, deterministic=device == "cpu")
    _check(config)
    instances = open_instances(config, say) if instances is None else instances
    _check_batch(config, len(instances.samples))
    model = config.build() if resume else config.begin(say)
    count, steps = len(instances.samples), len(instances.samples) // config.batch
    say(
        f"{config.preset}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{config.kind}, {count} recordings, "
        f"{config.steps or steps * config.epochs} steps of {config.batch}"
    )
    model = model.to(device).train()
    run = _Run(config, out, model, config.optimizer(model))
    if resume:
        run.load()
    return run, instances


def open_instances(config: PretrainConfig, say: Say = lambda sentence: None) -> Instances:
    """What a run reads, decoded where the config keeps it in memory."""
    instances = open_readings(
        config.data, config.inputs.get("video"), config.inputs.get("audio"), config.reading,
        splits=config.splits, skip_bad=config.skip_bad, seed=config.seed,
    )  # fmt: skip
    _check_batch(config, len(instances.samples))  # before anything is decoded
    if config.cache == "memory":
        lost = instances.keep(config.cache_gb)
        if lost:
            say(f"{lost} recordings cannot be read and are left out")
    if isinstance(instances, BothPairs):
        require_both(instances)
    elif isinstance(instances, LabelledSounds):
        require_sound(instances)
    return instances


def _check_batch(config: PretrainConfig, count: int) -> None:
    processes = world()[1]
    if config.batch % (processes * config.accumulate):
        raise ConfigError(
            f"batch {config.batch} cannot be shared by {processes} processes in {config.accumulate} parts each; "
            f"use a multiple of {processes * config.accumulate}"
        )
    if count < config.batch:
        raise ConfigError(f"batch {config.batch} is more than the {count} recordings; use a smaller one")
    steps = count // config.batch
    total = config.steps or steps * config.epochs
    if config.warmup * steps >= total:
        raise ConfigError(
            f"the warm-up of {config.warmup * steps:g} steps takes all {total}; shorten it or train longer"
        )
