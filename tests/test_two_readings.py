"""A head that reads a damaged window as it was filled and with zeros, and answers with the mean of both."""

import pytest
import torch

from encoders.errors import ConfigError
from encoders.heads import build_head
from encoders.two_readings import TwoReadingsConfig
from imputation.baselines import Lerp, Zero
from imputation.features import FeatureSet
from imputation.stored import load_head, save_head
from imputation.train_head import HeadTraining, train_head

MEMBERS = ("linear", "gru")


def head_of(member, **config):
    torch.manual_seed(0)
    return build_head("two_readings", classes=3, dim=6, member=member, **({"hidden": 8} | config)).eval()


def window(batch=4, length=5):
    random = torch.Generator().manual_seed(1)
    features = torch.randn(batch, length, 2, 6, generator=random)
    return features, torch.rand(batch, length, 2, generator=random) > 0.4


@pytest.mark.parametrize("member", MEMBERS)
def test_its_answer_is_the_mean_of_what_both_members_say(member):
    head, (features, presence) = head_of(member), window()
    empty = torch.where(presence[..., None], features, 0)
    said = [head.members["filled"](features, presence), head.members["zeros"](empty, presence)]
    torch.testing.assert_close(head(features, presence).exp(), sum(x.softmax(-1) for x in said) / 2)


@pytest.mark.parametrize("member", MEMBERS)
def test_only_one_member_believes_a_fill(member):
    head, (features, presence) = head_of(member), window()
    other = torch.where(presence[..., None], features, features + 1)
    before, after = (head.each(x, presence)[0] for x in (features, other))
    assert not torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("member", MEMBERS)
def test_a_whole_window_is_read_alike_by_members_that_are_alike(member):
    head, (features, _) = head_of(member), window()
    head.begin_as(head.members["zeros"])
    alone = head.members["zeros"](features).log_softmax(-1)
    torch.testing.assert_close(head(features, torch.ones(4, 5, 2, dtype=torch.bool)), alone)


@pytest.mark.parametrize("member", MEMBERS)
def test_it_is_kept_and_read_back(member, tmp_path):
    head, (features, presence) = head_of(member), window()
    save_head(tmp_path, head)
    assert torch.equal(load_head(tmp_path)(features, presence), head(features, presence))


def test_both_members_learn_in_the_same_steps(tmp_path):
    random = torch.Generator().manual_seed(2)
    label = torch.arange(24) % 3
    features = torch.randn(3, 1, 2, 6, generator=random)[label] + 0.3 * torch.randn(24, 5, 2, 6, generator=random)
    data = FeatureSet.of(features, label, ("a", "b", "c")).fitted()
    start = head_of("gru")
    config = HeadTraining(kind="two_readings", overrides={"member": "gru", "hidden": 8}, sampling="all", steps=30,
                          batch=24, lr=1e-2)  # fmt: skip
    learned, _ = train_head(config, data, data, tmp_path, imputer=Lerp(), head=start)
    for name in ("filled", "zeros"):
        assert not torch.equal(learned.members[name].classifier.weight, start.members[name].classifier.weight)
    fill, hidden = Zero(), torch.rand(24, 5, 2, generator=random) < 0.4
    filled = fill(data.standardised(), ~hidden).features
    assert (learned(filled, ~hidden).argmax(-1) == label).float().mean() > 0.8


def test_nothing_that_is_said_is_ever_minus_infinity():
    head, (features, presence) = head_of("gru"), window()
    with torch.no_grad():
        for member in head.members.values():
            member.classifier.bias.copy_(torch.tensor([1e4, 0.0, -1e4]))
    assert torch.isfinite(head(features, presence)).all()


def test_a_member_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="member 'mbt' is unknown; use linear or gru"):
        TwoReadingsConfig(classes=3, member="mbt")
    with pytest.raises(ConfigError, match="hidden 0 must be >= 1"):
        head_of("gru", hidden=0)
