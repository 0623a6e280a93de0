"""Run: what is kept of one run, for its report; no pictures, no sound, no features."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import DataError
from runtime.packet import StreamInfo
from runtime.prediction import ClipProvenance, Prediction
from runtime.stream import FINAL

BUNDLED = "bundle"  # the arm that runs the bundle's own fill ladder


@dataclass(frozen=True)
class Span:
    """A stretch of the stream whose true label is known, in seconds of capture time."""

    start: float
    end: float
    label: str


@dataclass(frozen=True, kw_only=True)
class LoggedClip:
    """One clip of the stream as it was first closed or last repaired."""

    clip: int
    epoch: int
    start_seconds: float
    provenance: ClipProvenance  # its rungs are those of the last window that held it


SETTLE_CLIPS = 3  # after a change of the truth


@dataclass(kw_only=True)
class Run:
    """A finished run.

    ``arms`` holds every prediction by fill method, ``"bundle"`` first; all arms saw the same features.
    ``ledger`` and ``events`` are what the receiver counted and noticed; ``settings`` the resolved config.
    """

    stream: str
    bundle: str  # name
    bundle_hash: str
    labels: tuple[str, ...]
    modalities: tuple[str, ...]
    clip_seconds: float
    settings: Mapping[str, Any]
    loss: str = ""  # profile injected, "" = only what the source itself lost
    seed: int = 0
    recorded_loss: str = ""  # what a recording says of the losses that are in it, such as "wifi-poor, seed 1"
    truth: tuple[Span, ...] = ()
    clips: list[LoggedClip] = field(default_factory=list)
    arms: dict[str, list[Prediction]] = field(default_factory=dict)
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    events: Sequence[Any] = ()
    wall_seconds: float = 0.0
    attribution: str = ""  # of the recording or the bundle, to be shown with a report
    card: Mapping[str, Any] = field(default_factory=dict)  # the bundle's: description, training, metrics, licence, ...

    @property
    def loss_words(self) -> str:
        """Where the losses came from, in words."""
        parts = [f"{self.loss}, seed {self.seed}"] if self.loss else []
        parts += [f"{self.recorded_loss} when recorded"] if self.recorded_loss else []
        return "; ".join(parts) or "losses of the source itself"

    @property
    def seconds(self) -> float:
        """Length of the stream that was predicted on."""
        return len(self.clips) * self.clip_seconds

    def finals(self, arm: str = BUNDLED) -> list[Prediction]:
        """The final predictions of an arm, in order."""
        return [p for p in self.arms[arm] if p.status == FINAL]

    def true_label(self, prediction: Prediction) -> str | None:
        """The label that held through the last ``SETTLE_CLIPS`` clips of a prediction's window.

        None where the truth is not known, or where it has just changed: nobody can tell a new scene at its first sound.
        """
        start = max(prediction.start_seconds, prediction.end_seconds - SETTLE_CLIPS * self.clip_seconds)
        for span in self.truth:
            if span.start <= start + 1e-6 and prediction.end_seconds <= span.end + 1e-6:
                return span.label
        return None

    def accuracy(self, arm: str = BUNDLED) -> float | None:
        """Share of final predictions with known truth that are right; an abstention is not right."""
        known = [(p.label, truth) for p in self.finals(arm) if (truth := self.true_label(p)) is not None]
        return sum(label == truth for label, truth in known) / len(known) if known else None


def read_truth(info: StreamInfo) -> tuple[Span, ...]:
    """The ground truth that travels in a recording's labels: ``"truth"``, a JSON list of [start, end, label].

    Raises DataError when it is something else.
    """
    text = info.labels.get("truth")
    if text is None:
        return ()
    try:
        return tuple(Span(float(start), float(end), str(label)) for start, end, label in json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"the truth in {info.name} is not a JSON list of [start, end, label]: {error}") from error
