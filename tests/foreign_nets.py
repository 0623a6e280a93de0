"""Torch modules as somebody else might have written them, for tests of encoders from outside."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from encoders.clips import AudioSpec


class Colours(nn.Module):
    """Pictures (R, 3, H, W) to maps (R, D, H/8, W/8)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Several(nn.Module):
    """Sound (B, 1, S) to a dict of answers."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loud": x.abs().mean(-1), "middle": torch.cat([x.mean(-1), x.amax(-1)], -1)}


class Ready(nn.Module):
    """An encoder that promises what ours do."""

    modalities, dim, context_seconds, spec = ("audio",), 2, 0.0, AudioSpec(sample_rate=8_000)

    def __init__(self, seconds: str = "2/5") -> None:
        super().__init__()
        self.clip_seconds = Fraction(seconds)
        self.scale = nn.Parameter(torch.ones(2))

    def encode(self, clips: Tensor) -> Tensor:
        return torch.stack([clips.mean(1), clips.abs().amax(1)], 1) * self.scale


class Half(nn.Module):
    """It has ``encode`` and lacks most of the promise."""

    dim = 3

    def encode(self, clips: Tensor) -> Tensor:
        return clips


class Single(nn.Module):
    """It forgets its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


NOT_A_MODULE = dict
