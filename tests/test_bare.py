"""The calls a model is made of, noted and played again (bench.bare); and the page on attention's cost."""

import sys

import pytest
import torch

from bench import attention
from bench.bare import Bare, Result
from encoders.layers.block import Block
from encoders.video.vivit import ViViT, ViViTConfig


def names(bare: Bare) -> list[str]:
    return [call.function.__name__ for call in bare.calls]


def test_a_block_is_two_norms_six_products_a_gelu_and_one_attention():
    block, x = Block(8, 2, 16), torch.randn(2, 3, 8)
    bare = Bare(lambda: block(x))
    wanted = ["layer_norm", "linear", "linear", "linear", "scaled_dot_product_attention", "linear"]
    assert names(bare) == [*wanted, "layer_norm", "linear", "gelu", "linear"]


def test_a_call_is_given_what_an_earlier_one_gave():
    block, x = Block(8, 2, 16), torch.randn(2, 3, 8)
    calls = Bare(lambda: block(x)).calls
    assert [call.arguments[0] for call in calls[1:4]] == [Result(0)] * 3  # query, key and value read the norm
    assert calls[8].arguments[0] == Result(7) and calls[9].arguments[0] == Result(8)
    query = calls[4].arguments[0]  # went through a view: a tensor of its own, laid out as the real one
    assert query.shape == (2, 2, 3, 4) and query.stride() == (24, 4, 8, 1)


def test_every_stand_in_gets_a_gradient_and_is_rid_of_it(monkeypatch):
    model = ViViT(ViViTConfig(dim=8, depth=1, heads=2, mlp_dim=16, tubelet=(2, 4, 4), frames=4, size=8))
    bare = Bare(lambda: model(torch.randn(1, 3, 4, 8, 8)))
    seen = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a: (backward(*a), seen.extend(x.grad for x in bare.own)))
    bare.step()
    assert [g is not None for g in seen] == [x.requires_grad for x in bare.own]
    assert all(x.grad is None for x in bare.own)
    assert len(bare.own) < len(list(model.parameters())) + 8


def test_memory_is_counted_at_its_peak():
    def run():
        a = torch.zeros(250_000)  # 1 MB
        b = torch.zeros(500_000)
        del a
        return torch.zeros(250_000) + b[:1]

    assert attention.peak_bytes(run, "cpu") == pytest.approx(4e6, rel=0.01)


@pytest.mark.slow
def test_the_page_is_written(tmp_path, monkeypatch):
    few = ["--frames", "2,4", "--size", "32", "--repeats", "2", "--threads", "1"]
    bases = ["--bases", "vivit_tiny_fe", "--base-frames", "4"]
    monkeypatch.setattr(sys, "argv", ["attention", *few, *bases, "--out", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        attention.main()
    finally:
        torch.set_num_threads(threads)
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}
    assert "| factorised dot-product | 4 |" in (tmp_path / "attention.md").read_text()
