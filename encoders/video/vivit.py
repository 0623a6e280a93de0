"""ViViT: a clip's tubelets are the words of a transformer, attended to over space and time in one of four ways.

Arnab et al., "ViViT: A Video Vision Transformer" (ICCV 2021), as google-research/scenic builds it. The four encoders of
section 3.3 are ``joint`` (model 1: every token sees all others), ``factorised_encoder`` (model 2: a transformer over
space for each step, then one over time), ``factorised_self`` (model 3: each block attends over time, then over space)
and ``factorised_dot`` (model 4: half of the heads look along time, the other half across space).
Left out: the hidden layer before the classifier (``representation_size``), which no published configuration has.
Other than the public code, model 3 heeds stochastic depth; there the block takes the rate and forgets it.

B batch, T frame, H W pixels, C channel, U step (frames / tubelet length), S place within a step, N token (U S),
D width, E width of a head, K class.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.attention import Attention
from encoders.layers.block import Block, DropPath, Encoder, Mlp, layer_norm, ramp
from encoders.layers.embed import PatchEmbed, TubeletEmbed, check_divides, uniform_frames
from encoders.layers.pictures import check_seen, motion_of, signed_pictures
from encoders.layers.positions import learned

__all__ = ["PRESETS", "ViViT", "ViViTConfig"]

ATTENTIONS = ("joint", "factorised_encoder", "factorised_self", "factorised_dot")


@dataclass(frozen=True, kw_only=True)
class ViViTConfig:
    """Sizes and kind of a ViViT; the defaults are ViViT-B/16x2 with joint attention, as trained on Kinetics."""

    attention: str = "joint"  # joint, factorised_encoder, factorised_self, factorised_dot
    dim: int = 768  # D
    depth: int = 12  # blocks; of the transformer over space in a factorised encoder
    heads: int = 12
    mlp_dim: int = 3072
    temporal_depth: int = 4  # blocks over time of a factorised encoder; 0: the mean over time takes their place
    order: str = "time_space"  # of a factorised_self block; space_time is the order of the paper's equations
    tubelet: tuple[int, int, int] = (2, 16, 16)  # frames, rows, columns
    sampled: int = 0  # uniform frame sampling: that many frames, cut into patches; 0: tubelets of all frames
    frames: int = 32  # T
    size: int = 224  # H = W
    channels: int = 3  # 3: RGB, 1: gray
    pool: str = "token"  # token: a class token; mean: over all tokens
    classes: int = 0  # K; 0: no head, features come out
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # of the last block, rising linearly from 0; kept branches are not rescaled
    clip_seconds: Fraction = Fraction(64, 25)  # every other frame at 25 per second
    region: str = "frame"  # frame, face: what the picture shows
    crop_share: float = 0.875
    motion: bool = False  # see only what moves (``encoders.layers.pictures.motion_of``); ours

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        check_divides((self.size, self.size), self.tubelet[1:], ("rows", "columns"))
        if not self.sampled:
            check_divides((self.frames,), self.tubelet[:1], ("frames",))
        elif self.tubelet[0] != 1:
            raise ConfigError(
                f"sampled frames are cut one by one, not into tubelets {self.tubelet[0]} frames long; "
                f"use tubelet=1,{self.tubelet[1]},{self.tubelet[2]}, or sampled=0"
            )
        elif self.sampled > self.frames:
            raise ConfigError(
                f"sampled {self.sampled} is more than the {self.frames} frames; use at most {self.frames}"
            )
        if self.attention in ("factorised_self", "factorised_dot") and self.pool == "token":
            raise ConfigError(f"attention {self.attention} has no place for a class token; use pool=mean")
        if self.attention == "factorised_dot" and self.heads % 2:
            raise ConfigError(f"heads {self.heads} cannot be halved into time and space; use an even number")

    def _check_names(self) -> None:
        known = {
            "attention": ATTENTIONS,
            "order": ("time_space", "space_time"),
            "pool": ("token", "mean"),
            "region": ("frame", "face"),
        }
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} {value!r} is unknown; use {', '.join(choices[:-1])} or {choices[-1]}")

    def _check_numbers(self) -> None:
        for name in ("dim", "depth", "heads", "mlp_dim", "frames", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("temporal_depth", "sampled", "classes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if self.dim % self.heads:
            raise ConfigError(f"heads {self.heads} do not divide dim {self.dim}; use a divisor")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels {self.channels} are neither gray nor RGB; use 1 or 3")
        check_seen(self.clip_seconds, self.crop_share)

    @property
    def steps(self) -> int:
        """Steps in time that tokens have (U)."""
        return self.sampled or self.frames // self.tubelet[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at each step; their product is S."""
        return self.size // self.tubelet[1], self.size // self.tubelet[2]

    @property
    def places(self) -> int:
        """Tokens at each step (S)."""
        return self.grid[0] * self.grid[1]


