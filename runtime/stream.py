"""Stream: everything the runtime remembers of one client, as a value; and the law by which windows fall due.

The law, clause by clause in tests/test_stream.py. The window of clip k is the W clips ending at k. When clip k
closes it gives one provisional prediction (revision 0); each clip of it that is repaired later gives one more
revision; when clip k + F closes, or the epoch ends, it gives one final prediction, which never changes. With
F = 0 the first is the final one. Nothing is predicted before ``min_clips`` clips closed. A new epoch (a jump of
the capture clock) ends the old one and starts with an empty window; clip numbers go on.

Here is no torch: features are numpy, so that a stream can be saved, moved and resumed.

M modality (video, audio; the row of one that the bundle does not use stays absent), D feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imputation.presence import OBSERVED
from runtime.config import WindowSettings
from runtime.prediction import ClipProvenance

PROVISIONAL, FINAL = "provisional", "final"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A closed clip after the encoders: all that a window keeps of it."""

    clip: int
    epoch: int
    version: int
    start_seconds: float  # capture time
    raw: np.ndarray  # (M, D) float32, as the encoders gave it; zero where absent
    features: np.ndarray  # (M, D) float32, standardised; zero where absent
    presence: np.ndarray  # (M,) bool, True = the feature may be believed
    state: dict[str, str]  # by modality of the bundle, as flags and coverage
    flags: dict[str, tuple[str, ...]]
    coverage: dict[str, float]
    wait_ms: float = 0.0
    decode_ms: float = 0.0
    queue_ms: float = 0.0  # from submitting to the start of its batch
    encode_ms: float = 0.0  # of the whole batch it was in
    face: Any = field(default=None, repr=False, compare=False)  # runtime.face.FaceState after this clip
    _provenance: dict[str, ClipProvenance] = field(default_factory=dict, repr=False, compare=False)

    def provenance(self, rung: str) -> ClipProvenance:
        """Where this clip came from when ``rung`` of the fill ladder filled what is absent."""
        if rung not in self._provenance:  # a clip stands in W windows, mostly with the same rung
            self._provenance[rung] = ClipProvenance(
                clip=self.clip,
                state=self.state,
                flags=self.flags,
                rung={m: OBSERVED if state == OBSERVED else rung for m, state in self.state.items()},
                coverage=self.coverage,
            )
        return self._provenance[rung]


@dataclass(frozen=True, slots=True)
class Window:
    """A window that fell due.

    ``clips`` are the existing ones of the W that the head sees, in order, ending with ``clip``; ``ahead`` the closed
    ones after it, which only the imputer sees. Positions that do not exist are simply not there.
    """

    clip: int
    epoch: int
    status: str  # provisional, final
    revision: int
    clips: tuple[Encoded, ...]
    ahead: tuple[Encoded, ...]


