"""Every imputer against exact answers and the laws of the contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import DataError, UsageError
from imputation.baselines import Backoff, Hold, Lerp, Mean, ObservedMean, Zero
from imputation.curri_mae import curri_mae_tiny, preset
from imputation.gaussian_fit import fit_gaussian
from imputation.imputer import IMPUTERS, build
from imputation.ladder import Ladder
from imputation.nearest import fit_nearest
from imputation.residual import ResidualImputer
from tests.processes import persistent

torch.manual_seed(0)
ALL = {
    "zero": Zero(),
    "mean": Mean(16),
    "hold": Hold(),
    "lerp": Lerp(),
    "observed_mean": ObservedMean(),
    "curri_mae": curri_mae_tiny().eval(),
    "residual": curri_mae_tiny(residual="lerp").eval(),
    "log_variance": curri_mae_tiny(log_variance=True).eval(),
    "no_register": curri_mae_tiny(registers=0).eval(),
    "ladder": Ladder([curri_mae_tiny(registers=0).eval(), Lerp()]),
    "gaussian": fit_gaussian(persistent(60, length=6)),
    "nearest": fit_nearest(persistent(60, length=6), persistent(20, length=6, seed=1), k=5),
    "over_gaussian": ResidualImputer(preset("curri_mae_tiny"), fit_gaussian(persistent(60, length=6))).eval(),
}


def line(values: list[float | None]) -> tuple[Tensor, Tensor]:
    """One window whose two modalities hold these numbers in every dimension; None = absent, and NaN inside."""
    nan = float("nan")
    features = torch.tensor([nan if v is None else v for v in values]).view(1, -1, 1, 1).expand(1, -1, 2, 16)
    presence = torch.tensor([v is not None for v in values]).view(1, -1, 1).expand(1, -1, 2)
    return features.clone(), presence.clone()


def filled(imputer, values: list[float | None]) -> list[float]:
    out = imputer(*line(values)).features
    assert (out == out[:, :, :1, :1]).all()
    return out[0, :, 0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zero", [0, 2, 0, 0, 8, 0]),
        ("mean", [0, 2, 0, 0, 8, 0]),
        ("hold", [2, 2, 2, 2, 8, 8]),
        ("lerp", [2, 2, 4, 6, 8, 8]),
        ("observed_mean", [5, 2, 5, 5, 8, 5]),
    ],
)
def test_a_baseline_fills_as_computed_by_hand(name, expected):
    assert filled(ALL[name], [None, 2.0, None, None, 8.0, None]) == expected


@given(start=st.integers(-50, 50), step=st.integers(-8, 8), hidden=st.sets(st.integers(1, 6)))
def test_linear_data_is_interpolated_without_error(start, step, hidden):
    truth = [float(start + step * i) for i in range(8)]
    seen = [None if i in hidden else v for i, v in enumerate(truth)]
    assert filled(Lerp(), seen) == pytest.approx(truth, abs=1e-4)


def test_mean_fills_with_the_given_vector_of_each_modality():
    value = torch.arange(32.0).view(2, 16)
    features, presence = line([1.0, None])
    assert torch.equal(Mean(16, value)(features, presence).features[0, 1], value)


def test_a_modality_without_any_observation_is_filled_with_the_mean():
    features, presence = line([1.0, 3.0, 5.0])
    presence[:, :, 1] = False
    for name in ("hold", "lerp", "observed_mean"):
        out = ALL[name](features, presence).features
        assert torch.equal(out[:, :, 0], features[:, :, 0]) and not out[:, :, 1].any(), name


@st.composite
def window(draw, rows: int = 3, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Random features, presence and existing positions; whatever is not to be read is NaN."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    features = torch.randn(rows, length, 2, 16, generator=generator)
    presence = torch.rand(rows, length, 2, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    exists = torch.rand(rows, length, generator=generator) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    poisoned = torch.where((presence & exists.unsqueeze(-1)).unsqueeze(-1), features, float("nan"))
    return poisoned, presence, exists


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(window())
def test_only_absent_places_that_exist_change_and_they_become_finite(name, given_window):
    features, presence, exists = given_window
    with torch.inference_mode():
        out = ALL[name](features, presence, exists)
    absent = ~presence & exists.unsqueeze(-1)
    assert same(out.features[~absent], features[~absent])
    assert out.features[absent].isfinite().all()
    assert (out.variance[absent] > 0).all() and not out.variance[~absent].any()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10, deadline=None)
@given(window())
def test_rows_do_not_know_of_each_other(name, given_window):
    features, presence, exists = given_window
    order = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        whole = ALL[name](features, presence, exists)
        turned = ALL[name](features[order], presence[order], exists[order])
        alone = [ALL[name](features[i : i + 1], presence[i : i + 1], exists[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(turned.features, whole.features[order], equal_nan=True, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.cat([a.features for a in alone]), whole.features, equal_nan=True, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(torch.cat([a.variance for a in alone]), whole.variance)


@pytest.mark.parametrize("name", ALL)
def test_what_stands_at_an_absent_place_or_beyond_the_stream_is_never_read(name):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 6, 2, 16, generator=generator)
    presence = torch.rand(2, 6, 2, generator=generator) < 0.5
    exists = torch.tensor([[False, True, True, True, True, False]] * 2)
    known = (presence & exists.unsqueeze(-1)).unsqueeze(-1)
    with torch.inference_mode():
        a = ALL[name](torch.where(known, features, 7.0), presence, exists).features
        b = ALL[name](torch.where(known, features, -3.0), presence, exists).features
    assert torch.equal(a[:, 1:5], b[:, 1:5])


@pytest.mark.parametrize("name", ALL)
def test_a_complete_window_comes_back_as_it_was(name):
    features = torch.randn(2, 5, 2, 16)
    with torch.inference_mode():
        out = ALL[name](features, torch.ones(2, 5, 2, dtype=torch.bool))
    assert torch.equal(out.features, features) and not out.variance.any()


@pytest.mark.parametrize("name", ALL)
def test_one_window_filled_twice_is_byte_equal(name):
    features, presence = torch.randn(1, 6, 2, 16), torch.rand(1, 6, 2) < 0.6
    with torch.inference_mode():
        assert same(ALL[name](features, presence).features, ALL[name](features, presence).features)


def test_every_registered_imputer_is_built_by_its_name():
    options = {
        "mean": {"width": 16},
        "gaussian": {"dim": 16},
        "nearest": {"dim": 16, "bank": 20},
        "residual": {"preset": "curri_mae_tiny"},
        "curri_mae_base": {"width": 24, "depth": 1, "decoder_width": 32, "decoder_depth": 1},
    }
    for name in IMPUTERS:
        imputer = build(name, **options.get(name, {}))
        assert imputer.rung == (name if name in ALL else "curri_mae")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build("lerpp"), "did you mean lerp"),
        (lambda: build("curri_mae_tiny", widht=3), "widht"),
        (lambda: build("curri_mae_tiny", residual="hold"), "residual 'hold' is unknown"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_wrong_name_is_a_usage_error():
    with pytest.raises(UsageError):
        build("magic")


@pytest.mark.parametrize(
    ("features", "presence", "exists", "sentence"),
    [
        (torch.zeros(1, 4, 3, 2), torch.ones(1, 4, 3) > 0, None, r"features have shape \(1, 4, 3, 2\)"),
        (torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2), None, "presence is torch.float32"),
        (
            torch.zeros(1, 4, 2, 2),
            torch.ones(1, 4, 2) > 0,
            torch.ones(1, 5) > 0,
            r"exists is torch.bool of shape \(1, 5\)",
        ),
    ],
)
def test_wrong_shapes_are_refused_in_one_sentence(features, presence, exists, sentence):
    with pytest.raises(DataError, match=sentence):
        Lerp()(features, presence, exists)


class TestLadder:
    """The first rung that applies to each window."""

    presence = torch.tensor(
        [
            [[True, True], [True, True], [True, True]],  # nothing absent
            [[True, True], [False, True], [False, False]],  # something of both
            [[True, False], [False, False], [True, False]],  # no audio at all
            [[False, False], [False, False], [False, False]],  # nothing at all
        ]
    )

    def test_each_window_takes_the_first_rung_that_applies(self):
        ladder = Ladder([curri_mae_tiny(registers=0), Lerp()])
        out = ladder(torch.randn(4, 3, 2, 16), self.presence)
        assert out.rungs == ("observed", "curri_mae", "lerp", "zero")
        assert out.rung_of(2) == "lerp"

    def test_a_register_lets_the_autoencoder_fill_a_modality_that_is_gone(self):
        out = Ladder([curri_mae_tiny(), Lerp()])(torch.randn(4, 3, 2, 16), self.presence)
        assert out.rungs == ("observed", "curri_mae", "curri_mae", "zero")

    def test_a_rung_may_ask_for_a_least_observed_share(self):
        out = Ladder([Hold(), Lerp()], min_shares=[0.4, 0.0])(torch.randn(4, 3, 2, 16), self.presence)
        assert out.rungs == ("observed", "hold", "lerp", "zero")  # 3 of 6, 2 of 6

    def test_rows_are_filled_as_their_rung_alone_would(self):
        features = torch.randn(4, 3, 2, 16)
        out = Ladder([Lerp()])(features, self.presence)
        assert torch.equal(out.features[1:3], Lerp()(features, self.presence).features[1:3])
        assert not out.features[3].any()

    def test_one_window_has_one_rung(self):
        out = Ladder([Lerp()])(torch.randn(1, 3, 2, 16), self.presence[1:2])
        assert out.rung == out.rung_of(0) == "lerp"

    def test_an_empty_ladder_fills_with_zeros(self):
        assert Ladder()(torch.randn(1, 3, 2, 16), self.presence[1:2]).rung == "zero"

    def test_shares_and_rungs_must_match(self):
        with pytest.raises(ValueError, match="min_shares has 2 values for 1 rungs"):
            Ladder([Lerp()], min_shares=[0.1, 0.2])


class Fixed(torch.nn.Module):
    """A classifier that always gives these logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(*x.shape[:-1], -1)


