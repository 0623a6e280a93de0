"""A window of both modalities' features through a fused transformer: MBT whose tokens are clips.

Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (NeurIPS 2021), with one token for each clip and modality
instead of one for each patch: what a frozen encoder made of 0.4 s is a token, and a window is two sequences of them,
each with a class token, which meet through bottlenecks (or in any other way of `encoders.audiovisual.fusion`).

A clip whose feature may not be believed is *dropped* from attention (``absent="drop"``), so that such a head needs
nobody to fill; or it is attended to as the imputer before it filled it (``absent="filled"``). A modality of which
nothing is there leaves the other's transformer alone: its logits are those of a head of one modality.

Shapes: B batch, W window position (clip), M modality (video, audio), D feature width, E width inside, K class.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.audiovisual.fusion import MODALITIES, FusedBlocks, FusionConfig
from encoders.errors import ConfigError, DataError
from encoders.layers.positions import sinusoid

__all__ = ["FusedHead", "FusedHeadConfig"]


@dataclass(frozen=True, kw_only=True)
class FusedHeadConfig:
    """Sizes of the transformer; the fields of fusion are those of MBT."""

    classes: int
    dim: int = 512  # D, the width of one modality's feature
    width: int = 128  # E, of a token
    depth: int = 4
    heads: int = 4
    mlp_dim: int = 256
    fusion_layer: int = 2  # the first block in which modalities meet; depth: they never do
    bottlenecks: int = 4  # 0: they attend to each other
    share_encoder: bool = False
    stochastic_depth: float = 0.0
    absent: Literal["drop", "filled"] = "drop"  # what becomes of a clip whose feature may not be believed

    def __post_init__(self) -> None:
        if self.classes < 1 or self.dim < 1:
            raise ConfigError(
                f"a head with {self.classes} classes over features of width {self.dim} cannot be built; give both >= 1"
            )
        if self.absent not in ("drop", "filled"):
            raise ConfigError(f"absent {self.absent!r} is unknown; use drop or filled")
        assert self.fusion, "sizes that do not fit raise"

    @property
    def fusion(self) -> FusionConfig:
        """The blocks."""
        names = ("depth", "heads", "mlp_dim", "fusion_layer", "bottlenecks", "share_encoder", "stochastic_depth")
        return FusionConfig(dim=self.width, **{name: getattr(self, name) for name in names})


class FusedHead(nn.Module):
    """Class tokens of both modalities after the last block, one classifier for both, their logits averaged."""

    def __init__(self, config: FusedHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.ModuleDict({m: nn.Linear(config.dim, config.width) for m in MODALITIES})
        self.cls = nn.Parameter(torch.zeros(len(MODALITIES), config.width))
        self.blocks = FusedBlocks(config.fusion)
        self.classifier = nn.Linear(config.width, config.classes)

    def forward(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        variance: Float[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Logits of each window, averaged over the modalities that it has; the classifier's bias where it has none."""
        each, has = self.each(features, presence, exists)
        weight = has.to(each)[..., None]  # (B, M, 1)
        mean = (each * weight).sum(1) / weight.sum(1).clamp_min(1)
        return torch.where(has.any(1, keepdim=True), mean, self.classifier.bias)

    def each(
        self,
        features: Float[Tensor, "b w m d"],
        presence: Bool[Tensor, "b w m"] | None = None,
        exists: Bool[Tensor, "b w"] | None = None,
    ) -> tuple[Float[Tensor, "b m k"], Bool[Tensor, "b m"]]:
        """The logits of each modality, whose losses training averages, and which of them a window has."""
        there = self._there(features, presence, exists)  # (B, W, M)
        has = there.any(1)  # (B, M)
        x, masks = {}, {}
        for place, m in enumerate(MODALITIES):
            x[m] = self._tokens(m, features[:, :, place], there[:, :, place])
            masks[m] = torch.cat([has[:, place, None], there[:, :, place]], 1)  # (B, 1+W)
        x = self.blocks(x, masks)
        classes = torch.stack([x[m][:, 0] for m in MODALITIES], 1)  # (B, M, E)
        return self.classifier(classes), has

    def _tokens(self, modality: str, features: Tensor, there: Tensor) -> Float[Tensor, "b n e"]:
        """Class token, then clips, each with its age as position, so that the newest stands alike in every window."""
        batch, length = features.shape[:2]
        clean = torch.where(there[..., None], features, 0)  # whatever an absent clip holds goes nowhere
        ages = sinusoid(length, self.config.width).flip(1).to(features)
        x = self.project[modality](clean) + ages
        first = self.cls[MODALITIES.index(modality)].expand(batch, 1, -1)
        return torch.cat([first.to(x), x], 1)

    def _there(self, features: Tensor, presence: Tensor | None, exists: Tensor | None) -> Bool[Tensor, "b w m"]:
        modalities, width = features.shape[2:]
        if width != self.config.dim:
            raise DataError(
                f"features are {width} wide but the head reads {self.config.dim}; use features of its own encoder"
            )
        if modalities != len(MODALITIES):
            raise DataError(f"features hold {modalities} modalities but the head reads {list(MODALITIES)}; give both")
        there = torch.ones(features.shape[:3], dtype=torch.bool, device=features.device)
        if self.config.absent == "drop" and presence is not None:
            there = there & presence
        return there if exists is None else there & exists[..., None]
