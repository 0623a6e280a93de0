"""Calibration: confidence that means what it says at every observed share."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import DataError
from imputation.calibrate import Calibration, confidence_for, expected_calibration_error, fit, observed_share


def overconfident(n: int = 6000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels drawn from true logits; the head reports them 2 times too sharp at share 1, 4 times at share 0.2."""
    g = torch.Generator().manual_seed(seed)
    true = 1.5 * torch.randn(n, 3, generator=g)
    label = torch.multinomial(true.softmax(-1), 1, generator=g)[:, 0]
    share = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, 0.2)
    return true * torch.where(share == 1, 2.0, 4.0).unsqueeze(1), share, label


def test_the_temperature_of_each_share_is_found():
    logits, share, label = overconfident()
    fitted = fit(logits, share, label, knots=(0.2, 1.0))
    assert fitted.temperatures == pytest.approx((4.0, 2.0), rel=0.15)


def test_confidence_is_right_as_often_as_it_says_on_new_data():
    fitted = fit(*overconfident())
    logits, share, label = overconfident(seed=1)
    for chosen in (share == 1, share < 1):
        before = expected_calibration_error(logits[chosen].softmax(-1), label[chosen])
        after = expected_calibration_error(fitted(logits[chosen], share[chosen])[0], label[chosen])
        assert after < 0.04 < before


def test_offsets_are_found_and_sum_to_nothing():
    g = torch.Generator().manual_seed(0)
    true = torch.randn(8000, 3, generator=g)
    label = torch.multinomial(true.softmax(-1), 1, generator=g)[:, 0]
    shift = torch.tensor([1.0, -0.5, -0.5])
    fitted = fit(true - shift, torch.ones(8000), label, knots=(1.0,), offsets=True)
    assert fitted.offsets == pytest.approx(shift.tolist(), abs=0.15)
    assert sum(fitted.offsets) == pytest.approx(0, abs=1e-5)


def test_temperature_lies_on_straight_lines_between_knots():
    c = Calibration(knots=(0.2, 0.6, 1.0), temperatures=(3.0, 2.0, 1.0))
    share = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert c.temperature(share).tolist() == pytest.approx([3.0, 3.0, 2.5, 2.0, 1.5, 1.0])


@given(st.floats(0.01, 1.0), st.lists(st.floats(0.1, 9), min_size=3, max_size=3))
def test_temperature_never_changes_the_answer(share, temperatures):
    c = Calibration(knots=(0.0, 0.5, 1.0), temperatures=tuple(temperatures))
    logits = torch.tensor([[0.3, 2.0, -1.0], [5.0, 1.0, 0.0]])
    probabilities, _ = c(logits, share)
    assert probabilities.argmax(-1).tolist() == [1, 0]
    assert probabilities.sum(-1).tolist() == pytest.approx([1, 1])


def test_logits_and_log_probabilities_give_the_same():
    c = Calibration(knots=(0.0, 1.0), temperatures=(2.0, 1.5), offsets=(0.1, -0.1, 0.0))
    logits = torch.randn(4, 3)
    torch.testing.assert_close(c(logits, 0.4)[0], c(logits.log_softmax(-1), 0.4)[0])


def test_a_window_abstains_when_unsure_or_hardly_seen():
    c = Calibration(min_confidence=0.6, min_share=0.3)
    logits = torch.tensor([[2.0, 0.0], [0.1, 0.0], [2.0, 0.0], [9.0, 0.0]])
    assert c(logits, torch.tensor([1.0, 1.0, 0.2, 0.0]))[1].tolist() == [False, True, True, True]


def test_a_window_with_nothing_observed_always_abstains():
    assert Calibration()(torch.tensor([[9.0, 0.0]]), 0.0)[1].tolist() == [True]


def test_the_threshold_is_the_lowest_that_is_right_often_enough():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    label = torch.tensor([0, 0, 1, 0])
    assert confidence_for(probabilities, label, 1.0) == pytest.approx(0.8)
    assert confidence_for(probabilities, label, 0.75) == pytest.approx(0.6)
    assert confidence_for(probabilities, 1 - label, 1.0) == 1.0


def test_a_target_accuracy_is_kept_by_the_answered_windows():
    logits, share, label = overconfident()
    fitted = fit(logits, share, label, target_accuracy=0.9)
    probabilities, abstained = fitted(logits, share)
    right = (probabilities.argmax(-1) == label)[~abstained]
    assert 0 < abstained.float().mean() < 1 and right.float().mean() >= 0.9


def test_it_survives_the_manifest():
    c = Calibration(knots=(0.1, 1.0), temperatures=(2.0, 1.0), offsets=(0.5, -0.5), min_confidence=0.4, min_share=0.1)
    assert Calibration.from_dict(json.loads(json.dumps(c.as_dict()))) == c
    assert Calibration.from_dict({}) == Calibration()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"knots": [0.5, 0.5], "temperatures": [1, 1]}, "ascending"),
        ({"knots": [0.5], "temperatures": [1, 1]}, "one temperature each"),
        ({"knots": [0.5], "temperatures": [0.0]}, "temperatures are positive"),
        ({"heat": 3}, "unknown key 'heat'"),
    ],
)
def test_a_broken_manifest_entry_is_refused(values, sentence):
    with pytest.raises(DataError, match=sentence):
        Calibration.from_dict(values)


def test_offsets_of_another_head_are_refused():
    with pytest.raises(DataError, match="2 offsets for 3 classes"):
        Calibration(offsets=(0.0, 0.0))(torch.zeros(1, 3), 1.0)


def test_nothing_to_fit_on_is_refused():
    with pytest.raises(DataError, match="no validation windows"):
        fit(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_window_without_a_label_is_refused(label):
    with pytest.raises(DataError, match=f"the label {label} for 3 classes"):
        fit(torch.zeros(2, 3), torch.ones(2), torch.tensor([0, label]))


def test_shares_count_existing_places_only():
    presence = torch.tensor([[[True, False], [True, True], [True, True]]])
    assert observed_share(presence).tolist() == pytest.approx([5 / 6])
    assert observed_share(presence, torch.tensor([[True, True, False]])).tolist() == pytest.approx([3 / 4])
    assert observed_share(presence, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0]


def test_the_error_of_a_perfect_and_of_a_boastful_head():
    certain = torch.tensor([[1.0, 0.0]] * 20)
    assert expected_calibration_error(certain, torch.zeros(20, dtype=torch.long)) == 0
    half = torch.tensor([0, 1] * 10)
    assert expected_calibration_error(certain, half, bins=2) == pytest.approx(0.5)


@given(st.floats(0.0, 1.0), st.integers(1, 4))
def test_one_share_for_all_rows_gives_what_a_share_for_each_gives(share, knots):
    c = Calibration(
        knots=tuple(k / 4 for k in range(1, knots + 1)),
        temperatures=(3.0, 0.5, 1.5, 2.0)[:knots],
        offsets=(0.3, -0.5, 0.2),
        min_confidence=0.5,
        min_share=0.33,
    )
    logits = torch.tensor([[0.3, 2.0, -1.0], [5.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    one, each = c(logits, share), c(logits, torch.full((3,), share))
    assert torch.allclose(one[0], each[0], atol=1e-6)
    if abs(share - 0.33) > 1e-6:
        assert one[1].tolist() == each[1].tolist()
