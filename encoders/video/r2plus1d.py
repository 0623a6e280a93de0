"""R(2+1)D as AVID-CMA builds it: every 3-D convolution split into space, then time.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (CVPR 2018); the variant of
Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (CVPR 2021): a full
3-D stem with a max pool, no widened middle channels, batch norm after the residual sum, global *max* pooling. With
global *average* pooling, on pictures half as tall, it is the network of CrissCross (Sarkar & Etemad, AAAI 2023).
Left out: torchvision's variant of the same name, whose weights do not fit.

Two things are ours, for small live bundles: a gray front end that adds the change between frames, and ``pool="steps"``,
which keeps time (and where in the picture something is) instead of pooling it away.

Shapes: B batch, T frame, H W pixels, C channel, D feature.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from encoders.clips import VideoSpec
from encoders.errors import ConfigError
from encoders.layers.steps import unit_steps

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AROUND = 11  # pixels, side of the neighbourhood whose mean ``local_motion`` takes away


@dataclass(frozen=True, kw_only=True)
class R2Plus1DConfig:
    """Sizes of the network; the defaults are the paper's depth-18 net at 224 pixels."""

    clip_seconds: Fraction = Fraction(1, 2)
    frames: int = 8  # T
    size: int = 224  # H = W
    front: str = "rgb"  # rgb: ImageNet mean and std; local_motion: see ``prepare``
    region: str = "frame"  # frame, face: what the picture shows
    crop_share: float = 0.875
    stem_width: int = 64
    stem_kernel: tuple[int, int, int] = (3, 7, 7)
    stem_pool: bool = True
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of conv2x, conv3x, ...
    blocks: tuple[int, ...] = (2, 2, 2, 2)  # per stage; (1, 1, 1, 1) is depth 10
    time_strides: tuple[int, ...] = (1, 2, 2, 2)
    space_strides: tuple[int, ...] = (1, 2, 2, 2)
    pool: str = "max"  # max, average: over time and space; steps: keep both, one Linear per step
    step_dim: int = 32  # width of a step's feature under pool="steps"

    def __post_init__(self) -> None:
        stages = {len(self.widths), len(self.blocks), len(self.time_strides), len(self.space_strides)}
        if len(stages) != 1:
            raise ConfigError(f"widths, blocks and strides name {sorted(stages)} stages; give each stage one of each")
        if self.front not in ("rgb", "local_motion"):
            raise ConfigError(f"front {self.front!r} is unknown; use 'rgb' or 'local_motion'")
        if self.pool not in ("max", "average", "steps"):
            raise ConfigError(f"pool {self.pool!r} is unknown; use 'max', 'average' or 'steps'")

    @property
    def in_channels(self) -> int:
        return 3 if self.front == "rgb" else 2

    @property
    def steps(self) -> int:
        """Time steps that the last stage leaves."""
        steps = self.frames
        for stride in self.time_strides:
            steps = -(-steps // stride)
        return steps

    @property
    def cells(self) -> int:
        """Rows (= columns) of the last stage's picture."""
        side = -(-self.size // 2)
        side = -(-side // 2) if self.stem_pool else side
        for stride in self.space_strides:
            side = -(-side // stride)
        return side

    @property
    def dim(self) -> int:
        return self.steps * self.step_dim if self.pool == "steps" else self.widths[-1]


class Block(nn.Module):
    """Two (2+1)D convolutions and a shortcut; batch norm sits after the sum (``out_bn``)."""

    def __init__(self, width_in: int, width: int, time_stride: int, space_stride: int):
        super().__init__()
        space, time = (
            dict(kernel_size=(1, 3, 3), padding=(0, 1, 1), bias=False),
            dict(kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False),
        )
        stride = (time_stride, space_stride, space_stride)
        self.spt_conv1 = nn.Conv3d(width_in, width, stride=(1, *stride[1:]), **space)  # type: ignore[arg-type]
        self.spt_bn1 = nn.BatchNorm3d(width)
        self.tmp_conv1 = nn.Conv3d(width, width, stride=(stride[0], 1, 1), **time)  # type: ignore[arg-type]
        self.tmp_bn1 = nn.BatchNorm3d(width)
        self.spt_conv2 = nn.Conv3d(width, width, **space)  # type: ignore[arg-type]
        self.spt_bn2 = nn.BatchNorm3d(width)
        self.tmp_conv2 = nn.Conv3d(width, width, **time)  # type: ignore[arg-type]
        self.out_bn = nn.BatchNorm3d(width)
        changes = width_in != width or stride != (1, 1, 1)
        self.res_conv = nn.Conv3d(width_in, width, kernel_size=1, stride=stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d u v w2"]:
        y = self.spt_bn1(self.spt_conv1(x)).relu()
        y = self.tmp_bn1(self.tmp_conv1(y)).relu()
        y = self.spt_bn2(self.spt_conv2(y)).relu()
        y = self.tmp_conv2(y)
        shortcut = x if self.res_conv is None else self.res_conv(x)
        return self.out_bn(y + shortcut).relu()


class R2Plus1D(nn.Module):
    """A frozen video encoder: uint8 clips in, one vector per clip out."""

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: R2Plus1DConfig):
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        self.spec = VideoSpec(
            frames=config.frames,
            size=config.size,
            pixel_format="rgb24" if config.front == "rgb" else "gray",
            region=config.region,
            crop_share=config.crop_share,
        )
        kernel = config.stem_kernel
        stem: list[nn.Module] = [
            nn.Conv3d(
                config.in_channels,
                config.stem_width,
                kernel,
                stride=(1, 2, 2),
                padding=tuple(k // 2 for k in kernel),  # type: ignore[arg-type]
                bias=False,
            ),
            nn.BatchNorm3d(config.stem_width),
            nn.ReLU(),
        ]
        if config.stem_pool:
            stem.append(nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))
        self.conv1 = nn.Sequential(*stem)
        width = config.stem_width
        self.stage_names = [f"conv{i + 2}x" for i in range(len(config.widths))]
        for name, out, blocks, ts, ss in zip(
            self.stage_names, config.widths, config.blocks, config.time_strides, config.space_strides, strict=True
        ):
            chain = [
                Block(width if i == 0 else out, out, ts if i == 0 else 1, ss if i == 0 else 1) for i in range(blocks)
            ]
            # Depth-10 checkpoints have no block index in their names.
            self.add_module(name, chain[0] if blocks == 1 else nn.Sequential(*chain))
            width = out
        self.pool = nn.AdaptiveAvgPool3d(1) if config.pool == "average" else nn.AdaptiveMaxPool3d(1)
        self.step: nn.Linear | None = None
        if config.pool == "steps":
            self.step = nn.Linear(width * config.cells**2, config.step_dim)
        # The feature of a clip in which the picture is fine and nobody's face is in it: learned with the head.
        self.no_face = nn.Parameter(torch.zeros(config.dim)) if config.region == "face" else None

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 (B, T, H, W) gray or (B, T, H, W, 3) rgb -> features (B, D)."""
        return self(self.prepare(clips))

    def prepare(self, clips: Tensor) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures to the network's input.

        ``local_motion`` standardises a gray clip by itself, so that none leaks into another, takes away what is around
        each pixel, so that skin and light cancel, and adds the change from picture to picture.
        """
        x = clips.float() / 255
        if self.config.front == "rgb":
            mean, std = x.new_tensor(IMAGENET_MEAN), x.new_tensor(IMAGENET_STD)
            return ((x - mean) / std).movedim(-1, 1)  # (B, 3, T, H, W)
        mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        x = (x - mean) / (std + 0.02)  # a black picture stays zero
        x = x - avg_pool2d(x, AROUND, 1, AROUND // 2, count_include_pad=False)
        change = torch.zeros_like(x)
        change[:, 1:] = x[:, 1:] - x[:, :-1]
        return torch.stack((x, 3 * change), 1)  # (B, 2, T, H, W); a talking mouth changes by about a third

    def stages(self, x: Float[Tensor, "b c t h w"]) -> dict[str, Tensor]:
        """Every stage's output, by its name in the published code."""
        out = {"conv1": self.conv1(x)}
        x = out["conv1"]
        for name in self.stage_names:
            x = out[name] = getattr(self, name)(x)
        return out

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        x = self.conv1(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        if self.step is None:
            return self.pool(x).flatten(1)  # (B, D)
        x = x.transpose(1, 2).flatten(2)  # (B, T', C*H'*W')
        return unit_steps(self.step(x))  # (B, T'*step_dim)


PRESETS = {
    "r2plus1d_18": R2Plus1DConfig(),
    "r2plus1d_10": R2Plus1DConfig(blocks=(1, 1, 1, 1)),
    "r2plus1d_34": R2Plus1DConfig(blocks=(3, 4, 6, 3)),
    "r2plus1d_18_crisscross": R2Plus1DConfig(size=112, pool="average"),
    "r2plus1d_talk": R2Plus1DConfig(
        clip_seconds=Fraction(2, 5),
        frames=10,
        size=40,
        front="local_motion",
        region="face",
        stem_width=16,
        stem_kernel=(3, 5, 5),
        stem_pool=False,
        widths=(24, 48, 64),
        blocks=(1, 1, 1),
        time_strides=(1, 1, 2),
        space_strides=(2, 2, 1),
        pool="steps",
    ),
    "r2plus1d_tiny": R2Plus1DConfig(
        size=32, stem_width=8, widths=(8, 16), blocks=(1, 1), time_strides=(1, 2), space_strides=(1, 2)
    ),
    "r2plus1d_tiny_average": R2Plus1DConfig(
        size=32, stem_width=8, widths=(8, 16), blocks=(1, 1), time_strides=(1, 2), space_strides=(1, 2), pool="average"
    ),
}
