"""ViViT's four encoders: what sees what, what they promise, and what they refuse."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from encoders.errors import ConfigError, DataError, UsageError
from encoders.registry import config_of
from encoders.settings import from_dict, to_dict
from encoders.video.vivit import PRESETS, DotProductAttention, SelfBlock, ViViT, ViViTConfig

SMALL = ViViTConfig(
    dim=8, depth=2, heads=2, mlp_dim=16, temporal_depth=1, tubelet=(2, 4, 4), frames=6, size=8, classes=3
)
KINDS = {
    "joint": SMALL,
    "joint_mean": replace(SMALL, pool="mean"),
    "uniform": replace(SMALL, sampled=3, tubelet=(1, 4, 4)),
    "encoder": replace(SMALL, attention="factorised_encoder"),
    "encoder_mean": replace(SMALL, attention="factorised_encoder", pool="mean"),
    "average": replace(SMALL, attention="factorised_encoder", temporal_depth=0),
    "self": replace(SMALL, attention="factorised_self", pool="mean"),
    "self_space_time": replace(SMALL, attention="factorised_self", pool="mean", order="space_time"),
    "dot": replace(SMALL, attention="factorised_dot", pool="mean"),
}
STEPS, PLACES = 3, 4


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def build(config: ViViTConfig) -> ViViT:
    """A model whose weights are large enough that nothing they do is lost in rounding."""
    model = ViViT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def seen(layer: torch.nn.Module, step: int, place: int) -> Tensor:
    """(U, S) bool: which tokens have a say in the one at ``step`` and ``place`` of the layer's output."""
    x = torch.randn(1, STEPS * PLACES, 8, requires_grad=True)
    layer(x)[0, step * PLACES + place].square().sum().backward()
    assert x.grad is not None
    return (x.grad[0].abs().sum(-1) > 0).view(STEPS, PLACES)


def cross(step: int, place: int) -> Tensor:
    """The tokens of the same step, and those of the same place."""
    sees = torch.zeros(STEPS, PLACES, dtype=torch.bool)
    sees[step], sees[:, place] = True, True
    return sees


# --- what sees what ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "place"), [(0, 0), (1, 3)])
def test_attention_over_time_never_leaves_its_place_nor_that_over_space_its_step(step, place):
    block = build(KINDS["self"]).transformer.encoder.blocks[0]
    time, space = seen(block.over_time, step, place), seen(block.over_space, step, place)
    assert time.nonzero().tolist() == [[u, place] for u in range(STEPS)]
    assert space.nonzero().tolist() == [[step, s] for s in range(PLACES)]


@pytest.mark.parametrize(("step", "place"), [(0, 0), (2, 1)])
def test_factorised_dot_product_sees_its_step_and_its_place_and_no_more(step, place):
    block = build(KINDS["dot"]).transformer.encoder.blocks[0]
    assert torch.equal(seen(block, step, place), cross(step, place))


def test_two_blocks_of_it_see_everything():
    assert seen(build(KINDS["dot"]).transformer.encoder, 1, 2).all()
    assert seen(build(KINDS["self"]).transformer.encoder.blocks[0], 1, 2).all()  # one block does both


def test_the_first_half_of_the_heads_looks_along_time():
    layer = DotProductAttention(8, 2, STEPS)
    with torch.no_grad():
        layer.out.weight[:, :4] = 0  # silences the first head
    assert seen(layer, 1, 2).nonzero().tolist() == [[1, s] for s in range(PLACES)]
    with torch.no_grad():
        layer.out.weight[:, :4] = 1
        layer.out.weight[:, 4:] = 0
    assert seen(layer, 1, 2).nonzero().tolist() == [[u, 2] for u in range(STEPS)]


@torch.no_grad()
def test_factorised_dot_product_is_joint_attention_under_a_mask_for_each_half():
    layer, x = DotProductAttention(8, 4, STEPS), torch.randn(2, STEPS * PLACES, 8)
    step, place = torch.arange(STEPS * PLACES) // PLACES, torch.arange(STEPS * PLACES) % PLACES
    same = torch.stack([place[:, None] == place, step[:, None] == step]).repeat_interleave(2, 0)  # (heads, N, N)
    q, k, v = layer.project(x)
    wanted = layer.out(scaled_dot_product_attention(q, k, v, same).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), wanted)


@torch.no_grad()
@pytest.mark.parametrize("order", ["time_space", "space_time"])
def test_factorised_self_attention_is_two_masked_attentions(order):
    block = SelfBlock(replace(KINDS["self"], order=order), 0.0).eval()
    x = torch.randn(2, STEPS * PLACES, 8)
    step, place = torch.arange(STEPS * PLACES) // PLACES, torch.arange(STEPS * PLACES) % PLACES
    y = x
    for name in order.split("_"):
        norm, attention = getattr(block, f"norm_{name}"), getattr(block, name)
        index = place if name == "time" else step
        q, k, v = attention.project(norm(y))
        masked = scaled_dot_product_attention(q, k, v, index[:, None] == index)
        y = y + attention.out(masked.transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm_mlp(y)))


