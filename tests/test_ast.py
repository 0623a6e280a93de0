"""AST: its sizes, its tokens, and what another implementation makes of the same weights."""

from fractions import Fraction

import pytest
import torch

from encoders.audio.filterbank import Filterbank
from encoders.audio.spectrogram_transformer import PRESETS, SPECIAL, ASTConfig
from encoders.errors import ConfigError, DataError
from encoders.registry import build
from tests.macs import macs, on_meta, parameters


def tiny(**changes):
    torch.manual_seed(0)
    return build("ast_tiny", **changes).eval()


# Gong, Chung, Glass 2021 and github.com/YuanGongND/ast: 87 M parameters; its module also holds two unused heads
@pytest.mark.parametrize(
    ("preset", "classes", "numbers"),
    [
        ("ast_base_10", 0, 86_187_264),
        ("ast_base_10", 527, 86_594_063),
        ("ast_base_10_esc50", 50, 85_717_248 + 2 * 768 + 769 * 50),
        ("ast_base_10_speech", 35, 85_367_040 + 2 * 768 + 769 * 35),
    ],
)
def test_parameters_are_the_published_ones(preset, classes, numbers):
    assert parameters(on_meta(lambda: build(preset, classes=classes))) == numbers


def test_two_unused_heads_of_imagenet_make_the_number_that_the_public_module_has():
    assert parameters(on_meta(lambda: build("ast_base_10", classes=527))) + 2 * 769 * 1000 == 88_132_063


@pytest.mark.parametrize(("preset", "giga"), [("ast_base_10", 130.51), ("ast_base_16", 48.63)])
def test_multiply_adds_of_ten_seconds(preset, giga):
    model = on_meta(lambda: build(preset, classes=527))
    assert macs(model, (1, 1024, 128)) / 1e9 == pytest.approx(giga, rel=0.001)
    n, d = model.config.tokens + SPECIAL, 768
    closed = 12 * (12 * n * d * d + 2 * n * n * d) + 256 * d * model.config.tokens + d * 527
    assert macs(model, (1, 1024, 128)) == closed


@pytest.mark.parametrize(
    ("stride", "frames", "grid"),
    [(10, 1024, (12, 101)), (10, 512, (12, 50)), (10, 128, (12, 12)), (16, 1024, (8, 64)), (12, 1024, (10, 85))],
)
def test_patches_overlap_and_what_is_left_over_is_not_seen(stride, frames, grid):
    config = ASTConfig(stride=(stride, stride), front=Filterbank(frames=frames))
    assert config.grid == grid and config.tokens == grid[0] * grid[1]


def test_a_token_sees_its_patch_alone_and_time_runs_fastest():
    model = tiny(depth=1)
    x = torch.randn(1, 38, 128, requires_grad=True)
    nf, nt = model.config.grid
    assert (nf, nt) == (12, 3)
    model.tokens(x)[0, SPECIAL + 5 * nt + 2].sum().backward()
    seen = x.grad[0].abs() > 0
    assert seen[20:36, 50:66].all() and seen.sum() == 16 * 16


def test_the_feature_is_the_mean_of_both_special_tokens():
    model = tiny()
    x = torch.randn(2, 38, 128)
    out = model.encoder(model.tokens(x))
    torch.testing.assert_close(model(x), (out[:, 0] + out[:, 1]) / 2)


def test_the_head_has_a_norm_of_its_own_with_pytorchs_epsilon():
    model = tiny(classes=5)
    assert model.head_norm.eps == 1e-5 and model.encoder.norm.eps == 1e-6
    x = torch.randn(2, 38, 128)
    torch.testing.assert_close(model(x), model.head(model.head_norm(model.features(x))))


def test_samples_go_through_the_front():
    model, clip = tiny(), torch.randn(2, 6_400) / 10
    torch.testing.assert_close(model.encode(clip), model(model.front(clip)))
    torch.testing.assert_close(model.encode(clip)[1:], model.encode(clip[1:]))


def test_silence_has_a_finite_feature():
    assert torch.isfinite(tiny().encode(torch.zeros(1, 6_400))).all()


def test_it_learns_one_batch():
    torch.manual_seed(0)
    model, x, y = build("ast_tiny", classes=4, depth=2), torch.randn(4, 38, 128), torch.arange(4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clip_seconds": Fraction(1, 8)}, "a spectrogram of 11 mel frames and 128 bins is smaller than a patch of 16"),
        ({"clip_seconds": Fraction(1, 100)}, "sound of 160 samples is shorter than a mel frame of 400; give at least"),
        ({"patch": (160, 16)}, "is smaller than a patch of 16 frames and 160 bins; raise clip_seconds or front.frames"),
        ({"stride": (0, 10)}, r"stride \(0, 10\) must be at least 1 bin and 1 frame"),
        ({"heads": 3}, "heads 3 do not divide dim 128; use a divisor"),
        ({"clip_seconds": Fraction(-1)}, "clip_seconds -1 must be more than 0, such as 2/5"),
        ({"clip_seconds": Fraction(1, 7)}, "clip seconds 1/7 at 16000 Hz is"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth 1.0 must lie in \[0, 1\)"),
        ({"front.std": 0.0}, "std 0.0 of a filterbank must be more than 0"),
    ],
)
def test_contradictions_are_one_sentence(change, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        build("ast_tiny", **change)


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        (torch.zeros(1, 6_399), r"sound of shape \(1, 6399\) came to a model of \(batch, 6400\) floats, 0.4 s at 16"),
        (torch.full((1, 6_400), float("nan")), "sound holds a sample that is not finite; leave the clip out"),
    ],
)
def test_clips_that_do_not_fit_are_one_sentence(clip, sentence):
    with pytest.raises(DataError, match=sentence):
        tiny().encode(clip)


def test_a_spectrogram_of_another_length_is_one_sentence():
    with pytest.raises(DataError, match=r"a spectrogram of 40x128 \(mel frames, bins\) came to a model of 38x128; cut"):
        tiny()(torch.zeros(1, 40, 128))


def test_presets_differ_in_what_they_say():
    assert {PRESETS[f"ast_base_{s}"].stride for s in (10, 12, 14, 16)} == {(s, s) for s in (10, 12, 14, 16)}
    assert PRESETS["ast_base_10_esc50"].shape == (512, 128) and PRESETS["ast_base_10_speech"].shape == (128, 128)
