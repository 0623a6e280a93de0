"""ViViT's parameters as the public JAX code (google-research/scenic, projects/vivit) names them."""

from encoders.video.vivit import ViViTConfig
from encoders.weights.rules import Rule, attention, block, convolution, linear, mlp, norm

__all__ = ["rules"]


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
