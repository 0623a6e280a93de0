"""MViTv2's parameter names in the public code, and how MViTv2 and MAT begin from one of pictures.

Li et al., "MViTv2" (CVPR 2022), as facebookresearch/SlowFast saves it: video models (a class token, three axes) and
image models (no class token, two axes, and pools with an axis of time that is one long). The checkpoints are pickles,
which are not read: save what they hold under ``model_state`` as safetensors. Kernels lie as ours do.

MAT begins from MViTv2-B of pictures (Zhu, 2024): the patch kernel summed over colours, as in AST, the tables of
distances resized. A video model begins from it as ViViT does from an image ViT: kernels inflated in time, distances in
time as they were drawn. What a picture's model has no weights for (a class token) stays as it was drawn.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from encoders.errors import ConfigError, DataError
from encoders.layers.embed import inflate
from encoders.layers.multiscale import Multiscale, MultiscaleConfig
from encoders.layers.pooled_attention import resize_table
from encoders.video.mvitv2 import PRESETS, MViTv2, MViTv2Config
from encoders.weights.rules import Change, Rule, convert

__all__ = ["initialise", "read_start", "rules"]

Arrays = Mapping[str, np.ndarray]
BLOCK = {  # of a block: ours -> theirs
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.first": "mlp.fc1",
    "mlp.second": "mlp.fc2",
    "shortcut": "proj",
}
POOLS = {"query": "q", "key": "k", "value": "v"}
AXES = ("t", "h", "w")

flat = Change(
    lambda a: a.squeeze(2) if a.ndim == 5 else a,
    lambda a: a[:, :, None],
    "(width, 1, 1, height, width)",
    lambda s: len(s) == 4 or (len(s) == 5 and s[2] == 1),
)


def rules(config: MultiscaleConfig) -> list[Rule]:
    """Their names to those of `MViTv2`; and of `MAT`, whose tables and pools have two axes, as a picture's."""
    axes = len(config.kernel)
    table = [
        *_both("patch_embed.proj", "embed"),
        *_both("norm", "norm"),
        *(rule for ours, theirs in BLOCK.items() for rule in _both(f"blocks.{{i}}.{theirs}", f"blocks.{{i}}.{ours}")),
    ]
    for ours, letter in POOLS.items():
        theirs, pool = "blocks.{i}.attn", f"blocks.{{i}}.attention.{ours}"
        table.append(Rule(f"{theirs}.pool_{letter}.weight", f"{pool}.conv.weight", flat if axes == 2 else None))
        table += _both(f"{theirs}.norm_{letter}", f"{pool}.norm")
    for axis, letter in enumerate(AXES[-axes:]):
        table.append(Rule(f"blocks.{{i}}.attn.rel_pos_{letter}", f"blocks.{{i}}.attention.distances.{axis}"))
    if config.pool == "token":
        table.append(Rule("cls_token", "cls"))
    if config.classes:
        return table + _both("head.projection", "head")
    return [*table, Rule("head.projection.{part:s}", None)]  # without a head theirs is left behind


def _both(prefix: str, target: str) -> list[Rule]:
    return [Rule(f"{prefix}.{part}", f"{target}.{part}") for part in ("weight", "bias")]


# --- from pictures ------------------------------------------------------------------------------------------------


def read_start(source: Arrays, *, what: str = "the image MViTv2") -> dict[str, Tensor]:
    """An image MViTv2 under our names, without its head; its sizes are read from the arrays.

    Raises DataError, naming the key, where one is unknown, missing or of a shape that does not fit the others.
    """
    config = _config_of(source, what)
    with torch.device("meta"):
        own = MViTv2(config).state_dict()
    return convert(source, rules(config), own, what=what)


def _config_of(source: Arrays, what: str) -> MViTv2Config:
    """The image model that the arrays are of: where it widens, and its tables, which tell how it pools."""
    base = PRESETS["mvitv2_b_image"]
    dim = _shape(source, "patch_embed.proj.weight", 4, what)[0]
    depth = len({key.split(".")[1] for key in source if key.startswith("blocks.")})
    widening = tuple(i for i in range(depth) if f"blocks.{i}.proj.weight" in source)
    heads = max(dim // _shape(source, "blocks.0.attn.pool_q.weight", 5, what)[0], 1)
    side = (_shape(source, "blocks.0.attn.rel_pos_h", 2, what)[0] + 1) // 2  # of the first grid
    strides = ((2, 2),) * len(widening)
    return replace(base, dim=dim, heads=heads, depth=depth, pooled=widening, strides=strides, size=4 * side)


def _shape(source: Arrays, key: str, axes: int, what: str) -> tuple[int, ...]:
    if key not in source:
        raise DataError(f"{what} lacks {key}; give a MViTv2 of pictures, as SlowFast names it")
    shape: tuple[int, ...] = source[key].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(f"{what}: {key} is {shape}, where {axes} axes are expected; give a MViTv2 of pictures")
    return shape


def initialise(
    model: Multiscale, image: Mapping[str, Tensor], *, inflation: str = "central", what: str = "the image MViTv2"
) -> None:
    """Start ``model``, of clips or of sound, from what `read_start` gives; its head stays as it is.

    inflation: of kernels in a model of clips, "central" or "average"; see `inflate`. Raises DataError naming the first
    parameter that does not fit.
    """
    if inflation not in ("central", "average"):
        raise ConfigError(f"inflation {inflation!r} is unknown; use 'central' or 'average'")
    own = model.state_dict()
    axes = own["embed.weight"].ndim - 2
    for name, value in own.items():
        source = _renamed(name, axes)
        if source is None or source not in image:
            if _may_stay(name, axes):
                continue
            raise DataError(f"{what} has no weights for {name}; choose the preset of its depth and widths")
        laid_out = _laid_out(name, image[source], value, inflation)
        if laid_out.shape != value.shape:
            raise DataError(
                f"{what}: {source} is {tuple(image[source].shape)} where {name} is {tuple(value.shape)}; "
                "choose the preset of its depth and widths"
            )
        own[name] = laid_out
    deeper = next(_beyond(image, own), None)
    if deeper is not None:
        raise DataError(f"{what} has {deeper}, for which the model has no place; choose the preset of its depth")
    model.load_state_dict(own)


def _renamed(name: str, axes: int) -> str | None:
    """The picture's parameter that fills ours; None for distances in time."""
    prefix, found, axis = name.partition(".attention.distances.")
    if not found or axes == 2:
        return name
    return None if axis == "0" else f"{prefix}{found}{int(axis) - 1}"


def _may_stay(name: str, axes: int) -> bool:
    return name in ("cls", "no_face") or name.startswith("head.") or (axes == 3 and name.endswith(".distances.0"))


def _laid_out(name: str, source: Tensor, like: Tensor, inflation: str) -> Tensor:
    if ".distances." in name:
        return resize_table(source, len(like)) if source.shape[1:] == like.shape[1:] else source
    if name == "embed.weight" and like.shape[1] == 1:
        source = source.sum(1, keepdim=True)
    if like.ndim == 5 and source.ndim == 4:
        return inflate(source, like.shape[2], inflation)
    return source


def _beyond(image: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    """Blocks of the picture's model that ours does not have."""
    blocks = {name.split(".")[1] for name in own if name.startswith("blocks.")}
    yield from (name for name in image if name.startswith("blocks.") and name.split(".")[1] not in blocks)
