"""Testing a classifier: several clips and squares of each recording, their logits averaged before any softmax.

A model that sees and hears at once is also asked about what it sees alone and what it hears alone.

Shapes: N sample, V view, B batch, K class, M modality.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.datasets.labelled import Instances, Reading
from encoders.datasets.views import Views
from encoders.errors import DataError, LegatoError
from encoders.processes import mean_over_processes, world
from encoders.readings import (
    MODALITIES,
    answered,
    as_tensors,
    count,
    is_joint,
    joined,
    only,
    prepared,
    rows_of,
    to_device,
)
from encoders.tasks import LabelTask

__all__ = ["prepared", "score", "score_each", "test"]

Progress = Callable[[int, int], None]  # (samples done, samples of this process)
Scores = dict[str, tuple[Tensor, Tensor]]  # by what was present: logits (N, K), and which samples have any (N,)
BOTH = ""  # everything that a sample has


def test(
    model: Any,
    task: LabelTask,
    instances: Instances,
    views: Views,
    *,
    device: str = "cpu",
    batch: int = 32,
    bf16: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """How well a model does on samples; ``unreadable`` counts those left out. Every process must call this.

    Of a joint model also ``video_top1``, ``audio_samples`` and so on: with one modality alone, over the samples that
    have it.
    """
    found: dict[str, float] = {}
    each = score_each(model, instances, views, len(task.classes), device=device, batch=batch, bf16=bf16,
                      progress=progress)  # fmt: skip
    for present, (scores, read) in each.items():
        if not read.any() and present == BOTH:
            raise DataError(f"none of {len(read)} samples of the test can be read; check the dataset's folder")
        if read.any():
            targets = task.targets([s for s, ok in zip(instances.samples, read.tolist(), strict=True) if ok])
            measures = task.measure(scores[read], targets)
            loss = float(task.compute_loss(scores[read], targets))
            found |= {f"{present}_{k}" if present else k: v for k, v in {**measures, "loss": loss}.items()}
        found[f"{present}_samples" if present else "samples"] = float(read.sum())
    return {**found, "unreadable": float((~each[BOTH][1]).sum()) + getattr(instances, "lost", 0)}


def score(model: Any, instances: Instances, views: Views, classes: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean logits (N, K) over the views of each sample, and which samples could be read (N,); as `score_each`."""
    return score_each(model, instances, views, classes, **options)[BOTH]


@torch.no_grad()
def score_each(
    model: Any,
    instances: Instances,
    views: Views,
    classes: int,
    *,
    device: str = "cpu",
    batch: int = 32,
    bf16: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Mean logits over the views of each sample that have anything, by what was present; shared by processes."""
    rank, processes = world()
    total = len(instances.samples)
    mine = range(rank, total, processes)
    both = is_joint(model) and all(m in model.modalities for m in MODALITIES)
    found = {present: (torch.zeros(total, classes), torch.zeros(total)) for present in (BOTH, *MODALITIES * both)}
    was_training = model.training
    model.eval()
    rows: list[int] = []
    clips: list[Reading] = []
    for done, index in enumerate(mine, 1):
        try:
            clips.append(instances.views(index, views))
            rows.append(index)
        except LegatoError:
            pass  # it stays unread, and is counted
        if rows and (len(rows) * views.count >= batch or done == len(mine)):
            reading = joined(clips)
            for present, (scores, read) in found.items():
                logits = _logits(model, reading, present, device, batch, bf16)  # (B V, K)
                logits = logits.unflatten(0, (len(rows), -1))
                if present == BOTH:
                    scores[rows], read[rows] = logits.mean(1), 1.0
                    continue
                assert not isinstance(reading, np.ndarray), "a joint model reads by name"
                has = torch.from_numpy(reading["presence"][:, MODALITIES.index(present)]).view(len(rows), -1, 1).float()
                scores[rows] = (logits * has).sum(1) / has.sum(1).clamp_min(1)
                read[rows] = has.amax((1, 2))
            rows, clips = [], []
        if progress is not None:
            progress(done, len(mine))
    model.train(was_training)
    shared = {p: [mean_over_processes(x.to(device)).cpu() * processes for x in pair] for p, pair in found.items()}
    return {present: (scores, read > 0.5) for present, (scores, read) in shared.items()}


def _logits(model: Any, reading: Reading, present: str, device: str, batch: int, bf16: bool) -> Tensor:
    out = []
    for first in range(0, count(reading), batch):
        x = prepared(model, to_device(as_tensors(rows_of(reading, first, first + batch)), device))
        x = only(x, present) if present else x
        with torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext():
            out.append(answered(model, x).float().cpu())
    return torch.cat(out)
