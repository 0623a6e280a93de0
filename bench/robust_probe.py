"""What a linear classifier reads from whole windows of features: whether there is anything to lose.

Emotions last as long as a sentence: mean and deviation over its clips, actors left out by turns. A word is spoken in
one place of it: all clips side by side, on the file's own splits.
"""

from collections.abc import Iterator, Sequence
from statistics import mean, pstdev

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from encoders.datasets.java_sed import FOLDS
from encoders.linear_probe import DECAYS, Features, linear_probe
from encoders.tasks import LabelTask
from imputation.features import FeatureSet

__all__ = ["probe"]

MODALITIES = {"video": [0], "audio": [1], "both": [0, 1]}


def probe(data: FeatureSet, corpus: str, decays: Sequence[float] = DECAYS) -> dict[str, dict[str, float]]:
    """By modality: ``top1``, and over folds its standard deviation ``std``; ``decays`` are tried."""
    data = data.rows(torch.tensor([i for i, name in enumerate(data.names) if "@" not in name]))
    task = LabelTask(classes=data.labels)
    found = {}
    for name, columns in MODALITIES.items():
        scores = []
        for train, test in _folds(data, corpus):
            x = [_pooled(side, columns, corpus) for side in (train, test)]
            targets = [one_hot(side.label, len(data.labels)).float() for side in (train, test)]
            learned, asked = (Features(*side) for side in zip(x, targets, strict=True))
            scores.append(linear_probe(task, learned, asked, decays=decays)["top1"])
        found[name] = {"top1": mean(scores), "std": pstdev(scores)}
    return found


def _folds(data: FeatureSet, corpus: str) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    if corpus != "java_sed":
        yield data.of_split("train"), data.of_split("test")
        return
    for held_out in FOLDS:
        out = torch.tensor([speaker in held_out for speaker in data.speaker])
        yield data.rows((~out).nonzero()[:, 0]), data.rows(out.nonzero()[:, 0])


def _pooled(data: FeatureSet, columns: list[int], corpus: str) -> Tensor:
    """(n, L, M, D) to (n, D')."""
    x = data.features[:, :, columns].flatten(2)  # (n, L, M' D)
    if corpus != "java_sed":
        return x.flatten(1)
    there = data.exists[..., None].float()
    middle = (x * there).sum(1) / there.sum(1)
    spread = (((x - middle[:, None]).square() * there).sum(1) / there.sum(1)).sqrt()
    return torch.cat([middle, spread], 1)
