"""The ways to answer from damaged windows ("arms"), as tables: what fills, what reads, and how each is trained.

Chochlakis et al., "Tackling Missing Modalities in Audio-Visual Representation Learning Using Masked Autoencoders"
(Interspeech 2024), section 3, and what we set against it. Everything that is trained on masks gets the same number of
masked steps (`Budget`); what the paper leaves open is decided so:

- "-ft" hides all clips but one, "-ft-all" draws k of 0..L-1 for each window; both exist for both heads.
- A rate of 40 or 70 % is the nearest whole number of clips.
- "Regular" fills with zeros of raw features, as published; "drops" with zeros of standardised ones, the honest rival.

Shapes: L clip of a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from encoders.errors import ConfigError
from encoders.settings import pick

__all__ = ["ARMS", "BEYOND", "FILLS", "HEADS", "KINDS", "PAPER", "Arm", "Budget", "Fill", "Head", "arms_of"]

KINDS = ("linear", "gru")
RULES = ("zero", "raw_zero", "hold", "lerp", "observed_mean")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much everything learns. Steps are optimizer steps; the defaults suit hundreds of windows."""

    head_steps: int = 400  # of a head on whole windows
    tune_steps: int = 400  # of every head that is trained on damaged ones, from there
    fill_steps: int = 1500  # of every imputer
    batch: int = 64
    head_lr: float = 1e-3
    tune_lr: float = 1e-3
    fill_lr: float = 1e-3
    weight_decay: float = 1e-3  # of heads
    hidden: int = 128  # of the GRU; the paper's is not known
    fill_preset: str = "curri_mae_small"
    fill_width: int = 0  # of encoder and decoder, instead of the preset's; 0: as it is

    def __post_init__(self) -> None:
        for name in ("head_steps", "tune_steps", "fill_steps", "batch", "head_lr", "tune_lr", "fill_lr", "hidden"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)} of the budget must be above 0")


@dataclass(frozen=True)
class Fill:
    """An imputer and how it learns: by reconstruction, and if ``consistency`` for the second half of its steps through
    the head on whole windows, so that the head says of filled windows what it says of whole ones."""

    sampling: str = "uniform"
    base: str = ""  # a rule that is filled with first; the autoencoder learns what that leaves over
    consistency: float = 0.0
    kind: str = "mae"  # mae, or what `imputation.fit` fits in one go
    options: Mapping[str, Any] = field(default_factory=dict)  # of the training's config


@dataclass(frozen=True)
class Head:
    """A head and how it learns. ``start``: another head that it is fine-tuned from, "" for none."""

    sampling: str = "none"
    fill: str = "zero"
    start: str = "pristine"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the training's config
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the head's config


@dataclass(frozen=True)
class Arm:
    """A head behind a fill. ``whole``: it is asked about whole windows only, as a line to compare with."""

    head: str
    fill: str = "zero"
    kinds: tuple[str, ...] = KINDS
    whole: bool = False
    says: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # lookahead, draws


