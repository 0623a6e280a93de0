"""Clips: both modalities cut at the lines of one grid on the capture clock.

Cell k of an epoch covers ``[origin + k T, origin + (k + 1) T)``. The assembler takes frames, blocks and gaps, and when
it is told to close a cell it says what came of it: content, coverage, state, flags. A closed cell is kept until its
final prediction is due; what arrives late may repair it, once, as version 1 of the clip. Then its packets are settled:
each gets exactly one outcome (tests/test_clip.py).

Nothing here reads a clock or decides when to stop waiting; that is ``runtime.receive``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clips import FLICKS, ClipSpec, from_flicks
from imputation.presence import OBSERVED, SPOILED, PresenceRule, absent_state
from runtime.tracks import Account, AudioTrack, Piece, VideoTrack

__all__ = ["Clip", "ClipAssembler", "Fate"]

DEFAULT_FRAME_RATE = Fraction(25)  # until frames tell


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """One cell of the grid, closed. Dictionaries are by modality, for those of the bundle.

    video: uint8 (T, H, W) or (T, H, W, 3), audio: float32 (S,); None where absent. ``presence`` True = the feature
    may be believed, with damage in it where ``flags`` says ``spoiled``. ``version`` 0 is the first; 1 is the same clip
    after a late repair. ``wait_ms`` is the time from the clip's end to its closing, on the receiver's clock;
    ``decode_ms`` what its packets took to decode.
    """

    index: int  # goes on over epochs
    epoch: int
    start: Fraction  # capture time, seconds
    seconds: Fraction
    video: NDArray[np.uint8] | None
    audio: NDArray[np.float32] | None
    presence: dict[str, bool]
    coverage: dict[str, float]  # share of the clip's time present and undamaged, 0 to 1
    state: dict[str, str]  # observed, damaged, late, lost, shed
    flags: dict[str, tuple[str, ...]]  # frozen, blank, silent, spoiled
    severity: dict[str, float]  # how bad the damaged part is thought to be, 0 to 1
    version: int = 0
    wait_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(slots=True, eq=False)
class Fate:
    """What is known of a received packet until its outcome is settled."""

    modality: str
    seq: int
    last: int  # the last cell that something of it fell into
    first: int | None = None  # the first, once something came out of the decoder
    damaged: bool = False
    late: bool = False
    malformed: bool = False

    @property
    def decoded(self) -> bool:
        """Something came out of the decoder for it."""
        return self.first is not None


@dataclass(slots=True, eq=False)
class _Cell:
    """A cell of the grid from its first packet until nothing about it can change."""

    fates: list[Fate] = field(default_factory=list)
    clip: Clip | None = None  # as it was closed
    repaired: set[str] = field(default_factory=set)  # modalities to which something came after closing
    shed: set[str] = field(default_factory=set)
    decode: float = 0.0  # seconds
    frozen: bool = False


class ClipAssembler:
    """One epoch's grid: pieces in, closed clips out.

    ``origin`` is the capture time of the grid's zero in seconds; all other times are flicks from it. ``lookahead``
    is how many cells later a clip's final prediction is due. ``settle(modality, outcome, seqs)`` is told the outcome
    of every packet, exactly once. ``first_index`` is the clip index of cell ``first_cell``.
    """

    def __init__(
        self,
        spec: ClipSpec,
        rule: PresenceRule,
        origin: Fraction,
        modalities: Sequence[str],
        *,
        epoch: int = 0,
        first_index: int = 0,
        first_cell: int = 0,
        lookahead: int = 0,
        sequenced: bool = True,
        frame_rate: Fraction | None = None,
        settle: Callable[[str, str, list[int]], None] | None = None,
    ) -> None:
        self.spec, self.rule, self.origin = spec, rule, origin
        self.epoch, self.lookahead = epoch, lookahead
        self.length = spec.flicks
        self.modalities = tuple(modalities)
        self.tracks: dict[str, Any] = {}
        if "video" in self.modalities and spec.video is not None:
            period = int(FLICKS / (frame_rate or DEFAULT_FRAME_RATE))
            self.tracks["video"] = VideoTrack(self.length, spec.video, period)
        if "audio" in self.modalities and spec.audio is not None:
            self.tracks["audio"] = AudioTrack(spec.samples, spec.audio, sequenced)
        self.next_cell = first_cell  # the next to close
        self._offset = first_index - first_cell  # from cell to clip index
        self.mended = False  # a closed clip was repaired since ``repairs`` looked last
        self._seen: dict[str, bool] = {}  # what was present in the clip closed last
        self._begin = first_cell
        self._oldest = first_cell  # cells before this are frozen and gone
        self._cells: dict[int, _Cell] = {}
        self._settle = settle or (lambda _modality, _outcome, _seqs: None)
        self._units = {m: t.per_second for m, t in self.tracks.items()}
        for track in self.tracks.values():
            track.closed = first_cell * track.length

    @property
    def next_index(self) -> int:
        """The index of the next clip to close."""
        return self.next_cell + self._offset

    @property
    def next_end(self) -> int:
        """Where the next cell to close ends."""
        return (self.next_cell + 1) * self.length

    def index_at(self, time: int) -> int:
        """The index of the clip that holds this time."""
        return time // self.length + self._offset

    def packet(self, modality: str, seq: int, time: int, *, late: bool = False) -> Fate | None:
        """A packet that goes to the decoder, by its capture time; None if nothing waits for it any more.

        The cell before the oldest may still spill a packet's tail into it.
        """
        index = time // self.length
        if index >= self.next_cell and not late:  # as nearly always
            fate = Fate(modality, seq, index)
            self._cell(index).fates.append(fate)
            return fate
        fate = Fate(modality, seq, index, late=late or index < self.next_cell)
        home = max(index, self._oldest)
        if home - index > 1 or (home in self._cells and self._cells[home].frozen):
            self._settle(modality, "late" if index >= self._begin else "unused", [seq])
            return None
        self._cell(home).fates.append(fate)
        return fate

    def frame(
        self, time: int, duration: int, pixels: NDArray[np.uint8], damaged: bool, severity: float, fates: Sequence[Fate]
    ) -> None:
        """A decoded frame; ``duration`` in flicks, 0 where unknown."""
        piece = self.tracks["video"].add(time, duration, pixels, damaged, severity)
        self._enter("video", piece, time, time + piece.hold, fates)

    def block(
        self, time: int, samples: NDArray[np.float32], damaged: bool, severity: float, fates: Sequence[Fate]
    ) -> None:
        """A decoded block of samples at the rate of the spec."""
        if not len(samples):
            return
        start = self._unit("audio", time)
        piece = self.tracks["audio"].add(start, samples, damaged, severity)
        self._enter("audio", piece, piece.start, piece.end, fates)

    def gap(self, modality: str, start: int | None, end: int | None) -> None:
        """Packets between these times did not come in time."""
        here = [None if t is None else self._unit(modality, t) for t in (start, end)]
        self.tracks[modality].gap(*here)

    def late(self, modality: str, start: int, end: int) -> None:
        """A packet of this time came too late to be used."""
        self.tracks[modality].late(self._unit(modality, start), self._unit(modality, end))

    def shed(self, modality: str, clip: int) -> bool:
        """We chose not to encode this clip's modality; False if the clip can no longer change."""
        cell = clip - self._offset
        if cell < self._oldest or self._cell(cell).frozen:
            return False
        self._cell(cell).shed.add(modality)
        if cell < self.next_cell:
            self._cell(cell).repaired.add(modality)
            self.mended = True
        return True

    def decoding(self, time: int, seconds: float) -> None:
        """A packet of this capture time took so long to decode."""
        self._cell(max(time // self.length, self._oldest)).decode += seconds

    def complete(self, modality: str) -> bool:
        """Whether everything of the next cell has come, as far as this modality's order tells."""
        track = self.tracks[modality]
        return track.watermark is not None and track.watermark >= track.closed + track.length

    def latest(self) -> int | None:
        """The end of everything that is known, in flicks; None if nothing is."""
        ends = [t.watermark * FLICKS // t.per_second for t in self.tracks.values() if t.watermark is not None]
        ends += [t.pieces[-1].end * FLICKS // t.per_second for t in self.tracks.values() if t.pieces]
        return max(ends, default=None)

    def worth(self, end: int) -> bool:
        """Whether the next cell exists in a stream that ends there: only if enough of its time does."""
        share = (end - self.next_end + self.length) / self.length
        return any(self.rule.present(m, share) for m in self.modalities)

    def close(self, wait_ms: float = 0.0) -> list[Clip]:
        """Close the next cell: repaired versions that are due by now, then the clip itself."""
        audio = self.tracks.get("audio")
        if audio is not None and audio.resting:
            audio.rest((self.next_cell + 1) * audio.length)
        out = self.repairs(self.next_cell - self.lookahead)
        cell = self._cell(self.next_cell)
        cell.clip = self._clip(self.next_cell, cell, 0, wait_ms)
        out.append(cell.clip)
        self.next_cell += 1
        for track in self.tracks.values():
            track.closed = self.next_cell * track.length
        self._freeze(self.next_cell - self.lookahead)
        return out

    def repairs(self, due: int | None = None) -> list[Clip]:
        """Second versions of closed clips: those that are whole again, and of all up to cell ``due``."""
        out: list[Clip] = []
        if due is None and not self.mended:
            return out
        self.mended = False
        for k in range(self._oldest, self.next_cell):
            cell = self._cells.get(k)
            if cell is None or cell.frozen or cell.clip is None or not cell.repaired:
                continue
            clip = self._clip(k, cell, 1, cell.clip.wait_ms)
            whole = all(clip.coverage[m] >= 1 or m in cell.shed for m in cell.repaired)
            if not whole and (due is None or k > due):
                continue
            if cell.shed or _differ(clip, cell.clip):
                cell.clip = clip
                out.append(clip)
            self._finish_cell(k, cell)
        return out

    def finish(self) -> list[Clip]:
        """The epoch ended, what exists of it is closed: last repairs; every packet still open is settled.

        A packet of the clip that does not exist was used where part of it entered the clip before.
        """
        out = self.repairs(self.next_cell)
        for k in sorted(self._cells):
            cell = self._cells[k]
            if cell.clip is not None:
                self._finish_cell(k, cell)
        for cell in self._cells.values():
            for fate in cell.fates:
                entered = fate.first is not None and fate.first < self.next_cell
                outcome = _outcome(fate, entered and self._seen.get(fate.modality, False), False)
                self._settle(fate.modality, outcome, [fate.seq])
        self._cells.clear()
        self._oldest = self.next_cell
        return out

    def _unit(self, modality: str, time: int) -> int:
        """Flicks to the units of a track, to the nearest."""
        per_second = self._units[modality]
        return time if per_second == FLICKS else (2 * time * per_second + FLICKS) // (2 * FLICKS)

    def _cell(self, k: int) -> _Cell:
        cell = self._cells.get(k)
        if cell is None:
            cell = self._cells[k] = _Cell()
        return cell

    def _enter(self, modality: str, piece: Piece, start: int, end: int, fates: Sequence[Fate]) -> None:
        """Note where a piece fell; into closed cells it comes as a repair."""
        length = self.tracks[modality].length
        first, last = start // length, (end - 1 if end > start else start) // length
        for fate in fates:
            if fate.first is None or first < fate.first:
                fate.first = first
            if last > fate.last:
                fate.last = last
            if piece.damaged:
                fate.damaged = True
        if piece.damaged or first >= self.next_cell:
            return
        for k in range(max(first, self._oldest), min(last + 1, self.next_cell)):
            cell = self._cells.get(k)
            if cell is not None and not cell.frozen:
                cell.repaired.add(modality)
                self.mended = True

    def _clip(self, k: int, cell: _Cell, version: int, wait_ms: float) -> Clip:
        before = cell.clip
        presence, coverage, state, flags, severity = {}, {}, {}, {}, {}
        content: dict[str, Any] = {"video": None, "audio": None}
        for m, track in self.tracks.items():
            if before is not None and m not in cell.repaired:
                presence[m], coverage[m], state[m] = before.presence[m], before.coverage[m], before.state[m]
                flags[m], severity[m], content[m] = before.flags[m], before.severity[m], getattr(before, m)
                continue
            start = k * track.length
            account: Account = track.account(start, start + track.length)
            coverage[m], severity[m], flags[m] = account.covered / track.length, account.severity, ()
            spoiled = account.missing.get("damaged", 0) / track.length
            presence[m] = m not in cell.shed and self.rule.present(m, coverage[m], spoiled)
            if presence[m]:
                forgiven = self.rule.forgives(m, spoiled)
                if forgiven:
                    account.forgive()
                state[m], content[m] = OBSERVED, track.lay(account, start)
                flags[m] = track.flags(content[m]) + (SPOILED,) * forgiven
            elif m in cell.shed:
                state[m] = "shed"
            else:
                state[m] = absent_state({c: n / track.length for c, n in account.missing.items()})
        if k >= self.next_cell - 1:
            self._seen = presence
        return Clip(
            index=k + self._offset,
            epoch=self.epoch,
            start=self.origin + from_flicks(k * self.length),
            seconds=self.spec.seconds,
            video=content["video"],
            audio=content["audio"],
            presence=presence,
            coverage=coverage,
            state=state,
            flags=flags,
            severity=severity,
            version=version,
            wait_ms=wait_ms,
            decode_ms=cell.decode * 1e3,
        )

    def _freeze(self, before: int) -> None:
        """Cells before this one are final: settle their packets and forget them."""
        while self._oldest < before:
            cell = self._cells.get(self._oldest)
            if cell is not None:
                self._finish_cell(self._oldest, cell)
                del self._cells[self._oldest]
            self._oldest += 1
        for track in self.tracks.values():
            track.trim(self._oldest * track.length)

    def _finish_cell(self, k: int, cell: _Cell) -> None:
        """Nothing about this cell changes any more: give its packets their outcome, or hand them to the next cell."""
        if cell.frozen:
            return
        cell.frozen = True
        assert cell.clip is not None
        outcomes: dict[tuple[str, str], list[int]] = {}
        for fate in cell.fates:
            modality = fate.modality
            present = cell.clip.presence.get(modality, False) and fate.last >= k
            if not fate.damaged and not present and fate.last > k and not self._is_frozen(k + 1):
                self._cell(k + 1).fates.append(fate)
                continue
            outcomes.setdefault((modality, _outcome(fate, present, modality in cell.shed)), []).append(fate.seq)
        for (modality, outcome), seqs in outcomes.items():
            self._settle(modality, outcome, seqs)
        cell.fates = []

    def _is_frozen(self, k: int) -> bool:
        cell = self._cells.get(k)
        return k < self._oldest or (cell is not None and cell.frozen)


def _outcome(fate: Fate, present: bool, shed: bool) -> str:
    """Precedence: malformed, late, damaged, used, shed, unused; a late packet that repaired counts as used."""
    if fate.malformed:
        return "malformed"
    if fate.late and not (present and fate.decoded and not fate.damaged):
        return "late"
    if fate.damaged:
        return "damaged"
    if present:
        return "used"
    return "shed" if shed else "unused"


def _differ(new: Clip, old: Clip) -> bool:
    return new.coverage != old.coverage or new.presence != old.presence or new.state != old.state
