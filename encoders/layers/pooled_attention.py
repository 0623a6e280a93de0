"""Attention whose queries, keys and values are pooled on their grid: what makes a transformer multiscale.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection" (CVPR 2022), as
facebookresearch/SlowFast builds it: a depthwise convolution and a layer norm after each projection, positions as a
sum of one learned distance per axis, and the pooled queries added to what they found. Where paper and code differ the
code counts, because weights are published for it: only the product of queries and keys is scaled, distances meet the
queries unscaled, and the class token's query is not added. Grids have two axes (a picture, a spectrogram) or three (a
clip). Left out: pooling by maximum or mean, and pools that differ from head to head, which no published preset has.

B batch, H head, E width of a head, N token in, M token out, L key, C width in, D width out, a b queries and keys along
an axis. Tokens lie in order of the grid's axes, the class token, where there is one, before them.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot, pad, scaled_dot_product_attention

from encoders.errors import ConfigError, DataError
from encoders.layers.block import layer_norm

__all__ = ["Grid", "PooledAttention", "TokenPool", "check_grid", "relative_index", "resize_table"]

Grid = tuple[int, ...]  # places along each axis: (rows, columns), (frequency, time) or (time, rows, columns)
# Distances are folded into queries and keys where those get no wider than this many heads' widths more: beyond, what
# the wider products cost is more than what the smaller memory saves.
FOLDED = 2
CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


def check_grid(count: int, grid: Grid, class_token: bool) -> None:
    """Raise DataError unless ``count`` tokens are the ``grid``'s, and a class token where there is one."""
    if count != prod(grid) + class_token:
        raise DataError(
            f"{count} tokens are not those of a grid of {'x'.join(map(str, grid))}{' with a class token' * class_token}"
            f"; give {prod(grid) + class_token}"
        )