class SelfBlock(nn.Module):
    """Model 3: attention along time at each place, attention over the places of each step, an MLP (equations 4-6)."""

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        dim, heads, share = config.dim, config.heads, config.attention_dropout
        self.order, self.steps = config.order, config.steps
        self.norm_time, self.time = layer_norm(dim), Attention(dim, heads, dropout=share)
        self.norm_space, self.space = layer_norm(dim), Attention(dim, heads, dropout=share)
        self.norm_mlp, self.mlp = layer_norm(dim), Mlp(dim, config.mlp_dim, config.dropout)
        self.dropout, self.drop_path = nn.Dropout(config.dropout), DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        first, second = (self.over_time, self.over_space)[:: 1 if self.order == "time_space" else -1]
        x = x + self.drop_path(self.dropout(first(x)))
        x = x + self.drop_path(self.dropout(second(x)))
        return x + self.drop_path(self.mlp(self.norm_mlp(x)))

    def over_time(self, x: Tensor) -> Tensor:
        """Each place attends to itself at all steps."""
        y = rearrange(self.norm_time(x), "b (u s) d -> (b s) u d", u=self.steps)
        return rearrange(self.time(y), "(b s) u d -> b (u s) d", b=len(x))

    def over_space(self, x: Tensor) -> Tensor:
        """Each step attends to its own places."""
        y = rearrange(self.norm_space(x), "b (u s) d -> (b u) s d", u=self.steps)
        return rearrange(self.space(y), "(b u) s d -> b (u s) d", b=len(x))


class DotProductAttention(Attention):
    """Model 4: the first half of the heads attends along time, the second over space; the parameters are model 1's."""

    def __init__(self, dim: int, heads: int, steps: int, *, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout=dropout)
        self.steps = steps

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m c"] | None = None,
        presence: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Tokens in order of step, then place; they attend to each other, so there is no ``context``."""
        assert context is None and presence is None, "tokens on a grid attend to the whole of it"
        q, k, v = self.project(x)  # (B, heads, N, E)
        half = self.heads // 2
        over_time = self._attend(q[:, :half], k[:, :half], v[:, :half], "b h (u s) e", "(b s) h u e")
        over_space = self._attend(q[:, half:], k[:, half:], v[:, half:], "b h (u s) e", "(b u) h s e")
        return self.out(torch.cat((over_time, over_space), 1).transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, whole: str, parts: str) -> Tensor:
        """Attention within each of the ``parts`` that the ``whole`` falls into."""
        u, s = self.steps, q.shape[2] // self.steps
        q, k, v = (rearrange(p, f"{whole} -> {parts}", u=u, s=s) for p in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return rearrange(y, f"{parts} -> {whole}", u=u, s=s)


class GridEncoder(nn.Module):
    """Blocks that know at which step and place a token is, and a last norm; models 3 and 4."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        make = self._self_block if config.attention == "factorised_self" else self._dot_block
        self.blocks = nn.ModuleList(make(config, prob) for prob in ramp(config.stochastic_depth, config.depth))
        self.norm = layer_norm(config.dim)

    @staticmethod
    def _self_block(config: ViViTConfig, drop_path: float) -> nn.Module:
        return SelfBlock(config, drop_path)

    @staticmethod
    def _dot_block(config: ViViTConfig, drop_path: float) -> nn.Module:
        attend = DotProductAttention(config.dim, config.heads, config.steps, dropout=config.attention_dropout)
        sizes = config.dim, config.heads, config.mlp_dim
        return Block(*sizes, dropout=config.dropout, drop_path=drop_path, attention=attend)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Transformer(nn.Module):
    """A sequence of ``count`` tokens to one vector: class token (or none), positions, ``encoder``, pooling."""

    def __init__(self, config: ViViTConfig, count: int, encoder: nn.Module) -> None:
        super().__init__()
        token = config.pool == "token"
        self.cls = nn.Parameter(torch.zeros(1, 1, config.dim)) if token else None
        self.positions = learned(token + count, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = encoder

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        if self.cls is not None:
            x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1)  # (B, 1+N, D)
        x = self.encoder(self.dropout(x + self.positions))
        return x.mean(1) if self.cls is None else x[:, 0]


class ViViT(nn.Module):
    """A clip to class scores or, without a head, to its feature; ``encode`` takes clips as the runtime lays them."""

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        self.spec = VideoSpec(
            frames=config.frames,
            size=config.size,
            pixel_format="rgb24" if config.channels == 3 else "gray",
            region=config.region,
            crop_share=config.crop_share,
        )
        self.embed: PatchEmbed | TubeletEmbed
        if config.sampled:
            self.embed = PatchEmbed(config.tubelet[1:], config.dim, config.channels)
        else:
            self.embed = TubeletEmbed(config.tubelet, config.dim, config.channels)
        self.transformer, self.over_space, self.over_time = _transformers(config)
        self.head = _head(config)
        # The feature of a clip in which the picture is fine and nobody's face is in it: learned with the head.
        self.no_face = nn.Parameter(torch.zeros(config.dim)) if config.region == "face" else None

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Pictures in [-1, 1], (B, C, T, H, W), to logits (B, K); or to features (B, D) where there are no classes."""
        x = self.features(video)
        return x if self.head is None else self.head(x)

    def features(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """What the head reads; raises DataError where the clip is not of the size the positions were made for."""
        x = self.tokens(video)  # (B, U, S, D)
        if self.transformer is not None:
            return self.transformer(x.flatten(1, 2))
        assert self.over_space is not None
        x = self.over_space(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # (B, U, D)
        return x.mean(1) if self.over_time is None else self.over_time(x)

    def tokens(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b u s d"]:
        """Tubelets, or patches of the frames looked at."""
        _check_clip(self.config, video)
        if self.config.sampled:
            chosen = uniform_frames(self.config.frames, self.config.sampled)
            pictures = video[:, :, chosen].transpose(1, 2)  # (B, U, C, H, W)
            x = self.embed(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        else:
            x = self.embed(video)
        return x.flatten(2, 3)  # (B, U, h, w, D) -> (B, U, S, D)

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 (B, T, H, W) gray or (B, T, H, W, 3) rgb -> features (B, D)."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures to [-1, 1]; gray is repeated for a model of colours, colours are mixed for a gray one."""
        pictures = signed_pictures(clips, self.config.channels)
        return motion_of(pictures) if self.config.motion else pictures


