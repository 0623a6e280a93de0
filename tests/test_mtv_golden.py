"""MTV against logits that the public code (google-research/scenic, projects/mtv) gave for weights of one line."""

import pytest
import torch

from encoders.video.mtv import MTV, MTVConfig
from encoders.video.views import View
from encoders.weights.mtv import rules
from tests.flax_fill import channels_first, fill, parameters, wave

SMALL = MTVConfig(
    views=tuple(
        View(width=width, layers=layers, heads=heads, mlp=2 * width, tubelet=tubelet, patch=(8, 8))
        for width, tubelet, heads, layers in ((4, 8, 1, 2), (8, 4, 2, 2), (12, 2, 3, 3))
    ),
    classes=3,
    frames=8,
    size=16,
    fusion_layers=(1, 2),
    bottlenecks=2,
    global_layers=1,
    global_heads=4,
    global_mlp=20,
    global_width=8,
)

# Changes, parameters, logits for the wave of shape (1, 8, 16, 16, 3).
GOLDEN = {
    "cross_query": ({}, 27295, (-0.039863, -0.146942, -0.184911)),
    "cross_key_value": ({"fusion_width": "key_value"}, 27855, (-0.039779, -0.146855, -0.184863)),
    "late_channel": ({"fusion": "late"}, 26271, (-0.039357, -0.146422, -0.184623)),
    "late_time": ({"fusion": "late", "merge": "time"}, 23503, (-0.161766, -0.194690, -0.136048)),
    "bottleneck": ({"fusion": "bottleneck", "fusion_layers": (0, 1)}, 26635, (-0.038617, -0.145663, -0.184201)),
}


def small(**changes):
    return MTV(MTVConfig(**{**SMALL.__dict__, **changes})).eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_the_public_code(name):
    changes, count, logits = GOLDEN[name]
    model = small(**changes)
    fill(model, rules(model.config))
    assert parameters(model) == count
    with torch.no_grad():
        found = model(channels_first(wave((1, 8, 16, 16, 3))))
    torch.testing.assert_close(found, torch.tensor([logits]), atol=2e-6, rtol=0)
