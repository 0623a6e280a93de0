"""TokenLearner against its paper and public code: parameters, cost, golden vectors, closed forms, what may see what."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, DataError
from encoders.settings import from_dict, to_dict
from encoders.video.token_learner import (
    PRESETS,
    TokenFuser,
    TokenLearner,
    TokenLearnerConfig,
    TokenLearnerV1,
    TokenLearnerV11,
)
from encoders.weights.rules import convert, invert
from encoders.weights.token_learner import rules
from tests.flax_fill import channels_first, fill, wave
from tests.macs import macs, on_meta, parameters

TINY = TokenLearnerConfig(
    size=32, tubelet=(1, 8, 8), dim=8, depth=3, heads=2, mlp_dim=16, tokens=3, at=1, classes=3
)  # 16 patches
CLIP = replace(TINY, frames=4, size=16, tubelet=(2, 8, 8))  # 2 temporal indices of 4 patches


# --- the published numbers; golden logits computed with the public code of google-research/scenic ---

# preset, changes, parameters, GFLOPs (one multiply-add each, elementwise work included: up to 1 % above products alone)
TABLE = [
    ("b_16_full", {}, 86_566_120, 17.54),
    ("b_16", {}, 86_617_912, 13.54),
    ("b_16_v1", {}, 86_685_160, 13.55),
    ("b_16_half", {}, 86_617_392, 9.18),
    ("b_16_half", {"learner": "v1"}, 86_624_680, 9.18),
    ("b_16_fuser", {}, 86_886_904, 13.60),
    ("s_32_full", {}, 22_914_664, 3.44),
    ("b_32_full", {}, 88_295_656, 13.00),
    ("l_16_full", {}, 305_172_456, 363.1),  # slide: 363.1
    ("l_16", {}, 305_328_872, 184.56),  # slide: 178.1, which the public code does not give
    ("l_16_24_11", {}, 443_887_336, 186.8),  # slide: 186.8
    ("l_14_24_11", {}, 443_981_544, 361.6),  # slide: 361.6
]
MORE = [  # slow: half a second each, and close relatives of those above
    ("l_16", {"learner": "v1.1"}, 305_241_144, 184.48),
    ("l_16_24_11", {"learner": "v1.1"}, 443_799_608, 186.70),
    ("l_14_24_11", {"learner": "v1.1"}, 443_893_816, 361.44),
    ("l_10_24_11", {"learner": "v1.1"}, 444_935_224, 848.2),
    ("l_8_24_11", {"learner": "v1.1"}, 446_355_512, 1562.6),
]
ROWS = [*TABLE, *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE)]


@pytest.mark.parametrize(("name", "changes", "count", "gflops"), ROWS)
def test_parameters_are_the_paper_s_and_cost_is_within_a_percent(name, changes, count, gflops):
    config = replace(PRESETS[f"token_learner_{name}"], classes=1000, **changes)
    model = on_meta(lambda: TokenLearner(config))
    assert parameters(model) == count
    assert macs(model, (1, 3, config.size, config.size)) / 1e9 == pytest.approx(gflops, rel=0.01)


GOLDEN = [
    (TINY, 4302, (-0.171642, -0.202531, -0.138167)),
    (replace(TINY, learner="v1"), 3990, (-0.046100, -0.102072, -0.110039)),
    (replace(TINY, fuse=True), 6751, (0.137022, 0.046007, -0.066646)),
    (replace(TINY, learner="v1", fuse=True), 6127, (0.048597, -0.025771, -0.088019)),
    (CLIP, 5774, (-0.045415, -0.100296, -0.108007)),
]


@pytest.mark.parametrize(("config", "count", "logits"), GOLDEN, ids=["v1.1", "v1", "v1.1+fuser", "v1+fuser", "video"])
def test_logits_are_those_of_the_public_code(config, count, logits):
    model = TokenLearner(config).eval()
    fill(model, rules(config))
    shape = (1, 32, 32, 3) if config.frames == 1 else (1, 4, 16, 16, 3)
    assert parameters(model) == count
    with torch.no_grad():
        torch.testing.assert_close(model(channels_first(wave(shape)))[0], torch.tensor(logits), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in PRESETS if "tiny" in n] + ["token_learner_b_16_fuser"])
def test_weights_go_to_the_public_names_and_back(name):
    config = replace(PRESETS[name], dim=12, heads=2, mlp_dim=8, representation=4, classes=5, tokens=3)
    config = replace(config, size=64, frames=min(config.frames, 2), tubelet=(1, 16, 16))
    own = TokenLearner(config).state_dict()
    tree = invert(own, rules(config))
    assert len(tree) == len(own)
    back = convert(tree, rules(config), own, what="the tree")
    assert all(torch.equal(back[key], own[key]) for key in own)
    assert {"embedding/kernel", "pre_logits/kernel", "output_projection/bias"} <= set(tree)


def test_a_fuser_s_modules_are_numbered_from_the_first_block_that_has_one():
    config = replace(PRESETS["token_learner_b_16_fuser"], dim=8, heads=2, mlp_dim=8, size=64, depth=3, at=1)
    names = set(invert(TokenLearner(config).state_dict(), rules(config)))
    assert "Transformer/TokenLearnerModuleV11_1/token_masking/Dense_0/kernel" in names
    assert "Transformer/TokenFuser_1/fuser_mix_norm2/scale" in names
    assert not [name for name in names if "_2/fuser" in name or "V11_2/" in name]


# --- closed forms ---


def test_equal_scores_average_the_tokens():
    module, x = TokenLearnerV11(6, 3), torch.randn(2, 10, 6)
    torch.nn.init.zeros_(module.mlp.second.weight)
    torch.nn.init.zeros_(module.mlp.second.bias)
    torch.testing.assert_close(module(x), x.mean(1, keepdim=True).expand(2, 3, 6))


@pytest.mark.parametrize(("pool", "factor"), [("sum", 6.0), ("mean", 0.5)])
def test_maps_of_a_half_pool_half_of_the_tokens(pool, factor):
    module, x = TokenLearnerV1(6, 2, (3, 4), pool), torch.randn(2, 12, 6)
    for conv in module.convs:
        torch.nn.init.zeros_(conv.weight)
    torch.testing.assert_close(module(x), factor * x.mean(1, keepdim=True).expand(2, 2, 6))


def test_maps_are_weights():
    x = torch.randn(2, 12, 6)
    v11, v1 = TokenLearnerV11(6, 2).maps(x), TokenLearnerV1(6, 2, (3, 4)).maps(x)
    torch.testing.assert_close(v11.sum(-1), torch.ones(2, 2))
    assert ((v1 > 0) & (v1 < 1)).all()


def test_weights_come_from_normed_tokens_but_pool_raw_ones():
    """Twice the input has the same maps, to the norm's epsilon, and twice the tokens."""
    x = torch.randn(2, 12, 6)
    for module in (TokenLearnerV11(6, 2), TokenLearnerV1(6, 2, (3, 4))):
        torch.testing.assert_close(module.maps(2 * x), module.maps(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module(2 * x), 2 * module(x), atol=1e-4, rtol=1e-4)


def test_version_1_sees_neighbours_and_version_1_1_does_not():
    x = torch.randn(1, 12, 6)
    other = x.clone()
    other[:, 0] = 5.0 + torch.arange(6)
    convolved, alone = TokenLearnerV1(6, 2, (3, 4)), TokenLearnerV11(6, 2)
    assert not torch.equal(convolved.maps(x)[..., 1], convolved.maps(other)[..., 1])
    scores = (alone.mlp(alone.norm(y))[:, 1:] for y in (x, other))
    assert torch.equal(*scores)


def test_a_fuser_begins_as_nothing():
    fuser = TokenFuser(6, 3)
    assert torch.equal(fuser(torch.randn(2, 3, 6), torch.randn(2, 10, 6)), torch.zeros(2, 10, 6))
    model = TokenLearner(replace(TINY, fuse=True)).eval()
    x = torch.randn(2, 3, 32, 32)
    plain = TokenLearner(replace(TINY, learner="none", depth=1)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    torch.testing.assert_close(model.tokens(x), plain.tokens(x))  # only block 0 works on the grid


# --- placement ---


@pytest.mark.parametrize(("changes", "count"), [({}, 6), ({"fuse": True}, 8), ({"learner": "none"}, 8), ({"at": 0}, 6)])
def test_tokens_that_are_left(changes, count):
    model = TokenLearner(replace(CLIP, **changes)).eval()
    assert model.tokens(torch.randn(2, 3, 4, 16, 16)).shape == (2, count, 8)


def test_each_temporal_index_learns_its_own_tokens_with_the_same_weights():
    """Without the blocks' attention nothing crosses time; equal pictures give equal tokens."""
    model = TokenLearner(replace(CLIP, at=0)).eval()
    seen = []
    model.learners[0].register_forward_hook(lambda _, __, out: seen.append(out))
    torch.nn.init.zeros_(model.positions)
    clip = torch.randn(1, 3, 2, 16, 16)
    model(torch.cat([clip, clip], 2))
    model(torch.cat([clip, clip + 1], 2))
    same, other = seen
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], other[0])
    assert not torch.equal(other[0], other[1])


