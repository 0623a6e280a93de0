"""A video transformer starts from a picture's: what an image ViT learned, laid out for clips.

ViViT (ICCV 2021), section 3.4, as google-research/scenic restores it. The picture's patch kernel becomes a tubelet's,
its positions are zoomed to the clip's grid and repeated at every step, its blocks are copied; its classifier is left
behind. What has no counterpart in a picture (a transformer over time, attention along time) stays as it was drawn, is
copied from space, or starts as nothing.

Two public layouts are read: scenic's ViT, and google-research/vision_transformer (the ImageNet-21K and AugReg files),
whose blocks number their parts in one sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from encoders.errors import ConfigError, DataError
from encoders.layers.block import Encoder
from encoders.layers.embed import PatchEmbed, inflate
from encoders.layers.positions import resize_tile
from encoders.video.vivit import Transformer, ViViT
from encoders.weights.rules import Rule, attention, block, convert, convolution, mlp, norm

__all__ = ["ImageViT", "initialise", "read_image_vit"]

Arrays = Mapping[str, np.ndarray]
HEADS = ("output_projection", "head", "pre_logits")  # left behind


@dataclass(frozen=True)
class ImageViT:
    """A picture transformer in our names and layouts."""

    heads: int
    kernel: Tensor  # (D, C, h, w)
    bias: Tensor  # (D,)
    cls: Tensor | None  # (1, 1, D); None where it averages its tokens
    positions: Tensor  # (1, N, D), the class position first where there is one
    encoder: dict[str, Tensor]  # the state of an `Encoder`: blocks.0.norm1.weight, ..., norm.bias

    @property
    def dim(self) -> int:
        """D, the width of its tokens."""
        return len(self.kernel)

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return 1 + max(int(key.split(".")[1]) for key in self.encoder if key.startswith("blocks."))

    @property
    def mlp_dim(self) -> int:
        """Width of the hidden layer of its MLPs."""
        return len(self.encoder["blocks.0.mlp.first.weight"])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of its positions; published models are square."""
        side = isqrt(self.positions.shape[1])
        if self.positions.shape[1] - side**2 not in (0, int(self.cls is not None)):
            raise DataError(f"{self.positions.shape[1]} positions of the image ViT are no square; give a square one")
        return side, side

    def tubelet(self, tubelet: tuple[int, int, int], how: str = "central", channels: int = 3) -> Tensor:
        """Its patch kernel as one of a ``tubelet`` (frames, rows, columns): (D, channels, t, h, w).

        The kernel is zoomed where patches differ in size. Gray is the sum over colours: a gray picture gives what it
        gives when it is repeated for each.
        """
        kernel = self.kernel
        if kernel.shape[2:] != tubelet[1:]:
            kernel = interpolate(kernel, tubelet[1:], mode="bilinear", align_corners=True)
        if channels == 1:
            kernel = kernel.sum(1, keepdim=True)
        if kernel.shape[1] != channels:
            raise DataError(f"the image ViT sees {kernel.shape[1]} channels, not {channels}; use channels=3 or 1")
        return inflate(kernel, tubelet[0], how)

    def positions_at(self, grid: tuple[int, int], steps: int = 1) -> tuple[Tensor, Tensor]:
        """Its positions for ``steps`` of ``grid``: the class position (1, 0 or 1, D) and the rest (1, steps h w, D)."""
        table = resize_tile(self.positions, self.grid, grid, steps)
        spare = table.shape[1] - steps * grid[0] * grid[1]
        return table[:, :spare], table[:, spare:]


