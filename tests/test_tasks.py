"""Targets, losses and measures of a classifier's questions; the optimiser and the running mean beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from encoders.cost import how_much
from encoders.datasets.sample import Sample
from encoders.ema import EMA
from encoders.errors import ConfigError, DataError
from encoders.sgd import SGD
from encoders.tasks import LabelTask, mean_average_precision, top_share
from encoders.training import linear

NOUN_VERB = LabelTask(classes=("noun:cup", "noun:pan", "noun:tap", "verb:open", "verb:wash"), kind="noun_verb")


def sample(label="", **notes):
    return Sample(path=Path("x.mp4"), label=label, notes=notes)


def test_nouns_come_before_verbs_and_each_has_its_own_softmax():
    targets = NOUN_VERB.targets([sample(noun="pan", verb="wash"), sample(noun="cup", verb="open")])
    assert targets.tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    nouns = F.cross_entropy(logits[:, :3], torch.tensor([1, 0]), label_smoothing=0.2)
    verbs = F.cross_entropy(logits[:, 3:], torch.tensor([1, 0]), label_smoothing=0.2)
    torch.testing.assert_close(NOUN_VERB.compute_loss(logits, targets, 0.2), (nouns + verbs) / 2)


def test_an_action_is_right_when_noun_and_verb_are():
    actions = (("pan", "wash"), ("cup", "open"), ("tap", "open"))
    targets = NOUN_VERB.targets([sample(noun=noun, verb=verb) for noun, verb in actions])
    scores = targets.clone()
    scores[1, :3] = torch.tensor([0.0, 1.0, 0.0])  # wrong noun, right verb
    found = NOUN_VERB.measure(scores, targets)
    assert found == {"action": pytest.approx(2 / 3), "noun": pytest.approx(2 / 3), "verb": 1.0}
    # the most likely pair of the outer product is the pair of the most likely
    logits = torch.randn(5, generator=torch.Generator().manual_seed(1))
    outer = logits[:3].softmax(0)[:, None] * logits[3:].softmax(0)[None]
    assert divmod(int(outer.argmax()), 2) == (int(logits[:3].argmax()), int(logits[3:].argmax()))


def test_losses_are_torch_s_own_for_hard_targets():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    true, targets = torch.tensor([0, 2, 1, 1]), torch.eye(3)[[0, 2, 1, 1]]
    single = LabelTask(classes=("a", "b", "c"))
    torch.testing.assert_close(single.compute_loss(logits, targets), F.cross_entropy(logits, true))
    sigmoid = LabelTask(classes=("a", "b", "c"), loss="sigmoid")
    expected = F.binary_cross_entropy_with_logits(logits, targets) * 3  # summed over classes
    torch.testing.assert_close(sigmoid.compute_loss(logits, targets), expected)


def test_average_precision_against_an_exact_answer():
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    assert mean_average_precision(scores, torch.tensor([[1.0], [0], [1], [0]])) == pytest.approx((1 + 2 / 3) / 2)
    both = mean_average_precision(torch.rand(4, 2), torch.tensor([[1.0, 0]] * 4))
    assert both == 1.0  # a class that never occurs does not count
    with pytest.raises(DataError, match="no class occurs"):
        mean_average_precision(torch.rand(2, 2), torch.zeros(2, 2))
    random = np.random.default_rng(0)
    score, true = random.random(300), random.random(300) < 0.2
    order = np.argsort(-score)
    ranks = np.flatnonzero(true[order]) + 1
    exact = np.mean(np.arange(1, len(ranks) + 1) / ranks)
    found = mean_average_precision(torch.from_numpy(score)[:, None], torch.from_numpy(true)[:, None].float())
    assert found == pytest.approx(exact)


def test_top_k_counts_the_true_class_among_the_highest():
    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, 3, 2]])
    targets = torch.eye(3)[[1, 2, 0]]
    assert [top_share(scores, targets, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LabelTask(classes=("a",)), ConfigError, "decides nothing; give two or more"),
        (lambda: LabelTask(classes=("a", "a")), ConfigError, "a class of the task is listed twice"),
        (lambda: LabelTask(classes=("a", "b"), kind="multi"), ConfigError, "several classes per sample need"),
        (lambda: LabelTask(classes=("a", "b"), kind="noun_verb"), ConfigError, "are nouns and verbs; give both"),
        (lambda: LabelTask(classes=("a", "b")).targets([sample("c")]), DataError, "'c', which is none of the head's 2"),
        (lambda: LabelTask(classes=("a", "b")).targets([sample()]), DataError, "x.mp4 has no label"),
        (lambda: NOUN_VERB.targets([sample("a")]), DataError, "has no noun and verb"),
    ],
)
def test_questions_that_make_no_sense_are_one_sentence(make, error, says):
    with pytest.raises(error, match=says):
        make()


# --- the optimiser ---


def steps_of(make, count=5):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    optimizer = make([weight])
    for _ in range(count):
        optimizer.zero_grad()
        (weight.square().sum() + weight.sum()).backward()
        optimizer.step()
    return weight.detach(), optimizer


def test_our_sgd_is_torch_s_and_bf16_is_only_what_is_stored():
    theirs, _ = steps_of(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    ours, _ = steps_of(lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    torch.testing.assert_close(ours, theirs)
    short, optimizer = steps_of(lambda p: SGD(p, lr=0.1, momentum_dtype=torch.bfloat16))
    (state,) = optimizer.state.values()
    assert state["momentum"].dtype == torch.bfloat16
    whole, _ = steps_of(lambda p: SGD(p, lr=0.1))
    torch.testing.assert_close(short, whole, atol=2e-2, rtol=1e-2)
    assert not torch.equal(short, whole)


def test_bf16_momentum_survives_a_checkpoint_bit_for_bit():
    """torch makes a restored buffer fp32; the next step stores bf16 again."""
    make = lambda p: SGD(p, lr=0.1, momentum_dtype=torch.bfloat16)  # noqa: E731
    whole, _ = steps_of(make, 6)
    weight, optimizer = steps_of(make, 3)
    again = torch.nn.Parameter(weight.clone())
    other = make([again])
    other.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        other.zero_grad()
        (again.square().sum() + again.sum()).backward()
        other.step()
    assert torch.equal(again, whole)


def test_a_weight_without_gradient_is_left_alone():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = SGD(weights, lr=0.1)
    weights[0].sum().backward()
    optimizer.step()
    assert weights[0].tolist() == pytest.approx([0.9, 0.9]) and weights[1].tolist() == [1, 1]


def test_the_running_mean_follows_and_its_decay_rises():
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.99)
    mean, steps = model.weight.item(), []
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(model)
        decay = min(0.99, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * step
        steps.append(float(ema.model.weight))
    assert steps[-1] == pytest.approx(mean, rel=1e-4)
    assert not any(p.requires_grad for p in ema.parameters())
    with pytest.raises(ConfigError, match="ema 1 must lie between 0 and 1"):
        EMA(model, 1)


def test_a_straight_line_falls_to_its_floor():
    factor = linear(0.1, 0.01)
    assert [factor(x) for x in (0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.5, 1, 0.505, 0.01])


def test_the_cost_is_told_in_words():
    assert how_much(284_400_000_000, 214_000 * 30) == "284 GMAC a clip, about 11 EFLOP in all"
    assert how_much(1, 1) == "1 MAC a clip, about 6 FLOP in all"