@torch.no_grad()
def test_with_one_step_attention_over_time_is_the_tokens_own_value():
    block = SelfBlock(replace(KINDS["self"], frames=2), 0.0).eval()
    x = torch.randn(2, PLACES, 8)
    torch.testing.assert_close(block.over_time(x), block.time.out(block.time.value(block.norm_time(x))))


@torch.no_grad()
def test_with_one_step_the_spatial_half_of_a_dot_product_is_joint():
    layer, x = DotProductAttention(8, 2, 1), torch.randn(2, PLACES, 8)
    q, k, v = layer.project(x)
    heads = torch.cat((v[:, :1], scaled_dot_product_attention(q[:, 1:], k[:, 1:], v[:, 1:])), 1)
    torch.testing.assert_close(layer(x), layer.out(heads.transpose(1, 2).flatten(2)))


def test_a_factorised_encoder_looks_at_each_step_by_itself():
    model = build(KINDS["encoder"])
    video = torch.randn(1, 3, 6, 8, 8, requires_grad=True)
    x = model.over_space(model.tokens(video).flatten(0, 1))  # (U, D)
    x[1].square().sum().backward()
    looked_at = video.grad.abs().sum((0, 1, 3, 4)) > 0
    assert looked_at.tolist() == [False, False, True, True, False, False]


@torch.no_grad()
def test_the_average_of_steps_does_not_know_their_order():
    average, encoder = build(KINDS["average"]), build(KINDS["encoder"])
    video = torch.randn(1, 3, 6, 8, 8)
    turned = video.unflatten(2, (3, 2)).flip(2).flatten(2, 3)  # steps in reverse, frames within them not
    torch.testing.assert_close(average(video), average(turned))
    assert (encoder(video) - encoder(turned)).abs().max() > 1e-3


@torch.no_grad()
def test_uniform_sampling_looks_at_its_frames_only():
    model = build(KINDS["uniform"])  # of frames 0..5 it takes 2, 3 and 4
    video = torch.randn(1, 3, 6, 8, 8)
    other = video.clone()
    other[:, :, [0, 1, 5]] = 7
    assert torch.equal(model(video), model(other))
    for frame in (2, 3, 4):
        other = video.clone()
        other[:, :, frame] = 7
        assert not torch.equal(model(video), model(other))


