"""A transformer that ends with fewer and wider tokens than it began with: the trunk of MViTv2 and of MAT.

Li et al., "MViTv2" (CVPR 2022), section 4.1 and table 2, as facebookresearch/SlowFast builds it. At some blocks the
width and the heads double and the grid of tokens shrinks; keys and values are pooled in every block, by a stride that
shrinks with the grid, so that about as many of them are asked all the way down.

B batch, N token in, M token out, C width in, D width out, K class. Tokens lie in order of the grid's axes, the class
token, where there is one, before them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.layers.block import DropPath, Mlp, layer_norm, ramp
from encoders.layers.pooled_attention import CONVOLUTIONS, Grid, PooledAttention

__all__ = ["Multiscale", "MultiscaleBlock", "MultiscaleConfig", "Scale", "scales"]

POOLS: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What one block is told: its widths and heads, the grid that comes in, and how it is pooled."""

    dim_in: int
    dim_out: int
    heads: int
    grid: Grid
    stride_q: Grid
    stride_kv: Grid


@dataclass(frozen=True, kw_only=True)
class MultiscaleConfig:
    """Sizes of the trunk; the defaults are MViTv2-B's. A model adds what it looks at, and from it the first grid."""

    dim: int = 96  # width of the first tokens
    heads: int = 1  # of the first blocks
    depth: int = 24  # blocks
    mlp_ratio: int = 4
    pooled: tuple[int, ...] = (2, 5, 21)  # blocks at which width and heads double and queries are pooled
    strides: tuple[tuple[int, ...], ...] = ((1, 2, 2), (1, 2, 2), (1, 2, 2))  # of the queries, in each of them
    stride_kv: tuple[int, ...] = (1, 8, 8)  # of the first keys and values; divided by each stride of the queries
    kernel: tuple[int, ...] = (3, 3, 3)  # of all pools
    stem_kernel: tuple[int, ...] = (3, 7, 7)
    stem_stride: tuple[int, ...] = (2, 4, 4)
    pool: str = "token"  # token: a class token; mean: over all tokens
    classes: int = 0  # K; 0: no head, features come out
    dropout: float = 0.0  # before the head
    stochastic_depth: float = 0.0  # of the last block, rising linearly from 0; kept branches are rescaled

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "depth", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.classes < 0:
            raise ConfigError(f"classes {self.classes} must be at least 0")
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if self.dim % self.heads:
            raise ConfigError(f"heads {self.heads} do not divide dim {self.dim}; use a divisor")
        if self.pool not in ("token", "mean"):
            raise ConfigError(f"pool {self.pool!r} is unknown; use token or mean")
        self._check_pooled()

    def _check_pooled(self) -> None:
        if len(self.strides) != len(self.pooled):
            raise ConfigError(
                f"{len(self.pooled)} pooled blocks and {len(self.strides)} strides; give each block one stride"
            )
        if sorted(set(self.pooled)) != list(self.pooled) or any(not 0 <= b < self.depth for b in self.pooled):
            listed = ",".join(map(str, self.pooled))
            raise ConfigError(f"pooled blocks {listed} must rise from 0 to at most {self.depth - 1}, each named once")

    @property
    def dim_out(self) -> int:
        """Width of the last tokens."""
        return self.dim * 2 ** len(self.pooled)

    def check_grid(self, grid: Grid) -> None:
        """Raise ConfigError where the trunk's numbers are not those of a grid with that many axes, or it is none."""
        lengths = {
            "stem_kernel": self.stem_kernel, "stem_stride": self.stem_stride, "kernel": self.kernel,
            "stride_kv": self.stride_kv, **{f"strides[{i}]": stride for i, stride in enumerate(self.strides)},
        }  # fmt: skip
        for name, values in lengths.items():
            if len(values) != len(grid) or min(values) < 1:
                given = ",".join(map(str, values))
                raise ConfigError(f"{name} {given} must be {len(grid)} whole numbers, each at least 1")
            if "kernel" in name and not all(value % 2 for value in values):
                raise ConfigError(f"{name} {','.join(map(str, values))} has no middle; use odd numbers")
        for block, scale in enumerate(scales(self, grid)):
            for axis, (size, *strides) in enumerate(zip(scale.grid, scale.stride_q, scale.stride_kv, strict=True)):
                if size < max(strides):
                    raise ConfigError(
                        f"block {block} has a grid of {'x'.join(map(str, scale.grid))}, too small for the stride "
                        f"{max(strides)} along axis {axis}; use a larger input, or smaller strides"
                    )


