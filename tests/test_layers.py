"""The layers that transformers share: attention, blocks, patches and tubelets, positions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import gelu, layer_norm

from encoders.errors import ConfigError, DataError
from encoders.layers.attention import Attention
from encoders.layers.block import Block, DropPath, Encoder, Mlp, ramp
from encoders.layers.embed import PatchEmbed, TubeletEmbed, check_divides, inflate, uniform_frames
from encoders.layers.initial import lecun_normal_
from encoders.layers.positions import learned, resize_grid, resize_tile, resize_time, tile_grid
from tests.macs import macs, on_meta, parameters


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def close(a: torch.Tensor, b: torch.Tensor, within: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= within)


# --- attention --------------------------------------------------------------------------------------------------


def by_hand(layer: Attention, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Attention written out: softmax of scaled products, head by head."""
    out = []
    for q, k, v in zip(*(p.chunk(layer.heads, -1) for p in _linears(layer, x, context)), strict=True):
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        out.append(weights @ v)
    return layer.out(torch.cat(out, -1))


def _linears(layer: Attention, x: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor]:
    return [layer.query(x), layer.key(context), layer.value(context)]


def test_attention_is_the_softmax_of_scaled_products():
    layer, x = Attention(12, 3), torch.randn(2, 5, 12)
    assert close(layer(x), by_hand(layer, x, x))


def test_attention_to_another_sequence_of_another_width():
    layer, x, context = Attention(12, 3, context_dim=7, inner=6), torch.randn(2, 5, 12), torch.randn(2, 4, 7)
    assert close(layer(x, context), by_hand(layer, x, context))
    assert layer.key.weight.shape == (6, 7)


def test_presence_is_as_good_as_dropping_the_tokens():
    layer, x, context = Attention(8, 2), torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    presence = torch.rand(3, 6) < 0.5
    presence[:, 0] = True
    masked = layer(x, context, presence)
    for row in range(3):
        assert close(masked[row : row + 1], layer(x[row : row + 1], context[row : row + 1, presence[row]]))


def test_what_is_absent_may_hold_anything():
    layer, x = Attention(8, 2), torch.randn(1, 4, 8)
    presence = torch.tensor([[True, True, False, True]])
    changed = x.clone()
    changed[:, 2] = 1e6
    assert close(layer(x, x, presence), layer(x, changed, presence))


def test_with_nothing_present_only_the_bias_is_left():
    layer, x = Attention(8, 2), torch.randn(2, 3, 8)
    nn.init.normal_(layer.out.bias)
    y = layer(x, presence=torch.zeros(2, 3, dtype=torch.bool))
    assert close(y, layer.out.bias.expand_as(y))
    y.sum().backward()
    assert torch.isfinite(layer.query.weight.grad).all()


def test_rows_of_a_batch_do_not_meet():
    layer, x = Attention(8, 2), torch.randn(3, 4, 8)
    assert close(layer(x)[1:2], layer(x[1:2]))


def test_zero_out_starts_as_nothing_and_still_learns():
    layer, x = Attention(8, 2, zero_out=True), torch.randn(1, 3, 8)
    y = layer(x)
    assert not y.any()
    y.square().sum().backward()
    (layer(x) - 1).square().sum().backward()
    assert layer.out.weight.grad.any()


def test_lecun_has_the_variance_of_one_over_the_fan_in():
    weight = Attention(256, 4, init="lecun").query.weight.detach()
    assert weight.std() == pytest.approx(1 / 16, rel=0.05)
    assert weight.abs().max() <= 2 / 16 / 0.8796 + 1e-6
    assert lecun_normal_(torch.empty(512, 3, 2, 8, 8)).std() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.02)


def test_projections_come_head_by_head():
    layer, x = Attention(8, 2), torch.randn(2, 5, 8)
    q, k, v = layer.project(x, torch.randn(2, 3, 8))
    assert (q.shape, k.shape, v.shape) == ((2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4))
    assert torch.equal(q[:, 1], layer.query(x)[..., 4:])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dim": 10, "heads": 3}, "3 attention heads cannot share a width of 10; use a divisor of 10"),
        ({"dim": 12, "heads": 3, "inner": 8}, "3 attention heads cannot share a width of 8; use a divisor of 8"),
        ({"dim": 12, "heads": 0}, "0 attention heads cannot share a width of 12; use a divisor of 12"),
        ({"dim": 12, "heads": 3, "init": "he"}, "attention init 'he' is unknown; use 'xavier' or 'lecun'"),
    ],
)
def test_attention_that_cannot_be(settings, sentence):
    with pytest.raises(ConfigError) as error:
        Attention(**settings)
    assert str(error.value) == sentence


# --- blocks -----------------------------------------------------------------------------------------------------


