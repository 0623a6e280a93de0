"""CAV-MAE: a picture and a spectrogram, each through blocks of its own, then through one block that both share.

Gong, Rouditchenko, Liu, Harwath, Karlinsky, Kuehne, Glass, "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023),
and the public code (YuanGongND/cav-mae), whose parameter names these are. Here is the encoder, with the classifier that
is fine-tuned from it; what pre-training adds is in `encoders.audiovisual.cav_mae_pretraining`.

The block that both share is passed in one of three ways, each with norms of its own: by both modalities in a row (the
shared norms), by sound alone, by pictures alone. Where a clip lacks a modality a fine-tuned model takes the mean of two
ways of what is there: with the shared norms, as it was trained, and with the modality's own. There is no class token:
features are means over tokens.

As a frozen encoder it is joint: ``encode(clips, modality)`` is that modality's way alone, which pre-training contrasts,
so that either feature can be lost and filled by itself.

B batch, H W pixels, S sample, U mel frame, F mel bin, N token, M modality (video, audio), D width, K class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.audio.log_mel import FRONTS
from encoders.audiovisual.inputs import AudioInput, VideoInput, heard
from encoders.errors import ConfigError, DataError
from encoders.layers.modality_block import SUFFIX, ModalityBlock
from encoders.layers.pictures import signed_pictures
from encoders.video.r2plus1d import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CAVMAE", "PRESETS", "CAVMAEConfig", "Patches", "grid_positions", "initialise"]

MODALITIES = ("video", "audio")  # the M axis
SEEN = {"rgb": "video", "audio": "audio"}  # what `prepare` calls it, and whose it is


@dataclass(frozen=True, kw_only=True)
class CAVMAEConfig:
    """The encoder; the defaults are the paper's: one picture out of ten seconds, and their sound."""

    video: VideoInput = field(default_factory=lambda: _picture(224, Fraction(10)))
    audio: AudioInput = field(default_factory=lambda: _sound())
    dim: int = 768  # D
    depth: int = 11  # blocks of each modality
    unified_depth: int = 1  # blocks that both share
    heads: int = 12
    mlp_dim: int = 3072
    # What a classifier goes by: both in a row, or one alone with that modality's norms. All weights are there whatever
    # it says, so that one checkpoint starts any of them.
    mode: Literal["joint", "video", "audio"] = "joint"
    classes: int = 0  # K; 0: features

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "unified_depth", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.dim % self.heads or self.dim % 4:
            raise ConfigError(
                f"dim {self.dim} is no multiple of heads {self.heads} and of 4, which positions in rows and columns "
                "take; change one"
            )
        if self.classes < 0:
            raise ConfigError(f"classes {self.classes} must not be negative; use 0 for features")
        if self.mode not in ("joint", *MODALITIES):
            raise ConfigError(f"mode {self.mode!r} is unknown; use joint, video or audio")
        if self.video.frames != 1 or self.video.tubelet[0] != 1:
            raise ConfigError(
                f"video.frames {self.video.frames} in tubelets of {self.video.tubelet[0]} are more than the one "
                "picture that CAV-MAE looks at; use 1 of each"
            )
        if self.video.motion:
            raise ConfigError("video.motion leaves nothing of a single picture; leave it out")
        if self.video.clip_seconds != self.audio.clip_seconds:
            raise ConfigError(
                f"clips of {float(self.video.clip_seconds):g} s for video and {float(self.audio.clip_seconds):g} s for "
                "audio are not the same clips; make video.clip_seconds and audio.clip_seconds one"
            )
        _ = self.grids  # sizes that do not divide raise

    @property
    def inputs(self) -> dict[str, VideoInput | AudioInput]:
        """What each modality is cut from."""
        return {"video": self.video, "audio": self.audio}

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of tokens: of the picture, and of bands and times of the sound."""
        (_, rows, columns), (_, times, bands) = self.video.grid, self.audio.grid
        return {"video": (rows, columns), "audio": (bands, times)}

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens each modality has (N)."""
        return {m: rows * columns for m, (rows, columns) in self.grids.items()}

    @property
    def patches(self) -> dict[str, tuple[int, int]]:
        """Height and width of a patch: in pixels, and in mel bins and mel frames."""
        return {"video": self.video.tubelet[1:], "audio": self.audio.patch[::-1]}


def _sound() -> AudioInput:
    """Ten seconds, and what is missing of 1024 mel frames filled up."""
    return AudioInput(frames=1024, clip_seconds=Fraction(10), front="cav_mae")


def _picture(size: int, seconds: Fraction, crop_share: float = 1.0) -> VideoInput:
    """One picture, from the middle of a stream's clip."""
    return VideoInput(frames=1, size=size, tubelet=(1, 16, 16), clip_seconds=seconds, crop_share=crop_share)


# --- parts ------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Patches to tokens, row by row."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(x).flatten(2).transpose(1, 2)


def grid_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "1 n d"]:
    """Fixed positions of rows and columns: the first half of the channels tells the column, the second the row, each as
    sines, then cosines, of the place times 10000^(-k / (D / 4))."""
    rows, columns = grid
    rates = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)  # (places, D / 2)

    across = waves(columns)[None].expand(rows, -1, -1)
    down = waves(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], 2).flatten(0, 1)[None].float()


