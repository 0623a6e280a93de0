"""What a classifier is asked: its classes, its targets, its loss, and how well it did.

- *single*: one class per sample, softmax cross-entropy; top-1 and top-5 accuracy.
- *multi*: any number of classes, sigmoid cross-entropy summed over classes; mean average precision.
- *noun_verb*: Epic-Kitchens' one linear layer of 300 nouns then 97 verbs; the mean of two cross-entropies; an action is
  right when the most likely (noun, verb) pair is.

PolyViT's image tasks have one class per sample and still train with sigmoids (``loss="sigmoid"``). AST takes the mean
over classes instead of their sum (``sigmoid_mean``), which Adam hardly notices but its weight decay does.

Shapes: B batch, K class, N sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.datasets.corpus import Corpus, labels_of
from encoders.datasets.mixup import smooth
from encoders.datasets.sample import Sample
from encoders.errors import ConfigError, DataError

__all__ = ["LabelTask", "mean_average_precision", "task_of", "top_share"]

Kind = Literal["single", "multi", "noun_verb"]
Loss = Literal["softmax", "sigmoid", "sigmoid_mean"]


@dataclass(frozen=True, kw_only=True)
class LabelTask:
    """One head's classes, in the order of its outputs."""

    classes: tuple[str, ...]
    kind: Kind = "single"
    loss: Loss = "softmax"

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"a task with the classes {list(self.classes)} decides nothing; give two or more")
        if len(set(self.classes)) < len(self.classes):
            raise ConfigError("a class of the task is listed twice; list each once")
        if self.kind not in ("single", "multi", "noun_verb") or self.loss not in get_args(Loss):
            raise ConfigError(
                f"kind {self.kind!r} must be single, multi or noun_verb, and loss {self.loss!r} softmax, sigmoid or "
                "sigmoid_mean"
            )
        if self.kind == "noun_verb" and (0 in self.parts or sum(self.parts) != len(self.classes)):
            raise ConfigError(f"of {len(self.classes)} classes {self.parts} are nouns and verbs; give both")
        if self.kind == "multi" and self.loss == "softmax":
            raise ConfigError("several classes per sample need loss sigmoid; softmax allows one")

    @property
    def parts(self) -> tuple[int, int]:
        """How many classes are nouns and verbs; 300 and 97 in EPIC-KITCHENS-100."""
        return sum(c.startswith("noun:") for c in self.classes), sum(c.startswith("verb:") for c in self.classes)

    @property
    def segments(self) -> tuple[slice, ...]:
        """The outputs over which each softmax runs."""
        nouns, whole = self.parts[0], len(self.classes)
        return (slice(0, nouns), slice(nouns, whole)) if self.kind == "noun_verb" else (slice(0, whole),)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def places(self, sample: Sample) -> list[int]:
        """The outputs that apply to a sample; raises DataError on a label outside the head."""
        names = _names(sample, self.kind)
        for name in names:
            if name not in self._place:
                raise DataError(
                    f"{sample.path.name} has the label {name!r}, which is none of the head's {len(self.classes)} "
                    "classes; train on data with the same classes, or leave this sample out"
                )
        return [self._place[name] for name in names]

    def targets(self, samples: Sequence[Sample]) -> Tensor:
        """(N, K) float: 1 where a class applies."""
        out = torch.zeros(len(samples), len(self.classes))
        for row, sample in enumerate(samples):
            out[row, self.places(sample)] = 1
        return out

    def compute_loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean over the batch; logits and targets (B, K)."""
        logits = logits.float()
        if self.loss != "softmax":
            each = F.binary_cross_entropy_with_logits(logits, smooth(targets, smoothing), reduction="none")  # (B, K)
            return each.sum(1).mean() if self.loss == "sigmoid" else each.mean()
        parts = [_cross_entropy(logits[:, s], smooth(targets[:, s], smoothing)) for s in self.segments]
        return torch.stack(parts).mean()

    def measure(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Scores (logits, or their mean over views) and targets, both (N, K), to what the task is judged by."""
        if self.kind == "multi":
            return {"map": mean_average_precision(scores, targets)}
        if self.kind == "single":
            return {f"top{k}": top_share(scores, targets, k) for k in (1, 5) if k < len(self.classes)}
        right = [scores[:, s].argmax(1) == targets[:, s].argmax(1) for s in self.segments]
        # The most likely pair under two independent softmaxes is the pair of the most likely ones.
        noun, verb, action = (float(r.float().mean()) for r in (*right, right[0] & right[1]))
        return {"action": action, "noun": noun, "verb": verb}

    @property
    def headline(self) -> str:
        """The name of the measure that counts most."""
        return {"single": "top1", "multi": "map", "noun_verb": "action"}[self.kind]


def task_of(corpus: Corpus, kind: str = "", loss: str = "") -> LabelTask:
    """The task a dataset poses: its kind from its labels, its classes in the dataset's order, nouns before verbs.

    Raises ConfigError or DataError where there is nothing to tell apart.
    """
    if not kind:
        kind = "multi" if corpus.multi_label else "noun_verb" if set(corpus.heads) == {"noun", "verb"} else "single"
    if kind == "noun_verb":
        classes = tuple(f"{head}:{name}" for head in ("noun", "verb") for name in corpus.classes(head))
    else:
        classes = corpus.classes(corpus.heads[0])
    if len(classes) < 2:
        raise DataError(
            f"dataset {corpus.name} has the labels {list(classes)}, which leave nothing to learn; give labelled data"
        )
    loss = loss or ("sigmoid" if kind == "multi" else "softmax")
    return LabelTask(classes=classes, kind=cast(Kind, kind), loss=cast(Loss, loss))


def _names(sample: Sample, kind: Kind) -> list[str]:
    if kind == "noun_verb":
        if not (sample.notes.get("noun") and sample.notes.get("verb")):
            raise DataError(f"{sample.path.name} has no noun and verb; train on EPIC-KITCHENS, or on one label")
        return [f"{head}:{sample.notes[head]}" for head in ("noun", "verb")]
    names = list(labels_of(sample))
    if not names and kind == "single":
        raise DataError(f"{sample.path.name} has no label; leave it out, or train on a split with labels")
    return names


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def top_share(scores: Tensor, targets: Tensor, k: int) -> float:
    """The share of samples whose class is among the ``k`` highest scores."""
    true = targets.argmax(1, keepdim=True)
    return float((scores.topk(min(k, scores.shape[1]), 1).indices == true).any(1).float().mean())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """The mean over the classes that occur of the area under precision against recall (as in AudioSet)."""
    values = []
    for score, true in zip(scores.T.double().numpy(), targets.T.numpy() > 0, strict=True):
        if true.any():
            order = np.argsort(-score, kind="stable")
            found = true[order].cumsum()
            values.append((found / np.arange(1, len(true) + 1))[true[order]].mean())
    if not values:
        raise DataError("no class occurs among the samples; average precision means nothing")
    return float(np.mean(values))
