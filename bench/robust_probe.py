"""What a linear classifier reads from whole windows of features: whether there is anything to lose.

Emotions last as long as a sentence: mean and deviation over its clips. A word is spoken in one place of it: all clips
side by side.
"""

from collections.abc import Iterator, Sequence
from statistics import pstdev

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from encoders.linear_probe import DECAYS, Features, linear_probe
from encoders.tasks import LabelTask
from imputation.features import FeatureSet

__all__ = ["probe"]

MODALITIES = {"video": [0], "audio": [1], "both": [0, 1]}


def probe(
    data: FeatureSet, folds: str = "", *, in_place: bool = False, decays: Sequence[float] = DECAYS
) -> dict[str, dict[str, float]]:
    """By modality: ``top1``, over folds together, and its standard deviation ``std`` from fold to fold.

    ``folds``: speakers left out by turns, ``01+06,02+07``; none: the file's own splits. ``in_place``: clips side by
    side, not averaged. ``decays`` are tried.
    """
    data = data.rows(torch.tensor([i for i, name in enumerate(data.names) if "@" not in name]))
    task = LabelTask(classes=data.labels)
    found = {}
    for name, columns in MODALITIES.items():
        scores, sizes = [], []
        for train, test in _folds(data, folds):
            learned, asked = (
                Features(_pooled(side, columns, in_place), one_hot(side.label, len(data.labels)).float())
                for side in (train, test)
            )
            scores.append(linear_probe(task, learned, asked, decays=decays)["top1"])
            sizes.append(len(test))
        together = sum(s * n for s, n in zip(scores, sizes, strict=True)) / sum(sizes)
        found[name] = {"top1": together, "std": pstdev(scores), "windows": float(sum(sizes))}
    return found


def _folds(data: FeatureSet, folds: str) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    if not folds:
        yield data.of_split("train"), data.of_split("test")
        return
    for held_out in folds.split(","):
        out = torch.tensor([speaker in held_out.split("+") for speaker in data.speaker])
        yield data.rows((~out).nonzero()[:, 0]), data.rows(out.nonzero()[:, 0])


def _pooled(data: FeatureSet, columns: list[int], in_place: bool) -> Tensor:
    """(n, L, M, D) to (n, D')."""
    x = data.features[:, :, columns].flatten(2)  # (n, L, M' D)
    if in_place:
        return x.flatten(1)
    there = data.exists[..., None].float()
    middle = (x * there).sum(1) / there.sum(1)
    spread = (((x - middle[:, None]).square() * there).sum(1) / there.sum(1)).sqrt()
    return torch.cat([middle, spread], 1)