class TokenPool(nn.Module):
    """A depthwise convolution over the grid, alike for all heads, and a layer norm; a class token is normed only.

    width: channels of a head (E). kernel, stride: along each axis of the grid. Edges are padded with zeros, so a grid
    of n places becomes one of ceil(n / stride) where the kernel is odd.
    """

    def __init__(self, width: int, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        edge = tuple(k // 2 for k in kernel)
        self.conv = CONVOLUTIONS[len(kernel)](width, width, kernel, stride, edge, groups=width, bias=False)
        self.norm = layer_norm(width)

    def forward(self, x: Float[Tensor, "b h n e"], grid: Grid) -> tuple[Float[Tensor, "b h m e"], Grid]:
        """Tokens and their grid to fewer of them and theirs."""
        heads, first = x.shape[1], x.shape[2] - prod(grid)
        places = x[:, :, first:].flatten(0, 1).transpose(1, 2).unflatten(2, grid)  # (B H, E, *grid)
        pooled = self.conv(places)
        tokens = pooled.flatten(2).transpose(1, 2).unflatten(0, (-1, heads))  # (B, H, M, E)
        return self.norm(torch.cat((x[:, :, :first], tokens), 2)), tuple(pooled.shape[2:])


class PooledAttention(nn.Module):
    """Multi-head self-attention on a grid; it may widen its tokens, and leave fewer of them.

    dim_in, dim_out: widths C and D; heads must divide dim_out. input_size: the grid that tables of distances are made
    for; on another grid they are resized. kernel_q, stride_q: of the pool of queries, which sets the grid that comes
    out; kernel_kv, stride_kv: of the pools of keys and values. A kernel of ones that steps by one is no pool, and has
    no norm either. class_token: whether the first token lies off the grid. relative: add learned distances to the
    logits. residual: add the pooled queries to what they found.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        heads: int,
        *,
        input_size: Grid,
        kernel_q: Grid,
        kernel_kv: Grid,
        stride_q: Grid,
        stride_kv: Grid,
        class_token: bool = True,
        relative: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or dim_out % heads:
            raise ConfigError(f"{heads} attention heads cannot share a width of {dim_out}; use a divisor of {dim_out}")
        _check_pools(input_size, kernel_q=kernel_q, kernel_kv=kernel_kv, stride_q=stride_q, stride_kv=stride_kv)
        self.heads, self.class_token, self.residual = heads, class_token, residual
        width = dim_out // heads
        self.qkv = nn.Linear(dim_in, 3 * dim_out)
        self.out = nn.Linear(dim_out, dim_out)
        self.query = _pool(width, kernel_q, stride_q)
        self.key = _pool(width, kernel_kv, stride_kv)
        self.value = _pool(width, kernel_kv, stride_kv)
        lengths = [
            2 * max(size // q, size // kv) - 1 for size, q, kv in zip(input_size, stride_q, stride_kv, strict=True)
        ]
        self.distances = nn.ParameterList(
            nn.Parameter(nn.init.trunc_normal_(torch.empty(length, width), std=0.02)) for length in lengths * relative
        )

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Float[Tensor, "b m d"], Grid]:
        """Tokens and their grid to tokens and the grid of the pooled queries; DataError where they do not fit."""
        check_grid(x.shape[1], grid, self.class_token)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, N, E)
        q, q_grid = _pooled(self.query, q, grid)
        k, k_grid = _pooled(self.key, k, grid)
        v, _ = _pooled(self.value, v, grid)
        y = self.attend(q, k, v, q_grid, k_grid)  # (B, H, M, E)
        if self.residual:
            first = int(self.class_token)
            y = torch.cat((y[:, :, :first], y[:, :, first:] + q[:, :, first:]), 2)
        return self.out(y.transpose(1, 2).flatten(2)), q_grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Float[Tensor, "b h m e"]:
        """What queries find among keys, by product and distance.

        Where an axis has few places the distances become channels of queries and keys (`folded`); else, and where only
        shapes are computed, so that costs are counted as published, they are a bias on all pairs.
        """
        if not len(self.distances):
            return scaled_dot_product_attention(q, k, v)
        met = self.met(q, q_grid, k_grid)
        if sum(k_grid) <= FOLDED * q.shape[-1] and not q.is_meta:
            return self.folded(q, k, v, met, k_grid)
        return scaled_dot_product_attention(q, k, v, self.bias(met))

    def met(self, q: Float[Tensor, "b h m e"], q_grid: Grid, k_grid: Grid) -> list[Tensor]:
        """By axis, each query on the grid times the learned vector of its distance to each place of the keys along the
        axis: (B, H, *q_grid, b)."""
        places = q[:, :, int(self.class_token) :].unflatten(2, q_grid)  # (B, H, *q_grid, E)
        out = []
        for axis, (table, a, b) in enumerate(zip(self.distances, q_grid, k_grid, strict=True)):
            rows = resize_table(table, 2 * max(a, b) - 1)[relative_index(a, b, table.device)]  # (a, b, E)
            asked = places.movedim(2 + axis, 2)  # (B, H, a, *other axes, E)
            met = asked.flatten(3, -2) @ rows.transpose(1, 2)  # (B, H, a, others, b)
            out.append(met.unflatten(3, asked.shape[3:-1]).movedim(2, 2 + axis))
        return out

    def bias(self, met: Sequence[Tensor]) -> Float[Tensor, "b h m l"]:
        """What distance adds to each logit, the sum over axes; nothing where the class token asks or is asked."""
        first, axes = int(self.class_token), len(met)
        total: Tensor | float = 0.0
        for axis, part in enumerate(met):
            total = total + part.unflatten(-1, [part.shape[-1] if i == axis else 1 for i in range(axes)])
        assert isinstance(total, Tensor)
        return pad(total.flatten(2, 1 + axes).flatten(3), (first, 0, first, 0))  # (B, H, M, L)

    def folded(self, q: Tensor, k: Tensor, v: Tensor, met: Sequence[Tensor], k_grid: Grid) -> Float[Tensor, "b h m e"]:
        """The same without a number for every pair: a query brings what it met along each axis as further channels, a
        key says its place there with a one, and the product of both is the logit with its bias.

        Kernels of attention then need memory in proportion to the tokens. Values are widened alike, which some of them
        want, and cut again.
        """
        width, first = q.shape[-1], int(self.class_token)
        brought = torch.cat([part.flatten(2, -2) for part in met], -1)  # (B, H, M - first, sum of k_grid)
        asking = torch.cat((q * width**-0.5, pad(brought, (0, 0, first, 0)).to(q.dtype)), -1)
        asked = torch.cat((k, pad(_places(k_grid, k), (0, 0, first, 0)).expand(*k.shape[:2], -1, -1)), -1)
        y = scaled_dot_product_attention(asking, asked, pad(v, (0, sum(k_grid))), scale=1.0)
        return y[..., :width]


def _places(grid: Grid, like: Tensor) -> Float[Tensor, "l places"]:
    """Of each place of a grid, its place along every axis: a one among zeros, axis beside axis."""
    along = torch.meshgrid([torch.arange(side, device=like.device) for side in grid], indexing="ij")
    return torch.cat([one_hot(at.flatten(), side) for at, side in zip(along, grid, strict=True)], 1).to(like.dtype)


def relative_index(a: int, b: int, device: torch.device | None = None) -> Int[Tensor, "a b"]:
    """Which row of a table of 2 max(a, b) - 1 distances query i and key j read, with ``a`` of the one and ``b`` of the
    other along an axis: both are spread over the longer of the two, and what is no whole distance is cut off."""
    q_step, k_step = max(b / a, 1.0), max(a / b, 1.0)
    queries = torch.arange(a, device=device)[:, None] * q_step
    keys = torch.arange(b, device=device)[None] * k_step
    return (queries - keys + (b - 1) * k_step).long()  # float32 until here, as published weights were trained


def resize_table(table: Float[Tensor, "n e"], length: int) -> Float[Tensor, "m e"]:
    """A table of distances for a grid of another size: along the axis, linearly."""
    if len(table) == length:
        return table
    return interpolate(table.T[None], length, mode="linear")[0].T


def _pool(width: int, kernel: Grid, stride: Grid) -> TokenPool | None:
    return None if prod(kernel) == prod(stride) == 1 else TokenPool(width, kernel, stride)


def _pooled(pool: TokenPool | None, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    if pool is None:
        return x, grid
    tokens, smaller = pool(x, grid)
    return tokens, smaller


def _check_pools(input_size: Grid, **given: Sequence[int]) -> None:
    if len(input_size) not in CONVOLUTIONS:
        raise ConfigError(f"a grid of {len(input_size)} axes cannot be pooled; use 2 or 3")
    for name, values in given.items():
        if len(values) != len(input_size) or min(values) < 1:
            raise ConfigError(
                f"{name} {_listed(values)} does not fit a grid of {_listed(input_size)}; give {len(input_size)} whole "
                "numbers of at least 1"
            )
        if name.startswith("kernel") and not all(value % 2 for value in values):
            raise ConfigError(f"{name} {_listed(values)} has no middle; use odd numbers")
    for size, *strides in zip(input_size, given["stride_q"], given["stride_kv"], strict=True):
        if size < max(strides):
            raise ConfigError(
                f"a grid of {_listed(input_size)} cannot be pooled by {max(strides)} along an axis of {size}; "
                "use a larger input, or smaller strides"
            )


def _listed(values: Sequence[int]) -> str:
    return "x".join(map(str, values))
