"""MMT's contrastive losses against sums written out, and the laws that they keep."""

import math

import pytest
import torch

from encoders.audiovisual import mmt_losses
from encoders.audiovisual.mmt_losses import HybridConfig, contrast, contrasts, from_everywhere
from encoders.errors import ConfigError
from encoders.objectives import alike

ONE = (slice(0, 3),)
CLASSES = [0, 1, 0, 2, 1, 0]


def rows(count=6, width=5, seed=0):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def targets(classes=CLASSES):
    return torch.eye(3)[classes]


def by_hand(a, b, positive, temperature):
    """Anchors in ``a``: the mean over anchors of the mean over positives of -log p, number by number."""
    total = 0.0
    for i in range(len(a)):
        similar = [float(torch.dot(a[i] / a[i].norm(), x / x.norm())) / temperature for x in b]
        whole = math.log(sum(math.exp(s) for s in similar))
        mine = [j for j in range(len(b)) if positive[i][j]]
        total -= sum(similar[j] - whole for j in mine) / len(mine)
    return total / len(a)


def info_nce(a, b, temperature=0.07):
    a, b = (torch.nn.functional.normalize(x) for x in (a, b))
    own = torch.arange(len(a))
    return sum(torch.nn.functional.cross_entropy(s, own) for s in (a @ b.T / temperature, b @ a.T / temperature)) / 2


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrast_is_the_sum_written_out(temperature):
    a, b, positive = rows(), rows(seed=1), alike(targets(), ONE)
    expected = (by_hand(a, b, positive, temperature) + by_hand(b, a, positive, temperature)) / 2
    assert contrast(a, b, positive, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_with_all_classes_different_it_is_symmetric_info_nce():
    a, b = rows(3), rows(3, seed=1)
    assert contrast(a, b, alike(torch.eye(3), ONE)).item() == pytest.approx(info_nce(a, b).item(), rel=1e-12)


def test_with_one_class_it_is_the_mean_over_all_pairs():
    a, b = rows(), rows(seed=1)
    scores = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.07
    expected = -(scores.log_softmax(1).mean() + scores.T.log_softmax(1).mean()) / 2
    assert contrast(a, b, alike(targets([1] * 6), ONE)).item() == pytest.approx(expected.item(), rel=1e-12)


def test_order_length_and_sides_do_not_matter():
    a, b, positive = rows(), rows(seed=1), alike(targets(), ONE)
    loss, order = contrast(a, b, positive), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = contrast(a[order], b[order], positive[order][:, order])
    for other in (moved, contrast(b, a, positive), contrast(a * 7, b / 3, positive)):
        assert other.item() == pytest.approx(loss.item(), rel=1e-12)


def test_half_precision_is_contrasted_in_float32():
    a, b, positive = rows().bfloat16(), rows(seed=1).bfloat16(), alike(targets(), ONE)
    assert contrast(a, b, positive).dtype == torch.float32
    assert contrast(a, b, positive) == contrast(a.float(), b.float(), positive)


def test_gradients_are_those_of_differences():
    a, b, positive = rows(4).requires_grad_(), rows(4, seed=1).requires_grad_(), alike(targets()[:4], ONE)
    assert torch.autograd.gradcheck(lambda x, y: contrast(x, y, positive), (a, b))


def test_of_no_rows_the_loss_is_zero_and_has_a_gradient():
    a, b = rows(0).requires_grad_(), rows(0).requires_grad_()
    loss = contrast(a, b, torch.zeros(0, 0, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and a.grad is not None


# --- the hybrid objective ---


def hybrid(presence=None, repeats=2, **changes):
    embedded = {"video": rows(), "audio": rows(seed=1)}
    there = torch.ones(6, 2, dtype=torch.bool) if presence is None else presence
    labels = targets([0, 0, 1, 1, 0, 0]) if repeats == 2 else targets()
    found = contrasts(HybridConfig(**changes), embedded, labels, there, segments=ONE, repeats=repeats)
    return {name: value.item() for name, value in found.items()}, embedded, labels


def test_parts_are_weighted_as_equation_8_says():
    found, embedded, labels = hybrid()
    video, audio = embedded.values()
    positive = alike(labels[::2], ONE)
    between = sum(contrast(video[r::2], audio[r::2], positive) for r in range(2)) / 2
    within = (contrast(video[::2], video[1::2], positive) + contrast(audio[::2], audio[1::2], positive)) / 2
    assert found["audio_video"] == pytest.approx(0.25 * between.item())
    assert found["within"] == pytest.approx(0.25 * within.item())
    twice, *_ = hybrid(between_weight=0.5, within_weight=1.0)
    assert twice["audio_video"] == pytest.approx(2 * found["audio_video"])
    assert twice["within"] == pytest.approx(4 * found["within"])


def test_each_switch_takes_its_part_away():
    assert set(hybrid(within="none")[0]) == {"audio_video"}
    assert set(hybrid(between="none")[0]) == {"within"}
    assert hybrid(between_weight=0.0, within_weight=0.0)[0] == {}
    assert hybrid(between="none", within="none")[0] == {}


def test_instance_positives_know_no_classes():
    found, embedded, _ = hybrid(between="instance", within="instance")
    video, audio = embedded.values()
    between = sum(info_nce(video[r::2], audio[r::2]) for r in range(2)) / 2
    assert found["audio_video"] == pytest.approx(0.25 * between.item())
    within = (info_nce(video[::2], video[1::2]) + info_nce(audio[::2], audio[1::2])) / 2
    assert found["within"] == pytest.approx(0.25 * within.item())


def test_what_is_absent_is_no_partner():
    there = torch.ones(6, 2, dtype=torch.bool)
    there[2:4, 1] = False  # the second sample has no sound
    found, embedded, labels = hybrid(there)
    kept = [0, 1, 4, 5]
    video, audio = (x[kept] for x in embedded.values())
    positive = alike(labels[kept][::2], ONE)
    between = sum(contrast(video[r::2], audio[r::2], positive) for r in range(2)) / 2
    assert found["audio_video"] == pytest.approx(0.25 * between.item())
    silent = torch.tensor([True, False]).expand(6, 2)
    assert hybrid(silent)[0]["audio_video"] == 0


def test_without_repeats_every_row_is_a_sample():
    found, embedded, labels = hybrid(repeats=1, within="none")
    expected = contrast(*embedded.values(), alike(labels, ONE))
    assert found["audio_video"] == pytest.approx(0.25 * expected.item())


def test_shared_by_processes_the_mean_gradient_is_that_of_one(monkeypatch):
    a, b, positive = rows(), rows(seed=1), alike(targets(), ONE)
    whole = a.clone().requires_grad_()
    contrast(whole, b, positive).backward()
    means = []
    for rank in range(2):  # a process holds three rows, and computes the loss of all
        own = a[3 * rank : 3 * rank + 3].clone().requires_grad_()
        monkeypatch.setattr(mmt_losses, "world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(mmt_losses, "gather_rows", lambda _: a)
        loss = contrast(from_everywhere(own), b, positive)
        loss.backward()
        means.append(own.grad / 2)
        assert loss.item() == pytest.approx(contrast(a, b, positive).item(), rel=1e-12)
    torch.testing.assert_close(torch.cat(means), whole.grad)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"between": "labels"}, "between 'labels' names no positives; use none, instance or label"),
        ({"within_weight": -1.0}, "within_weight -1.0 must be >= 0; use 0 for none"),
        ({"temperature": 0.0}, "temperature 0.0 must be > 0"),
        ({"temperature": math.nan}, "temperature nan must be > 0"),
        ({"width": 0}, "embeddings of width 0 hold nothing"),
    ],
)
def test_contradictions_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        HybridConfig(**changes)
