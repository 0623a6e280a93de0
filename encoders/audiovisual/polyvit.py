"""PolyViT: one transformer for pictures, clips and sound; only tokenizers and heads are anybody's own.

Likhosherstov, Arnab, Choromanski, Lucic, Tay, Weller, Dehghani, "PolyViT: Co-training Vision Transformers on Images,
Videos and Audio" (TMLR 2023), and google-research/scenic. Each modality has a tokenizer (patches, class token,
positions and, optionally, the first L_adapt blocks), each task a linear head on the class token. A training step is a
batch of one task; which task when is `encoders.cotraining`'s matter.
Left out: hidden layers in a head, which no published configuration has.

As an encoder it is joint: ``encode(clips, modality)`` gives the class token of a clip's picture, or of its sound, after
the last norm; neither looks at the other, so a feature exists for each modality by itself and either can be filled.
``specs`` says what clip each modality takes; ``modalities`` are those that a stream can be served in.

B batch, C channel, T frame or mel frame, F mel bin, H W pixels, S sample, N token, D width, K class.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.audiovisual.inputs import AudioInput, ImageInput, Input, VideoInput, check_shape, heard
from encoders.errors import ConfigError, DataError
from encoders.layers.block import Block, Encoder, check_trunk
from encoders.layers.embed import PatchEmbed, TubeletEmbed
from encoders.layers.initial import lecun_normal_
from encoders.layers.pictures import motion_of, signed_pictures
from encoders.layers.positions import learned
from encoders.settings import pick

__all__ = [
    "NINE_TASKS",
    "PRESETS",
    "VIDEO_TASKS",
    "AudioInput",
    "ImageInput",
    "PolyViT",
    "PolyViTConfig",
    "TaskHead",
    "Tokenizer",
    "VideoInput",
    "task_loss",
]

Modality = Literal["image", "video", "audio"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


# --- what it is asked, and of what ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """One task: whose tokens it reads, how many classes it tells apart, and what it is trained with."""

    name: str
    modality: Modality
    classes: int  # K
    loss: Literal["softmax", "sigmoid"] = "softmax"
    stochastic_depth: float = 0.0  # while this task is trained; of the last block, rising linearly from 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or hasattr(nn.ModuleDict(), self.name):
            raise ConfigError(f"task name {self.name!r} cannot name a head; use letters, digits and _, such as cifar10")
        if self.modality not in MODALITIES:
            raise ConfigError(f"task {self.name} has modality {self.modality!r}; use one of {', '.join(MODALITIES)}")
        if self.classes < 1:
            raise ConfigError(f"task {self.name} has {self.classes} classes; give at least 1")
        if self.loss not in ("softmax", "sigmoid"):
            raise ConfigError(f"task {self.name} has loss {self.loss!r}; use softmax or sigmoid")
        if not 0 <= self.stochastic_depth < 1:
            raise ConfigError(
                f"task {self.name} has stochastic_depth {self.stochastic_depth}; give one in [0, 1), 0 drops nothing"
            )


@dataclass(frozen=True, kw_only=True)
class PolyViTConfig:
    """The trunk, the modalities it knows (None: not that one), and the tasks; the defaults are the paper's B/16."""

    dim: int = 768  # D
    depth: int = 12  # blocks that a token passes, the tokenizer's and the shared ones
    heads: int = 12
    mlp_dim: int = 3072
    adapt: int = 0  # L_adapt: how many of the blocks each modality has for itself
    image: ImageInput | None = field(default_factory=ImageInput)
    video: VideoInput | None = field(default_factory=VideoInput)
    audio: AudioInput | None = field(default_factory=AudioInput)
    tasks: tuple[TaskHead, ...] = ()  # none: an encoder without heads
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_trunk(self)
        if not 0 <= self.adapt <= self.depth:
            raise ConfigError(
                f"adapt {self.adapt} of {self.depth} blocks cannot be; use 0 (all shared) to {self.depth}"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); use 0 to drop nothing")
        if not self.inputs:
            raise ConfigError("image, video and audio are all none; keep at least one of them")
        for part in self.inputs.values():
            assert part.grid, "sizes that do not divide raise"
        self._check_tasks()

    def _check_tasks(self) -> None:
        names = [task.name for task in self.tasks]
        for task in self.tasks:
            if names.count(task.name) > 1:
                raise ConfigError(f"task {task.name} is given twice; name each task once")
            if task.modality not in self.inputs:
                raise ConfigError(
                    f"task {task.name} is one of {task.modality}, which the model has no tokenizer for; "
                    f"set {task.modality}, or leave the task out"
                )

    @property
    def inputs(self) -> dict[str, Input]:
        """The modalities that there are."""
        named: dict[str, Input | None] = {"image": self.image, "video": self.video, "audio": self.audio}
        return {name: part for name, part in named.items() if part is not None}


# --- the model --------------------------------------------------------------------------------------------------


