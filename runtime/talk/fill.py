"""What comes after the encoders: the imputer, the heads, their calibration, and the rivals in the same tables.

Every head and every arm gets the same number of masked steps, on the same windows, under the same kind of masks.

    plain       trained on complete windows; the classifier that knows nothing of loss
    drops       a head that is told what is missing, trained on zeros there: the honest rival
    tuned       the same head trained on what the imputer fills; the bundle's default
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from imputation.baselines import Hold, Lerp, ObservedMean, Zero
from imputation.calibrate import KNOTS, Calibration, fit
from imputation.evaluate import Arm, calibration_data, evaluate
from imputation.features import FeatureSet
from imputation.train import MAETraining, fit_variance, train_mae
from imputation.train_head import HeadTraining, train_head

RATES = tuple(f"clips-{rate}" for rate in range(10, 100, 10))  # per clip and modality, independently
RULES: dict[str, nn.Module] = {"zero": Zero(), "hold": Hold(), "lerp": Lerp(), "observed mean": ObservedMean()}
FITTED_ON = ("clips-20", "clips-50", "lte-driving")  # beside every k of W
# arm that a bundle can serve -> (head, fill); of `Trained`, or a rule's name
SERVED = {
    "tuned, curri-MAE": ("tuned", "tuned_imputer"),
    "drops, zero": ("drops", "zero"),
    "plain, curri-MAE": ("plain", "imputer"),
    "plain, lerp": ("plain", "lerp"),
    "plain, hold": ("plain", "hold"),
    "plain, zero": ("plain", "zero"),
}
PROFILES = (
    "wifi-burst",
    "wifi-poor",
    "lte-driving",
    "congestion",
    "congestion-severe",
    "camera-stall",
    "mic-mute",
    "both-drop",
)


@dataclass(frozen=True, kw_only=True)
class FillRecipe:
    """Steps are optimizer steps with batches of 64 windows."""

    masks: str = "independent"  # k from 0 to L - 1 in each row and modality by itself
    imputer: str = "curri_mae_small"
    imputer_overrides: dict[str, Any] = field(default_factory=dict)
    imputer_steps: int = 3000
    imputer_masks: str = "curriculum+independent+whole"
    imputer_lr: float = 5e-4
    head: dict[str, Any] = field(default_factory=lambda: {"hidden": 64, "project": 16, "agreement": 5})
    head_steps: int = 1500
    consistency: float = 0.5
    seed: int = 0


@dataclass
class Trained:
    """The models, all of them in eval mode."""

    imputer: nn.Module
    tuned_imputer: nn.Module
    plain: nn.Module
    drops: nn.Module
    tuned: nn.Module


def train(
    recipe: FillRecipe,
    train_set: FeatureSet,
    validation: FeatureSet,
    out: Path,
    lookahead: int,
    say: Callable[[str], None],
) -> Trained:
    """Everything, one after the other; each run keeps its folder below ``out``."""
    common: dict[str, Any] = {"lookahead": lookahead, "short": 0.2, "seed": recipe.seed}
    say("imputer")
    mae = MAETraining(
        preset=recipe.imputer, overrides=recipe.imputer_overrides, sampling=recipe.imputer_masks,
        steps=recipe.imputer_steps, lr=recipe.imputer_lr, epochs=52, curriculum_step=4,
        save_every=1000, log_every=100, **common,
    )  # fmt: skip
    imputer = train_mae(mae, train_set, validation, out / "imputer")
    head = HeadTraining(overrides=recipe.head, steps=recipe.head_steps, balance=True, evaluate_every=250,
                        save_every=1000, log_every=100, **common)  # fmt: skip
    say("plain head")
    plain, _ = train_head(head, train_set, validation, out / "plain")
    aware = replace(head, overrides={**recipe.head, "presence_aware": True}, sampling=recipe.masks)
    say("head with drops")
    drops, _ = train_head(aware, train_set, validation, out / "drops")
    say("head and imputer together")
    both = replace(aware, train="both", consistency=recipe.consistency, reconstruction=1.0)
    tuned, tuned_imputer = train_head(both, train_set, validation, out / "tuned", imputer=imputer)
    fit_variance(tuned_imputer, validation)
    return Trained(imputer.eval(), tuned_imputer.eval(), plain.eval(), drops.eval(), tuned.eval())


def arms(models: Trained, calibration: dict[str, Calibration]) -> list[Arm]:
    """Every way to classify a damaged window that the tables compare; offsets fitted on validation for each head."""
    heads = {"plain": models.plain, "drops": models.drops, "tuned": models.tuned}
    rows: list[tuple[str, str, nn.Module]] = [
        ("tuned", "curri-MAE", models.tuned_imputer),
        ("drops", "zero", Zero()),
        ("plain", "curri-MAE", models.imputer),
        *(("plain", name, rule) for name, rule in RULES.items()),
        *(("tuned", name, rule) for name, rule in RULES.items()),
    ]
    return [Arm(f"{head}, {name}", heads[head], imputer, calibration[head]) for head, name, imputer in rows]


def calibrate(
    models: Trained, validation: FeatureSet, lookahead: int, aheads: tuple[int, ...]
) -> dict[str, Calibration]:
    """Temperature by observed share and one offset per class for each head, on validation speakers, classes alike.

    ``aheads``: how many clips of the lookahead are there; their windows are taken together.
    """
    fills: dict[str, tuple[nn.Module, nn.Module]] = {
        "plain": (models.plain, models.imputer),
        "drops": (models.drops, Zero()),
        "tuned": (models.tuned, models.tuned_imputer),
    }
    out = {}
    for name, (head, imputer) in fills.items():
        arm = Arm(name, head, imputer)
        parts = [
            calibration_data(arm, validation, draws=2, lookahead=lookahead, ahead=ahead, profiles=FITTED_ON)
            for ahead in aheads
        ]
        logits, share, label = (torch.cat(x) for x in zip(*parts, strict=True))
        rows = balanced(label)
        out[name] = fit(logits[rows], share[rows], label[rows], knots=KNOTS, offsets=True)
    return out


def balanced(label: torch.Tensor) -> torch.Tensor:
    """Rows in which every class is as frequent as the most frequent one: (n,) -> (K * most,).

    The six conditions hold three of one label and one of another; how often people really speak nobody knows here.
    """
    classes = [(label == k).nonzero().flatten() for k in label.unique()]
    most = max(len(rows) for rows in classes)
    return torch.cat([rows.repeat(-(-most // len(rows)))[:most] for rows in classes])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm under one loss, on one speaker: means over draws; ``score`` is the mean of class recalls."""

    speaker: str
    arm: str
    loss: str
    score: float
    draws_std: float
    ece: float
    mse: dict[str, float]  # of what the arm's imputer filled in, per modality; empty where nothing was lost


