"""Pooled attention: equal to a reference written out in float64, its distances, its laws, and what it refuses."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.errors import ConfigError, DataError
from encoders.layers import pooled_attention
from encoders.layers.pooled_attention import PooledAttention, TokenPool, relative_index, resize_table

PLAIN: dict[str, Any] = {"kernel_q": (1, 1), "kernel_kv": (1, 1), "stride_q": (1, 1), "stride_kv": (1, 1)}
CASES: dict[str, dict[str, Any]] = {
    "spectrogram": {
        "input_size": (4, 6), "kernel_q": (3, 3), "kernel_kv": (3, 3), "stride_q": (1, 2), "stride_kv": (2, 2),
    },
    "clip": {
        "input_size": (3, 4, 4), "kernel_q": (3, 3, 3), "kernel_kv": (3, 3, 3), "stride_q": (1, 2, 2),
        "stride_kv": (1, 1, 1),
    },
    "keys pooled more": {
        "input_size": (2, 8, 4), "kernel_q": (3, 3, 3), "kernel_kv": (3, 3, 3), "stride_q": (1, 1, 1),
        "stride_kv": (1, 4, 2),
    },
    "odd sides": {
        "input_size": (5, 7), "kernel_q": (3, 3), "kernel_kv": (3, 3), "stride_q": (2, 2), "stride_kv": (2, 1),
    },
    "no pool": {"input_size": (2, 3), **PLAIN},
    "no class token": {
        "input_size": (4, 4), "kernel_q": (3, 3), "kernel_kv": (3, 3), "stride_q": (2, 2), "stride_kv": (2, 2),
        "class_token": False,
    },
    "no distances": {"input_size": (3, 3), "relative": False, **PLAIN | {"kernel_q": (3, 3)}},
    "no residual": {"input_size": (3, 3), "residual": False, **PLAIN | {"kernel_kv": (3, 3)}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def build(**options: Any) -> PooledAttention:
    """Six channels to eight in two heads, in float64, with weights large enough that all of them matter."""
    layer = PooledAttention(6, 8, 2, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def tokens(layer: PooledAttention, grid: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(batch, math.prod(grid) + layer.class_token, 6, dtype=torch.float64)


# --- the reference: every number by itself, no reshape and no library of ours --------------------------------------


def places(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, grid)))


def normed(x: Tensor, pool: TokenPool) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt() * pool.norm.weight + pool.norm.bias


def pooled(pool: TokenPool | None, values: dict[Any, Tensor], grid: tuple[int, ...]) -> tuple[dict[Any, Tensor], Any]:
    """Values by place (the class token's is None) through a depthwise convolution, place by place."""
    if pool is None:
        return values, grid
    kernel, stride = pool.conv.kernel_size, pool.conv.stride
    smaller = tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True))
    out = {None: normed(values[None], pool)} if None in values else {}
    for place in places(smaller):
        total = torch.zeros_like(values[places(grid)[0]])
        for offset in places(kernel):
            source = tuple(p * s + o - k // 2 for p, s, o, k in zip(place, stride, offset, kernel, strict=True))
            if source in values:
                total = total + values[source] * pool.conv.weight[(slice(None), 0, *offset)]
        out[place] = normed(total, pool)
    return out, smaller


def distance(layer: PooledAttention, q: Tensor, at: Any, to: Any, q_grid: Any, k_grid: Any) -> Tensor | float:
    if at is None or to is None:
        return 0.0
    total: Tensor | float = 0.0
    for table, i, j, a, b in zip(layer.distances, at, to, q_grid, k_grid, strict=False):
        row = int(i * max(b / a, 1) - j * max(a / b, 1) + (b - 1) * max(a / b, 1))
        total = total + q @ resize_table(table, 2 * max(a, b) - 1)[row]
    return total


def reference(layer: PooledAttention, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """One example, (N, C) to (M, D)."""
    names = [None] * layer.class_token + places(grid)
    width = layer.out.in_features // layer.heads
    projected = [layer.qkv.weight @ token + layer.qkv.bias for token in x]
    found: dict[Any, list[Tensor]] = {}
    for head in range(layer.heads):
        q, k, v = (
            {n: p[(part * layer.heads + head) * width :][:width] for n, p in zip(names, projected, strict=True)}
            for part in range(3)
        )
        (q, q_grid), (k, k_grid), (v, _) = pooled(layer.query, q, grid), pooled(layer.key, k, grid), pooled(
            layer.value, v, grid
        )  # fmt: skip
        for at, asking in q.items():
            logits = torch.stack(
                [asking @ key / width**0.5 + distance(layer, asking, at, to, q_grid, k_grid) for to, key in k.items()]
            )
            share = logits.exp() / logits.exp().sum()
            answer = sum(s * value for s, value in zip(share, v.values(), strict=True))
            found.setdefault(at, []).append(answer + asking if layer.residual and at is not None else answer)
    return torch.stack([layer.out.weight @ torch.cat(parts) + layer.out.bias for parts in found.values()])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_equation_written_out_in_float64(case):
    """Whichever way distances reach the logits: as channels where they are few, else as a bias."""
    layer = build(**CASES[case])
    grid = CASES[case]["input_size"]
    x = tokens(layer, grid)
    y, _ = layer(x, grid)
    for row, wanted in zip(y, x, strict=True):
        torch.testing.assert_close(row, reference(layer, wanted, grid), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("case", ["spectrogram", "clip", "keys pooled more", "no class token"])
def test_distances_as_channels_and_as_a_bias_are_the_same_and_learn_the_same(case, monkeypatch):
    layer, grid = build(**CASES[case]), CASES[case]["input_size"]
    x, found = tokens(layer, grid), []
    for folded in (0, 1000):
        monkeypatch.setattr(pooled_attention, "FOLDED", folded)
        layer.zero_grad()
        y, _ = layer(x, grid)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in layer.parameters())])
    for bias, channels in zip(*found, strict=True):
        torch.testing.assert_close(channels, bias, atol=1e-11, rtol=1e-11)


