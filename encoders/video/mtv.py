"""MTV: several views of a clip, each cut into tubelets of its own length, each read by a transformer of its own size.

Yan et al., "Multiview Transformers for Video Recognition" (CVPR 2022), and google-research/scenic's projects/mtv.
Coarse views see long spans cheaply, fine views see motion; a view tells its coarser neighbour what it sees, and a small
global encoder over their class tokens gives the answer. One view alone is ViViT's factorised encoder. Views are named
as in `encoders.video.views`; view 0 is the coarsest. The encoders are in `encoders.video.multiview`.

How views meet (``fusion``): "cross", cross-view attention, a view's tokens ask those of the next finer one, whose
answer is zero at first; "bottleneck", learned tokens that walk from the finest view to the coarsest and on to the next
such layer; "mlp", the next finer view's tokens beside a view's own in front of its MLP (after the paper's words: the
public code has none; the added columns are zero at first, and six such layers have the published 323 M parameters);
"late", nowhere but in the global encoder. `Ensemble` is the paper's other baseline, views trained apart.
Left out: fusing from coarse to fine, an option of the public code that no published model uses.

Shapes: B clip, T frame, H W pixels, V view, T_i time step of view i (T over its tubelet), N token of a step (class
token first), D_i width of view i, D width of a feature, K class.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.layers.embed import TubeletEmbed, check_divides
from encoders.layers.pictures import check_seen, motion_of, signed_pictures
from encoders.layers.positions import learned
from encoders.video.multiview import GlobalEncoder, MultiviewEncoder
from encoders.video.views import View, coarsest_first, parse_views

__all__ = ["MTV", "PRESETS", "Ensemble", "MTVConfig", "ViewTokens", "zero_head"]


CHOICES = {
    "region": ("frame", "face"),
    "fusion": ("cross", "bottleneck", "mlp", "late"),
    "fusion_width": ("query", "key_value"),
    "merge": ("channel", "time"),
    "classifier": ("token", "gap"),
    "average": ("logits", "probabilities"),
}


@dataclass(frozen=True, kw_only=True)
class MTVConfig:
    """Sizes of the network; the defaults are MTV-B's on Kinetics."""

    views: str | tuple[View, ...] = "B/2+S/4+Ti/8"
    classes: int = 0  # K; 0: no head, forward gives features
    clip_seconds: Fraction = Fraction(64, 25)  # 32 frames, every second one at 25 a second
    frames: int = 32  # T
    size: int = 224  # H = W
    channels: int = 3  # 3: RGB, 1: gray
    region: str = "frame"  # frame, face: what the picture shows
    crop_share: float = 0.875
    motion: bool = False  # see only what moves (``encoders.layers.pictures.motion_of``); ours
    fusion: Literal["cross", "bottleneck", "mlp", "late"] = "cross"
    fusion_layers: tuple[int, ...] = (5, 11)  # counted from 0
    fusion_width: Literal["query", "key_value"] = "query"  # cross: whose width and heads queries, keys and values have
    bottlenecks: int = 32  # tokens of a group, bottleneck only
    merge: Literal["channel", "time"] = "channel"  # how class tokens meet: side by side, or one after the other
    global_layers: int = 12
    global_heads: int = 8
    global_mlp: int = 3072
    global_width: int = 768  # merge="time" only; else the widths of the views added up
    classifier: Literal["token", "gap"] = "token"  # what stands for a sequence: its class token, or its mean (no token)
    keep_space: bool = False  # the global encoder reads every place by itself; for dense tasks, classifier="gap"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    average: Literal["logits", "probabilities"] = "logits"  # Ensemble only: of which the mean is taken
    drop_path: float = 0.0  # in the last layer of each view, kept branches rescaled; the global encoder starts anew

    def __post_init__(self) -> None:
        if not self.parsed:
            raise ConfigError("there are no views; write for example B/2+S/4+Ti/8")
        self._check_names()
        self._check_numbers()
        self._check_geometry()
        self._check_fusion()
        self._check_global()

    @property
    def parsed(self) -> tuple[View, ...]:
        """The views, coarsest first."""
        return parse_views(self.views) if isinstance(self.views, str) else coarsest_first(self.views)

    def grid(self, view: View) -> tuple[int, int, int]:
        """Time steps of a view, then rows and columns of a step's tokens; raises ConfigError on a remainder."""
        if view.sees != "rgb":
            raise ConfigError(f"view of {view.sees} needs a multimodal model; use mm_mix, or leave out :{view.sees}")
        sizes, parts = (self.frames, self.size, self.size), (view.tubelet, *view.patch)
        steps, rows, columns = check_divides(sizes, parts, ("frames", "rows", "columns"))
        return steps, rows, columns

    @property
    def steps(self) -> list[int]:
        """T_i of each view."""
        return [self.grid(view)[0] for view in self.parsed]

    @property
    def places(self) -> list[int]:
        """Tokens of a time step of each view, without the class token."""
        return [rows * columns for _, rows, columns in map(self.grid, self.parsed)]

    @property
    def class_tokens(self) -> int:
        """1 where each time step begins with a class token."""
        return int(self.classifier == "token")

    @property
    def depth(self) -> int:
        """Layers of the deepest view."""
        return max(view.layers for view in self.parsed)

    @property
    def dim(self) -> int:
        """Width of the global encoder, and of a feature."""
        return sum(view.width for view in self.parsed) if self.merge == "channel" else self.global_width

    @property
    def global_steps(self) -> int:
        """Time steps that the global encoder reads."""
        return max(self.steps) if self.merge == "channel" else sum(self.steps)

    @property
    def spec(self) -> VideoSpec:
        """The picture a clip must have."""
        return VideoSpec(
            frames=self.frames,
            size=self.size,
            pixel_format="rgb24" if self.channels == 3 else "gray",
            region=self.region,
            crop_share=self.crop_share,
        )

    def drop_at(self, layer: int, view: View) -> float:
        """Stochastic depth of a view's layer; past its own depth the line goes on, as in the public code."""
        return self.drop_path * layer / max(view.layers - 1, 1)

    def _check_names(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use {known}")

    def _check_numbers(self) -> None:
        if self.classes < 0:
            raise ConfigError(f"classes {self.classes} is no number of classes; use 0 for features, or more")
        for name in ("frames", "size", "global_layers", "global_heads", "global_mlp", "global_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("dropout", "attention_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels {self.channels} is neither gray nor RGB; use 1 or 3")
        check_seen(self.clip_seconds, self.crop_share)

    def _check_geometry(self) -> None:
        for steps in self.steps:
            if steps % min(self.steps) or (self.merge == "channel" and max(self.steps) % steps):
                raise ConfigError(
                    f"views of {self.steps[::-1]} time steps do not lie over one another; "
                    "choose tubelets that are multiples of one another"
                )

    def _check_fusion(self) -> None:
        if self.fusion == "late":
            return
        if len(self.parsed) == 1:
            raise ConfigError(f"fusion {self.fusion!r} needs two views and there is one; add a view or use 'late'")
        if not self.fusion_layers:
            raise ConfigError(f"fusion {self.fusion!r} happens in no layer; name some, or use 'late'")
        for layer in self.fusion_layers:
            if not 0 <= layer < self.depth:
                raise ConfigError(
                    f"fusion layer {layer} lies outside 0..{self.depth - 1}; choose layers that are there"
                )
            if self.fusion_layers.count(layer) > 1:
                raise ConfigError(f"fusion layer {layer} is named twice; name it once")
        if self.fusion == "bottleneck" and self.bottlenecks < 1:
            raise ConfigError(f"{self.bottlenecks} bottleneck tokens carry nothing; use at least 1, or fusion 'late'")
        if self.fusion == "mlp":
            self._check_neighbours()
        if self.fusion == "cross":
            self._check_ramp()

    def _check_ramp(self) -> None:
        """The ramp of a view that is asked goes on past its depth, and must end before everything is dropped."""
        last, view = max(self.fusion_layers), min(self.parsed[1:], key=lambda view: view.layers)
        if self.drop_at(last, view) >= 1:
            most = math.floor(1000 * max(view.layers - 1, 1) / last) / 1000
            raise ConfigError(
                f"drop_path {self.drop_path} reaches {self.drop_at(last, view):.2f} in layer {last}, past a view's own "
                f"{view.layers}; use {most} at most"
            )

    def _check_neighbours(self) -> None:
        """Tokens lie side by side only where each coarse one has the same number of finer ones."""
        for coarse, fine in zip(range(len(self.parsed)), range(1, len(self.parsed)), strict=False):
            if self.places[coarse] != self.places[fine] or self.steps[fine] % self.steps[coarse]:
                raise ConfigError(
                    f"fusion 'mlp' cannot lay {self.steps[fine]}x{self.places[fine]} tokens beside "
                    f"{self.steps[coarse]}x{self.places[coarse]}; give these views one patch and tubelets that divide"
                )

    def _check_global(self) -> None:
        if self.dim % self.global_heads:
            raise ConfigError(f"global_heads {self.global_heads} cannot share a width of {self.dim}; use a divisor")
        if self.keep_space and (self.class_tokens or len({self.grid(view)[1:] for view in self.parsed}) > 1):
            raise ConfigError("keep_space needs classifier 'gap' and the same patch in all views; set both")


class ViewTokens(nn.Module):
    """What one view sees, as tokens: embedded, a class token in front of each time step, positions added."""

    def __init__(self, embed: nn.Module, view: View, config: MTVConfig):
        super().__init__()
        steps, rows, columns = config.grid(view)
        self.embed, self.steps, self.width = embed, steps, view.width
        self.cls = nn.Parameter(torch.zeros(1, steps, 1, view.width)) if config.class_tokens else None
        self.positions = learned(config.class_tokens + rows * columns, view.width)  # the same at every step

    def forward(self, x: Tensor) -> Float[Tensor, "b t n d"]:
        """What ``embed`` takes -> (B, T_i, N, D)."""
        x = self.embed(x).reshape(len(x), self.steps, -1, self.width)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1, -1), x], 2)
        return x + self.positions


