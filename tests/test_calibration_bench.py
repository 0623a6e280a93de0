"""The bench of calibrations: its rivals, and that a measurement divides speakers."""

import numpy as np
import pytest
import torch

from bench.calibration import KINDS, Said, folds, judged, lines_of, rising, summary, with_top


def overconfident(n: int = 600) -> Said:
    g = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(n, 3, generator=g)
    label = torch.multinomial(true.softmax(-1), 1, generator=g)[:, 0]
    share = torch.randint(2, 11, (n,), generator=g) / 10
    who = np.array([f"s{i % 4}" for i in range(n)])
    return Said(logits=3 * true, share=share, label=label, speaker=who, window=np.arange(n))


def test_the_rising_function_pools_what_falls():
    x, y = rising(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert x.tolist() == [1.0, 2.5, 4.0] and y.tolist() == [0.0, 0.5, 1.0]


def test_a_new_top_leaves_the_others_in_proportion():
    p = with_top(torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([0.8]))
    assert p[0].tolist() == pytest.approx([0.8, 0.15, 0.05])
    assert with_top(torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([0.0]))[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("as it is", "chosen")])
def test_every_kind_mends_what_is_only_too_sure(kind):
    said = overconfident()
    before, after = (judged(KINDS[k](said), said) for k in ("as it is", kind))
    assert after["nll"] < before["nll"] - 0.1
    assert max(after["ece"].values()) < max(before["ece"].values())


def test_few_fit_and_the_others_judge():
    for fitting, judging in folds(list("abcdef"), 4, 3, 0):
        assert len(fitting) == 4 and sorted(fitting + judging) == list("abcdef")


def test_gains_are_against_one_temperature():
    about = {"file": "f", "arm": "a", "seed": 0, "fold": 0}
    rows = [{**about, "kind": k, "nll": v, "accuracy": 0.5, "ece": {"0": 0.1}}
            for k, v in (("one temperature", 1.0), ("beta", 0.9))]  # fmt: skip
    found = summary(rows)
    assert [r["gain"] for r in found] == pytest.approx([0.0, 0.1])
    assert "| beta | +0.1000" in "\n".join(lines_of(found, 4))
