"""What every training loop needs, as small functions: seed, groups, schedule, checkpoint, logs, processes.

There is no trainer: a loop stays readable in the file of its model and calls these. Checkpoints and what several
processes share have files of their own (`checkpoint`, `processes`); their names are given from here too.
"""

import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    restore,
    save_checkpoint,
    save_weights,
    snapshot,
    write_json,
    writing,
)
from encoders.errors import ConfigError, LegatoError, MissingExtraError
from encoders.processes import (
    any_process,
    average_buffers,
    average_gradients,
    gather_rows,
    mean_over_processes,
    processes,
    world,
)

__all__ = [
    "Checkpoint",
    "Interrupted",
    "Logs",
    "NotFinite",
    "Schedule",
    "any_process",
    "average_buffers",
    "average_gradients",
    "check_finite",
    "choose_device",
    "constant",
    "cosine",
    "epoch_order",
    "gather_rows",
    "linear",
    "load_checkpoint",
    "load_weights",
    "mean_over_processes",
    "multistep",
    "parameter_groups",
    "processes",
    "restore",
    "save_checkpoint",
    "save_weights",
    "seed_everything",
    "snapshot",
    "stop_requests",
    "world",
    "write_json",
    "writing",
]


class NotFinite(LegatoError):
    """A loss became NaN or infinite; training ends before the step that would spread it."""


class Interrupted(LegatoError):
    """Somebody asked to stop, and everything is saved."""

    exit_code = 130


# --- chance -----------------------------------------------------------------------------------------------------


def seed_everything(seed: int, *, deterministic: bool = True) -> torch.Generator:
    """Seed Python, NumPy and torch; returns a CPU generator of its own for what the loop draws."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    return torch.Generator().manual_seed(seed + 1)


def epoch_order(seed: int, epoch: int, size: int, repeats: int = 1) -> np.ndarray:
    """Which sample comes when in an epoch: each ``repeats`` times, shuffled; a pure function, so it can be resumed."""
    order = np.tile(np.arange(size), repeats)
    np.random.Generator(np.random.PCG64([seed, epoch])).shuffle(order)
    return order


def choose_device(name: str) -> str:
    """``auto``: this process's accelerator, else the CPU; raises ConfigError where the named one is not there."""
    if name == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        kind, _, place = name.partition(":")
        known = kind in ("cpu", "cuda", "mps", "xpu") and (not place or place.isdecimal())
        why = str(error).splitlines()[0] if known else "auto, cpu, cuda and cuda:N are known"
        raise ConfigError(f"device {name!r} cannot be used ({why}); use --device cpu") from None
    return name


# --- optimisation -----------------------------------------------------------------------------------------------


def parameter_groups(
    modules: Iterable[nn.Module], weight_decay: float, *, decay_vectors: bool = True
) -> list[dict[str, Any]]:
    """Optimizer groups; with ``decay_vectors`` False, biases and norms (one axis or none) are not decayed."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if decay_vectors:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


Schedule = Callable[[float], float]  # share of training done, 0..1 -> factor on the learning rate


def constant() -> Schedule:
    """The learning rate stays as it is."""
    return lambda done: 1.0


def multistep(milestones: Iterable[float], gamma: float, warmup: float = 0.0, every: float = 0.0) -> Schedule:
    """Times ``gamma`` at each milestone (a share of training), after a linear rise over the share ``warmup``, which
    with ``every`` goes up in stairs as wide as that (AST: every 50 steps)."""
    at = sorted(milestones)

    def factor(done: float) -> float:
        if done < warmup:
            return (math.floor(done / every + 1e-6) * every if every else done) / warmup
        return float(gamma ** sum(done >= m for m in at))

    return factor


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear rise over the share ``warmup``, then half a cosine down to ``floor``."""
    if not (0 <= warmup < 1 and 0 <= floor <= 1):
        raise ConfigError(f"warmup {warmup} must lie in [0, 1) and floor {floor} in [0, 1]")

    def factor(done: float) -> float:
        if done < warmup:
            return done / warmup
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup)))) / 2

    return factor


def linear(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear rise over the share ``warmup``, then a straight line down to ``floor``."""
    if not (0 <= warmup < 1 and 0 <= floor <= 1):
        raise ConfigError(f"warmup {warmup} must lie in [0, 1) and floor {floor} in [0, 1]")
    return lambda done: done / warmup if done < warmup else 1 - (1 - floor) * min(1.0, (done - warmup) / (1 - warmup))


def check_finite(loss: Tensor, *, epoch: int, step: int) -> float:
    """The loss as a number; raises NotFinite, in one sentence, before it reaches the weights."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NotFinite(
            f"loss became {value} in epoch {epoch}, step {step}; the last checkpoint is whole: "
            "resume it with a smaller lr, or look for broken samples"
        )
    return value


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """While inside, Ctrl-C and SIGTERM only leave a note, which the loop reads between two steps.

    A second Ctrl-C interrupts at once, as ever. Outside the main thread nothing is changed.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- logs -------------------------------------------------------------------------------------------------------


class Logs:
    """``log.jsonl``, one record a line, and TensorBoard events beside it when asked for.

    On resume the records after the checkpoint's step are cut off, so that a step is told once.
    """

    def __init__(self, folder: Path, *, from_step: int = 0, tensorboard: bool = False, on: bool = True) -> None:
        self.path, self.on = folder / "log.jsonl", on  # off: the other processes of a group keep silent
        if not on:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in self._lines() if json.loads(line)["step"] <= from_step] if from_step else []
        with writing(self.path) as partial:
            partial.write_text("".join(kept))
        self._file = self.path.open("a")
        self._events = _event_writer(folder / "tensorboard", from_step) if tensorboard else None

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        return [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def write(self, step: int, **values: float) -> None:
        """One record; numbers only."""
        if not self.on:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.on:
            return
        self._file.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError(
            "tensorboard is not installed; run pip install 'legato[train]', or leave out --tensorboard "
            "(log.jsonl is written anyway)"
        ) from None
    return SummaryWriter(folder, purge_step=from_step + 1 if from_step else None)
