"""Learning rates that fall from the head to the first layer, for models that start from a long pre-training.

Clark et al., "ELECTRA" (ICLR 2020), as AV-MAE is fine-tuned: the factor of block i of L is ``decay ** (L - i)``, that
of patch embeddings, positions and class tokens ``decay ** (L + 1)``, and that of all else, the last norm, bottlenecks
and the head, is 1.
"""

import re
from typing import Any

from torch import nn

from encoders.errors import ConfigError

__all__ = ["layer_of", "with_head_lr", "with_layer_decay"]

BLOCK = re.compile(r"(?:^|\.)blocks\.(?:[a-z_]+\.)?(\d+)\.")  # encoder.blocks.3.norm1, encoder.blocks.video.3.norm1
FIRST = re.compile(r"(?:^|\.)(?:tokens|tokenizers|embed|positions|places|cls)(?:\.|$)")


def layer_of(name: str, depth: int) -> int:
    """0 for what makes tokens, i + 1 for block i, ``depth + 1`` for all else."""
    block = BLOCK.search(name)
    if block:
        return int(block[1]) + 1
    return 0 if FIRST.search(name) else depth + 1


def with_layer_decay(groups: list[dict[str, Any]], model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Optimizer groups split by layer, each with its ``scale`` on the learning rate, which the loop heeds.

    Raises ConfigError on a model without numbered blocks.
    """
    if decay == 1:
        return groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = [int(block[1]) for name in names.values() if (block := BLOCK.search(name))]
    if not found:
        raise ConfigError(f"layer_decay {decay} needs a model of numbered blocks, which this is not; use 1")
    depth = max(found) + 1
    split: list[dict[str, Any]] = []
    for group in groups:
        by_layer: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_layer.setdefault(layer_of(names[id(parameter)], depth), []).append(parameter)
        split += [{**group, "params": by_layer[i], "scale": decay ** (depth + 1 - i)} for i in sorted(by_layer)]
    return split


def with_head_lr(groups: list[dict[str, Any]], model: nn.Module, head: set[str], factor: float) -> list[dict[str, Any]]:
    """The same groups, the parameters called ``head`` apart, with ``factor`` on their learning rate (CAV-MAE)."""
    mine = {id(p) for name, p in model.named_parameters() if name in head}
    split: list[dict[str, Any]] = []
    for group in groups:
        for of_head, scale in ((False, 1.0), (True, factor)):
            chosen = [p for p in group["params"] if (id(p) in mine) == of_head]
            if chosen:
                split.append({**group, "params": chosen, "scale": group.get("scale", 1.0) * scale})
    return split
