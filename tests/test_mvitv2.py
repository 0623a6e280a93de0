"""MViTv2: the published sizes and costs, the grids on the way, what it promises and what it refuses."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from encoders.errors import ConfigError, DataError
from encoders.layers.multiscale import MultiscaleConfig, scales
from encoders.layers.pooled_attention import PooledAttention
from encoders.settings import from_dict, to_dict
from encoders.video.mvitv2 import PRESETS, MViTv2, MViTv2Config
from tests.macs import macs, on_meta, parameters

SMALL = MViTv2Config(
    dim=8, depth=3, pooled=(1, 2), strides=((1, 2, 2), (1, 2, 2)), stride_kv=(1, 4, 4), frames=4, size=32, classes=3,
    clip_seconds=Fraction(2, 5),
)  # fmt: skip
PICTURE = replace(
    SMALL, frames=1, pool="mean", strides=((2, 2), (2, 2)), stride_kv=(4, 4), kernel=(3, 3), stem_kernel=(7, 7),
    stem_stride=(4, 4),
)  # fmt: skip
KINDS = {"token": SMALL, "mean": replace(SMALL, pool="mean"), "picture": PICTURE}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def build(config: MViTv2Config) -> MViTv2:
    """A model whose weights are large enough that nothing they do is lost in rounding."""
    model = MViTv2(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def clip_of(config: MViTv2Config, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, config.channels, config.frames, config.size, config.size)


# --- the published numbers: facebookresearch/SlowFast, and table 4 of the paper ----------------------------------

PUBLISHED = {  # preset, its parameters with a head of so many classes; on one clip, in millions: multiply-adds of
    # products and convolutions, and what fvcore counts for layer norms, five for each number that one sees
    "mvitv2_s_16x4": (34_537_744, 400, 64_224, 233),  # 34.5 M, 64 G; together 64.457 G
    "mvitv2_b_32x3": (51_230_128, 400, 224_473, 697),  # 51.2 M, 225 G; 225.170 G
    "mvitv2_b_16x4": (51_193_264, 400, 92_284, 349),  # the picture side of MMT; 92.632 G
    "mvitv2_b_image": (51_472_744, 1000, 10_102, 56),  # 52 M, 10.2 G; 10.159 G
}
RUNS = {"s": (1, 2, 11, 2), "b": (2, 3, 16, 3)}  # blocks that leave each grid
SLOW = ("mvitv2_b_16x4", "mvitv2_b_image")


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PUBLISHED]
)
def test_parameters_costs_and_grids_are_the_published_ones(preset):
    count, classes, products, norms = PUBLISHED[preset]
    config = replace(PRESETS[preset], classes=classes)
    model, normed, grids = on_meta(lambda: MViTv2(config)), [], []
    assert parameters(model) == count
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, given, __: normed.append(given[0].numel()))
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, made: grids.append((*made[1], made[0].shape[-1])))
    assert round(macs(model, (1, 3, config.frames, 224, 224)) / 1e6) == products
    assert round(5 * sum(normed) / 1e6) == norms

    steps = () if config.frames == 1 else (config.frames // 2,)
    runs = RUNS[preset.split("_")[1]]
    wanted = [(side, side, 96 * 2**stage) for stage, side in enumerate((56, 28, 14, 7)) for _ in range(runs[stage])]
    assert grids == [(*steps, *one) for one in wanted]


def test_the_picture_side_of_mmt_without_a_head():
    assert parameters(on_meta(lambda: MViTv2(PRESETS["mvitv2_b_16x4"]))) == 50_885_664


def test_keys_are_pooled_less_as_the_grid_shrinks():
    told = scales(PRESETS["mvitv2_b_32x3"], (16, 56, 56))
    assert [told[i].stride_kv for i in (0, 1, 2, 5, 21, 23)] == [
        (1, 8, 8), (1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1), (1, 1, 1)
    ]  # fmt: skip
    assert [told[i].heads for i in (0, 2, 5, 21)] == [1, 2, 4, 8]
    assert {scale.dim_out // scale.heads for scale in told} == {96}
    assert [i for i, scale in enumerate(told) if scale.stride_q == (1, 2, 2)] == [2, 5, 21]


def test_tables_and_weights_have_their_published_shapes():
    weights = on_meta(lambda: MViTv2(PRESETS["mvitv2_s_16x4"])).state_dict()
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes["blocks.0.attention.distances.1"] == (111, 96)
    assert shapes["blocks.1.attention.distances.1"] == (55, 96)
    assert shapes["blocks.1.attention.distances.0"] == (15, 96)
    assert [shapes[f"blocks.{i}.attention.distances.2"][0] for i in (0, 1, 3, 14, 15)] == [111, 55, 27, 27, 13]
    assert shapes["blocks.1.attention.qkv.weight"] == (576, 96)
    assert shapes["blocks.1.mlp.first.weight"] == (768, 192)
    widening = [name for name in shapes if name.endswith("shortcut.weight")]
    assert widening == [f"blocks.{i}.shortcut.weight" for i in (1, 3, 14)]


# --- what sees what -----------------------------------------------------------------------------------------------


def test_a_first_token_sees_its_patch_and_its_neighbours_pixels():
    model = build(SMALL)
    video = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    tokens, grid = next(iter(model.trace(video)))
    assert grid == (2, 8, 8)
    tokens[0, 1 + 1 * 64 + 2 * 8 + 3].square().sum().backward()  # second step, third row, fourth column
    seen = video.grad.abs().sum((0, 1)) > 0
    frames, rows, columns = (seen.any(tuple({0, 1, 2} - {axis})).nonzero()[:, 0].tolist() for axis in range(3))
    assert (frames, rows, columns) == ([1, 2, 3], list(range(5, 12)), list(range(9, 16)))


def test_every_pixel_has_a_say_after_one_block():
    model = build(replace(SMALL, depth=1, pooled=(), strides=(), pool="mean"))
    video = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    model.features(video).square().sum().backward()
    assert (video.grad.abs().sum((0, 1)) > 0).all()


@torch.no_grad()
def test_time_is_known_by_distances_and_convolutions_alone():
    model = build(SMALL)
    video = clip_of(SMALL)
    steps = video.unflatten(2, (2, 2)).flip(2).flatten(2, 3)
    assert (model(video) - model(steps)).abs().max() > 1e-3
    blind = build(replace(SMALL, kernel=(1, 3, 3), stem_kernel=(1, 7, 7), stem_stride=(1, 4, 4)))
    for module in blind.modules():
        if isinstance(module, PooledAttention):
            module.distances[0].zero_()  # steps apart mean nothing
    torch.testing.assert_close(blind(video), blind(video.flip(2)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_is_carried_past_a_widening_block_is_a_projection_of_normed_tokens():
    block = build(SMALL).blocks[1]
    for part in (block.attention.out, block.mlp.second):
        part.weight.zero_(), part.bias.zero_()
    x = torch.randn(2, 1 + 2 * 8 * 8, 8)
    y, grid = block(x, (2, 8, 8))
    assert grid == (2, 4, 4)
    wanted = block.shortcut(block.norm1(x))
    torch.testing.assert_close(y[:, 0], wanted[:, 0])
    places = wanted[:, 1:].unflatten(1, (2, 8, 8))
    torch.testing.assert_close(y[:, 1:].unflatten(1, grid)[:, 1, 1, 2], places[:, 1, 1:4, 3:6].flatten(1, 2).amax(1))
    again, _ = block(3 * x + 5, (2, 8, 8))
    torch.testing.assert_close(again, y)  # a norm forgets scale and offset


# --- what all of them promise -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_meet(kind):
    model, video = build(KINDS[kind]), clip_of(KINDS[kind], 3)
    torch.testing.assert_close(model(video)[1:2], model(video[1:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model = build(KINDS[kind]).train()
    model(clip_of(KINDS[kind])).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # In the last block only the class token's answer is read, and that asks off the grid.
    last = ["query.conv.weight", *(f"distances.{axis}" for axis in range(3))]
    assert silent == ([f"blocks.2.attention.{name}" for name in last] if kind == "token" else [])


@pytest.mark.parametrize("kind", ["token", "picture"])
def test_one_batch_can_be_learned_by_heart(kind):
    model, video = MViTv2(KINDS[kind]).train(), clip_of(KINDS[kind], 6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(video), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_what_the_head_reads(kind):
    config = KINDS[kind]
    model = build(config)
    clips = torch.randint(0, 256, (2, config.frames, 32, 32, 3), dtype=torch.uint8)
    video = (clips.float() / 255 - 0.45).permute(0, 4, 1, 2, 3) / 0.225
    features = model.encode(clips)
    assert features.shape == (2, model.dim) == (2, 32)
    torch.testing.assert_close(model.head(features), model(video))
    headless = MViTv2(replace(config, classes=0)).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    assert torch.equal(headless(model.prepare(clips)), features)


@torch.no_grad()
def test_gray_clips_and_coloured_ones_reach_either_model():
    gray = torch.randint(0, 256, (2, 4, 32, 32), dtype=torch.uint8)
    repeated = gray[..., None].expand(-1, -1, -1, -1, 3).contiguous()
    coloured, plain = build(SMALL), build(replace(SMALL, channels=1))
    assert torch.equal(coloured.encode(gray), coloured.encode(repeated))
    torch.testing.assert_close(plain.encode(gray), plain.encode(repeated), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_model_of_what_moves_does_not_see_a_scene():
    model = build(replace(SMALL, motion=True))
    clips = torch.randint(80, 120, (1, 4, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model.encode(clips), model.encode(clips + 100), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_clips_of_other_sizes_and_lengths_are_taken():
    model = build(SMALL)
    for size in ((6, 32, 32), (4, 48, 24), (1, 17, 33)):
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_stochastic_depth_and_dropout_are_off_when_serving():
    model, video = build(replace(SMALL, stochastic_depth=0.5, dropout=0.5)), clip_of(SMALL)
    assert torch.equal(model(video), model(video))
    model.train()
    assert not torch.equal(model(video), model(video))
    assert [block.drop_path.prob for block in model.blocks] == pytest.approx([0, 0.25, 0.5])
    assert all(block.drop_path.rescale for block in model.blocks)


def test_first_values_are_the_published_ones():
    model = MViTv2(PRESETS["mvitv2_tiny"])
    std = {name: float(value.detach().std()) for name, value in model.named_parameters()}
    for name in ("cls", "embed.weight", "blocks.1.attention.distances.1", "blocks.2.shortcut.weight"):
        assert std[name] == pytest.approx(0.02, rel=0.5)
    assert (model.norm.bias == 0.02).all() and (model.blocks[0].mlp.first.bias == 0.02).all()
    assert isinstance(model.blocks[0].mlp.activation, torch.nn.GELU)
    assert model.blocks[0].mlp.activation.approximate == "none"


def test_a_model_of_faces_has_a_feature_for_nobody():
    assert MViTv2(SMALL).no_face is None
    assert MViTv2(replace(SMALL, region="face")).no_face.shape == (32,)


def test_a_model_in_bf16_stays_near():
    model, video = build(SMALL), clip_of(SMALL)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        lower = model.features(video)
    torch.testing.assert_close(lower.float(), model.features(video), atol=0.2, rtol=0.1)


# --- presets and what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_configs_are_read_back_as_they_were_written(name):
    assert from_dict(MViTv2Config, to_dict(PRESETS[name])) == PRESETS[name]


def test_the_tiny_preset_looks_at_ten_frames_of_a_clip():
    spec = MViTv2(PRESETS["mvitv2_tiny"]).spec
    assert (spec.frames, spec.size, PRESETS["mvitv2_tiny"].clip_seconds) == (10, 64, Fraction(2, 5))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"classes": -1}, "classes -1 must be at least 0"),
        ({"heads": 7}, "heads 7 do not divide dim 96; use a divisor"),
        ({"pool": "max"}, "pool 'max' is unknown; use token or mean"),
        ({"region": "mouth"}, "region 'mouth' is unknown; use frame or face"),
        ({"channels": 2}, "channels 2 are neither gray nor RGB; use 1 or 3"),
        ({"stochastic_depth": 1.0}, "stochastic_depth 1.0 must lie in [0, 1); use 0 to drop nothing"),
        ({"dropout": float("nan")}, "dropout nan must lie in [0, 1); use 0 to drop nothing"),
        ({"pooled": (2, 5)}, "2 pooled blocks and 3 strides; give each block one stride"),
        ({"pooled": (2, 5, 24)}, "pooled blocks 2,5,24 must rise from 0 to at most 23, each named once"),
        ({"pooled": (5, 2, 21)}, "pooled blocks 5,2,21 must rise from 0 to at most 23, each named once"),
        ({"kernel": (3, 3)}, "kernel 3,3 must be 3 whole numbers, each at least 1"),
        ({"kernel": (3, 2, 3)}, "kernel 3,2,3 has no middle; use odd numbers"),
        ({"stride_kv": (1, 0, 8)}, "stride_kv 1,0,8 must be 3 whole numbers, each at least 1"),
        ({"stem_stride": ()}, "stem_stride  must be 3 whole numbers, each at least 1"),
        ({"size": 16}, "block 0 has a grid of 16x4x4, too small for the stride 8 along axis 1; use a larger input, or"),
        ({"size": 2}, "block 0 has a grid of 16x0x0, too small for the stride 8 along axis 1; use a larger input, or"),
        ({"frames": 0}, "frames 0 must be at least 1"),
        ({"frames": 1}, "stem_kernel 3,7,7 must be 2 whole numbers, each at least 1"),
        ({"clip_seconds": Fraction(0)}, "clip_seconds 0 must be > 0 and crop_share 0.875 lie in (0, 1]"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as error:
        MViTv2Config(**changes)
    assert str(error.value).startswith(sentence)


def test_one_picture_does_not_move():
    with pytest.raises(ConfigError, match="motion true sees nothing in frames 1; use more frames, or motion=false"):
        replace(PICTURE, motion=True)


def test_a_clip_that_is_none_is_refused_before_any_compute():
    for config, shape in ((SMALL, (1, 1, 4, 32, 32)), (SMALL, (1, 3, 32, 32)), (SMALL, (1, 3, 0, 32, 32))):
        with pytest.raises(DataError, match="came to a model of 3 channels and 4 frames; give "):
            MViTv2(config)(torch.zeros(shape))
    with pytest.raises(DataError, match=r"a clip of 3x4x32x32 came to a model of 3 channels and 1 frames; give .* 1, "):
        MViTv2(PICTURE)(torch.zeros(1, 3, 4, 32, 32))


def test_the_defaults_of_the_trunk_are_the_base_model():
    assert PRESETS["mvitv2_base"] == PRESETS["mvitv2_b_32x3"] == MViTv2Config()
    assert MultiscaleConfig().dim_out == 768
