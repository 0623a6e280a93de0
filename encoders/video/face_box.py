"""FaceBox: where the mouth is, from a 64-pixel picture; small enough to run on every clip.

Ours, not from a paper: a few convolutions to an 8-pixel grid whose cells each vote for a face and say where its
mouth is and how large, in the manner of single-shot detectors; taught by a larger detector (``runtime.talk.faces``).
The same net looks twice: once at the whole frame, then at the neighbourhood of what it found (or knew from the clip
before), which makes small faces large.

Shapes: B picture, G grid cells per side. A box is (x, y, side) of a square around the mouth, in units of the picture
(0..1 from its left or upper edge); side is ``SIDE`` times (distance of the eyes + distance from the eyes to the mouth).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from encoders.settings import override, pick

SIDE = 0.8


@dataclass(frozen=True, kw_only=True)
class FaceBoxConfig:
    """Sizes of the net."""

    size: int = 64  # pixels, side of the square gray picture it looks at
    width: int = 16

    @property
    def grid(self) -> int:
        return self.size // 8


class FaceBox(nn.Module):
    """uint8 pictures to one box each, and how sure there is a face."""

    def __init__(self, config: FaceBoxConfig):
        super().__init__()
        self.config = config
        w = config.width
        self.trunk = nn.Sequential(
            *_stage(1, w, 2), *_stage(w, 2 * w, 2), *_stage(2 * w, 2 * w, 1),
            *_stage(2 * w, 3 * w, 2), *_stage(3 * w, 3 * w, 1), *_stage(3 * w, 3 * w, 1),
        )  # fmt: skip
        self.around = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3 * w, 3 * w, 1))  # what kind of picture this is
        self.out = nn.Conv2d(3 * w, 4, 1)  # face, dx, dy, log side

    def forward(self, pictures: UInt8[Tensor, "b h w"]) -> Float[Tensor, "b 4 g g"]:
        """Raw votes of every cell: logit of a face, offset from the cell's middle in cells, log of the side."""
        x = pictures.float()[:, None]
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 4.0)
        x = self.trunk(x)
        return self.out((x + self.around(x)).relu())

    def boxes(self, votes: Float[Tensor, "b 4 g g"]) -> tuple[Float[Tensor, "b 3"], Float[Tensor, " b"]]:
        """The box each picture's votes agree on, (x, y, side), and the face's probability."""
        grid = self.config.grid
        logit = votes[:, 0].flatten(1)
        best = logit.amax(1, keepdim=True)
        weight = torch.where(logit > best - 2.0, (logit - best).exp(), torch.zeros_like(logit))
        weight = weight / weight.sum(1, keepdim=True)  # (B, G*G)
        cell = (torch.arange(grid, device=votes.device) + 0.5) / grid
        y, x = torch.meshgrid(cell, cell, indexing="ij")
        at_x = x.flatten() + votes[:, 1].flatten(1) / grid
        at_y = y.flatten() + votes[:, 2].flatten(1) / grid
        side = votes[:, 3].flatten(1).clamp(-6, 1).exp()
        found = torch.stack([(weight * place).sum(1) for place in (at_x, at_y, side)], 1)
        return found, best[:, 0].sigmoid()


def _stage(width_in: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(width), nn.ReLU()


PRESETS = {"face_box": FaceBoxConfig(), "face_box_tiny": FaceBoxConfig(size=32, width=4)}


def build(preset: str, **overrides: Any) -> FaceBox:
    """The net of a preset, freshly initialised. Raises UsageError for an unknown preset, field or type."""
    return FaceBox(override(pick(PRESETS, preset, "face finder"), overrides))
