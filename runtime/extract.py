"""Features of a dataset's recordings, L equally spaced clips of each (`encoders.datasets.equal_clips`).

What ``legato features SOURCE`` does clip after clip on the grid of a stream, this does for experiments that want the
same number of clips of every recording, whatever its length. Encoders, face finder and standardisation are the
bundle's; there are no packets, so every clip of a modality that the recording has is observed. Nothing but its own
clip speaks through a feature: a face is looked for in each clip anew (`runtime.shown`), where a stream follows it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.datasets.equal_clips import spread
from encoders.datasets.reader import seconds_of
from encoders.datasets.sample import Sample
from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.drafts import Draft
from runtime.errors import DataError, LegatoError
from runtime.packet import MODALITIES
from runtime.shown import Shower, Shown
from runtime.stream import Encoded, Stream, Windows

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

__all__ = ["Extraction", "encode", "extract"]


@dataclass(eq=False)
class Extraction:
    """What came of a dataset."""

    recordings: dict[str, list[Encoded]] = field(default_factory=dict)  # by a name that occurs once
    samples: dict[str, Sample] = field(default_factory=dict)
    overlapping: int = 0  # recordings whose clips share parts, as they are too short for L
    unreadable: list[str] = field(default_factory=list)  # why, one sentence each
    faceless: int = 0  # clips in which no face was seen, though one was looked for


def extract(
    pipeline: "Pipeline",
    samples: Iterable[Sample],
    count: int,
    *,
    later: float = 0.0,
    apart: bool = False,
    keep: Path | None = None,
) -> Extraction:
    """``count`` encoded clips of each sample; what cannot be read is told and left out.

    ``later`` and ``apart``: see `spread`. ``keep``: folder of what the encoders are shown, kept from one to the next.
    """
    out = Extraction()
    shower = Shower(pipeline.engine, keep)
    for sample in samples:
        name = sample.id if sample.id not in out.recordings else f"{sample.id} ({len(out.recordings) + 1})"
        try:
            seconds = pipeline.config.clip.seconds
            starts, overlap = spread(seconds_of(sample), seconds, count, later=later, apart=apart)
            shown = shower.show(sample, starts)
            clips = encode(pipeline, name, shown, starts)
            if not any(clip.presence.any() for clip in clips):
                raise DataError("it has nothing that this bundle's encoders could see or hear")
        except LegatoError as error:
            told = str(error)
            out.unreadable.append(told if str(sample.path) in told else f"{sample.path}: {told}")
            continue
        out.recordings[name], out.samples[name] = clips, sample
        out.overlapping += overlap
        out.faceless += sum("no_face" in clip.flags.get("video", ()) for clip in clips)
    return out


def encode(pipeline: "Pipeline", name: str, shown: Shown, starts: Sequence[float]) -> list[Encoded]:
    """The clips of one recording, all of them through an encoder at once."""
    engine = pipeline.engine
    stream = Stream(name, Windows(pipeline.config.window), face=engine.initial_face())
    clips = [_clip(pipeline, shown, place, start) for place, start in enumerate(starts)]
    drafts = [Draft.of(stream, clip, engine.encoders, engine.width, ()) for clip in clips]
    for modality in engine.encoders:
        features = _features(pipeline, modality, getattr(shown, modality))
        for place, draft in enumerate(drafts):
            if modality not in draft.needed:
                continue
            unseen = modality == "video" and not shown.found[place]
            feature = features[place] if not unseen or engine.no_face is None else engine.no_face
            draft.put(modality, feature, ("no_face",) if unseen else ())
    return [engine.finished(draft, 0.0, 0.0) for draft in drafts]


@torch.inference_mode()
def _features(pipeline: "Pipeline", modality: str, clips: np.ndarray) -> NDArray[np.float32]:
    """(L, ...) to (L, D)."""
    batch = torch.from_numpy(clips).to(pipeline.engine.device)
    features: NDArray[np.float32] = pipeline.engine.encoders[modality].encode(batch).float().cpu().numpy()
    return features


def _clip(pipeline: "Pipeline", shown: Shown, place: int, start: float) -> Clip:
    """One clip of a recording, whole wherever the recording has something."""
    asked = list(pipeline.engine.encoders)
    there = {m: bool(shown.there[place, MODALITIES.index(m)]) for m in asked}
    content = {m: getattr(shown, m)[place] if there[m] else None for m in asked}
    return Clip(
        index=place,
        epoch=0,
        start=Fraction(start).limit_denominator(1_000_000),
        seconds=pipeline.engine.spec.seconds,
        video=content.get("video"),
        audio=content.get("audio"),
        presence=there,
        coverage={modality: float(present) for modality, present in there.items()},
        state={modality: OBSERVED if present else "lost" for modality, present in there.items()},
        flags={modality: () for modality in there},
        severity=dict.fromkeys(there, 0.0),
    )
