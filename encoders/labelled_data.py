"""From a run's config to the samples it reads: both splits of its dataset, and the task they pose.

Everything that can be refused is refused here, before a model is built: an empty split, a label outside the head.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.audio.log_mel import zero_of
from encoders.clips import VideoSpec
from encoders.datasets.corpus import Corpus, open_corpus
from encoders.datasets.labelled import LabelledClips, Look
from encoders.datasets.labelled_pairs import Hearing, LabelledPairs, kept_flow
from encoders.datasets.labelled_sounds import LabelledSounds
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling
from encoders.errors import ConfigError, OutputError
from encoders.readings import is_joint
from encoders.recipes import FinetuneConfig
from encoders.tasks import LabelTask, task_of
from encoders.video.face_cut import FaceCut
from encoders.video.flow import FlowCache

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
        clips = LabelledClips(self.samples, *self._seen(spec), self.config.augment)
        if self.config.cache == "memory":
            clips.keep(self.config.cache_gb, progress=progress)
        return clips

    def sounds(self, model: Any, progress: Counting | None = None) -> LabelledSounds:
        """The samples as a model of sound hears them."""
        config, front = self.config, model.front
        if not config.sound.repeat and not getattr(front, "frames", 0):
            raise ConfigError(
                f"repeat {config.sound.repeat} needs a front that fills short sound up, which {config.preset} has not; "
                "set model.front.frames, or leave it out"
            )
        sounds = LabelledSounds(
            self.samples, model.clip_seconds, front.sample_rate, front, config.sound, zero=zero_of(front)
        )  # fmt: skip
        if config.cache == "memory":
            sounds.keep(config.cache_gb, progress=progress)
        return sounds

    def open_for(self, model: Any, progress: Counting | None = None) -> LabelledClips | LabelledPairs | LabelledSounds:
        """The samples as a model takes them: clips of pictures or of sound, or pictures and sound of one span.

        Raises ConfigError where flow is to be kept for a model that sees none.
        """
        config = self.config
        flows = is_joint(model) and "flow" in model.sees
        if config.flow_cache and not flows:
            raise ConfigError(f"preset {config.preset} sees no flow; leave out flow_cache {config.flow_cache}")
        if tuple(getattr(model, "modalities", ())) == ("audio",):
            return self.sounds(model, progress)
        if not is_joint(model):
            return self.open(model.spec, progress)
        hearing = None
        if "audio" in model.modalities:
            apart = getattr(model, "sound_apart", False)
            hearing = Hearing(front=model.front, seconds=model.clip_seconds, augment=config.sound, apart=apart)
        sampling, look = self._seen(model.specs["video"])
        flow = model.config.flow if flows else None
        pairs = LabelledPairs(self.samples, sampling, look, hearing, config.augment, flow, self._flow_cache(look, flow))
        if config.cache == "memory":
            pairs.keep(config.cache_gb, progress=progress)
        return pairs

    def _seen(self, spec: VideoSpec) -> tuple[ClipSampling, Look]:
        """Which frames of a sample are looked at, and what of them."""
        config = self.config
        short_side = config.short_side or max(spec.size, round(spec.size / spec.crop_share))
        seen = spec.region == "face"
        face = face_cut(config.face, f"preset {config.preset}", short_side / spec.size) if seen else None
        look = Look(size=spec.size, short_side=short_side, pixel_format=spec.pixel_format, box=config.box, face=face)
        return ClipSampling(frames=spec.frames, stride=config.stride, fps=config.fps), look

    def _flow_cache(self, look: Look, flow: Any) -> FlowCache | None:
        """The folder's part for clips that are looked at like this; raises OutputError where it cannot be made."""
        config = self.config
        if not config.flow_cache:
            return None
        try:
            Path(config.flow_cache).expanduser().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"flow_cache {config.flow_cache} cannot be made ({error.strerror}); name a folder that can be written"
            ) from None
        face = hashlib.sha256(Path(config.face).expanduser().read_bytes()).hexdigest() if look.face else ""
        # Frames from memory lie on the fps grid, others where the clip's own times fall.
        looked = [look.pixel_format, look.size, look.box, face, config.cache, str(config.fps), config.stride]
        return kept_flow(config.flow_cache, flow, json.dumps(looked))


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
