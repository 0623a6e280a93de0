"""Accuracy and fill error by loss rate: the same masks for every arm, ten draws, spread over draws and speakers.

An arm is a head with the imputer in front of it (or a backoff arm, which needs none). For every rate k of L, and
every loss profile asked for, places are hidden by one stored seed per (sample, k, draw), so that arms differ only
in what they make of them (curri-mae.md d.7). Fill errors are always printed beside those of zero, lerp and the
observed mean, or a broken imputer would look fine.

Shape legend: n window, L position, M modality, D width, K class, W what the head sees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.errors import ConfigError
from imputation.abstention import risk_coverage
from imputation.baselines import Lerp, ObservedMean, Zero
from imputation.calibrate import Calibration, observed_share
from imputation.calibration_error import calibration_error, calibration_interval, reliability
from imputation.features import FeatureSet
from imputation.results import Difference, FillError, Reliability, Results, Score, Selective
from imputation.sampling import paired_hidden, profile_hidden

Progress = Callable[[int, int, str], None]  # (done, of, what comes next)


@dataclass(frozen=True)
class Arm:
    """A way to classify damaged windows. ``imputer`` None: the head reads presence by itself (backoff)."""

    name: str
    head: nn.Module
    imputer: nn.Module | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Answers:
    """What an arm said: log-probabilities (n, K), filled features (n, L, M, D) and variance (n, L, M), if filled."""

    log_probabilities: Tensor
    filled: Tensor | None
    variance: Tensor | None


@dataclass(frozen=True)
class Trial:
    """One draw of masks over all windows."""

    condition: str
    rate: float  # share of clips hidden
    draw: int
    presence: Tensor  # (n, L, M) what is left
    hidden: Tensor  # (n, L, M) observed, then hidden by us


@torch.inference_mode()
def answer(arm: Arm, features: Tensor, presence: Tensor, exists: Tensor, *, window: int, batch: int = 512) -> Answers:
    """The arm on standardised features (n, L, M, D); the head sees the first ``window`` positions."""
    parts: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    for start in range(0, len(features), batch):
        rows = slice(start, start + batch)
        x, p, e = features[rows], presence[rows], exists[rows]
        if arm.imputer is None:
            parts.append((arm.head(x[:, :window], p[:, :window], e[:, :window]), None, None))
            continue
        filled = arm.imputer(x, p, e)
        logits = arm.head(filled.features[:, :window], p[:, :window], filled.variance[:, :window], e[:, :window])
        parts.append((logits.float().log_softmax(dim=-1), filled.features, filled.variance))
    logits, fills, variances = zip(*parts, strict=True)
    if arm.imputer is None:
        return Answers(torch.cat(logits), None, None)
    return Answers(torch.cat(logits), torch.cat(fills), torch.cat(variances))


def trials(
    data: FeatureSet,
    exists: Tensor,
    *,
    levels: Sequence[int],
    draws: int,
    seed: int,
    profiles: Sequence[str] = (),
) -> Iterator[Trial]:
    """Every draw of every rate and profile, the same whenever it is asked for.

    ``exists`` (n, L) may be less than the data's (clips of the lookahead that are not there yet); masks are drawn
    over the data's, so that they do not depend on how far one looks ahead.
    """
    observed = data.presence & exists.unsqueeze(-1)
    there = data.exists.numpy()
    seconds = float(data.notes.get("clip_seconds", 0.4))

    def trial(condition: str, rate: float | None, draw: int, mask: np.ndarray) -> Trial:
        hidden = torch.from_numpy(mask) & observed
        share = float(hidden.sum() / observed.sum().clamp(min=1)) if rate is None else rate
        return Trial(condition, share, draw, observed & ~hidden, hidden)

    numbers = range(seed * draws, (seed + 1) * draws)
    for k in levels:
        for draw in numbers if k else (0,):  # with nothing hidden all draws are one
            mask = paired_hidden(data.names, there, k, draw)
            yield trial(f"{k}/{data.length}", k / data.length, draw, mask)
    for profile in profiles:
        for draw in numbers:
            yield trial(profile, None, draw, profile_hidden(profile, there, draw, seconds))


def evaluate(
    arms: Sequence[Arm],
    data: FeatureSet,
    *,
    levels: Sequence[int] | None = None,
    draws: int = 10,
    seed: int = 0,
    profiles: Sequence[str] = (),
    lookahead: int = 0,
    ahead: int | None = None,
    reference: str | None = None,
    batch: int = 512,
    resamples: int = 100,
    progress: Progress | None = None,
) -> Results:
    """Scores of each arm and errors of each fill in every condition.

    ``data`` has windows of W + ``lookahead`` positions and its standardisation; ``ahead`` of the lookahead's clips
    are there already (default all). ``levels`` are the k of W hidden clips (default 0 .. W - 1). With
    ``reference`` each arm's paired difference to that arm is given with its standard error over speakers.
    Calibration errors are of all draws together, a window's draws counting as alike, with a 95 % interval from
    ``resamples`` of the speakers (0: none); of a single speaker, from those of the windows.
    Raises ConfigError on arms that share a name, and DataError on features that do not fit.
    """
    if len({arm.name for arm in arms}) != len(arms):
        raise ConfigError(f"arms {[arm.name for arm in arms]} share a name; give each its own")
    if reference is not None and reference not in {arm.name for arm in arms}:
        raise ConfigError(f"reference {reference!r} is no arm; choose from {', '.join(a.name for a in arms)}")
    window = data.length - lookahead
    exists = data.exists.clone()
    exists[:, window + (lookahead if ahead is None else ahead) :] = False
    features = data.standardised()
    tally = _Tally(arms, data, window, resamples)
    levels = range(window) if levels is None else levels
    count = draws * (len(levels) - (0 in levels) + len(profiles)) + (0 in levels)
    asked = trials(data, exists, levels=levels, draws=draws, seed=seed, profiles=profiles)
    for done, trial in enumerate(asked):
        if progress is not None:
            progress(done, count, trial.condition)
        tally.add(trial, features, exists, batch)
    settings = {"draws": draws, "seed": seed, "lookahead": lookahead, "ahead": ahead, "windows": len(data),
                "split": sorted(set(data.split)), "speakers": tally.speakers,
                "ece_over": "speakers" if len(tally.speakers) > 1 else "windows"}  # fmt: skip
    return tally.results(settings, reference)


class _Tally:
    """Collects one number per arm, condition and draw; and per speaker."""

    def __init__(self, arms: Sequence[Arm], data: FeatureSet, window: int, resamples: int) -> None:
        self.arms, self.data, self.window, self.resamples = arms, data, window, resamples
        self.fills: dict[str, nn.Module] = {"zero": Zero(), "lerp": Lerp(), "observed_mean": ObservedMean()}
        self.draws: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.errors: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
        self.rates: dict[str, list[float]] = {}
        self.speakers = sorted(set(data.speaker))
        self.of_speaker = torch.tensor([self.speakers.index(s) for s in data.speaker])

    def add(self, trial: Trial, features: Tensor, exists: Tensor, batch: int) -> None:
        self.rates.setdefault(trial.condition, []).append(trial.rate)
        share = observed_share(trial.presence[:, : self.window], exists[:, : self.window])
        known = torch.where(trial.presence.unsqueeze(-1), features, 0)
        for arm in self.arms:
            said = answer(arm, known, trial.presence, exists, window=self.window, batch=batch)
            self.draws.setdefault((arm.name, trial.condition), []).append(self._score(arm, said, share))
            if said.filled is not None:
                self._err(arm.name, trial, said.filled, features)
        for name, fill in self.fills.items():
            with torch.inference_mode():
                self._err(name, trial, fill(known, trial.presence, exists).features, features)

    def _err(self, name: str, trial: Trial, filled: Tensor, features: Tensor) -> None:
        error = (filled - features).square().mean(dim=-1)  # (n, L, M)
        total = torch.where(trial.hidden, error, 0).sum(dim=(0, 1)).double()
        self.errors.setdefault((name, trial.condition), []).append((total, trial.hidden.sum(dim=(0, 1))))

    def _score(self, arm: Arm, said: Answers, share: Tensor) -> dict[str, Any]:
        label = self.data.label
        if arm.calibration is None:
            probabilities = said.log_probabilities.exp()
            abstained = share <= 0
        else:
            probabilities, abstained = arm.calibration(said.log_probabilities, share)
        right = (probabilities.argmax(dim=-1) == label).double()
        answered = ~abstained
        return {
            "accuracy": right.mean().item(),
            "recall": mean_recall(right, label),
            "nll": F.nll_loss(probabilities.clamp_min(1e-12).log(), label, ignore_index=-1).item(),
            "confidence": probabilities.amax(dim=-1).numpy(force=True),
            "right": right.bool().numpy(force=True),
            "abstained": abstained.double().mean().item(),
            "answered": right[answered].mean().item() if answered.any() else float("nan"),
            "speakers": [right[self.of_speaker == s].mean().item() for s in range(len(self.speakers))],
        }

    def results(self, settings: Mapping[str, Any], reference: str | None) -> Results:
        scores, bins, curves = [], list[Reliability](), list[Selective]()
        for (arm, condition), draws in self.draws.items():
            said = _Said.of(draws)
            scores.append(self._summary(arm, condition, draws, said))
            bins += said.reliability(arm, condition)
            curves += said.selective(arm, condition)
        errors = [self._error(fill, condition, parts) for (fill, condition), parts in self.errors.items()]
        differences = [] if reference is None else self._differences(reference)
        return Results(
            scores=scores, errors=errors, differences=differences, settings=dict(settings), bins=bins, curves=curves
        )

    def _summary(self, arm: str, condition: str, draws: Sequence[Mapping[str, Any]], said: "_Said") -> Score:
        def mean(name: str) -> float:
            return float(np.mean([d[name] for d in draws]))

        def std(name: str) -> float:
            return float(np.std([d[name] for d in draws]))

        speakers = np.mean([d["speakers"] for d in draws], axis=0)
        low, high = self._interval(said)
        return Score(
            arm=arm,
            condition=condition,
            rate=float(np.mean(self.rates[condition])),
            accuracy=mean("accuracy"),
            accuracy_std=std("accuracy"),
            recall=mean("recall"),
            recall_std=std("recall"),
            ece=calibration_error(said.confidence, said.right, groups=said.window),
            ece_low=low,
            ece_high=high,
            nll=mean("nll"),
            risk_area=risk_coverage(said.confidence, said.right).area,
            abstained=mean("abstained"),
            answered_accuracy=mean("answered"),
            speakers=dict(zip(self.speakers, speakers.tolist(), strict=True)),
        )

    def _interval(self, said: "_Said") -> tuple[float, float]:
        """Of the calibration error, over speakers; over windows where there is one speaker."""
        if not self.resamples:
            return float("nan"), float("nan")
        who = np.asarray(self.of_speaker)[said.window] if len(self.speakers) > 1 else said.window
        return calibration_interval(said.confidence, said.right, who, groups=said.window, resamples=self.resamples)

    def _error(self, fill: str, condition: str, parts: Sequence[tuple[Tensor, Tensor]]) -> FillError:
        total = torch.stack([t for t, _ in parts]).sum(dim=0)
        count = torch.stack([c for _, c in parts]).sum(dim=0)
        video, audio = (total / count.clamp(min=1)).where(count > 0, torch.nan).tolist()
        return FillError(
            fill=fill, condition=condition, rate=float(np.mean(self.rates[condition])), video=video, audio=audio
        )

    def _differences(self, reference: str) -> list[Difference]:
        """Arm minus reference, averaged over draws within each speaker, then over speakers."""
        out = []
        for (arm, condition), draws in self.draws.items():
            if arm == reference:
                continue
            base = self.draws[reference, condition]
            gaps = np.array([d["speakers"] for d in draws]) - np.array([d["speakers"] for d in base])
            by_speaker = gaps.mean(axis=0)
            error = float(by_speaker.std(ddof=1) / np.sqrt(len(by_speaker))) if len(by_speaker) > 1 else float("nan")
            out.append(
                Difference(
                    arm=arm, reference=reference, condition=condition, mean=float(by_speaker.mean()), error=error
                )
            )
        return out


@dataclass(frozen=True)
class _Said:
    """An arm's answers in one condition, all draws together: confidence, right or not, which window."""

    confidence: np.ndarray
    right: np.ndarray
    window: np.ndarray

    @classmethod
    def of(cls, draws: Sequence[Mapping[str, Any]]) -> "_Said":
        confidence, right = (np.concatenate([d[name] for d in draws]) for name in ("confidence", "right"))
        return cls(np.minimum(confidence, 1.0), right, np.tile(np.arange(len(draws[0]["right"])), len(draws)))

    def reliability(self, arm: str, condition: str) -> list[Reliability]:
        bins = reliability(self.confidence, self.right, groups=self.window)
        return [Reliability(arm=arm, condition=condition, **asdict(b)) for b in bins]

    def selective(self, arm: str, condition: str) -> list[Selective]:
        """The curve of risk at every tenth of coverage."""
        curve, out = risk_coverage(self.confidence, self.right), []
        for tenth in range(1, 11):
            at = min(int(np.searchsorted(curve.coverage, tenth / 10 - 1e-12)), len(curve.risk) - 1)
            values = (float(x[at]) for x in (curve.coverage, curve.threshold, curve.risk))
            coverage, threshold, risk = values
            out.append(Selective(arm=arm, condition=condition, coverage=coverage, confidence=threshold, risk=risk))
        return out


