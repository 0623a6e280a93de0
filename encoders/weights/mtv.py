"""MTV's parameter names in the public Flax code (google-research/scenic, projects/mtv), and starting from other models.

A released checkpoint (Flax only) is read through `rules`. Training starts from one image ViT for each view
(`from_image_vits`) or from an MTV of another size (`from_mtv`); what neither fills keeps its first values.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from encoders.errors import DataError
from encoders.layers.embed import inflate
from encoders.layers.positions import resize_grid, resize_time
from encoders.video.mtv import MTV, MTVConfig
from encoders.video.views import View
from encoders.weights.rules import Rule, attention, block, conv, convert, convolution, linear, mlp, norm

__all__ = ["from_image_vits", "from_mtv", "rules"]


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


def from_image_vits(model: MTV, trees: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """The weights of ``model``, every view begun from an image ViT of its size (one tree each, coarsest view first).

    Patch kernels are zoomed to the view's patch and put at the middle frame of its tubelet; the class token is taken
    for every time step, positions are zoomed to the view's grid, blocks go to the blocks of the same layer. What joins
    the views keeps its first values, and so do the global encoder and the head. A tree may be of scenic or of the
    original ViT release (``MultiHeadDotProductAttention_1``). Raises DataError where a ViT is of another size.
    """
    config, own = model.config, model.state_dict()
    if len(trees) != len(config.parsed):
        raise DataError(f"{len(config.parsed)} views cannot begin from {len(trees)} image models; give one for each")
    out = dict(own)
    for i, (view, tree) in enumerate(zip(config.parsed, trees, strict=True)):
        table = _image_rules(i, view.heads)
        places = {key: value for key, value in own.items() if any(rule.backward(key) is not None for rule in table)}
        out |= convert(_as_view(tree, view, config, i), table, places, what=f"the image model of view {i}")
    return out


def _image_rules(i: int, heads: int) -> list[Rule]:
    theirs, ours = "Transformer/encoderblock_{l}", f"encoder.layers.{{l}}.blocks.{i}"
    released = [
        *attention(f"{theirs}/MultiHeadDotProductAttention_1", f"{ours}.attention", heads),
        *norm(f"{theirs}/LayerNorm_2", f"{ours}.norm2"),
        *mlp(f"{theirs}/MlpBlock_3", f"{ours}.mlp"),
    ]
    dropped = ("Transformer/encoder_norm", "output_projection", "pre_logits", "head")
    return [
        *convolution("embedding", f"tokens.{i}.embed.project", 3),
        Rule("cls", f"tokens.{i}.cls"),
        Rule("Transformer/posembed_input/pos_embedding", f"tokens.{i}.positions"),
        *block(theirs, ours, heads),
        *released,
        *(Rule(f"{name}/{{x:s}}", None) for name in dropped),
    ]


def _as_view(tree: Mapping[str, np.ndarray], view: View, config: MTVConfig, i: int) -> dict[str, np.ndarray]:
    """An image model's arrays with kernel, class token and positions made for a view."""
    steps, rows, columns = config.grid(view)
    out = dict(tree)
    kernel, table = "embedding/kernel", "Transformer/posembed_input/pos_embedding"
    if kernel in out and out[kernel].ndim == 4:
        flat = _zoomed(torch.from_numpy(np.ascontiguousarray(conv(out[kernel]), np.float32)), view.patch)
        if config.channels == 1:
            flat = flat.sum(1, keepdim=True)  # a gray picture is three equal channels
        out[kernel] = inflate(flat, view.tubelet).permute(2, 3, 4, 1, 0).numpy()
    if table in out and out[table].ndim == 3:
        out[table] = _positions(out[table], (rows, columns), config.class_tokens, f"the image model of view {i}")
    if "cls" in out:
        out["cls"] = np.repeat(out["cls"].reshape(1, 1, 1, -1), steps, 1)
        if not config.class_tokens:
            del out["cls"]
    return out


def _positions(table: np.ndarray, grid: tuple[int, int], class_tokens: int, what: str) -> np.ndarray:
    """(1, N, D) of a square picture, with or without a class position, for a grid, with or without one."""
    count = table.shape[1]
    side = int(count**0.5)
    if count - side * side not in (0, 1):
        raise DataError(f"{what} has {count} positions, which are no square with or without a class; give an image ViT")
    zoomed_table = resize_grid(torch.from_numpy(np.ascontiguousarray(table, np.float32)), (side, side), grid)
    spare = zoomed_table.shape[1] - grid[0] * grid[1]
    if spare < class_tokens:
        zoomed_table = torch.cat([torch.zeros_like(zoomed_table[:, :1]), zoomed_table], 1)
    return zoomed_table[:, spare if spare > class_tokens else 0 :].numpy()


def _zoomed(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """A patch kernel (D, C, [t,] h, w) at another size: linear, corners on corners."""
    if tuple(kernel.shape[2:]) == tuple(size):
        return kernel
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return interpolate(kernel, tuple(size), mode=mode, align_corners=True)


def from_mtv(model: MTV, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``model`` begun from an MTV of the same views at another length, size, tubelet or head.

    Class tokens, the global encoder's positions and bottlenecks are zoomed in time, views' positions in space, kernels
    in both; a head of other classes keeps its first values. Raises DataError naming what else differs.
    """
    own = model.state_dict()
    grids = {f"tokens.{i}.positions": model.config.grid(view)[1:] for i, view in enumerate(model.config.parsed)}
    out = {}
    for key in sorted(own.keys() | weights.keys()):
        if key in ("head.weight", "head.bias") and (key not in weights or _differ(own, weights, key)):
            if key in own:
                out[key] = own[key]
            continue
        if key not in own or key not in weights:
            what = "lacks" if key in own else "has"
            raise DataError(f"the model to begin from {what} {key}; begin from one with the same views and fusion")
        out[key] = weights[key]
        if _differ(own, weights, key):
            out[key] = _fitted(weights[key], own[key], key, grids.get(key), model.config.class_tokens)
    return out


def _differ(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], key: str) -> bool:
    return key not in own or own[key].shape != weights[key].shape


def _fitted(source: Tensor, target: Tensor, key: str, grid: tuple[int, int] | None, spare: int) -> Tensor:
    """``source`` zoomed to the shape of ``target``, where its axes are time or space; ``spare`` class positions."""
    if source.ndim == target.ndim and source.shape[-1] == target.shape[-1] and grid is not None:
        moved = torch.from_numpy(_positions(source.numpy(), grid, spare, key))
    elif key == "global_encoder.positions" and source.shape[-1] == target.shape[-1]:
        moved = resize_time(source, source.shape[1] - spare, target.shape[1] - spare)
    elif key.endswith(".cls") or key == "encoder.bottleneck":  # (1, T_i, n, D)
        moved = resize_time(source.flatten(2), source.shape[1], target.shape[1]).unflatten(2, source.shape[2:])
    elif key.endswith("embed.project.weight"):
        moved = _zoomed(source, target.shape[2:])
    else:
        moved = source
    if moved.shape != target.shape:
        raise DataError(
            f"{key} of the model to begin from is {tuple(source.shape)}, here it is {tuple(target.shape)}; "
            "begin from one with the same views and fusion"
        )
    return moved
