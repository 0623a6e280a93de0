"""Evaluation: the structural checks of curri-mae.md (e), paired masks, and what is written."""

import csv
import json

import pytest
import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.heads import GRUHead, GRUHeadConfig, LinearHead, LinearHeadConfig
from imputation.baselines import Backoff, Hold, Lerp, Zero
from imputation.calibrate import Calibration
from imputation.curri_mae import curri_mae_tiny
from imputation.evaluate import Arm, answer, calibration_data, evaluate, trials
from imputation.features import FeatureSet
from imputation.imputer import Filled


def data(n: int = 24, length: int = 6, dim: int = 16) -> FeatureSet:
    """Two classes told apart by the sign of the first dimension; both modalities straight lines in time."""
    g = torch.Generator().manual_seed(0)
    label = torch.arange(n) % 2
    start, slope = torch.randn(n, 1, 2, dim, generator=g), torch.randn(n, 1, 2, dim, generator=g) / 4
    features = start + slope * torch.arange(length).view(1, -1, 1, 1)
    features[..., 0] = (2.0 * label - 1).view(-1, 1, 1)
    return FeatureSet.of(
        features, label, ("no", "yes"), speaker=[f"s{i % 3}" for i in range(n)], notes={"clip_seconds": 0.4}
    ).fitted()


def sign_head(dim: int = 16) -> LinearHead:
    """Reads the first dimension of both modalities."""
    head = LinearHead(LinearHeadConfig(classes=2, dim=dim))
    with torch.no_grad():
        head.classifier.weight.zero_()
        head.classifier.bias.zero_()
        head.classifier.weight[1, [0, dim]] = 3.0
    return head.eval()


class Oracle(nn.Module):
    """Fills with the truth."""

    rung = "oracle"

    def __init__(self, truth: Tensor) -> None:
        super().__init__()
        self.truth = truth

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        rows = [
            int(((self.truth - x).abs() * p.unsqueeze(-1)).flatten(1).sum(-1).argmin())  # which window this was
            for x, p in zip(features, presence, strict=True)
        ]
        filled = torch.where(presence.unsqueeze(-1), features, self.truth[rows])
        return Filled(filled, torch.zeros(presence.shape), self.rung)


def test_with_perfect_predictions_the_accuracy_is_the_pristine_one():
    d = data()
    torch.manual_seed(0)
    head = GRUHead(GRUHeadConfig(classes=2, dim=16, hidden=4)).eval()
    results = evaluate([Arm("oracle", head, Oracle(d.standardised()))], d, levels=[0, 2, 3], draws=2)
    assert {round(results.score("oracle", c).accuracy, 9) for c in results.conditions} == {
        round(results.score("oracle", "0/6").accuracy, 9)
    }


def test_backoff_on_complete_windows_is_the_pristine_head():
    d, pristine = data(), sign_head()
    single = nn.Linear(16, 2)
    backoff = Backoff({"both": pristine.classifier, "video": single, "audio": single})
    everything = torch.ones(24, 6, 2, dtype=torch.bool), torch.ones(24, 6, dtype=torch.bool)
    a = answer(Arm("backoff", backoff), d.standardised(), *everything, window=6)
    b = answer(Arm("pristine", pristine, Zero()), d.standardised(), *everything, window=6)
    torch.testing.assert_close(a.log_probabilities, b.log_probabilities)


def test_outputs_at_observed_places_are_never_used():
    d, imputer = data(), curri_mae_tiny(length=6)
    presence = torch.ones(24, 6, 2, dtype=torch.bool)
    presence[:, 2, 0] = False
    said = answer(Arm("mae", sign_head(), imputer), d.standardised(), presence, d.exists, window=6)
    assert torch.equal(said.filled[presence], d.standardised()[presence])


def test_with_nothing_hidden_all_fills_agree_and_one_draw_is_enough():
    d = data()
    arms = [Arm("zero", sign_head(), Zero()), Arm("mae", sign_head(), curri_mae_tiny(length=6).eval())]
    results = evaluate(arms, d, levels=[0], draws=10)
    assert results.score("zero", "0/6").accuracy == results.score("mae", "0/6").accuracy == 1.0
    assert results.score("mae", "0/6").accuracy_std == 0


def test_linear_data_has_no_error_between_observed_ends():
    d = data()
    presence = torch.ones(24, 6, 2, dtype=torch.bool)
    presence[:, 1:5] = False
    said = answer(Arm("lerp", sign_head(), Lerp()), d.standardised(), presence, d.exists, window=6)
    torch.testing.assert_close(said.filled, d.standardised(), atol=1e-5, rtol=1e-5)


def test_every_arm_sees_the_same_masks_and_masks_belong_to_their_sample():
    d = data()
    first = list(trials(d, d.exists, levels=[3], draws=2, seed=0))
    again = list(trials(d, d.exists, levels=[3], draws=2, seed=0))
    part = d.rows(torch.tensor([5, 1]))
    fewer = list(trials(part, part.exists, levels=[3], draws=2, seed=0))
    for a, b, c in zip(first, again, fewer, strict=True):
        assert torch.equal(a.hidden, b.hidden) and torch.equal(c.hidden, a.hidden[[5, 1]])
        assert (a.hidden.sum(1) == 3).all()
    assert not torch.equal(first[0].hidden, first[1].hidden)


def test_another_seed_gives_other_masks():
    d = data()
    one, two = (next(trials(d, d.exists, levels=[3], draws=2, seed=s)) for s in (0, 1))
    assert not torch.equal(one.hidden, two.hidden)