def mean_recall(right: Tensor, label: Tensor) -> float:
    """The mean over classes of the share of their windows that were right: (n,), (n,)."""
    return float(np.mean([right[label == k].mean().item() for k in label.unique()]))


def fill_error(
    imputer: nn.Module,
    features: Tensor,
    presence: Tensor,
    exists: Tensor,
    hidden: Tensor,
    *,
    batch: int = 512,
) -> tuple[Tensor, Tensor]:
    """Squared errors (n, L, M) of filled places, and which those are: presence is what is known before hiding."""
    known = presence & ~hidden
    out = []
    with torch.inference_mode():
        for start in range(0, len(features), batch):
            rows = slice(start, start + batch)
            x = torch.where(known[rows].unsqueeze(-1), features[rows], 0)
            out.append((imputer(x, known[rows], exists[rows]).features - features[rows]).square().mean(dim=-1))
    return torch.cat(out), hidden & presence


def calibration_data(
    arm: Arm,
    data: FeatureSet,
    *,
    draws: int = 2,
    seed: int = 1,
    lookahead: int = 0,
    ahead: int | None = None,
    profiles: Sequence[str] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities, observed share, label) over all rates: what ``calibrate.fit`` is given."""
    window = data.length - lookahead
    exists = data.exists.clone()
    exists[:, window + (lookahead if ahead is None else ahead) :] = False
    features = data.standardised()
    logits, shares, labels = [], [], []
    for trial in trials(data, exists, levels=range(window), draws=draws, seed=seed, profiles=profiles):
        known = torch.where(trial.presence.unsqueeze(-1), features, 0)
        logits.append(answer(arm, known, trial.presence, exists, window=window).log_probabilities)
        shares.append(observed_share(trial.presence[:, :window], exists[:, :window]))
        labels.append(data.label)
    return torch.cat(logits).clone(), torch.cat(shares), torch.cat(labels)
