"""The rules that a learned imputer must beat: zero, mean, hold, lerp, observed mean; and backoff heads.

All work on standardised features, where zero *is* the training mean; a modality with nothing observed in the
window is filled with it. ``Mean`` takes any other constant, such as the standardised image of a raw zero.

Shape legend: B batch, N position, M modality, D width, K class.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from imputation.imputer import Filled, blend, checked
from imputation.variance import VarianceTable, last_seen, next_seen


class Baseline(nn.Module):
    """A rule that predicts every place from the observed places of its own modality."""

    rung = ""

    def __init__(self) -> None:
        super().__init__()
        self.variance = VarianceTable()

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled."""
        present, exists = checked(features, presence, exists)
        filled = blend(features, self.predict(features, present), present, exists)
        return Filled(filled, self.variance(present, exists), self.rung)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """Windows in which anything at all was observed: (B,) bool."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        return present.flatten(1).any(dim=1)

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        """A value for every place, (B, N, M, D) or broadcastable to it; reads observed places only."""
        raise NotImplementedError


class Zero(Baseline):
    """Zeros of the standardised features."""

    rung = "zero"

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        return presence.new_ones(presence.shape[0])

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        return torch.zeros_like(features)


class Mean(Zero):
    """One constant vector per modality, kept with the weights; 0 until given.

    ``width`` is the feature width D; ``value`` (M, D) is what to fill with.
    """

    rung = "mean"
    value: Tensor

    def __init__(self, width: int, value: Tensor | None = None) -> None:
        super().__init__()
        constant = torch.zeros(2, width) if value is None else value.detach().clone()
        if constant.shape != (2, width):
            raise ConfigError(f"value has shape {tuple(constant.shape)}; a width of {width} needs (2, {width})")
        self.register_buffer("value", constant)

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        return self.value.expand_as(features)


class Hold(Baseline):
    """The last observed feature before the place; before the first, the first."""

    rung = "hold"

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        before, after = last_seen(present), next_seen(present)
        source = torch.where(before >= 0, before, after)  # (B, N, M), N where nothing was observed
        return _take(features, source)


class Lerp(Baseline):
    """On the straight line between the observed neighbours; past the last one, as the last one."""

    rung = "lerp"

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        return lerp(features, present)


class ObservedMean(Baseline):
    """The mean of the window's observed features of the modality."""

    rung = "observed_mean"

    def predict(self, features: Tensor, present: Tensor) -> Tensor:
        return observed_mean(features, present)


def lerp(features: Tensor, present: Tensor) -> Tensor:
    """Linear interpolation along N between observed places: (B, N, M, D)."""
    length = features.shape[1]
    before, after = last_seen(present), next_seen(present)
    left = torch.where(before >= 0, before, after)
    right = torch.where(after < length, after, before)
    position = torch.arange(length, device=features.device).view(1, -1, 1)
    weight = (position - left).to(features.dtype) / (right - left).clamp(min=1)
    start, end = _take(features, left), _take(features, right)
    return start + weight.unsqueeze(-1) * (end - start)


def observed_mean(features: Tensor, present: Tensor) -> Tensor:
    """Mean over the observed places of each modality, 0 where there is none: (B, N, M, D)."""
    chosen = present.unsqueeze(-1)
    total = torch.where(chosen, features, 0).sum(dim=1, keepdim=True)  # (B, 1, M, D)
    return (total / chosen.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(features)


def _take(features: Tensor, index: Tensor) -> Tensor:
    """features[b, index[b, n, m], m, :], and 0 where the index lies outside: (B, N, M, D)."""
    length = features.shape[1]
    inside = (index >= 0) & (index < length)
    taken = features.gather(1, index.clamp(0, length - 1).unsqueeze(-1).expand_as(features))
    return torch.where(inside.unsqueeze(-1), taken, 0)


class Backoff(nn.Module):
    """Three linear classifiers trained on complete data; each clip votes with the one that fits what it has.

    ``classifiers`` maps "both" (2 D -> K), "video" and "audio" (D -> K). Clips with neither modality are
    left out, the others' probabilities averaged (curri-mae.md d.6). Nothing is filled.
    """

    rung = "backoff"

    def __init__(self, classifiers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if set(classifiers) != {"both", "video", "audio"}:
            raise ConfigError(f"backoff has classifiers {sorted(classifiers)}; give both, video and audio")
        self.classifiers = nn.ModuleDict(dict(classifiers))

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, K); uniform where nothing was observed."""
        present, exists = checked(features, presence, exists)
        clean = torch.where(present.unsqueeze(-1), features, 0)
        both, one = present.all(dim=2), present  # (B, N), (B, N, M)
        votes = {
            "both": self.classifiers["both"](clean.flatten(2)).softmax(-1),  # (B, N, K)
            "video": self.classifiers["video"](clean[:, :, 0]).softmax(-1),
            "audio": self.classifiers["audio"](clean[:, :, 1]).softmax(-1),
        }
        vote = torch.where(one[:, :, :1], votes["video"], votes["audio"])
        vote = torch.where(both.unsqueeze(-1), votes["both"], vote)
        seen = present.any(dim=2, keepdim=True)  # (B, N, 1)
        count = seen.sum(dim=1)
        mean = torch.where(seen, vote, 0).sum(dim=1) / count.clamp(min=1)
        uniform = torch.full_like(mean, 1 / mean.shape[-1])
        return torch.where(count > 0, mean, uniform).clamp(min=1e-12).log()
