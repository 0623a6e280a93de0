"""The bench of lost clips: the same are lost for every arm, and votes count what was there."""

import torch

from bench.missing import STATES, by_clips, losses
from imputation.features import FeatureSet


def windows(rows=6, clips=10):
    draw = torch.Generator().manual_seed(0)
    exists = torch.ones(rows, clips, dtype=torch.bool)
    exists[1, :6] = False
    features = torch.randn(rows, clips, 2, 4, generator=draw)
    return FeatureSet.of(
        features, torch.arange(rows) % 2, ["a", "b"], exists=exists, names=[f"r{i}" for i in range(rows)]
    )


def test_a_share_of_the_clips_that_exist_is_lost_and_one_is_kept():
    data = windows()
    found = dict(losses(data, draws=1))
    assert torch.equal(found["0.0"], data.presence)
    for name, left in found.items():
        assert not (left & ~data.presence).any()
        if name in ("no sound", "no picture"):
            continue
        counts = left.sum(1)  # (rows, M)
        assert (counts[0] == 10 - round(10 * float(name))).all()
        assert (counts[1] == max(1, 4 - round(4 * float(name)))).all()
    assert found["no sound"][..., 0].any() and not found["no sound"][..., 1].any()
    again = dict(losses(data, draws=1))
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_votes_are_of_what_was_there():
    """Each state of a clip says another class; a clip with nothing says nothing where masked."""
    logits = 9 * torch.eye(4)[None, None].expand(1, 3, 4, 4)  # (n, L, S, K)
    exists = torch.ones(1, 3, dtype=torch.bool)
    for place, there in enumerate(STATES):
        left = torch.tensor(there).expand(1, 3, 2)
        assert by_clips(logits, left, exists, masked=False).item() == place
    left = torch.tensor([[[True, False], [False, False], [False, False]]])
    assert by_clips(logits, left, exists, masked=True).item() == 1
    assert by_clips(logits, left, exists, masked=False).item() == 3
