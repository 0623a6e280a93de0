"""Heads: a window of features to class scores. One that attends (MBT) is in `encoders.fused_head`, one that reads a
window twice in `encoders.two_readings`.

The two heads of curri-MAE (Chochlakis et al., Interspeech 2024, section 3): a linear classifier that votes clip by
clip, and a single-layer GRU whose last hidden state is classified. Both read a window; neither remembers anything
between windows. A window taken clip by clip with the GRU's `step` gives what `forward` gives, to rounding.

B batch, W window position (clip), M modality (video, audio), D feature width, K class, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError
from encoders.fused_head import FusedHead, FusedHeadConfig
from encoders.settings import override, pick
from encoders.two_readings import TwoReadings, TwoReadingsConfig

__all__ = ["HEADS", "GRUHead", "GRUHeadConfig", "GRUState", "LinearHead", "LinearHeadConfig", "build_head"]

MODALITIES = ("video", "audio")  # the order on the M axis


def _check(classes: int, dim: int, modalities: Sequence[str]) -> None:
    if classes < 1 or dim < 1:
        raise ConfigError(f"a head with {classes} classes over features of width {dim} cannot be built; give both >= 1")
    if not modalities or list(modalities) != [m for m in MODALITIES if m in modalities]:
        raise ConfigError(f"modalities {list(modalities)} must be a choice of {list(MODALITIES)} in that order")


@dataclass(frozen=True, kw_only=True)
class LinearHeadConfig:
    """One linear classifier for every clip; its votes are averaged as probabilities."""

    classes: int
    dim: int = 512  # D, the width of one modality's feature
    modalities: tuple[str, ...] = MODALITIES  # those it reads
    doubt: float = 0.0  # a vote weighs 1 / (1 + doubt * mean variance of its features); 0: all the same (paper)

    def __post_init__(self) -> None:
        _check(self.classes, self.dim, self.modalities)
        if self.doubt < 0:
            raise ConfigError(f"doubt {self.doubt} is negative; use 0 to let all votes weigh the same")


class LinearHead(nn.Module):
    """Mean over existing clips of softmax(linear([video; audio])), as log-probabilities."""

    def __init__(self, config: LinearHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.classifier = nn.Linear(len(config.modalities) * config.dim, config.classes)

    def votes(self, features: Float[Tensor, "b w m d"]) -> Float[Tensor, "b w k"]:
        """Logits of each clip by itself; training takes the cross-entropy of each (spec curri-MAE b.5)."""
        return self.classifier(_choose(features, self.config.modalities, self.config.dim).flatten(2))

    def forward(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        variance: Float[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Log-probabilities; a window without any existing clip gives the uniform distribution."""
        log_p = self.votes(features).float().log_softmax(-1)  # (B, W, K)
        weight = log_p.new_ones(features.shape[:2])  # (B, W)
        if self.config.doubt and variance is not None:
            weight = weight / (1 + self.config.doubt * variance.float().mean(-1))
        if exists is not None:
            weight = weight * exists
        empty = weight.sum(1, keepdim=True) == 0  # (B, 1)
        log_weight = torch.where(empty, torch.ones_like(weight), weight).log()  # log 0 = -inf: no vote
        log_p = torch.where(empty[..., None], log_p.new_tensor(1 / self.config.classes).log(), log_p)
        log_p = torch.where(log_weight[..., None] == -torch.inf, torch.zeros_like(log_p), log_p)  # NaN stays outside
        return (log_p + log_weight[..., None]).logsumexp(1) - log_weight.logsumexp(1)[..., None]


@dataclass(frozen=True, kw_only=True)
class GRUHeadConfig:
    """One GRU layer, forward in time, its last hidden state classified. The defaults are the paper's head."""

    classes: int
    dim: int = 512  # D, the width of one modality's feature
    modalities: tuple[str, ...] = MODALITIES  # those it reads
    hidden: int = 512  # H
    project: int = 0  # width each modality is projected to before the GRU; 0: no projection
    interaction: bool = False  # append the product, place by place, of the two (projected) modalities
    agreement: int = 0  # append the mean product of the unprojected modalities in that many equal shares of D; 0: none
    presence_aware: bool = False  # append presence bits and variances, one of each per modality

    def __post_init__(self) -> None:
        _check(self.classes, self.dim, self.modalities)
        if self.hidden < 1 or self.project < 0:
            raise ConfigError(f"hidden {self.hidden} must be >= 1 and project {self.project} >= 0 (0: no projection)")
        if (self.interaction or self.agreement) and len(self.modalities) != 2:
            names = list(self.modalities)
            raise ConfigError(f"interaction and agreement need two modalities, not {names}; turn them off")
        if self.agreement < 0 or (self.agreement and self.dim % self.agreement):
            raise ConfigError(f"agreement {self.agreement} does not divide features of width {self.dim}; use a divisor")

    @property
    def inputs(self) -> int:
        """Width of what the GRU reads at one clip."""
        count, width = len(self.modalities), self.project or self.dim
        return count * width + self.interaction * width + self.agreement + self.presence_aware * 2 * count


