"""AST's parameter names: in its authors' code, and in `transformers` (ASTModel, ASTForAudioClassification).

The public checkpoints (YuanGongND/ast) are pickles, which are not read; saved as safetensors they keep their names,
with ``module.`` before them or without. Queries, keys and values are one matrix there. Two heads of ImageNet that are
never used are left out. `transformers` renamed the blocks between its versions 4 and 5; either is read. Distilled
vision transformers (DeiT), from which AST starts, have the same names but for their prefix; see `ast_start`.
"""

import numpy as np

from encoders.audio.spectrogram_transformer import ASTConfig
from encoders.weights.huggingface import BLOCK, LAYERS
from encoders.weights.rules import Change, Rule

__all__ = ["rules", "trunk"]

OWN_BLOCK = {  # the authors' names, which are timm's
    "norm1": "norm1",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.first": "mlp.fc1",
    "mlp.second": "mlp.fc2",
}
PROJECTIONS = ("query", "key", "value")


def rules(config: ASTConfig) -> list[Rule]:
    """Names of any of the three to those of `AST`."""
    table = trunk(("audio_spectrogram_transformer.", ""), ("module.v.", "v."))
    heads = {
        "head_norm": ("classifier.layernorm", "module.mlp_head.0", "mlp_head.0"),
        "head": ("classifier.dense", "module.mlp_head.1", "mlp_head.1"),
    }
    for ours, names in heads.items():
        for name in names:
            table += _both(name, ours) if config.classes else [Rule(f"{name}.{{part:s}}", None)]
    unused = (f"{prefix}{head}.{{part:s}}" for prefix in ("module.v.", "v.") for head in ("head", "head_dist"))
    return [*table, *(Rule(name, None) for name in unused)]


def trunk(transformers: tuple[str, ...], timm: tuple[str, ...]) -> list[Rule]:
    """Everything before the head, by the prefixes that the names of `transformers` and of timm may have."""
    table: list[Rule] = []
    for prefix in transformers:
        table += [
            Rule(f"{prefix}embeddings.cls_token", "cls"),
            Rule(f"{prefix}embeddings.distillation_token", "distillation"),
            Rule(f"{prefix}embeddings.position_embeddings", "positions"),
            *_both(f"{prefix}embeddings.patch_embeddings.projection", "embed"),
            *_both(f"{prefix}layernorm", "encoder.norm"),
        ]
        for version, layer in enumerate(LAYERS):
            for ours, theirs in BLOCK.items():
                table += _both(f"{prefix}{layer}.{theirs[version]}", f"encoder.blocks.{{i}}.{ours}")
    for prefix in timm:
        table += _timm(prefix)
    return table


def _timm(prefix: str) -> list[Rule]:
    table = [
        Rule(f"{prefix}cls_token", "cls"),
        Rule(f"{prefix}dist_token", "distillation"),
        Rule(f"{prefix}pos_embed", "positions"),
        *_both(f"{prefix}patch_embed.proj", "embed"),
        *_both(f"{prefix}norm", "encoder.norm"),
    ]
    block = f"{prefix}blocks.{{i}}"
    for ours, theirs in OWN_BLOCK.items():
        table += _both(f"{block}.{theirs}", f"encoder.blocks.{{i}}.{ours}")
    for place, name in enumerate(PROJECTIONS):
        table += _both(f"{block}.attn.qkv", f"encoder.blocks.{{i}}.attention.{name}", _third(place))
    return table


def _both(name: str, target: str, change: Change | None = None) -> list[Rule]:
    return [Rule(f"{name}.{part}", f"{target}.{part}", change) for part in ("weight", "bias")]


def _third(place: int) -> Change:
    """Queries, keys or values of the three that lie below each other. One of them does not give back the whole."""

    def refuse(array: np.ndarray) -> np.ndarray:
        raise NotImplementedError("a third of a matrix is not written; use the names of transformers")

    return Change(
        lambda a: np.split(a, 3)[place], refuse, "(3 x width, ...)", lambda s: len(s) > 0 and s[0] % 3 == 0
    )
