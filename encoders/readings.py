"""Batches of readings on their way into a model: tensors, or tensors by name for one that sees and hears at once.

A *joint* model (M&M) has ``logits(seen, presence)`` and ``features(seen, presence)``, where ``seen`` is what its
``prepare(clips, modality)`` makes, and ``specs``, ``front``, ``sees`` that say what it takes. Its batches are those of
`encoders.datasets.labelled_pairs`.

Shapes: B batch, T frame, H W pixels, M modality (video, audio), K class, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from encoders.datasets.labelled import Reading

__all__ = [
    "MODALITIES", "Batch", "answered", "as_tensors", "count", "features_seen", "is_joint", "joined", "only", "prepared",
    "rows_of", "split_presence", "to_device",
]  # fmt: skip

Batch: TypeAlias = Tensor | Mapping[str, Tensor]
MODALITIES = ("video", "audio")  # the M axis


def is_joint(model: Any) -> bool:
    """Whether a model takes several modalities in one forward."""
    return hasattr(model, "logits")


def as_tensors(reading: Reading) -> Batch:
    """A reading as tensors, without a copy."""
    if isinstance(reading, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(reading))
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in reading.items()}


def joined(readings: Sequence[Reading]) -> Reading:
    """Readings of several rows, one after the other."""
    first = readings[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(cast(Sequence[np.ndarray], readings))
    named = cast(Sequence[Mapping[str, np.ndarray]], readings)
    return {name: np.concatenate([reading[name] for reading in named]) for name in first}


def rows_of(reading: Reading, first: int, last: int) -> Reading:
    """Some rows of readings."""
    if isinstance(reading, np.ndarray):
        return reading[first:last]
    return {name: x[first:last] for name, x in reading.items()}


def count(reading: Reading) -> int:
    """Rows."""
    return len(reading) if isinstance(reading, np.ndarray) else len(reading["presence"])


def to_device(batch: Batch, device: str) -> Batch:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: x.to(device, non_blocking=True) for name, x in batch.items()}


def prepared(model: Any, batch: Batch) -> Any:
    """Clips (B, T, H, W[, 3]) uint8 to the model's input: [-1, 1], channels first, where it does not say otherwise.
    Spectrograms (B, T, F) are it already, where the model's ``heard`` does not lay them out anew.

    Of a joint model: what its views see, and ``presence`` (B, M).
    """
    if not isinstance(batch, Tensor):
        seen = model.prepare(batch["video"], "video", flow=batch.get("flow")) if "video" in model.modalities else {}
        return {**seen, **{name: batch[name] for name in ("audio", "presence") if name in batch}}
    if batch.is_floating_point():  # spectrograms (B, T, F), made by the model's own front
        return model.heard(batch) if hasattr(model, "heard") else batch
    if is_joint(model):
        return model.prepare(batch, "video")
    if hasattr(model, "prepare"):
        return model.prepare(batch)
    x = batch.float() / 127.5 - 1
    return x.movedim(-1, 1) if x.ndim == 5 else x.unsqueeze(1)


def answered(model: Any, x: Any) -> Tensor:
    """What `prepared` gives, to logits (B, K)."""
    return cast(Tensor, model(x) if isinstance(x, Tensor) else model.logits(*split_presence(x)))


def features_seen(model: Any, x: Mapping[str, Tensor]) -> Tensor:
    """What `prepared` gives of a joint model, to features (B, D)."""
    return cast(Tensor, model.features(*split_presence(x)))


def only(x: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The same clips with every other modality absent."""
    kept = torch.tensor([m == modality for m in MODALITIES], device=x["presence"].device)
    return {**x, "presence": x["presence"] & kept}


def split_presence(x: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """What `prepared` gives of a joint model, as what is seen and what is there."""
    return {name: v for name, v in x.items() if name != "presence"}, x.get("presence")
