"""The Gaussian fill against a dense conditional in float64, and what its fit finds and leaves alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import ConfigError, DataError, UsageError
from imputation.baselines import Lerp, ObservedMean, Zero
from imputation.evaluate import fill_error
from imputation.fit import fit_fill
from imputation.gaussian import Gaussian, GaussianConfig, conditional, gaussian, toeplitz
from imputation.gaussian_fit import FLOOR, fit_gaussian
from imputation.sampling import paired_hidden
from imputation.stored import load_imputer
from tests.processes import persistent

LENGTH, WIDTH = 6, 8
FITTED = fit_gaussian(persistent(80, length=LENGTH, width=WIDTH), groups=4)
JOINT = fit_gaussian(persistent(80, length=LENGTH, width=WIDTH), groups=4, joint=2)


def masked(seed: int, share: float, rows: int = 3, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, 2, WIDTH, generator=g), torch.rand(rows, length, 2, generator=g) < share


def dense(fill: Gaussian, features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The conditional of one window over all its places and dimensions at once: mean (N, M, D), variance (N, M)."""
    length, width = features.shape[0], fill.config.dim
    joint = fill.config.joint
    group = [g for g, (a, b) in enumerate(fill.config.slices) for _ in range(b - a)]
    prior = torch.zeros(2, width, length, 2, width, length, dtype=torch.double)  # of coordinates
    for m in range(2):
        for c in range(width):
            prior[m, c, :, m, c] = toeplitz(fill.curves[m, group[c]], length)
    if joint:
        j = fill.together[:, :length, :, :length].double().view(2, joint, length, 2, joint, length)
        prior[:, :joint, :, :, :joint] = j
    turn = fill.basis.double()  # (M, D, C)
    prior = torch.einsum("mdc,mcnpek,pfe->nmdkpf", turn, prior, turn)
    size = length * 2 * width
    prior = prior.reshape(size, size)
    seen = present.unsqueeze(-1).expand(-1, -1, width).reshape(-1)
    x = features.double().reshape(-1)[seen]
    solved = torch.linalg.solve(prior[seen][:, seen], torch.cat([x[:, None], prior[seen]], dim=1))
    mean = prior[:, seen] @ solved[:, 0]
    left = prior.diagonal() - (prior[:, seen] * solved[:, 1:].T).sum(1)
    return mean.view(length, 2, width), left.view(length, 2, width).mean(-1)


