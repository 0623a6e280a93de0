"""Class-balanced sampling: rare classes are read as often as common ones.

As AST trains on AudioSet: a sample's weight is the sum, over its labels, of one over how many samples have the label,
and an epoch is as many draws with replacement as there are samples.

Shapes: N sample, K class.
"""

import numpy as np
from jaxtyping import Float, Int

from encoders.errors import DataError

__all__ = ["balanced_weights", "drawn_order"]


def balanced_weights(targets: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """How likely each sample is drawn; ``targets`` is 1 where a label applies. A sample without labels never is."""
    known = targets > 0
    weights: np.ndarray = (known / np.maximum(known.sum(0), 1)).sum(1)
    if not weights.any():
        raise DataError(f"none of {len(targets)} samples has a label to balance by; use sampling uniform")
    return weights / weights.sum()


def drawn_order(seed: int, epoch: int, weights: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Which sample comes when in an epoch, drawn with replacement; a pure function, so it can be resumed."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    return random.choice(len(weights), len(weights), p=weights)