def test_channels_keep_no_number_for_every_pair():
    layer = build(input_size=(16, 16), **PLAIN)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        layer(tokens(layer, (16, 16), batch=1), (16, 16))
    assert pooled_attention.FOLDED * 4 < 16 + 16 and max(sizes) >= 257 * 257  # too many places for so few channels
    sizes.clear()
    layer = PooledAttention(6, 64, 2, input_size=(16, 16), **PLAIN)  # in float32, for which there are such kernels
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        layer(torch.randn(1, 257, 6), (16, 16))
    assert max(sizes) < 257 * 257


@torch.no_grad()
def test_on_a_grid_it_was_not_made_for_the_distances_are_resized():
    layer = build(**CASES["spectrogram"])
    x = tokens(layer, (3, 5), batch=1)
    y, grid = layer(x, (3, 5))
    assert grid == (3, 3)
    torch.testing.assert_close(y[0], reference(layer, x[0], (3, 5)), atol=1e-11, rtol=1e-11)


# --- distances --------------------------------------------------------------------------------------------------


def test_distances_are_counted_as_published():
    assert relative_index(4, 2).tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]
    assert relative_index(2, 4).tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]
    assert relative_index(3, 3).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (56, 7), (8, 16)])
def test_every_distance_has_a_row(a, b):
    index = relative_index(a, b)
    assert index.min() >= 0 and index.max() <= 2 * max(a, b) - 2


def test_a_table_is_as_long_as_the_longer_of_queries_and_keys_needs():
    layer = build(**CASES["keys pooled more"])
    assert [len(table) for table in layer.distances] == [3, 15, 7]
    assert len(build(**CASES["clip"]).distances[1]) == 7
    assert not list(build(**CASES["no distances"]).distances)


