"""CrissCross: two moments of a clip, seen and heard, agree with each other across time and across modalities.

Sarkar & Etemad, "Self-Supervised Audio-Visual Representation Learning with Relaxed Cross-Modal Synchronicity" (AAAI
2023), and its public code. No negatives, no memory, no momentum encoder: as in SimSiam a predictor on one side and a
stopped gradient on the other keep all clips from becoming one point. What is new is *relaxed synchrony*: the picture of
one moment must also agree with the sound of the other.

B batch, T frame, H W pixels, U mel frame, F mel bin, C width of a backbone's feature, D width of the common space.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.audio.resnet2d import PRESETS as AUDIO
from encoders.audio.resnet2d import ResNet2D, ResNet2DConfig
from encoders.errors import ConfigError
from encoders.video.r2plus1d import PRESETS as VIDEO
from encoders.video.r2plus1d import R2Plus1D, R2Plus1DConfig

__all__ = [
    "PRESETS", "Agreement", "AgreementConfig", "CrissCross", "CrissCrossConfig", "Outputs", "cut_out", "distance",
    "spread", "symmetric",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CrissCrossConfig:
    """The two networks, their projectors and predictors."""

    video: R2Plus1DConfig = field(default_factory=lambda: VIDEO["r2plus1d_18_crisscross"])
    audio: ResNet2DConfig = field(default_factory=lambda: AUDIO["resnet2d_18"])
    width: int = 2048  # D, and of the projectors' hidden layers
    bottleneck: int = 512  # of the predictors
    video_layers: int = 3  # of the projector; 2 leaves the middle one out
    audio_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("width", "bottleneck"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("video_layers", "audio_layers"):
            if getattr(self, name) not in (2, 3):
                raise ConfigError(f"{name} {getattr(self, name)} of a projector is neither 2 nor 3; use 3")


class Projector(nn.Module):
    """From a backbone's feature into the common space: linear layers with batch norm, the last one without ReLU."""

    def __init__(self, dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU())
        # Named as published, where the third layer keeps its name when there is no second.
        self.layer2: nn.Module = nn.Identity()
        if layers == 3:
            self.layer2 = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return self.layer3(self.layer2(self.layer1(x)))


class Predictor(nn.Module):
    """What a view says another view's projection will be; a bottleneck."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(width, bottleneck), nn.BatchNorm1d(bottleneck), nn.ReLU())
        self.layer2 = nn.Linear(bottleneck, width)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.layer2(self.layer1(z))


class Outputs(NamedTuple):
    """Of each view (video at two moments, audio at two moments): its projection, and what it predicts."""

    z: dict[str, Tensor]  # "v1", "v2", "a1", "a2" to (B, D)
    p: dict[str, Tensor]


class CrissCross(nn.Module):
    """Backbones, projectors and predictors; parameter names are those of the published training state."""

    modalities = ("video", "audio")

    def __init__(self, config: CrissCrossConfig) -> None:
        super().__init__()
        self.config = config
        self.video_backbone = R2Plus1D(config.video)
        self.video_projector = Projector(config.video.dim, config.width, config.video_layers)
        self.video_predictor = Predictor(config.width, config.bottleneck)
        self.audio_backbone = ResNet2D(config.audio)
        self.audio_projector = Projector(config.audio.dim, config.width, config.audio_layers)
        self.audio_predictor = Predictor(config.width, config.bottleneck)

    def forward(
        self,
        video: UInt8[Tensor, "b 2 t h w *rgb"],
        squares: Int[Tensor, "b 2 3"],
        audio: Float[Tensor, "b 2 u f"],
    ) -> Outputs:
        """Pictures and spectrograms of two views, in the order of their moments.

        ``squares`` (top, left, side in pixels; side 0: none) are cut out of the pictures. Each view goes through its
        network by itself, so that batch norm sees one kind of view at a time, as published.
        """
        z, p = {}, {}
        for i, name in enumerate(("v1", "v2")):
            x = cut_out(self.video_backbone.prepare(video[:, i]), squares[:, i])
            z[name] = self.video_projector(self.video_backbone(x))
            p[name] = self.video_predictor(z[name])
        for i, name in enumerate(("a1", "a2")):
            z[name] = self.audio_projector(self.audio_backbone(self.audio_backbone.heard(audio[:, i])))
            p[name] = self.audio_predictor(z[name])
        return Outputs(z, p)


def cut_out(x: Float[Tensor, "b c t h w"], squares: Int[Tensor, "b 3"]) -> Float[Tensor, "b c t h w"]:
    """Pixels in a square (top, left, side) multiplied by the mean of the clip's first frame, the same in all frames.

    The published augmentation: it dims what is there, or inverts it where the standardised mean is negative.
    """
    top, left, side = (part[:, None] for part in squares.unbind(1))  # (B, 1)
    rows, columns = (torch.arange(size, device=x.device)[None] for size in x.shape[3:])
    hidden = ((rows >= top) & (rows < top + side))[:, :, None] & ((columns >= left) & (columns < left + side))[:, None]
    mean = x[:, :, 0].mean((1, 2, 3))  # (B,)
    factor = torch.where(hidden, mean[:, None, None].to(x), torch.ones((), device=x.device, dtype=x.dtype))
    return x * factor[:, None, None]


# --- the objective ----------------------------------------------------------------------------------------------


def distance(p: Float[Tensor, "b d"], z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Minus the mean cosine of predictions and projections; through the projections nothing is learned."""
    return -F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean()


