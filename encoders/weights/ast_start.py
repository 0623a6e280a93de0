"""AST starts from pictures, or from another AST: section 2.2 of its paper, and the public code.

- From a distilled vision transformer (DeiT, `transformers` or timm names as safetensors): patch kernels summed over
  colours; positions, a square grid, cut or zoomed to that of the spectrogram, axis by axis.
- From an image ViT (Flax), which has one leading token: it becomes both (ours).
- From an AST of recordings of another length (our names, or published ones): its positions cut or zoomed along both
  axes.

A grid's axis that needs fewer places is cut around its middle; one that needs more is zoomed linearly, its corners not
aligned. The head stays as it is.

D width, C channel, N place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from encoders.audio.spectrogram_transformer import AST, SPECIAL
from encoders.errors import DataError
from encoders.layers.block import Encoder
from encoders.weights.ast_published import trunk
from encoders.weights.image_vit import read_image_vit
from encoders.weights.rules import Rule, convert

__all__ = ["Start", "fit_axis", "fit_grid", "initialise", "read_start"]

Arrays = Mapping[str, np.ndarray]
HEADS = ("head", "head_dist", "cls_classifier", "distillation_classifier", "classifier", "mlp_head.0", "mlp_head.1",
         "classifier.layernorm", "classifier.dense", "pooler.dense", "head_norm")  # fmt: skip
PREFIXES = ("", "module.", "v.", "module.v.", "deit.", "audio_spectrogram_transformer.")


@dataclass(frozen=True)
class Start:
    """A transformer to start from, in our names and layouts."""

    state: dict[str, Tensor]  # cls, distillation, positions (with those of both tokens), embed.*, encoder.*

    @property
    def sizes(self) -> dict[str, int]:
        """What must be the same in the model that starts from it."""
        blocks = (int(key.split(".")[2]) for key in self.state if key.startswith("encoder.blocks."))
        return {
            "dim": self.state["cls"].shape[-1],
            "depth": 1 + max(blocks),
            "mlp_dim": len(self.state["encoder.blocks.0.mlp.first.weight"]),
        }

    def grid(self, bands: int) -> tuple[int, int]:
        """Rows and columns of its positions: square of pictures, as many ``bands`` as the model's of sound."""
        places, heard = self.state["positions"].shape[1] - SPECIAL, self.state["embed.weight"].shape[1] == 1
        rows = bands if heard else isqrt(places)
        if places % rows or (not heard and rows * rows != places):
            kind = f"{rows} bands" if heard else "a square"
            raise DataError(f"{places} positions do not make {kind}; give the preset's stride that they were made for")
        return rows, places // rows


class _Like(nn.Module):
    """Where the weights to start from go, under our names; it is never run."""

    def __init__(self, dim: int, depth: int, mlp_dim: int, places: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = kernel
        self.embed = nn.Conv2d(channels, dim, (height, width))
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.distillation = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, places, dim))
        self.encoder = Encoder(depth, dim, 1, mlp_dim)  # how many heads is not seen in the weights


def read_start(source: Arrays, *, what: str = "the model to start from") -> Start:
    """A transformer from its published names and arrays, or ours; its sizes are read from the arrays.

    Raises DataError, naming the key, where one is unknown, missing or of a shape that does not fit the others.
    """
    if "embedding/kernel" in source:
        return _of_flax(source, what)
    rules = [*trunk(("deit.", "audio_spectrogram_transformer.", ""), ("module.v.", "v.", "")), *_ours()]
    for prefix in PREFIXES:
        rules += [Rule(f"{prefix}{head}.{{part:s}}", None) for head in HEADS]
    renamed = {rule.target: array for key, array in source.items() for rule in rules if _names(rule, key)}
    kernel, positions = _shape(renamed, "embed.weight", 4, what), _shape(renamed, "positions", 3, what)
    mlp_dim = _shape(renamed, "encoder.blocks.{i}.mlp.first.weight", 2, what)[0]
    depth = len({name for key in source for rule in rules if rule.target == NORM and (name := rule.forward(key))})
    with torch.device("meta"):
        like = _Like(kernel[0], depth, mlp_dim, positions[1], kernel[1:])
    return Start(convert(source, rules, like.state_dict(), what=what))


