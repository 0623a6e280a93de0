"""What a report says: places on the time axis, shares, accuracies and latencies of a run; no markup."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from imputation.presence import OBSERVED
from runtime.prediction import Prediction, Timings
from runtime.run_log import BUNDLED, Run
from runtime.stream import FINAL

STAGES = ("wait", "decode", "encode", "fill")
SHARE_EDGES = (0.25, 0.5, 0.75)  # of the observed share, between the rows of the accuracy table
FATE_ORDER = ("used", "unused", "damaged", "late", "duplicate", "malformed", "shed", "unfinished")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the time axis, in clips from the beginning, that shows one thing."""

    start: float
    end: float
    key: str


@dataclass(frozen=True, slots=True)
class Share:
    """How often a fill method was right where about this much was observed."""

    low: float
    high: float
    windows: int
    right: dict[str, float]  # by arm


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one stage over all windows."""

    stage: str
    p50: float
    p95: float
    largest: float


class Axis:
    """The time axis: clips side by side from 0, so that epochs with other clocks still stand in order."""

    def __init__(self, run: Run) -> None:
        self.length = len(run.clips)
        self.seconds = run.clip_seconds
        self._place = {logged.clip: i for i, logged in enumerate(run.clips)}
        self._stretches = list(self._epochs(run))
        self.breaks = [start for start, _, _ in self._stretches[1:]]

    @staticmethod
    def _epochs(run: Run) -> Iterator[tuple[int, int, float]]:
        """(first place, end, capture time of the first clip) of each epoch."""
        for _, group in groupby(enumerate(run.clips), key=lambda item: item[1].epoch):
            members = list(group)
            yield members[0][0], members[-1][0] + 1, members[0][1].start_seconds

    def place(self, clip: int) -> int | None:
        """Where a clip stands; None if the run never closed it."""
        return self._place.get(clip)

    def segments(self, start: float, end: float, key: str) -> Iterator[Segment]:
        """The stretches of the axis that lie in [start, end) of capture time."""
        for first, last, begin in self._stretches:
            low = max(first, first + (start - begin) / self.seconds)
            high = min(last, first + (end - begin) / self.seconds)
            if high > low:
                yield Segment(low, high, key)

    def ticks(self, wanted: int = 8) -> list[tuple[float, str]]:
        """(place, "m:ss") of about ``wanted`` round times since the beginning."""
        total = self.length * self.seconds
        nice = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
        step = next((s for s in nice if total / s <= wanted), 14400)
        return [(i * step / self.seconds, _clock(i * step)) for i in range(int(total / step) + 1)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:02.0f}" if rest == int(rest) else f"{rest:04.1f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def merge(keys: Sequence[Hashable | None]) -> list[Segment]:
    """Equal neighbours as one segment; None leaves a hole."""
    out, place = [], 0
    for key, group in groupby(keys):
        size = len(list(group))
        if key is not None:
            out.append(Segment(place, place + size, str(key)))
        place += size
    return out


def states(run: Run, modality: str) -> list[Segment]:
    """What came of a modality, clip by clip."""
    return merge([logged.provenance.state.get(modality) for logged in run.clips])


def rungs(run: Run, modality: str) -> list[Segment]:
    """What filled the absent clips of a modality; nothing where a clip was observed or never stood in a window."""
    return merge([_filler(logged.provenance.rung.get(modality, "")) for logged in run.clips])


def _filler(rung: str) -> str | None:
    return None if rung in ("", OBSERVED) else rung


def flags(run: Run, modality: str) -> list[Segment]:
    """Content flags of a modality: frozen, blank, silent, ..."""
    return merge([", ".join(logged.provenance.flags.get(modality, ())) or None for logged in run.clips])


def truth(run: Run, axis: Axis) -> list[Segment]:
    """The true label, where known."""
    return [segment for span in run.truth for segment in axis.segments(span.start, span.end, span.label)]


def heads(run: Run) -> list[str]:
    """The heads that spoke, in order of appearance."""
    return list(dict.fromkeys(p.head for p in run.arms.get(BUNDLED, ())))


def finals(run: Run, arm: str, head: str) -> list[Prediction]:
    """The final predictions of a head, in order."""
    return [p for p in run.arms.get(arm, ()) if p.status == FINAL and p.head == head]


def accuracy(run: Run, predictions: Sequence[Prediction]) -> float | None:
    """Share of windows with known truth that are right; None without truth. An abstention is not right."""
    known = [(p, label) for p in predictions if (label := run.true_label(p)) is not None]
    return sum(p.label == label for p, label in known) / len(known) if known else None


def judged(run: Run, predictions: Sequence[Prediction]) -> int:
    """Windows whose true label is known."""
    return sum(run.true_label(p) is not None for p in predictions)


def observed_share(run: Run, modality: str) -> float:
    """Share of clips whose feature was observed."""
    seen = sum(logged.provenance.state.get(modality) == OBSERVED for logged in run.clips)
    return seen / len(run.clips) if run.clips else 0.0


def filled_clips(run: Run) -> int:
    """Places (clip and modality) that were filled."""
    return sum(_filler(r) is not None for logged in run.clips for r in logged.provenance.rung.values())


def longest_gap(run: Run, modality: str) -> float:
    """The longest stretch without an observed clip, seconds."""
    gaps = merge([logged.provenance.state.get(modality) != OBSERVED or None for logged in run.clips])
    return max((gap.end - gap.start for gap in gaps), default=0.0) * run.clip_seconds


def by_observed_share(run: Run, head: str) -> list[Share]:
    """Accuracy of every arm by how much of the window was observed, most first; empty without truth."""
    arms = {arm: finals(run, arm, head) for arm in run.arms}
    edges, out = (0.0, *SHARE_EDGES, 1.0), []
    for low, high in reversed(list(pairwise(edges))):
        inside = {arm: [p for p in ps if _within(p, low, high)] for arm, ps in arms.items()}
        right = {arm: share for arm, ps in inside.items() if (share := accuracy(run, ps)) is not None}
        if right:
            out.append(Share(low, high, judged(run, inside.get(BUNDLED, ())), right))
    return out


def _within(prediction: Prediction, low: float, high: float) -> bool:
    share = mean_share(prediction)
    return low < share <= high or (low == 0 and share == 0)


def mean_share(prediction: Prediction) -> float:
    """Observed share of a window over its modalities."""
    shares = prediction.observed_share.values()
    return sum(shares) / len(shares) if shares else 0.0


def latencies(run: Run) -> list[Latency]:
    """Milliseconds by stage and in all, over the first word on each window."""
    first = [p.timings for p in run.arms.get(BUNDLED, ()) if p.revision == 0]
    return [_latency(stage, first) for stage in (*STAGES, "total")] if first else []


def _latency(stage: str, timings: Sequence[Timings]) -> Latency:
    values = np.array([getattr(t, f"{stage}_ms") for t in timings])
    p50, p95 = np.percentile(values, (50, 95))
    return Latency(stage, float(p50), float(p95), float(values.max()))
