"""ViViT's parameters as the public JAX code (google-research/scenic, projects/vivit) names them; and one ViViT from
another, trained on other classes, at another size or on clips of another length."""

from collections.abc import Mapping

from torch import Tensor

from encoders.errors import DataError
from encoders.layers.positions import resize_grid, resize_time, resize_volume
from encoders.video.vivit import ViViT, ViViTConfig
from encoders.weights.rules import Rule, attention, block, convolution, linear, mlp, norm

__all__ = ["rules", "transfer"]

SAME = ("attention", "dim", "depth", "heads", "mlp_dim", "temporal_depth", "tubelet", "channels", "pool")


def rules(config: ViViTConfig) -> list[Rule]:
    """The table of a ViViT of this configuration: Flax paths to our names."""
    table = convolution("embedding", "embed.project", axes=2 if config.sampled else 3)
    if config.classes:
        table += linear("output_projection", "head")
    if config.attention != "factorised_encoder":
        return table + _transformer("Transformer", "transformer", "cls", config)
    table += _transformer("SpatialTransformer", "over_space", "cls_SpatialTransformer", config)
    if config.temporal_depth:
        table += _transformer("TemporalTransformer", "over_time", "cls_TemporalTransformer", config)
    return table


def _transformer(prefix: str, target: str, cls: str, config: ViViTConfig) -> list[Rule]:
    blocks = f"{prefix}/encoderblock_{{i}}", f"{target}.encoder.blocks.{{i}}", config.heads
    return [
        *([Rule(cls, f"{target}.cls")] if config.pool == "token" else []),
        Rule(f"{prefix}/posembed_input/pos_embedding", f"{target}.positions"),
        *(_self_block(*blocks) if config.attention == "factorised_self" else block(*blocks)),
        *norm(f"{prefix}/encoder_norm", f"{target}.encoder.norm"),
    ]


def _self_block(prefix: str, target: str, heads: int) -> list[Rule]:
    """A factorised self-attention block: a norm and an attention for time and for space."""
    return [
        *norm(f"{prefix}/LayerNorm_time", f"{target}.norm_time"),
        *attention(f"{prefix}/MultiHeadDotProductAttention_time", f"{target}.time", heads),
        *norm(f"{prefix}/LayerNorm_space", f"{target}.norm_space"),
        *attention(f"{prefix}/MultiHeadDotProductAttention_space", f"{target}.space", heads),
        *norm(f"{prefix}/LayerNorm_mlp", f"{target}.norm_mlp"),
        *mlp(f"{prefix}/MlpBlock", f"{target}.mlp"),
    ]


def transfer(
    model: ViViT, trained: Mapping[str, Tensor], config: ViViTConfig, *, what: str = "the trained model"
) -> None:
    """Start ``model`` from the state of a ViViT of ``config``, as models for small data start from one of Kinetics.

    Positions are zoomed where the picture's size or the number of steps differs; the head stays as it is. Raises
    DataError where the two are not of one kind and size.
    """
    for name in SAME:
        theirs, ours = getattr(config, name), getattr(model.config, name)
        if theirs != ours and (name != "temporal_depth" or config.attention == "factorised_encoder"):
            raise DataError(f"{what} has {name} {theirs} and the model {ours}; build the model with {name} {theirs}")
    new = {key: value for key, value in trained.items() if not key.startswith("head.")}
    old_volume, volume = (config.steps, *config.grid), (model.config.steps, *model.config.grid)
    resized = {
        "transformer.positions": lambda table: resize_volume(table, old_volume, volume),
        "over_space.positions": lambda table: resize_grid(table, config.grid, model.config.grid),
        "over_time.positions": lambda table: resize_time(table, config.steps, model.config.steps),
    }
    new |= {key: zoom(new[key]) for key, zoom in resized.items() if key in new}
    _check_state(new, model.state_dict(), what)
    model.load_state_dict(new, strict=False)


def _check_state(new: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Every parameter but the head's, each in its shape; a model of faces may start from one of whole pictures."""
    needed = {key for key in own if not key.startswith("head.") and (key != "no_face" or key in new)}
    for key in sorted(needed ^ new.keys()) or sorted(needed):
        if key not in new or key not in own or new[key].shape != own[key].shape:
            raise DataError(f"{what} does not fit at {key}; give the whole state of a ViViT of that configuration")
