"""Co-training several tasks: what a run of `cotrain` is made of, and PolyViT's table of tasks.

Likhosherstov et al. (TMLR 2023), values of google-research/scenic (projects/polyvit): every task keeps the batch,
learning rate, length and augmentation it has alone. Given one task this is its single-task baseline.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from encoders.cotraining import CoTraining
from encoders.datasets.augment import Augment
from encoders.datasets.spec_augment import SpecAugment
from encoders.datasets.views import views_of
from encoders.errors import ConfigError, DataError, LegatoError, UsageError
from encoders.recipes import split_changes
from encoders.settings import from_dict, override, pick, to_dict

__all__ = ["TASKS", "CotrainConfig", "TaskRun", "resumed", "run_of"]

MODALITIES = ("image", "video", "audio")
MAY_CHANGE = ("workers", "log_every", "save_every", "eval_batch", "cache", "cache_gb")


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """One task, with what it is trained by alone. Defaults are those of Kinetics-400."""

    data: str  # kinetics400:PATH, ...
    name: str  # of the task and its head
    modality: Literal["image", "video", "audio"] = "video"
    train_splits: tuple[str, ...] = ("train",)
    validation_splits: tuple[str, ...] = ("val",)
    kind: str = ""  # single, multi, noun_verb; "": as the dataset's labels are
    loss: str = ""  # softmax, sigmoid
    batch: int = 64  # over all processes
    lr: float = 0.1
    epochs: int = 30  # that it takes alone
    steps: int = 0  # instead of epochs
    warmup: float = 2.5  # epochs of it that it adds to the warm-up
    warmup_steps: int = 0  # instead of epochs
    clip_where: Literal["process", "mean"] = "process"
    mixup: float = 0.0
    smoothing: float = 0.0
    stochastic_depth: float = 0.0
    stride: int = 2
    box: tuple[float, float, float, float] | None = None
    face: str = ""  # weights of a face net, where the tokenizer looks at the face
    augment: Augment = field(default_factory=Augment)
    spec_augment: SpecAugment = field(default_factory=SpecAugment)
    views: str = "8x1"

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ConfigError(f"task {self.name} has modality {self.modality!r}; use {', '.join(MODALITIES)}")
        for name in ("batch", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} of task {self.name} must be at least 1")
        for name in ("steps", "warmup", "warmup_steps", "mixup", "smoothing"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} of task {self.name} must not be negative")
        if views_of(self.views).crops > 1 and self.modality == "audio":
            raise ConfigError(f"views {self.views} of task {self.name} cut squares of sound; use {self.views[0]}x1")


@dataclass(frozen=True, kw_only=True)
class CotrainConfig:
    """A whole run over one or more tasks."""

    preset: str  # polyvit_base, ...
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the model's config
    tasks: tuple[TaskRun, ...]
    plan: CoTraining = field(default_factory=CoTraining)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    momentum_precision: Literal["fp32", "bf16"] = "bf16"
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    weight_decay: float = 0.0
    clip: float = 1.0
    skip_bad: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    workers: int = 2
    cache: Literal["none", "memory"] = "none"
    cache_gb: float = 4.0
    eval_batch: int = 32
    log_every: int = 10  # steps
    save_every: int = 500  # steps

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("a run needs a task; give --data once or more")
        names = [task.name for task in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"task {name} is given twice; give each dataset and modality once")
        for name in ("log_every", "save_every", "eval_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")


_IMAGE = {
    "modality": "image", "loss": "sigmoid", "batch": 512, "lr": 0.03, "warmup_steps": 500, "clip_where": "mean",
    "stride": 1, "views": "1x1", "augment.area": (0.05, 1.0), "augment.colour": 0.0, "augment.grayscale": 0.0,
}  # fmt: skip
_AUDIO = {"modality": "audio", "lr": 0.5, "epochs": 50, "stochastic_depth": 0.3, "mixup": 0.3, "views": "4x1"}
# Dataset to its task; the steps, shares and warm-ups of the published table.
TASKS: dict[str, dict[str, Any]] = {
    "imagenet": {**_IMAGE, "steps": 20_000, "train_splits": ("train[:99%]",), "validation_splits": ("train[99%:]",)},
    "cifar100": {**_IMAGE, "steps": 10_000, "train_splits": ("train[:98%]",), "validation_splits": ("train[98%:]",)},
    "cifar10": {**_IMAGE, "steps": 10_000, "train_splits": ("train[:98%]",), "validation_splits": ("train[98%:]",)},
    "pets": {**_IMAGE, "steps": 500, "warmup_steps": 100,
             "train_splits": ("train[:90%]",), "validation_splits": ("train[90%:]",)},
    "resisc45": {**_IMAGE, "lr": 0.1, "steps": 2_500, "warmup_steps": 200},
    "kinetics400": {},
    "kinetics600": {"lr": 0.1},
    "moments": {"epochs": 10, "lr": 0.25},
    "audioset_balanced": {**_AUDIO, "validation_splits": ("test",)},
    "audioset_500k": {**_AUDIO, "validation_splits": ("test",)},
    "audioset": {**_AUDIO, "validation_splits": ("test",)},
    "vggsound": {**_AUDIO, "validation_splits": ("test",)},
    # ours, small
    "grid_digits": {"stride": 1, "batch": 32, "epochs": 60, "lr": 0.05, "views": "3x1"},
    "grid_commands": {"stride": 1, "batch": 32, "epochs": 60, "lr": 0.05, "views": "3x1"},
    "grid_speakers": {**_IMAGE, "batch": 32, "epochs": 60, "lr": 0.05, "warmup_steps": 0, "augment.mirror": 0.5},
    "esc10": {**_AUDIO, "batch": 32, "lr": 0.05, "validation_splits": ("val",)},
}  # fmt: skip
FIRST_WARMUP = 500  # steps: all image tasks together warm up once


def run_of(preset: str, data: Sequence[str], **changes: Any) -> CotrainConfig:
    """The run of a preset on datasets, each ``NAME:PATH`` or ``MODALITY=NAME:PATH``, with changes.

    Keys reach a task by its name (``kinetics400.batch=32``), the model by ``model.``; lr, batch, epochs, steps and
    splits without a name are for every task.
    """
    inner, outer = split_changes(changes)
    everywhere = {f.name for f in dataclasses.fields(TaskRun)} - {f.name for f in dataclasses.fields(CotrainConfig)}
    common = {k: v for k, v in outer.items() if k.partition(".")[0] in everywhere}
    tasks = []
    for text in data:
        dataset, modality = _named(text)
        name = dataset.partition(":")[0]
        values = {**pick_or_default(name), **({"modality": modality} if modality else {})}
        if modality == "audio" and values.get("views", "8x1").endswith("3"):
            values["views"] = "4x1"
        start = TaskRun(data=dataset, name=name + (f"_{modality}" if modality else ""))
        own = {k[len(start.name) + 1 :]: v for k, v in outer.items() if k.startswith(f"{start.name}.")}
        tasks.append(override(start, {**values, **common, **own}))
    names = {f"{task.name}." for task in tasks}
    rest = {k: v for k, v in outer.items() if k not in common and not any(k.startswith(n) for n in names)}
    config = CotrainConfig(preset=preset, tasks=tuple(tasks), overrides=inner)
    changed: CotrainConfig = override(config, rest)
    return changed


def pick_or_default(dataset: str) -> dict[str, Any]:
    """A dataset's values in the table, or none; raises UsageError on a name that is no dataset at all."""
    from encoders.datasets.sample import DATASETS

    pick(DATASETS, dataset, "dataset")
    return TASKS.get(dataset, {})


def _named(text: str) -> tuple[str, str]:
    modality, equals, dataset = text.partition("=")
    if not equals or ":" in modality:
        return text, ""
    if modality not in MODALITIES:
        raise UsageError(f"data {text!r} asks for modality {modality!r}; use one of {', '.join(MODALITIES)}")
    return dataset, modality


def resumed(out: Path, **changes: Any) -> CotrainConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    try:
        before = from_dict(CotrainConfig, json.loads((out / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{out} holds no run to resume ({why}); leave out --resume to start anew") from None
    after: CotrainConfig = override(before, changes)
    for key, value in to_dict(after).items():
        if key not in MAY_CHANGE and value != to_dict(before)[key]:
            raise ConfigError(f"{key} of the run in {out} is fixed; leave it, or start anew in another --out")
    return after
