"""Learned positions, and how a table made for one size of input becomes one for another.

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

__all__ = ["learned", "resize_grid", "resize_tile", "resize_time", "tile_grid"]

Grid = tuple[int, int]  # rows, columns
Table = Float[Tensor, "1 n d"]


def learned(count: int, dim: int) -> nn.Parameter:
    """A table of ``count`` positions to be learned, (1, N, D), normal with deviation 0.02."""
    return nn.Parameter(torch.randn(1, count, dim) * 0.02)


def resize_grid(table: Table, old: Grid, new: Grid, steps: int = 1) -> Float[Tensor, "1 m d"]:
    """A table of ``steps`` times the grid ``old``, zoomed to the grid ``new`` at every step."""
    shape = (steps, *old) if steps > 1 else old
    first, rest = _split(table, math.prod(shape), "x".join(map(str, shape)))
    if old == new:
        return table
    pictures = rest.unflatten(1, (steps, *old))[0].movedim(-1, 1)  # (T, D, h, w)
    zoomed = interpolate(pictures, new, mode="bilinear", align_corners=True)
    return torch.cat([first, zoomed.movedim(1, -1).flatten(0, 2)[None]], 1)


def resize_time(table: Table, old: int, new: int) -> Float[Tensor, "1 m d"]:
    """A table of ``old`` steps, zoomed to ``new``."""
    first, rest = _split(table, old, str(old))
    if old == new:
        return table
    zoomed = interpolate(rest.transpose(1, 2), new, mode="linear", align_corners=True)
    return torch.cat([first, zoomed.transpose(1, 2)], 1)


def tile_grid(table: Table, grid: Grid, times: int) -> Float[Tensor, "1 m d"]:
    """A picture's table repeated at each of ``times`` steps."""
    first, rest = _split(table, grid[0] * grid[1], f"{grid[0]}x{grid[1]}")
    return torch.cat([first, rest.repeat(1, times, 1)], 1)


def resize_tile(table: Table, old: Grid, new: Grid, times: int) -> Float[Tensor, "1 m d"]:
    """A picture's table zoomed to the grid ``new`` and repeated at each of ``times`` steps."""
    return tile_grid(resize_grid(table, old, new), new, times)


def _split(table: Tensor, places: int, called: str) -> tuple[Tensor, Tensor]:
    """The class position, (1, 0 or 1, D), and the rest; raises DataError where the count fits neither way."""
    spare = table.shape[1] - places
    if spare not in (0, 1):
        raise DataError(
            f"a table of {table.shape[1]} positions is not one of {called} places, with or without a class position; "
            "name the size it was made for"
        )
    return table[:, :spare], table[:, spare:]
