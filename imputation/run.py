"""What the training loops of this package share: batches as a pure function of the step, and a run's folder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError, LegatoError
from encoders.settings import from_dict, override, to_dict
from encoders.training import (
    Interrupted,
    Logs,
    any_process,
    epoch_order,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
    world,
    write_json,
)
from imputation.features import FeatureSet

__all__ = ["Batches", "Progress", "Run", "resumed"]

Progress = Callable[[int, int, float], None]  # (steps done, of, loss)
MAY_CHANGE = ("log_every", "evaluate_every", "save_every")  # when a run is resumed


@dataclass
class Batches:
    """Windows of one split on a device; what a step reads depends on (seed, step, rank) alone.

    ``lookahead``: the last 0 to F positions are not there yet, drawn per row; ``short``: the share of rows whose
    first positions lie before the stream's start, with at least ``min_clips`` left of the W.
    """

    data: FeatureSet
    batch: int
    seed: int
    device: str = "cpu"
    lookahead: int = 0
    short: float = 0.0
    min_clips: int = 1

    def __post_init__(self) -> None:
        self.features = self.data.standardised().to(self.device)  # (n, L, M, D)
        self.presence = self.data.presence.to(self.device)
        self.label = self.data.label.to(self.device)
        self.exists = self.data.exists.numpy()
        if self.lookahead + self.min_clips > self.data.length:
            raise ConfigError(
                f"lookahead {self.lookahead} leaves fewer than min_clips {self.min_clips} of the {self.data.length} "
                "clips of a window; use less"
            )
        self.size = min(self.batch, len(self.data))
        if self.size % world()[1]:
            raise ConfigError(f"batch {self.size} cannot be shared by {world()[1]} processes; use a multiple of them")
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def per_epoch(self) -> int:
        return -(-len(self.data) // self.size)

    def indices(self, step: int) -> np.ndarray:
        """This process's rows of the batch; the last batch of an epoch is filled up from its beginning."""
        rank, processes = world()
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.data))
        share = self.size // processes
        first = place * self.size + rank * share
        return self._order.take(range(first, first + share), mode="wrap")

    def rng(self, step: int) -> np.random.Generator:
        """What this process draws in this step."""
        return np.random.Generator(np.random.PCG64([self.seed, step, world()[0]]))

    def existing(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """Which positions are there, (B, L): shortened at both ends as a stream would."""
        exists = self.exists[rows].copy()
        batch, length = exists.shape
        position = np.arange(length)
        if self.lookahead:
            ahead = rng.integers(0, self.lookahead + 1, size=(batch, 1))
            exists &= position < length - self.lookahead + ahead
        if self.short:
            most = max(0, length - self.lookahead - self.min_clips)
            start = rng.integers(0, most + 1, size=(batch, 1)) * (rng.random((batch, 1)) < self.short)
            exists &= position >= start
        return exists

    def to_tensor(self, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(mask).to(self.device)


class Run:
    """One training run: its folder, where it stands, and what it keeps.

    The folder holds ``config.json`` (resolved), ``log.jsonl`` and one checkpoint. ``modules`` is all that is saved.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        resume: bool,
        tensorboard: bool,
    ) -> None:
        self.folder, self.modules, self.optimizer = folder, modules, optimizer
        self.step, self.values = 0, dict[str, Any]()
        if not resume and (folder / "checkpoint.json").exists():
            raise ConfigError(f"{folder} already holds a run; go on with --resume, or choose another --out")
        if resume:
            checkpoint = load_checkpoint(folder)
            restore(checkpoint, modules, optimizer, {})
            self.step, self.values = int(checkpoint.values["step"]), dict(checkpoint.values["kept"])
        if world()[0] == 0:
            write_json(folder / "config.json", to_dict(config))
        self.logs = Logs(folder, from_step=self.step, tensorboard=tensorboard, on=world()[0] == 0)

    def __enter__(self) -> "Run":
        self.logs.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.logs.__exit__(*error)

    def log(self, **values: float) -> None:
        """A record of what the last step found."""
        self.logs.write(self.step, **values)

    def save(self) -> None:
        """A checkpoint of this moment."""
        if world()[0] == 0:
            values = {"epoch": 0, "step": self.step, "kept": self.values}
            save_checkpoint(self.folder, snapshot(self.modules, self.optimizer, {}, values))

    def stop_if(self, requested: bool) -> None:
        """Save and raise Interrupted if any process was asked to stop."""
        if any_process(requested):
            self.save()
            raise Interrupted(f"stopped after {self.step} steps; all is saved, go on with --resume")


def resumed(config_class: type[Any], folder: Path, changes: Mapping[str, Any]) -> Any:
    """The config of the run in ``folder`` with ``changes``; ConfigError where one would make it another run."""
    try:
        before = from_dict(config_class, json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{folder} holds no run to resume ({why}); leave out --resume to start anew") from None
    after = override(before, changes)
    for name, value in to_dict(after).items():
        if name not in MAY_CHANGE and value != to_dict(before)[name]:
            raise ConfigError(f"{name} of the run in {folder} is fixed; leave it as it was, or choose another --out")
    return after


def positive(config: Any, *names: str) -> None:
    """ConfigError naming the first field that is not above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} {getattr(config, name)} must be above 0")
