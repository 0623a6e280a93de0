"""What pre-training of pairs of encoders has in common, whatever it learns by: batches, one loop, exact resumption.

A method brings a config (a `PairConfig` with fields of its own) and a run (a `PairRun` that says what a step is).
A run's folder holds ``config.json`` (resolved), ``log.jsonl``, the checkpoint, and at the end the weights:
``video.safetensors``, ``audio.safetensors`` (the encoders) and ``model.safetensors`` (with what is around them).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from encoders.datasets.reader import Readable, read_or_next
from encoders.errors import ConfigError, DataError, LegatoError
from encoders.processes import quiet_worker, wait_for_all
from encoders.settings import from_dict, override, to_dict
from encoders.training import (
    Interrupted,
    Logs,
    any_process,
    average_buffers,
    epoch_order,
    load_checkpoint,
    restore,
    save_checkpoint,
    save_weights,
    snapshot,
    stop_requests,
    world,
    write_json,
)

__all__ = ["PairConfig", "PairRun", "Progress", "check_batch", "fit", "resumed_as"]

Progress = Callable[[int, int, int, float], None]  # (epoch, batches of it done, batches in it, loss)


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """What every run has; a method adds its model, its objective and how it is optimised."""

    data: str  # grid:PATH, java_sed:PATH, folder:PATH, synthetic:N
    splits: tuple[str, ...] = ()  # none: all
    epochs: int = 30
    clips_per_video: int = 10  # readings of each instance in an epoch
    batch: int = 256  # over all processes
    betas: tuple[float, float] = (0.9, 0.999)
    precision: str = "fp32"  # fp32, bf16 (activations)
    seed: int = 0
    workers: int = 2  # processes that read data; 0: none but this one
    log_every: int = 10  # steps
    save_every: int = 1  # epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "clips_per_video", "batch", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.workers < 0:
            raise ConfigError(f"workers {self.workers} must not be negative; use 0 to read in this process")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas {self.betas} must lie in [0, 1); use 0.9,0.999")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision {self.precision!r} is unknown; use fp32 or bf16")


Config = TypeVar("Config", bound=PairConfig)


def resumed_as(config_class: type[Config], out: Path, may_change: Sequence[str], changes: Mapping[str, Any]) -> Config:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    try:
        before = from_dict(config_class, json.loads((out / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{out} holds no run to resume ({why}); leave out --resume to start anew") from None
    after: Config = override(before, changes)
    for name, value in to_dict(after).items():
        if name not in may_change and value != to_dict(before)[name]:
            raise ConfigError(f"{name} of the run in {out} is fixed; leave it, or start anew in another --out")
    return after


Read = tuple[int | Tensor, ...] | str  # a reading, or the one sentence that says why there is none


class _Readings(torch.utils.data.Dataset[Read]):
    """(instance, epoch, place in the epoch) to one reading; the same whoever reads it, and whenever.

    What cannot be read is told, not raised: an error that leaves another process comes with its traceback.
    """

    def __init__(self, pairs: Readable, seed: int) -> None:
        self.pairs, self.seed = pairs, seed

    def __getitem__(self, key: tuple[int, int, int]) -> Read:
        index, epoch, place = key
        random = np.random.default_rng([self.seed, epoch, place])
        try:
            index, *parts = read_or_next(self.pairs, index, random)
        except LegatoError as error:
            return str(error)
        return index, *map(torch.from_numpy, parts)


def _together(readings: list[Read]) -> list[Tensor] | str:
    """A part of a batch, or the first sentence that says why there is none."""
    why = next((reading for reading in readings if isinstance(reading, str)), None)
    return why if why is not None else torch.utils.data.default_collate(readings)


@dataclass
class PairRun(ABC):
    """What a checkpoint holds, and where in the run it is; a method says what a step is."""

    config: Any  # a PairConfig
    out: Path
    pairs: Readable
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: str = "cpu"
    epoch: int = 0
    batches: int = 0  # of the epoch, done
    step: int = 0

    # --- what a method says ---

    accumulate = 1  # parts of a process's share that come one after another

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is saved, by name."""
        return {"model": self.model}

    @property
    def generators(self) -> dict[str, torch.Generator]:
        """What steps draw from, by name."""
        return {}

    def begin_epoch(self) -> None:  # noqa: B027  most have nothing to do
        """Called before an epoch's first batch, and again where it is gone on with in the middle."""

    @abstractmethod
    def learn(self, parts: Sequence[Sequence[Tensor]], done: float) -> dict[str, float]:
        """One step on this process's share; ``done`` is the share of training before it. The numbers to log."""

    @abstractmethod
    def encoders(self) -> dict[str, tuple[nn.Module, dict[str, str]]]:
        """What is left of the model at the end: ``video`` and ``audio``, each with what its file says about it."""

    # --- what all have ---

    def epoch_batches(self) -> Iterator[list[list[Tensor]]]:
        """This process's share of the epoch's batches, in parts, from the first one not done yet; an incomplete last
        one is left out. The first tensor of a part is its instances. Raises DataError where too many in a row are
        broken."""
        config, (rank, processes) = self.config, world()
        share = config.batch // processes // self.accumulate
        order = epoch_order(config.seed, self.epoch, len(self.pairs), config.clips_per_video)
        keys = [
            [(int(order[p]), self.epoch, p) for p in range(first, first + share)]
            for start in range(self.batches * config.batch, len(order) - config.batch + 1, config.batch)
            for first in range(
                start + rank * share * self.accumulate, start + (rank + 1) * share * self.accumulate, share
            )
        ]
        loader = torch.utils.data.DataLoader(
            _Readings(self.pairs, config.seed),
            batch_sampler=keys,
            num_workers=config.workers,
            collate_fn=_together,
            worker_init_fn=quiet_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or the loader would draw from the global one, and resuming would differ
        )
        parts: list[list[Tensor]] = []
        for part in loader:
            if isinstance(part, str):
                raise DataError(part)
            parts.append([x.to(self.device, non_blocking=True) for x in part])
            if len(parts) == self.accumulate:
                yield parts
                parts = []

    def save(self) -> None:
        """Write the checkpoint; every process must call this, one writes."""
        average_buffers(self.model)
        if world()[0] == 0:
            values = {"epoch": self.epoch, "batches": self.batches, "step": self.step}
            save_checkpoint(self.out, snapshot(self.modules, self.optimizer, self.generators, values))
        wait_for_all()  # or a faster process might read the older one

    def load(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        checkpoint = load_checkpoint(self.out)
        restore(checkpoint, self.modules, self.optimizer, self.generators)
        self.epoch, self.batches, self.step = (int(checkpoint.values[k]) for k in ("epoch", "batches", "step"))

    def export(self) -> None:
        """The weights by themselves, as bundles and feature extraction want them."""
        save_weights(self.out / "model.safetensors", self.model.state_dict())
        for name, (encoder, about) in self.encoders().items():
            save_weights(self.out / f"{name}.safetensors", encoder.state_dict(), about)


def fit(run: PairRun, *, tensorboard: bool = False, progress: Progress | None = None) -> Path:
    """Train to the end and give the folder of the weights; on Ctrl-C the state is saved and Interrupted raised."""
    config, out = run.config, run.out
    steps = len(run.pairs) * config.clips_per_video // config.batch
    first = world()[0] == 0
    if first:
        write_json(out / "config.json", to_dict(config))
    with Logs(out, from_step=run.step, tensorboard=tensorboard, on=first) as logs, stop_requests() as stop_requested:
        while run.epoch < config.epochs:
            run.begin_epoch()
            for parts in run.epoch_batches():
                told = run.learn(parts, run.step / (steps * config.epochs))
                run.batches, run.step = run.batches + 1, run.step + 1
                if run.step % config.log_every == 0 or run.batches == steps:
                    logs.write(run.step, epoch=run.epoch, **told)
                if progress is not None:
                    progress(run.epoch, run.batches, steps, told["loss"])
                if any_process(stop_requested()):
                    run.save()
                    raise Interrupted(f"stopped after {run.step} steps; all is saved, go on with --resume")
            run.epoch, run.batches = run.epoch + 1, 0
            if run.epoch % config.save_every == 0 or run.epoch == config.epochs:
                run.save()
    if first:
        run.export()
    return out


def check_batch(config: PairConfig, instances: int, parts: int = 1) -> None:
    """Raises ConfigError where the batch cannot be shared, or an epoch does not fill one."""
    processes, readings = world()[1], instances * config.clips_per_video
    if config.batch % processes:
        raise ConfigError(f"batch {config.batch} cannot be shared by {processes} processes; use a multiple of them")
    if config.batch // processes % parts:
        raise ConfigError(
            f"batch {config.batch} over {processes} processes cannot be worked on in {parts} parts; "
            "use an accumulate that divides it"
        )
    if readings < config.batch:
        raise ConfigError(
            f"batch {config.batch} is more than the {readings} readings of an epoch; "
            "use a smaller batch or more clips_per_video"
        )
