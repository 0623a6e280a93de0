"""curri-MAE over a base fill: it begins as its base, learns what is left, and is kept with it."""

import pytest
import torch

from encoders.errors import ConfigError, UsageError
from encoders.heads import build_head
from encoders.training import Interrupted
from imputation.baselines import Lerp, ObservedMean
from imputation.curri_mae import curri_mae_tiny, preset
from imputation.gaussian_fit import fit_gaussian
from imputation.imputer import build
from imputation.residual import ResidualImputer, residual
from imputation.stored import load_imputer
from imputation.train import MAETraining, train_mae
from imputation.train_head import HeadTraining, train_head
from tests.processes import persistent
from tests.test_imputer_training import StopAt, mae_config, same

DATA, OTHER = persistent(96, length=5), persistent(48, length=5, seed=1)


def some_hidden(n: int = 48) -> torch.Tensor:
    return torch.rand(n, 5, 2, generator=torch.Generator().manual_seed(0)) < 0.5


def config(**changes) -> MAETraining:
    return mae_config(**{"base": "gaussian", "steps": 6} | changes)


@pytest.mark.parametrize("base", [fit_gaussian(DATA), Lerp(), ObservedMean()], ids=lambda b: b.rung)
def test_it_begins_as_its_base(base):
    imputer, hidden = ResidualImputer(preset("curri_mae_tiny"), base).eval(), some_hidden()
    exists = torch.ones(48, 5, dtype=torch.bool)
    exists[:10, 0] = False
    ours, theirs = imputer(OTHER.features, ~hidden, exists), base(OTHER.features, ~hidden, exists)
    assert torch.equal(ours.features, theirs.features)
    error = (theirs.features - OTHER.features).square().mean(-1)
    asked = hidden & exists.unsqueeze(-1)
    mse = [error[..., m][asked[..., m]].mean() for m in (0, 1)]
    loss = imputer.loss(OTHER.features, hidden, exists, OTHER.presence)
    torch.testing.assert_close(loss.mse, torch.stack(mse))
    torch.testing.assert_close(loss.total.detach(), sum(mse))


def test_what_is_hidden_or_really_absent_is_not_read_by_the_base_either():
    imputer, hidden = ResidualImputer(preset("curri_mae_tiny"), fit_gaussian(DATA)), some_hidden()
    presence = torch.rand(48, 5, 2, generator=torch.Generator().manual_seed(1)) < 0.8
    exists = torch.ones(48, 5, dtype=torch.bool)
    poisoned = torch.where(presence.unsqueeze(-1), OTHER.features, float("nan"))
    clean = torch.where(presence.unsqueeze(-1), OTHER.features, 7.0)
    losses = [imputer.loss(x, hidden, exists, presence).total for x in (poisoned, clean)]
    assert losses[0].isfinite() and torch.equal(*losses)


def test_one_batch_is_learnt_by_heart():
    imputer, hidden = ResidualImputer(preset("curri_mae_tiny"), fit_gaussian(DATA)), some_hidden()
    optimizer = torch.optim.Adam(imputer.model.parameters(), lr=5e-3, betas=(0.95, 0.999))
    first = imputer.loss(OTHER.features, hidden, OTHER.exists, OTHER.presence).total.item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = imputer.loss(OTHER.features, hidden, OTHER.exists, OTHER.presence).total
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.85 * first


def test_the_base_is_fitted_kept_and_never_changed(tmp_path):
    options = {"groups": 3, "joint": 2}
    imputer = train_mae(config(steps=2, base_options=options), DATA, OTHER, tmp_path)
    assert isinstance(imputer, ResidualImputer) and imputer.rung == "residual"
    assert same(imputer.base, fit_gaussian(DATA, **options))
    assert imputer.model.decoder_pred_a.weight.abs().sum() > 0
    again = load_imputer(tmp_path)
    assert same(again, imputer) and (again.variance.table != 1).any()
    assert torch.equal(again(OTHER.features, ~some_hidden()).features, imputer(OTHER.features, ~some_hidden()).features)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["lerp", "observed_mean", "hold"])
def test_a_rule_may_be_the_base(tmp_path, base):
    train_mae(config(base=base, steps=1), DATA, OTHER, tmp_path)
    assert load_imputer(tmp_path).base.rung == base


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    whole = train_mae(config(), DATA, OTHER, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_mae(config(), DATA, OTHER, tmp_path / "cut", progress=StopAt(3))
    assert same(whole, train_mae(config(), DATA, OTHER, tmp_path / "cut", resume=True))


@pytest.mark.slow
def test_given_weights_do_not_speak_before_they_have_learnt(tmp_path):
    start = curri_mae_tiny(dim=16, length=5).model.state_dict()
    imputer = train_mae(config(steps=1, lr=1e-12), DATA, OTHER, tmp_path, start=start)
    assert imputer.model.decoder_pred_v.weight.abs().max() < 1e-9
    assert torch.equal(imputer.model.mask_token, start["mask_token"]) or torch.allclose(
        imputer.model.mask_token, start["mask_token"], atol=1e-6
    )


def test_it_is_trained_through_a_frozen_head(tmp_path):
    imputer = ResidualImputer(preset("curri_mae_tiny", dim=16, length=5), fit_gaussian(DATA))
    head = build_head("gru", classes=2, dim=16, hidden=8)
    settings = HeadTraining(train="imputer", sampling="all", consistency=1.0, steps=4, overrides={"hidden": 8})
    _, tuned = train_head(settings, DATA, OTHER, tmp_path, imputer=imputer, head=head)
    assert same(tuned.base, imputer.base) and not same(tuned.model, imputer.model)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: config(base="gausian"), UsageError, "did you mean gaussian"),
        (lambda: config(base="nearest"), UsageError, "base 'nearest' is unknown"),
        (lambda: config(base="", base_options={"groups": 3}), ConfigError, "belong to no base; name one"),
        (lambda: build("residual", base="zer0"), UsageError, "base 'zer0' is unknown"),
        (lambda: residual(preset="curri_mae_tiny", residual="lerp"), ConfigError, "two bases for one model"),
        (lambda: residual(preset="curri_mae_tiny", base_options={"group": 2}), UsageError, "did you mean groups"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
