"""What a finished run, or an encoder's weights, are worth on a dataset: tested, probed, or shown a few examples."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.checkpoint import load_weights
from encoders.classifier import build_classifier, encoder_file, load_encoder
from encoders.datasets.corpus import open_corpus
from encoders.datasets.views import views_of
from encoders.errors import ConfigError, DataError, LegatoError, UsageError
from encoders.finetune import weights_of
from encoders.labelled_data import Split
from encoders.linear_probe import Features, features_of, few_shot, linear_probe
from encoders.multi_view import test
from encoders.readings import Batch, features_seen, is_joint, prepared
from encoders.recipes import FinetuneConfig, recipe
from encoders.settings import from_dict
from encoders.tasks import LabelTask, task_of

__all__ = ["Probe", "encoder_of", "few_shot_of", "is_cotrained", "linear_probe_of", "run_of", "task_in", "test_run"]

Progress = Callable[[int, int], None]  # (samples done, samples)


def run_of(folder: Path) -> FinetuneConfig:
    """The config of a finished run of `finetune`; raises DataError where there is none."""
    values = _json(folder / "config.json")
    if "preset" not in values or "tasks" in values:
        raise DataError(f"{folder} is no run of one labelled task; name the --out of `legato train PRESET`")
    return from_dict(FinetuneConfig, values)


def task_in(folder: Path) -> LabelTask:
    """What a finished run of `finetune` was asked."""
    return from_dict(LabelTask, _json(folder / "classes.json"))


def is_cotrained(folder: Path) -> bool:
    """Whether a folder holds a run over several tasks."""
    return "tasks" in _json(folder / "config.json")


def test_run(
    folder: Path,
    *,
    data: str = "",
    splits: Sequence[str] = (),
    views: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:
    """A run's model on a dataset (its own where none is named), its validation splits and views or others."""
    config = run_of(folder)
    config = replace(config, views=views or config.views, cache="none")
    task = task_in(folder)
    split = _split(config, data or config.data, tuple(splits) or config.validation_splits, task)
    model = build_classifier(config.preset, len(task.classes), config.encoder)
    load_weights(model, weights_of(folder), what=f"the model in {folder}")
    instances = split.open_for(model)
    bf16 = config.precision == "bf16"
    return test(model.to(device), task, instances, views_of(config.views), device=device, batch=config.eval_batch,
                bf16=bf16, progress=progress)  # fmt: skip


def _split(config: FinetuneConfig, data: str, splits: tuple[str, ...], task: LabelTask) -> Split:
    if not splits:
        raise UsageError("no split to measure on; name one, such as val or test")
    corpus = open_corpus(data, splits=splits, skip_bad=config.skip_bad)
    for sample in corpus.samples:
        task.places(sample)
    return Split(config, corpus)


@dataclass(frozen=True)
class Probe:
    """A frozen encoder, and how it sees recordings."""

    config: FinetuneConfig
    encoder: Any  # ``encode(clips) -> (B, D)``


def encoder_of(
    *, run: Path | None = None, preset: str = "", weights: Path | None = None, data: str = "", **changes: Any
) -> Probe:
    """The encoder of a run, or of a preset with weights (none: as it is built, untrained).

    ``data`` may be left out for a run, whose own it then is.
    """
    if run is not None:
        config = run_of(run)
        config = replace(config, data=data or config.data, cache="none")
        trained = weights_of(run / encoder_file(config.preset, config.encoder))
        return Probe(config, load_encoder(config.preset, config.encoder, trained))
    if not preset or not data:
        raise UsageError("nothing to probe; give --run, or --preset and --data, with --checkpoint for its weights")
    config = recipe(preset, data, **{"cache": "none", **changes})
    torch.manual_seed(config.seed)
    return Probe(config, load_encoder(preset, config.encoder, None if weights is None else weights_of(weights)))


def linear_probe_of(
    probe: Probe, *, train: Sequence[str], splits: Sequence[str], views: str = "1x1", device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:  # fmt: skip
    """Linear evaluation: learned on the features of ``train``, measured on those of ``splits``."""
    task, known, new = _both(probe, train, splits, views, device, progress)
    return linear_probe(task, known, new, seed=probe.config.seed)


def few_shot_of(
    probe: Probe, shots: int, *, train: Sequence[str], splits: Sequence[str], views: str = "1x1", device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:  # fmt: skip
    """A regression from ``shots`` samples per class of ``train``, measured on ``splits``."""
    if shots < 1:
        raise ConfigError(f"few-shot evaluation needs at least 1 sample per class, not {shots}")
    task, known, new = _both(probe, train, splits, views, device, progress)
    return few_shot(task, known, new, shots, seed=probe.config.seed)


def _both(
    probe: Probe, train: Sequence[str], splits: Sequence[str], views: str, device: str, progress: Progress | None
) -> tuple[LabelTask, Features, Features]:
    both = set(train) & set(splits)
    if both or not train or not splits:
        raise UsageError(f"a probe learns from {list(train)} and is measured on {list(splits)}; use two other splits")
    config = probe.config
    learn = open_corpus(config.data, splits=train, skip_bad=config.skip_bad)
    task = task_of(learn, config.kind, config.loss)
    encoder = probe.encoder.to(device)
    heard = tuple(encoder.modalities) == ("audio",)

    def encode(clips: Batch) -> Tensor:
        if is_joint(encoder):  # of all that a clip has
            return features_seen(encoder, prepared(encoder, clips))
        if heard:
            return getattr(encoder, "features", encoder)(prepared(encoder, clips))
        return encoder.encode(clips, "video") if len(encoder.modalities) > 1 else encoder.encode(clips)

    found = []
    spec = getattr(encoder, "specs", {}).get("video", encoder.spec)
    for chosen in (tuple(train), tuple(splits)):
        split = _split(config, config.data, chosen, task)
        instances = split.open_for(encoder) if is_joint(encoder) or heard else split.open(spec)
        found.append(features_of(encode, task, instances, views_of(views), device=device, progress=progress))
    return task, found[0], found[1]


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if isinstance(error, LegatoError):
            raise
        why = getattr(error, "strerror", None) or "it is damaged"
        raise DataError(f"{path} cannot be read ({why}); name the --out of a finished `legato train PRESET`") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged: it holds no object; train the run anew")
    return values
