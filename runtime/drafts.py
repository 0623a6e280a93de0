"""Draft: a closed clip on its way through the encoders, one at a time or in a batch; the same law for both.

A feature is believed where the clip was present, was not shed, and carries no flag that the bundle's content policy
distrusts. A repaired clip is encoded again only where the repair changed something. A draft changes nothing of its
stream until ``done``: a batch that failed can be tried again.

M modality, D feature width.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.errors import DataError
from runtime.packet import MODALITIES
from runtime.stream import Encoded, Stream


@dataclass(eq=False)
class Draft:
    """What is known of a clip's features so far."""

    stream: Stream
    clip: Clip
    raw: np.ndarray  # (M, D)
    state: dict[str, str]
    flags: dict[str, tuple[str, ...]]
    needed: list[str]  # modalities that still want a feature
    face: Any = None  # runtime.face.FaceState after it; None where the clip moves no box

    @classmethod
    def of(cls, stream: Stream, clip: Clip, modalities: Collection[str], width: int, shed: Collection[str]) -> "Draft":
        """Of a clip whose ``shed`` modalities we chose not to encode."""
        state = {m: clip.state.get(m, "lost") for m in modalities}
        draft = cls(
            stream=stream,
            clip=clip,
            raw=np.zeros((len(MODALITIES), width), np.float32),
            state=state,
            flags={m: tuple(clip.flags.get(m, ())) for m in modalities},
            needed=[],
        )
        before = stream.latest.get(clip.index)
        for modality in modalities:
            if not clip.presence.get(modality):
                continue
            if modality in shed:  # as a replay of the recording will see it: a clip that was never looked at
                state[modality], draft.flags[modality] = "shed", ()
            elif getattr(clip, modality) is None:
                continue
            elif before is not None and _kept(before, clip, modality):
                draft.raw[MODALITIES.index(modality)] = before.raw[MODALITIES.index(modality)]
                draft.flags[modality] = before.flags[modality]
            else:
                draft.needed.append(modality)
        return draft

    def put(self, modality: str, feature: np.ndarray, flags: Sequence[str] = (), *, finite: bool = False) -> None:
        """The raw feature (D,) of one modality, and the flags that looking at it adds. Raises DataError.

        ``finite``: it was checked already.
        """
        if not (finite or np.isfinite(feature).all()):
            raise DataError(
                f"the {modality} encoder gave a feature that is not finite for clip {self.clip.index} of stream "
                f"{self.stream.name!r}; check the bundle's weights with legato bundle check"
            )
        self.raw[MODALITIES.index(modality)] = feature
        self.flags[modality] += tuple(flags)

    def done(
        self,
        policy: Mapping[str, Collection[str]],
        mean: np.ndarray,
        std: np.ndarray,
        *,
        queue_ms: float = 0.0,
        encode_ms: float = 0.0,
    ) -> Encoded:
        """The encoded clip, standardised by ``mean`` and ``std`` (M, D); the stream remembers it."""
        clip, raw, state = self.clip, self.raw, self.state
        for modality in state:
            flags = self.flags[modality]
            if flags and state[modality] == OBSERVED and any(modality in policy.get(flag, ()) for flag in flags):
                state[modality] = "shed"  # we chose not to believe it
        there = [state.get(m) == OBSERVED for m in MODALITIES]
        features = (raw - mean) / std
        for row, seen in enumerate(there):
            if not seen:
                raw[row] = features[row] = 0
        encoded = Encoded(
            clip=clip.index,
            epoch=clip.epoch,
            version=clip.version,
            start_seconds=float(clip.start),
            raw=raw,
            features=features,
            presence=np.array(there),
            state=state,
            flags=self.flags,
            coverage={m: float(clip.coverage.get(m, 0.0)) for m in state},
            wait_ms=clip.wait_ms,
            decode_ms=clip.decode_ms,
            queue_ms=queue_ms,
            encode_ms=encode_ms,
            face=self.stream.face if self.face is None else self.face,
        )
        if self.face is not None:
            self.stream.face = self.face
        self.stream.remember(encoded)
        return encoded


def _kept(before: Encoded, clip: Clip, modality: str) -> bool:
    """Whether the feature of the version before still holds."""
    return bool(before.presence[MODALITIES.index(modality)] and before.coverage[modality] == clip.coverage[modality])
