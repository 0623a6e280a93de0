"""AST: an image transformer reads a spectrogram, cut into patches that overlap.

Gong, Chung, Glass, "AST: Audio Spectrogram Transformer" (Interspeech 2021), and the public code. A distilled vision
transformer (DeiT) with its two leading tokens, class and distillation; what the head reads is their mean. The network
is started from pictures and fitted to other lengths by `encoders.weights.ast_start`.
Left out: the two ImageNet heads that the public code carries along unused.

B batch, S sample, T mel frame, F mel bin, N token, D width, K class.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.audio.filterbank import STATISTICS, Filterbank
from encoders.clips import AudioSpec, ClipSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.block import Encoder, check_trunk
from encoders.layers.initial import lecun_normal_

__all__ = ["AST", "PRESETS", "SPECIAL", "ASTConfig"]

SPECIAL = 2  # tokens before the patches: class and distillation


@dataclass(frozen=True, kw_only=True)
class ASTConfig:
    """Sizes of an AST; the defaults are the paper's, stride 10, on AudioSet."""

    dim: int = 768  # D
    depth: int = 12  # blocks
    heads: int = 12
    mlp_dim: int = 3072
    patch: tuple[int, int] = (16, 16)  # mel bins, mel frames
    stride: tuple[int, int] = (10, 10)  # from one patch to the next; less than the patch: they overlap
    clip_seconds: Fraction = Fraction(10)
    front: Filterbank = field(default_factory=lambda: Filterbank(frames=1024))
    classes: int = 0  # K; 0: no head, features come out
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # of the last block, rising linearly from 0; kept branches are rescaled

    def __post_init__(self) -> None:
        check_trunk(self)
        if self.classes < 0:
            raise ConfigError(f"classes {self.classes} must be at least 0")
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        for name in ("patch", "stride"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1 bin and 1 frame")
        if self.clip_seconds <= 0:
            raise ConfigError(f"clip_seconds {self.clip_seconds} must be more than 0, such as 2/5")
        _ = self.samples, self.grid  # what does not fit raises

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return ClipSpec(seconds=self.clip_seconds, audio=AudioSpec(sample_rate=self.front.sample_rate)).samples

    @property
    def shape(self) -> tuple[int, int]:
        """Mel frames and bins of a clip, (T, F)."""
        return self.front.shape(self.clip_seconds)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and along time; what is left over at the ends is not seen."""
        frames, bins = self.shape
        if bins < self.patch[0] or frames < self.patch[1]:
            raise ConfigError(
                f"a spectrogram of {frames} mel frames and {bins} bins is smaller than a patch of {self.patch[1]} "
                f"frames and {self.patch[0]} bins; raise clip_seconds or front.frames, or use a smaller patch"
            )
        return (bins - self.patch[0]) // self.stride[0] + 1, (frames - self.patch[1]) // self.stride[1] + 1

    @property
    def tokens(self) -> int:
        """Patches (N)."""
        return self.grid[0] * self.grid[1]


class AST(nn.Module):
    """Spectrograms to logits, or to features; as an encoder, samples to features."""

    modalities = ("audio",)
    context_seconds = 0.0

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.config, self.dim, self.clip_seconds = config, config.dim, config.clip_seconds
        self.front = config.front
        self.spec = AudioSpec(sample_rate=self.front.sample_rate)
        # input: patches, two tokens of their own, positions
        self.embed = nn.Conv2d(1, config.dim, config.patch, config.stride)
        lecun_normal_(self.embed.weight)
        self.cls = _drawn(1, config.dim)
        self.distillation = _drawn(1, config.dim)
        self.positions = _drawn(config.tokens + SPECIAL, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        # trunk
        self.encoder = Encoder(
            config.depth,
            config.dim,
            config.heads,
            config.mlp_dim,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.stochastic_depth,
            rescale=True,
            exact_gelu=True,
        )
        # head: its norm has PyTorch's epsilon, not the trunk's
        self.head_norm = nn.LayerNorm(config.dim) if config.classes else None
        self.head = nn.Linear(config.dim, config.classes) if config.classes else None

    def forward(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b k"]:
        """What the front makes, (B, T, F), to logits (B, K); or to features (B, D) where there are no classes."""
        x = self.features(spectrograms)
        return x if self.head is None or self.head_norm is None else self.head(self.head_norm(x))

    def features(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b d"]:
        """The mean of class and distillation token after the last norm."""
        return self.encoder(self.tokens(spectrograms))[:, :SPECIAL].mean(1)

    def tokens(self, spectrograms: Float[Tensor, "b t f"]) -> Float[Tensor, "b n d"]:
        """Class, distillation, then patches: all times of the lowest band, then of the next; with their positions."""
        if tuple(spectrograms.shape[1:]) != self.config.shape:
            given, made = ("x".join(map(str, s)) for s in (spectrograms.shape[1:], self.config.shape))
            raise DataError(
                f"a spectrogram of {given} (mel frames, bins) came to a model of {made}; cut it, or build the model "
                "with other clip_seconds or front.frames"
            )
        patches = self.embed(spectrograms.transpose(1, 2).unsqueeze(1))  # (B, D, Nf, Nt)
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        special = torch.cat([self.cls, self.distillation], 1).expand(len(patches), -1, -1)
        return self.dropout(torch.cat([special, patches], 1) + self.positions)

    def encode(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        """float32 samples (B, S) in [-1, 1] -> features (B, D)."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: Float[Tensor, "b s"]) -> Float[Tensor, "b t f"]:
        """Samples to the network's input; raises DataError where they are no clips of the model's length."""
        wanted = self.config.samples
        if clips.ndim != 2 or clips.shape[1] != wanted or not clips.is_floating_point():
            raise DataError(
                f"sound of shape {tuple(clips.shape)} came to a model of (batch, {wanted}) floats, "
                f"{float(self.clip_seconds):g} s at {self.front.sample_rate} Hz; cut and resample it"
            )
        # Looking is not free where it would have to wait for an accelerator; there the engine looks at what comes out.
        if clips.device.type == "cpu" and not torch.isfinite(clips).all():
            raise DataError("sound holds a sample that is not finite; leave the clip out, or repair the recording")
        return self.front(clips)


def _drawn(count: int, dim: int) -> nn.Parameter:
    """(1, N, D) to be learned, normal with deviation 0.02, cut off at two units."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))


_SIZES: dict[str, dict[str, Any]] = {
    "ti": {"dim": 192, "heads": 3, "mlp_dim": 768},
    "s": {"dim": 384, "heads": 6, "mlp_dim": 1536},
    "base": {},
}


def _preset(size: str, stride: int, **changes: Any) -> ASTConfig:
    return ASTConfig(**_SIZES[size], stride=(stride, stride), **changes)


def _of(dataset: str, frames: int) -> Filterbank:
    mean, std = STATISTICS[dataset]
    return Filterbank(frames=frames, mean=mean, std=std)


PRESETS = {
    **{f"ast_base_{stride}": _preset("base", stride) for stride in (10, 12, 14, 16)},  # the ensemble's strides
    "ast_s_10": _preset("s", 10),
    "ast_ti_10": _preset("ti", 10),
    # shorter recordings, as the paper takes them
    "ast_base_10_esc50": _preset("base", 10, clip_seconds=Fraction(5), front=_of("esc50", 512)),
    "ast_base_10_speech": _preset("base", 10, clip_seconds=Fraction(1), front=_of("speech_commands", 128)),
    # clips of the default grid, 0.4 s
    "ast_tiny": ASTConfig(
        dim=128, depth=4, heads=4, mlp_dim=512, clip_seconds=Fraction(2, 5), front=Filterbank()
    ),
}  # fmt: skip