def _block(config: PolyViTConfig) -> Block:
    return Block(
        config.dim,
        config.heads,
        config.mlp_dim,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


class Tokenizer(nn.Module):
    """One modality's way into the trunk: patches, class token, positions, and the blocks that are its own."""

    embed: PatchEmbed | TubeletEmbed

    def __init__(self, part: Input, config: PolyViTConfig) -> None:
        super().__init__()
        t, h, w = self.grid = part.grid
        if isinstance(part, VideoInput):
            self.embed = TubeletEmbed(part.tubelet, config.dim)
        else:
            self.embed = PatchEmbed(part.patch, config.dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = learned(t * h * w + 1, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.adapt))

    def forward(self, x: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b n d"]:
        """Input to tokens, the class token first, then in order of time, row, column (sound: of time, frequency)."""
        patches = self.embed(x).flatten(1, -2)  # (B, N-1, D)
        x = torch.cat([self.cls.expand(len(patches), -1, -1), patches], 1)  # (B, N, D)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        return x


class PolyViT(nn.Module):
    """Tokenizers, one trunk, heads. ``model(x, task)`` gives a task's logits, ``encode(clips, modality)`` a feature."""

    context_seconds = 0.0

    def __init__(self, config: PolyViTConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.tasks = {task.name: task for task in config.tasks}
        self.specs = {name: part.spec for name, part in config.inputs.items()}
        self._served, self.clip_seconds = _served(config)
        self.modalities = tuple(self._served)
        self.specs |= {name: self.specs[of] for name, of in self._served.items()}
        self.spec = self.specs[self.modalities[0]]  # where there is but one

        self.tokenizers = nn.ModuleDict({name: Tokenizer(part, config) for name, part in config.inputs.items()})
        self.encoder = Encoder(
            config.depth - config.adapt,
            config.dim,
            config.heads,
            config.mlp_dim,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.heads = nn.ModuleDict({task.name: _head(config.dim, task) for task in config.tasks})

    # an encoder

    def encode(self, clips: Tensor, modality: str = "") -> Float[Tensor, "b d"]:
        """Clips of one modality to features (B, D); pictures as uint8, sound as float32 samples in [-1, 1].

        image: (B, 1, H, W) or (B, 1, H, W, 3). video: (B, T, H, W) or (B, T, H, W, 3). audio: (B, S).
        ``modality`` may be left out where the model serves but one.
        """
        if not modality and len(self.modalities) > 1:
            raise DataError(f"clips of which modality; name one of {', '.join(self.modalities)}")
        modality = self._served.get(modality or self.modalities[0], modality)
        return self.features(self.prepare(clips, modality), modality)

    def prepare(self, clips: Tensor, modality: str) -> Float[Tensor, "b 3 *t h w"]:
        """Clips to the tokenizer's input: pictures in [-1, 1], or a spectrogram three times."""
        pick(self.tokenizers._modules, modality, "modality")
        if modality == "audio":
            return self._spectrograms(clips)
        pictures = signed_pictures(clips)
        if modality == "image" and pictures.shape[2] != 1:
            raise DataError(
                f"clips of {pictures.shape[2]} frames came to the tokenizer of pictures; give one frame each"
            )
        if modality == "image":
            return pictures[:, :, 0]
        return motion_of(pictures) if self.config.video is not None and self.config.video.motion else pictures

    def _spectrograms(self, clips: Tensor) -> Float[Tensor, "b 3 t f"]:
        part = self.config.audio
        assert part is not None, "there is a tokenizer of sound"
        return heard(part, clips)[:, None].expand(-1, 3, -1, -1)

    def features(
        self, x: Float[Tensor, "b c *t h w"], modality: str, stochastic_depth: float = 0.0
    ) -> Float[Tensor, "b d"]:
        """The class token after the last norm, of what `prepare` gives: images (B, 3, H, W), clips (B, 3, T, H, W),
        spectrograms (B, 3, T, F)."""
        return self.tokens(x, modality, stochastic_depth)[:, 0]

    def tokens(
        self, x: Float[Tensor, "b c *t h w"], modality: str, stochastic_depth: float = 0.0
    ) -> Float[Tensor, "b n d"]:
        """All tokens after the last norm, the class token first."""
        tokenizer = pick(self.tokenizers._modules, modality, "modality")
        check_shape(self.config.inputs[modality], x, modality)
        self._set_depth(modality, stochastic_depth)
        return self.encoder(tokenizer(x))

    # a classifier

    def forward(self, x: Float[Tensor, "b c *t h w"], task: str = "") -> Float[Tensor, "b k"]:
        """A batch of one task to its logits; the name may be left out where there is but one task."""
        chosen = self.task(task)
        return self.heads[chosen.name](self.features(x, chosen.modality, chosen.stochastic_depth))

    def task(self, name: str = "") -> TaskHead:
        """A task by name, which may be left out where there is but one; UsageError on a task without a head."""
        if not self.tasks:
            raise DataError("the model has no head; build it with tasks, or ask for features")
        if not name and len(self.tasks) > 1:
            raise DataError(f"a batch of which task; name one of {', '.join(self.tasks)}")
        return pick(self.tasks, name, "task") if name else next(iter(self.tasks.values()))

    def _set_depth(self, modality: str, p_max: float) -> None:
        """Stochastic depth, which belongs to the task: 0 to ``p_max`` within the tokenizer, and over the whole depth
        in the shared blocks, which therefore go on from ``adapt / (depth - 1)`` of it."""
        own, depth = self.config.adapt, self.config.depth
        for layer, block in enumerate(_blocks(self.tokenizers[modality].blocks)):
            block.drop_path.prob = p_max * layer / max(own - 1, 1)
        for layer, block in enumerate(_blocks(self.encoder.blocks), own):
            block.drop_path.prob = p_max * layer / max(depth - 1, 1)


def _blocks(blocks: object) -> list[Block]:
    assert isinstance(blocks, nn.ModuleList)
    return [block for block in blocks if isinstance(block, Block)]


def _served(config: PolyViTConfig) -> tuple[dict[str, str], Fraction]:
    """Which modalities a stream's clips can be of, with the tokenizer of each, and how long such a clip is.

    Picture and sound are served together where their clips are equally long; else it is the picture. A model of
    pictures alone serves as a video encoder that looks at one frame of each clip.
    """
    timed = [(name, part) for name, part in (("video", config.video), ("audio", config.audio)) if part is not None]
    if not timed:
        return {"video": "image"}, VideoInput().clip_seconds
    first, length = timed[0][0], timed[0][1].clip_seconds
    heard = config.audio is not None and bool(config.audio.front)  # else it takes spectrograms, which no stream brings
    beside = [name for name, part in timed[1:] if part.clip_seconds == length and heard]
    return {name: name for name in (first, *beside)}, length


def _head(dim: int, task: TaskHead) -> nn.Linear:
    """Zero for clips and sound; LeCun-normal for pictures, as the public configuration has it."""
    head = nn.Linear(dim, task.classes)
    lecun_normal_(head.weight) if task.modality == "image" else nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def task_loss(task: TaskHead, logits: Float[Tensor, "b k"], targets: Tensor) -> Float[Tensor, ""]:
    """The mean over the batch of a task's cross-entropy; of sigmoids it is the sum over classes.

    ``targets`` are classes (B,) or, where they are several, smoothed or mixed, shares of each class (B, K).
    """
    if task.loss == "softmax":
        return F.cross_entropy(logits, targets)
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[-1])
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none").sum(-1).mean()


# --- presets ----------------------------------------------------------------------------------------------------

NINE_TASKS = (
    TaskHead(name="imagenet", modality="image", classes=1000, loss="sigmoid"),
    TaskHead(name="cifar100", modality="image", classes=100, loss="sigmoid"),
    TaskHead(name="cifar10", modality="image", classes=10, loss="sigmoid"),
    TaskHead(name="pets", modality="image", classes=37, loss="sigmoid"),
    TaskHead(name="resisc45", modality="image", classes=45, loss="sigmoid"),
    TaskHead(name="kinetics400", modality="video", classes=400),
    TaskHead(name="moments", modality="video", classes=339),
    TaskHead(name="audioset", modality="audio", classes=527, loss="sigmoid", stochastic_depth=0.3),
    TaskHead(name="vggsound", modality="audio", classes=309, stochastic_depth=0.3),
)
VIDEO_TASKS = (  # of the state-of-the-art rows
    TaskHead(name="kinetics400", modality="video", classes=400),
    TaskHead(name="kinetics600", modality="video", classes=600),
    TaskHead(name="moments", modality="video", classes=339),
)

# Without heads, as encoders; ``tasks`` brings them.
PRESETS = {
    "polyvit_base": PolyViTConfig(),
    "polyvit_base_adapt6": PolyViTConfig(adapt=6),
    "polyvit_large": PolyViTConfig(
        dim=1024,
        depth=24,
        heads=16,
        mlp_dim=4096,
        image=None,
        video=VideoInput(tubelet=(2, 16, 16)),
        audio=None,
    ),
    # Clips of the default grid, 0.4 s: ten frames of the middle of the picture, forty mel frames.
    "polyvit_tiny": PolyViTConfig(
        dim=128,
        depth=4,
        heads=4,
        mlp_dim=512,
        image=ImageInput(size=64, patch=(8, 8), crop_share=1.0),
        video=VideoInput(frames=10, size=64, tubelet=(2, 16, 16), clip_seconds=Fraction(2, 5), crop_share=0.625),
        audio=AudioInput(frames=40, bins=48, patch=(8, 8), clip_seconds=Fraction(2, 5), front="log_mel_talk"),
    ),
}
PRESETS["polyvit_tiny_adapt2"] = replace(PRESETS["polyvit_tiny"], adapt=2)
