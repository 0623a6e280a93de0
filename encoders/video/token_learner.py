"""TokenLearner: halfway up a vision transformer, a handful of learned tokens take the place of all the patches.

Ryoo, Piergiovanni, Arnab, Dehghani, Angelova, "TokenLearner: Adaptive Space-Time Tokenization for Videos" (NeurIPS
2021), and google-research/scenic. Each learned token is a sum of all tokens of one temporal index, weighted by a map
that is computed from them; whatever comes after works on these few. TokenFuser lays them back on the grid.
Left out: the Bottleneck-transformer and X(2+1)D backbones, which the public code does not have either.

B batch, C channel, T frame, U temporal index (tubelets along time), H W pixels, Y X tokens down and across, N token of
one temporal index, S learned token, D width, K class.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.block import Encoder, layer_norm
from encoders.layers.embed import PatchEmbed, TubeletEmbed, check_divides
from encoders.layers.initial import lecun_normal_, xavier_uniform_
from encoders.layers.pictures import check_seen, motion_of, signed_pictures
from encoders.layers.positions import learned

__all__ = ["PRESETS", "TokenFuser", "TokenLearner", "TokenLearnerConfig", "TokenLearnerV1", "TokenLearnerV11"]


@dataclass(frozen=True, kw_only=True)
class TokenLearnerConfig:
    """Sizes of the trunk, and where tokens are learned; the defaults are the public ImageNet configuration."""

    frames: int = 1  # T; 1 is a picture
    size: int = 224  # H = W
    tubelet: tuple[int, int, int] = (1, 16, 16)  # frames, height, width under one token
    channels: int = 3  # 1: gray
    dim: int = 768  # D
    depth: int = 12  # blocks; what the tables write as 24+11 is 35
    heads: int = 12
    mlp_dim: int = 3072
    learner: Literal["v1", "v1.1", "none"] = "v1.1"  # v1: convolutions and sigmoid; v1.1: MLP and softmax
    tokens: int = 16  # S, per temporal index
    at: int = 9  # tokens are learned before this block, counted from 0
    fuse: bool = False  # learn tokens before and lay them back after *every* block from ``at`` on
    pool: Literal["sum", "mean"] = "sum"  # of v1 over space: sum in the public code, mean in the paper's equation
    hidden: int = 64  # width inside v1.1 and the fuser
    representation: int = 0  # width of a tanh layer before the head; 0: none
    classes: int = 0  # K; 0: no head, features come out
    head_bias: float = 0.0  # at the start; -10 where the loss is a sigmoid's
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # of the last block, rising linearly from 0; the public model ignores it
    clip_seconds: Fraction = Fraction(64, 25)  # every other frame at 25 per second
    region: Literal["frame", "face"] = "frame"  # what the picture shows
    crop_share: float = 0.875
    motion: bool = False  # see only what moves (``encoders.layers.pictures.motion_of``); ours

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        check_divides((self.frames, self.size, self.size), self.tubelet, ("frames", "rows", "columns"))
        if self.learner == "none":
            if self.fuse:
                raise ConfigError("fuse lays learned tokens back but learner is 'none'; choose v1 or v1.1")
            return
        if not 0 <= self.at < self.depth:
            raise ConfigError(
                f"tokens cannot be learned before block {self.at} of {self.depth} (counted from 0); "
                f"use at from 0 to {self.depth - 1}, or learner none"
            )
        patches = self.grid[1] * self.grid[2]
        if not 1 <= self.tokens <= patches:
            raise ConfigError(f"tokens {self.tokens} cannot be learned from {patches} patches; use 1 to {patches}")

    def _check_names(self) -> None:
        known = {"learner": ("v1", "v1.1", "none"), "pool": ("sum", "mean"), "region": ("frame", "face")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(choices)}")

    def _check_numbers(self) -> None:
        for name in ("dim", "depth", "heads", "mlp_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("classes", "representation"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0 (0: none)")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if self.dim % self.heads:
            raise ConfigError(f"heads {self.heads} do not divide dim {self.dim}; use a divisor")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels {self.channels} are neither gray nor RGB; use 1 or 3")
        check_seen(self.clip_seconds, self.crop_share)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, down and across, before any are learned."""
        t, h, w = self.tubelet
        return self.frames // t, self.size // h, self.size // w


