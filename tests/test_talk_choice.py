"""The default bundle serves the arm that validation speakers liked best, whichever that is."""

from dataclasses import replace

import pytest
from torch import nn

from runtime.talk.assemble import Parts
from runtime.talk.fill import SERVED, Trained, chosen
from runtime.talk.recipe import Recipe

MODELS = Trained(imputer=nn.Identity(), tuned_imputer=nn.Identity(), plain=nn.Identity(), drops=nn.Identity(),
                 tuned=nn.Identity())  # fmt: skip


def parts_of(best):
    arms = {name: 0.9 if name == best else 0.8 for name in SERVED}
    return Parts(Recipe(), None, None, MODELS, None, {}, arms)


def test_the_best_is_served_and_of_equals_the_first():
    scores = dict.fromkeys(SERVED, 0.5)
    assert chosen(scores) == "tuned, curri-MAE"
    assert chosen({**scores, "drops, zero": 0.51}) == "drops, zero"


@pytest.mark.parametrize(
    ("best", "heads", "imputer", "ladder"),
    [
        ("tuned, curri-MAE", ["tuned", "plain"], MODELS.tuned_imputer, ["curri_mae", "zero"]),
        ("drops, zero", ["drops", "plain"], MODELS.imputer, ["zero"]),
        ("plain, curri-MAE", ["plain"], MODELS.imputer, ["curri_mae", "zero"]),
        ("plain, lerp", ["plain"], MODELS.imputer, ["lerp", "zero"]),
    ],
)
def test_a_bundle_has_the_heads_and_fills_of_its_arm(best, heads, imputer, ladder):
    parts = parts_of(best)
    assert parts.arm == best
    assert list(parts.heads) == heads
    assert parts.imputer is imputer
    assert parts.ladder == ladder


def test_no_arm_is_served_unheard():
    with pytest.raises(KeyError):
        _ = replace(parts_of("plain, zero"), arms={"plain, zero": 1.0}).arm
