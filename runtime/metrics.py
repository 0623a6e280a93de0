"""Counts that add up: where every packet of a modality went, and how long things took.

The conservation law, at any moment and for each modality::

    expected = received + lost
    received = used + unused + damaged + late + duplicate + malformed + shed + unfinished

A packet has one fate, the first that applies of malformed, duplicate, late, damaged, used, shed, unused; a late packet
that repaired a clip counts as used. Asserted by tests/test_metrics.py for any order of events.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

__all__ = ["FATES", "Counts", "Histogram", "Ledger", "Ledgers"]

FATES = ("malformed", "duplicate", "late", "damaged", "used", "shed", "unused")  # in order of precedence


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Packets of one modality by fate."""

    expected: int = 0
    received: int = 0
    lost: int = 0
    used: int = 0  # some of it entered an encoded clip
    unused: int = 0  # intact, but its clip was absent or its track not chosen
    damaged: int = 0
    late: int = 0
    duplicate: int = 0
    malformed: int = 0
    shed: int = 0
    unfinished: int = 0  # received, its fate not settled yet

    def check(self) -> None:
        """Assert the conservation law."""
        fates = sum(getattr(self, fate) for fate in FATES)
        assert self.expected == self.received + self.lost, self
        assert self.received == fates + self.unfinished, self
        assert min(asdict(self).values()) >= 0, self

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(slots=True)
class _Open:
    """What is known of a packet whose fate is not settled, once there is something to know."""

    marks: set[str] = field(default_factory=set)
    repaired: bool = False

    def fate(self) -> str:
        if not self.marks:
            return "used" if self.repaired else "unused"
        marks = self.marks - {"late"} | {"used"} if self.repaired else self.marks
        return next((fate for fate in FATES if fate in marks), "unused")


_GONE = _Open()  # stands for a packet that was settled, or never came


class Ledger:
    """The packets of one modality, from arrival to fate; each number is opened once and settled once."""

    def __init__(self) -> None:
        self._open: dict[int, _Open | None] = {}  # None: it came, and that is all
        self._fates = dict.fromkeys(FATES, 0)
        self._received = 0
        self._lost = 0

    @property
    def counts(self) -> Counts:
        return Counts(
            expected=self._received + self._lost,
            received=self._received,
            lost=self._lost,
            unfinished=len(self._open),
            **self._fates,
        )

    def receive(self, seq: int, *, late: bool = False, was_lost: bool = False) -> None:
        """Packet ``seq`` came. ``late``: after its deadline; ``was_lost``: a gap had counted it, which is taken back.

        A number that is already open is a duplicate.
        """
        if seq in self._open:
            self.duplicate()
            return
        self._received += 1
        self._lost -= was_lost and self._lost > 0
        self._open[seq] = _Open({"late"}) if late else None

    def duplicate(self, count: int = 1) -> None:
        """Further copies of packets that have come."""
        self._settle_new("duplicate", count)

    def malformed(self, count: int = 1) -> None:
        """Packets that could not be read and never got a place in the stream."""
        self._settle_new("malformed", count)

    def lose(self, count: int) -> None:
        """A gap of ``count`` packets was reported."""
        self._lost += count

    def mark(self, seqs: Iterable[int], fate: str) -> None:
        """Something of each packet met ``fate``; the strongest mark will count. Settled packets keep their fate."""
        assert fate in FATES, fate
        for seq in seqs:
            if seq in self._open:
                self._known(seq).marks.add(fate)

    def repair(self, seqs: Iterable[int]) -> None:
        """Late packets that were decoded into a clip after all: they count as used."""
        for seq in seqs:
            if seq in self._open:
                self._known(seq).repaired = True

    def settle(self, seqs: Iterable[int] | None = None) -> None:
        """Nothing more will be known of these packets (None: of any): count their fates."""
        for seq in list(self._open) if seqs is None else seqs:
            if seq in self._open:
                packet = self._open.pop(seq)
                self._fates["unused" if packet is None else packet.fate()] += 1

    def meet(self, fate: str, seqs: Iterable[int]) -> None:
        """``mark`` (for ``used``: ``repair``) and ``settle`` in one: a whole clip's packets meet their fate at once."""
        assert fate in FATES, fate
        known, met = self._open, 0
        for seq in seqs:
            packet = known.pop(seq, _GONE)
            if packet is None:
                met += 1
            elif packet is not _GONE:
                packet.marks.add(fate)
                packet.repaired |= fate == "used"
                self._fates[packet.fate()] += 1
        self._fates[fate] += met

    def settle_through(self, seq: int) -> None:
        """``settle`` every open packet numbered ``seq`` or less."""
        self.settle([open_seq for open_seq in self._open if open_seq <= seq])

    def _known(self, seq: int) -> _Open:
        packet = self._open[seq]
        if packet is None:
            packet = self._open[seq] = _Open()
        return packet

    def _settle_new(self, fate: str, count: int) -> None:
        self._received += count
        self._fates[fate] += count


class Ledgers(dict[str, Ledger]):
    """The ledger of each modality, made when first asked for."""

    def __missing__(self, modality: str) -> Ledger:
        self[modality] = Ledger()
        return self[modality]

    def settle(self, modality: str, outcome: str, seqs: list[int]) -> None:
        """These packets have met their fate."""
        self[modality].meet(outcome, seqs)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Counts by modality."""
        return {modality: ledger.counts.as_dict() for modality, ledger in self.items()}

    def check(self) -> None:
        """Assert the conservation law for each modality."""
        for ledger in self.values():
            ledger.counts.check()


# Milliseconds: fine below a frame, coarse above a second.
BOUNDS_MS = (1, 2, 5, 10, 20, 33, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 10000)


class Histogram:
    """Durations in fixed buckets, milliseconds: constant memory, quantiles within a bucket."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_MS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last holds what is above every bound
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, milliseconds: float) -> None:
        self._counts[bisect_left(self._bounds, milliseconds)] += 1
        self.count += 1
        self.total += milliseconds
        self.largest = max(self.largest, milliseconds)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """Milliseconds below which ``share`` of the durations lie, linear within its bucket; 0 when empty."""
        wanted, seen, low = share * self.count, 0, 0.0
        for high, count in zip((*self._bounds, self.largest), self._counts, strict=True):
            high = min(high, self.largest)
            if count and seen + count >= wanted:
                return low + (high - low) * max(0.0, wanted - seen) / count
            seen, low = seen + count, high
        return self.largest

    def cumulative(self) -> Mapping[float, int]:
        """Bucket bound -> how many durations are at most that, as a metrics scraper wants it."""
        out, seen = {}, 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            seen += count
            out[bound] = seen
        return out

    def as_dict(self) -> dict[str, float]:
        return {
            "count": self.count,
            "mean_ms": round(self.mean, 3),
            "p50_ms": round(self.quantile(0.5), 3),
            "p95_ms": round(self.quantile(0.95), 3),
            "p99_ms": round(self.quantile(0.99), 3),
            "max_ms": round(self.largest, 3),
        }
