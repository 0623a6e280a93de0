"""MMT: a multiscale transformer that sees and one that hears, which speak through a few tokens after their last blocks.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024): MViTv2-B for
pictures, MAT for sound, and K blocks of fusion through L tokens (`encoders.audiovisual.av_bottleneck`). The losses are
in `encoders.audiovisual.mmt_losses`. There is no public code; what the paper leaves open is decided here:

- The encoders end with their own norm; after fusion comes one more per modality.
- Embeddings for the losses are of the encoders' class tokens, before fusion. They and the classifier learn; only the
  classifier stays.
- ``average``, the paper's simplest baseline, has a classifier on each encoder and the mean of their logits.
- ``concatenation``, not in the paper's tables but what it argues against: every token attends to all of both.

**What is absent is dropped, never zeroed.** A side that is not there does not run, leaves the fusion tokens as they
were, and adds nothing to the logits; a clip without sound has the logits that the same clip has without any model of
sound. ``encode(clips, modality)`` is that, so that either feature exists without the other and can be filled.

Shapes: B clip, C channel, T frame, H W pixels, S sample, U mel frame, F mel bin, N token of a modality, M modality
(video, audio; always both), D width, E width of an embedding, K class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from encoders.audio import mat
from encoders.audio.log_mel import zero_of
from encoders.audio.mat import MAT, MATConfig
from encoders.audiovisual.av_bottleneck import MODALITIES, AVBottleneck, FullAttention, Streams
from encoders.audiovisual.mmt_losses import HybridConfig, contrasts
from encoders.audiovisual.presence import lose_modality
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.block import layer_norm
from encoders.video import mvitv2
from encoders.video.mvitv2 import MViTv2, MViTv2Config

if TYPE_CHECKING:
    from encoders.objectives import StepTargets

__all__ = ["MMT", "PRESETS", "MMTConfig"]

SEEN = {"rgb": "video", "audio": "audio"}  # what `prepare` calls it, and whose it is


@dataclass(frozen=True, kw_only=True)
class MMTConfig:
    """Both encoders, how they meet and what is learned; the defaults are the paper's.

    Of ``video`` and ``audio`` the fields ``clip_seconds``, ``stochastic_depth``, ``dropout`` and ``classes`` do not
    count: this config has one of each.
    """

    video: MViTv2Config = field(default_factory=lambda: mvitv2.PRESETS["mvitv2_b_16x4"])
    audio: MATConfig = field(default_factory=MATConfig)
    clip_seconds: Fraction = Fraction(10)  # of sound; frames are spread over it
    fusion: Literal["bottleneck", "concatenation", "average"] = "bottleneck"
    blocks: int = 4  # of fusion (K)
    tokens: int = 4  # of fusion (L)
    heads: int = 12  # of fusion
    mlp_ratio: int = 4  # of fusion
    carry: Literal["last", "mean"] = "last"
    classes: int = 0  # K; 0: no head, features come out
    dropout: float = 0.5  # before the head, as MViTv2's
    stochastic_depth: float = 0.0  # of the encoders' last blocks, rising linearly from 0, and of fusion
    drop_modality: float = 0.0  # training: share of clips that lose video or, as often, audio
    objective: HybridConfig = field(default_factory=HybridConfig)

    def __post_init__(self) -> None:
        for name, known in (("fusion", ("bottleneck", "concatenation", "average")), ("carry", ("last", "mean"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use {' or '.join(known)}")
        for name in ("blocks", "tokens", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} of fusion must be at least 1")
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if not 0 <= self.drop_modality <= 1:
            raise ConfigError(f"drop_modality {self.drop_modality} is no share; use a number from 0 to 1")
        if self.classes < 0:
            raise ConfigError(f"classes {self.classes} must be at least 0")
        self._check_encoders()

    def _check_encoders(self) -> None:
        for name, encoder in self.encoders.items():  # which also checks them with the values of this config
            if encoder.pool != "token":
                raise ConfigError(f"{name}.pool {encoder.pool!r} leaves no class token to fuse; use token")
        seen, heard = (encoder.dim_out for encoder in self.encoders.values())
        if seen != heard:
            raise ConfigError(f"tokens {seen} wide from video and {heard} from audio cannot meet; make them as wide")
        if self.fusion != "average" and self.dim % self.heads:
            raise ConfigError(f"heads {self.heads} of fusion do not divide the width {self.dim}; use a divisor")
        if self.video.frames == 1:
            raise ConfigError("video.frames 1 is a picture; use more frames")

    @property
    def encoders(self) -> dict[str, Any]:
        """The encoders' configs, by modality, with this config's values."""
        own: dict[str, Any] = {"clip_seconds": self.clip_seconds, "stochastic_depth": self.stochastic_depth}
        both = (("video", self.video), ("audio", self.audio))
        return {name: replace(encoder, **own, classes=0, dropout=0.0) for name, encoder in both}

    @property
    def dim(self) -> int:
        """Width of the encoders' tokens, and of one modality's feature (D)."""
        return int(self.video.dim_out)

    @property
    def region(self) -> str:
        """What the pictures show: frame or face."""
        return self.video.region


class MMT(nn.Module):
    """A classifier of clips with picture and sound; without a head, a frozen encoder of either (see above)."""

    modalities = MODALITIES
    context_seconds = 0.0
    sees = tuple(SEEN)

    def __init__(self, config: MMTConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        self.video = MViTv2(config.encoders["video"])
        self.audio = MAT(config.encoders["audio"])
        # What readers hear is as long as they read; what a clip lacks is filled up here (`tokenize`).
        self.front = replace(self.audio.front, frames=0)
        self.specs: dict[str, VideoSpec | AudioSpec] = {"video": self.video.spec, "audio": self.audio.spec}
        self.spec = self.video.spec
        self.fusion = _fusion(config)
        meets = self.fusion is not None
        self.norms = nn.ModuleDict({m: layer_norm(config.dim) for m in MODALITIES}) if meets else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = _linear(2 * config.dim, config.classes) if config.classes and meets else None
        alone = config.classes and not meets
        self.heads = nn.ModuleDict({m: _linear(config.dim, config.classes) for m in MODALITIES}) if alone else None
        contrasted = config.objective.contrasts_between or config.objective.contrasts_within
        self.projections = (
            nn.ModuleDict({m: _linear(config.dim, config.objective.width) for m in MODALITIES})
            if config.classes and contrasted else None
        )  # fmt: skip

    @property
    def no_face(self) -> nn.Parameter | None:
        """The feature of a clip in which the picture is fine and nobody's face is in it."""
        return self.video.no_face

    def encode(self, clips: Tensor, modality: str = "video") -> Float[Tensor, "b d"]:
        """One modality's clips, as its spec says, to features (B, D); the other modality is not there.

        video: uint8 (B, T, H, W) gray or (B, T, H, W, 3) RGB; audio: float32 samples (B, S) in [-1, 1].
        """
        tokens = self.fuse(self.tokenize(self.prepare(clips, modality)), None)
        return tokens[modality][:, 0]

    def prepare(self, clips: Tensor, modality: str = "video", flow: None = None) -> dict[str, Tensor]:
        """Clips to what the model sees of them: pictures, or a spectrogram (B, U, F). There is no view of flow."""
        if modality not in MODALITIES:
            raise ConfigError(f"{modality!r} is no modality of this model; use {' or '.join(MODALITIES)}")
        if modality == "video":
            return {"rgb": self.video.prepare(clips)}
        return {"audio": self.audio.prepare(clips)[:, 0].transpose(1, 2)}

    def forward(
        self,
        video: Float[Tensor, "b c t h w"] | None = None,
        audio: Float[Tensor, "b u f"] | None = None,
        presence: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """What `prepare` gives of pictures and of sound -> logits (B, K); without a head features (B, 2 D).

        What is None is not there for any clip. presence: True where a clip has video, audio; a clip that has neither
        gets the head's bias.
        """
        given = {"rgb": video, "audio": audio}
        return self.logits({name: seen for name, seen in given.items() if seen is not None}, presence)

    def logits(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b k"]:
        """What is seen, by the names of `prepare`, to logits (B, K); without a head to features."""
        presence = _checked(seen, presence)
        return self.answer(self.fuse(self.tokenize(seen, presence), presence), presence)

    def features(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Tensor:
        """What is seen, by the names of `prepare`, to what the head reads, video beside audio (B, 2 D)."""
        presence = _checked(seen, presence)
        return self._beside(self.fuse(self.tokenize(seen, presence), presence), presence)

    # -- the way through the model, as in the paper's figure 1 --

    def tokenize(self, seen: Mapping[str, Tensor], presence: Tensor | None = None) -> Streams:
        """What is seen to the encoders' normed tokens (B, N, D) by modality, class token first."""
        x = {SEEN[name]: seen[name] for name in SEEN if name in seen}
        if presence is not None:  # whatever lies there instead reaches no weight, not even by its gradient
            x = {m: torch.where(_column(presence, m, v.ndim), v, 0) for m, v in x.items()}
        if "audio" in x:
            x["audio"] = self._filled(x["audio"])
        return {m: getattr(self, m).tokens(v) for m, v in x.items()}

    def fuse(self, tokens: Streams, presence: Bool[Tensor, "b m"] | None) -> Streams:
        """The encoders' tokens to tokens that know of each other, normed."""
        if self.fusion is None or self.norms is None:
            return tokens
        return {m: self.norms[m](x) for m, x in self.fusion(tokens, presence).items()}

    def answer(self, tokens: Streams, presence: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b k"]:
        """Tokens to logits; without a head to features."""
        if self.heads is not None:
            return self._average({m: self.heads[m](self.dropout(x[:, 0])) for m, x in tokens.items()}, presence)
        x = self._beside(tokens, presence)
        return x if self.head is None else self.head(self.dropout(x))

    def _filled(self, audio: Tensor) -> Float[Tensor, "b 1 f w"]:
        """A spectrogram as long as MAT's, filled with what it takes for silence."""
        made = self.config.audio
        if audio.ndim != 3 or audio.shape[2] != made.bins or not 0 < audio.shape[1] <= made.frames:
            raise DataError(
                f"a spectrogram of {'x'.join(map(str, audio.shape[1:]))} (mel frames, bins) came to a model of "
                f"{made.frames}x{made.bins}; cut the sound, or build the model for it"
            )
        lacks, nothing = made.frames - audio.shape[1], zero_of(self.front)
        return self.audio.heard(pad(audio, (0, 0, 0, lacks), value=nothing))

    def _beside(self, tokens: Streams, presence: Tensor | None) -> Float[Tensor, "b d2"]:
        """The class tokens of both, video first; what is absent adds nothing to what reads them."""
        like = next(iter(tokens.values()))
        parts = [tokens[m][:, 0] if m in tokens else like.new_zeros(len(like), self.dim) for m in MODALITIES]
        if presence is not None:
            parts = [torch.where(_column(presence, m, 2), x, 0) for m, x in zip(MODALITIES, parts, strict=True)]
        return torch.cat(parts, 1)

    def _average(self, logits: Streams, presence: Tensor | None) -> Float[Tensor, "b k"]:
        if presence is None:
            return torch.stack(list(logits.values())).mean(0)
        there = [_column(presence, m, 2) for m in logits]
        whole = torch.stack([torch.where(p, x, 0) for p, x in zip(there, logits.values(), strict=True)]).sum(0)
        return whole / torch.stack(there).sum(0).clamp_min(1)

    # -- training --

    def check_run(self, config: Any) -> None:
        """Refuse runs that the objective has no use for, with a ConfigError."""
        ours = self.config.objective
        if config.mixup and self.projections is not None:
            raise ConfigError(
                f"mixup {config.mixup} makes clips of two classes, which contrasts cannot place; use mixup=0, or "
                "model.objective.between=none and model.objective.within=none"
            )
        if ours.contrasts_within and config.repeats < 2:
            raise ConfigError(
                f"repeats {config.repeats} leaves one reading of a clip, and a contrast within a modality needs two; "
                "use repeats=2, or model.objective.within=none"
            )

    def training_outputs(self, seen: Mapping[str, Tensor], presence: Tensor | None) -> dict[str, Tensor]:
        """Logits, of each classifier where there are two, and the embeddings that are contrasted (B, E)."""
        presence = _checked(seen, presence)
        there = _present(seen, presence)
        tokens = self.tokenize(seen, presence)
        out = {"presence": there}
        if self.projections is not None:
            out |= {m: self.projections[m](x[:, 0]) for m, x in tokens.items()}
        if self.heads is not None:
            return out | {f"{m}_logits": self.heads[m](self.dropout(x[:, 0])) for m, x in tokens.items()}
        if self.config.drop_modality:
            presence = lose_modality(there, self.config.drop_modality)
        return out | {"logits": self.answer(self.fuse(tokens, presence), presence)}

    def training_losses(self, outputs: Mapping[str, Tensor], step: "StepTargets") -> dict[str, Tensor]:
        """Equation 8; a sum over softmaxes where there are several. Classifiers that do not meet learn each alone."""
        softmaxes, there = len(step.task.segments), outputs["presence"]
        losses: dict[str, Tensor] = {}
        for column, name in enumerate(MODALITIES):
            if (logits := outputs.get(f"{name}_logits")) is not None:
                losses[f"{name}_task"] = softmaxes * _loss_among(there[:, column], logits, step)
        if "logits" in outputs:
            losses["task"] = softmaxes * step.loss_of(outputs["logits"])
        embedded = {m: outputs[m] for m in MODALITIES if m in outputs}
        if embedded:
            segments, repeats = step.task.segments, step.repeats
            losses |= contrasts(self.config.objective, embedded, step.targets, there, segments=segments,
                                repeats=repeats)  # fmt: skip
        return losses


def _fusion(config: MMTConfig) -> AVBottleneck | FullAttention | None:
    sizes = config.dim, config.heads, config.mlp_ratio * config.dim
    if config.fusion == "average":
        return None
    if config.fusion == "concatenation":
        return FullAttention(*sizes, blocks=config.blocks, drop_path=config.stochastic_depth)
    return AVBottleneck(*sizes, blocks=config.blocks, count=config.tokens, carry=config.carry,
                        drop_path=config.stochastic_depth)  # fmt: skip


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _column(presence: Tensor, modality: str, axes: int) -> Tensor:
    """(B,) of a modality, with ``axes`` axes."""
    return presence[:, MODALITIES.index(modality)].view(-1, *[1] * (axes - 1))


def _present(seen: Mapping[str, Tensor], presence: Tensor | None) -> Bool[Tensor, "b m"]:
    """(B, M): what is given, and there."""
    first = next(iter(seen.values()))
    given = torch.tensor([any(SEEN[n] == m for n in seen) for m in MODALITIES], device=first.device)
    return given.expand(len(first), -1) if presence is None else given & presence


def _checked(seen: Mapping[str, Tensor], presence: Tensor | None) -> Tensor | None:
    """Presence as booleans, False where nothing is given; raises DataError where the parts do not fit."""
    if not seen or not set(seen) <= set(SEEN):
        raise DataError(f"{', '.join(seen) or 'nothing'} is not what this model sees; give {' or '.join(SEEN)}")
    batches = {name: len(x) for name, x in seen.items()}
    if len(set(batches.values())) > 1:
        counts = " and ".join(f"{count} of {name}" for name, count in batches.items())
        raise DataError(f"{counts} are not the same clips; give as many of each, and presence where one is missing")
    if presence is None:
        return None if len(seen) == len(SEEN) else _present(seen, None)
    if tuple(presence.shape) != (next(iter(batches.values())), len(MODALITIES)) or presence.dtype != torch.bool:
        raise DataError(
            f"presence {tuple(presence.shape)} {str(presence.dtype).removeprefix('torch.')} is not bool (clips, 2); "
            "say of each clip whether it has video, and audio"
        )
    return _present(seen, presence)


def _loss_among(there: Tensor, logits: Tensor, step: "StepTargets") -> Tensor:
    """The task's loss over the rows that are there; 0 of none."""
    if not there.any():
        return logits.float().sum() * 0
    return replace(step, targets=step.targets[there]).loss_of(logits[there])


# --- presets ----------------------------------------------------------------------------------------------------

_BASE = MMTConfig()
_TINY = MMTConfig(
    video=mvitv2.PRESETS["mvitv2_tiny"],
    audio=mat.PRESETS["mat_tiny"],
    clip_seconds=Fraction(2, 5),
    blocks=2,
    heads=4,
    dropout=0.0,
    drop_modality=0.5,
)
# "AVBottle w/o MAT": the first three layers of MAT, their last tokens already as wide as the pictures'. The paper does
# not say how wide the first two are; here, as in MAT, width doubles where the grid shrinks.
_SHALLOW = replace(_BASE.audio, dim=384, heads=4, depth=3, pooled=(2,), strides=((2, 2),))
PRESETS = {
    "mmt_base": _BASE,
    "mmt_base_average": replace(_BASE, fusion="average"),
    "mmt_base_without_mat": replace(_BASE, audio=_SHALLOW),
    "mmt_tiny": _TINY,
}
