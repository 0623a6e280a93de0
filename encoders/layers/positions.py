"""Positions, learned or sinusoids, and how a learned table made for one size of input becomes one for another.

ViViT (ICCV 2021), section 3.4. Zoom is linear and corner-aligned: the first and the last place stay what they were. A
table is (1, N, D), its places in order of time, then row, then column; a class position, where there is one, is the
first, is not zoomed, and stays the first.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from encoders.errors import DataError

__all__ = ["learned", "resize_grid", "resize_tile", "resize_time", "resize_volume", "sinusoid", "tile_grid"]

Grid = tuple[int, int]  # rows, columns
Volume = tuple[int, int, int]  # steps, rows, columns
Table = Float[Tensor, "1 n d"]


def learned(count: int, dim: int) -> nn.Parameter:
    """A table of ``count`` positions to be learned, (1, N, D), normal with deviation 0.02."""
    return nn.Parameter(torch.randn(1, count, dim) * 0.02)


def sinusoid(count: int, dim: int) -> Table:
    """Fixed positions 0 to ``count - 1``: at 2i the sine, at 2i + 1 the cosine of ``p / 10000 ** (2i / dim)``.

    A grid of tokens is numbered in one row, so a longer clip goes on where a shorter one ended (AV-MAE, VideoMAE).
    """
    rates = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (D+1)//2
    angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[None, :, :dim].float()


def resize_volume(table: Table, old: Volume, new: Volume) -> Float[Tensor, "1 m d"]:
    """A table of steps, rows and columns ``old``, zoomed to ``new``."""
    first, rest = _split(table, old)
    if old == new:
        return table
    volume = rest.unflatten(1, old).movedim(-1, 1)  # (1, D, t, h, w)
    zoomed = interpolate(volume, new, mode="trilinear", align_corners=True)
    return torch.cat([first, zoomed.movedim(1, -1).flatten(1, 3)], 1)


def resize_grid(table: Table, old: Grid, new: Grid, steps: int = 1) -> Float[Tensor, "1 m d"]:
    """A table of ``steps`` times the grid ``old``, zoomed to the grid ``new`` at every step."""
    return resize_volume(table, (steps, *old), (steps, *new))


def resize_time(table: Table, old: int, new: int) -> Float[Tensor, "1 m d"]:
    """A table of ``old`` steps, zoomed to ``new``."""
    return resize_volume(table, (old, 1, 1), (new, 1, 1))


def tile_grid(table: Table, grid: Grid, times: int) -> Float[Tensor, "1 m d"]:
    """A picture's table repeated at each of ``times`` steps."""
    first, rest = _split(table, (1, *grid))
    return torch.cat([first, rest.repeat(1, times, 1)], 1)


def resize_tile(table: Table, old: Grid, new: Grid, times: int) -> Float[Tensor, "1 m d"]:
    """A picture's table zoomed to the grid ``new`` and repeated at each of ``times`` steps."""
    return tile_grid(resize_grid(table, old, new), new, times)


def _split(table: Tensor, volume: Volume) -> tuple[Tensor, Tensor]:
    """The class position, (1, 0 or 1, D), and the rest; raises DataError where the count fits neither way."""
    spare = table.shape[1] - math.prod(volume)
    if spare not in (0, 1):
        raise DataError(
            f"a table of {table.shape[1]} positions is not one of {'x'.join(map(str, volume))} places "
            "(steps, rows, columns), with or without a class position; name the size it was made for"
        )
    return table[:, :spare], table[:, spare:]