class MTV(nn.Module):
    """A video classifier; without a head, a frozen video encoder: one feature of width ``dim`` per clip."""

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: MTVConfig):
        super().__init__()
        self.config = config
        self.dim, self.clip_seconds, self.spec = config.dim, config.clip_seconds, config.spec
        self.tokens = nn.ModuleList(
            ViewTokens(TubeletEmbed((view.tubelet, *view.patch), view.width, config.channels), view, config)
            for view in config.parsed
        )
        self.encoder = MultiviewEncoder(config)
        self.global_encoder = GlobalEncoder(config)
        self.head = zero_head(config.dim, config.classes)
        # The feature of a clip in which the picture is fine and nobody's face is in it: learned with the head.
        self.no_face = nn.Parameter(torch.zeros(config.dim)) if config.region == "face" else None

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 (B, T, H, W) gray or (B, T, H, W, 3) RGB -> features (B, D), whether there is a head or not."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: Tensor) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures to the network's input, in [-1, 1]."""
        pictures = signed_pictures(clips, self.config.channels)
        return motion_of(pictures) if self.config.motion else pictures

    def features(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """Pictures in [-1, 1] -> what the head reads."""
        x = self.read(video)
        return x.mean((1, 2)) if self.config.keep_space else x

    def dense(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b u y x d"]:
        """A feature for every time step and place, for heads that answer where; needs ``keep_space``."""
        if not self.config.keep_space:
            raise ConfigError("this model keeps no places; build it with keep_space=true and classifier=gap")
        return self.read(video).unflatten(2, self.config.grid(self.config.parsed[0])[1:])

    def read(self, video: Float[Tensor, "b c t h w"]) -> Tensor:
        """What the global encoder gives; raises DataError where the clip is of another size than the positions."""
        check_clip(self.config, video)
        return self.global_encoder(self.encoder([tokens(video) for tokens in self.tokens]))

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """Pictures in [-1, 1] -> logits (B, K); without a head, features (B, D)."""
        x = self.features(video)
        return x if self.head is None else self.head(x)


class Ensemble(nn.Module):
    """One model for each view, trained apart; their answers averaged, their features side by side."""

    modalities = ("video",)
    context_seconds = 0.0

    def __init__(self, config: MTVConfig):
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(MTV(replace(config, views=(view,), fusion="late")) for view in config.parsed)
        self.dim = (
            sum(view.width for view in config.parsed) if config.merge == "channel" else len(self.members) * config.dim
        )
        self.clip_seconds, self.spec = config.clip_seconds, config.spec

    def encode(self, clips: UInt8[Tensor, "b t h w *rgb"]) -> Float[Tensor, "b d"]:
        """uint8 pictures -> the members' features, side by side."""
        return self.features(self.prepare(clips))

    def prepare(self, clips: Tensor) -> Float[Tensor, "b c t h w"]:
        """uint8 pictures to the networks' input, in [-1, 1]."""
        pictures = signed_pictures(clips, self.config.channels)
        return motion_of(pictures) if self.config.motion else pictures

    def features(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d"]:
        """Pictures in [-1, 1] -> what the members' heads read, side by side."""
        return torch.cat([member.features(video) for member in self.members], -1)  # type: ignore[operator]

    def forward(self, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b k"]:
        """The mean of the logits, or the logarithm of the mean probabilities (B, K); without heads, features (B, D)."""
        if not self.config.classes:
            return self.features(video)
        logits = torch.stack([member(video) for member in self.members])  # (V, B, K)
        if self.config.average == "logits":
            return logits.mean(0)
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def check_clip(config: MTVConfig, video: Tensor) -> None:
    """Raises DataError naming both sizes where a clip is not of the model's."""
    made = config.channels, config.frames, config.size, config.size
    if tuple(video.shape[1:]) != made:
        given = "x".join(map(str, video.shape[1:]))
        raise DataError(
            f"a clip of {given} (channels, frames, rows, columns) came to a model of {'x'.join(map(str, made))}; "
            "sample and resize it, or build the model for it"
        )


def zero_head(dim: int, classes: int) -> nn.Linear | None:
    """A linear layer that at first gives every class the same; None where there are no classes."""
    if not classes:
        return None
    head = nn.Linear(dim, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


_TINY = MTVConfig(
    views=(
        View(width=48, layers=4, heads=2, mlp=192, tubelet=10),
        View(width=96, layers=4, heads=3, mlp=384, tubelet=2),
    ),
    clip_seconds=Fraction(2, 5),
    frames=10,
    size=64,
    channels=1,
    crop_share=0.625,  # the middle of the picture, where a talking head is
    fusion_layers=(1, 3),
    bottlenecks=4,
    global_layers=2,
    global_heads=4,
    global_mlp=288,
)
_FUSED = MTVConfig(views="B/4+S/8+Ti/16")  # the paper's comparison of ways to fuse
_LARGE = MTVConfig(views="L/2+B/4+S/8+Ti/16", fusion_layers=(11, 23))
_HUGE = MTVConfig(views="H/16x2+B/4+S/8+Ti/16", fusion_layers=(15, 31))
PRESETS = {
    "mtv_base": MTVConfig(),
    "mtv_b": MTVConfig(),  # as released: queries' width in two layers; the paper's figures are nearer to key_value
    "mtv_b_320": MTVConfig(size=320),
    "mtv_l": _LARGE,
    "mtv_h": replace(_HUGE, views="H/2+B/4+S/8+Ti/16"),  # composition and layers are ours: no public configuration
    "mtv_h_280": replace(_HUGE, size=280, views="H/14x2+B/14x4+S/14x8+Ti/14x16"),  # 280 is no multiple of 16
    "mtv_b4": MTVConfig(views="B/4", fusion="late"),
    "mtv_s8": MTVConfig(views="S/8", fusion="late"),
    "mtv_ti16": MTVConfig(views="Ti/16", fusion="late"),
    "mtv_b4_s8_ti16": _FUSED,
    "mtv_b4_s8_ti16_late": replace(_FUSED, fusion="late"),
    "mtv_b4_s8_ti16_mlp": replace(_FUSED, fusion="mlp", fusion_layers=(1, 3, 5, 7, 9, 11)),
    "mtv_b4_s8_ti16_bottleneck": replace(_FUSED, fusion="bottleneck"),
    "mtv_b4_s8_ti16_ensemble": _FUSED,
    "mtv_b2_ti8": MTVConfig(views="B/2+Ti/8"),
    "mtv_b8_ti2": MTVConfig(views="B/8+Ti/2"),
    "mtv_b8_s4_ti2": MTVConfig(views="B/8+S/4+Ti/2"),
    "mtv_b2_b8": MTVConfig(views="B/2+B/8"),
    "mtv_b2_b4_b8": MTVConfig(views="B/2+B/4+B/8"),
    "mtv_b4_b8_b16": MTVConfig(views="B/4+B/8+B/16"),
    "mtv_tiny": _TINY,
    "mtv_tiny_bottleneck": replace(_TINY, fusion="bottleneck"),
    "mtv_tiny_mlp": replace(_TINY, fusion="mlp"),
    "mtv_tiny_late": replace(_TINY, fusion="late"),
    "mtv_tiny_ensemble": _TINY,
}
