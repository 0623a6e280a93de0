"""Calibration chosen by speakers who were left out."""

import pytest
import torch

from encoders.errors import DataError
from imputation.abstention import NEVER
from imputation.cross_fit import FORMS, ONE, Form, cross_fitted, fit_crossed, promising

FEW = (ONE, FORMS[1], Form(name="offsets", offsets=True, offset_pull=0.002))


def said(heat, each: int = 300, speakers: int = 5, shift: float = 0.0, own: float = 0.0, seed: int = 0):
    """Labels drawn from true logits, which the head reports ``heat(share)`` times too sharp and one class shifted."""
    g = torch.Generator().manual_seed(seed)
    n = each * speakers
    true = 1.5 * torch.randn(n, 3, generator=g)
    label = torch.multinomial(true.softmax(-1), 1, generator=g)[:, 0]
    share = torch.randint(1, 11, (n,), generator=g) / 10
    who = torch.arange(n) % speakers
    sharper = torch.tensor([heat(float(s)) for s in share]) * (1 + own * torch.randn(speakers, generator=g))[who].abs()
    logits = true * sharper.unsqueeze(1) + shift * torch.tensor([1.0, 0.0, 0.0])
    return logits, share, label, [f"s{int(w)}" for w in who]


def test_one_temperature_stays_where_no_more_is_to_be_found():
    crossed = fit_crossed(*said(lambda _: 2.0), forms=FEW[:2])
    assert crossed.form == ONE and crossed.calibration.temperatures == pytest.approx((2.0,), rel=0.1)
    assert crossed.gains[ONE.name] == (0.0, 0.0)


def test_the_share_counts_where_speakers_left_out_confirm_it():
    crossed = fit_crossed(*said(lambda share: 6 - 5 * share), forms=FEW)
    assert crossed.form.name == "by share"
    temperature = crossed.calibration.temperature(torch.tensor([0.1, 1.0]))
    assert temperature[0] > 2 * temperature[1]


def test_offsets_are_fitted_where_a_class_is_preferred_everywhere():
    crossed = fit_crossed(*said(lambda _: 1.0, shift=1.5), forms=FEW)
    assert crossed.form.name == "offsets" and crossed.calibration.offsets[0] < -0.7


def test_few_answers_of_few_speakers_do_not_end_worse_than_one_temperature():
    worse = []
    for seed in range(4):
        crossed = fit_crossed(*said(lambda _: 2.0, each=12, speakers=4, own=0.3, seed=seed))
        logits, share, label, _ = said(lambda _: 2.0, each=400, speakers=4, own=0.3, seed=100 + seed)
        simple = ONE.fitted(*said(lambda _: 2.0, each=12, speakers=4, own=0.3, seed=seed)[:3])
        nll = [-c(logits, share)[0].log().gather(1, label[:, None]).mean() for c in (crossed.calibration, simple)]
        worse.append(float(nll[0] - nll[1]))
    assert sum(worse) / len(worse) < 0.01


def test_every_answer_is_calibrated_without_its_speaker():
    logits, share, label, who = said(lambda _: 2.0, each=40, speakers=3)
    out = cross_fitted(ONE, logits, share, label, who)
    rows = torch.tensor([s == "s1" for s in who])
    alone = ONE.fitted(logits[~rows], share[~rows], label[~rows])(logits[rows], share[rows])[0]
    assert torch.allclose(out[rows], alone)
    label[rows] = (label[rows] + 1) % 3
    assert torch.allclose(cross_fitted(ONE, logits, share, label, who)[rows], alone)


def test_a_promise_is_kept_on_validation_and_none_is_made_without_reason():
    logits, share, label, who = said(lambda _: 1.0, each=400)
    crossed = fit_crossed(logits, share, label, who, forms=FEW[:1])
    calibration, promise = promising(crossed, label, who, risk=0.2)
    assert promise.promised and promise.bound <= 0.2 and calibration.min_confidence == promise.confidence
    probabilities, abstained = calibration(logits, share)
    assert (probabilities.argmax(1) != label)[~abstained].float().mean() <= 0.2
    calibration, promise = promising(crossed, (label + 1) % 3, who, risk=0.2)
    assert not promise.promised and calibration.min_confidence == NEVER and calibration(logits, share)[1].all()


def test_one_speaker_is_calibrated_as_simply_as_can_be():
    logits, share, label, who = said(lambda share: 6 - 5 * share, speakers=1)
    crossed = fit_crossed(logits, share, label, who)
    assert crossed.form == ONE and crossed.gains == {}
    windows = list(range(len(label)))
    assert promising(crossed, label, who, risk=0.4, windows=windows)[1].promised


def test_what_was_chosen_can_be_written_down():
    about = fit_crossed(*said(lambda _: 1.0, each=30), forms=FEW[:2]).as_dict()
    assert about["form"] in ("one temperature", "by share") and set(about["gains"]) == {"one temperature", "by share"}


def test_answers_that_do_not_fit_are_refused():
    logits, share, label, who = said(lambda _: 1.0, each=5)
    with pytest.raises(DataError, match="3 speakers for 25 answers"):
        fit_crossed(logits, share, label, who[:3])
    with pytest.raises(DataError, match="'s0' is the only one"):
        cross_fitted(ONE, logits, share, label, ["s0"] * 25)
    with pytest.raises(DataError, match="not numbers"):
        fit_crossed(logits * torch.nan, share, label, who)
    with pytest.raises(DataError, match="24 shares"):
        fit_crossed(logits, share[1:], label, ["s0"] * 25)
    with pytest.raises(DataError, match="no form"):
        fit_crossed(logits, share, label, who, forms=())
