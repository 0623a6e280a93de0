"""LARC around Adam against its rule written out, number by number, in float64."""

import copy
import math

import pytest
import torch

from encoders.errors import ConfigError
from encoders.larc import LARCAdam, clip_to_trust

SHAPES = [(4, 3), (5,), (2, 3, 3), (1,)]


def parameters(seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64)) for s in SHAPES]
    for i, p in enumerate(made):
        p.grad = scale * 10.0**i * torch.randn(p.shape, generator=draw, dtype=torch.float64)
    return made


def expected(p, lr, decay, trust=1e-3, eps=1e-8):
    """The rule in plain Python: a list of numbers."""
    weight, gradient = p.detach().flatten().tolist(), p.grad.flatten().tolist()
    long, steep = (math.sqrt(sum(x * x for x in values)) for values in (weight, gradient))
    if long == 0 or steep == 0:
        return gradient
    local = trust * long / (steep + decay * long + eps)
    return [(g + decay * w) * min(local / lr, 1.0) for g, w in zip(gradient, weight, strict=True)]


@pytest.mark.parametrize("lr", [2e-4, 2e-3, 10.0])
@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.3])
def test_gradients_are_those_of_the_rule(lr, decay):
    made = parameters()
    wanted = [expected(p, lr, decay) for p in made]
    clip_to_trust(made, lr=lr, weight_decay=decay)
    for p, want in zip(made, wanted, strict=True):
        assert p.grad.flatten().tolist() == pytest.approx(want, rel=1e-12)


def test_a_small_step_is_left_alone_and_a_large_one_held_back():
    """Clip mode: never more than the learning rate itself, never more than a share of the weight's own length."""
    (p,), lr = parameters()[:1], 1e-3
    p.grad *= 1e-6 / p.grad.norm()
    before = p.grad.clone()
    clip_to_trust([p], lr=lr, weight_decay=0.0)
    torch.testing.assert_close(p.grad, before)  # local rate far above lr
    p.grad *= 1e9
    clip_to_trust([p], lr=lr, weight_decay=0.0)
    assert float(lr * p.grad.norm() / p.detach().norm()) == pytest.approx(1e-3, rel=1e-6)


def test_what_has_no_length_is_left_to_adam_undecayed():
    still = torch.nn.Parameter(torch.zeros(3))  # a fresh bias
    still.grad = torch.tensor([1.0, 2.0, 3.0])
    flat = torch.nn.Parameter(torch.ones(3))
    flat.grad = torch.zeros(3)
    unused = torch.nn.Parameter(torch.ones(3))
    clip_to_trust([still, flat, unused], lr=1.0, weight_decay=0.5)
    assert still.grad.tolist() == [1.0, 2.0, 3.0] and flat.grad.tolist() == [0.0, 0.0, 0.0] and unused.grad is None


def test_a_learning_rate_of_zero_holds_nothing_back():
    """The first step of a warm-up."""
    made = parameters()
    before = [p.grad.clone() for p in made]
    clip_to_trust(made, lr=0.0, weight_decay=0.0)
    assert all(torch.equal(p.grad, b) for p, b in zip(made, before, strict=True))


def test_adam_goes_on_with_the_changed_gradient_and_without_decay():
    ours, plain = parameters(3), parameters(3)
    larc = LARCAdam([{"params": ours, "weight_decay": 0.1}], lr=2e-3)
    adam = torch.optim.Adam(plain, lr=2e-3)
    for step in range(4):
        for p, q, fresh in zip(ours, plain, parameters(7 + step, 3.0), strict=True):
            p.grad = fresh.grad.clone()
            q.grad = torch.tensor(expected(p, 2e-3, 0.1), dtype=torch.float64).view(q.shape)
        larc.step()
        adam.step()
    for p, q in zip(ours, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert larc.param_groups[0]["weight_decay"] == 0.1


def test_groups_go_by_their_own_rates():
    slow, fast = parameters(1)[:1], parameters(1)[:1]
    optimizer = LARCAdam([{"params": slow, "lr": 1e-6}, {"params": fast, "lr": 1e-1}], lr=1.0)
    before = slow[0].detach().clone()
    optimizer.step()
    moved = [float((p[0].detach() - before).norm()) for p in (slow, fast)]
    assert moved[1] > 1e4 * moved[0]


def test_a_state_goes_on_where_it_was():
    one, other = parameters(5), parameters(5)
    first, second = LARCAdam(one, lr=1e-2, weight_decay=0.1), LARCAdam(other, lr=1e-2, weight_decay=0.1)
    first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        for p, q in zip(one, other, strict=True):
            q.copy_(p)
            p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    first.step()
    second.step()
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_a_trust_of_zero_is_refused():
    with pytest.raises(ConfigError, match="trust 0 must be > 0"):
        LARCAdam(parameters(), trust=0)