@dataclass(frozen=True)
class GRUState:
    """What the GRU remembers between two clips of one window."""

    hidden: Tensor  # (B, H)

    def reset(self, rows: Tensor) -> "GRUState":
        """Forget where ``rows`` (B,) is True."""
        return GRUState(torch.where(rows[:, None], torch.zeros_like(self.hidden), self.hidden))


class GRUHead(nn.Module):
    """Clips in order through one GRU; the hidden state after the last existing clip is classified."""

    def __init__(self, config: GRUHeadConfig) -> None:
        super().__init__()
        self.config = config
        if config.project:
            self.project = nn.ModuleDict({m: nn.Linear(config.dim, config.project) for m in config.modalities})
        self.gru = nn.GRUCell(config.inputs, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.classes)

    def initial_state(self, batch: int) -> GRUState:
        """Zeros: each window starts from nothing."""
        return GRUState(self.classifier.weight.new_zeros(batch, self.config.hidden))

    def step(
        self,
        feature: Float[Tensor, "b m d"],
        state: GRUState,
        presence: Bool[Tensor, "b m"] | None = None,
        variance: Float[Tensor, "b m"] | None = None,
        exists: Bool[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k"], GRUState]:
        """One clip: the logits after it, and the state. A row that does not exist leaves its state alone."""
        new = self.gru(self._inputs(feature, presence, variance), state.hidden)  # (B, H)
        if exists is not None:
            new = torch.where(exists[:, None], new, state.hidden)
        return self.classifier(new), GRUState(new)

    def forward(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        variance: Float[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Logits of each window."""
        if not torch.is_grad_enabled() and features.device.type == "cpu":
            exists = None if exists is None or bool(exists.all()) else exists
            if exists is None or len(exists) == 1:
                return self._at_once(self._inputs(features, presence, variance), exists)
        state = self.initial_state(len(features))
        logits = self.classifier(state.hidden)
        for t in range(features.shape[1]):
            now = (None if x is None else x[:, t] for x in (presence, variance, exists))
            logits, state = self.step(features[:, t], state, *now)
        return logits

    def _at_once(self, inputs: Float[Tensor, "b w i"], exists: Bool[Tensor, "b w"] | None) -> Float[Tensor, "b k"]:
        """All steps in one call, for rows whose positions are all there, or for one row: five times as fast."""
        if exists is not None:  # a position that is not there is as good as left out
            inputs = inputs[:, exists[0]]
        hidden = self.initial_state(len(inputs)).hidden
        if inputs.shape[1]:
            cell = self.gru
            weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
            # biases yes, 1 layer, no dropout, not training, one direction, batch first
            hidden = torch.gru(inputs.to(hidden.dtype), hidden[None], weights, True, 1, 0.0, False, False, True)[1][0]
        return self.classifier(hidden)

    def _inputs(self, feature: Tensor, presence: Tensor | None, variance: Tensor | None) -> Tensor:
        """What the GRU reads, of one clip or of all: (..., M, D) -> (..., I)."""
        chosen = _choose(feature, self.config.modalities, self.config.dim)  # (..., M', D)
        parts = list(chosen.unbind(-2))
        if self.config.project:
            parts = [self.project[m](x) for m, x in zip(self.config.modalities, parts, strict=True)]  # (..., P)
        if self.config.interaction:
            parts.append(parts[0] * parts[1])
        if self.config.agreement:
            product = chosen[..., 0, :] * chosen[..., 1, :]  # (..., D)
            parts.append(product.unflatten(-1, (self.config.agreement, -1)).mean(-1))
        if self.config.presence_aware:
            bits = chosen.new_ones(chosen.shape[:-1]) if presence is None else self._of(presence).to(chosen.dtype)
            sure = torch.zeros_like(bits) if variance is None else self._of(variance).to(chosen.dtype)
            parts += [bits, sure]  # (..., M') each
        return torch.cat(parts, -1)

    def _of(self, per_modality: Tensor) -> Tensor:
        return _choose(per_modality[..., None], self.config.modalities, 1)[..., 0]


def _choose(features: Tensor, modalities: Sequence[str], dim: int) -> Tensor:
    """The modalities a head reads, from an M axis (last but one) that holds either all of them or just those."""
    count, width = features.shape[-2:]
    if width != dim:
        raise DataError(f"features are {width} wide but the head reads {dim}; use features of its own encoder")
    if count == len(modalities):
        return features
    if count != len(MODALITIES):
        raise DataError(f"features hold {count} modalities but the head reads {list(modalities)}; give both")
    return features[..., [MODALITIES.index(m) for m in modalities], :]


HEADS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "linear": (LinearHead, LinearHeadConfig),
    "gru": (GRUHead, GRUHeadConfig),
    "mbt": (FusedHead, FusedHeadConfig),
    "two_readings": (TwoReadings, TwoReadingsConfig),
}


def build_head(kind: str, **config: Any) -> nn.Module:
    """A head by name (see `HEADS`) and the fields of its config; raises UsageError on an unknown name."""
    head, config_class = pick(HEADS, kind, "head")
    return head(override(config_class, config))
