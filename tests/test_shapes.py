"""The check of shapes itself: that it sees, and that it stays out of the way."""

import pytest
import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from encoders.heads import build_head
from tests.shapes import check_shapes


@jaxtyped(typechecker=check_shapes)
def product(a: Float[Tensor, "b d"], b: Float[Tensor, "d k"] | None, scale: float) -> Float[Tensor, "b k"]:
    return a if b is None else scale * (a @ b)


def test_right_shapes_pass_and_other_types_are_not_looked_at():
    assert product(torch.ones(2, 3), torch.ones(3, 4), 1).shape == (2, 4)


def test_a_wrong_shape_of_an_argument_or_the_result_is_an_error():
    with pytest.raises(TypeError):
        product(torch.ones(3), None, 1.0)
    with pytest.raises(TypeError):
        product(torch.ones(2, 3).long(), None, 1.0)


def test_letters_mean_one_size_within_a_call():
    with pytest.raises(TypeError):
        product(torch.ones(2, 3), torch.ones(4, 4), 1.0)


def test_the_models_are_watched_while_tests_run():
    head = build_head("linear", classes=2, dim=4)
    with pytest.raises(TypeError, match="features"):
        head(torch.zeros(1, 2, 2))
