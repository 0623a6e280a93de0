"""MBT's parameters as the public JAX code (google-research/scenic, projects/mbt and projects/av_mae) names them; and an
MBT that starts from a picture's transformer.

Sound's part of the names is ``_spectrogram``; older checkpoints of both projects say ``_spec``, and either is read. A
model of sound alone keeps it, but for its class token, which is just ``cls``; where one stack of blocks serves both
modalities it has none. AV-MAE's copy of the model (``pool="mean"``) has its head one level deeper, and its model of
sound alone has blocks without the suffix.
"""

import torch
from torch import Tensor

from encoders.audiovisual.mbt import MBT, MBTConfig, MBTTokens
from encoders.errors import DataError
from encoders.layers.embed import TubeletEmbed
from encoders.layers.positions import resize_grid, resize_tile
from encoders.weights.image_vit import ImageViT
from encoders.weights.rules import Change, Rule, block, conv, convolution, linear, norm

__all__ = ["initialise", "rules"]

SUFFIXES = {"video": ("",), "audio": ("_spectrogram", "_spec")}  # of names; the first is written, any is read
# One frame at a time is cut into patches by a convolution over pictures.
FLAT = Change(
    lambda a: conv.forward(a)[:, :, None],
    lambda a: conv.backward(a[:, :, 0]),
    "(height, width, in, out)",
    lambda shape: len(shape) == 4,
)


def rules(config: MBTConfig) -> list[Rule]:
    """Flax paths to our names. Where two suffixes are read, the rules of the one that is written come first."""
    table = norm("Transformer/encoder_norm", "encoder.norm")
    if len(config.inputs) > 1 and config.bottlenecks:
        table.append(Rule("bottleneck", "encoder.bottleneck"))
    if config.classes:
        table += linear("output_projection", "head")
        if config.pool == "mean":
            table = [*linear("ProjectionHeadAndClassifier_0/output_projection", "head"), *table]
    for modality in config.inputs:
        for suffix in SUFFIXES[modality]:
            table += _tokens(modality, suffix, config)
    return table + _blocks(config)


def _tokens(modality: str, suffix: str, config: MBTConfig) -> list[Rule]:
    target = f"tokens.{modality}"
    flat = modality == "video" and config.video is not None and config.video.tubelet[0] == 1
    if flat:
        table = linear("embedding", f"{target}.embed.project", FLAT)
    else:
        table = convolution(f"embedding{suffix}", f"{target}.embed.project", 3 if modality == "video" else 2)
    if config.positions == "learned":
        table.append(Rule(f"Transformer/posembed_input{suffix}/pos_embedding", f"{target}.positions"))
    if config.pool == "token":
        cls = "cls" if len(config.inputs) == 1 else f"cls{suffix.removeprefix('_')}"
        table += [Rule(cls, f"{target}.cls")] if cls != "cls" or suffix == SUFFIXES[modality][0] else []
    return table


def _blocks(config: MBTConfig) -> list[Rule]:
    if config.share_encoder and len(config.inputs) > 1:
        return block("Transformer/encoderblock_{i}", "encoder.blocks.both.{i}", config.heads)
    table = []
    for modality in config.inputs:
        suffixes = SUFFIXES[modality]
        if config.pool == "mean":  # as AV-MAE's copy writes it
            suffixes = ("_spec", "_spectrogram") if len(config.inputs) > 1 and modality == "audio" else ("", *suffixes)
        for suffix in dict.fromkeys(suffixes):
            table += block(f"Transformer/encoderblock_{{i}}{suffix}", f"encoder.blocks.{modality}.{{i}}", config.heads)
    return table


@torch.no_grad()
def initialise(model: MBT, image: ImageViT, *, inflation: str = "central", what: str = "the image ViT") -> None:
    """Start both modalities from one picture transformer, as the paper does from ImageNet-21K; the head stays.

    Both get its blocks, its class token and its patch kernel, which for clips is inflated ("central" or "average").
    Positions are zoomed to the grid of a spectrogram, and repeated at every step of a clip. Bottlenecks, where they are
    a square number, start as its positions zoomed to that square, the class position first where there are class
    tokens: so the public code does it. Raises DataError where the sizes of the two differ.
    """
    config = model.config
    for name in ("dim", "depth", "heads", "mlp_dim"):
        if getattr(image, name) != getattr(config, name):
            raise DataError(
                f"{what} has {name} {getattr(image, name)} and the model {getattr(config, name)}; "
                "choose the preset of its size"
            )
    tokens = {name: part for name, part in model.tokens.items() if isinstance(part, MBTTokens)}
    kernels = {name: _kernel(part, image, inflation) for name, part in tokens.items()}
    encoder = {key.removeprefix("blocks."): value for key, value in image.encoder.items() if key.startswith("blocks.")}
    for stack in model.encoder.blocks.values():
        stack.load_state_dict(encoder)
    model.encoder.norm.weight.copy_(image.encoder["norm.weight"])
    model.encoder.norm.bias.copy_(image.encoder["norm.bias"])
    for name, part in tokens.items():
        project = part.embed.project
        project.weight.copy_(kernels[name])
        assert project.bias is not None, "patch convolutions have biases"
        project.bias.copy_(image.bias)
        if part.cls is not None and image.cls is not None:
            part.cls.copy_(image.cls)
        if part.positions is not None:
            _fill(part.positions, resize_tile(image.positions, image.grid, part.grid[1:], part.grid[0]))
    side = int(config.bottlenecks**0.5)
    if model.encoder.bottleneck is not None and side**2 == config.bottlenecks:
        _fill(model.encoder.bottleneck, resize_grid(image.positions, image.grid, (side, side)))


def _kernel(part: MBTTokens, image: ImageViT, inflation: str) -> Tensor:
    project = part.embed.project
    sides, channels = project.kernel_size, project.in_channels
    if isinstance(part.embed, TubeletEmbed):
        return image.tubelet((sides[0], sides[1], sides[2]), inflation, channels)
    return image.tubelet((1, sides[0], sides[1]), inflation, channels)[:, :, 0]


def _fill(table: Tensor, positions: Tensor) -> None:
    """The last of a table's rows; a class position that only one of the two has is left, or left out."""
    count = min(table.shape[1], positions.shape[1])
    table[:, -count:].copy_(positions[:, -count:])
