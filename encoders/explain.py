"""Why a trained classifier says what it says: where it looks in single clips, and how its features lie.

Grad-CAM over the tokens of pictures and sound (`grad_cam`), and over a whole split k-means against the labels and
t-SNE of the features (`clusters`), of a model that sees and hears also of each modality alone.

Shapes: N sample, D width, G a grid of tokens, T frame, H W pixels, U mel frame, F mel bin.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.checkpoint import load_weights
from encoders.classifier import build_classifier
from encoders.clusters import PERPLEXITY, agreement, map_of, require_scikit_learn
from encoders.datasets.corpus import open_corpus, shuffled
from encoders.datasets.labelled import Instances, Reading
from encoders.datasets.sample import Sample
from encoders.datasets.views import views_of
from encoders.errors import ConfigError, DataError, LegatoError, UsageError
from encoders.finetune import weights_of
from encoders.grad_cam import grad_cam, looks_of
from encoders.judge import run_of, task_in
from encoders.labelled_data import Split
from encoders.readings import (
    MODALITIES,
    answered,
    as_tensors,
    features_seen,
    is_joint,
    only,
    prepared,
    rows_of,
    to_device,
)
from encoders.settings import pick
from encoders.tasks import LabelTask

__all__ = ["Example", "Explanation", "FeatureMap", "Question", "explain"]

BOTH = "both"  # all that a sample has


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be explained."""

    run: Path  # of `legato train PRESET`
    data: str = ""  # "": the run's
    splits: tuple[str, ...] = ()  # (): what the run was validated on
    examples: int = 6  # clips that are looked into
    label: str = ""  # whose evidence is shown; "": of what the model says
    clusters: bool = True
    perplexity: float = PERPLEXITY
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise UsageError(f"{self.examples} examples cannot be shown; give 0 or more")
        if not self.examples and not self.clusters:
            raise UsageError("with no example and no clusters nothing is explained; ask for one of them")
        if not self.perplexity > 0:
            raise UsageError(f"perplexity {self.perplexity:g} must be > 0; {PERPLEXITY:g} is usual")


@dataclass(frozen=True)
class Example:
    """One clip, what was said of it, and where the evidence lies."""

    sample: Sample
    truth: tuple[str, ...]
    said: str
    shown: str  # the class whose evidence the maps show
    probability: float  # of ``shown``
    maps: Mapping[str, NDArray[np.float32]]  # by modality, 0 to 1: (time, rows, columns), (frequency, time)
    seen: NDArray[np.uint8] | None  # (T, H, W[, 3])
    heard: NDArray[np.float32] | None  # (U, F)


@dataclass(frozen=True)
class FeatureMap:
    """Features of a split: how well clusters match classes, and a plane of them."""

    points: NDArray[np.float64]  # (N, 2)
    labels: tuple[str, ...]  # (N,)
    scores: Mapping[str, float]  # ari, homogeneity


@dataclass(frozen=True)
class Explanation:
    """All of it."""

    preset: str
    data: str
    splits: tuple[str, ...]
    task: LabelTask
    examples: Sequence[Example]
    features: Mapping[str, FeatureMap]  # by what was present: both, video, audio
    unreadable: int


Progress = Callable[[int, int], None]  # (samples done, samples)


def explain(question: Question, progress: Progress | None = None) -> Explanation:
    """Look into a run; raises LegatoError where there is nothing to look into, before anything is decoded."""
    if question.clusters:
        require_scikit_learn()
    config = replace(run_of(question.run), cache="none")
    config = replace(config, data=question.data or config.data)
    task = task_in(question.run)
    if question.label:
        pick(dict.fromkeys(task.classes, True), question.label, "class")
    if question.clusters and task.kind == "multi":
        raise ConfigError("samples with several labels are in no single cluster; leave them out with --no-clusters")
    splits = question.splits or config.validation_splits
    if not splits:
        raise UsageError("no split to look at; name one, such as val or test")
    corpus = open_corpus(config.data, splits=splits, skip_bad=config.skip_bad)
    for sample in corpus.samples:
        task.places(sample)
    if question.clusters:
        _check_clusters([_label(task, sample) for sample in corpus.samples])
    model = build_classifier(config.preset, len(task.classes), config.encoder)
    load_weights(model, weights_of(question.run), what=f"the model in {question.run}")
    model = model.to(question.device).eval().requires_grad_(False)
    if question.examples:
        looks_of(model)
    instances = Split(config, corpus).open_for(model)
    found = _looked(model, instances, task, question, progress)
    name = config.data.partition(":")[0]
    return Explanation(config.preset, name, tuple(splits), task, *found)


def _check_clusters(labels: Sequence[str]) -> None:
    classes = len(set(labels))
    if classes < 2 or len(labels) < max(4, classes):
        raise DataError(
            f"{len(labels)} samples of {classes} classes make no clusters; name a larger split, or use --no-clusters"
        )


