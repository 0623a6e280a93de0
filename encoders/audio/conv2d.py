"""Conv2D: the spectrogram network of AVID-CMA, plain convolutions without shortcuts.

Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (CVPR 2021).
Time is the height axis, frequency the width axis. Ours, for small live bundles: ``pool="steps"`` keeps time.

Shapes: B batch, S sample, T spectrogram column in time, F frequency bin, C channel, D feature.
"""

from dataclasses import dataclass
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor, nn

from encoders.audio.log_mel import FRONTS, Front
from encoders.clips import AudioSpec
from encoders.errors import ConfigError
from encoders.layers.steps import unit_steps


@dataclass(frozen=True, kw_only=True)
class Conv2DConfig:
    """Sizes of the network; the defaults are the paper's depth-10 net."""

    clip_seconds: Fraction = Fraction(2)
    front: str = "avid_spectrogram"  # a key of FRONTS: samples to (T, F)
    stem_width: int = 64
    stem_kernel: int = 7
    stem_stride: tuple[int, int] = (2, 2)  # time, frequency
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[tuple[int, int], ...] = ((2, 2), (2, 2), (2, 2), (1, 1))
    pool: str = "max"  # max: over time and frequency; steps: keep both, one Linear per step
    step_dim: int = 32

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.strides):
            raise ConfigError(f"{len(self.widths)} widths but {len(self.strides)} strides; give each block one of each")
        if self.front not in FRONTS:
            raise ConfigError(f"front {self.front!r} is unknown; use one of {', '.join(FRONTS)}")
        if self.pool not in ("max", "steps"):
            raise ConfigError(f"pool {self.pool!r} is unknown; use 'max' or 'steps'")

    def grid(self) -> tuple[int, int]:
        """Time steps and frequency bins that the last block leaves."""
        steps, bins = FRONTS[self.front].shape(self.clip_seconds)
        for time, frequency in (self.stem_stride, *self.strides):
            steps, bins = -(-steps // time), -(-bins // frequency)
        return steps, bins

    @property
    def dim(self) -> int:
        return self.widths[-1] if self.pool == "max" else self.grid()[0] * self.step_dim


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU; no residual."""

    def __init__(self, width_in: int, width: int, stride: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "b c t f"]) -> Float[Tensor, "b d u g"]:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu()


class Conv2D(nn.Module):
    """A frozen audio encoder: waveforms in, one vector per clip out."""

    modalities = ("audio",)
    context_seconds = 0.0

    def __init__(self, config: Conv2DConfig):
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        self.front: Front = FRONTS[config.front]
        self.spec = AudioSpec(sample_rate=self.front.sample_rate)
        kernel = config.stem_kernel
        self.conv1 = nn.Sequential(
            nn.Conv2d(1, config.stem_width, kernel, stride=config.stem_stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(config.stem_width),
            nn.ReLU(),
        )
        width = config.stem_width
        self.block_names = [f"block{i + 1}" for i in range(len(config.widths))]
        for name, out, stride in zip(self.block_names, config.widths, config.strides, strict=True):
            self.add_module(name, Block(width, out, stride))
            width = out
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.step: nn.Linear | None = None
        if config.pool == "steps":
            self.step = nn.Linear(width * config.grid()[1], config.step_dim)

    def encode(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        """float32 samples (B, S) in [-1, 1] -> features (B, D)."""
        return self(self.prepare(clips))

    def prepare(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b 1 t f"]:
        """Samples to the network's input; nothing outside the clip is looked at."""
        return self.heard(self.front(clips))

    def heard(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b 1 t f"]:
        """What the front makes, as the network takes it."""
        return spectrograms.unsqueeze(1)

    def stages(self, x: Float[Tensor, "b 1 t f"]) -> dict[str, Tensor]:
        """Every stage's output, by its name in the published code (conv2x is block1, ...)."""
        out = {"conv1": self.conv1(x)}
        x = out["conv1"]
        for i, name in enumerate(self.block_names):
            x = out[f"conv{i + 2}x"] = getattr(self, name)(x)
        return out

    def forward(self, x: Float[Tensor, "b 1 t f"]) -> Float[Tensor, "b d"]:
        x = self.conv1(x)
        for name in self.block_names:
            x = getattr(self, name)(x)
        if self.step is None:
            return self.pool(x).flatten(1)  # (B, D)
        x = x.transpose(1, 2).flatten(2)  # (B, T', C*F')
        return unit_steps(self.step(x))  # (B, T'*step_dim)


PRESETS = {
    "conv2d_10": Conv2DConfig(),
    "conv2d_talk": Conv2DConfig(
        clip_seconds=Fraction(2, 5),
        front="log_mel_talk",
        stem_width=16,
        stem_kernel=5,
        widths=(32, 48, 64),
        strides=((2, 2), (2, 2), (1, 2)),
        pool="steps",
    ),
    "conv2d_tiny": Conv2DConfig(
        clip_seconds=Fraction(1, 2), stem_width=8, widths=(8, 16), strides=((2, 2), (2, 2)), front="log_mel_talk"
    ),
}
