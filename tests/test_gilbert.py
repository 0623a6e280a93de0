"""Gilbert-Elliott: formulas against counting, golden bits, and the conversions between its forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import UsageError
from imputation.gilbert import GilbertElliott, chain, fit, from_dwell, from_loss, reference_losses

SPEC = GilbertElliott(p=0.1, r=0.4, loss_good=0.02, loss_bad=0.9)


def test_the_golden_bits():
    golden = "00011000000010110010000110100000000000000000011010000000011100000000000001000000"
    assert "".join("01"[bit] for bit in reference_losses(SPEC, 80, seed=7).astype(int)) == golden


def test_numpys_own_generator_draws_the_same_uniforms():
    rng = np.random.default_rng(7)  # the reference is written in terms of it: two random() calls a packet
    bad, out = rng.random() < 0.1 / 0.5, []
    for _ in range(500):
        out.append(rng.random() < (0.9 if bad else 0.02))
        u = rng.random()
        bad = (u >= 0.4) if bad else (u < 0.1)
    assert reference_losses(SPEC, 500, seed=7).tolist() == out


def test_formulas_of_the_specification():
    assert SPEC.loss == pytest.approx(0.196)
    assert SPEC.loss_after_loss == pytest.approx(0.512082, abs=1e-6)
    assert SPEC.burst == pytest.approx(2.049523, abs=1e-6)
    assert GilbertElliott(p=0.3, r=0.7).burst_ratio == pytest.approx(1.0)  # p + r = 1: independent


@pytest.mark.parametrize(
    ("good", "bad", "loss_good", "loss_bad", "p", "r", "any_20", "any_25"),
    [
        (4, 0.04, 0.001, 1.0, 0.00393, 0.3926, 9.94, 12.13),
        (2, 0.08, 0.002, 0.7, 0.00881, 0.2201, 20.28, 24.19),
        (0.8, 0.1, 0.01, 0.7, 0.02239, 0.1791, 50.36, 57.49),
        (4, 1.5, 0.005, 0.25, 0.00495, 0.0132, 38.10, 41.10),
        (3, 2, 0.02, 0.45, 0.00661, 0.0099, 64.03, 68.54),
    ],
)
def test_dwell_times_become_p_and_r_and_chances_of_any_loss(good, bad, loss_good, loss_bad, p, r, any_20, any_25):
    model = from_dwell(good, bad, 0.02, loss_good, loss_bad)
    assert model.p == pytest.approx(p, abs=6e-6)
    assert model.r == pytest.approx(r, abs=6e-5)
    assert 100 * model.any_loss(20) == pytest.approx(any_20, abs=0.006)
    assert 100 * model.any_loss(25) == pytest.approx(any_25, abs=0.006)


def test_p_and_r_depend_on_the_spacing_but_the_mean_loss_does_not():
    audio, video = from_dwell(4, 0.04, 0.02), from_dwell(4, 0.04, 0.006)
    assert (round(video.p, 5), round(video.r, 4)) == (0.00139, 0.1392)
    assert video.loss == pytest.approx(audio.loss)
    assert video.p < audio.p


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 0.6), st.floats(1.6, 50))
def test_a_chain_made_from_loss_and_burst_has_that_loss_and_burst(loss, burst):
    model = from_loss(loss, burst)
    assert model.loss == pytest.approx(loss)
    assert model.burst == pytest.approx(burst)


def test_a_burst_too_short_for_its_loss_rate_is_refused_with_the_least_that_works():
    with pytest.raises(UsageError, match=r"mean burst 2 is too short for loss rate 0\.8; give at least 4 packets"):
        from_loss(0.8, 2)
    with pytest.raises(UsageError, match="loss rate 1"):
        from_loss(1.0, 2)


def test_a_fit_counts_bursts():
    model = fit(np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 0], bool))
    assert (model.p, model.r) == (2 / 6, 2 / 4)
    assert fit(np.zeros(5, bool)).p == 0


@pytest.mark.slow
def test_a_fit_recovers_the_chain():
    model = fit(reference_losses(GilbertElliott(p=0.02, r=0.3), 1_000_000, seed=1))
    assert model.p == pytest.approx(0.02, rel=0.03)
    assert model.r == pytest.approx(0.3, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.booleans(), st.lists(st.floats(0, 1, exclude_max=True), max_size=40))
def test_the_vectorised_chain_walks_like_a_loop(p, r, start, moves):
    if p + r == 0:
        return
    model, bad, walked = GilbertElliott(p=p, r=r), start, []
    for u in moves:
        walked.append(bad)
        bad = (u >= r) if bad else (u < p)
    got = chain(model, start, np.array(moves)) if moves else np.zeros(0, bool)
    assert got.tolist() == walked


def test_chains_run_side_by_side():
    moves = np.random.default_rng(0).random((3, 50))
    starts = np.array([True, False, True])
    together = chain(SPEC, starts, moves)
    assert all((together[i] == chain(SPEC, bool(starts[i]), moves[i])).all() for i in range(3))


@pytest.mark.parametrize("wrong", [{"p": 1.5}, {"r": -0.1}, {"loss_bad": float("nan")}, {"p": 0.0, "r": 0.0}])
def test_parameters_that_are_no_probabilities_are_refused(wrong):
    with pytest.raises(UsageError, match=r"Gilbert-Elliott .* give"):
        GilbertElliott(**({"p": 0.1, "r": 0.4} | wrong))
