"""A run of CAV-MAE's pre-training, which goes through the loop of `encoders.pretrain_mae`.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023); recipes are in `encoders.recipe_tables.cav_mae`.
The contrast is among the clips that go through the network together, a process's part of the batch, as published: more
processes, or ``accumulate``, make it easier.

B batch, H W pixels, U mel frame, F mel bin.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from encoders.audiovisual.av_mae_decoder import Masks
from encoders.audiovisual.cav_mae import CAVMAEConfig
from encoders.audiovisual.cav_mae_pretraining import (
    CAVMAEPretraining,
    ContrastiveConfig,
    PatchDecoderConfig,
    draw_masks,
)
from encoders.datasets.augment import Augment
from encoders.datasets.spectrograms import Spectrograms
from encoders.datasets.unlabelled import Reading
from encoders.errors import ConfigError
from encoders.pretrain_mae import PretrainConfig
from encoders.recipe_tables.cav_mae import CHOICES, DECODERS, RECIPES
from encoders.registry import config_of
from encoders.settings import override, pick
from encoders.training import Schedule, multistep
from encoders.weights.cav_mae import start
from encoders.weights.files import read

__all__ = ["CAVMAERun", "recipe"]


def _reading() -> Reading:
    """One picture of any second, unchanged, and all of the sound, with a little noise and turned around in time."""
    still = Augment(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
    sound = Spectrograms(frequency_masks=0, time_masks=0, warp=0, noise=0.1, roll=1024)
    return Reading(stride=1, fps=Fraction(1), augment=still, sound=sound)


@dataclass(frozen=True, kw_only=True)
class CAVMAERun(PretrainConfig):
    """A whole run. Defaults are the paper's Base on AudioSet."""

    model: CAVMAEConfig = field(default_factory=CAVMAEConfig)
    decoder: PatchDecoderConfig = field(default_factory=PatchDecoderConfig)
    objective: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    reading: Reading = field(default_factory=_reading)
    init: str = ""  # weights to start from: a vision MAE (as published), or a CAV-MAE; none: fresh
    epochs: int = 25
    batch: int = 48
    lr: float = 5e-5
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 5e-7  # part of the gradient, of all weights
    warmup: float = 0.0  # the public code names one and does without
    decay: float = 0.5  # of the learning rate, after ``decay_from`` epochs and every ``decay_every`` from there
    decay_from: int = 10
    decay_every: int = 5
    precision: Literal["fp32", "bf16"] = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decay_from", "decay_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay {self.decay} of the learning rate must lie in (0, 1]")

    @property
    def inputs(self) -> dict[str, Any]:
        return dict(self.model.inputs)

    @property
    def kind(self) -> str:
        drawn = f"{self.objective.mask} masks" if self.objective.reconstruct else "nothing drawn"
        return f"{drawn}, {'with' if self.objective.contrast else 'no'} contrast"

    def build(self) -> CAVMAEPretraining:
        return CAVMAEPretraining(self.model, self.decoder, self.objective)

    def begin(self, say: Callable[[str], None]) -> CAVMAEPretraining:
        """The model before the first step; what it starts from is said."""
        model = self.build()
        if self.init:
            file = Path(self.init).expanduser()
            say(f"started from {file}: {start(model, read(file).arrays, what=str(file))}")
        return model

    def masks(self, generator: torch.Generator) -> Masks:
        return draw_masks(self.model, self.objective, self.batch, generator)

    def prepared(self, model: Any, readings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``rgb`` (B, 3, H, W) and ``audio`` (B, U, F)."""
        return {**model.prepare(readings["video"], "video"), "audio": readings["audio"]}

    def encoder_weights(self, model: Any) -> dict[str, Tensor]:
        return {name: value for name, value in model.state_dict().items() if name in model.encoder_names}

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Adam over what learns, positions not among it."""
        learning = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.Adam(learning, self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def schedule(self, steps: int, total: int) -> Schedule:
        ends = range(self.decay_from, ceil(total / steps), self.decay_every)
        return multistep([epoch * steps / total for epoch in ends], self.decay, self.warmup * steps / total)


def recipe(preset: str, data: str, *, name: str = "", **changes: Any) -> CAVMAERun:
    """The run that a preset on a dataset stands for, with changes (dotted keys reach inside).

    ``name`` asks for one of RECIPES. Raises UsageError on unknown names, ConfigError on contradictions.
    """
    model = config_of(preset)
    if not isinstance(model, CAVMAEConfig):
        raise ConfigError(f"preset {preset} is no CAV-MAE; name one such as cav_mae_tiny")
    name = name or _recipe_name(preset, data.partition(":")[0])
    size = next((size for beginning, size in DECODERS.items() if preset.startswith(beginning)), {})
    begun = CAVMAERun(preset=preset, data=data, recipe=name, model=model, decoder=PatchDecoderConfig(**size))
    config: CAVMAERun = override(begun, {**pick(RECIPES, name, "recipe"), **changes})
    with torch.device("meta"):
        config.build()  # what cannot be built is refused before anything is read
    return config


def _recipe_name(preset: str, dataset: str) -> str:
    for wanted in (dataset, ""):
        found = [begin for begin, of in CHOICES if of == wanted and preset.startswith(begin)]
        if found:
            return CHOICES[max(found, key=len), wanted]
    raise AssertionError("any dataset has a recipe")
