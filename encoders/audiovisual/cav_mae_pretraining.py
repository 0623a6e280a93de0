"""CAV-MAE's pre-training: what is left of a picture and its sound must draw the rest, and must know each other.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023), and the public code (YuanGongND/cav-mae), whose
parameter names these are. Three quarters of each modality's patches are hidden. What both together know of the others
is drawn by a decoder (the masked-autoencoder loss); and each modality's own way through the shared block must pick the
other's among the batch (the contrastive loss), from what is visible alone. The loop is `encoders.pretrain_mae`, the
recipes are in `encoders.recipe_tables.cav_mae`.

B batch, N token, V visible token, O hidden token, P number of a patch, D width, E decoder width, H W pixels, U mel
frame, F mel bin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.audiovisual.av_mae import chosen
from encoders.audiovisual.av_mae_decoder import Masks
from encoders.audiovisual.cav_mae import CAVMAE, MODALITIES, CAVMAEConfig, grid_positions, initialise
from encoders.errors import ConfigError
from encoders.layers.modality_block import SUFFIX, ModalityBlock
from encoders.losses import info_nce, picked

__all__ = [
    "CAVMAEPretraining", "ContrastiveConfig", "PatchDecoderConfig", "draw_masks", "kept_count", "patches_of",
    "reconstruction_loss",
]  # fmt: skip

ROWS = ("audio", "video")  # the order in which tokens lie one after the other
BOTH_AXES = 0.7  # of the share that is hidden, along time and along frequency at once


# --- configs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PatchDecoderConfig:
    """The decoder; the defaults are the paper's."""

    dim: int = 512  # E
    depth: int = 8
    heads: int = 16
    mlp_dim: int = 2048

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"decoder {name} {getattr(self, name)} must be at least 1")
        if self.dim % self.heads or self.dim % 4:
            raise ConfigError(
                f"decoder dim {self.dim} is no multiple of heads {self.heads} and of 4, which positions in rows and "
                "columns take; change one"
            )


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """How much is hidden, and what is learned from it; the defaults are the paper's."""

    hidden_video: float = 0.75  # share of tokens
    hidden_audio: float = 0.75
    # How sound is hidden: token by token, whole times, whole bands, or both; pictures are always token by token.
    mask: Literal["unstructured", "time", "frequency", "both"] = "unstructured"
    standardise: bool = True  # patches are drawn as their own mean and deviation; off where values are wanted
    reconstruct: float = 1.0  # coefficient of drawing; 0: there is nothing to draw with
    contrast: float = 0.01  # coefficient of contrasting; 0: as much
    temperature: float = 0.05
    symmetric: bool = False  # also each sound picks its picture; published: each picture picks its sound
    learn_positions: bool = False  # published: sines and cosines stay what they are

    def __post_init__(self) -> None:
        for name in ("hidden_video", "hidden_audio"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie between 0 and 1; some tokens must be either")
        if self.mask not in ("unstructured", "time", "frequency", "both"):
            raise ConfigError(f"mask {self.mask!r} is unknown; use unstructured, time, frequency or both")
        if min(self.reconstruct, self.contrast) < 0 or self.reconstruct == self.contrast == 0:
            raise ConfigError(
                f"coefficients reconstruct {self.reconstruct:g} and contrast {self.contrast:g} leave nothing to learn "
                "from; use 0 for one of them at most, and none below"
            )
        if not self.temperature > 0:
            raise ConfigError(f"temperature {self.temperature:g} must be more than 0, such as 0.05")

    def share(self, modality: str) -> float:
        """Of a modality's tokens that is hidden."""
        return self.hidden_video if modality == "video" else self.hidden_audio


def check(model: CAVMAEConfig, objective: ContrastiveConfig) -> None:
    """Refuse what nothing could be learned from, with a ConfigError."""
    if model.mode != "joint" or model.classes:
        raise ConfigError(
            f"mode {model.mode} with {model.classes} classes is for fine-tuning; pre-training takes joint and none"
        )
    for m, count in model.counts.items():
        kept = kept_count(count, objective.share(m))
        if not 0 < kept < count:
            raise ConfigError(
                f"hidden_{m} {objective.share(m)} leaves {kept} of {count} tokens visible; some must be, and not all"
            )


# --- what is hidden ---------------------------------------------------------------------------------------------


def kept_count(count: int, share: float) -> int:
    """How many of ``count`` tokens stay visible: rounded down, but not for a binary fraction's sake (10 tokens of which
    0.9 are hidden keep 1)."""
    return int(count * (1 - share) + 1e-9)


def draw_masks(
    model: CAVMAEConfig, objective: ContrastiveConfig, batch: int, generator: torch.Generator | None = None
) -> Masks:
    """For each example and modality by itself: the tokens with the least noise stay.

    Structured masks give whole columns (times) or rows (bands) of the sound more noise than any other token has; how
    many stay visible does not change, so that a few of those may stay, or others not.
    """
    visible, hidden = {}, {}
    for m in MODALITIES:
        noise = torch.rand(batch, model.counts[m], generator=generator)
        if m == "audio" and objective.mask != "unstructured":
            noise = _structured(noise, model.grids[m], objective, generator)
        order = noise.argsort(1)
        kept = kept_count(model.counts[m], objective.share(m))
        visible[m], hidden[m] = order[:, :kept], order[:, kept:]
    return Masks(hidden, visible, {})


def _structured(
    noise: Tensor, grid: tuple[int, int], objective: ContrastiveConfig, generator: torch.Generator | None
) -> Tensor:
    bands, times = grid
    share = objective.hidden_audio * (BOTH_AXES if objective.mask == "both" else 1)
    noise = noise.unflatten(1, grid)  # (B, bands, times)
    struck = torch.zeros_like(noise, dtype=torch.bool)
    if objective.mask in ("time", "both"):
        struck |= _some(len(noise), times, share, generator)[:, None]
    if objective.mask in ("frequency", "both"):
        struck |= _some(len(noise), bands, share, generator)[:, :, None]
    return (noise + 1.1 * struck).flatten(1)  # the least noisy of them come back where too few others are left


def _some(batch: int, count: int, share: float, generator: torch.Generator | None) -> Tensor:
    """(B, count) bool: a share of places, rounded down."""
    order = torch.rand(batch, count, generator=generator).argsort(1)
    return order.argsort(1) < int(count * share + 1e-9)


# --- the model --------------------------------------------------------------------------------------------------


class CAVMAEPretraining(CAVMAE):
    """Encoder and decoder with an objective; `forward` gives the losses. The names are those of one flat model, whose
    encoder is a `CAVMAE` without head."""

    def __init__(
        self, model: CAVMAEConfig, decoder: PatchDecoderConfig, objective: ContrastiveConfig | None = None
    ) -> None:
        objective = objective or ContrastiveConfig()
        check(model, objective)
        super().__init__(model)
        self.objective, dim = objective, decoder.dim
        self.decoder_embed = nn.Linear(model.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_modality_a = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_modality_v = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed_a = nn.Parameter(grid_positions(model.grids["audio"], dim))
        self.decoder_pos_embed_v = nn.Parameter(grid_positions(model.grids["video"], dim))
        self.decoder_blocks = nn.ModuleList(
            ModalityBlock(dim, decoder.heads, decoder.mlp_dim) for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        numbers = {m: high * wide for m, (high, wide) in model.patches.items()}
        self.decoder_pred_a = nn.Linear(dim, numbers["audio"])
        self.decoder_pred_v = nn.Linear(dim, numbers["video"] * 3)
        initialise(self)
        for name, parameter in self.named_parameters():
            if "pos_embed_" in name:
                parameter.requires_grad_(objective.learn_positions)

    @property
    def encoder_names(self) -> set[str]:
        """The parameters that pre-training leaves to an encoder."""
        return {name for name in self.state_dict() if not name.startswith(("decoder_", "mask_token"))}

    def forward(self, seen: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:  # type: ignore[override]
        """What `prepare` gives of both modalities, and what of it is hidden, to the losses.

        ``loss`` is the sum of ``audio`` and ``video`` (drawing) and ``contrast``, each with its coefficient; ``found``
        is the share of pictures that pick their own sound, and no loss.
        """
        objective = self.objective
        own = {m: self._visible(seen[name], m, masks) for name, m in (("audio", "audio"), ("rgb", "video"))}
        losses: dict[str, Tensor] = {}
        if objective.reconstruct:
            drawn = self.decode(self.unified(torch.cat([own[m] for m in ROWS], 1)), masks)
            wanted = {"audio": seen["audio"], "video": seen["rgb"]}
            for m in ROWS:
                patches = patches_of(self.config, m, wanted[m])
                loss = reconstruction_loss(drawn[m], patches, masks.hidden[m], objective.standardise)
                losses[m] = objective.reconstruct * loss
        if objective.contrast:
            a, v = (self.unified(own[m], m).mean(1) for m in ROWS)  # from what is visible, as published
            nce = info_nce(a, v, objective.temperature, symmetric=objective.symmetric)
            losses["contrast"] = objective.contrast * nce
        total = {"loss": torch.stack(list(losses.values())).sum(), **losses}
        return {**total, "found": picked(a.detach(), v.detach())} if objective.contrast else total

    def _visible(self, x: Tensor, modality: str, masks: Masks) -> Float[Tensor, "b v d"]:
        """What is left of a modality, through its own blocks."""
        return self.own(chosen(self.tokens(x, modality), masks.visible[modality]), modality)

    def decode(self, joint: Float[Tensor, "b v d"], masks: Masks) -> dict[str, Float[Tensor, "b n p"]]:
        """What both together know, sound first, to all patches of each modality, in natural order."""
        known = self.decoder_embed(joint)
        split = known.split([masks.visible[m].shape[1] for m in ROWS], 1)
        parts = [self._laid(part, m, masks) for m, part in zip(ROWS, split, strict=True)]
        x = torch.cat(parts, 1)  # (B, N_a + N_v, E)
        for block in self.decoder_blocks:
            x = block(x)
        a, v = self.decoder_norm(x).split([part.shape[1] for part in parts], 1)
        return {"audio": self.decoder_pred_a(a), "video": self.decoder_pred_v(v)}

    def _laid(self, known: Tensor, modality: str, masks: Masks) -> Tensor:
        """Known tokens at their own places, mask tokens at the hidden ones; with their places and their modality."""
        visible, hidden = masks.visible[modality], masks.hidden[modality]
        mask = self.mask_token.to(known.dtype).expand(len(known), hidden.shape[1], -1)
        x = chosen(torch.cat([known, mask], 1), torch.cat([visible, hidden], 1).argsort(1))
        part = SUFFIX[modality]
        return x + getattr(self, f"decoder_pos_embed{part}") + getattr(self, f"decoder_modality{part}")


def patches_of(model: CAVMAEConfig, modality: str, x: Tensor) -> Float[Tensor, "b n p"]:
    """A modality's input cut into its patches, numbers in order of row, column, colour; rows of sound are bands."""
    high, wide = model.patches[modality]
    if modality == "audio":
        return rearrange(x, "b (n w) (m h) -> b (m n) (h w)", h=high, w=wide)
    return rearrange(x, "b c (m h) (n w) -> b (m n) (h w c)", h=high, w=wide)


def reconstruction_loss(
    drawn: Float[Tensor, "b n p"], patches: Float[Tensor, "b n p"], hidden: Int[Tensor, "b o"], standardise: bool
) -> Float[Tensor, ""]:
    """The mean over hidden tokens of the mean square over a patch's numbers; with ``standardise`` of patches less their
    mean, over their (unbiased) deviation."""
    wanted = chosen(patches, hidden).float()
    if standardise:
        variance, mean = torch.var_mean(wanted, -1, keepdim=True)
        wanted = (wanted - mean) / (variance + 1e-6).sqrt()
    return (chosen(drawn, hidden).float() - wanted).square().mean()
