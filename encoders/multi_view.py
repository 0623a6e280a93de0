"""Testing a classifier: several clips and squares of each recording, their logits averaged before any softmax.

Shapes: N sample, V view, B batch, K class.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.datasets.labelled import Instances
from encoders.datasets.views import Views
from encoders.errors import DataError, LegatoError
from encoders.processes import mean_over_processes, world
from encoders.tasks import LabelTask

__all__ = ["prepared", "score", "test"]

Progress = Callable[[int, int], None]  # (samples done, samples of this process)


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
    """How well a model does on samples; ``unreadable`` counts those left out. Every process must call this."""
    scores, read = score(model, instances, views, len(task.classes), device=device, batch=batch, bf16=bf16,
                         progress=progress)  # fmt: skip
    if not read.any():
        raise DataError(f"none of {len(read)} samples of the test can be read; check the dataset's folder")
    targets = task.targets([s for s, ok in zip(instances.samples, read.tolist(), strict=True) if ok])
    loss = task.compute_loss(scores[read], targets)
    found = {**task.measure(scores[read], targets), "loss": float(loss)}
    return {**found, "samples": float(read.sum()), "unreadable": float((~read).sum())}


@torch.no_grad()
def score(
    model: Any,
    instances: Instances,
    views: Views,
    classes: int,
    *,
    device: str = "cpu",
    batch: int = 32,
    bf16: bool = False,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean logits (N, K) over the views of each sample, and which samples could be read (N,); shared by processes."""
    rank, processes = world()
    mine = range(rank, len(instances.samples), processes)
    scores, read = torch.zeros(len(instances.samples), classes), torch.zeros(len(instances.samples))
    was_training = model.training
    model.eval()
    rows: list[int] = []
    clips: list[np.ndarray] = []
    for done, index in enumerate(mine, 1):
        try:
            clips.append(instances.views(index, views))
            rows.append(index)
        except LegatoError:
            pass  # it stays unread, and is counted
        if rows and (len(rows) * views.count >= batch or done == len(mine)):
            logits = _logits(model, np.concatenate(clips), device, batch, bf16)  # (B V, K)
            scores[rows] = logits.unflatten(0, (len(rows), -1)).mean(1)
            read[rows] = 1
            rows, clips = [], []
        if progress is not None:
            progress(done, len(mine))
    model.train(was_training)
    shared = (mean_over_processes(x.to(device)).cpu() * processes for x in (scores, read))
    scores, read = shared
    return scores, read > 0.5


def _logits(model: Any, clips: np.ndarray, device: str, batch: int, bf16: bool) -> Tensor:
    out = []
    for first in range(0, len(clips), batch):
        x = prepared(model, torch.from_numpy(np.ascontiguousarray(clips[first : first + batch])).to(device))
        with torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext():
            out.append(model(x).float().cpu())
    return torch.cat(out)


def prepared(model: Any, clips: Tensor) -> Tensor:
    """uint8 clips (B, T, H, W[, 3]) to the model's input; [-1, 1] channels first where it does not say otherwise."""
    if hasattr(model, "prepare"):
        return model.prepare(clips)
    x = clips.float() / 127.5 - 1
    return x.movedim(-1, 1) if x.ndim == 5 else x.unsqueeze(1)
