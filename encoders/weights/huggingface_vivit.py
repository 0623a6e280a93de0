"""ViViT's parameter names in `transformers`: VivitModel and VivitForVideoClassification (joint space-time attention).

The blocks were renamed between versions 4 and 5 of that package; either is read, with or without the ``vivit.`` that
the classifier puts before the model's names. The pooler after the model (a Dense with tanh that ViViT does not have)
is left out. Kernels lie as ours do.
"""

from encoders.errors import UsageError
from encoders.video.vivit import ViViTConfig
from encoders.weights.huggingface import BLOCK, LAYERS
from encoders.weights.rules import Rule

__all__ = ["rules"]


def rules(config: ViViTConfig) -> list[Rule]:
    """Names of either version to those of `ViViT`; raises UsageError where the encoder is not the joint one."""
    if config.attention != "joint" or config.pool != "token" or config.sampled:
        raise UsageError(
            "transformers has ViViT only with tubelets, joint attention and a class token, not attention "
            f"{config.attention}, pool {config.pool}, sampled {config.sampled}; name a preset such as vivit_b_16x2"
        )
    table = [Rule(f"{prefix}pooler.dense.{{part:s}}", None) for prefix in ("vivit.", "")]
    for prefix in ("vivit.", ""):
        table += [
            Rule(f"{prefix}embeddings.cls_token", "transformer.cls"),
            Rule(f"{prefix}embeddings.position_embeddings", "transformer.positions"),
            *_both(f"{prefix}embeddings.patch_embeddings.projection", "embed.project"),
            *_both(f"{prefix}layernorm", "transformer.encoder.norm"),
        ]
        for version, layer in enumerate(LAYERS):
            for ours, theirs in BLOCK.items():
                table += _both(f"{prefix}{layer}.{theirs[version]}", f"transformer.encoder.blocks.{{i}}.{ours}")
    return table + (_both("classifier", "head") if config.classes else [])


def _both(prefix: str, target: str) -> list[Rule]:
    return [Rule(f"{prefix}.{part}", f"{target}.{part}") for part in ("weight", "bias")]
