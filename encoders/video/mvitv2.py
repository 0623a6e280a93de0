"""MViTv2: clips seen at ever coarser grids by ever wider tokens.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection" (CVPR 2022), as
facebookresearch/SlowFast builds it. The blocks are in ``encoders.layers.multiscale``, their attention in
``encoders.layers.pooled_attention``; there are no absolute positions. A model of one frame is the image variant: its
grid has two axes. Left out: MViTv2-L at 312 pixels, and detection (windows, feature pyramids).
Ours: the head's scores are logits, where the public code gives probabilities once training is over.

B batch, T frame, H W pixels, C channel, D width, K class.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.multiscale import Multiscale, MultiscaleConfig
from encoders.layers.pictures import check_seen, motion_of, signed_pictures
from encoders.layers.pooled_attention import Grid

__all__ = ["PRESETS", "MViTv2", "MViTv2Config"]

MEAN, STD = 0.45, 0.225  # of pixels from 0 to 1, the same for all colours


@dataclass(frozen=True, kw_only=True)
class MViTv2Config(MultiscaleConfig):
    """Sizes of the trunk, and what it looks at; the defaults are MViTv2-B 32x3, as trained on Kinetics."""

    frames: int = 32  # T; 1: a picture, and numbers of the trunk have two axes
    size: int = 224  # H = W
    channels: int = 3  # 3: RGB, 1: gray
    clip_seconds: Fraction = Fraction(16, 5)  # every third frame at 30 per second
    region: str = "frame"  # frame, face: what the picture shows
    crop_share: float = 0.875
    motion: bool = False  # see only what moves (``encoders.layers.pictures.motion_of``); ours

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("frames", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.region not in ("frame", "face"):
            raise ConfigError(f"region {self.region!r} is unknown; use frame or face")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels {self.channels} are neither gray nor RGB; use 1 or 3")
        if self.motion and self.frames == 1:
            raise ConfigError("motion true sees nothing in frames 1; use more frames, or motion=false")
        check_seen(self.clip_seconds, self.crop_share)
        self.check_grid(self.grid)

    @property
    def grid(self) -> Grid:
        """Steps, rows and columns of the first tokens; of a picture rows and columns. Zero where a side is too small
        for one patch, which ``check_grid`` refuses."""
        sides = (self.size, self.size) if self.frames == 1 else (self.frames, self.size, self.size)
        strides = [*self.stem_stride, *(1,) * (len(sides) - len(self.stem_stride))]
        return tuple(side // max(stride, 1) for side, stride in zip(sides, strides, strict=False))


class MViTv2(Multiscale):
    """A clip to class scores or, without a head, to its feature; ``encode`` takes clips as the runtime lays them."""

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: MViTv2Config) -> None:
        super().__init__(config, config.channels, config.grid)
        self.config = config
        self.dim, self.clip_seconds = config.dim_out, config.clip_seconds
        self.spec = VideoSpec(
            frames=config.frames,
            size=config.size,
            pixel_format="rgb24" if config.channels == 3 else "gray",
            region=config.region,
            crop_share=config.crop_share,
        )
        # The feature of a clip in which the picture is fine and nobody's face is in it: learned with the head.
        self.no_face = nn.Parameter(torch.zeros(self.dim)) if config.region == "face" else None

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 (B, T, H, W) gray or (B, T, H, W, 3) rgb -> features (B, D)."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures less their usual mean, over their usual deviation; gray is repeated for a model of colours,
        colours are mixed for a gray one."""
        pictures = signed_pictures(clips, self.config.channels)
        return motion_of(pictures) if self.config.motion else (pictures / 2 + (0.5 - MEAN)) / STD

    def checked(self, x: Tensor) -> Tensor:
        """The clip, or a picture without its axis of time. Clips of other sizes and lengths than the config's are
        taken; raises DataError on another number of channels, and from a model of pictures on more than one frame."""
        picture, channels = self.config.frames == 1, self.config.channels
        if x.ndim != 5 or x.shape[1] != channels or (picture and x.shape[2] != 1) or min(x.shape) < 1:
            raise DataError(
                f"a clip of {'x'.join(map(str, x.shape[1:]))} came to a model of {channels} channels and "
                f"{self.config.frames} frames; give (batch, {channels}, {'1' if picture else 'frames'}, rows, columns)"
            )
        return x[:, :, 0] if picture else x


# --- presets ----------------------------------------------------------------------------------------------------

_SMALL: dict[str, Any] = {"depth": 16, "pooled": (1, 3, 14), "frames": 16, "clip_seconds": Fraction(32, 15)}
_PICTURE: dict[str, Any] = {
    "frames": 1, "pool": "mean", "strides": ((2, 2),) * 3, "stride_kv": (4, 4), "kernel": (3, 3),
    "stem_kernel": (7, 7), "stem_stride": (4, 4), "clip_seconds": Fraction(2, 5),
}  # fmt: skip
# Clips of the default grid: ten frames in 0.4 s, the middle of the picture, where a talking head is.
_TINY: dict[str, Any] = {
    "dim": 32, "depth": 4, "pooled": (1, 2, 3), "frames": 10, "size": 64, "clip_seconds": Fraction(2, 5),
    "crop_share": 0.625,
}  # fmt: skip

PRESETS = {
    "mvitv2_base": MViTv2Config(),
    "mvitv2_b_32x3": MViTv2Config(),
    "mvitv2_b_16x4": MViTv2Config(frames=16, clip_seconds=Fraction(32, 15)),  # the picture side of MMT
    "mvitv2_s_16x4": MViTv2Config(**_SMALL),
    "mvitv2_b_image": MViTv2Config(**_PICTURE),
    "mvitv2_tiny": MViTv2Config(**_TINY),
}
