"""What is known of one modality's time: decoded pieces, and the holes between them.

A track counts time from its epoch's origin, in units of its own: flicks for video, samples for audio. A *piece* is a
frame with the time it stays on screen, or a block of samples. Time without a piece is missing: ``late`` where packets
came after their deadline, else ``lost``. Two silences are not missing, because no sequence number is: a video frame
stays on screen until the next one comes, and sound without packets (DTX) is silence.
"""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.clips import FADE_SECONDS, FLICKS, AudioSpec, VideoSpec, lay_audio, lay_video, silence_holes

STEPS = 9  # frame steps whose median is the frame period, where frames carry no duration
SLOP = 1e-3  # seconds; blocks whose times disagree by less belong together (rounded time stamps, resampling)
BLANK_RANGE = 12  # grey levels; where darkest and brightest lie no further apart, nothing is to be seen
FROZEN_STEP = 2  # grey levels; pictures that differ by no more in any pixel are one picture
SILENT_PEAK = 2.0**-12  # of full scale, 8 steps of 16-bit sound: digital silence after a codec
LOOK = 4  # flags look at every fourth pixel and line
GLANCE = 4  # of these, at every fourth first


@dataclass(slots=True, eq=False)
class Piece:
    """A decoded unit on its track: ``start <= time < end`` in the track's units."""

    start: int
    end: int
    content: NDArray[Any] | None  # picture or samples; None = silence that needed no packet
    damaged: bool = False
    severity: float = 0.0  # 0 to 1, how bad the damage is thought to be
    hold: int = 0  # how long the piece lasts if nothing follows


@dataclass(slots=True)
class Account:
    """What came of one cell: good time and missing time by cause, in units; the good pieces, cut to the cell."""

    covered: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    severity: float = 0.0  # mean over the damaged time
    good: list[Piece] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # of the good pieces
    holes: list[tuple[int, int]] = field(default_factory=list)  # time without a good piece
    damaged: list[Piece] = field(default_factory=list)  # where there are holes

    def forgive(self) -> None:
        """Take damaged pieces for good ones where there is nothing better; what they are is still in ``missing``."""
        parts = list(zip(self.spans, self.good, strict=True))
        for piece in self.damaged:
            here = _overlaps(self.holes, [(piece.start, piece.end)])
            self.holes = _subtract(self.holes, here)
            parts += [(span, piece) for span in here]
        parts.sort(key=lambda part: part[0])
        self.spans, self.good = [span for span, _ in parts], [piece for _, piece in parts]


class Track:
    """Pieces in order of time, and what the transport said about the time between them."""

    def __init__(self, length: int, per_second: int) -> None:
        self.length = length  # of a cell
        self.per_second = per_second
        self.pieces: list[Piece] = []
        self.watermark: int | None = None  # nothing before this is still to come in order
        self.closed = 0  # cells before this time are closed
        self._gaps: list[tuple[int, int]] = []  # time whose packets did not come in time
        self._late: list[tuple[int, int]] = []  # of it, time whose packets came too late to be used

    def gap(self, start: int | None, end: int | None) -> None:
        """Packets between these times did not come; None is an open end."""
        first = self.closed if start is None else start
        last = (self.watermark or first) if end is None else end
        if last > first:
            self._gaps.append((first, last))
            self._advance(last)

    def late(self, start: int, end: int) -> None:
        """A packet of this time came too late to be used."""
        self._late.append((start, max(end, start + 1)))

    def account(self, start: int, end: int) -> Account:
        """Who covers the cell ``start .. end``: good pieces first, then damaged ones, the rest is missing."""
        out, cursor = Account(), start
        damaged = []
        for piece in self.pieces:
            if piece.end <= start or piece.start >= end:
                continue
            if piece.damaged:
                damaged.append(piece)
                continue
            first, last = max(piece.start, start), min(piece.end, end)
            if first > cursor:
                out.holes.append((cursor, first))
            out.covered += max(last - max(first, cursor), 0)
            cursor = max(cursor, last)
            out.good.append(piece)
            out.spans.append((first, last))
        if cursor < end:
            out.holes.append((cursor, end))
        if out.holes:
            out.damaged = damaged
            self._explain(out, damaged)
        return out

    def trim(self, before: int) -> None:
        """Forget what ended before a time, but for the newest piece, which may still be on screen."""
        if self.pieces and self.pieces[0].end <= before:
            self.pieces = [p for p in self.pieces[:-1] if p.end > before] + self.pieces[-1:]
        if self._gaps or self._late:
            self._gaps = [g for g in self._gaps if g[1] > before]
            self._late = [g for g in self._late if g[1] > before]

    def _explain(self, out: Account, damaged: list[Piece]) -> None:
        """Divide the holes among the causes."""
        spans = [(p.start, p.end) for p in damaged]
        spoiled = _overlaps(out.holes, spans)
        rest = _subtract(out.holes, spans)
        late = sum(b - a for a, b in _overlaps(rest, self._late))
        broken = sum(b - a for a, b in spoiled)
        lost = sum(b - a for a, b in rest) - late
        out.missing = {cause: n for cause, n in (("damaged", broken), ("late", late), ("lost", lost)) if n > 0}
        if broken:
            weights = [max(min(p.end, out.holes[-1][1]) - max(p.start, out.holes[0][0]), 0) for p in damaged]
            out.severity = sum(w * p.severity for w, p in zip(weights, damaged, strict=True)) / max(sum(weights), 1)

    def _lossy(self, start: int, end: int) -> bool:
        return any(a < end and b > start for a, b in self._gaps)

    def _advance(self, time: int) -> None:
        if self.watermark is None or time > self.watermark:
            self.watermark = time

    def _place(self, start: int) -> int:
        """Where a piece of this start belongs; the end of the list, nearly always."""
        if not self.pieces or start >= self.pieces[-1].start:
            return len(self.pieces)
        return bisect_right([p.start for p in self.pieces], start)


