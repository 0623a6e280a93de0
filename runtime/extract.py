"""Features of a dataset's recordings, L equally spaced clips of each (`encoders.datasets.equal_clips`).

What ``legato features SOURCE`` does clip after clip on the grid of a stream, this does for experiments that want the
same number of clips of every recording, whatever its length. Encoders, face search and standardisation are the
bundle's; there are no packets, so every clip of a modality that the recording has is observed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from encoders.datasets.equal_clips import spread
from encoders.datasets.reader import read_sample, seconds_of
from encoders.datasets.sample import Sample
from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.errors import DataError, LegatoError
from runtime.stream import Encoded, Stream, Windows

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

__all__ = ["Extraction", "extract", "read_clips"]


@dataclass(eq=False)
class Extraction:
    """What came of a dataset."""

    recordings: dict[str, list[Encoded]] = field(default_factory=dict)  # by a name that occurs once
    samples: dict[str, Sample] = field(default_factory=dict)
    overlapping: int = 0  # recordings whose clips share parts, as they are too short for L
    unreadable: list[str] = field(default_factory=list)  # why, one sentence each


def extract(pipeline: "Pipeline", samples: Iterable[Sample], count: int) -> Extraction:
    """``count`` encoded clips of each sample; what cannot be read is told and left out."""
    out = Extraction()
    for sample in samples:
        name = sample.id if sample.id not in out.recordings else f"{sample.id} ({len(out.recordings) + 1})"
        stream = Stream(name, Windows(pipeline.config.window), face=pipeline.engine.initial_face())
        try:
            starts, overlap = spread(seconds_of(sample), pipeline.config.clip.seconds, count)
            clips = [pipeline.engine.encode(stream, clip) for clip in read_clips(pipeline, sample, starts)]
            if not any(clip.presence.any() for clip in clips):
                raise DataError("it has nothing that this bundle's encoders could see or hear")
        except LegatoError as error:
            told = str(error)
            out.unreadable.append(told if str(sample.path) in told else f"{sample.path}: {told}")
            continue
        out.recordings[name], out.samples[name] = clips, sample
        out.overlapping += overlap
    return out


def read_clips(pipeline: "Pipeline", sample: Sample, starts: Iterable[float]) -> Iterator[Clip]:
    """The clips that begin at ``starts``, in seconds of the sample's span. Raises SourceError or DataError."""
    spec = pipeline.engine.spec
    for index, start in enumerate(starts):
        video, audio = read_sample(sample, spec, start=start)
        there = {
            modality: content is not None
            for modality, content in (("video", video), ("audio", audio))
            if modality in pipeline.engine.encoders
        }
        yield Clip(
            index=index,
            epoch=0,
            start=Fraction(start).limit_denominator(1_000_000),
            seconds=spec.seconds,
            video=video,
            audio=audio,
            presence=there,
            coverage={modality: float(present) for modality, present in there.items()},
            state={modality: OBSERVED if present else "lost" for modality, present in there.items()},
            flags={modality: () for modality in there},
            severity=dict.fromkeys(there, 0.0),
        )
