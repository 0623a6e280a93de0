"""AV-MAE: what is left of a clip's picture and sound after most was hidden must suffice to draw the rest.

Georgescu, Fonseca, Ionescu, Lucic, Schmid, Arnab, "Audiovisual Masked Autoencoders" (ICCV 2023), and
google-research/scenic (projects/av_mae). Here is the encoder, which is what pre-training leaves; the decoder and the
objectives, which it throws away, are in `encoders.audiovisual.av_mae_decoder`, the loop in `encoders.pretrain_mae`.
Classifiers are fine-tuned as MBTs (`encoders.weights.av_mae` carries the weights over).

The four encoders of section 3.2: ``early`` (one transformer over the tokens of both modalities), ``separate`` (one
each), ``mid`` (one each, then ``joint_depth`` blocks over both) and ``shared`` (the same one for each, by itself). With
one modality alone the model is the paper's baseline, VideoMAE or AudioMAE, and its encoder is ``separate``.

As a frozen encoder it is joint: ``encode(clips, modality)`` gives the mean of one modality's tokens, computed as though
the other were not there, so that either feature can be lost and filled by itself.

B batch, C channel, T frame, H W pixels, S sample, U mel frame, F mel bin, N token, V visible token, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.audiovisual.inputs import AudioInput, VideoInput, check_shape, heard
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.block import Encoder, check_trunk
from encoders.layers.embed import PatchEmbed, TubeletEmbed
from encoders.layers.pictures import motion_of, signed_pictures
from encoders.layers.positions import sinusoid

__all__ = [
    "AVMAE", "MODALITIES", "PRESETS", "AVMAEConfig", "Fusion", "Modality", "Places", "check_fusion", "chosen",
    "kept_apart", "through", "trunks",
]  # fmt: skip

Modality = Literal["video", "audio"]
MODALITIES: tuple[Modality, ...] = ("video", "audio")  # the order in which tokens lie one after the other
Fusion = Literal["early", "separate", "mid", "shared"]
Tokens = Mapping[str, Tensor]  # by modality, (B, N, D) each; each its own N


@dataclass(frozen=True, kw_only=True)
class AVMAEConfig:
    """The encoder; the defaults are size B as pre-trained on VGGSound, with 8 s of sound."""

    video: VideoInput | None = field(default_factory=lambda: _pictures(Fraction(8)))
    audio: AudioInput | None = field(default_factory=lambda: AudioInput(front="scenic_raw"))  # one channel
    encoder: Fusion = "separate"
    joint_depth: int = 2  # of ``depth``, the blocks over both modalities (mid)
    dim: int = 768  # D
    depth: int = 12  # blocks that a token passes
    heads: int = 12
    mlp_dim: int = 3072
    modality_tokens: bool = False  # a learned vector of its modality is added to each token; no released model has it

    def __post_init__(self) -> None:
        check_trunk(self)
        if not self.inputs:
            raise ConfigError("video and audio are both none; keep at least one of them")
        check_fusion("encoder", self.encoder, len(self.inputs), self.depth, self.joint_depth)
        assert all(part.grid for part in self.inputs.values()), "sizes that do not divide raise"

    @property
    def inputs(self) -> dict[str, VideoInput | AudioInput]:
        """The modalities that there are, the picture first."""
        named: dict[str, VideoInput | AudioInput | None] = {"video": self.video, "audio": self.audio}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens each modality has (N)."""
        return {name: prod(part.grid) for name, part in self.inputs.items()}


def check_fusion(what: str, fusion: str, modalities: int, depth: int, joint: int) -> None:
    """Refuse transformers that cannot be built, with a ConfigError."""
    if fusion not in ("early", "separate", "mid", "shared"):
        raise ConfigError(f"{what} {fusion!r} is unknown; use early, separate, mid or shared")
    if fusion == "mid" and not 0 < joint < depth:
        raise ConfigError(
            f"{joint} of {depth} blocks cannot be the joint ones of a mid {what}; use 1 to {depth - 1}, "
            "or early or separate"
        )
    if fusion in ("early", "mid") and modalities == 1:
        raise ConfigError(f"one modality has nothing to fuse: its {what} cannot be {fusion}; use separate")


# --- transformers over one modality or two ----------------------------------------------------------------------