class VideoTrack(Track):
    """Frames: each stays on screen until the next, or for its own duration where a packet is missing after it."""

    def __init__(self, length: int, spec: VideoSpec, period: int) -> None:
        super().__init__(length, FLICKS)
        self.spec = spec
        self.period = period  # usual time between two frames
        self._steps: deque[int] = deque(maxlen=STEPS)
        self._trusted = True  # no frame ever came before the one on screen was to end

    def add(self, start: int, duration: int, content: Any, damaged: bool, severity: float) -> Piece:
        """A decoded frame; ``duration`` 0 where unknown."""
        piece = Piece(start, start, content, damaged, severity, duration or self.period)
        piece.end = start + piece.hold
        place = self._place(start)
        if place and self.pieces[place - 1].start == start:  # the same frame again: the better one stays
            before = self.pieces[place - 1]
            if before.damaged and not damaged:
                piece.end = before.end
                self.pieces[place - 1] = piece
            return piece
        if place:
            self._learn(start - self.pieces[place - 1].start, duration)
            self.pieces[place - 1].end = self._until(self.pieces[place - 1], start)
        if place < len(self.pieces):
            piece.end = self._until(piece, self.pieces[place].start)
        self.pieces.insert(place, piece)
        if self.watermark is not None and start < self.watermark and place == len(self.pieces) - 1:
            self._trusted = False
        self._advance(piece.end if duration and self._trusted else start)
        return piece

    def lay(self, account: Account, start: int) -> NDArray[np.uint8] | None:
        """The clip's pictures, or None if nothing good was on screen."""
        if not account.good:
            return None
        pictures = [p.content for p in account.good]
        return lay_video(pictures, account.spans, start, self.length, self.spec)  # type: ignore[arg-type]

    def flags(self, clip: NDArray[np.uint8]) -> tuple[str, ...]:
        """``frozen``: one picture all along; ``blank``: nothing to be seen on any of them."""
        frozen, blank = _still(clip[:, :: GLANCE * LOOK, :: GLANCE * LOOK])
        if frozen or blank:  # what moves or shows at a glance needs no second look
            frozen, blank = _still(clip[:, ::LOOK, ::LOOK])
        return ("frozen",) * frozen + ("blank",) * blank

    def _learn(self, step: int, duration: int) -> None:
        if duration:
            self.period = duration
        elif 0 < step <= FLICKS:
            self._steps.append(step)
            self.period = sorted(self._steps)[len(self._steps) // 2]

    def _until(self, piece: Piece, following: int) -> int:
        """When ``piece`` leaves the screen, given when the next frame came."""
        usual = piece.start + piece.hold
        if following <= piece.start + piece.hold * 3 // 2:
            return following
        stalled = usual < self.closed  # a clip closed while nothing came: that was a stall, not a still picture
        return usual if stalled or self._lossy(usual, following) else following


class AudioTrack(Track):
    """Blocks of samples, each at its own time."""

    def __init__(self, length: int, spec: AudioSpec, sequenced: bool) -> None:
        super().__init__(length, spec.sample_rate)
        self.spec = spec
        self.sequenced = sequenced  # False: a container, where a hole without a number is a loss
        self.resting = False  # the sender says that it transmits nothing (DTX)
        self._slop = max(int(SLOP * spec.sample_rate), 1)
        self._fade = int(FADE_SECONDS * spec.sample_rate)

    def add(self, start: int, samples: NDArray[np.float32], damaged: bool, severity: float) -> Piece:
        """A decoded block."""
        piece = Piece(start, start + len(samples), samples, damaged, severity)
        if self.pieces and start == self.pieces[-1].end:  # as nearly always
            self.pieces.append(piece)
            self._advance(piece.end)
            return piece
        place = self._place(start)
        if place:
            self._join(self.pieces[place - 1], piece, place)
            place = self._place(start)
        if not damaged and place < len(self.pieces):  # a repair: it stands in for what was there
            self._cut(piece.start, piece.end)
            place = self._place(start)
        self.pieces.insert(place, piece)
        self._advance(piece.end)
        return piece

    def _cut(self, start: int, end: int) -> None:
        """Take what lies between two times out of the pieces."""
        kept: list[Piece] = []
        for piece in self.pieces:
            if piece.end <= start or piece.start >= end:
                kept.append(piece)
                continue
            kept += [_part(piece, a, b) for a, b in ((piece.start, start), (end, piece.end)) if a < b]
        self.pieces = kept

    def rest(self, until: int) -> None:
        """While the sender rests, time up to here is silence although nothing came."""
        if self.resting and self.pieces and until > self.pieces[-1].end:
            self.pieces.append(Piece(self.pieces[-1].end, until, None))

    def lay(self, account: Account, start: int) -> NDArray[np.float32] | None:
        """The clip's samples with faded silence in its holes, or None if nothing good was heard."""
        if not account.good:
            return None
        sound = [p for p in account.good if p.content is not None]
        sound.sort(key=lambda p: not p.damaged)  # where both were heard, the good one counts
        samples = lay_audio([p.content for p in sound], [p.start - start for p in sound], self.length)  # type: ignore[misc]
        silence_holes(samples, [(a - start, b - start) for a, b in account.holes], self._fade)
        return samples

    def flags(self, clip: NDArray[np.float32]) -> tuple[str, ...]:
        """``silent``: digital silence all along."""
        return ("silent",) if max(float(clip.max()), -float(clip.min())) < SILENT_PEAK else ()

    def _join(self, before: Piece, piece: Piece, place: int) -> None:
        """Decide what the time between two blocks was."""
        gap = piece.start - before.end
        if gap <= 0:
            return
        if gap <= self._slop:
            assert piece.content is not None
            piece.content = np.concatenate([np.repeat(piece.content[:1], gap), piece.content])
            piece.start = before.end
        elif self.resting or self._silence(before.end, piece.start):
            self.pieces.insert(place, Piece(before.end, piece.start, None))
        self.resting = False

    def _silence(self, start: int, end: int) -> bool:
        """No number is missing, and no clip closed while nothing came."""
        return self.sequenced and self.closed <= start and not self._lossy(start, end)


def _still(pictures: NDArray[np.uint8]) -> tuple[bool, bool]:
    """Whether nothing moves, and whether nothing is to be seen; a part of the pixels can only err towards yes."""
    low, high = pictures.min(axis=0), pictures.max(axis=0)
    return int((high - low).max()) <= FROZEN_STEP, int(high.max()) - int(low.min()) <= BLANK_RANGE


def _part(piece: Piece, start: int, end: int) -> Piece:
    content = None if piece.content is None else piece.content[start - piece.start : end - piece.start]
    return replace(piece, start=start, end=end, content=content)


def _overlaps(holes: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of disjoint, sorted ``holes`` that the union of ``spans`` covers."""
    out: list[tuple[int, int]] = []
    for first, last in holes:
        cursor = first
        for a, b in sorted(spans):
            a, b = max(a, cursor), min(b, last)
            if a < b:
                out.append((a, b))
                cursor = b
    return out


def _subtract(holes: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of disjoint, sorted ``holes`` that no span covers."""
    out: list[tuple[int, int]] = []
    for first, last in holes:
        cursor = first
        for a, b in _overlaps([(first, last)], spans):
            if a > cursor:
                out.append((cursor, a))
            cursor = b
        if cursor < last:
            out.append((cursor, last))
    return out
