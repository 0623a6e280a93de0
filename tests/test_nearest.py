"""The nearest windows against a search by hand; what the bank takes in; what cannot be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import ConfigError, DataError, UsageError
from imputation.fit import fit_fill
from imputation.nearest import Nearest, _spread, fit_nearest, nearest
from imputation.stored import load_imputer
from tests.processes import persistent


def by_hand(fill: Nearest, features: Tensor, present: Tensor) -> Tensor:
    """The fill of one window (N, M, D), as it is described."""
    length = len(features)
    found = []
    for s in range(fill.config.bank):
        common = present & fill.there[s, :length]
        if common.any():
            found.append((float((features - fill.windows[s, :length])[common].square().mean()), s))
    out = torch.zeros_like(features)
    for n, m in (~present).nonzero().tolist():
        near = [(1 / max(d, 1e-6), s) for d, s in sorted(found)[: fill.config.k] if fill.there[s, n, m]]
        if near:
            out[n, m] = sum(w * fill.windows[s, n, m] for w, s in near) / sum(w for w, _ in near)
    return out


def holed(n: int, seed: int) -> tuple[Nearest, Tensor, Tensor]:
    """A fill whose bank has holes, and windows to fill."""
    data = persistent(n, length=5, seed=seed)
    g = torch.Generator().manual_seed(seed)
    data = replace(data, presence=torch.rand(n, 5, 2, generator=g) < 0.6)
    fill = fit_nearest(data, data, bank=n, k=3)
    return fill, torch.randn(3, 5, 2, 16, generator=g), torch.rand(3, 5, 2, generator=g) < 0.5


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_fill_is_what_a_search_by_hand_finds(seed):
    fill, features, present = holed(12, seed)
    out = fill(features, present).features
    for row in range(3):
        hidden = ~present[row]
        expected = by_hand(fill, features[row], present[row])
        torch.testing.assert_close(out[row][hidden], expected[hidden], atol=1e-4, rtol=1e-3)


def test_a_stored_window_is_found_again():
    data = persistent(40)
    fill = fit_nearest(data, data, k=1)
    hidden = torch.rand(data.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    out = fill(torch.where(hidden.unsqueeze(-1), 0, data.features), ~hidden).features
    torch.testing.assert_close(out, data.features)


def test_one_modality_finds_the_neighbours_of_the_other():
    data = persistent(40)
    present = data.presence.clone()
    present[..., 1] = False
    out = fit_nearest(data, data, k=1)(data.features, present).features
    torch.testing.assert_close(out, data.features)


def test_nothing_observed_is_filled_with_the_mean():
    data = persistent(40)
    out = fit_nearest(data, data)(data.features, torch.zeros(40, 8, 2, dtype=torch.bool))
    assert not out.features.any()


def test_validation_chooses_how_many():
    train, validation = persistent(100), persistent(20, seed=1)
    assert fit_nearest(train, train).config.k == 1  # each window finds itself
    assert fit_nearest(train, validation).config.k > 5


def test_the_bank_is_limited_and_speakers_have_equal_parts():
    speakers = ["a"] * 90 + ["b"] * 10 + ["c"] * 4
    rows = _spread(speakers, 30)
    names = [speakers[i] for i in rows]
    assert len(rows) == len(set(rows)) == 30
    assert (names.count("a"), names.count("b"), names.count("c")) == (16, 10, 4)
    assert _spread(speakers, 1000) == list(range(104))
    data = persistent(100)
    assert fit_nearest(data, data, bank=32, k=2).windows.shape == (32, 8, 2, 16)


def test_windows_without_anything_observed_stay_out_of_the_bank():
    data = persistent(10)
    presence = data.presence.clone()
    presence[:6] = False
    assert len(fit_nearest(replace(data, presence=presence), data, k=2).windows) == 4


def test_it_is_kept_and_its_variance_is_that_of_new_windows(tmp_path):
    train, validation, new = persistent(200), persistent(60, seed=1), persistent(100, seed=2)
    fill, found = fit_fill("nearest", train, validation, tmp_path / "near", bank=100)
    hidden = torch.rand(new.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    out = fill(torch.where(hidden.unsqueeze(-1), 0, new.features), ~hidden)
    error = (out.features - new.features).square().mean(-1)
    assert 0.8 < float(out.variance[hidden].mean() / error[hidden].mean()) < 1.25
    assert found["mse_video"] < found["zero_mse_video"]
    again = load_imputer(tmp_path / "near")
    assert torch.equal(again(new.features, ~hidden).features, fill(new.features, ~hidden).features)
    with pytest.raises(ConfigError, match="already holds an imputer; choose another --out"):
        fit_fill("nearest", train, validation, tmp_path / "near")


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nearest(bank=0), ConfigError, "bank 0 of a nearest fill is not positive"),
        (lambda: nearest(bank=5, k=6), ConfigError, "k 6 neighbours cannot be found among 5"),
        (lambda: nearest(banks=5), UsageError, "did you mean bank"),
        (lambda: fit_fill("neares", persistent(4), persistent(4)), UsageError, "did you mean nearest"),
        (lambda: fit_nearest(persistent(4), persistent(4), bank=3, k=4), ConfigError, "k 4 neighbours"),
        (lambda: fit_nearest(persistent(4), persistent(4), dim=3), ConfigError, "dim 3 is not for you to say"),
        (
            lambda: nearest(dim=8, bank=30)(torch.zeros(1, 4, 2, 9), torch.ones(1, 4, 2) > 0),
            DataError,
            "4 positions of width 9; this nearest fill takes at most 10 of width 8",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_an_empty_bank_and_a_nan_are_refused():
    data = persistent(6)
    with pytest.raises(DataError, match="no training window has anything observed"):
        fit_nearest(replace(data, presence=torch.zeros_like(data.presence)), data)
    empty = nearest(dim=16, length=8, bank=20)
    with pytest.raises(DataError, match="the bank of the nearest fill is empty; fit it again"):
        empty.load_state_dict(empty.state_dict())
    with pytest.raises(DataError, match="the bank of the nearest fill is empty; fit it"):
        empty(data.features, data.presence)
    data.features[2, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"row 2 \(2\) of the training windows is not finite"):
        fit_nearest(data, data)
