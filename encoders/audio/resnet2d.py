"""ResNet-18 of a spectrogram with one channel: the audio network of CrissCross.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), as Sarkar & Etemad, "Self-Supervised Audio-Visual
Representation Learning with Relaxed Cross-Modal Synchronicity" (AAAI 2023) use it, with its public code: basic blocks,
batch norm before the sum, no classifier, global *average* pooling in pre-training. Frequency is the height axis, time
the width axis (in AVID-CMA's network it is the reverse).

Shapes: B batch, S sample, T mel frame, F mel bin, C channel, D feature.
"""

from dataclasses import dataclass
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor, nn

from encoders.audio.log_mel import FRONTS, Front
from encoders.clips import AudioSpec
from encoders.errors import ConfigError

__all__ = ["PRESETS", "ResNet2D", "ResNet2DConfig"]


@dataclass(frozen=True, kw_only=True)
class ResNet2DConfig:
    """Sizes of the network; the defaults are the paper's ResNet-18 of 2 s."""

    clip_seconds: Fraction = Fraction(2)
    front: str = "slaney_mel"  # a key of FRONTS: samples to (T, F)
    stem_width: int = 64
    stem_kernel: int = 7
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of block1, block2, ...
    blocks: tuple[int, ...] = (2, 2, 2, 2)  # basic blocks in each
    strides: tuple[int, ...] = (1, 2, 2, 2)  # of the first basic block of each, both axes
    pool: str = "average"  # average: as pre-trained; max

    def __post_init__(self) -> None:
        stages = {len(self.widths), len(self.blocks), len(self.strides)}
        if len(stages) != 1 or stages == {0}:
            raise ConfigError(f"widths, blocks and strides name {sorted(stages)} stages; give each stage one of each")
        if min(self.widths + self.blocks + self.strides + (self.stem_width,)) < 1:
            raise ConfigError(
                f"stem_width {self.stem_width}, widths {list(self.widths)}, blocks {list(self.blocks)} and strides "
                f"{list(self.strides)} must all be at least 1"
            )
        if self.stem_kernel < 1 or self.stem_kernel % 2 == 0:
            raise ConfigError(f"stem_kernel {self.stem_kernel} has no middle; use an odd number, such as 7")
        if self.front not in FRONTS:
            raise ConfigError(f"front {self.front!r} is unknown; use one of {', '.join(FRONTS)}")
        if self.pool not in ("average", "max"):
            raise ConfigError(f"pool {self.pool!r} is unknown; use 'average' or 'max'")

    @property
    def dim(self) -> int:
        return self.widths[-1]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where channels or stride change, the shortcut is a convolution too."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if width_in != width or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d g u"]:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet2D(nn.Module):
    """A frozen audio encoder: waveforms in, one vector per clip out; names as in the published code."""

    modalities = ("audio",)
    context_seconds = 0.0

    def __init__(self, config: ResNet2DConfig):
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        self.front: Front = FRONTS[config.front]
        self.spec = AudioSpec(sample_rate=self.front.sample_rate)
        kernel, width = config.stem_kernel, config.stem_width
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stage_names = [f"block{i + 1}" for i in range(len(config.widths))]
        for name, out, blocks, stride in zip(
            self.stage_names, config.widths, config.blocks, config.strides, strict=True
        ):
            chain = [BasicBlock(width if i == 0 else out, out, stride if i == 0 else 1) for i in range(blocks)]
            self.add_module(name, nn.Sequential(*chain))
            width = out
        self.pool = nn.AdaptiveAvgPool2d(1) if config.pool == "average" else nn.AdaptiveMaxPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        """float32 samples (B, S) in [-1, 1] -> features (B, D)."""
        return self(self.prepare(clips))

    def prepare(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b 1 f t"]:
        """Samples to the network's input; nothing outside the clip is looked at."""
        return self.heard(self.front(clips))

    def heard(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b 1 f t"]:
        """What the front makes, as the network takes it: frequency upwards, time to the right."""
        return spectrograms.transpose(1, 2).unsqueeze(1)

    def stages(self, x: Float[Tensor, "b 1 f t"]) -> dict[str, Tensor]:
        """Every stage's output, by its name in the paper (conv2x is block1, ...)."""
        out = {"conv1": self.conv1(x)}
        x = out["conv1"]
        for i, name in enumerate(self.stage_names):
            x = out[f"conv{i + 2}x"] = getattr(self, name)(x)
        return out

    def forward(self, x: Float[Tensor, "b 1 f t"]) -> Float[Tensor, "b d"]:
        x = self.conv1(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return self.pool(x).flatten(1)  # (B, D)


PRESETS = {
    "resnet2d_18": ResNet2DConfig(),
    "resnet2d_tiny": ResNet2DConfig(
        clip_seconds=Fraction(1, 2), stem_width=8, widths=(8, 16), blocks=(1, 1), strides=(1, 2)
    ),
}
