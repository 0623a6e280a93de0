"""Confidence that means what it says, whatever was lost: fitted on validation, applied by the runtime.

Logits get one offset per class, then are divided by a temperature that depends on the observed share of the
window, on straight lines between knots. A window abstains when its confidence or its observed share is too low.

Shape legend: B batch, K class.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.errors import DataError
from imputation.calibration_error import BINS, calibration_error

KNOTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # observed shares
_RANGE = (0.05, 20.0)  # temperatures
_PRIOR = 0.004  # pulls neighbouring knots together where validation has little to say


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``knots`` are observed shares, ascending; ``offsets`` is empty or one number per class."""

    knots: tuple[float, ...] = (0.0, 1.0)
    temperatures: tuple[float, ...] = (1.0, 1.0)
    offsets: tuple[float, ...] = ()
    min_confidence: float = 0.0
    min_share: float = 0.0  # a window that was seen less than this abstains

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        if len(self.knots) != len(self.temperatures) or len(self.knots) < 1 or not rising:
            raise DataError(
                f"calibration has knots {list(self.knots)} for {len(self.temperatures)} temperatures; "
                "give ascending observed shares, one temperature each"
            )
        if not all(t > 0 for t in self.temperatures):
            raise DataError(f"calibration has a temperature {min(self.temperatures)}; temperatures are positive")

    def __call__(self, logits: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
        """logits (B, K) or log-probabilities, observed share (B,) -> probabilities (B, K), abstained (B,) bool."""
        if isinstance(share, float):
            return self._at_one_share(logits.float(), share)
        share = torch.as_tensor(share, dtype=torch.float32, device=logits.device).expand(len(logits))
        probabilities = (self._shifted(logits.float()) / self.temperature(share).unsqueeze(-1)).softmax(dim=-1)
        unsure = probabilities.amax(dim=-1) < self.min_confidence
        return probabilities, unsure | (share < self.min_share) | (share <= 0)

    def _at_one_share(self, logits: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The same for rows of one share, as in serving, where each operator costs more than its arithmetic."""
        at = min(max(share, self.knots[0]), self.knots[-1])
        right = min(max(bisect_left(self.knots, at), 1), len(self.knots) - 1)
        low, high = self.knots[right - 1], self.knots[right]
        weight = (at - low) / (high - low) if right else 0.0
        cold, warm = self.temperatures[right - 1], self.temperatures[right]
        probabilities = (self._shifted(logits) / (cold + weight * (warm - cold))).softmax(dim=-1)
        unsure = probabilities.amax(dim=-1) < self.min_confidence
        return probabilities, unsure | (share < self.min_share or share <= 0)

    def temperature(self, share: Tensor) -> Tensor:
        """(B,) on straight lines between the knots, constant outside them."""
        return _interpolate(share, self.knots, torch.tensor(self.temperatures, device=share.device))

    def _shifted(self, logits: Tensor) -> Tensor:
        if not self.offsets:
            return logits
        if len(self.offsets) != logits.shape[-1]:
            raise DataError(
                f"calibration has {len(self.offsets)} offsets for {logits.shape[-1]} classes; fit it for this head"
            )
        return logits + torch.tensor(self.offsets, device=logits.device)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest; ``from_dict`` reads them back."""
        return {
            "knots": list(self.knots),
            "temperatures": list(self.temperatures),
            "offsets": list(self.offsets),
            "min_confidence": self.min_confidence,
            "min_share": self.min_share,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Raises DataError on a key it does not know."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise DataError(
                f"calibration has an unknown key {unknown[0]!r}; it has {', '.join(cls.__dataclass_fields__)}"
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else float(v) for k, v in values.items()}
        return cls(**plain)


def fit(
    logits: Tensor,
    share: Tensor,
    label: Tensor,
    *,
    knots: Sequence[float] = KNOTS,
    offsets: bool = False,
    target_accuracy: float | None = None,
    min_share: float = 0.0,
    pull: float = _PRIOR,
    offset_pull: float = 0.0,
) -> Calibration:
    """Least negative log-likelihood on validation: logits (B, K), share (B,), label (B,).

    ``offsets`` also fits one number per class. ``target_accuracy`` sets ``min_confidence`` to the lowest one
    at which answered windows are right that often (a promise needs ``abstention.threshold_for``). ``pull`` draws the
    temperatures of neighbouring knots together, ``offset_pull`` the offsets to nothing: what small data should
    choose by cross-fitting (``cross_fit.fit_crossed``).
    """
    if len(logits) == 0:
        raise DataError("calibration was given no validation windows; keep some speakers out of training")
    if not bool(torch.isfinite(logits).any(dim=1).all()) or bool(logits.isnan().any()):
        raise DataError("calibration was given logits that are not numbers; look for NaN in the features or the head")
    if not len(logits) == len(share) == len(label):
        raise DataError(
            f"calibration was given {len(logits)} logits, {len(share)} shares and {len(label)} labels; one each"
        )
    if int(label.min()) < 0 or int(label.max()) >= logits.shape[1]:
        wrong = int(label.min()) if int(label.min()) < 0 else int(label.max())
        raise DataError(
            f"calibration was given the label {wrong} for {logits.shape[1]} classes; leave out what is unlabelled"
        )
    logits, share = logits.detach().float(), share.float()
    log_temperature = torch.zeros(len(knots), requires_grad=True)
    shift = torch.zeros(logits.shape[1], requires_grad=offsets)
    low, high = (float(torch.tensor(t).log()) for t in _RANGE)

    def loss() -> Tensor:
        temperature = _interpolate(share, knots, log_temperature.clamp(low, high)).exp()
        scaled = (logits + shift) / temperature.unsqueeze(-1)
        held = pull * log_temperature.diff().square().sum() + offset_pull * shift.square().sum()
        return F.cross_entropy(scaled, label) + held

    parameters = [log_temperature, shift] if offsets else [log_temperature]
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    centred = (shift - shift.mean()).detach().tolist() if offsets else []
    fitted = Calibration(
        knots=tuple(float(k) for k in knots),
        temperatures=tuple(log_temperature.detach().clamp(low, high).exp().tolist()),
        offsets=tuple(centred),
        min_share=min_share,
    )
    if target_accuracy is None:
        return fitted
    probabilities, _ = fitted(logits, share)
    threshold = confidence_for(probabilities, label, target_accuracy)
    return replace(fitted, min_confidence=threshold)


def confidence_for(probabilities: Tensor, label: Tensor, accuracy: float) -> float:
    """The lowest confidence such that windows at or above it are right at least this often; 1 if there is none."""
    confidence, guess = probabilities.max(dim=-1)
    ordered, order = confidence.sort(descending=True)
    right = (guess == label)[order].double().cumsum(0) / torch.arange(1, len(label) + 1)
    last_of_its_value = torch.cat([ordered[1:] < ordered[:-1], torch.ones(1, dtype=torch.bool)])
    good = ((right >= accuracy) & last_of_its_value).nonzero()
    return float(ordered[good[-1]]) if len(good) else 1.0


def expected_calibration_error(
    probabilities: Tensor, label: Tensor, bins: int = BINS, *, groups: Sequence[Any] | None = None
) -> float:
    """``calibration_error`` (debiased) of the likeliest class: probabilities (B, K), label (B,)."""
    confidence, guess = probabilities.detach().max(dim=-1)
    return calibration_error(confidence.numpy(force=True), (guess == label).numpy(force=True), bins=bins, groups=groups)


def observed_share(presence: Tensor, exists: Tensor | None = None) -> Tensor:
    """Observed places as a share of existing ones, over both modalities: (B, L, M), (B, L) -> (B,)."""
    if exists is None:
        return presence.float().flatten(1).mean(dim=1)
    seen = (presence & exists.unsqueeze(-1)).flatten(1).sum(dim=1)
    return seen / (exists.sum(dim=1) * presence.shape[2]).clamp(min=1)


def _interpolate(share: Tensor, knots: Sequence[float], values: Tensor) -> Tensor:
    at = torch.tensor(list(knots), dtype=torch.float32, device=share.device)
    if len(at) == 1:
        return values.expand(len(share))
    right = torch.searchsorted(at, share.clamp(at[0], at[-1]).contiguous()).clamp(1, len(at) - 1)
    left = right - 1
    weight = ((share.clamp(at[0], at[-1]) - at[left]) / (at[right] - at[left])).to(values.dtype)
    return values[left] + weight * (values[right] - values[left])