class TestBackoff:
    arm = Backoff({"both": Fixed(9.0, 0.0, 0.0), "video": Fixed(0.0, 9.0, 0.0), "audio": Fixed(0.0, 0.0, 9.0)})

    def test_each_clip_votes_with_the_classifier_of_what_it_has(self):
        presence = torch.tensor([[[True, True], [True, False], [False, True], [False, False]]])
        probabilities = self.arm(torch.zeros(1, 4, 2, 3), presence).exp()[0]
        assert probabilities.tolist() == pytest.approx([1 / 3] * 3, abs=1e-3)

    def test_complete_windows_only_hear_the_joint_classifier(self):
        probabilities = self.arm(torch.zeros(1, 4, 2, 3), torch.ones(1, 4, 2, dtype=torch.bool)).exp()[0]
        assert probabilities[0] > 0.999

    def test_an_empty_window_says_nothing(self):
        probabilities = self.arm(torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, dtype=torch.bool)).exp()[0]
        assert probabilities.tolist() == pytest.approx([1 / 3] * 3)

    def test_a_clip_that_does_not_exist_has_no_vote(self):
        presence = torch.tensor([[[True, False], [False, True]]])
        probabilities = self.arm(torch.zeros(1, 2, 2, 3), presence, torch.tensor([[True, False]])).exp()[0]
        assert probabilities[1] > 0.99


