"""Makes what the arms of one fold need: each imputer and head once, kept in a folder, gone on with where it stopped."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.heads import build_head
from encoders.settings import pick
from encoders.two_readings import TwoReadings
from imputation import evaluate
from imputation.baselines import Mean
from imputation.features import FeatureSet
from imputation.fit import fit_fill
from imputation.imputer import Filled
from imputation.run import Progress
from imputation.stored import RULES, load_head, load_imputer, save_imputer
from imputation.study.cases import Fold
from imputation.study.recipes import FILLS, HEADS, Arm, Budget, Fill, Head
from imputation.study.streaming import Streaming
from imputation.train import MAETraining, fit_variance, train_mae, validation_error
from imputation.train_head import HeadTraining, train_head

__all__ = ["FITTED", "Remembering", "Workshop", "raw_zero", "steps_of"]

# kind of fill -> what trains it on (training windows, validation windows, folder, seed), beside `imputation.fit`'s own
FITTED: dict[str, Callable[[FeatureSet, FeatureSet, Path, int], nn.Module]] = {}


class Workshop:
    """One fold, one seed, one kind of head."""

    def __init__(
        self, fold: Fold, kind: str, budget: Budget, folder: Path, *, seed: int, progress: Progress | None = None
    ) -> None:
        self.fold, self.kind, self.budget, self.seed, self.progress = fold, kind, budget, seed, progress
        self.folder = folder
        self._fills: dict[str, nn.Module] = {}
        self._heads: dict[str, nn.Module] = {}
        self._asked: dict[str, nn.Module] = {}

    def arm(self, name: str, recipe: Arm) -> evaluate.Arm:
        """A way to answer, ready to be asked."""
        if not recipe.fill:
            return evaluate.Arm(name, self.head(recipe.head))
        return evaluate.Arm(name, self.head(recipe.head), self._remembered(recipe))

    def _remembered(self, recipe: Arm) -> nn.Module:
        """Arms that fill alike are asked the same; they fill once."""
        ahead = recipe.options.get("lookahead")
        key = recipe.fill if ahead is None else f"{recipe.fill}, lookahead {ahead}"
        if key not in self._asked:
            fill = self.fill(recipe.fill)
            self._asked[key] = Remembering(fill if ahead is None else Streaming(fill, int(ahead)))
        return self._asked[key]

    def fill(self, name: str) -> nn.Module:
        """The imputer of that name."""
        if name not in self._fills:
            self._fills[name] = self._make_fill(name)
        return self._fills[name]

    def head(self, name: str) -> nn.Module:
        """The head of that name."""
        if name not in self._heads:
            self._heads[name] = self._make_head(name, pick(HEADS, name, "head"))
        return self._heads[name]

    def _make_fill(self, name: str) -> nn.Module:
        if name == "raw_zero":
            return raw_zero(self.fold.train)
        if name in RULES:
            return load_imputer(name)
        recipe = pick(FILLS, name, "fill")
        out = self.folder / (f"{self.kind}/fills" if recipe.consistency else "fills") / name
        if (out / "imputer.json").exists():
            return load_imputer(out)
        if recipe.kind in FITTED:
            return FITTED[recipe.kind](self.fold.train, self.fold.validation, out, self.seed)
        if recipe.kind != "mae":
            return fit_fill(recipe.kind, self.fold.train, self.fold.validation, out, **recipe.options)[0]
        if not recipe.consistency:
            return self._by_reconstruction(recipe, self.budget.fill_steps, out)
        return self._through_head(recipe, out)

    def _by_reconstruction(self, recipe: Fill, steps: int, out: Path) -> nn.Module:
        if (out / "imputer.json").exists():
            return load_imputer(out)
        return train_mae(self._mae(recipe, steps), self.fold.train, self.fold.validation, out,
                         resume=_stopped(out), progress=self.progress)  # fmt: skip

    def _mae(self, recipe: Fill, steps: int) -> MAETraining:
        base: dict[str, Any] = {"base": recipe.base} if recipe.base else {}
        width = self.budget.fill_width
        return MAETraining(
            preset=self.budget.fill_preset, overrides={"width": width, "decoder_width": width} if width else {},
            sampling=self._rates(recipe.sampling), steps=steps, lr=self.budget.fill_lr, batch=self.budget.batch,
            curriculum_step=max(1, 50 // (self.fold.train.length - 1)), seed=self.seed, save_every=steps,
            **base, **recipe.options,
        )  # fmt: skip

    def _through_head(self, recipe: Fill, out: Path) -> nn.Module:
        """The second half of its steps: what the head says counts as much as what was there."""
        half = self.budget.fill_steps // 2
        began, steps = self._by_reconstruction(recipe, half, out / "first"), self.budget.fill_steps - half
        config = HeadTraining(
            kind=self.kind, sampling="all", train="imputer", task=0.0, consistency=recipe.consistency,
            reconstruction=1.0, steps=steps, imputer_lr=self.budget.fill_lr / 2, batch=self.budget.batch,
            seed=self.seed, save_every=steps, evaluate_every=max(1, steps // 8),
        )  # fmt: skip
        _, learned = train_head(config, self.fold.train, self.fold.validation, out, imputer=began,
                                head=self.head("pristine"), resume=_stopped(out), progress=self.progress)  # fmt: skip
        fit_variance(learned, self.fold.validation)
        made = json.loads((out / "first" / "imputer.json").read_text())
        save_imputer(out, learned, made["preset"], made["overrides"],
                     metrics=validation_error(learned, self.fold.validation))  # fmt: skip
        return learned

    def _make_head(self, name: str, recipe: Head) -> nn.Module:
        out = self.folder / self.kind / "heads" / name
        if (out / "head.json").exists():
            return load_head(out)
        fine = recipe.start != "" and recipe.sampling != "none"
        budget = self.budget
        steps = budget.tune_steps if fine else budget.head_steps
        if recipe.sampling != "none" and not fine:  # nothing to start from: as much as both together
            steps = budget.head_steps + budget.tune_steps
        sizes = self._sizes(recipe)
        values: dict[str, Any] = {
            "kind": self.kind, "overrides": {**sizes, **recipe.overrides}, "sampling": self._rates(recipe.sampling),
            "steps": steps, "lr": budget.tune_lr if fine else budget.head_lr, "batch": budget.batch,
            "weight_decay": budget.weight_decay, "seed": self.seed, "save_every": steps,
            "evaluate_every": max(1, steps // 8), **recipe.options,
        }  # fmt: skip
        start = self._start(recipe, sizes) if fine else None
        head, _ = train_head(HeadTraining(**values), self.fold.train, self.fold.validation, out,
                             imputer=self.fill(recipe.fill), head=start, resume=_stopped(out),
                             progress=self.progress)  # fmt: skip
        return head

    def _sizes(self, recipe: Head) -> dict[str, Any]:
        """What a head's config needs of the kind that this workshop is for."""
        kind = recipe.options.get("kind", self.kind)
        sizes: dict[str, Any] = {"member": self.kind} if kind == "two_readings" else {}
        return sizes | ({"hidden": self.budget.hidden} if self.kind == "gru" and kind != "backoff" else {})

    def _start(self, recipe: Head, sizes: Mapping[str, Any]) -> nn.Module:
        start = self.head(recipe.start)
        if recipe.options.get("kind") != "two_readings":
            return start
        train = self.fold.train
        both = build_head("two_readings", classes=len(train.labels), dim=train.width, **sizes)
        assert isinstance(both, TwoReadings)
        both.begin_as(start)
        return both

    def _rates(self, sampling: str) -> str:
        """Shares of clips ("k=70%") as whole numbers of them, at least one of which is left."""
        length = self.fold.train.length
        parts = []
        for part in sampling.split("+"):
            if part.startswith("k=") and part.endswith("%"):
                share = int(part[2:-1]) / 100
                part = f"k={min(length - 1, max(1, int(share * length + 0.5)))}"
            parts.append(part)
        return "+".join(parts)