def _transformers(config: ViViTConfig) -> tuple[Transformer | None, Transformer | None, Transformer | None]:
    """Over all tokens; or over the places of a step, and over steps."""
    if config.attention in ("factorised_self", "factorised_dot"):
        return Transformer(config, config.steps * config.places, GridEncoder(config)), None, None
    if config.attention == "joint":
        return Transformer(config, config.steps * config.places, _encoder(config, config.depth)), None, None
    over_space = Transformer(config, config.places, _encoder(config, config.depth))
    if not config.temporal_depth:
        return None, over_space, None
    return None, over_space, Transformer(config, config.steps, _encoder(config, config.temporal_depth))


def _encoder(config: ViViTConfig, depth: int) -> Encoder:
    return Encoder(
        depth,
        config.dim,
        config.heads,
        config.mlp_dim,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        drop_path=config.stochastic_depth,
    )


def _head(config: ViViTConfig) -> nn.Linear | None:
    if not config.classes:
        return None
    head = nn.Linear(config.dim, config.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _check_clip(config: ViViTConfig, video: Tensor) -> None:
    wanted = config.channels, config.frames, config.size, config.size
    if tuple(video.shape[1:]) != wanted:
        given, made = (f"{s[0]} channels, {s[1]} frames and {s[2]}x{s[3]} pixels" for s in (video.shape[1:], wanted))
        raise DataError(f"a clip of {given} came to a model of {made}; sample and resize it, or build another model")


_SIZES: dict[str, dict[str, Any]] = {
    "ti": {"dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "s": {"dim": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "b": {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "l": {"dim": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "h": {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120},
}
_FE: dict[str, Any] = {"attention": "factorised_encoder"}
_FSA: dict[str, Any] = {"attention": "factorised_self", "pool": "mean"}
_FDP: dict[str, Any] = {"attention": "factorised_dot", "pool": "mean"}


def _preset(letter: str, patch: int = 16, length: int = 2, **changes: Any) -> ViViTConfig:
    return ViViTConfig(**_SIZES[letter], tubelet=(length, patch, patch), **changes)


def _tiny(**changes: Any) -> ViViTConfig:
    """For clips of the default grid: ten frames in 0.4 s, the middle of the picture, where a talking head is."""
    sizes: dict[str, Any] = {"dim": 128, "depth": 4, "heads": 4, "mlp_dim": 512, "temporal_depth": 2}
    clip: dict[str, Any] = {"frames": 10, "size": 64, "clip_seconds": Fraction(2, 5), "crop_share": 0.625}
    return ViViTConfig(**sizes, **clip, tubelet=(2, 16, 16), **changes)


PRESETS = {
    "vivit_base": _preset("b"),
    "vivit_ti_16x2": _preset("ti"),
    "vivit_s_16x2": _preset("s"),
    "vivit_b_16x2": _preset("b"),
    "vivit_b_16x4": _preset("b", length=4),
    "vivit_b_16x8": _preset("b", length=8),
    "vivit_l_16x2": _preset("l"),
    "vivit_l_16x2_320": _preset("l", size=320),
    "vivit_h_14x2": _preset("h", patch=14),
    "vivit_h_16x2": _preset("h"),
    "vivit_ti_16x2_fe": _preset("ti", **_FE),
    "vivit_s_16x2_fe": _preset("s", **_FE),
    "vivit_b_16x2_fe": _preset("b", **_FE),
    "vivit_b_16x2_average": _preset("b", **_FE, temporal_depth=0),
    "vivit_l_16x2_fe": _preset("l", **_FE),
    "vivit_l_16x2_fe24": _preset("l", **_FE, temporal_depth=24),  # the published Kinetics checkpoints
    "vivit_b_16x2_fsa": _preset("b", **_FSA),
    "vivit_b_16x2_fdp": _preset("b", **_FDP),
    "vivit_b_uniform8": _preset("b", length=1, sampled=8),
    "vivit_tiny": _tiny(),
    "vivit_tiny_fe": _tiny(**_FE),
    "vivit_tiny_fsa": _tiny(**_FSA),
    "vivit_tiny_fdp": _tiny(**_FDP),
}
