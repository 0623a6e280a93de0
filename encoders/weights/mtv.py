"""MTV's parameter names in the public Flax code (google-research/scenic, projects/mtv), and starting from other models.

A released checkpoint (Flax only) is read through `rules`. Training starts from one image ViT for each view
(`initialise`) or from an MTV of another size (`from_mtv`); what neither fills keeps its first values.
"""

from collections.abc import Mapping, Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from encoders.audiovisual.mm_mix import MMMix
from encoders.errors import DataError
from encoders.layers.positions import resize_grid, resize_time
from encoders.video.mtv import MTV, MTVConfig
from encoders.video.views import View
from encoders.weights.image_vit import ImageViT
from encoders.weights.rules import Rule, attention, block, convolution, linear, mlp, norm

__all__ = ["from_mtv", "initialise", "rules"]


def rules(config: MTVConfig) -> list[Rule]:
    """Flax names to those of `MTV`; raises DataError for MLP fusion, which the public code does not have."""
    if config.fusion == "mlp":
        raise DataError("no public checkpoint fuses views in their MLPs; choose another preset, or train this one")
    table = [*_global(config), *_view_tokens(config)]
    for layer in range(config.depth):
        table += _layer(config, layer)
    if config.fusion == "bottleneck":
        table.append(Rule("bottleneck", "encoder.bottleneck"))
        table += linear("MultiviewEncoder/bottleneck_linear_{l}_view{i}", "encoder.layers.{l}.linears.{i}")
    return table


def _view_tokens(config: MTVConfig) -> list[Rule]:
    table = [
        *convolution("embedding_view{i}", "tokens.{i}.embed.project", 3),
        Rule("MultiviewEncoder/posembed_input_view{i}/pos_embedding", "tokens.{i}.positions"),
    ]
    return [*table, Rule("cls_view{i}", "tokens.{i}.cls")] if config.class_tokens else table


def _layer(config: MTVConfig, layer: int) -> list[Rule]:
    """A layer's blocks; in a layer of cross-view attention the published code names the parts of a block itself."""
    fused = config.fusion == "cross" and layer in config.fusion_layers
    theirs, ours = f"MultiviewEncoder/cross_view_encoderblock_{layer}", f"encoder.layers.{layer}"
    table: list[Rule] = []
    for i, view in enumerate(config.parsed):
        if fused:
            table += norm(f"{theirs}/cross_attention_ln_view{i}", f"{ours}.norms.{i}")
        if layer < view.layers:
            own = f"{ours}.blocks.{i}"
            table += (
                _named_block(f"{theirs}/{{part}}_view{i}", own, view.heads)
                if fused
                else block(f"MultiviewEncoder/encoderblock_{layer}_view{i}", own, view.heads)
            )
        if fused and i:
            heads = config.parsed[i - 1 if config.fusion_width == "query" else i].heads
            table += attention(f"{theirs}/cross_attention_view{i - 1}_{i}", f"{ours}.attentions.{i - 1}", heads)
    return table


def _named_block(prefix: str, target: str, heads: int) -> list[Rule]:
    return [
        *norm(prefix.format(part="msa_ln"), f"{target}.norm1"),
        *attention(prefix.format(part="msa"), f"{target}.attention", heads),
        *norm(prefix.format(part="mlp_ln"), f"{target}.norm2"),
        *mlp(prefix.format(part="mlp"), f"{target}.mlp"),
    ]


def _global(config: MTVConfig) -> list[Rule]:
    table = [
        Rule("global_encoder/posembed_input/pos_embedding", "global_encoder.positions"),
        *block("global_encoder/encoderblock_{i}", "global_encoder.encoder.blocks.{i}", config.global_heads),
        *norm("global_encoder/encoder_norm", "global_encoder.encoder.norm"),
    ]
    if config.class_tokens:
        table.append(Rule("cls_global", "global_encoder.cls"))
    if config.merge == "time":
        table += linear("global_encoder_linear_view{i}", "global_encoder.linears.{i}")
    if config.classes:
        table += linear("output_projection", "head")
    return table


def initialise(
    model: MTV | MMMix, images: Sequence[ImageViT], *, inflation: str = "central", what: str = "the image ViT"
) -> None:
    """Start every view of ``model`` from an image ViT of its size, one for each view in the order of ``config.parsed``.

    Patch kernels become tubelets (see `encoders.layers.embed.inflate`), zoomed where patches differ; the class token is
    taken for every time step, positions are zoomed to the view's grid, each block goes to the view's block of the same
    layer. What joins views, the global encoder and the head stay as they are, and so does a class position that the
    picture does not have; the picture's last norm has no place. Raises DataError where numbers or sizes differ.
    """
    views = model.config.parsed
    if len(images) != len(views):
        raise DataError(f"{len(views)} views cannot start from {len(images)} image models; give one for each")
    new: dict[str, Tensor] = {}
    for i, (view, image) in enumerate(zip(views, images, strict=True)):
        _check_sizes(view, image, f"{what} of view {i}")
        new |= _view_from(model, i, view, image, inflation)
    _, unexpected = model.load_state_dict(new, strict=False)
    assert not unexpected, f"{unexpected} are not of an MTV"