def test_a_block_is_two_normed_residuals():
    block, x = Block(8, 2, 12), torch.randn(2, 3, 8)
    y = x + block.attention(layer_norm(x, (8,), eps=1e-6))
    hidden = gelu(block.mlp.first(layer_norm(y, (8,), eps=1e-6)), approximate="tanh")
    assert close(block(x), y + block.mlp.second(hidden))


def test_a_block_costs_what_the_paper_counts():
    dim, tokens = 64, 10
    block = on_meta(lambda: Block(dim, 4, 4 * dim))
    assert parameters(block) == 12 * dim**2 + 13 * dim
    assert macs(block, (1, tokens, dim)) == 12 * tokens * dim**2 + 2 * tokens * tokens * dim


def test_an_encoder_ends_in_a_norm():
    y = Encoder(2, 8, 2, 16)(torch.randn(2, 3, 8))
    assert close(y.mean(-1), torch.zeros(2, 3))
    assert close(y.var(-1, correction=0), torch.ones(2, 3), 1e-3)


def test_an_encoder_with_presence_is_one_of_the_tokens_that_are_there():
    encoder, x = Encoder(2, 8, 2, 16), torch.randn(1, 5, 8)
    presence = torch.tensor([[True, False, True, True, False]])
    assert close(encoder(x, presence)[:, presence[0]], encoder(x[:, presence[0]]))


def test_stochastic_depth_rises_to_its_last_block():
    assert ramp(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert ramp(0.3, 1) == [0]
    encoder = Encoder(3, 8, 2, 16, drop_path=0.2)
    assert [block.drop_path.prob for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("rescale", [False, True])
def test_a_path_is_dropped_for_an_example_as_a_whole(rescale):
    x = torch.ones(4000, 2, 3)
    y = DropPath(0.25, rescale)(x)
    value = 1 / 0.75 if rescale else 1.0
    assert all(bool((row == row[0, 0]).all()) for row in y[:50])
    assert y.unique().tolist() == pytest.approx([0, value])
    assert (y == 0).float().mean() == pytest.approx(0.25, abs=0.03)


def test_nothing_is_dropped_when_serving():
    block = Block(8, 2, 16, dropout=0.5, attention_dropout=0.5, drop_path=0.9).eval()
    x = torch.randn(2, 3, 8)
    assert torch.equal(block(x), block(x))
    assert DropPath(0.9).eval()(x) is x


def test_dropout_reaches_attention_and_mlp():
    x = torch.randn(2, 6, 8)
    for settings in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        block = Block(8, 2, 16, **settings)
        assert not torch.equal(block(x), block(x))


def test_a_path_always_dropped_is_refused():
    with pytest.raises(ConfigError, match=r"stochastic depth 1\.0 must lie in \[0, 1\); use 0 to drop nothing"):
        DropPath(1.0)


def test_biases_of_the_mlp_start_near_zero():
    mlp = Mlp(64, 256)
    assert 0 < mlp.first.bias.abs().max() < 1e-5
    assert not Attention(64, 4).query.bias.any()


# --- patches and tubelets ---------------------------------------------------------------------------------------


def test_tokens_of_a_picture_are_its_patches_row_by_row():
    embed, x = PatchEmbed((2, 4), 5, channels=1), torch.randn(1, 1, 6, 8)
    y = embed(x)
    assert y.shape == (1, 3, 2, 5)
    patch = x[0, :, 2:4, 4:8].flatten()  # row 1, column 1
    assert close(y[0, 1, 1], embed.project.weight.flatten(1) @ patch + embed.project.bias)


def test_tokens_of_a_clip_are_its_tubelets():
    embed, x = TubeletEmbed((2, 2, 4), 5), torch.randn(1, 3, 4, 6, 8)
    y = embed(x)
    assert y.shape == (1, 2, 3, 2, 5)
    tubelet = x[0, :, 2:4, 0:2, 4:8].flatten()  # step 1, row 0, column 1
    assert close(y[0, 1, 0, 1], embed.project.weight.flatten(1) @ tubelet + embed.project.bias)


def test_what_does_not_divide_is_refused_not_cut():
    with pytest.raises(ConfigError) as error:
        TubeletEmbed((2, 4, 4), 5)(torch.zeros(1, 3, 5, 8, 8))
    assert str(error.value) == "5 frames cannot be cut into patches of 2; use 4 or 6"
    with pytest.raises(ConfigError) as error:
        PatchEmbed((16, 16), 5)(torch.zeros(1, 3, 32, 8))
    assert str(error.value) == "8 columns cannot be cut into patches of 16; use 16"


def test_sizes_are_counted_in_patches():
    assert check_divides((32, 224), (2, 16), ("frames", "rows")) == (16, 14)
    with pytest.raises(ConfigError, match="a patch of 0 rows is none; use at least 1"):
        check_divides((224,), (0,), ("rows",))
    with pytest.raises(ConfigError, match="0 frames cannot be cut into patches of 2; use 2"):
        check_divides((0,), (2,), ("frames",))


def test_frames_are_evenly_spaced_and_ties_go_to_the_even():
    assert uniform_frames(10, 3) == [2, 5, 8]
    assert uniform_frames(4, 3) == [1, 2, 3]
    assert uniform_frames(32, 8) == [4, 7, 11, 14, 18, 21, 25, 28]
    assert uniform_frames(5, 5) == uniform_frames(5, 9) == [0, 1, 2, 3, 4]


@given(total=st.integers(1, 200), wanted=st.integers(1, 200))
def test_as_many_frames_as_were_asked_for(total, wanted):
    chosen = uniform_frames(total, wanted)
    assert len(chosen) == min(total, wanted)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0 and chosen[-1] < total


def test_no_frames_at_all_are_refused():
    with pytest.raises(ConfigError, match="0 of 8 frames cannot be looked at; both must be at least 1"):
        uniform_frames(8, 0)


def test_an_average_kernel_sees_a_still_clip_as_its_picture():
    picture, clip = PatchEmbed((4, 4), 6), TubeletEmbed((3, 4, 4), 6)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        clip.project.weight.copy_(inflate(picture.project.weight, 3, "average"))
        clip.project.bias.copy_(picture.project.bias)
    assert close(clip(x[:, :, None].expand(-1, -1, 3, -1, -1))[:, 0], picture(x))


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_a_central_kernel_looks_at_one_frame(frames, middle):
    kernel = torch.randn(6, 3, 4, 4)
    inflated = inflate(kernel, frames)
    assert torch.equal(inflated[:, :, middle], kernel)
    assert inflated.count_nonzero() == kernel.count_nonzero()


def test_an_unknown_inflation_is_refused():
    with pytest.raises(ConfigError, match="inflation 'mean' is unknown; use 'central' or 'average'"):
        inflate(torch.zeros(1, 1, 1, 1), 2, "mean")


# --- positions --------------------------------------------------------------------------------------------------


def test_a_plane_stays_a_plane_when_zoomed():
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 3), torch.linspace(0, 1, 4), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], -1)[None]
    zoomed = resize_grid(table, (3, 4), (5, 7))
    wanted = torch.meshgrid(torch.linspace(0, 1, 5), torch.linspace(0, 1, 7), indexing="ij")
    assert close(zoomed, torch.stack([w.flatten() for w in wanted], -1)[None])


