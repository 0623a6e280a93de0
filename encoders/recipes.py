"""The papers' recipes: what a run of `finetune` is made of, and which published column an encoder gets on a dataset.

A recipe is chosen by the encoder's family and size and by the dataset: ``vivit_l_16x2_fe`` on ``ssv2:PATH`` is the
column "SSv2". The columns are in `encoders.recipe_tables`; names on the left of RECIPES can also be asked for by
themselves. PolyViT's tasks are in `cotrain`.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from encoders.datasets.augment import Augment
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.views import views_of
from encoders.errors import ConfigError, DataError, LegatoError
from encoders.recipe_tables import audio, audiovisual, av_mae, cav_mae, video
from encoders.registry import config_of
from encoders.settings import from_dict, override, pick, to_dict

__all__ = ["RECIPES", "FinetuneConfig", "recipe", "recipe_name", "resumed"]

MAY_CHANGE = (
    "workers", "log_every", "save_every", "eval_every", "eval_batch", "views", "cache", "cache_gb", "flow_cache",
)  # fmt: skip
STOCHASTIC_DEPTH = ("stochastic_depth", "drop_path")  # what it is called in the encoders' configs


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A whole run. Defaults are ViViT-B on Kinetics-400."""

    preset: str  # an encoder of the registry
    data: str  # kinetics400:PATH, ...
    recipe: str = ""  # where the values come from
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the encoder's config
    train_splits: tuple[str, ...] = ("train",)
    validation_splits: tuple[str, ...] = ("val",)  # none: no validation
    skip_bad: bool = False  # leave samples out whose file or label is missing
    kind: str = ""  # single, multi, noun_verb; "": as the dataset's labels are
    loss: str = ""  # softmax, sigmoid, sigmoid_mean; "": softmax but for multi
    # what the network sees
    stride: int = 2  # frames at ``fps`` from one to the next; 0: spread over the whole sample (ours)
    fps: Fraction = Fraction(25)
    short_side: int = 0  # pixels, before the square is cut; 0: as the encoder's crop_share says
    box: tuple[float, float, float, float] | None = None  # left, top, width, height that is looked at; None: all
    face: str = ""  # weights of a face net, for encoders that look at the face
    augment: Augment = field(default_factory=Augment)
    sound: Spectrograms = field(default_factory=Spectrograms)  # of models that hear: what is done to it
    flow_cache: str = ""  # folder that keeps flow, for models with a view of it; empty: found anew each time
    cache: Literal["none", "memory"] = "none"  # memory: decode every sample once, for small data
    cache_gb: float = 4.0
    # what is learned
    epochs: int = 30
    steps: int = 0  # optimizer steps in all, instead of epochs; 0: as many epochs
    batch: int = 64  # samples, over all processes
    repeats: int = 1  # readings of each sample of a batch, each changed differently
    accumulate: int = 1  # parts of a process's share that go through the network one after another
    sampling: Literal["uniform", "balanced"] = "uniform"  # balanced: with replacement, rare classes as often
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  # adam: weight decay is part of the gradient
    lr: float = 0.1
    head_lr: float = 1.0  # factor on the learning rate of the head
    momentum: float = 0.9
    momentum_precision: Literal["fp32", "bf16"] = "fp32"
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear", "step"] = "cosine"
    warmup: float = 2.5  # epochs
    warmup_steps: int = 0  # instead of epochs
    warmup_every: int = 1  # steps of a stair of the rise, of schedule step
    decay: float = 0.5  # schedule step: times this after ``decay_from`` epochs and every ``decay_every`` from there
    decay_from: int = 1
    decay_every: int = 1
    floor: float = 0.0  # share of lr that the schedule ends at
    clip: float = 1.0  # global norm of the gradient; 0: none
    clip_where: Literal["process", "mean"] = "process"  # before or after the mean over processes
    smoothing: float = 0.0  # of labels
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha, of models that see alone; with mixup one of the two, by an even chance
    stochastic_depth: float | None = None  # of the encoder; None: as its preset says
    layer_decay: float = 1.0  # factor on the learning rate from each layer to the one before it; 1: none
    ema: float = 0.0  # decay of the running mean of the weights; 0: none
    average: tuple[int, int] = (0, 0)  # instead: the mean of the weights after these epochs, first and last; 0,0: none
    precision: Literal["fp32", "bf16"] = "fp32"  # of activations
    seed: int = 0
    # how it runs
    workers: int = 2  # processes that read data; 0: none but this one
    views: str = "4x3"  # of the final validation: clips x squares
    eval_batch: int = 32  # views that go through the network at once
    log_every: int = 10  # steps
    eval_every: int = 1  # epochs
    save_every: int = 1  # epochs

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "repeats", "accumulate", "eval_batch", "log_every", "eval_every", "save_every",
                     "warmup_every", "decay_from", "decay_every"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("steps", "warmup", "warmup_steps", "weight_decay", "clip", "mixup", "cutmix", "short_side",
                     "workers"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative; use 0 for none")
        if not 0 < self.lr <= 100:
            raise ConfigError(f"lr {self.lr} must lie in (0, 100]")
        if not self.head_lr > 0:
            raise ConfigError(f"head_lr {self.head_lr} must be more than 0; use 1 for the learning rate of all else")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay {self.layer_decay} must lie in (0, 1]; use 1 for none")
        for name in ("smoothing", "ema", "floor", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 for none")
        self._check_mean()
        views_of(self.views)
        if not self.train_splits:
            raise ConfigError("train_splits is empty; name the splits to learn from, such as train")
        both = set(self.train_splits) & set(self.validation_splits)
        if both:
            raise ConfigError(f"split {sorted(both)[0]} both trains and validates; take it out of one of them")

    def _check_mean(self) -> None:
        """Of the weights: its epochs must come, and it must be one mean."""
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay {self.decay} of the learning rate must lie in (0, 1]")
        first, last = self.average
        if (first, last) == (0, 0):
            return
        if self.ema:
            raise ConfigError(f"ema {self.ema} and average {first},{last} are two means of the weights; use one")
        if not 1 <= first <= last or (last > self.epochs and not self.steps):
            raise ConfigError(f"average {first},{last} must be epochs from 1 to {self.epochs}, or 0,0 for none")

    @property
    def encoder(self) -> dict[str, Any]:
        """The overrides of the encoder's config, with its stochastic depth."""
        overrides = dict(self.overrides)
        if self.stochastic_depth is not None:
            known = {f.name for f in dataclasses.fields(config_of(self.preset))}
            name = next((n for n in STOCHASTIC_DEPTH if n in known), None)
            if name is None and self.stochastic_depth:
                raise ConfigError(
                    f"preset {self.preset} has no stochastic depth to set to {self.stochastic_depth}; "
                    "leave stochastic_depth out"
                )
            overrides |= {name: self.stochastic_depth} if name is not None else {}
        return overrides

RECIPES: dict[str, dict[str, Any]] = {
    **video.RECIPES, **audio.RECIPES, **audiovisual.RECIPES, **av_mae.RECIPES, **cav_mae.FINETUNED,
}  # fmt: skip
# (family, dataset) to a recipe; the family's longest match counts, "" is any dataset.
CHOICES: dict[tuple[str, str], str] = {
    **video.CHOICES, **audio.CHOICES, **audiovisual.CHOICES, **av_mae.CHOICES, **cav_mae.FINETUNED_CHOICES,
}  # fmt: skip


def recipe_name(preset: str, data: str) -> str:
    """The recipe for an encoder on a dataset: the dataset's own where there is one, else the family's."""
    dataset = data.partition(":")[0]
    for wanted in (dataset, ""):
        families = [f for f, d in CHOICES if d == wanted and (preset == f or preset.startswith(f"{f}_") or not f)]
        if families:
            return CHOICES[max(families, key=len), wanted]
    raise AssertionError("any dataset has a recipe")


def recipe(preset: str, data: str, *, name: str = "", **changes: Any) -> FinetuneConfig:
    """The run that a preset on a dataset stands for, with changes (dotted keys reach inside).

    ``name`` asks for one of RECIPES. Keys that begin with ``model.`` change the encoder. Raises UsageError on unknown
    names.
    """
    name = name or recipe_name(preset, data)
    values = pick(RECIPES, name, "recipe")
    start = FinetuneConfig(preset=preset, data=data, recipe=name)
    # What a recipe says of the encoder goes only to encoders that have it (head_bias, crop_share).
    known = {f.name for f in dataclasses.fields(config_of(preset))}
    own = {k: v for k, v in dict(values.get("overrides", {})).items() if k.partition(".")[0] in known}
    inner, outer = split_changes(changes)
    if values.get("stochastic_depth") and not known & set(STOCHASTIC_DEPTH):
        values = {k: v for k, v in values.items() if k != "stochastic_depth"}
    config: FinetuneConfig = override(start, {**values, "overrides": own, **outer})
    config = dataclasses.replace(config, overrides={**config.overrides, **inner})
    config_of(preset, **config.encoder)  # contradictions of the encoder are found here
    return config


def split_changes(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is about the encoder (``model.depth=2``), and the rest."""
    inner = {k.removeprefix("model."): _read(v) for k, v in changes.items() if k.startswith("model.")}
    return inner, {k: v for k, v in changes.items() if not k.startswith("model.")}


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def resumed(out: Path, **changes: Any) -> FinetuneConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    try:
        before = from_dict(FinetuneConfig, json.loads((out / "config.json").read_text()))
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = error.strerror if isinstance(error, OSError) else "config.json is damaged"
        raise DataError(f"{out} holds no run to resume ({why}); leave out --resume to start anew") from None
    inner, outer = split_changes(changes)
    after: FinetuneConfig = override(before, outer)
    after = dataclasses.replace(after, overrides={**after.overrides, **inner})
    for key, value in to_dict(after).items():
        if key not in MAY_CHANGE and value != to_dict(before)[key]:
            raise ConfigError(f"{key} of the run in {out} is fixed; leave it, or start anew in another --out")
    return after