# --- laws -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_pools_and_distances_the_order_of_tokens_says_nothing():
    layer = build(input_size=(2, 3), relative=False, **PLAIN)
    x, order = tokens(layer, (2, 3)), torch.tensor([0, 4, 1, 6, 2, 5, 3])
    torch.testing.assert_close(layer(x[:, order], (2, 3))[0], layer(x, (2, 3))[0][:, order])


@torch.no_grad()
@pytest.mark.parametrize("case", ["spectrogram", "no pool", "no distances"])
def test_with_either_of_them_it_does(case):
    layer, grid = build(**CASES[case]), CASES[case]["input_size"]
    x = tokens(layer, grid)
    turned = torch.cat((x[:, :1], x[:, 1:].flip(1)), 1)
    assert (layer(turned, grid)[0] - layer(x, grid)[0]).abs().max() > 1e-3


@torch.no_grad()
def test_a_class_token_stands_nowhere():
    layer = build(**CASES["no pool"])
    x, order = tokens(layer, (2, 3)), torch.tensor([0, 4, 1, 6, 2, 5, 3])
    torch.testing.assert_close(layer(x[:, order], (2, 3))[0][:, 0], layer(x, (2, 3))[0][:, 0])


@torch.no_grad()
def test_rows_of_a_batch_do_not_meet():
    layer = build(**CASES["clip"])
    x = tokens(layer, (3, 4, 4), batch=3)
    torch.testing.assert_close(layer(x, (3, 4, 4))[0][1:2], layer(x[1:2], (3, 4, 4))[0])


def test_a_pool_sees_its_kernel_and_no_more():
    pool, x = build(**CASES["spectrogram"]).query, torch.randn(1, 1, 25, 4, dtype=torch.float64, requires_grad=True)
    y, grid = pool(x, (4, 6))
    assert grid == (4, 3)
    y[0, 0, 1 + 1 * 3 + 1].square().sum().backward()  # second row, second column
    looked_at = (x.grad[0, 0, 1:].abs().sum(-1) > 0).view(4, 6).nonzero().tolist()
    assert looked_at == [[row, column] for row in (0, 1, 2) for column in (1, 2, 3)]
    assert not x.grad[0, 0, 0].any()  # nor the class token


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns(case):
    layer, grid = build(**CASES[case]), CASES[case]["input_size"]
    y, _ = layer(tokens(layer, grid), grid)
    y.square().sum().backward()
    assert [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride", "left"), [(7, 2, 4), (8, 2, 4), (8, 4, 2), (9, 8, 2), (5, 1, 5)])
def test_a_grid_that_does_not_divide_is_rounded_up(size, stride, left):
    assert TokenPool(4, (3, 3), (stride, 1))(torch.zeros(1, 2, size * 2, 4), (size, 2))[1] == (left, 2)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 3}, "3 attention heads cannot share a width of 8; use a divisor of 8"),
        ({"heads": 0}, "0 attention heads cannot share a width of 8; use a divisor of 8"),
        ({"input_size": (4,)}, "a grid of 1 axes cannot be pooled; use 2 or 3"),
        ({"stride_q": (2,)}, "stride_q 2 does not fit a grid of 4x6; give 2 whole numbers of at least 1"),
        ({"stride_kv": (0, 1)}, "stride_kv 0x1 does not fit a grid of 4x6; give 2 whole numbers of at least 1"),
        ({"kernel_kv": (2, 3)}, "kernel_kv 2x3 has no middle; use odd numbers"),
        ({"input_size": (4, 1)}, "a grid of 4x1 cannot be pooled by 2 along an axis of 1; use a larger input, or"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as error:
        PooledAttention(6, 8, **{"heads": 2, **CASES["spectrogram"], **changes})
    assert str(error.value).startswith(sentence)


def test_tokens_that_are_not_the_grids_are_refused():
    layer = build(**CASES["spectrogram"])
    with pytest.raises(DataError, match="24 tokens are not those of a grid of 4x6 with a class token; give 25"):
        layer(torch.zeros(1, 24, 6, dtype=torch.float64), (4, 6))
