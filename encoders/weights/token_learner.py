"""TokenLearner's parameter names in the public Flax code (google-research/scenic, projects/token_learner); and a
TokenLearner whose trunk starts from a picture's transformer.

No checkpoint was released; the layout is that of models trained with the public code.
"""

import torch

from encoders.errors import DataError
from encoders.video.token_learner import TokenLearner, TokenLearnerConfig
from encoders.weights.image_vit import ImageViT
from encoders.weights.rules import Rule, block, convolution, linear, mlp, norm

__all__ = ["initialise", "rules"]


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


@torch.no_grad()
def initialise(
    model: TokenLearner, image: ImageViT, *, inflation: str = "central", what: str = "the image ViT"
) -> None:
    """Start the trunk from a picture transformer; what learns and fuses tokens, and the head, stay as they were drawn.

    The patch kernel is inflated for clips ("central" or "average"), positions are zoomed to the grid and repeated at
    every temporal index; class token and class position have no counterpart here and are left behind. Raises DataError
    where the sizes of the two differ.
    """
    config = model.config
    for name in ("dim", "depth", "heads", "mlp_dim"):
        if getattr(image, name) != getattr(config, name):
            raise DataError(
                f"{what} has {name} {getattr(image, name)} and the model {getattr(config, name)}; "
                "choose the preset of its size"
            )
    kernel = image.tubelet(config.tubelet, inflation, config.channels)
    u, rows, columns = config.grid
    positions = image.positions_at((rows, columns), u)[1]
    project = model.embed.project
    project.weight.copy_(kernel[:, :, 0] if config.frames == 1 else kernel)
    assert project.bias is not None, "patch convolutions have biases"
    project.bias.copy_(image.bias)
    model.positions.copy_(positions)
    model.encoder.load_state_dict(image.encoder)