def test_errors_stand_beside_those_of_the_rules():
    d = data()
    results = evaluate([Arm("hold", sign_head(), Hold())], d, levels=[0, 2], draws=3)
    found = {e.fill: e.video for e in results.errors if e.condition == "2/6"}
    assert set(found) == {"hold", "zero", "lerp", "observed_mean"}
    assert found["lerp"] < found["hold"] < found["zero"] * 2
    assert found["zero"] == pytest.approx(1.0, abs=0.5)  # the variance of a standardised feature


def test_a_score_breaks_down_by_speaker_and_differences_are_paired():
    d = data()
    blind = sign_head()
    with torch.no_grad():
        blind.classifier.weight.zero_()
        blind.classifier.bias[1] = 1.0
    results = evaluate(
        [Arm("a", sign_head(), Zero()), Arm("blind", blind, Zero())], d, levels=[0], draws=1, reference="blind"
    )
    assert results.score("a", "0/6").speakers == {"s0": 1.0, "s1": 1.0, "s2": 1.0}
    (difference,) = results.differences
    assert (difference.arm, difference.mean, difference.error) == ("a", pytest.approx(0.5), pytest.approx(0.0))
    assert results.score("blind", "0/6").recall == pytest.approx(0.5)


def test_profiles_are_conditions_of_their_own():
    d = data()
    results = evaluate([Arm("zero", sign_head(), Zero())], d, levels=[0], draws=2, profiles=["clips-50"])
    assert results.conditions == ["0/6", "clips-50"]
    assert 0.3 < results.score("zero", "clips-50").rate < 0.7


def test_lookahead_is_filled_from_but_not_classified():
    d = data()
    seen: list[tuple[int, ...]] = []

    class Watch(Zero):
        def forward(self, features, presence, exists=None):
            assert exists is not None
            seen.append((features.shape[1], int(exists[0].sum())))
            return super().forward(features, presence, exists)

    for ahead in (0, 1, 2):
        evaluate([Arm("x", sign_head(), Watch())], d, levels=[1], draws=1, lookahead=2, ahead=ahead)
    assert seen == [(6, 4), (6, 5), (6, 6)]
    said = answer(Arm("x", sign_head(), Lerp()), d.standardised(), d.presence, d.exists, window=4)
    alone = sign_head()(d.standardised()[:, :4])
    torch.testing.assert_close(said.log_probabilities, alone)


def test_masks_do_not_depend_on_how_far_one_looks_ahead():
    d = data()
    near = d.exists.clone()
    near[:, 5:] = False
    a = next(trials(d, d.exists, levels=[3], draws=1, seed=0))
    b = next(trials(d, near, levels=[3], draws=1, seed=0))
    assert torch.equal(a.hidden[:, :5], b.hidden[:, :5])


def test_calibration_is_applied_and_its_abstentions_counted():
    d = data()
    careful = Calibration(min_share=0.6)
    results = evaluate([Arm("x", sign_head(), Zero(), careful)], d, levels=[0, 4], draws=2)
    assert results.score("x", "0/6").abstained == 0 and results.score("x", "4/6").abstained == 1
    assert results.as_dict()["scores"][1]["answered_accuracy"] is None


def test_calibration_data_covers_all_rates():
    d = data()
    logits, share, label = calibration_data(Arm("x", sign_head(), Zero()), d, draws=2)
    assert len(logits) == len(share) == len(label) == 24 * (1 + 2 * 5)
    assert share.min() == pytest.approx(1 / 6) and share.max() == 1


def test_what_is_written_can_be_read(tmp_path):
    d = data()
    arms = [Arm("zero", sign_head(), Zero()), Arm("lerp", sign_head(), Lerp())]
    results = evaluate(arms, d, levels=[0, 3], draws=2, reference="zero")
    results.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "accuracy.png",
        "calibration.png",
        "errors.csv",
        "reliability.csv",
        "results.json",
        "risk_coverage.csv",
        "scores.csv",
    ]
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["settings"]["draws"] == 2 and len(read["scores"]) == 4
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert {r["arm"] for r in rows} == {"zero", "lerp"} and float(rows[0]["accuracy"]) == 1.0
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_draws_rates_and_whole_clip_profiles(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: drawn.append(list(x)) or plot(self, x, y, **style))
    arms = [Arm("zero", sign_head(), Zero())]
    evaluate(arms, data(), levels=[0, 3], draws=1, profiles=["clips-30", "wifi-burst"]).plot(tmp_path / "a.png")
    ((first, *rest),) = drawn
    assert first == 0 and len(rest) == 2 and rest == sorted(rest)


def test_tables_show_every_arm_and_condition():
    from rich.console import Console

    d = data()
    arms = [Arm("zero", sign_head(), Zero()), Arm("lerp", sign_head(), Lerp())]
    results = evaluate(arms, d, levels=[0, 3], draws=2, reference="zero")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in (results.accuracy_table(), results.accuracy_table("recall"), results.error_table()):
        console.print(table)
    console.print(results.difference_table())
    text = console.export_text()
    for word in ("zero", "lerp", "observed_mean", "0/6", "3/6", "100.0"):
        assert word in text


@pytest.mark.parametrize(
    ("names", "reference", "sentence"), [(("a", "a"), None, "share a name"), (("a", "b"), "c", "reference 'c'")]
)
def test_contradictions_are_refused(names, reference, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate([Arm(n, sign_head(), Zero()) for n in names], data(), reference=reference)