@pytest.mark.parametrize("fill", [FITTED, JOINT], ids=["apart", "joint"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.0, 0.2, 0.6, 0.9]), length=st.sampled_from([2, 4, LENGTH]))
def test_the_fill_is_the_dense_conditional(fill, seed, share, length):
    features, present = masked(seed, share, length=length)
    out = fill(features, present)
    for row in range(len(features)):
        mean, left = dense(fill, features[row], present[row])
        hidden = ~present[row]
        torch.testing.assert_close(out.features[row][hidden].double(), mean[hidden], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(out.variance[row][hidden].double(), left[hidden], atol=1e-4, rtol=1e-3)


def test_weights_of_what_is_hidden_are_zero_and_what_is_seen_predicts_itself():
    covariance = toeplitz(torch.tensor([1.0, 0.5, 0.2, 0.1]), 4)
    weight, left = conditional(covariance, torch.tensor([True, False, True, False]))
    assert not weight[:, [1, 3]].any()
    torch.testing.assert_close(weight[[0, 2]][:, [0, 2]], torch.eye(2, dtype=torch.double))
    assert left[[0, 2]].max() < 1e-12 and (left[[1, 3]] > 0.5).all()


def test_a_modality_with_nothing_observed_is_filled_with_the_mean():
    features, present = masked(1, 0.7)
    present[..., 1] = False
    out = FITTED(features, present)
    assert out.features[:, :, 1].abs().max() < 1e-6
    assert out.variance[:, :, 1].mean() > out.variance[:, :, 0][~present[..., 0]].mean()


def test_with_a_joint_process_the_other_modality_tells():
    data = persistent(400, length=LENGTH, width=WIDTH)
    data.features[:, :, 1] = data.features[:, :, 0]  # what is heard is what is seen
    apart, joint = (fit_gaussian(data, joint=j) for j in (0, 4))
    hidden = torch.zeros(data.presence.shape, dtype=torch.bool)
    hidden[:, :, 1] = True
    errors = [
        fill_error(f, data.features, data.presence, data.exists, hidden)[0][hidden].mean() for f in (apart, joint)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_it_beats_every_rule_on_windows_it_never_saw():
    train, new = persistent(300), persistent(100, seed=1)
    fill = fit_gaussian(train)
    hidden = torch.rand(new.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    error = {
        type(f).__name__: float(fill_error(f, new.features, new.presence, new.exists, hidden)[0][hidden].mean())
        for f in (fill, Zero(), Lerp(), ObservedMean())
    }
    assert error["Gaussian"] < 0.9 * min(error["Zero"], error["Lerp"], error["ObservedMean"])
    assert error["Gaussian"] < 0.68  # half is noise and cannot be told; a quarter drifts


@pytest.mark.parametrize("windows", [2, 3, 8, 20])
def test_few_windows_do_no_harm(windows):
    train, new = persistent(windows, width=64), persistent(100, width=64, seed=1)
    hidden = torch.rand(new.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    error = fill_error(fit_gaussian(train), new.features, new.presence, new.exists, hidden)[0][hidden].mean()
    assert error < 1.05 * new.features.square().mean()


@pytest.mark.parametrize("joint", [0, 4])
def test_features_that_follow_the_position_are_not_leant_on(joint):
    """What a sentence does to every window alike is no process over lags; a solve that believes it is far off."""
    course = 3 * torch.randn(1, 8, 2, 16, generator=torch.Generator().manual_seed(5))
    train, new = (replace(d, features=d.features + course) for d in (persistent(200), persistent(60, seed=1)))
    fill = fit_gaussian(train, joint=joint)
    for k in (1, 4, 7):
        hidden = torch.from_numpy(paired_hidden(new.names, new.exists.numpy(), k, 0))
        error = fill_error(fill, new.features, new.presence, new.exists, hidden)[0][hidden].mean()
        assert error < 1.02 * new.features[hidden].square().mean()


def test_mere_noise_is_filled_with_nearly_nothing():
    g = torch.Generator().manual_seed(0)
    noise = replace(persistent(100, width=64), features=torch.randn(100, 8, 2, 64, generator=g))
    hidden = torch.rand(100, 8, 2, generator=g) < 0.5
    fresh = torch.randn(100, 8, 2, 64, generator=g)
    filled = fit_gaussian(noise)(torch.where(hidden.unsqueeze(-1), 0, fresh), ~hidden).features
    assert filled[hidden].square().mean() < 0.02


def test_every_covariance_is_definite_even_of_features_that_never_move():
    still = persistent(20)
    still = replace(still, features=still.features[:, :1].expand(-1, 8, -1, -1).clone())
    fill = fit_gaussian(still)
    values = torch.linalg.eigvalsh(toeplitz(fill.curves, 8))
    assert (values > 0.5 * FLOOR * fill.curves[..., :1]).all()
    hidden = torch.rand(still.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert fill_error(fill, still.features, still.presence, still.exists, hidden)[0][hidden].mean() < 0.4


def test_absent_places_of_training_windows_are_not_taken_for_values():
    whole = persistent(400)
    seen = torch.rand(whole.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    holed = replace(whole, presence=seen, features=torch.where(seen.unsqueeze(-1), whole.features, 1e6))
    new, hidden = persistent(50, seed=1), seen[:50]
    args = (new.features, new.presence, new.exists, hidden)
    errors = [fill_error(fit_gaussian(data), *args)[0][hidden].mean() for data in (holed, whole)]
    assert errors[0] < 1.03 * errors[1]


def test_one_speaker_is_enough_to_fit():
    assert fit_gaussian(persistent(30, speakers=1)).curves.isfinite().all()


def test_groups_cover_every_coordinate_once_and_grow():
    for dim, groups in ((1, 1), (2, 8), (16, 1), (160, 8), (512, 8), (512, 40)):
        slices = GaussianConfig(dim=dim, groups=groups).slices
        assert [a for a, _ in slices] == [0, *(b for _, b in slices[:-1])] and slices[-1][1] == dim
        assert len(slices) <= groups and (groups < 3 or dim < 3 or slices[0] == (0, 1))


def test_unfitted_it_fills_with_the_mean():
    features, present = masked(2, 0.5)
    out = gaussian(dim=WIDTH)(features, present)
    assert not out.features[~present].any() and (out.variance[~present] == 1).all()


def test_the_variance_is_calibrated_and_all_is_kept(tmp_path):
    train, validation, new = persistent(200), persistent(60, seed=1), persistent(100, seed=2)
    validation = replace(validation, features=1.5 * validation.features)
    new = replace(new, features=1.5 * new.features)
    fill, found = fit_fill("gaussian", train, validation, tmp_path / "gp", joint=2)
    hidden = torch.rand(new.presence.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    out = fill(torch.where(hidden.unsqueeze(-1), 0, new.features), ~hidden)
    error = (out.features - new.features).square().mean(-1)
    assert 0.85 < float(out.variance[hidden].mean() / error[hidden].mean()) < 1.15
    assert found["mse_video"] < found["zero_mse_video"]
    again = load_imputer(tmp_path / "gp")
    assert torch.equal(again(new.features, ~hidden).features, fill(new.features, ~hidden).features)


def test_gradients_reach_the_features_that_were_observed():
    features, present = masked(3, 0.5)
    features.requires_grad_()
    FITTED(features, present).features[~present].sum().backward()
    assert features.grad[present].abs().sum() > 0 and not features.grad[~present].any()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: gaussian(dim=0), ConfigError, "dim 0 of a Gaussian fill is not positive"),
        (lambda: gaussian(groups=0), ConfigError, "groups 0 of a Gaussian fill is not positive"),
        (lambda: gaussian(length=1), ConfigError, "length 1 leaves nothing to predict from"),
        (lambda: gaussian(dim=4, joint=5), ConfigError, "joint 5 is not within 0 to 4"),
        (lambda: gaussian(group=3), UsageError, "did you mean groups"),
        (lambda: fit_gaussian(persistent(4), length=4), ConfigError, "length 4 is not for you to say"),
        (lambda: fit_gaussian(persistent(1)), DataError, "1 training window tells nothing"),
        (
            lambda: FITTED(torch.zeros(1, 4, 2, 9), torch.ones(1, 4, 2) > 0),
            DataError,
            "4 positions of width 9; .* 6 of width 8",
        ),
        (lambda: FITTED(torch.zeros(1, 9, 2, 8), torch.ones(1, 9, 2) > 0), DataError, "9 positions of width 8"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_nan_is_refused_when_fitted_and_when_loaded():
    data = persistent(10)
    data.features[3, 2, 1, 0] = float("nan")
    with pytest.raises(DataError, match=r"row 3 \(3\) of the training windows is not finite"):
        fit_gaussian(data)
    state = {k: v.clone() for k, v in FITTED.state_dict().items()}
    state["curves"][0, 0, 1] = float("nan")
    with pytest.raises(DataError, match="curves of the Gaussian fill holds what is not finite"):
        gaussian(dim=WIDTH, length=LENGTH, groups=4).load_state_dict(state)