NORM = "encoder.blocks.{i}.norm1.weight"


def _names(rule: Rule, key: str) -> bool:
    return rule.target is not None and rule.forward(key) is not None


def _ours() -> list[Rule]:
    """An AST in our own names."""
    parts = ("weight", "bias")
    names = ["cls", "distillation", "positions", *(f"{n}.{p}" for n in ("embed", "encoder.norm") for p in parts)]
    inner = ("norm1", "attention.query", "attention.key", "attention.value", "attention.out", "norm2", "mlp.first",
             "mlp.second")  # fmt: skip
    names += [f"encoder.blocks.{{i}}.{name}.{part}" for name in inner for part in parts]
    return [Rule(name, name) for name in names]


def _shape(renamed: Mapping[str | None, np.ndarray], name: str, axes: int, what: str) -> tuple[int, ...]:
    if name not in renamed:
        raise DataError(f"{what} has nothing that fills {name}; give a DeiT, an image ViT (Flax) or an AST")
    shape: tuple[int, ...] = renamed[name].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(f"{what} has {shape} for {name}, where {axes} axes are expected; give a DeiT or an AST")
    return shape


def _of_flax(source: Arrays, what: str) -> Start:
    """An image ViT, whose class token stands for both."""
    image = read_image_vit(source, what=what)
    if image.cls is None:
        raise DataError(f"{what} has no class token, which AST starts its two from; give one that has, or a DeiT")
    first, rest = image.positions_at(image.grid)
    if not first.shape[1]:
        first = torch.zeros(1, 1, image.dim)
    state = {
        "cls": image.cls,
        "distillation": image.cls.clone(),
        "positions": torch.cat([first, first, rest], 1),
        "embed.weight": image.kernel,
        "embed.bias": image.bias,
        **{f"encoder.{key}": value for key, value in image.encoder.items()},
    }
    return Start(state)


def initialise(model: AST, start: Start, *, inflation: str = "central", what: str = "the model to start from") -> None:
    """Start ``model`` from another transformer; its head stays as it is. ``inflation`` is for clips of pictures.

    Raises DataError where the sizes of the two differ.
    """
    config, state = model.config, dict(start.state)
    for name, size in start.sizes.items():
        if getattr(config, name) != size:
            ours = getattr(config, name)
            raise DataError(f"{what} has {name} {size} and the model {ours}; choose the preset of its size")
    kernel = state["embed.weight"].sum(1, keepdim=True)  # (D, 1, h, w)
    if kernel.shape[2:] != config.patch:
        given, made = ("x".join(map(str, s)) for s in (kernel.shape[2:], config.patch))
        raise DataError(f"{what} has patches of {given} and the model of {made}; set model.patch to the former")
    state["embed.weight"] = kernel
    special, places = state["positions"].split([SPECIAL, state["positions"].shape[1] - SPECIAL], 1)
    fitted = fit_grid(places, start.grid(config.grid[0]), config.grid)
    state["positions"] = torch.cat([special, fitted], 1)
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, f"{unexpected} are not of an AST"


def fit_grid(places: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (1, N, D) of a grid of ``old`` (rows, columns) for one of ``new``: along time first, then frequency."""
    grid = places.unflatten(1, old).movedim(-1, 1)  # (1, D, rows, columns)
    grid = fit_axis(fit_axis(grid, 3, new[1]), 2, new[0])
    return grid.movedim(1, -1).flatten(1, 2)


def fit_axis(grid: Tensor, axis: int, wanted: int) -> Tensor:
    """``wanted`` places along one axis (2 or 3) of (1, D, rows, columns): the middle ones, or a linear zoom of all."""
    there = grid.shape[axis]
    if wanted <= there:
        return grid.narrow(axis, there // 2 - wanted // 2, wanted)
    size = [wanted if a == axis else grid.shape[a] for a in (2, 3)]
    return interpolate(grid, size, mode="bilinear", align_corners=False)