@pytest.mark.parametrize("new", [(7, 7), (3, 5), (1, 2)])
def test_zoom_is_linear_along_rows_then_columns(new):
    table = torch.randn(1, 16, 3)
    grid = table[0].reshape(4, 4, 3).numpy()
    for axis, size in enumerate(new):
        at = np.linspace(0, 3, size) if size > 1 else [0]
        grid = np.apply_along_axis(lambda line, at=at: np.interp(at, range(4), line), axis, grid)
    assert close(resize_grid(table, (4, 4), new), torch.from_numpy(grid.reshape(1, -1, 3)).float())


def test_the_class_position_stays_first_and_as_it_was():
    table = learned(1 + 4, 3).detach()
    for other in (
        resize_grid(table, (2, 2), (3, 3)),
        resize_time(table, 4, 7),
        tile_grid(table, (2, 2), 3),
        resize_tile(table, (2, 2), (3, 3), 2),
    ):
        assert torch.equal(other[:, 0], table[:, 0])
    assert resize_grid(table, (2, 2), (3, 3)).shape == (1, 10, 3)
    assert resize_tile(table, (2, 2), (3, 3), 2).shape == (1, 19, 3)


def test_every_step_of_a_volume_is_zoomed_by_itself():
    table = torch.randn(1, 1 + 3 * 4, 2)
    zoomed = resize_grid(table, (2, 2), (4, 4), steps=3)
    for step in range(3):
        alone = resize_grid(table[:, 1 + 4 * step : 5 + 4 * step], (2, 2), (4, 4))
        assert torch.equal(zoomed[:, 1 + 16 * step : 17 + 16 * step], alone)


def test_tiles_repeat_the_picture_in_time():
    table = torch.randn(1, 4, 2)
    assert torch.equal(tile_grid(table, (2, 2), 3), torch.cat([table] * 3, 1))


def test_time_is_zoomed_with_both_ends_kept():
    zoomed = resize_time(torch.tensor([[[0.0], [1.0], [4.0]]]), 3, 5)
    assert zoomed.flatten().tolist() == pytest.approx([0, 0.5, 1, 2.5, 4])


def test_a_size_that_stays_changes_nothing():
    table = torch.randn(1, 9, 2)
    assert resize_grid(table, (3, 3), (3, 3)) is table
    assert resize_time(table, 8, 8) is table


def test_a_table_of_another_size_is_refused():
    with pytest.raises(DataError) as error:
        resize_grid(torch.zeros(1, 7, 2), (2, 2), (3, 3))
    assert str(error.value) == (
        "a table of 7 positions is not one of 1x2x2 places (steps, rows, columns), with or without a class position; "
        "name the size it was made for"
    )
