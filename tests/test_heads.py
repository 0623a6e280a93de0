"""Heads: parameter counts of the paper, step == forward, absent rows, padding, batch independence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import ConfigError, DataError, UsageError
from encoders.heads import GRUHead, GRUHeadConfig, LinearHead, LinearHeadConfig, build_head

B, W, M, D, K = 3, 5, 2, 6, 4


def count(module):
    return sum(p.numel() for p in module.parameters())


def window(seed=0, batch=B, length=W):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, length, M, D, generator=draw)
    presence = torch.rand(batch, length, M, generator=draw) < 0.7
    variance = torch.rand(batch, length, M, generator=draw) * ~presence
    exists = torch.rand(batch, length, generator=draw) < 0.8
    return features, presence, variance, exists


def gru(**changes):
    torch.manual_seed(1)
    return GRUHead(GRUHeadConfig(classes=K, dim=D, hidden=8, **changes))


def linear(**changes):
    torch.manual_seed(1)
    return LinearHead(LinearHeadConfig(classes=K, dim=D, **changes))


VARIANTS = [
    {},
    {"project": 5},
    {"interaction": True},
    {"presence_aware": True},
    {"agreement": 2},
    {"project": 5, "interaction": True, "presence_aware": True},
    {"modalities": ("audio",), "presence_aware": True},
]


@pytest.mark.parametrize("classes", [2, 6, 8])
def test_paper_heads_have_the_paper_parameters(classes):
    assert count(LinearHead(LinearHeadConfig(classes=classes))) == 1024 * classes + classes
    assert count(LinearHead(LinearHeadConfig(classes=classes, modalities=("video",)))) == 512 * classes + classes
    assert count(GRUHead(GRUHeadConfig(classes=classes))) == 2_362_368 + 512 * classes + classes


def test_the_paper_linear_head_for_six_emotions_has_6150_parameters():
    assert count(build_head("linear", classes=6)) == 6150


@pytest.mark.parametrize("changes", VARIANTS)
def test_stepping_through_a_window_gives_what_the_window_gives(changes):
    head, (features, presence, variance, exists) = gru(**changes), window()
    state = head.initial_state(B)
    for t in range(W):
        logits, state = head.step(features[:, t], state, presence[:, t], variance[:, t], exists[:, t])
    assert torch.equal(logits, head(features, presence, variance, exists))


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("missing", [0, 2, W])
def test_serving_a_window_gives_what_stepping_through_it_gives(changes, missing):
    head, (features, presence, variance, _) = gru(**changes), window()
    exists = torch.arange(W).expand(B, W) >= missing
    whole = head(features, presence, variance, exists)
    with torch.inference_mode():
        for row in range(B):
            one = slice(row, row + 1)
            served = head(features[one], presence[one], variance[one], exists[one])
            assert torch.allclose(served, whole[one], atol=1e-6)
        assert torch.allclose(head(features, presence, variance, exists), whole, atol=1e-6)


@pytest.mark.parametrize("changes", VARIANTS)
def test_gru_rows_do_not_see_each_other(changes):
    head, parts = gru(**changes), window()
    together = head(*parts)
    for row in range(B):
        alone = head(*(p[row : row + 1] for p in parts))
        torch.testing.assert_close(together[row : row + 1], alone)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(["gru", "linear"]))
def test_what_a_position_that_does_not_exist_holds_changes_nothing(seed, kind):
    head = gru() if kind == "gru" else linear(doubt=1.0)
    features, presence, variance, exists = window(seed)
    spoiled = torch.where(exists[..., None, None], features, torch.full_like(features, 1e3))
    assert torch.equal(head(features, presence, variance, exists), head(spoiled, presence, variance, exists))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4), st.sampled_from(["gru", "linear"]))
def test_padding_before_the_start_or_after_the_end_changes_nothing(seed, pad, kind):
    head = gru() if kind == "gru" else linear()
    features = window(seed)[0]
    exists = torch.ones(B, W, dtype=torch.bool)
    nothing, absent = torch.zeros(B, pad, M, D), torch.zeros(B, pad, dtype=torch.bool)
    for order in (0, 1):
        padded = torch.cat([nothing, features][:: 1 if order else -1], 1)
        there = torch.cat([absent, exists][:: 1 if order else -1], 1)
        torch.testing.assert_close(head(padded, None, None, there), head(features))


def test_an_absent_row_keeps_its_state_and_a_reset_row_forgets():
    head, (features, *_) = gru(), window()
    _, state = head.step(features[:, 0], head.initial_state(B))
    _, after = head.step(features[:, 1], state, exists=torch.tensor([True, False, True]))
    assert torch.equal(after.hidden[1], state.hidden[1])
    assert not torch.equal(after.hidden[0], state.hidden[0])
    assert after.reset(torch.tensor([True, False, False])).hidden[0].abs().sum() == 0


def test_a_prefix_is_never_changed_by_what_comes_later():
    head, (features, *_) = gru(), window()
    changed = features.clone()
    changed[:, 3:] += 1
    assert torch.equal(head(features[:, :3]), head(changed[:, :3]))


def test_linear_head_averages_probabilities_of_existing_clips():
    head, (features, *_) = linear(), window()
    exists = torch.tensor([[True, True, False, False, True]] * B)
    expected = head.votes(features)[:, [0, 1, 4]].softmax(-1).mean(1).log()
    torch.testing.assert_close(head(features, None, None, exists), expected)


def test_linear_head_without_any_clip_knows_nothing():
    head, (features, *_) = linear(), window()
    out = head(features, None, None, torch.zeros(B, W, dtype=torch.bool))
    torch.testing.assert_close(out.exp(), torch.full((B, K), 1 / K))
    out.sum().backward()
    assert torch.isfinite(head.classifier.weight.grad).all()


def test_a_doubtful_vote_weighs_less():
    head, (features, *_) = linear(doubt=9.0), window()
    variance = torch.zeros(B, W, M)
    variance[:, 0] = 1.0
    weight = torch.tensor([0.1, 1, 1, 1, 1])[None, :, None]
    expected = ((head.votes(features).softmax(-1) * weight).sum(1) / weight.sum()).log()
    torch.testing.assert_close(head(features, None, variance, None), expected)


def test_a_unimodal_head_reads_its_own_modality_only():
    head, (features, *_) = gru(modalities=("audio",)), window()
    changed = features.clone()
    changed[:, :, 0] = 0
    assert torch.equal(head(features), head(changed))
    assert torch.equal(head(features), head(features[:, :, 1:]))


def test_presence_and_variance_matter_to_a_presence_aware_head_only():
    features, presence, variance, _ = window()
    everything = torch.ones_like(presence)
    assert torch.equal(gru()(features, presence, variance), gru()(features))
    aware = gru(presence_aware=True)
    assert not torch.equal(aware(features, presence, None), aware(features, everything, None))
    assert not torch.equal(aware(features, presence, variance), aware(features, presence, None))


def test_agreement_is_the_mean_product_of_the_modalities_in_shares_of_their_width():
    head, features = gru(agreement=3), window()[0][:, 0]
    read = head._inputs(features, None, None)
    expected = (features[:, 0] * features[:, 1]).reshape(B, 3, 2).mean(2)
    assert read.shape == (B, head.config.inputs)
    torch.testing.assert_close(read[:, -3:], expected)


def test_wrong_settings_and_features_are_one_sentence():
    with pytest.raises(UsageError, match="head 'grue' is unknown; did you mean gru"):
        build_head("grue", classes=3)
    with pytest.raises(UsageError, match="setting 'hiden' is unknown; did you mean hidden"):
        build_head("gru", classes=3, hiden=4)
    with pytest.raises(ConfigError, match="needs a value for classes"):
        build_head("gru")
    with pytest.raises(ConfigError, match="interaction and agreement need two modalities"):
        gru(modalities=("video",), interaction=True)
    with pytest.raises(ConfigError, match="agreement 4 does not divide features of width 6"):
        gru(agreement=4)
    with pytest.raises(DataError, match="features are 7 wide but the head reads 6"):
        gru()(torch.zeros(1, 2, 2, 7))
    with pytest.raises(DataError, match="hold 3 modalities"):
        gru()(torch.zeros(1, 2, 3, D))