class _Picture(nn.Module):
    """Where the weights of an image ViT go, under the names we use for them; it is never run."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int, patch: tuple[int, int], places: int, cls: bool):
        super().__init__()
        self.embed = PatchEmbed(patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if cls else None
        self.positions = nn.Parameter(torch.zeros(1, places, dim))
        self.encoder = Encoder(depth, dim, heads, mlp_dim)


def _rules(heads: int) -> list[Rule]:
    prefix, target = "Transformer/encoderblock_{i}", "encoder.blocks.{i}"
    return [
        *convolution("embedding", "embed.project"),
        Rule("cls", "cls"),
        Rule("Transformer/posembed_input/pos_embedding", "positions"),
        *block(prefix, target, heads),
        *attention(f"{prefix}/MultiHeadDotProductAttention_1", f"{target}.attention", heads),
        *norm(f"{prefix}/LayerNorm_2", f"{target}.norm2"),
        *mlp(f"{prefix}/MlpBlock_3", f"{target}.mlp"),
        *norm("Transformer/encoder_norm", "encoder.norm"),
        *(Rule(f"{head}/{part}", None) for head in HEADS for part in ("kernel", "bias")),
    ]


def read_image_vit(source: Arrays, *, what: str = "the image ViT") -> ImageViT:
    """An image ViT from its Flax paths and arrays; its sizes are read from the arrays.

    Raises DataError, naming the key, where one is unknown, missing or of a shape that does not fit the others.
    """
    patch_h, patch_w, _, dim = _shape(source, ("embedding/kernel",), 4, what)
    block_0 = "Transformer/encoderblock_0"
    query = tuple(f"{block_0}/MultiHeadDotProductAttention_{i}/query/kernel" for i in (0, 1))
    heads = _shape(source, query, 3, what)[1]
    mlp_dim = _shape(source, tuple(f"{block_0}/MlpBlock_{i}/Dense_0/kernel" for i in (0, 3)), 2, what)[1]
    places = _shape(source, ("Transformer/posembed_input/pos_embedding",), 3, what)[1]
    depth = len({key.split("/")[1] for key in source if key.startswith("Transformer/encoderblock_")})
    with torch.device("meta"):
        picture = _Picture(dim, depth, heads, mlp_dim, (patch_h, patch_w), places, "cls" in source)
    own = convert(source, _rules(heads), picture.state_dict(), what=what)
    return ImageViT(
        heads=heads,
        kernel=own["embed.project.weight"],
        bias=own["embed.project.bias"],
        cls=own.get("cls"),
        positions=own["positions"],
        encoder={key.removeprefix("encoder."): value for key, value in own.items() if key.startswith("encoder.")},
    )


def _shape(source: Arrays, keys: tuple[str, ...], axes: int, what: str) -> tuple[int, ...]:
    """Of the first of ``keys`` that is there."""
    key = next((key for key in keys if key in source), None)
    if key is None:
        raise DataError(f"{what} lacks {keys[0]}; give an image ViT in its Flax layout")
    shape: tuple[int, ...] = source[key].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(f"{what}: {key} is {shape}, where {axes} axes are expected; give an image ViT")
    return shape


def initialise(
    model: ViViT, image: ImageViT, *, inflation: str = "central", time: str = "copy", what: str = "the image ViT"
) -> None:
    """Start ``model`` from a picture transformer; its head, and a transformer over time, stay as they are.

    inflation: of the patch kernel, "central" (every published model) or "average"; see `inflate`.
    time: of factorised self-attention, "copy" gives attention along time the weights of attention over space (the
    public code's default), "zero" sets its output weights to zero, so that each block starts as the picture's and
    attention along time begins to count as it learns (the paper). The public code sets *all* of its weights to zero
    for that; then no gradient ever reaches them, which we do not copy.

    Raises DataError where the sizes of the two differ, ConfigError on an unknown choice.
    """
    if time not in ("copy", "zero"):
        raise ConfigError(f"time {time!r} is unknown; use 'copy' or 'zero'")
    _check_sizes(model, image, what)
    config = model.config
    new = {"embed.project.weight": _kernel(model, image, inflation), "embed.project.bias": image.bias}
    if model.over_space is not None:
        new |= _transformer("over_space", model.over_space, image, config.grid, 1)
        new |= {f"over_space.encoder.{key}": value for key, value in image.encoder.items()}
    else:
        assert model.transformer is not None
        new |= _transformer("transformer", model.transformer, image, config.grid, config.steps)
        encoder = image.encoder
        if config.attention == "factorised_self":
            encoder = _along_time(encoder, time, config.depth)
        new |= {f"transformer.encoder.{key}": value for key, value in encoder.items()}
    unexpected = model.load_state_dict(new, strict=False).unexpected_keys
    assert not unexpected, f"{unexpected} are not of a ViViT"


def _check_sizes(model: ViViT, image: ImageViT, what: str) -> None:
    wanted = {name: getattr(model.config, name) for name in ("dim", "depth", "heads", "mlp_dim")}
    for name, size in wanted.items():
        if getattr(image, name) != size:
            raise DataError(
                f"{what} has {name} {getattr(image, name)} and the model {size}; choose the preset of its size"
            )


def _kernel(model: ViViT, image: ImageViT, inflation: str) -> Tensor:
    config = model.config
    kernel = image.tubelet(config.tubelet, inflation, config.channels)
    return kernel[:, :, 0] if config.sampled else kernel


def _transformer(name: str, part: Transformer, image: ImageViT, grid: tuple[int, int], steps: int) -> dict[str, Tensor]:
    """Class token and positions; a class position that the picture does not have stays as it was drawn."""
    first, rest = image.positions_at(grid, steps)
    if part.cls is None:
        return {f"{name}.positions": rest}
    if not first.shape[1]:
        first = part.positions.detach()[:, :1].cpu()
    new = {f"{name}.positions": torch.cat((first, rest), 1)}
    return new if image.cls is None else {**new, f"{name}.cls": image.cls}


def _along_time(encoder: Mapping[str, Tensor], time: str, depth: int) -> dict[str, Tensor]:
    """The blocks of a picture as factorised self-attention's; the norm before attention along time is left alone."""
    attends = ["space", "time"] if time == "copy" else ["space"]
    names = {"norm1": ["norm_space"], "attention": attends, "norm2": ["norm_mlp"], "mlp": ["mlp"]}
    new: dict[str, Tensor] = {}
    for key, value in encoder.items():
        if not key.startswith("blocks."):
            new[key] = value  # the last norm
            continue
        _, number, part, leaf = key.split(".", 3)
        new |= {f"blocks.{number}.{name}.{leaf}": value for name in names[part]}
    if time == "zero":
        for i in range(depth):
            for leaf in ("weight", "bias"):
                new[f"blocks.{i}.time.out.{leaf}"] = torch.zeros_like(encoder[f"blocks.{i}.attention.out.{leaf}"])
    return new