def trunks(
    fusion: Fusion, modalities: tuple[str, ...], depth: int, joint: int, sizes: tuple[int, int, int]
) -> nn.ModuleDict:
    """The transformers of a kind of fusion: one per modality, ``joint``, or both; ``sizes`` are width, heads, MLP."""
    if fusion in ("early", "shared"):
        return nn.ModuleDict({"joint": Encoder(depth, *sizes)})
    own = depth - joint if fusion == "mid" else depth
    made = {name: Encoder(own, *sizes) for name in modalities}
    return nn.ModuleDict({**made, **({"joint": Encoder(joint, *sizes)} if fusion == "mid" else {})})


def through(parts: nn.ModuleDict, fusion: Fusion, x: Tokens) -> dict[str, Tensor]:
    """Tokens (B, N, D) of each modality through what `trunks` made; where they meet they lie in a row, video first."""
    if fusion == "shared":
        return {name: parts["joint"](tokens) for name, tokens in x.items()}
    if fusion != "early":
        x = {name: parts[name](tokens) for name, tokens in x.items()}
    if fusion == "separate":
        return dict(x)
    names = [name for name in MODALITIES if name in x]
    fused = parts["joint"](torch.cat([x[name] for name in names], 1))  # (B, N_v + N_a, D)
    return dict(zip(names, fused.split([x[name].shape[1] for name in names], 1), strict=True))


def kept_apart(fusion: Fusion) -> bool:
    """Whether a modality's tokens pass without ever meeting the other's."""
    return fusion in ("separate", "shared")


class Places(nn.Module):
    """What is added to all of a modality's tokens: sinusoids by place, and a learned vector where there is one."""

    sinusoids: Tensor  # (1, N, D)

    def __init__(self, count: int, dim: int, learned: bool) -> None:
        super().__init__()
        self.register_buffer("sinusoids", sinusoid(count, dim), persistent=False)
        self.token = nn.Parameter(torch.zeros(1, 1, dim)) if learned else None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.sinusoids
        return x if self.token is None else x + self.token


# --- the encoder ------------------------------------------------------------------------------------------------


class AVMAE(nn.Module):
    """Tokens of pictures and of sound, hidden or not, through the transformers that the config names."""

    context_seconds = 0.0

    def __init__(self, config: AVMAEConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.specs: dict[str, VideoSpec | AudioSpec] = {name: part.spec for name, part in config.inputs.items()}
        self.modalities, self.clip_seconds = _served(config)
        self.spec = self.specs[self.modalities[0]]
        self.embed = nn.ModuleDict({name: _embed(part, config.dim) for name, part in config.inputs.items()})
        counts = config.counts.items()
        self.places = nn.ModuleDict({m: Places(n, config.dim, config.modality_tokens) for m, n in counts})
        sizes = config.dim, config.heads, config.mlp_dim
        self.trunks = trunks(config.encoder, tuple(config.inputs), config.depth, config.joint_depth, sizes)

    def forward(
        self, seen: Mapping[str, Tensor], visible: Mapping[str, Int[Tensor, "b v"]] | None = None
    ) -> dict[str, Float[Tensor, "b n d"]]:
        """What `prepare` gives, by modality, to normed tokens (B, N, D) of each; a modality that is not given is not
        there.

        visible: which tokens of each modality are encoded, (B, V); None: all. Raises DataError on another size.
        """
        tokens = self.tokens(seen)
        if visible is not None:
            tokens = {name: chosen(x, visible[name]) for name, x in tokens.items()}
        return through(self.trunks, self.config.encoder, tokens)

    def tokens(self, seen: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "b n d"]]:
        """Patches with their places, before any transformer; in order of time, row, column (sound: time, frequency)."""
        self._check(seen)
        found = {name: self.embed[name](seen[name]).flatten(1, -2) for name in MODALITIES if name in seen}
        return {name: self.places[name](x) for name, x in found.items()}

    def prepare(self, clips: Tensor, modality: str = "") -> Tensor:
        """Clips to a modality's input: pictures (B, 3, T, H, W) in [-1, 1], or a spectrogram (B, 1, U, F).

        video: uint8 (B, T, H, W) or (B, T, H, W, 3). audio: float32 samples (B, S) in [-1, 1].
        """
        modality = self._which(modality)
        part = self.config.inputs[modality]
        if isinstance(part, AudioInput):
            return heard(part, clips)[:, None]
        pictures = signed_pictures(clips)
        return motion_of(pictures) if part.motion else pictures

    def encode(self, clips: Tensor, modality: str = "") -> Float[Tensor, "b d"]:
        """Clips of one modality, as its spec says, to the mean of its tokens (B, D); the other is not there.

        ``modality`` may be left out where the model has but one.
        """
        modality = self._which(modality)
        return self({modality: self.prepare(clips, modality)})[modality].mean(1)

    def _which(self, modality: str) -> str:
        names = list(self.config.inputs)
        if not modality and len(names) == 1:
            return names[0]
        if modality not in names:
            raise DataError(f"{modality or 'no name'} is no modality of this model; name {' or '.join(names)}")
        return modality

    def _check(self, seen: Mapping[str, Tensor]) -> None:
        if not seen:
            raise DataError(f"there is nothing to see or hear; give {' or '.join(self.config.inputs)}")
        for name, x in seen.items():
            part = self.config.inputs[self._which(name)]
            check_shape(part, x, name, 3 if name == "video" else 1)
        if len({len(x) for x in seen.values()}) > 1:
            counts = " and ".join(f"{len(x)} of {name}" for name, x in seen.items())
            raise DataError(f"{counts} are not the same clips; give as many of each")


