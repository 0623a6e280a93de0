"""ViViT against the public JAX code (google-research/scenic): logits on tiny models, and the sizes of the real ones.

Parameters and costs: Arnab et al., "ViViT" (ICCV 2021), tables 2 and 6, and the public configurations; clips are
32x224x224 with 400 classes. Published GFLOPs count one multiplication with its addition, and element-wise work of up
to 1 %, which ours leave out.
"""

import pytest
import torch

from encoders.video.vivit import PRESETS, ViViT, ViViTConfig
from encoders.weights.vivit import rules
from tests.flax_fill import channels_first, fill, parameters, wave
from tests.macs import macs, on_meta

TINY = {"dim": 8, "mlp_dim": 16, "heads": 2, "depth": 2, "classes": 3, "tubelet": (2, 8, 8), "frames": 4, "size": 16}
MEAN = {"pool": "mean"}

GOLDEN = {
    "joint": ({}, 4403, (-0.163773, -0.195889, -0.135875)),
    "self_time_space": ({"attention": "factorised_self", **MEAN}, 4995, (0.163848, 0.067082, -0.061235)),
    "self_space_time": (
        {"attention": "factorised_self", "order": "space_time", **MEAN},
        4995,
        (0.187775, 0.086530, -0.055411),
    ),
    "dot": ({"attention": "factorised_dot", **MEAN}, 4387, (-0.146600, -0.182213, -0.132128)),
    "encoder": ({"attention": "factorised_encoder", "temporal_depth": 1}, 5019, (-0.168149, -0.199666, -0.137278)),
    "uniform": ({"sampled": 3, "tubelet": (1, 8, 8), **MEAN}, 2883, (-0.068380, -0.119658, -0.114659)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_the_public_code(name):
    changes, count, logits = GOLDEN[name]
    config = ViViTConfig(**{**TINY, **changes})
    model = ViViT(config).eval()
    fill(model, rules(config))
    assert parameters(model) == count
    with torch.no_grad():
        out = model(channels_first(wave((1, 4, 16, 16, 3))))
    torch.testing.assert_close(out, torch.tensor([logits]), atol=2e-5, rtol=0)


# preset: parameters with 400 classes, giga-MACs of the public code where known, of products alone where known
SIZES = {
    "vivit_b_16x2": (88_954_000, 455.2, 451.5),
    "vivit_b_16x2_fe": (115_062_928, 284.4, 283.4),
    "vivit_b_16x2_average": (86_696_080, 283.9, 282.9),
    "vivit_b_16x2_fsa": (117_319_312, 372.3, 371.1),
    "vivit_b_16x2_fdp": (88_952_464, 277.1, 276.2),
    "vivit_b_16x4": (88_929_424, 183.5, None),
    "vivit_b_16x8": (90_686_608, 82.1, None),
    "vivit_l_16x2": (307_508_624, 1445.8, None),
    "vivit_l_16x2_320": (310_850_960, 3993.1, None),
    "vivit_l_16x2_fe": (354_903_440, 990.9, None),
    "vivit_l_16x2_fe24": (606_827_920, 995.2, None),
    "vivit_h_14x2": (636_945_040, 3980.9, None),
    "vivit_h_16x2": (636_177_040, 2799.8, None),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_costs_are_the_published_ones(name):
    count, cost, products = SIZES[name]
    config = ViViTConfig(**{**vars(PRESETS[name]), "classes": 400})
    model = on_meta(lambda: ViViT(config))
    assert parameters(model) == count
    found = macs(model, (1, 3, config.frames, config.size, config.size)) / 1e9
    assert found == pytest.approx(cost, rel=0.01)
    if products is not None:
        assert found == pytest.approx(products, rel=1e-3)