def initialise(model: nn.Module) -> None:
    """First values as published: Xavier for layers (patch convolutions as linear ones), small normal vectors."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Patches):
            nn.init.xavier_uniform_(module.proj.weight.data.flatten(1))
    for name, parameter in model.named_parameters():
        if name.startswith(("modality_", "decoder_modality_", "mask_token")):
            nn.init.normal_(parameter, std=0.02)


# --- the model --------------------------------------------------------------------------------------------------


class CAVMAE(nn.Module):
    """A frozen encoder of either modality; with ``classes`` a classifier of clips with picture, sound or both."""

    context_seconds = 0.0
    sound_apart = True  # training: the sound lasts clip_seconds, although one picture is looked at

    def __init__(self, config: CAVMAEConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.modalities = MODALITIES if config.mode == "joint" else (config.mode,)
        self.specs = {m: config.inputs[m].spec for m in self.modalities}
        self.spec = self.specs[self.modalities[0]]
        self.clip_seconds = config.audio.clip_seconds
        self.sees = [name for name, m in SEEN.items() if m in self.modalities]
        self.front = FRONTS[config.audio.front] if config.audio.front else None

        # input: patches, places, modality
        patches, dim = config.patches, config.dim
        self.patch_embed_a = Patches(1, dim, patches["audio"])
        self.patch_embed_v = Patches(3, dim, patches["video"])
        self.modality_a = nn.Parameter(torch.zeros(1, 1, dim))
        self.modality_v = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed_a = nn.Parameter(grid_positions(config.grids["audio"], dim))
        self.pos_embed_v = nn.Parameter(grid_positions(config.grids["video"], dim))
        # blocks: of sound, of pictures, of both
        self.blocks_a = _blocks(config.depth, config)
        self.blocks_v = _blocks(config.depth, config)
        self.blocks_u = _blocks(config.unified_depth, config)
        self.norm_a, self.norm_v, self.norm = (nn.LayerNorm(dim) for _ in range(3))
        # head
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.classes)) if config.classes else None
        # The feature of a clip in which the picture is fine and nobody's face is in it (ours): learned with the head.
        looks = config.video.region == "face"
        self.no_face = nn.Parameter(torch.zeros(dim)) if looks else None
        initialise(self)

    # an encoder of either modality

    def encode(self, clips: Tensor, modality: str = "") -> Float[Tensor, "b d"]:
        """One modality's clips, as its spec says, to the mean of its tokens (B, D), after that modality's norms.

        video: uint8 (B, 1, H, W) gray or (B, 1, H, W, 3) RGB; audio: float32 samples (B, S) in [-1, 1]. ``modality``
        may be left out where the mode names one.
        """
        modality = self._which(modality)
        (x,) = self.prepare(clips, modality).values()
        return self.unified(self.own(self.tokens(x, modality), modality), modality).mean(1)

    def prepare(self, clips: Tensor, modality: str = "", flow: Tensor | None = None) -> dict[str, Tensor]:
        """Clips to what the model sees, ``rgb`` (B, 3, H, W) standardised, or hears, ``audio`` (B, U, F)."""
        if flow is not None:
            raise DataError("flow came to a model that sees none; leave it out, or train mm_mix")
        if self._which(modality) == "audio":
            return {"audio": heard(self.config.audio, clips)}
        pictures = (signed_pictures(clips) + 1) / 2  # (B, 3, T, H, W)
        mean, std = (pictures.new_tensor(x)[:, None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
        pictures = (pictures - mean) / std
        if pictures.shape[2] != 1:
            raise DataError(f"clips of {pictures.shape[2]} pictures came to a model that looks at one; give one each")
        return {"rgb": pictures[:, :, 0]}

    def heard(self, spectrograms: Float[Tensor, "b u f"]) -> dict[str, Tensor]:
        """Spectrograms that the front made, as `prepare` gives them: what a model of mode audio is trained on."""
        return {"audio": spectrograms}

    # both at once

    def forward(self, seen: Tensor | Mapping[str, Tensor], presence: Tensor | None = None) -> Float[Tensor, "b k"]:
        """What is seen, by the names of `prepare`, to logits (B, K), or features (B, D) without a head.

        A tensor alone is what a model of one mode takes. presence: (B, M), which modalities a clip has.
        """
        if isinstance(seen, Tensor):
            if len(self.sees) > 1:
                raise DataError("one input came to a model that sees and hears; name each, rgb and audio")
            seen = {self.sees[0]: seen}
        return self.logits(seen, presence)

    def logits(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b k"]:
        """What is seen to logits (B, K), or to features (B, D) without a head."""
        x = self.features(seen, presence)
        return x if self.mlp_head is None else self.mlp_head(x)

    def features(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b d"]:
        """What the head reads of each clip, zeros of one that has nothing; what an absent input holds goes nowhere."""
        inputs = {SEEN[name]: seen[name] for name in self.sees if name in seen}
        first = self._first(inputs)
        if presence is None:
            return self._joint(inputs) if len(inputs) > 1 else self._alone(first, next(iter(inputs)))
        has = self._has(inputs, presence)
        both = torch.stack(list(has.values())).all(0) & (len(inputs) > 1)
        out: Tensor = first.new_zeros(len(first), self.dim)
        if bool(both.any()):
            out[both] = self._joint({m: x[both] for m, x in inputs.items()}).to(out)
        for m, x in inputs.items():
            rows = has[m] & ~both
            if bool(rows.any()):
                out[rows] = self._alone(x[rows], m).to(out)
        return out

    def _joint(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "b d"]:
        """Both modalities in a row, sound first."""
        a, v = (self.own(self.tokens(inputs[m], m), m) for m in ("audio", "video"))
        return self.unified(torch.cat([a, v], 1)).mean(1)

    def _alone(self, x: Tensor, modality: str) -> Float[Tensor, "b d"]:
        """One modality of a clip: by its own norms; of a model that learned from both, the mean with the shared."""
        x = self.own(self.tokens(x, modality), modality)
        lone = self.unified(x, modality).mean(1)
        return lone if self.config.mode != "joint" else (self.unified(x).mean(1) + lone) / 2

    # the ways through

    def tokens(self, x: Tensor, modality: str) -> Float[Tensor, "b n d"]:
        """Pictures (B, 3, H, W), or spectrograms (B, U, F), to tokens: rows of the picture; all times of a band, then
        of the next. With their places and their modality; raises DataError on another size."""
        self._check(x, modality)
        part = SUFFIX[modality]
        patches = x.transpose(1, 2)[:, None] if modality == "audio" else x  # (B, 1, F, U)
        found: Tensor = getattr(self, f"patch_embed{part}")(patches)
        return found + getattr(self, f"pos_embed{part}") + getattr(self, f"modality{part}")

    def own(self, x: Float[Tensor, "b n d"], modality: str) -> Float[Tensor, "b n d"]:
        """Through the modality's own blocks, whose norms are the shared ones."""
        for block in self.blocks_a if modality == "audio" else self.blocks_v:
            x = block(x)
        return x

    def unified(self, x: Float[Tensor, "b n d"], modality: str = "") -> Float[Tensor, "b n d"]:
        """Through the block that both share and a last norm, by the way of a modality or (none) of both."""
        for block in self.blocks_u:
            x = block(x, modality=modality)
        out: Tensor = getattr(self, f"norm{SUFFIX[modality]}")(x)
        return out

    # what is refused

    def _which(self, modality: str) -> str:
        if not modality and len(self.modalities) == 1:
            return self.modalities[0]
        if modality not in self.modalities:
            names = " or ".join(self.modalities)
            raise DataError(f"{modality or 'no name'} is no modality of this model; name {names}")
        return modality

    def _check(self, x: Tensor, modality: str) -> None:
        video, audio = self.config.video, self.config.audio
        wanted = (3, video.size, video.size) if modality == "video" else (audio.frames, audio.bins)
        if tuple(x.shape[1:]) != wanted:
            raise DataError(
                f"{modality} of {'x'.join(map(str, x.shape[1:]))} came to a model of {'x'.join(map(str, wanted))}; "
                f"sample and resize it, or build the model with another {modality}"
            )

    def _first(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Any of what was given; raises DataError where there is nothing, or not the same clips."""
        if not inputs:
            raise DataError(f"there is nothing to see or hear; give {' or '.join(self.sees)}")
        if len({len(x) for x in inputs.values()}) > 1:
            counts = " and ".join(f"{len(x)} of {m}" for m, x in inputs.items())
            raise DataError(f"{counts} are not the same clips; give as many of each, and presence where one is missing")
        return next(iter(inputs.values()))

    def _has(self, inputs: Mapping[str, Tensor], presence: Tensor) -> dict[str, Bool[Tensor, " b"]]:
        """Which clips have a modality, of those that were given."""
        count = len(self._first(inputs))
        if tuple(presence.shape) != (count, len(MODALITIES)) or presence.dtype != torch.bool:
            raise DataError(
                f"presence {tuple(presence.shape)} {str(presence.dtype).removeprefix('torch.')} is not (clips, 2) bool "
                f"of {count} clips; give video and audio of each clip"
            )
        return {m: presence[:, MODALITIES.index(m)] for m in inputs}


def _blocks(depth: int, config: CAVMAEConfig) -> nn.ModuleList:
    return nn.ModuleList(ModalityBlock(config.dim, config.heads, config.mlp_dim) for _ in range(depth))


# --- presets ----------------------------------------------------------------------------------------------------

_SECONDS = Fraction(2, 5)  # clips of the default grid: the picture in the middle, forty mel frames
_TINY: dict[str, Any] = {"dim": 128, "depth": 3, "heads": 4, "mlp_dim": 512}
PRESETS = {
    "cav_mae_base": CAVMAEConfig(),
    "cav_mae_tiny": CAVMAEConfig(
        video=_picture(64, _SECONDS, crop_share=0.625),
        audio=AudioInput(frames=40, bins=48, patch=(8, 8), clip_seconds=_SECONDS, front="log_mel_talk"),
        **_TINY,
    ),
}