class TokenLearnerV1(nn.Module):
    """The paper's module: four 3x3 convolutions make S maps between 0 and 1; tokens are sums under these maps."""

    def __init__(self, dim: int, tokens: int, grid: tuple[int, int], pool: str = "sum") -> None:
        super().__init__()
        self.grid, self.pool = grid, pool
        self.norm = layer_norm(dim)
        widths = (dim, tokens, tokens, tokens)
        convs = [nn.Conv2d(width, tokens, 3, padding=1, bias=False) for width in widths]
        for conv in convs:
            lecun_normal_(conv.weight)
        self.convs = nn.ModuleList(convs)
        self.activation = nn.GELU(approximate="tanh")

    def maps(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s n"]:
        """How much each token counts in each learned one; not normalised over space."""
        y = self.norm(x).transpose(1, 2).unflatten(2, self.grid)  # (B, D, Y, X)
        for conv in self.convs[:-1]:
            y = self.activation(conv(y))
        return self.convs[-1](y).flatten(2).sigmoid()

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s d"]:
        """Weights come from the normed tokens, but it is the tokens as they are that are summed."""
        learned_tokens = self.maps(x) @ x
        return learned_tokens if self.pool == "sum" else learned_tokens / x.shape[1]


class Masking(nn.Module):
    """The small MLP that maps a token to S scores."""

    def __init__(self, dim: int, hidden: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.first = xavier_uniform_(nn.Linear(dim, hidden), bias_std=1e-6)
        self.second = xavier_uniform_(nn.Linear(hidden, tokens), bias_std=1e-6)
        self.activation = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n s"]:
        return self.dropout(self.second(self.dropout(self.activation(self.first(x)))))


class TokenLearnerV11(nn.Module):
    """Version 1.1: every token scores itself by an MLP, and a softmax over space makes the S maps."""

    def __init__(self, dim: int, tokens: int, hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.mlp = Masking(dim, hidden, tokens, dropout)

    def maps(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s n"]:
        """How much each token counts in each learned one; the weights of a learned token sum to one."""
        return self.mlp(self.norm(x)).transpose(1, 2).softmax(-1)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b s d"]:
        """Weights come from the normed tokens, but it is the tokens as they are that are summed."""
        return self.maps(x) @ x


class TokenFuser(nn.Module):
    """Lays S processed tokens back on the grid they were learned from; at first it adds nothing, for mix is zero."""

    def __init__(self, dim: int, tokens: int, hidden: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.mix = nn.Linear(tokens, tokens)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        self.norm2 = layer_norm(dim)
        self.norm_grid = layer_norm(dim)
        self.mlp = Masking(dim, hidden, tokens, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, y: Float[Tensor, "b s d"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Processed tokens ``y`` and the grid ``x`` that they were learned from, to what is to be added to ``x``."""
        y = self.norm2(self.mix(self.norm1(y).transpose(1, 2)).transpose(1, 2))  # (B, S, D)
        return self.dropout(self.mlp(self.norm_grid(x)).sigmoid() @ y)


class TokenLearner(nn.Module):
    """A vision transformer over pictures or clips that goes on with a few learned tokens.

    Tokens are learned at each temporal index by itself, with the same weights, and attend to each other jointly over
    space and time. There is no class token: features are the mean of the tokens after the last norm.
    """

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: TokenLearnerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.representation or config.dim, config.clip_seconds
        self.spec = VideoSpec(
            frames=config.frames,
            size=config.size,
            pixel_format="rgb24" if config.channels == 3 else "gray",
            region=config.region,
            crop_share=config.crop_share,
        )
        t, h, w = config.tubelet
        picture = config.frames == 1  # published weights of pictures are 2-D convolutions
        embed = PatchEmbed((h, w), config.dim, config.channels) if picture else None
        self.embed = embed or TubeletEmbed((t, h, w), config.dim, config.channels)
        u, rows, columns = config.grid
        self.positions = learned(u * rows * columns, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            config.depth,
            config.dim,
            config.heads,
            config.mlp_dim,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.stochastic_depth,
        )
        modules = 0 if config.learner == "none" else config.depth - config.at if config.fuse else 1
        self.learners = nn.ModuleList(_learner(config) for _ in range(modules))
        self.fusers = nn.ModuleList(
            TokenFuser(config.dim, config.tokens, config.hidden, config.dropout)
            for _ in range(modules if config.fuse else 0)
        )
        self.pre_logits = nn.Linear(config.dim, config.representation) if config.representation else None
        if self.pre_logits is not None:
            lecun_normal_(self.pre_logits.weight)
            nn.init.zeros_(self.pre_logits.bias)
        self.head = nn.Linear(self.dim, config.classes) if config.classes else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.constant_(self.head.bias, config.head_bias)

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 (B, T, H, W) gray or (B, T, H, W, 3) rgb -> features (B, D)."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures to the network's input."""
        pictures = signed_pictures(clips, self.config.channels)
        return motion_of(pictures) if self.config.motion else pictures

    def forward(self, video: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b k"]:
        """Clips (B, C, T, H, W), or pictures (B, C, H, W), in [-1, 1] to logits; without a head, to features."""
        x = self.features(video)
        return x if self.head is None else self.head(x)

    def features(self, video: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b d"]:
        """What the head sees."""
        x = self.tokens(video).mean(1)
        return x if self.pre_logits is None else self.pre_logits(x).tanh()

    def tokens(self, video: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b n d"]:
        """All tokens after the last norm: U * S of them, or U * Y * X where nothing is learned or all is laid back."""
        x = self.dropout(self._embedded(video) + self.positions)  # (B, U*N, D)
        at = self.config.at if self.learners else self.config.depth
        for block in self.encoder.blocks[:at]:
            x = block(x)
        if self.fusers:
            for block, learner, fuser in zip(self.encoder.blocks[at:], self.learners, self.fusers, strict=True):
                x = self._around(block, learner, fuser, x)
            return self.encoder.norm(x)
        for learner in self.learners:
            x = self._joined(learner(self._by_index(x)))  # (B, U*S, D)
        for block in self.encoder.blocks[at:]:
            x = block(x)
        return self.encoder.norm(x)

    def _around(self, block: nn.Module, learner: nn.Module, fuser: nn.Module, x: Tensor) -> Tensor:
        """A block that works on learned tokens, between a learner and a fuser, as a residual of the grid."""
        grid = self._by_index(x)  # (B*U, N, D)
        processed = block(self._joined(learner(grid)))  # (B, U*S, D)
        return self._joined(grid + fuser(self._by_index(processed), grid))

    def _embedded(self, video: Tensor) -> Tensor:
        c = self.config
        seen = video[:, :, None] if video.ndim == 4 else video
        wanted = (c.channels, c.frames, c.size, c.size)
        if tuple(seen.shape[1:]) != wanted:
            raise DataError(
                f"input of (channels, frames, rows, columns) {tuple(seen.shape[1:])} does not fit a model of {wanted}; "
                "give what the encoder's spec says, or set frames, size and channels"
            )
        x = self.embed(seen[:, :, 0] if c.frames == 1 else seen)  # (B, [U,] Y, X, D)
        return x.flatten(1, -2)

    def _by_index(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.config.grid[0], -1)).flatten(0, 1)  # (B*U, N, D)

    def _joined(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.config.grid[0])).flatten(1, 2)  # (B, U*N, D)


def _learner(config: TokenLearnerConfig) -> nn.Module:
    if config.learner == "v1":
        return TokenLearnerV1(config.dim, config.tokens, config.grid[1:], config.pool)
    return TokenLearnerV11(config.dim, config.tokens, config.hidden, config.dropout)


_B = TokenLearnerConfig()
_S = TokenLearnerConfig(dim=384, heads=6, mlp_dim=1536, learner="none")
_L = TokenLearnerConfig(dim=1024, depth=24, heads=16, mlp_dim=4096, size=512, at=12, learner="v1")
_VIDEO = replace(_L, frames=32, size=224, tubelet=(2, 16, 16))  # ViViT-L, joint attention
_TINY = TokenLearnerConfig(
    frames=10,
    size=64,
    tubelet=(2, 8, 8),
    dim=96,
    depth=4,
    heads=3,
    mlp_dim=384,
    tokens=8,
    at=2,
    clip_seconds=Fraction(2, 5),
    crop_share=0.625,  # the middle of the picture, where a talking head is
)


def _patches(config: TokenLearnerConfig, side: int) -> TokenLearnerConfig:
    """Another patch. The paper's 512 pixels are cut to the patches that fit, as a convolution without padding does."""
    return replace(config, tubelet=(config.tubelet[0], side, side), size=config.size // side * side)


# Name, patch, @ the block before which tokens are learned. ``24_11``: 11 blocks more than the size has.
PRESETS = {
    "token_learner_base": _B,
    "token_learner_b_16": _B,  # 16 @ 9, v1.1: the public configuration
    "token_learner_b_16_v1": replace(_B, learner="v1"),
    "token_learner_b_16_half": replace(_B, tokens=8, at=6),
    "token_learner_b_16_fuser": replace(_B, fuse=True),
    "token_learner_b_16_full": replace(_B, learner="none"),
    "token_learner_s_32_full": _patches(replace(_S, size=384), 32),
    "token_learner_b_32_full": _patches(replace(_B, size=384, learner="none"), 32),
    "token_learner_l_16": _L,
    "token_learner_l_16_full": replace(_L, learner="none"),
    "token_learner_l_16_24_11": replace(_L, depth=35),
    "token_learner_l_14_24_11": _patches(replace(_L, depth=35, at=18), 14),
    "token_learner_l_10_24_11": _patches(replace(_L, depth=35, at=18), 10),
    "token_learner_l_8_24_11": _patches(replace(_L, depth=35, at=18), 8),
    "token_learner_vivit_l_16x2": replace(_VIDEO, tokens=8),
    "token_learner_vivit_l_16x2_at18": replace(_VIDEO, tokens=8, at=18),
    "token_learner_vivit_l_14x2_at18": _patches(replace(_VIDEO, at=18), 14),
    # The slides give 48.91 TFLOPs over 12 views for 16 tokens at L/10; this is 47.9, products alone.
    "token_learner_vivit_l_10x2_at18": _patches(replace(_VIDEO, at=18), 10),
    "token_learner_tiny": _TINY,  # 8 of 64 tokens per index
    "token_learner_tiny_v1": replace(_TINY, learner="v1"),
    "token_learner_tiny_fuser": replace(_TINY, fuse=True),
    "token_learner_tiny_full": replace(_TINY, learner="none"),  # the same trunk, all 64
}