def table(
    models: Trained, calibration: dict[str, Calibration], data: FeatureSet, lookahead: int, draws: int, seed: int
) -> list[Row]:
    """All arms at all rates and real profiles, speaker by speaker, on the same masks, without lookahead."""
    rows = []
    for speaker in sorted(set(data.speaker)):
        index = torch.tensor([i for i, s in enumerate(data.speaker) if s == speaker])
        found = evaluate(
            arms(models, calibration), data.rows(index), levels=[0], draws=draws, seed=seed,
            profiles=(*RATES, *PROFILES), lookahead=lookahead, ahead=0,
        )  # fmt: skip
        errors = {(e.fill, e.condition): {"video": e.video, "audio": e.audio} for e in found.errors}
        for s in found.scores:
            loss = "none" if s.condition.startswith("0/") else s.condition
            mse = errors.get((s.arm, s.condition), {}) if loss != "none" else {}
            row = Row(speaker=speaker, arm=s.arm, loss=loss, score=s.recall, draws_std=s.recall_std, ece=s.ece, mse=mse)
            rows.append(row)
    return rows


def compare(
    models: Trained, calibration: dict[str, Calibration], validation: FeatureSet, lookahead: int, seed: int
) -> dict[str, float]:
    """The score of each arm that can be served, on validation speakers, averaged over nothing lost and `RATES`."""
    asked = [arm for arm in arms(models, calibration) if arm.name in SERVED]
    found = evaluate(asked, validation, levels=[0], draws=3, seed=seed, profiles=RATES, lookahead=lookahead, ahead=0)
    return {arm.name: mean(s.recall for s in found.scores if s.arm == arm.name) for arm in asked}


def chosen(table: Mapping[str, float]) -> str:
    """The arm that did best on validation; of equals the one that comes first in `SERVED`."""
    return max(SERVED, key=lambda name: table[name])


def standardised_like(data: FeatureSet, train_set: FeatureSet) -> FeatureSet:
    """``data`` with the training windows' standardisation."""
    assert train_set.standardiser is not None, "fit the training windows first"
    return replace(data, standardiser=train_set.standardiser)


def logits_of(head: nn.Module, data: FeatureSet, window: int) -> torch.Tensor:
    """A head on complete windows (n, K)."""
    x = data.standardised()[:, :window]
    with torch.inference_mode():
        there = data.presence[:, :window]
        logits: torch.Tensor = head(x, there, torch.zeros(there.shape), data.exists[:, :window])
    return logits