class TestVariance:
    def test_the_table_learns_how_error_grows_with_distance(self):
        imputer = Hold()
        generator = torch.Generator().manual_seed(0)
        presence = torch.rand(400, 8, 2, generator=generator) < 0.5
        position = torch.arange(8).view(1, 8, 1).expand(400, 8, 2)
        nearest = torch.where(presence, position, -100).cummax(1).values
        errors = (position - nearest).float()  # held for d clips, wrong by d
        usable = ~presence & (nearest >= 0)
        imputer.variance.fit(errors, presence, usable)
        near = torch.tensor([[[True, True], [False, True], [True, True]]])
        far = torch.tensor([[[True, True], [False, True], [False, True], [False, True]]])
        one = imputer(torch.zeros(1, 3, 2, 16), near).variance[0, 1, 0]
        three = imputer(torch.zeros(1, 4, 2, 16), far).variance[0, 3, 0]
        assert three > one > 0

    def test_a_situation_never_seen_gets_the_overall_error(self):
        imputer = Lerp()
        presence = torch.tensor([[[True, True], [False, True], [True, True]]])
        imputer.variance.fit(torch.full((1, 3, 2), 0.25), presence, ~presence)
        nothing = torch.zeros(1, 3, 2, dtype=torch.bool)
        assert imputer(torch.zeros(1, 3, 2, 16), nothing).variance[0, 0, 0].item() == pytest.approx(0.25)