FILLS: dict[str, Fill] = {
    "curri": Fill("curriculum"),
    "fixed": Fill("k=70%"),
    "uniform": Fill("uniform"),
    "curri_kl": Fill("curriculum", consistency=1.0),
    "uniform_kl": Fill("uniform", consistency=1.0),
    "real_loss": Fill("uniform+profile=wifi-burst+profile=congestion"),
    "gaussian": Fill(kind="gaussian"),
    "nearest": Fill(kind="nearest"),
    "residual": Fill("uniform", base="gaussian"),
    "residual_kl": Fill("uniform", base="gaussian", consistency=1.0),
}
HEADS: dict[str, Head] = {
    "pristine": Head(start=""),
    "video": Head(start="", overrides={"modalities": ("video",)}),
    "audio": Head(start="", overrides={"modalities": ("audio",)}),
    "backoff": Head(start="", options={"kind": "backoff"}),
    "regular_all": Head("all", "raw_zero"),
    "drops": Head("all"),
    "drops_real": Head("all+profile=wifi-burst+profile=congestion"),
    "drops_bits": Head("all", start="", overrides={"presence_aware": True}),
    "curri_max": Head("max", "curri"),
    "curri_all": Head("all", "curri"),
    "curri_40": Head("k=40%", "curri"),
    "curri_70": Head("k=70%", "curri"),
    "curri_40_70": Head("k=40%+k=70%", "curri"),
    "uniform_all": Head("all", "uniform"),
    "fixed_40": Head("k=40%", "fixed"),
    "fixed_70": Head("k=70%", "fixed"),
    "fixed_40_70": Head("k=40%+k=70%", "fixed"),
    "residual_all": Head("all", "residual"),
    "residual_kl_all": Head("all", "residual_kl"),
    "residual_sure": Head("all", "residual", start="", overrides={"presence_aware": True}),
    "residual_consistent": Head("all", "residual", options={"consistency": 1.0}),
    "two_readings": Head("all", "residual", options={"kind": "two_readings"}),
    "two_readings_mae": Head("all", "uniform", options={"kind": "two_readings"}),
    "two_readings_zeros": Head("all", "zero", options={"kind": "two_readings"}),
    "real_loss_all": Head("all+profile=wifi-burst+profile=congestion", "real_loss"),
}
_GRU, _LINEAR = ("gru",), ("linear",)
PAPER: dict[str, Arm] = {
    "Pristine": Arm("pristine", whole=True, says="nothing lost"),
    "Video only": Arm("video", whole=True, says="its own classifier, nothing lost"),
    "Audio only": Arm("audio", whole=True, says="its own classifier, nothing lost"),
    "Backoff": Arm("backoff", "", _LINEAR, says="three linear heads; each clip votes by what it has"),
    "Regular": Arm("pristine", "raw_zero", _GRU, says="raw zeros"),
    "Regular-ft-all": Arm("regular_all", "raw_zero", _GRU, says="raw zeros, head tuned on them"),
    "curri-MAE": Arm("pristine", "curri", says="filled, head as it was"),
    "curri-MAE-ft": Arm("curri_max", "curri", says="head tuned on windows of one clip"),
    "curri-MAE-ft-all": Arm("curri_all", "curri", says="head tuned on windows of any number of clips"),
    "MAE 40": Arm("fixed_40", "fixed", _GRU, says="autoencoder of one rate (70 %), head tuned at 40 %"),
    "MAE 70": Arm("fixed_70", "fixed", _GRU, says="the same, head tuned at 70 %"),
    "MAE 40+70": Arm("fixed_40_70", "fixed", _GRU, says="the same, head tuned at both"),
    "curri-MAE-ft 40": Arm("curri_40", "curri", _GRU),
    "curri-MAE-ft 70": Arm("curri_70", "curri", _GRU),
    "curri-MAE-ft 40+70": Arm("curri_40_70", "curri", _GRU),
}
BEYOND: dict[str, Arm] = {
    "zeros": Arm("pristine", "zero", says="the mean feature"),
    "hold": Arm("pristine", "hold"),
    "lerp": Arm("pristine", "lerp"),
    "observed mean": Arm("pristine", "observed_mean"),
    "nearest": Arm("pristine", "nearest"),
    "gaussian": Arm("pristine", "gaussian"),
    "MAE, uniform k": Arm("pristine", "uniform", says="no curriculum"),
    "curri-MAE + KL": Arm("pristine", "curri_kl"),
    "MAE + KL": Arm("pristine", "uniform_kl"),
    "residual": Arm("pristine", "residual"),
    "residual + KL": Arm("pristine", "residual_kl"),
    "drops": Arm("drops", "zero", says="head trained with drops: the honest rival"),
    "drops, bits": Arm("drops_bits", "zero", _GRU),
    "drops, real loss": Arm("drops_real", "zero", _GRU),
    "MAE-ft-all": Arm("uniform_all", "uniform", says="no curriculum"),
    "residual-ft-all": Arm("residual_all", "residual"),
    "residual + KL, ft-all": Arm("residual_kl_all", "residual_kl"),
    "residual-ft-all, sure": Arm("residual_sure", "residual", _GRU),
    "residual-ft-all, consistent": Arm("residual_consistent", "residual"),
    "two readings": Arm("two_readings", "residual", says="read as filled and with zeros, answers averaged"),
    "two readings, MAE": Arm("two_readings_mae", "uniform", says="the same, filled by the plain autoencoder"),
    "two readings, zeros twice": Arm("two_readings_zeros", "zero", says="two heads with drops: what averaging gives"),
    "MAE-ft-all, real loss": Arm("real_loss_all", "real_loss", _GRU),
    "drops, lookahead 2": Arm("drops", "zero", _GRU, options={"lookahead": 2}),
    **{f"two readings, lookahead {f}": Arm("two_readings", "residual", _GRU, options={"lookahead": f})
       for f in range(4)},
    **{f"residual, lookahead {f}": Arm("pristine", "residual", _GRU, options={"lookahead": f}) for f in range(4)},
}  # fmt: skip
ARMS = {**PAPER, **BEYOND}


def arms_of(names: str, kind: str) -> dict[str, Arm]:
    """``paper``, ``beyond``, ``all``, or arms by name with commas between, as far as the kind of head has them."""
    tables = {"paper": PAPER, "beyond": BEYOND, "all": ARMS}
    chosen: dict[str, Arm] = {}
    for name in (part.strip() for part in names.split(";")):
        chosen |= tables[name] if name in tables else {name: pick(ARMS, name, "arm")}
    return {name: arm for name, arm in chosen.items() if kind in arm.kinds}