def chosen(x: Float[Tensor, "b n d"], places: Int[Tensor, "b v"]) -> Float[Tensor, "b v d"]:
    """The tokens at some places, each row's own."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def _embed(part: VideoInput | AudioInput, dim: int) -> nn.Module:
    return TubeletEmbed(part.tubelet, dim) if isinstance(part, VideoInput) else PatchEmbed(part.patch, dim, 1)


def _served(config: AVMAEConfig) -> tuple[tuple[str, ...], Fraction]:
    """What a stream can be served in, and the length of its clips: both modalities where these are equally long and
    sound comes as samples, else the picture, or what there is."""
    lengths = {name: part.clip_seconds for name, part in config.inputs.items()}
    first = next(iter(lengths))
    heard = config.audio is not None and bool(config.audio.front)
    names = tuple(m for m in lengths if m == first or (heard and lengths[m] == lengths[first]))
    return names, lengths[first]


# --- presets ----------------------------------------------------------------------------------------------------


def _pictures(seconds: Fraction) -> VideoInput:
    """Every fourth of 64 pictures, 2.56 s, in pre-training; a stream is looked at evenly, as long as it is heard."""
    return VideoInput(frames=16, tubelet=(2, 16, 16), clip_seconds=seconds)


_BASE = AVMAEConfig()
_LARGE = AVMAEConfig(dim=1024, depth=24, heads=16, mlp_dim=4096)
# The 10 s of an AudioSet clip are 62 patches long, and what is left over is cut off: 9.92 s.
_LONG = Fraction(248, 25)
_TEN_SECONDS: dict[str, Any] = {
    "video": _pictures(_LONG),
    "audio": AudioInput(frames=992, clip_seconds=_LONG, front="scenic_raw"),
}
# Clips of the default grid, 0.4 s: ten frames of the middle of the picture, forty mel frames.
_TINY = AVMAEConfig(
    video=VideoInput(frames=10, size=64, clip_seconds=Fraction(2, 5), tubelet=(2, 16, 16), crop_share=0.625),
    audio=AudioInput(frames=40, bins=48, patch=(8, 8), clip_seconds=Fraction(2, 5), front="log_mel_talk"),
    encoder="mid",
    dim=128,
    depth=4,
    heads=4,
    mlp_dim=512,
)
PRESETS = {
    "av_mae_base": _BASE,
    "av_mae_base_early": replace(_BASE, encoder="early"),
    "av_mae_base_shared": replace(_BASE, encoder="shared"),
    "av_mae_base_mid": replace(_BASE, encoder="mid"),
    "av_mae_base_video": replace(_BASE, audio=None),
    "av_mae_base_audio": replace(_BASE, video=None),
    "av_mae_large": _LARGE,  # as released for VGGSound
    "av_mae_large_early": replace(_LARGE, encoder="early"),
    "av_mae_large_shared": replace(_LARGE, encoder="shared"),
    "av_mae_large_mid": replace(_LARGE, encoder="mid"),
    "av_mae_large_audioset": replace(_LARGE, encoder="mid", **_TEN_SECONDS),  # as released for AudioSet
    "av_mae_large_video": replace(_LARGE, audio=None),
    "av_mae_large_audio": replace(_LARGE, video=None),
    "av_mae_tiny": _TINY,
}