def symmetric(outputs: Outputs, x: str, y: str) -> Float[Tensor, ""]:
    """Two views predict each other: -1 where both are right, about 0 where nothing is known."""
    return (distance(outputs.p[x], outputs.z[y]) + distance(outputs.p[y], outputs.z[x])) / 2


# Pairs of views, and the coefficient each goes by.
PAIRS = {
    ("v1", "v2"): "video",
    ("a1", "a2"): "audio",
    ("v1", "a1"): "synchronous",
    ("v2", "a2"): "synchronous",
    ("v1", "a2"): "asynchronous",
    ("a1", "v2"): "asynchronous",
}


@dataclass(frozen=True, kw_only=True)
class AgreementConfig:
    """Coefficients of the six losses; the defaults are the paper's. Those of 0 are not computed."""

    video: float = 1.0  # two moments of the picture
    audio: float = 1.0  # two moments of the sound
    synchronous: float = 1.0  # picture and sound of one moment, twice
    asynchronous: float = 1.0  # picture of one moment and sound of the other, twice

    def __post_init__(self) -> None:
        for name in ("video", "audio", "synchronous", "asynchronous"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"coefficient {name} {getattr(self, name)} must be 0 or more; use 0 to leave it out")
        if not (self.video or self.audio or self.synchronous or self.asynchronous):
            raise ConfigError("all coefficients are 0, so that nothing would be learned; raise one of them")

    def of(self, x: str, y: str) -> float:
        """The coefficient of a pair of views."""
        return float(getattr(self, PAIRS[x, y]))


class Agreement:
    """The loss: the mean of those of the six agreements that count, each times its coefficient."""

    def __init__(self, config: AgreementConfig) -> None:
        self.config = config
        self.pairs = [pair for pair in PAIRS if config.of(*pair)]

    def __call__(self, outputs: Outputs) -> dict[str, Tensor]:
        """``loss``, and each agreement by the names of its views (``v1a2``), in [-1, 1] where coefficients are 1."""
        parts = {x + y: symmetric(outputs, x, y) for x, y in self.pairs}
        total = torch.stack([self.config.of(x, y) * parts[x + y] for x, y in self.pairs]).sum()
        return {"loss": total / len(self.pairs), **parts}


@torch.no_grad()
def spread(z: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """How far projections are from all being one point: 0 where they are, 1 where they point everywhere.

    SimSiam's measure (Chen & He, CVPR 2021, figure 2): the deviation of unit vectors' coordinates, times sqrt(D).
    """
    if len(z) < 2:
        return z.new_zeros(())
    return F.normalize(z.float(), dim=1).std(0).mean() * z.shape[1] ** 0.5


PRESETS = {
    "crisscross_base": CrissCrossConfig(),
    "crisscross_tiny": CrissCrossConfig(
        video=VIDEO["r2plus1d_tiny_average"], audio=AUDIO["resnet2d_tiny"], width=64, bottleneck=16
    ),
}