class Remembering(nn.Module):
    """An imputer that gives the same again when it is asked the same again. It keeps all that it filled."""

    def __init__(self, imputer: nn.Module) -> None:
        super().__init__()
        self.imputer, self.rung = imputer, str(imputer.rung)
        self._known: dict[bytes, Filled] = {}

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled."""
        key = hashlib.sha256()
        for x in (features, presence, *(() if exists is None else (exists,))):
            key.update(x.numpy(force=True).tobytes())
        if key.digest() not in self._known:
            self._known[key.digest()] = self.imputer(features, presence, exists)
        return self._known[key.digest()]


def raw_zero(train: FeatureSet) -> Mean:
    """Fills with the standardised image of a raw zero, as published."""
    assert train.standardiser is not None
    value = train.standardiser(torch.zeros(2, train.width))
    return Mean(train.width, value)


def _stopped(out: Path) -> bool:
    """A run that stopped on its way is gone on with."""
    return (out / "checkpoint.json").exists()


def steps_of(arms: Mapping[str, Arm], budget: Budget) -> tuple[int, int]:
    """Optimizer steps of all imputers and of all heads that the arms of one fold and kind need."""
    fills, heads = set[str](), set[str]()

    def need(head: str) -> None:
        if head not in heads:
            heads.add(head)
            fills.add(HEADS[head].fill)
            if HEADS[head].start:
                need(HEADS[head].start)

    for arm in arms.values():
        need(arm.head)
        fills.add(arm.fill)
    learned = [f for f in fills if f in FILLS and FILLS[f].kind == "mae"]
    tuned = sum(HEADS[h].sampling != "none" for h in heads)
    return len(learned) * budget.fill_steps, (len(heads) - tuned) * budget.head_steps + tuned * budget.tune_steps