class Windows:
    """The window of a stream: closed clips in, windows that fell due out."""

    def __init__(self, settings: WindowSettings) -> None:
        self.settings = settings
        self.epoch = 0
        self.total = 0  # clips closed
        self.predicted = 0  # windows that fell due
        self._closed: list[Encoded] = []  # consecutive clips of this epoch, the newest W + F
        self._count = 0  # clips closed in this epoch
        self._revisions: dict[int, int] = {}  # clip whose final is not out -> its next revision

    def admit(self, encoded: Encoded) -> list[Window]:
        """Take a closed clip, or a repaired version of one, and return the windows due, oldest first."""
        due: list[Window] = []
        if encoded.epoch < self.epoch:
            return []  # repaired after its epoch ended: its predictions are final
        if encoded.epoch > self.epoch:
            due = self.finish()
            self.epoch = encoded.epoch
        if self._closed and encoded.clip <= self._closed[-1].clip:
            return due + self._repair(encoded)
        expected = self._closed[-1].clip + 1 if self._closed else encoded.clip
        assert encoded.clip == expected, f"clip {encoded.clip} closed, expected {expected}"
        self._closed.append(encoded)
        self._count += 1
        self.total += 1
        del self._closed[: -(self.settings.clips + self.settings.lookahead)]
        return due + self._closing(encoded.clip)

    def recent(self, clips: int) -> list[Encoded]:
        """The newest closed clips of this epoch, at most so many."""
        return self._closed[-clips:] if clips else []

    def finish(self) -> list[Window]:
        """The stream or epoch ended: every pending window becomes final, and the window is empty."""
        due = [self._due(clip, FINAL) for clip in list(self._revisions)]
        self._closed, self._count = [], 0
        return due

    def _closing(self, clip: int) -> list[Window]:
        lookahead, due = self.settings.lookahead, []
        if lookahead and clip - lookahead in self._revisions:
            due.append(self._due(clip - lookahead, FINAL))
        if self._count >= self.settings.min_clips:
            self._revisions[clip] = 0
            due.append(self._due(clip, PROVISIONAL if lookahead else FINAL))
        return due

    def _repair(self, encoded: Encoded) -> list[Window]:
        """A late packet mended a closed clip: one more revision of each window that holds it and is not final."""
        place = encoded.clip - self._closed[-1].clip - 1
        if -place > len(self._closed):
            return []  # no window that could still change holds it
        self._closed[place] = encoded
        last = encoded.clip + self.settings.clips - 1
        return [self._due(clip, PROVISIONAL) for clip in list(self._revisions) if encoded.clip <= clip <= last]

    def _due(self, clip: int, status: str) -> Window:
        revision = self._revisions[clip]
        self.predicted += 1
        if status == FINAL:
            del self._revisions[clip]
        else:
            self._revisions[clip] = revision + 1
        newest = self._closed[-1].clip
        end = len(self._closed) - (newest - clip)
        clips = tuple(self._closed[max(0, end - self.settings.clips) : end])
        ahead = tuple(self._closed[end : end + self.settings.lookahead])
        return Window(clip, self.epoch, status, revision, clips, ahead)


@dataclass
class Stream:
    """All state of one client. Created by ``Pipeline.open``; the engine reads and moves it, nobody else.

    ``receiver`` turns packets into closed clips (``runtime.receive``), ``windows`` turns encoded clips into windows
    due, ``face`` follows the face over observed clips; ``latest`` are the clips that may still be repaired.
    """

    name: str
    windows: Windows
    receiver: Any = None  # runtime.receive.Receiver; None where clips come from elsewhere
    face: Any = None  # runtime.face.FaceState
    latest: dict[int, Encoded] = field(default_factory=dict)
    observed: int = 0  # clips of which anything was

    def remember(self, encoded: Encoded) -> None:
        """Keep what a repaired version of this clip would reuse."""
        self.observed += bool(encoded.presence.any())
        self.latest[encoded.clip] = encoded
        for clip in [c for c in self.latest if c < encoded.clip - self.windows.settings.lookahead]:
            del self.latest[clip]


def observed_share(clips: Sequence[Encoded]) -> dict[str, float]:
    """Per modality, the share of these clips that was observed; positions that do not exist are not counted."""
    return {m: [c.state[m] for c in clips].count(OBSERVED) / len(clips) for m in clips[0].state}


def longest_gap(clips: Sequence[Encoded]) -> int:
    """The longest run of consecutive absent clips in any one modality, in clips."""
    longest = 0
    for modality in clips[0].state:
        states = [clip.state[modality] for clip in clips]
        if OBSERVED not in states:
            return len(states)
        run = 0
        for state in states if states.count(OBSERVED) < len(states) - longest else ():
            run = 0 if state == OBSERVED else run + 1
            if run > longest:
                longest = run
    return longest


def provenances(clips: Sequence[Encoded], rung: str) -> tuple[ClipProvenance, ...]:
    """Where the clips of a window came from when ``rung`` filled what is absent."""
    return tuple([c._provenance.get(rung) or c.provenance(rung) for c in clips])
