"""The batches of a training epoch: which samples, in which order, in how many parts; the same on every resumption."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from encoders.datasets.balance import drawn_order
from encoders.datasets.labelled import Instances, train_or_next
from encoders.processes import quiet_worker, world
from encoders.readings import Batch, as_tensors
from encoders.training import epoch_order

__all__ = ["Part", "micro_batches"]


class Part(NamedTuple):
    """A part of a process's share of a batch."""

    ids: Tensor  # (B,) the samples that were read
    clips: Batch
    asked: Tensor  # (B,) the samples that should have been


class _Readings(torch.utils.data.Dataset[tuple[int, Batch, int]]):
    """(sample, epoch, reading of the epoch) to one reading; the same whoever reads it, and whenever."""

    def __init__(self, instances: Instances, seed: int) -> None:
        self.instances, self.seed = instances, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[int, Batch, int]:
        asked, epoch, place = key
        random = np.random.default_rng([self.seed, epoch, place])
        index, clip = train_or_next(self.instances, asked, random)
        return index, as_tensors(clip), asked


def micro_batches(
    instances: Instances, *, seed: int, epoch: int, batch: int, accumulate: int, workers: int, skip: int = 0,
    repeats: int = 1, weights: np.ndarray | None = None,
) -> Iterator[Part]:  # fmt: skip
    """This process's share of an epoch's batches, from batch ``skip`` on, each in ``accumulate`` parts.

    Of each sample come ``repeats`` readings, one after the other. An incomplete last batch is left out. With
    ``weights`` (N,) samples are drawn with replacement, each as often as its weight says; else each comes once.
    """
    rank, processes = world()
    share = batch // processes // accumulate
    size = len(instances.samples)
    order = epoch_order(seed, epoch, size) if weights is None else drawn_order(seed, epoch, weights)
    keys = [
        [(int(order[p]), epoch, p * repeats + r) for p in range(first, first + share) for r in range(repeats)]
        for start in range(skip * batch, len(order) - batch + 1, batch)
        for first in range(start + rank * share * accumulate, start + (rank + 1) * share * accumulate, share)
    ]
    loader = torch.utils.data.DataLoader(
        _Readings(instances, seed),
        batch_sampler=keys,
        num_workers=workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader would draw from the global one, and resuming would differ
    )
    yield from (Part(*part) for part in loader)