def scales(config: MultiscaleConfig, grid: Grid) -> list[Scale]:
    """What each block is told, for tokens that begin on ``grid``.

    Grids are divided without rest, as in the public code: a side that does not divide is one place longer in truth,
    and the tables of distances, made for these grids, are resized there.
    """
    told = []
    dim, heads, stride_kv = config.dim, config.heads, config.stride_kv
    at = dict(zip(config.pooled, config.strides, strict=True))
    for block in range(config.depth):
        stride = at.get(block, (1,) * len(grid))
        dim_out = dim * 2 if block in at else dim
        heads = heads * 2 if block in at else heads
        stride_kv = tuple(max(kv // q, 1) for kv, q in zip(stride_kv, stride, strict=True))
        told.append(Scale(dim_in=dim, dim_out=dim_out, heads=heads, grid=grid, stride_q=stride, stride_kv=stride_kv))
        dim, grid = dim_out, tuple(size // q for size, q in zip(grid, stride, strict=True))
    return told


class MultiscaleBlock(nn.Module):
    """Norm, pooled attention, residual; norm, MLP, residual. The width changes inside attention.

    Where it does, what is carried past attention is a projection of the *normed* tokens; where queries are pooled, it
    is pooled by maximum, to the same grid.
    """

    def __init__(self, scale: Scale, *, kernel: Grid, mlp_ratio: int, drop_path: float, class_token: bool) -> None:
        super().__init__()
        self.norm1 = layer_norm(scale.dim_in)
        self.attention = PooledAttention(
            scale.dim_in, scale.dim_out, scale.heads, input_size=scale.grid, kernel_q=kernel, kernel_kv=kernel,
            stride_q=scale.stride_q, stride_kv=scale.stride_kv, class_token=class_token,
        )  # fmt: skip
        self.norm2 = layer_norm(scale.dim_out)
        self.mlp = Mlp(scale.dim_out, mlp_ratio * scale.dim_out, exact_gelu=True)
        self.shortcut = nn.Linear(scale.dim_in, scale.dim_out) if scale.dim_in != scale.dim_out else None
        self.skip = _skip(scale.stride_q) if prod(scale.stride_q) > 1 else None
        self.drop_path = DropPath(drop_path, rescale=True)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Float[Tensor, "b m d"], Grid]:
        """Tokens and their grid to those of the next block."""
        normed = self.norm1(x)
        y, smaller = self.attention(normed, grid)
        x = self._carried(x if self.shortcut is None else self.shortcut(normed), grid) + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x))), smaller

    def _carried(self, x: Tensor, grid: Grid) -> Tensor:
        if self.skip is None:
            return x
        first = x.shape[1] - prod(grid)
        places = self.skip(x[:, first:].transpose(1, 2).unflatten(2, grid))  # (B, D, *smaller)
        return torch.cat((x[:, :first], places.flatten(2).transpose(1, 2)), 1)


def _skip(stride: Grid) -> nn.Module:
    kernel = tuple(s + 1 if s > 1 else 1 for s in stride)
    pool: nn.Module = POOLS[len(stride)](kernel, stride, tuple(k // 2 for k in kernel))
    return pool


class Multiscale(nn.Module):
    """Patches, class token, blocks, last norm and head; a model makes its input of what it looks at.

    channels: of the input. grid: on which tokens begin, for which the tables of distances are made; on another they
    are resized, so that the model takes other sizes.
    """

    def __init__(self, config: MultiscaleConfig, channels: int, grid: Grid) -> None:
        super().__init__()
        edge = tuple(k // 2 for k in config.stem_kernel)
        convolution = CONVOLUTIONS[len(grid)]
        self.embed = convolution(channels, config.dim, config.stem_kernel, config.stem_stride, edge)
        token = config.pool == "token"
        self.cls = nn.Parameter(torch.empty(1, 1, config.dim)) if token else None
        self.blocks = nn.ModuleList(
            MultiscaleBlock(scale, kernel=config.kernel, mlp_ratio=config.mlp_ratio, drop_path=p, class_token=token)
            for scale, p in zip(scales(config, grid), ramp(config.stochastic_depth, config.depth), strict=True)
        )
        self.norm = layer_norm(config.dim_out)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim_out, config.classes) if config.classes else None
        self.apply(_start)
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k"]:
        """What ``prepare`` gives to logits (B, K); or to features (B, D) where there are no classes."""
        features = self.features(x)
        return features if self.head is None else self.head(self.dropout(features))

    def features(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b d"]:
        """What the head reads: the class token after the last norm, or the mean over all tokens."""
        tokens = self.tokens(x)
        return tokens.mean(1) if self.cls is None else tokens[:, 0]

    def tokens(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b m d"]:
        """All tokens after the last norm, the class token, where there is one, first."""
        tokens = x
        for tokens, _ in self.trace(x):  # noqa: B007
            pass
        return self.norm(tokens)

    def trace(self, x: Float[Tensor, "b c *size"]) -> Iterator[tuple[Tensor, Grid]]:
        """Tokens and their grid as they enter the first block, and after each block."""
        places = self.embed(self.checked(x))
        grid: Grid = tuple(places.shape[2:])
        tokens = places.flatten(2).transpose(1, 2)  # (B, N, D)
        if self.cls is not None:
            tokens = torch.cat((self.cls.expand(len(tokens), -1, -1), tokens), 1)
        yield tokens, grid
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
            yield tokens, grid

    def checked(self, x: Tensor) -> Tensor:
        """What the stem takes of ``x``; a model raises DataError where it cannot be."""
        return x


def _start(module: nn.Module) -> None:
    """First values as published: narrow truncated normals, and biases of 0.02 in linear layers and norms."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.LayerNorm):
        nn.init.constant_(module.bias, 0.02)
