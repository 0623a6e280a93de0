"""M&M: a multiview transformer whose views are what one sees, what one hears, and how things move.

Xiong, Arnab, Nagrani, Schmid, "M&M Mix: A Multimodal Multiview Transformer Ensemble" (Epic-Kitchens challenge, 2022)
on top of MTV (`encoders.video.mtv`): the largest encoder reads RGB, smaller ones a log-mel spectrogram, cut into
patches as if it were a picture, and optical flow; each view tells the next coarser one. The report's ensemble is of
several such models. There is no public code; what it leaves open is decided here:

- *Time.* A view string says what a view sees and how long its time steps are: in ``B/2+S/4:audio+Ti/8:flow`` a step of
  the audio view is the sound under 4 frames, its tokens the patches of those columns of the spectrogram. So a group,
  all steps that share a span of time, holds that span of every view, and views tell each other of the same moment.
- *Flow* has three channels, right, down and their mean, over its bound, so that a picture's patch kernel fits. It is
  computed from the clip's own pictures where it is not given.
- *Global encoder.* Views' class tokens lie one after the other (``merge="time"``), so that a view that is not there is
  left out of attention; with "channel", as in MTV, its channels are zero.

**A feature is the global encoder's class token with one modality's views alone**: ``encode(clips, "video")`` reads RGB
and flow as though there were no sound, ``encode(clips, "audio")`` hears and sees nothing. Both are D wide and neither
depends on the other's clip, so each can be lost and filled by itself. To make such features worth having, training may
take a modality away (``drop_modality``); an absent view is never zeroed tokens: nobody attends to it.

Shapes: B clip, T frame, H W pixels, S sample, U mel frame, F mel bin, V view, M modality (video, audio; always both),
D width, K class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.audio.log_mel import FRONTS, Front
from encoders.audiovisual.presence import lose_modality
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.embed import PatchEmbed, TubeletEmbed, check_divides
from encoders.layers.pictures import motion_of, signed_pictures
from encoders.settings import pick
from encoders.video.flow import FlowConfig, optical_flow
from encoders.video.mtv import MTVConfig, ViewTokens, check_clip, zero_head
from encoders.video.multiview import GlobalEncoder, MultiviewEncoder, Tokens
from encoders.video.views import View

__all__ = ["PRESETS", "MMMix", "MMMixConfig", "flow_channels"]

MODALITIES = ("video", "audio")  # the M axis
MODALITY_OF = {"rgb": "video", "flow": "video", "audio": "audio"}
CHANNELS = 3  # of flow and of a spectrogram: a picture's, so that image weights fit


@dataclass(frozen=True, kw_only=True)
class MMMixConfig(MTVConfig):
    """MTV's config, and what there is to hear and to follow; the defaults are the report's best single model."""

    views: str | tuple[View, ...] = "B/2+S/4:audio+Ti/8:flow"
    clip_seconds: Fraction = Fraction(64, 25)  # 64 frames, every one at 25 a second
    frames: int = 64
    merge: Literal["channel", "time"] = "time"
    front: str = "log_mel_128"  # a key of FRONTS: samples to (U, F)
    flow: FlowConfig = field(default_factory=FlowConfig)
    drop_modality: float = 0.0  # training: share of clips that lose video or, as often, audio

    def __post_init__(self) -> None:
        pick(FRONTS, self.front, "front")
        if self.classifier != "token" or self.keep_space:
            raise ConfigError("views of other modalities have no places in common; use classifier 'token'")
        if not 0 <= self.drop_modality <= 1:
            raise ConfigError(f"drop_modality {self.drop_modality} is no share; use a number from 0 to 1")
        super().__post_init__()
        if self.drop_modality and len(self.modalities) == 1:
            raise ConfigError(f"drop_modality takes away {self.modalities[0]}, all there is; use 0, or add a view")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some view is of, video first."""
        seen = {MODALITY_OF[view.sees] for view in self.parsed}
        return tuple(m for m in MODALITIES if m in seen)

    def grid(self, view: View) -> tuple[int, int, int]:
        """Time steps, then rows and columns of a step's tokens; of sound, rows are time and columns frequency."""
        if view.sees not in MODALITY_OF:
            raise ConfigError(f"a view of {view.sees} is unknown; use {', '.join(MODALITY_OF)}")
        if view.sees != "audio":
            return super().grid(replace(view, sees="rgb"))
        steps = check_divides((self.frames,), (view.tubelet,), ("frames",))[0]
        heard, bins = FRONTS[self.front].shape(self.clip_seconds)
        if heard % steps:
            raise ConfigError(
                f"{heard} mel frames of {float(self.clip_seconds):g} s cannot be shared by {steps} time steps; "
                "choose clip_seconds, or another tubelet for the audio view"
            )
        names = (f"mel frames under {view.tubelet} frames", "mel bins")
        rows, columns = check_divides((heard // steps, bins), view.patch, names)
        return steps, rows, columns


class MMMix(nn.Module):
    """A classifier of clips with picture and sound; without a head, a frozen encoder of either (see above)."""

    context_seconds = 0.0

    def __init__(self, config: MMMixConfig):
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds, self.modalities = config.dim, config.clip_seconds, config.modalities
        self.front: Front = FRONTS[config.front]
        sound = AudioSpec(sample_rate=self.front.sample_rate)
        self.specs: dict[str, VideoSpec | AudioSpec] = {
            m: config.spec if m == "video" else sound for m in config.modalities
        }
        self.spec = self.specs[config.modalities[0]]
        self.sees = [view.sees for view in config.parsed]
        self.tokens = nn.ModuleList(ViewTokens(_embed(view, config), view, config) for view in config.parsed)
        self.encoder = MultiviewEncoder(config)
        self.global_encoder = GlobalEncoder(config)
        self.head = zero_head(config.dim, config.classes)
        # The feature of a clip in which the picture is fine and nobody's face is in it: learned with the head.
        self.no_face = nn.Parameter(torch.zeros(config.dim)) if config.region == "face" else None

    def encode(self, clips: Tensor, modality: str = "video") -> Float[Tensor, "b d"]:
        """One modality's clips, as its spec says, to features (B, D); the other modality is not there.

        video: uint8 (B, T, H, W) gray or (B, T, H, W, 3) RGB; audio: float32 samples (B, S) in [-1, 1].
        """
        return self.features(self.prepare(clips, modality))

    def prepare(self, clips: Tensor, modality: str = "video", flow: Tensor | None = None) -> dict[str, Tensor]:
        """Clips to what the views of a modality see: pictures and flow, or a spectrogram.

        ``flow``: fields (B, T, H, W, 2) in pixels, where they are known; else they are found in the clips.
        """
        if modality not in self.modalities:
            raise ConfigError(f"{modality!r} is no modality of this model; use {' or '.join(self.modalities)}")
        if modality == "audio":
            return {"audio": self.front(clips)}  # (B, U, F)
        seen = {}
        if "rgb" in self.sees:
            pictures = signed_pictures(clips, self.config.channels)
            seen["rgb"] = motion_of(pictures) if self.config.motion else pictures
        if "flow" in self.sees:
            seen["flow"] = self._flow(clips) if flow is None else flow_channels(flow, self.config.flow)
        return seen

    def forward(
        self,
        video: Float[Tensor, "b c t h w"] | None = None,
        audio: Float[Tensor, "b u f"] | None = None,
        flow: Float[Tensor, "b c2 t h w"] | None = None,
        presence: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Pictures in [-1, 1], a spectrogram of ``front``, flow of `flow_channels` -> logits (B, K) or features.

        What is None is not there for any clip, but flow, which is computed from the pictures. presence: True where a
        clip has video, audio.
        """
        if flow is None and video is not None and "flow" in self.sees:
            if self.config.motion:
                raise DataError("flow cannot be found in pictures of movement alone; give flow too, as prepare does")
            clips = ((video.movedim(1, -1) + 1) * 127.5).round().clamp(0, 255).byte()
            flow = self._flow(clips if self.config.channels == 3 else clips[..., 0])
        given = {"rgb": video, "audio": audio, "flow": flow}
        return self.logits({name: seen for name, seen in given.items() if seen is not None}, presence)

    def logits(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b k"]:
        """What is seen, by the names of `prepare`, to logits (B, K); without a head to features."""
        x = self.features(seen, presence)
        return x if self.head is None else self.head(x)

    def features(self, seen: Mapping[str, Tensor], presence: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b d"]:
        """What is seen, by the names of `prepare`, to what the head reads; raises DataError on another size."""
        tokens = self.tokenize(seen)
        if (given := next((x for x in tokens if x is not None), None)) is None:
            raise DataError(f"there is nothing to see or hear; give one of {', '.join(sorted(set(self.sees)))}")
        _check_batch(seen, presence)
        if self.training and self.config.drop_modality:
            presence = self._dropped(presence, [self._has(m, seen) for m in MODALITIES], len(given), given.device)
        if presence is not None:  # (B, M) to (B, V)
            presence = presence[:, [MODALITIES.index(MODALITY_OF[name]) for name in self.sees]]
        return self.global_encoder(self.encoder(tokens, presence), presence)

    def tokenize(self, seen: Mapping[str, Tensor]) -> Tokens:
        """Each view's tokens (B, T_i, N, D_i), coarsest view first; None where it has nothing to see."""
        return [
            view(self._checked(seen[name], name)) if name in seen else None
            for view, name in zip(self.tokens, self.sees, strict=True)
        ]

    def _has(self, modality: str, seen: Mapping[str, Tensor]) -> bool:
        return any(MODALITY_OF[name] == modality for name in self.sees if name in seen)

    def _dropped(self, presence: Tensor | None, has: list[bool], batch: int, device: torch.device) -> Tensor:
        """(B, M) where some clips lose a modality, of those that have both: none is left with nothing."""
        whole = torch.tensor(has, device=device).expand(batch, -1)
        whole = whole if presence is None else whole & presence
        return lose_modality(whole, self.config.drop_modality)

    def _checked(self, x: Tensor, name: str) -> Tensor:
        if name == "audio":
            made = self.front.shape(self.config.clip_seconds)
            if tuple(x.shape[1:]) != made:
                raise DataError(
                    f"a spectrogram of {'x'.join(map(str, x.shape[1:]))} (mel frames, bins) came to a model of "
                    f"{made[0]}x{made[1]}; cut the sound, or build the model for it"
                )
            return x[:, None].expand(-1, CHANNELS, -1, -1)
        check_clip(replace(self.config, channels=CHANNELS) if name == "flow" else self.config, x)
        return x

    def _flow(self, clips: Tensor) -> Float[Tensor, "b c t h w"]:
        """Clip by clip on the CPU, wherever the model is."""
        if clips.is_meta:  # shapes without numbers
            return clips.new_empty(len(clips), CHANNELS, *clips.shape[1:4], dtype=torch.float32)
        fields = [optical_flow(clip, self.config.flow) for clip in clips.cpu().numpy()]
        return flow_channels(np.stack(fields), self.config.flow).to(clips.device)


def _embed(view: View, config: MMMixConfig) -> nn.Module:
    if view.sees == "audio":
        return PatchEmbed(view.patch, view.width, CHANNELS)
    channels = CHANNELS if view.sees == "flow" else config.channels
    return TubeletEmbed((view.tubelet, *view.patch), view.width, channels)


def _check_batch(seen: Mapping[str, Tensor], presence: Tensor | None) -> None:
    batches = {name: len(x) for name, x in seen.items()}
    if len(set(batches.values())) > 1:
        counts = " and ".join(f"{count} of {name}" for name, count in batches.items())
        raise DataError(f"{counts} are not the same clips; give as many of each, and presence where one is missing")
    if presence is not None and tuple(presence.shape) != (next(iter(batches.values())), len(MODALITIES)):
        raise DataError(f"presence {tuple(presence.shape)} is not (clips, 2); give video and audio of each clip")


def flow_channels(flow: np.ndarray | Tensor, config: FlowConfig) -> Float[Tensor, "b c t h w"]:
    """Fields (B, T, H, W, 2) in pixels to what a flow view sees: right, down and their mean, in [-1, 1]."""
    x = (torch.as_tensor(flow).float() / config.bound).movedim(-1, 1)
    return torch.cat([x, x.mean(1, keepdim=True)], 1)


_BASE = MMMixConfig()
_TINY = MMMixConfig(
    views=(
        View(width=48, layers=4, heads=2, mlp=192, tubelet=10, sees="flow"),
        View(width=48, layers=4, heads=2, mlp=192, tubelet=10, patch=(8, 16), sees="audio"),
        View(width=96, layers=4, heads=3, mlp=384, tubelet=2),
    ),
    clip_seconds=Fraction(2, 5),
    frames=10,
    size=64,
    channels=1,
    crop_share=0.625,
    fusion_layers=(1, 3),
    global_layers=2,
    global_heads=4,
    global_mlp=384,
    global_width=128,
    front="log_mel_talk",
    drop_modality=0.5,
)
PRESETS = {
    "mm_mix_base": _BASE,  # RGB, audio, flow: the best row of the comparison on Epic-Kitchens
    "mm_mix_base_audio": replace(_BASE, views="B/2+S/4:audio+Ti/8"),
    "mm_mix_base_flow": replace(_BASE, views="B/2+S/4:flow+Ti/8"),
    "mm_mix_base_rgb": replace(_BASE, views="B/2+S/4+Ti/8"),
    "mm_mix_large": replace(_BASE, views="L/2+B/4:audio+S/8:flow", fusion_layers=(11, 23)),
    "mm_mix_tiny": _TINY,
}
