"""Calibration on few speakers: as much of it as speakers who were left out confirm, and no more.

Every form of calibration is fitted on all speakers but one and judged on that one, by its negative log-likelihood.
One temperature is what the others must beat: a form with more to fit is chosen only where its gain over the speakers
is more than chance would show in any of the forms in one case of twenty (Student's t over speakers, Bonferroni over
forms; the one-standard-error rule of Breiman et al. 1984 lets too much through where there are four speakers).
Answers calibrated by fits that did not see their speaker come out too; a threshold with a promise is chosen on those.

Shape legend: B answer, K class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.errors import DataError
from imputation.abstention import Threshold, threshold_for
from imputation.calibrate import KNOTS, Calibration, fit
from imputation.tails import student_quantile

__all__ = ["FORMS", "Crossed", "Form", "cross_fitted", "fit_crossed", "promising"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a calibration may fit."""

    name: str
    knots: tuple[float, ...] = (1.0,)  # one: the same temperature at every observed share
    pull: float = 0.0  # between neighbouring temperatures
    offsets: bool = False
    offset_pull: float = 0.0  # of the offsets to nothing

    def fitted(self, logits: Tensor, share: Tensor, label: Tensor) -> Calibration:
        """Of validation answers (B, K), (B,), (B,)."""
        return fit(
            logits, share, label, knots=self.knots, pull=self.pull, offsets=self.offsets, offset_pull=self.offset_pull
        )


CHANCE = 0.05  # that any form looks better than the first one although none is
ONE = Form(name="one temperature")
FORMS = (  # the first is what the others must beat
    ONE,
    Form(name="by share", knots=KNOTS, pull=0.02),
    Form(name="one temperature and offsets", offsets=True, offset_pull=0.01),
    Form(name="by share and offsets", knots=KNOTS, pull=0.02, offsets=True, offset_pull=0.01),
)


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """The chosen form fitted on all speakers, and how it was chosen.

    ``gains``: by form, how much less the negative log-likelihood (nats) of a speaker left out was than with the first
    form: mean over speakers, and its standard error. ``probabilities`` (B, K) are those of the chosen form where each
    answer's speaker was left out; with one speaker, of a fit that saw them.
    """

    calibration: Calibration
    form: Form
    gains: dict[str, tuple[float, float]]
    probabilities: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a table of results."""
        gains = {name: {"mean": mean, "error": error} for name, (mean, error) in self.gains.items()}
        return {"form": self.form.name, "gains": gains, **self.calibration.as_dict()}


def cross_fitted(form: Form, logits: Tensor, share: Tensor, label: Tensor, speakers: Sequence[str]) -> Tensor:
    """Probabilities (B, K), each from a fit without its speaker. Raises DataError with fewer than two speakers."""
    names = sorted(set(speakers))
    if len(names) < 2:
        raise DataError(f"speaker {names[0]!r} is the only one; cross-fitting needs two or more, or use one fit")
    out = torch.empty_like(logits, dtype=torch.float32)
    for name in names:
        rows = torch.tensor([s == name for s in speakers])
        fitted = form.fitted(logits[~rows], share[~rows], label[~rows])
        out[rows] = fitted(logits[rows], share[rows])[0]
    return out


def fit_crossed(
    logits: Tensor, share: Tensor, label: Tensor, speakers: Sequence[str], forms: Sequence[Form] = FORMS
) -> Crossed:
    """Choose among ``forms`` and fit on everything: logits (B, K), share (B,), label (B,), a speaker for each.

    With one speaker there is nobody to ask, and the first form is taken. Raises DataError on answers that do not fit.
    """
    if not forms:
        raise DataError("no form of calibration to choose from; give at least one, e.g. cross_fit.FORMS")
    if len(speakers) != len(logits):
        raise DataError(f"{len(speakers)} speakers for {len(logits)} answers; name one for each")
    logits, share, first = logits.detach().float(), share.float(), forms[0]
    if len(set(speakers)) < 2:
        made = first.fitted(logits, share, label)
        return Crossed(calibration=made, form=first, gains={}, probabilities=made(logits, share)[0])
    found = {form.name: cross_fitted(form, logits, share, label, speakers) for form in forms}
    base = _by_speaker(found[first.name], label, speakers)
    gains = {name: _mean_and_error(base - _by_speaker(p, label, speakers)) for name, p in found.items()}
    need = student_quantile(1 - CHANCE / max(len(forms) - 1, 1), len(set(speakers)) - 1)
    sure = [form for form in forms[1:] if gains[form.name][0] > need * gains[form.name][1]]
    chosen = max(sure, key=lambda form: gains[form.name][0], default=first)
    made = chosen.fitted(logits, share, label)
    return Crossed(calibration=made, form=chosen, gains=gains, probabilities=found[chosen.name])


def promising(
    crossed: Crossed,
    label: Tensor,
    speakers: Sequence[str],
    *,
    risk: float,
    delta: float = 0.1,
    windows: Sequence[Any] | None = None,
) -> tuple[Calibration, Threshold]:
    """The calibration with a ``min_confidence`` that keeps the risk (``abstention.threshold_for``), and what is known
    of it; where nothing can be promised, it answers nothing.

    With one speaker the promise is about that speaker's other windows; ``windows`` says which answers are of one.
    """
    confidence, guess = crossed.probabilities.max(dim=1)
    right = (guess == label).numpy(force=True)
    alike = speakers if len(set(speakers)) > 1 else windows
    found = threshold_for(confidence.numpy(force=True), right, risk=risk, delta=delta, speakers=alike)
    return replace(crossed.calibration, min_confidence=found.confidence), found


def _by_speaker(probabilities: Tensor, label: Tensor, speakers: Sequence[str]) -> Tensor:
    """Mean negative log-likelihood of each speaker's answers."""
    loss = F.nll_loss(probabilities.clamp_min(1e-12).log(), label, reduction="none")
    names = sorted(set(speakers))
    of = torch.tensor([names.index(s) for s in speakers])
    return torch.stack([loss[of == k].mean() for k in range(len(names))]).double()


def _mean_and_error(gain: Tensor) -> tuple[float, float]:
    return float(gain.mean()), float(gain.std(unbiased=True)) / math.sqrt(len(gain))
