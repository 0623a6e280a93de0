"""TokenLearner's parameter names in the public Flax code (google-research/scenic, projects/token_learner).

No checkpoint was released; the layout is that of models trained with the public code.
"""

from encoders.video.token_learner import TokenLearnerConfig
from encoders.weights.rules import Rule, block, convolution, linear, mlp, norm

__all__ = ["rules"]


def rules(config: TokenLearnerConfig) -> list[Rule]:
    """Flax names to those of `TokenLearner`; modules that Flax numbers by itself count from block ``at`` on."""
    table = [
        *convolution("embedding", "embed.project", 2 if config.frames == 1 else 3),
        Rule("Transformer/posembed_input/pos_embedding", "positions"),
        *block("Transformer/encoderblock_{i}", "encoder.blocks.{i}", config.heads),
        *norm("Transformer/encoder_norm", "encoder.norm"),
        *_learner(config),
    ]
    if config.fuse:
        table += _fuser("Transformer/TokenFuser_{i}", "fusers.{i}")
    if config.representation:
        table += linear("pre_logits", "pre_logits")
    if config.classes:
        table += linear("output_projection", "head")
    return table


def _learner(config: TokenLearnerConfig) -> list[Rule]:
    if config.learner == "none":
        return []
    if config.learner == "v1.1":
        prefix = "Transformer/TokenLearnerModuleV11_{i}"
        return [
            *norm(f"{prefix}/LayerNorm_0", "learners.{i}.norm"),
            *mlp(f"{prefix}/token_masking", "learners.{i}.mlp"),
        ]
    prefix = "Transformer/TokenLearnerModule_{i}"
    return [
        *norm(f"{prefix}/LayerNorm_0", "learners.{i}.norm"),
        *convolution(f"{prefix}/Conv_{{j}}", "learners.{i}.convs.{j}", bias=False),
    ]


def _fuser(prefix: str, target: str) -> list[Rule]:
    return [
        *norm(f"{prefix}/fuser_mix_norm1", f"{target}.norm1"),
        *linear(f"{prefix}/Dense_0", f"{target}.mix"),
        *norm(f"{prefix}/fuser_mix_norm2", f"{target}.norm2"),
        *norm(f"{prefix}/LayerNorm_0", f"{target}.norm_grid"),
        *mlp(f"{prefix}/token_masking", f"{target}.mlp"),
    ]
