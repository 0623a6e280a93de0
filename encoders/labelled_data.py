"""From a run's config to the samples it reads: both splits of its dataset, and the task they pose.

Everything that can be refused is refused here, before a model is built: an empty split, a label outside the head, a
dataset that needs other classes than a checkpoint has.
"""

from collections.abc import Callable
from typing import Any

from encoders.clips import VideoSpec
from encoders.datasets.corpus import Corpus, open_corpus
from encoders.datasets.labelled import LabelledClips, Look
from encoders.datasets.views import ClipSampling, views_of
from encoders.recipes import FinetuneConfig
from encoders.tasks import LabelTask, task_of

__all__ = ["Open", "open_clips", "open_split"]

Open = Callable[[Any], LabelledClips]  # the encoder's VideoSpec to its samples


def open_split(
    config: FinetuneConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[LabelTask, Open, Open | None]:
    """The task, and how the training and the validation samples are opened for an encoder."""
    views_of(config.views)
    train = open_corpus(config.data, splits=config.train_splits, skip_bad=config.skip_bad)
    task = task_of(train, config.kind, config.loss)
    validation = None
    if config.validation_splits:
        validation = open_corpus(config.data, splits=config.validation_splits, skip_bad=config.skip_bad)
    for corpus in (train, validation):
        for sample in corpus.samples if corpus else ():
            task.places(sample)  # a label outside the head is found before anything is trained
    return (
        task,
        lambda spec: open_clips(config, train, spec, progress),
        None if validation is None else lambda spec: open_clips(config, validation, spec, progress),
    )


def open_clips(
    config: FinetuneConfig, corpus: Corpus, spec: VideoSpec, progress: Callable[[int, int], None] | None = None
) -> LabelledClips:
    """The samples of a corpus as an encoder of this spec sees them; decoded where the config keeps them in memory."""
    short_side = config.short_side or max(spec.size, round(spec.size / spec.crop_share))
    look = Look(size=spec.size, short_side=short_side, pixel_format=spec.pixel_format, box=config.box)
    sampling = ClipSampling(frames=spec.frames, stride=config.stride, fps=config.fps)
    clips = LabelledClips(corpus.samples, sampling, look, config.augment)
    if config.cache == "memory":
        clips.keep(config.cache_gb, progress=progress)
    return clips