def _check_sizes(view: View, image: ImageViT, what: str) -> None:
    sizes = {"width": image.dim, "layers": image.depth, "heads": image.heads, "mlp": image.mlp_dim}
    for name, size in sizes.items():
        if size != getattr(view, name):
            raise DataError(f"{what} has {name} {size} and the view {getattr(view, name)}; give views coarsest first")


def _view_from(model: MTV | MMMix, i: int, view: View, image: ImageViT, inflation: str) -> dict[str, Tensor]:
    config, name = model.config, f"tokens.{i}"
    steps, *grid = config.grid(view)
    first, rest = image.positions_at((grid[0], grid[1]))
    if not first.shape[1]:
        first = model.state_dict()[f"{name}.positions"][:, :1].cpu()
    new = {
        f"{name}.embed.project.weight": _kernel(view, image, inflation, config.channels),
        f"{name}.embed.project.bias": image.bias,
        f"{name}.positions": torch.cat([first[:, : config.class_tokens], rest], 1),
    }
    if image.cls is not None and config.class_tokens:
        new[f"{name}.cls"] = image.cls[:, None].repeat(1, steps, 1, 1)
    for key, value in image.encoder.items():
        if key.startswith("blocks."):
            _, layer, leaf = key.split(".", 2)
            new[f"encoder.layers.{layer}.blocks.{i}.{leaf}"] = value
    return new


def _kernel(view: View, image: ImageViT, inflation: str, channels: int) -> Tensor:
    """A tubelet's kernel; of sound a picture's, for a spectrogram is cut as one; flow and sound have three channels."""
    if view.sees == "audio":
        return image.tubelet((1, *view.patch))[:, :, 0]
    return image.tubelet((view.tubelet, *view.patch), inflation, channels if view.sees == "rgb" else 3)


def from_mtv(model: MTV | MMMix, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``model`` begun from an MTV of the same views at another length, size, tubelet or head.

    Class tokens, the global encoder's positions and bottlenecks are zoomed in time, views' positions in space, kernels
    in both; a head of other classes keeps its first values. Raises DataError naming what else differs.
    """
    own = model.state_dict()
    out: dict[str, Tensor] = {}
    for key in sorted(own.keys() | weights.keys()):
        same = key in own and key in weights and own[key].shape == weights[key].shape
        if key.startswith("head.") and not same:
            out |= {key: own[key]} if key in own else {}
            continue
        if key not in own or key not in weights:
            what = "lacks" if key in own else "has"
            raise DataError(f"the model to begin from {what} {key}; begin from one with the same views and fusion")
        out[key] = weights[key] if same else _fitted(weights[key], own[key], key, model.config)
    return out


def _fitted(source: Tensor, target: Tensor, key: str, config: MTVConfig) -> Tensor:
    """``source`` zoomed to the shape of ``target``, where its axes are time or space."""
    moved = source
    if source.ndim == target.ndim:
        if key.endswith("embed.project.weight"):
            moved = interpolate(source, target.shape[2:], mode="trilinear", align_corners=True)
        elif key == "global_encoder.positions":
            moved = _global_positions(source, config)
        elif key.endswith(".positions"):  # tokens.{i}.positions
            moved = _view_positions(source, config, config.parsed[int(key.split(".")[1])])
        elif source.ndim == 4:  # a class token or bottlenecks, (1, T_i, N, D)
            moved = resize_time(source.flatten(2), source.shape[1], target.shape[1]).unflatten(2, source.shape[2:])
    if moved.shape != target.shape:
        raise DataError(
            f"{key} of the model to begin from is {tuple(source.shape)}, here it is {tuple(target.shape)}; "
            "begin from one with the same views and fusion"
        )
    return moved


def _view_positions(source: Tensor, config: MTVConfig, view: View) -> Tensor:
    """Zoomed in space: pictures stay square, and sound keeps its mel bins."""
    rows, columns = config.grid(view)[1:]
    places = source.shape[1] - config.class_tokens
    before = places // columns if view.sees == "audio" else isqrt(places * rows // columns)
    return resize_grid(source, (before, places // max(before, 1)), (rows, columns))


def _global_positions(source: Tensor, config: MTVConfig) -> Tensor:
    """Zoomed in time; those of views that lie one after the other, view by view."""
    first, rest = source.split([config.class_tokens, source.shape[1] - config.class_tokens], 1)
    new = config.steps if config.merge == "time" else [max(config.steps)]
    old = [steps * rest.shape[1] // sum(new) for steps in new]
    if sum(old) != rest.shape[1]:
        return source  # of no clip whose views are these
    parts = [resize_time(part, o, n) for part, o, n in zip(rest.split(old, 1), old, new, strict=True)]
    return torch.cat([first, *parts], 1)