def _in_turn(samples: Sequence[Sample], task: LabelTask, seed: int) -> list[int]:
    """Every class in turn, each in the order of a hash: the first few are as many of each, whatever else is listed."""
    place = {id(sample): i for i, sample in enumerate(samples)}
    drawn = shuffled(samples)
    drawn = drawn[seed % len(drawn) :] + drawn[: seed % len(drawn)]
    by_class: dict[tuple[int, ...], list[int]] = {}
    for sample in drawn:
        by_class.setdefault(tuple(task.places(sample)), []).append(place[id(sample)])
    queues = [queue for _, queue in sorted(by_class.items())]
    return [queue[turn] for turn in range(len(samples)) for queue in queues if turn < len(queue)]


def _looked(
    model: Any, instances: Instances, task: LabelTask, question: Question, progress: Progress | None
) -> tuple[list[Example], dict[str, FeatureMap], int]:
    """One pass over the samples: examples, features, and how many could not be read."""
    order = _in_turn(instances.samples, task, question.seed)
    total = len(order) if question.clusters else min(question.examples, len(order))
    examples: list[Example] = []
    rows: dict[str, list[tuple[NDArray[np.float32], str]]] = {}
    unreadable = 0
    for done, index in enumerate(order, 1):
        if not question.clusters and len(examples) == question.examples:
            break
        try:
            reading = rows_of(instances.views(index, views_of("1x1")), 0, 1)
        except LegatoError:
            unreadable += 1
            continue
        sample, x = instances.samples[index], prepared(model, to_device(as_tensors(reading), question.device))
        if len(examples) < question.examples:
            examples.append(_example(model, task, sample, reading, x, question.label))
        for name, feature in _features(model, x) if question.clusters else ():
            rows.setdefault(name, []).append((feature, _label(task, sample)))
        if progress is not None:
            progress(min(done, total), total)
    if unreadable == len(order):
        raise DataError(f"none of {len(order)} samples can be read; check the dataset's folder")
    maps = {name: _feature_map(found, question) for name, found in rows.items()}
    return examples, maps, unreadable


def _example(model: Any, task: LabelTask, sample: Sample, reading: Reading, x: Any, label: str) -> Example:
    with torch.no_grad():
        logits = answered(model, x).float().cpu()[0]  # (K,)
    said = " ".join(task.classes[s.start + int(logits[s].argmax())] for s in task.segments)
    shown = label or task.classes[int(logits[task.segments[0]].argmax())]
    place = task.classes.index(shown)
    maps = grad_cam(model, lambda: answered(model, x), torch.tensor([place], device=_device(x)))
    there = _there(x)
    segment = next(s for s in task.segments if s.start <= place < s.stop)
    likely = logits.sigmoid()[place] if task.loss == "sigmoid" else logits[segment].softmax(0)[place - segment.start]
    named = {m: one[0].float().cpu() for m, one in maps.items() if m in there}
    return Example(
        sample,
        tuple(task.classes[i] for i in task.places(sample)),
        said,
        shown,
        float(likely),
        {m: (one / one.max().clamp_min(1e-12)).numpy() for m, one in named.items()},
        _of(reading, "video") if "video" in there else None,
        _of(reading, "audio") if "audio" in there else None,
    )


def _of(reading: Reading, modality: str) -> Any:
    """What a reading of one row has of a modality; sounds alone are floats, pictures alone are not."""
    if not isinstance(reading, np.ndarray):
        return reading[modality][0] if modality in reading else None
    heard = reading.dtype.kind == "f"
    return reading[0] if heard == (modality == "audio") else None


def _there(x: Any) -> set[str]:
    """The modalities that a prepared clip has."""
    if isinstance(x, Tensor) or "presence" not in x:
        return set(MODALITIES)
    return {m for m, there in zip(MODALITIES, x["presence"][0].tolist(), strict=True) if there}


def _device(x: Any) -> torch.device:
    return x.device if isinstance(x, Tensor) else next(iter(x.values())).device


@torch.no_grad()
def _features(model: Any, x: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Features (D,) of all that a clip has, and of each modality alone where there are several."""
    if not is_joint(model):
        yield BOTH, model.features(x)[0].float().cpu().numpy()
        return
    there = _there(x)
    yield BOTH, features_seen(model, x)[0].float().cpu().numpy()
    if len(model.modalities) > 1:
        for modality in MODALITIES:
            if modality in there:
                yield modality, features_seen(model, only(x, modality))[0].float().cpu().numpy()


def _label(task: LabelTask, sample: Sample) -> str:
    return " ".join(task.classes[i] for i in task.places(sample))


def _feature_map(rows: Sequence[tuple[NDArray[np.float32], str]], question: Question) -> FeatureMap:
    labels = tuple(label for _, label in rows)
    classes = sorted(set(labels))
    numbers = np.array([classes.index(label) for label in labels])
    features = np.stack([feature for feature, _ in rows])
    scores = agreement(features, numbers, len(classes), seed=question.seed)
    return FeatureMap(map_of(features, perplexity=question.perplexity, seed=question.seed), labels, scores)
