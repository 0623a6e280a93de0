"""Pictures and clips to tokens: patches, tubelets, and which frames to look at.

Arnab et al., "ViViT: A Video Vision Transformer" (ICCV 2021), sections 3.2 and 3.4. Kernels step by their own size and
never over an edge: what does not divide is refused, not cut.

B batch, T frame, C channel, H W pixels, D width.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.layers.initial import lecun_normal_

__all__ = ["PatchEmbed", "TubeletEmbed", "check_divides", "inflate", "uniform_frames"]

Sides = tuple[int, ...]


def check_divides(sizes: Sequence[int], parts: Sequence[int], names: Sequence[str]) -> Sides:
    """How many ``parts`` lie along each of ``sizes``; ``names`` says what is measured ("frames", "height", ...).

    Raises ConfigError where one does not divide, with the sizes that would.
    """
    for size, part, name in zip(sizes, parts, names, strict=True):
        if part < 1:
            raise ConfigError(f"a patch of {part} {name} is none; use at least 1")
        if size < 1 or size % part:
            below, above = size // part * part, (max(size, 0) // part + 1) * part
            way_out = f"use {below} or {above}" if below >= part else f"use {above}"
            raise ConfigError(f"{size} {name} cannot be cut into patches of {part}; {way_out}")
    return tuple(size // part for size, part in zip(sizes, parts, strict=True))


class PatchEmbed(nn.Module):
    """A picture's patches of ``patch`` (height, width) pixels, each a token of width ``dim``."""

    def __init__(self, patch: tuple[int, int], dim: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(channels, dim, patch, patch)
        _start(self.project)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b y x d"]:
        """(B, C, H, W) -> (B, H/h, W/w, D)."""
        check_divides(x.shape[2:], self.patch, ("rows", "columns"))
        return self.project(x).movedim(1, -1)


class TubeletEmbed(nn.Module):
    """A clip's tubelets of ``tubelet`` (frames, height, width), each a token of width ``dim``."""

    def __init__(self, tubelet: tuple[int, int, int], dim: int, channels: int = 3) -> None:
        super().__init__()
        self.tubelet = tubelet
        self.project = nn.Conv3d(channels, dim, tubelet, tubelet)
        _start(self.project)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b u y x d"]:
        """(B, C, T, H, W) -> (B, T/t, H/h, W/w, D)."""
        check_divides(x.shape[2:], self.tubelet, ("frames", "rows", "columns"))
        return self.project(x).movedim(1, -1)


def _start(conv: nn.Conv2d | nn.Conv3d) -> None:
    lecun_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def uniform_frames(total: int, wanted: int) -> list[int]:
    """Which of ``total`` frames to look at: ``wanted`` of them, evenly spaced and off both ends; or all there are.

    Ties round to the even frame. The public code's floating-point steps give one frame more for some pairs, such as
    32 and 5; here it is always the number asked for.
    """
    if total < 1 or wanted < 1:
        raise ConfigError(f"{wanted} of {total} frames cannot be looked at; both must be at least 1")
    if wanted >= total:
        return list(range(total))
    return [min(round(Fraction(k * total, wanted + 1)), total - 1) for k in range(1, wanted + 1)]


def inflate(kernel: Float[Tensor, "d c h w"], frames: int, how: str = "central") -> Float[Tensor, "d c t h w"]:
    """A picture's patch kernel as a tubelet's, ``frames`` long (ViViT section 3.4).

    how: "central", all of it at frame ``frames // 2`` and zero elsewhere, so that at first one frame is looked at; or
    "average", a share of ``1 / frames`` at each, so that a still clip gives what its picture gave.
    """
    if how not in ("central", "average"):
        raise ConfigError(f"inflation {how!r} is unknown; use 'central' or 'average'")
    if how == "average":
        return (kernel / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    inflated = torch.zeros(*kernel.shape[:2], frames, *kernel.shape[2:], dtype=kernel.dtype, device=kernel.device)
    inflated[:, :, frames // 2] = kernel
    return inflated