# --- what all of them promise -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_meet(kind):
    model, video = build(KINDS[kind]), torch.randn(3, 3, 6, 8, 8)
    torch.testing.assert_close(model(video)[1:2], model(video[1:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model = build(KINDS[kind]).train()
    model(torch.randn(2, 3, 6, 8, 8)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    keys = [name for name in silent if name.endswith("key.bias")]  # softmax does not see them but for rounding
    assert silent == keys


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_can_be_learned_by_heart(kind):
    model = ViViT(KINDS[kind]).train()
    video, labels = torch.randn(6, 3, 6, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(video), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_starts_without_an_opinion(kind):
    assert not ViViT(KINDS[kind])(torch.randn(1, 3, 6, 8, 8)).any()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_what_the_head_reads(kind):
    model = build(KINDS[kind])
    clips = torch.randint(0, 256, (2, 6, 8, 8, 3), dtype=torch.uint8)
    video = (clips.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
    features = model.encode(clips)
    assert features.shape == (2, model.dim)
    torch.testing.assert_close(model.head(features), model(video))
    headless = ViViT(replace(KINDS[kind], classes=0)).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    assert torch.equal(headless(video), features)


@torch.no_grad()
def test_gray_clips_and_coloured_ones_reach_either_model():
    gray = torch.randint(0, 256, (2, 6, 8, 8), dtype=torch.uint8)
    repeated = gray[..., None].expand(-1, -1, -1, -1, 3).contiguous()
    coloured, plain = build(SMALL), build(replace(SMALL, channels=1))
    assert (coloured.spec.pixel_format, plain.spec.pixel_format) == ("rgb24", "gray")
    assert torch.equal(coloured.encode(gray), coloured.encode(repeated))
    torch.testing.assert_close(plain.encode(gray), plain.encode(repeated))
    assert plain.prepare(gray).shape == (2, 1, 6, 8, 8)
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 1, 1, 2)
    assert plain.prepare(black_and_white).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_and_dropout_are_off_when_serving(kind):
    config = replace(KINDS[kind], stochastic_depth=0.5, dropout=0.3, attention_dropout=0.3)
    model, video = build(config), torch.randn(1, 3, 6, 8, 8)
    assert torch.equal(model(video), model(video))
    model.train()
    assert not torch.equal(model(video), model(video))


def test_stochastic_depth_alone_changes_training_in_every_encoder_and_restarts_over_time():
    for kind in KINDS:
        model, video = build(replace(KINDS[kind], stochastic_depth=0.5)).train(), torch.randn(8, 3, 6, 8, 8)
        assert not torch.equal(model(video), model(video)), kind
    deep = ViViT(replace(KINDS["encoder"], stochastic_depth=0.4, depth=3, temporal_depth=2))
    for part, wanted in ((deep.over_space, [0, 0.2, 0.4]), (deep.over_time, [0, 0.4])):
        assert [block.drop_path.prob for block in part.encoder.blocks] == pytest.approx(wanted)


def test_class_tokens_start_at_zero_and_positions_near_it():
    model = ViViT(SMALL)
    assert not model.transformer.cls.any()
    assert model.transformer.positions.shape == (1, 1 + STEPS * PLACES, 8)
    assert model.transformer.positions.detach().std() == pytest.approx(0.02, rel=0.3)


def test_a_model_of_faces_has_a_feature_for_nobody():
    assert ViViT(SMALL).no_face is None
    assert ViViT(replace(SMALL, region="face")).no_face.shape == (8,)


def test_a_model_in_bf16_stays_near():
    model, video = build(KINDS["self"]), torch.randn(2, 3, 6, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lower = model.features(video)
    torch.testing.assert_close(lower.float(), model.features(video), atol=0.15, rtol=0.1)


# --- presets ----------------------------------------------------------------------------------------------------


def test_the_base_preset_is_the_papers():
    base = PRESETS["vivit_base"]
    assert base == PRESETS["vivit_b_16x2"] == ViViTConfig()
    assert (base.steps, base.places, base.clip_seconds) == (16, 196, Fraction(64, 25))


@pytest.mark.parametrize("name", PRESETS)
def test_configs_are_read_back_as_they_were_written(name):
    assert from_dict(ViViTConfig, to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", [name for name in PRESETS if "tiny" in name])
def test_tiny_presets_look_at_ten_frames_of_a_clip(name):
    spec = ViViT(PRESETS[name]).spec
    assert (spec.frames, spec.size, PRESETS[name].clip_seconds) == (10, 64, Fraction(2, 5))


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"frames": 31}, "31 frames cannot be cut into patches of 2; use 30 or 32"),
        ({"size": 225}, "225 rows cannot be cut into patches of 16; use 224 or 240"),
        ({"size": 8}, "8 rows cannot be cut into patches of 16; use 16"),
        ({"tubelet": (0, 16, 16)}, "a patch of 0 frames is none; use at least 1"),
        ({"tubelet": (2, 16, -1)}, "a patch of -1 columns is none; use at least 1"),
        ({"attention": "axial"}, "attention 'axial' is unknown; use joint, factorised_encoder, factorised_self or "),
        ({"order": "both"}, "order 'both' is unknown; use time_space or space_time"),
        ({"pool": "max"}, "pool 'max' is unknown; use token or mean"),
        ({"region": "mouth"}, "region 'mouth' is unknown; use frame or face"),
        ({"heads": 7}, "heads 7 do not divide dim 768; use a divisor"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"classes": -1}, "classes -1 must be at least 0"),
        ({"temporal_depth": -1}, "temporal_depth -1 must be at least 0"),
        ({"stochastic_depth": 1.0}, "stochastic_depth 1.0 must lie in [0, 1); use 0 to drop nothing"),
        ({"dropout": float("nan")}, "dropout nan must lie in [0, 1); use 0 to drop nothing"),
        ({"channels": 2}, "channels 2 are neither gray nor RGB; use 1 or 3"),
        ({"clip_seconds": Fraction(0)}, "clip_seconds 0 must be > 0 and crop_share 0.875 lie in (0, 1]"),
        ({"crop_share": 1.5}, "clip_seconds 64/25 must be > 0 and crop_share 1.5 lie in (0, 1]"),
        ({"attention": "factorised_self"}, "attention factorised_self has no place for a class token; use pool=mean"),
        (
            {"attention": "factorised_dot", "pool": "mean", "heads": 3},
            "heads 3 cannot be halved into time and space; use an even number",
        ),
        ({"sampled": 8}, "sampled frames are cut one by one, not into tubelets 2 frames long; use tubelet=1,16,16, or"),
        ({"sampled": 33, "tubelet": (1, 16, 16)}, "sampled 33 is more than the 32 frames; use at most 32"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as error:
        ViViTConfig(**changes)
    assert str(error.value).startswith(sentence)


def test_a_clip_of_another_size_is_refused_before_any_compute():
    model = ViViT(SMALL)
    with pytest.raises(DataError) as error:
        model(torch.zeros(1, 3, 8, 8, 8))
    assert str(error.value) == (
        "a clip of 3 channels, 8 frames and 8x8 pixels came to a model of 3 channels, 6 frames and 8x8 pixels; "
        "sample and resize it, or build another model"
    )
    with pytest.raises(DataError, match="a clip of 1 channels, 6 frames and 8x8 pixels came"):
        model(torch.zeros(1, 1, 6, 8, 8))


def test_overrides_are_checked_as_presets_are():
    assert config_of("vivit_tiny_fe", classes=4, tubelet="2,8,8").tubelet == (2, 8, 8)
    with pytest.raises(ConfigError, match="11 frames cannot be cut into patches of 2; use 10 or 12"):
        config_of("vivit_tiny", frames=11)
    with pytest.raises(UsageError, match="setting 'tubelets' is unknown; did you mean tubelet"):
        config_of("vivit_tiny", tubelets="2,8,8")