def test_learned_tokens_attend_to_other_times():
    model = TokenLearner(replace(CLIP, depth=2, at=1)).eval()
    video = torch.randn(1, 3, 4, 16, 16, requires_grad=True)
    (model.tokens(video)[0, 0] ** 2).sum().backward()  # a learned token of the first index
    assert video.grad is not None
    assert video.grad[:, :, 2:].abs().sum() > 0


def test_a_model_without_learner_is_its_twin_to_the_block_where_tokens_are_learned():
    twin, model = (TokenLearner(PRESETS[f"token_learner_tiny{suffix}"]).eval() for suffix in ("_full", ""))
    shared = {k: v for k, v in model.state_dict().items() if k in twin.state_dict()}
    assert shared.keys() == twin.state_dict().keys()


def test_eight_tokens_cost_less_than_three_fifths_of_all_of_them():
    costs = [
        macs(on_meta(lambda name=name: TokenLearner(PRESETS[name])), (1, 3, 10, 64, 64))
        for name in ("token_learner_tiny", "token_learner_tiny_full")
    ]
    assert costs[0] / costs[1] < 0.6


@pytest.mark.parametrize("learner", ["v1", "v1.1"])
@pytest.mark.parametrize("fuse", [False, True])
def test_every_parameter_learns(learner, fuse):
    torch.manual_seed(0)
    model = TokenLearner(replace(CLIP, learner=learner, fuse=fuse, representation=4, stochastic_depth=0.1, dropout=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    video, labels = torch.randn(8, 3, 4, 16, 16), torch.arange(8) % 3
    for _ in range(3):  # head and fusers start at zero, so that the first steps reach them alone
        loss = torch.nn.functional.cross_entropy(model(video), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = TokenLearner(replace(CLIP, depth=2, dim=16, classes=4))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    video, labels = torch.randn(8, 3, 4, 16, 16), torch.arange(8) % 4
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(video), labels)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


# --- as an encoder ---


def test_a_tiny_one_serves_clips_of_ten_frames():
    encoder = TokenLearner(PRESETS["token_learner_tiny"]).eval()
    assert encoder.spec == VideoSpec(frames=10, size=64, pixel_format="rgb24", crop_share=0.625)
    assert (encoder.clip_seconds, encoder.dim, encoder.modalities) == (Fraction(2, 5), 96, ("video",))
    clips = torch.randint(0, 256, (2, 10, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert encoder.encode(clips).shape == (2, 96)
        assert torch.equal(encoder.encode(clips), encoder(clips.movedim(-1, 1) / 127.5 - 1))  # it has no head


def test_gray_clips_and_faces_are_a_matter_of_the_config():
    config = replace(PRESETS["token_learner_tiny"], channels=1, region="face")
    encoder = TokenLearner(config).eval()
    assert (encoder.spec.pixel_format, encoder.spec.region) == ("gray", "face")
    gray = torch.randint(0, 256, (1, 10, 64, 64), dtype=torch.uint8)
    assert encoder.encode(gray).shape == (1, 96)
    colour = encoder.prepare(gray[..., None].expand(1, 10, 64, 64, 3))
    torch.testing.assert_close(colour, encoder.prepare(gray))
    repeated = TokenLearner(PRESETS["token_learner_tiny"]).prepare(gray)
    assert torch.equal(repeated, encoder.prepare(gray).expand(1, 3, 10, 64, 64))


def test_a_head_changes_no_feature():
    torch.manual_seed(0)
    bare = TokenLearner(PRESETS["token_learner_tiny"]).eval()
    headed = TokenLearner(replace(bare.config, classes=10, head_bias=-10.0)).eval()
    headed.load_state_dict(bare.state_dict(), strict=False)
    clips = torch.randint(0, 256, (1, 10, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(bare.encode(clips), headed.encode(clips))
        assert torch.equal(headed(headed.prepare(clips)), torch.full((1, 10), -10.0))  # zero-initialised


def test_every_preset_is_read_back():
    assert all(from_dict(TokenLearnerConfig, to_dict(config)) == config for config in PRESETS.values())


# --- what it refuses ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 66}, "66 rows cannot be cut into patches of 8; use 64 or 72"),
        ({"frames": 9}, "9 frames cannot be cut into patches of 2; use 8 or 10"),
        ({"at": 4}, r"before block 4 of 4 \(counted from 0\); use at from 0 to 3, or learner none"),
        ({"at": -1}, "before block -1 of 4"),
        ({"tokens": 65}, "tokens 65 cannot be learned from 64 patches; use 1 to 64"),
        ({"tokens": 0}, "tokens 0 cannot be learned"),
        ({"learner": "v2"}, "learner 'v2' is unknown; use one of v1, v1.1, none"),
        ({"pool": "max"}, "pool 'max' is unknown; use one of sum, mean"),
        ({"channels": 2}, "channels 2 are neither gray nor RGB; use 1 or 3"),
        ({"learner": "none", "fuse": True}, "fuse lays learned tokens back but learner is 'none'"),
        ({"classes": -1}, "classes -1 must be at least 0"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"heads": 5}, "heads 5 do not divide dim 96; use a divisor"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth 1.0 must lie in \[0, 1\)"),
        ({"clip_seconds": Fraction(0)}, "clip_seconds 0 must be > 0"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TokenLearner(replace(PRESETS["token_learner_tiny"], **changes))


def test_another_clip_than_the_model_was_built_for_is_refused():
    model = TokenLearner(CLIP)
    with pytest.raises(DataError, match=r"\(3, 2, 16, 16\) does not fit a model of \(3, 4, 16, 16\)"):
        model(torch.randn(1, 3, 2, 16, 16))
