"""A head that reads a damaged window twice: as it was filled, and with zeros at what is absent; it believes both alike.

Ours. A head that is trained on zeros learns what an absence means and is never misled by a fill; one that is trained on
fills sees a whole window and profits where they are good. The mean of their probabilities is taken, for their mistakes
differ (``bench.robustness`` measures it against either). Both members learn in the same steps, each by its own loss.

B batch, W window position (clip), M modality (video, audio), D feature width, R reading (filled, zeros), K class.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.errors import ConfigError

__all__ = ["READINGS", "TwoReadings", "TwoReadingsConfig"]

READINGS = ("filled", "zeros")


@dataclass(frozen=True, kw_only=True)
class TwoReadingsConfig:
    """Two heads of one kind and size; the fields are those of `LinearHeadConfig` and `GRUHeadConfig`."""

    classes: int
    dim: int = 512  # D, the width of one modality's feature
    member: Literal["linear", "gru"] = "gru"
    hidden: int = 512  # of a GRU
    project: int = 0  # of a GRU: width each modality is projected to before; 0: no projection
    agreement: int = 0  # of a GRU
    presence_aware: bool = False  # of a GRU

    def __post_init__(self) -> None:
        if self.member not in ("linear", "gru"):
            raise ConfigError(f"member {self.member!r} is unknown; use linear or gru")
        assert self.own, "sizes that do not fit raise"

    @property
    def own(self) -> Any:
        """The config of a member."""
        from encoders.heads import HEADS  # which lists this head as well

        made: Any = HEADS[self.member][1]
        known = {f.name for f in fields(made)}
        return made(**{f.name: getattr(self, f.name) for f in fields(self) if f.name in known})


class TwoReadings(nn.Module):
    """Log of the mean of both members' probabilities."""

    def __init__(self, config: TwoReadingsConfig) -> None:
        from encoders.heads import HEADS

        super().__init__()
        self.config = config
        made = HEADS[config.member][0]
        self.members = nn.ModuleDict({name: made(config.own) for name in READINGS})

    def begin_as(self, head: nn.Module) -> None:
        """Both members start from a head of their kind and size. Raises RuntimeError where it is of another."""
        for member in self.members.values():
            member.load_state_dict(head.state_dict())

    def forward(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        variance: Float[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Log-probabilities of each window; features as an imputer filled them."""
        return self._each(features, presence, variance, exists).softmax(-1).mean(1).clamp_min(1e-12).log()

    def each(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> tuple[Float[Tensor, "b r k"], Bool[Tensor, "b r"]]:
        """The logits of each reading, whose losses training averages, and which of them a window has: both."""
        logits = self._each(features, presence, None, exists)
        return logits, torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)

    def _each(
        self, features: Tensor, presence: Tensor | None, variance: Tensor | None, exists: Tensor | None
    ) -> Float[Tensor, "b r k"]:
        """Zeros are no fill that could be off: their reader is told presence and no variance."""
        empty = features if presence is None else torch.where(presence[..., None], features, 0)
        filled, zeros = (self.members[name] for name in READINGS)
        return torch.stack([filled(features, presence, variance, exists), zeros(empty, presence, None, exists)], 1)
