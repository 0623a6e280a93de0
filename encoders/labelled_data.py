"""From a run's config to the samples it reads: both splits of its dataset, and the task they pose.

Everything that can be refused is refused here, before a model is built: an empty split, a label outside the head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoders.clips import VideoSpec
from encoders.datasets.corpus import Corpus, open_corpus
from encoders.datasets.labelled import LabelledClips, Look
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling
from encoders.errors import ConfigError
from encoders.recipes import FinetuneConfig
from encoders.tasks import LabelTask, task_of
from encoders.video.face_cut import FaceCut

__all__ = ["Split", "face_cut", "open_splits"]

Counting = Callable[[int, int], None]  # (samples decoded, samples)


@dataclass(frozen=True)
class Split:
    """A split of the dataset, listed but not read."""

    config: FinetuneConfig
    corpus: Corpus

    @property
    def samples(self) -> Sequence[Sample]:
        return self.corpus.samples

    def open(self, spec: VideoSpec, progress: Counting | None = None) -> LabelledClips:
        """The samples as an encoder of this spec sees them; decoded here where the config keeps them in memory."""
        config = self.config
        short_side = config.short_side or max(spec.size, round(spec.size / spec.crop_share))
        seen = spec.region == "face"
        face = face_cut(config.face, f"preset {config.preset}", short_side / spec.size) if seen else None
        look = Look(size=spec.size, short_side=short_side, pixel_format=spec.pixel_format, box=config.box, face=face)
        sampling = ClipSampling(frames=spec.frames, stride=config.stride, fps=config.fps)
        clips = LabelledClips(self.samples, sampling, look, config.augment)
        if config.cache == "memory":
            clips.keep(config.cache_gb, progress=progress)
        return clips


def face_cut(weights: str, who: str, margin: float) -> FaceCut:
    """What shows faces to ``who`` looks at them; the margin is what a random crop may shift."""
    if not weights:
        raise ConfigError(f"{who} looks at faces; name a face net with --set face=BUNDLE/face.safetensors")
    return FaceCut.load(Path(weights).expanduser(), margin)


def open_splits(config: FinetuneConfig) -> tuple[LabelTask, Split, Split | None]:
    """The task, the training split, and the validation split where there is one.

    Raises DataError on an empty split, missing files, and a label outside the head.
    """
    train = open_corpus(config.data, splits=config.train_splits, skip_bad=config.skip_bad)
    task = task_of(train, config.kind, config.loss)
    validation = None
    if config.validation_splits:
        validation = open_corpus(config.data, splits=config.validation_splits, skip_bad=config.skip_bad)
    for corpus in (train, validation):
        for sample in corpus.samples if corpus else ():
            task.places(sample)
    return task, Split(config, train), None if validation is None else Split(config, validation)
