"""Two token sequences that meet in a transformer: through bottlenecks, in full, as one, or not at all.

Nagrani et al., "Attention Bottlenecks for Multimodal Fusion" (NeurIPS 2021), section 3, as google-research/scenic
(projects/mbt) computes it. What is absent is dropped, never zeroed: a token that is not there is attended to by nobody,
and where one modality has none the bottlenecks are not attended to either, for there is nothing to exchange.

Shapes: B row, N token of a modality, Z bottleneck, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.layers.block import Block, check_trunk, layer_norm, ramp
from encoders.layers.positions import learned

__all__ = ["MODALITIES", "FusedBlocks", "FusionConfig", "Masks", "Streams"]

MODALITIES = ("video", "audio")  # the M axis
Streams = dict[str, Tensor]  # by modality, those that any row has: (B, N, D)
Masks = Mapping[str, Tensor | None]  # likewise, (B, N), True = there; None: all of them are


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The blocks, and where and how modalities meet in them; the defaults are the paper's B."""

    dim: int = 768  # D
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    fusion_layer: int = 8  # L_f, the first block in which they meet; depth: they never do
    bottlenecks: int = 4  # B, tokens through which they speak; 0: they attend to each other
    share_encoder: bool = False  # one stack of blocks for both
    pool: Literal["token", "mean"] = "token"  # what is classified; mean: of the tokens (AV-MAE)
    stochastic_depth: float = 0.0  # of the last block, rising linearly from 0
    test_with_bottlenecks: bool = True  # False: in eval the modalities do not meet

    def __post_init__(self) -> None:
        check_trunk(self)
        if not 0 <= self.fusion_layer <= self.depth:
            raise ConfigError(
                f"fusion_layer {self.fusion_layer} of {self.depth} blocks cannot be; use 0 (early) to {self.depth} "
                "(late)"
            )
        if self.bottlenecks < 0:
            raise ConfigError(f"bottlenecks {self.bottlenecks} cannot be; use 0 for attention to each other in full")
        if self.pool not in ("token", "mean"):
            raise ConfigError(f"pool {self.pool!r} is unknown; use token or mean")
        if not 0 <= self.stochastic_depth < 1:
            raise ConfigError(f"stochastic_depth {self.stochastic_depth} must lie in [0, 1); use 0 to drop nothing")

    @property
    def tokens_between(self) -> int:
        """Z: the public code has one bottleneck more where there are class tokens."""
        return self.bottlenecks + (self.pool == "token" and self.bottlenecks > 0)


class FusedBlocks(nn.Module):
    """The blocks of both modalities and the last norm, which they share.

    ``modalities``: those that there are. With one alone this is a plain transformer, and there are no bottlenecks.
    """

    def __init__(self, config: FusionConfig, modalities: tuple[str, ...] = MODALITIES) -> None:
        super().__init__()
        self.config, self.modalities = config, modalities
        between = config.tokens_between if len(modalities) > 1 else 0
        self.bottleneck = learned(between, config.dim) if between else None
        self.shared = config.share_encoder and len(modalities) > 1
        stacks = ("both",) if self.shared else modalities
        self.blocks = nn.ModuleDict({name: _stack(config) for name in stacks})
        self.norm = layer_norm(config.dim)

    def forward(self, x: Streams, there: Masks) -> Streams:
        """Tokens of each modality (B, N, D) to normed tokens; where a mask is False a token is attended to by nobody.

        A row that has nothing of one modality exchanges nothing, whatever bottlenecks there are.
        """
        first = self.config.fusion_layer if self._meets(x) else self.config.depth
        for layer in range(first):
            x = {m: self._block(m, layer)(tokens, there[m]) for m, tokens in x.items()}
        if first < self.config.depth:
            x = self._fused(x, there, first)
        return {m: self.norm(tokens) for m, tokens in x.items()}

    def _meets(self, x: Streams) -> bool:
        return len(x) > 1 and (self.training or self.config.test_with_bottlenecks)

    def _fused(self, x: Streams, there: Masks, first: int) -> Streams:
        if self.bottleneck is not None:
            return self._through_bottleneck(x, there, first)
        return self._as_one(x, there, first) if self.shared else self._across(x, there, first)

    def _through_bottleneck(self, x: Streams, there: Masks, first: int) -> Streams:
        """Each modality and the bottlenecks in its own block; then the bottlenecks are what they are on average."""
        assert self.bottleneck is not None
        batch = len(next(iter(x.values())))
        z = self.bottleneck.expand(batch, -1, -1)  # (B, Z, D)
        meet = _meeting(there, batch, z.shape[1])  # (B, Z)
        masks = {m: _beside((there[m], meet), (x[m], z)) for m in x}
        for layer in range(first, self.config.depth):
            made = {m: self._block(m, layer)(torch.cat([x[m], z], 1), masks[m]) for m in x}
            x = {m: tokens[:, : x[m].shape[1]] for m, tokens in made.items()}
            z = torch.stack([tokens[:, x[m].shape[1] :] for m, tokens in made.items()]).mean(0)
        return x

    def _across(self, x: Streams, there: Masks, first: int) -> Streams:
        """Each modality beside the other's tokens in its own block, of which it keeps its own.

        What becomes of the other's is computed and thrown away, as in the public code and in its operations counted.
        """
        order = {m: [*(other for other in x if other != m), m] for m in x}
        masks = {m: _beside([there[o] for o in order[m]], [x[o] for o in order[m]]) for m in x}
        for layer in range(first, self.config.depth):
            beside = {m: torch.cat([x[o] for o in order[m]], 1) for m in x}
            x = {m: self._block(m, layer)(beside[m], masks[m])[:, -x[m].shape[1] :] for m in x}
        return x

    def _as_one(self, x: Streams, there: Masks, first: int) -> Streams:
        """One sequence from here on."""
        mask = _beside([there[m] for m in x], list(x.values()))
        joint = torch.cat(list(x.values()), 1)
        for layer in range(first, self.config.depth):
            joint = self._block(next(iter(x)), layer)(joint, mask)
        parts = joint.split([tokens.shape[1] for tokens in x.values()], 1)
        return dict(zip(x, parts, strict=True))

    def _block(self, modality: str, layer: int) -> nn.Module:
        stack = self.blocks["both" if self.shared else modality]
        return cast(nn.ModuleList, stack)[layer]


def _stack(config: FusionConfig) -> nn.ModuleList:
    drops = ramp(config.stochastic_depth, config.depth)
    return nn.ModuleList(Block(config.dim, config.heads, config.mlp_dim, drop_path=prob) for prob in drops)


def _meeting(there: Masks, batch: int, count: int) -> Tensor | None:
    """(B, Z): True where a row has something of every modality; None where all do."""
    known = [mask.any(1) for mask in there.values() if mask is not None]
    if not known:
        return None
    return torch.stack(known).all(0)[:, None].expand(batch, count)


def _beside(masks: Sequence[Tensor | None], x: Sequence[Tensor]) -> Tensor | None:
    """The masks of sequences that are laid one after the other; None where everything is there."""
    if all(mask is None for mask in masks):
        return None
    pairs = zip(masks, x, strict=True)
    return torch.cat([y.new_ones(y.shape[:2], dtype=torch.bool) if m is None else m for m, y in pairs], 1)
