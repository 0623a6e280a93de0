"""PolyViT's parameters as the public JAX code (google-research/scenic, projects/polyvit) names them; a PolyViT that
starts from a picture's transformer; and a tokenizer made of another modality's.

No checkpoint was released; the layout is that of models trained with the public code.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from encoders.audiovisual.polyvit import PolyViT, PolyViTConfig, Tokenizer
from encoders.errors import ConfigError, DataError
from encoders.layers.embed import TubeletEmbed, inflate
from encoders.layers.positions import resize_tile
from encoders.settings import pick
from encoders.weights.image_vit import ImageViT
from encoders.weights.rules import Rule, block, convolution, linear, norm

__all__ = ["initialise", "rules", "tokenizer_from"]

TOKENIZERS = {"image": "tokenizer2d", "video": "tokenizer3d", "audio": "tokenizer_spec"}
HEADS = {  # our task names to those of the public configuration; any other is the same in both
    "imagenet": "bit_imagenet2012",
    "cifar100": "bit_cifar100",
    "cifar10": "bit_cifar10",
    "pets": "bit_oxford_iiit_pet",
    "resisc45": "bit_resisc45",
    "moments": "moments_in_time",
    "audioset": "balanced_audioset",
}


def rules(config: PolyViTConfig) -> list[Rule]:
    """Flax paths to our names. Shared blocks are numbered from ``adapt`` on there, and from 0 here."""
    table: list[Rule] = []
    for modality in config.inputs:
        prefix, target = f"tokenizer/{TOKENIZERS[modality]}", f"tokenizers.{modality}"
        table += [
            Rule(f"{prefix}/cls", f"{target}.cls"),
            *convolution(f"{prefix}/embedding", f"{target}.embed.project", 3 if modality == "video" else 2),
            Rule(f"{prefix}/posembed_input/pos_embedding", f"{target}.positions"),
            *block(f"{prefix}/encoderblock_{{i}}", f"{target}.blocks.{{i}}", config.heads),
        ]
    for layer in range(config.adapt, config.depth):
        shared = f"encoder.blocks.{layer - config.adapt}"
        table += block(f"vit_encoder/encoderblock_{layer}", shared, config.heads)
    table += norm("vit_encoder/encoder_norm", "encoder.norm")
    for task in config.tasks:
        head = HEADS.get(task.name, task.name)
        table += linear(f"classification_head_{head}/output_projection", f"heads.{task.name}")
    return table


@torch.no_grad()
def initialise(model: PolyViT, image: ImageViT, *, inflation: str = "central", what: str = "the image ViT") -> None:
    """Start from a picture transformer, as the paper does from ImageNet-21K; heads stay as they were drawn.

    Its blocks become the shared ones and, below ``adapt``, those of *each* tokenizer; every tokenizer gets its class
    token and its patch kernel, which for clips is inflated ("central" or "average"). Positions are zoomed to the grid
    of pictures and of spectrograms, and for clips repeated at every temporal index.

    Raises DataError where the sizes of the two differ.
    """
    config = model.config
    for name in ("dim", "depth", "heads", "mlp_dim"):
        if getattr(image, name) != getattr(config, name):
            raise DataError(
                f"{what} has {name} {getattr(image, name)} and the model {getattr(config, name)}; "
                "choose the preset of its size"
            )
    own, shared = _halves(image.encoder, config.adapt)
    kernels = {name: _image_kernel(part, image, inflation) for name, part in _tokenizers(model)}
    positions = {
        name: resize_tile(image.positions, image.grid, part.grid[1:], part.grid[0]) for name, part in _tokenizers(model)
    }
    model.encoder.load_state_dict(shared)
    for name, part in _tokenizers(model):
        part.blocks.load_state_dict(own)
        _fill(part, kernels[name], image.bias, image.cls, positions[name])


def _tokenizers(model: PolyViT) -> list[tuple[str, Tokenizer]]:
    return [(name, part) for name, part in model.tokenizers.items() if isinstance(part, Tokenizer)]


def _halves(encoder: dict[str, Tensor], adapt: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An encoder's state as that of the first ``adapt`` blocks, and of an encoder of the rest."""
    own: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for key, value in encoder.items():
        first, _, rest = key.removeprefix("blocks.").partition(".")
        if not key.startswith("blocks."):
            shared[key] = value
        elif int(first) < adapt:
            own[f"{first}.{rest}"] = value
        else:
            shared[f"blocks.{int(first) - adapt}.{rest}"] = value
    return own, shared


def _image_kernel(part: Tokenizer, image: ImageViT, inflation: str) -> Tensor:
    sides = part.embed.project.kernel_size
    if isinstance(part.embed, TubeletEmbed):
        return image.tubelet((sides[0], sides[1], sides[2]), inflation)
    return image.tubelet((1, sides[0], sides[1]), inflation)[:, :, 0]


def _fill(part: Tokenizer, kernel: Tensor, bias: Tensor | None, cls: Tensor | None, positions: Tensor) -> None:
    """A tokenizer's own parameters; a class token or class position that there is none of stays as it is."""
    part.embed.project.weight.copy_(kernel)
    assert part.embed.project.bias is not None and bias is not None, "patch convolutions have biases"
    part.embed.project.bias.copy_(bias)
    if cls is not None:
        part.cls.copy_(cls)
    part.positions[:, -positions.shape[1] :].copy_(positions)


@torch.no_grad()
def tokenizer_from(model: PolyViT, modality: str, trained: PolyViT, source: str) -> None:
    """Make ``model``'s tokenizer of ``modality`` out of ``trained``'s of ``source``, so that a trunk meets a modality
    that it was not trained on (the paper's linear evaluation); the two may be one model.

    A clip's kernel becomes a picture's by its sum over time, a picture's a clip's at the central frame; a clip's
    positions are averaged over time, grids zoomed, a clip's repeated at every index; class token, bias and the
    tokenizer's own blocks are copied. Patches of other sizes are zoomed, which the public code does not need.

    Raises UsageError where a modality is not there, ConfigError where the sizes of the two models differ.
    """
    new = dict(_tokenizers(model))
    old = dict(_tokenizers(trained))
    to, by = pick(new, modality, "modality"), pick(old, source, "modality")
    for name in ("dim", "adapt", "heads", "mlp_dim"):
        mine, theirs = getattr(model.config, name), getattr(trained.config, name)
        if mine != theirs:
            raise ConfigError(f"the trained model has {name} {theirs} and this one {mine}; build both alike")
    steps, *grid = by.grid
    table: Tensor = by.positions
    places = table[:, 1:].unflatten(1, (steps, -1)).mean(1)  # (1, h w, D)
    table = torch.cat([table[:, :1], places], 1)
    _fill(
        to,
        _borrowed_kernel(by, to),
        by.embed.project.bias,
        by.cls,
        resize_tile(table, (grid[0], grid[1]), to.grid[1:], to.grid[0]),
    )
    to.blocks.load_state_dict(by.blocks.state_dict())


def _borrowed_kernel(by: Tokenizer, to: Tokenizer) -> Tensor:
    kernel: Tensor = by.embed.project.weight
    wanted: Tensor = to.embed.project.weight
    if kernel.shape == wanted.shape:
        return kernel
    flat = kernel.sum(2) if kernel.ndim == 5 else kernel  # (D, C, h, w)
    if flat.shape[2:] != wanted.shape[-2:]:
        flat = interpolate(flat, wanted.shape[-2:], mode="bilinear", align_corners=True)
    return inflate(flat, wanted.shape[2], "central") if wanted.ndim == 5 else flat
