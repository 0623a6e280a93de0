"""Features that keep time: one unit vector per step of a clip."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def unit_steps(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b td"]:
    """Every step a vector of length sqrt(d), side by side: the product of two such features is their agreement."""
    return (normalize(x, dim=-1) * x.shape[-1] ** 0.5).flatten(1)
