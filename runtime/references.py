"""How damage travels from picture to picture: one small state machine per way that codecs keep references.

A state is an immutable value: ``step`` takes one and returns the next, so a verdict can be revised by going back to
the state before it (``runtime.damage`` does, when a decoder reports late that a picture came out wrong).

``Chain``    H.265, VP8, and codecs we cannot read: any later picture may need any earlier reference picture.
             H.264 refines it in ``runtime.h264_references``.
``Anchors``  MPEG-1/2/4: P needs the anchor before it, B the two anchors around it.
``Slots``    VP9, AV1: every header names the slots that it reads and writes.
``Alone``    intra-only codecs: no picture needs another.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from runtime.picture import Picture

__all__ = ["Alone", "Anchors", "Chain", "References", "Slots"]


class References(Protocol):
    """The reference pictures a decoder holds, and which of them are wrong."""

    def lose(self, count: int) -> "References":
        """``count`` packets were lost here; what they held is judged when the next picture is seen."""
        ...

    def step(self, picture: Picture, time: int) -> tuple[bool, "References"]:
        """The next picture in decode order, shown at ``time`` ticks: (is it decoded from wrong references, next)."""
        ...

    def spoil(self, picture: Picture) -> "References":
        """The picture just stepped was decoded wrongly."""
        ...

    @property
    def broken(self) -> bool:
        """True if some reference is wrong, as far as is known."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """No references: MJPEG, raw, PNG, ProRes and the like."""

    broken: bool = False

    def lose(self, count: int) -> "Alone":
        return self

    def step(self, picture: Picture, time: int) -> tuple[bool, "Alone"]:
        return False, self

    def spoil(self, picture: Picture) -> "Alone":
        return self


@dataclass(frozen=True, slots=True)
class Chain:
    """One flag for all references, and what it takes to clear it.

    Lost pictures of H.264 are told apart by ``frame_num``, which counts reference pictures: if none is missing and
    the order of presentation agrees with the clock, only disposable pictures were lost. Elsewhere, and in doubt, a
    lost picture counts as a reference.
    """

    broken: bool = False
    lost: int = 0  # packets lost since the last picture, not judged yet
    refresh_left: int | None = None  # reference pictures until a recovery point holds what it promised
    clean_from: int | None = None  # pictures shown before this time are leading: decoded from what was wrong
    last_reference: int | None = None  # frame_num
    clock: tuple[int, int] | None = None  # (time, order) of a picture of this IDR period
    pace: tuple[int, int] | None = None  # (ticks, orders) between two of them

    def lose(self, count: int) -> "Chain":
        return replace(self, lost=self.lost + count)

    def step(self, picture: Picture, time: int) -> tuple[bool, "Chain"]:
        if picture.reset:
            return False, Chain(last_reference=picture.frame_num, clock=_clock(picture, time), pace=self.pace)
        state = self._judge_loss(picture, time)._follow_recovery(picture, time)
        wrong = state.broken or (state.clean_from is not None and (picture.leading or time < state.clean_from))
        return wrong, state._advance(picture, time)

    def spoil(self, picture: Picture) -> "Chain":
        if picture.disposable:
            return self
        return replace(self, broken=True, refresh_left=None)

    def _judge_loss(self, picture: Picture, time: int) -> "Chain":
        missing = self.missing_references(picture)
        if missing is None:
            harmless = self.lost == 0
        elif missing:
            harmless = False
        else:
            again = picture.frame_num == self.last_reference and not picture.field  # numbers began anew, or went round
            possible = self.lost < picture.max_frame_num and not again and self.on_time(picture, time)
            harmless = self.lost == 0 or possible
        if harmless:
            return replace(self, lost=0) if self.lost else self
        return replace(self, lost=0, broken=True, refresh_left=None)

    def missing_references(self, picture: Picture) -> int | None:
        """How many reference pictures ``frame_num`` says are missing; None where it cannot tell (H.264, 7.4.3)."""
        if picture.frame_num is None or self.last_reference is None or picture.gaps_allowed:
            return None
        ahead = (picture.frame_num - self.last_reference) % picture.max_frame_num
        return 0 if ahead == 0 else ahead - 1  # 0 ahead: the second field of a pair

    def on_time(self, picture: Picture, time: int) -> bool:
        """False if the order of presentation disagrees with the clock, as after a lost IDR."""
        if picture.order is None or self.clock is None or self.pace is None:
            return picture.order is None
        ticks, orders = self.pace
        expected = self.clock[1] + round((time - self.clock[0]) * orders / ticks)
        off = (picture.order - expected) % picture.order_size
        return min(off, picture.order_size - off) * 2 <= abs(orders)

    def _follow_recovery(self, picture: Picture, time: int) -> "Chain":
        if picture.recovery == 0 or (picture.independent and picture.references <= 1):
            leading = time if self.broken else None
            return replace(self, broken=False, refresh_left=None, clean_from=leading)
        if not self.broken:
            return self
        left = self.refresh_left
        if left is not None and not picture.disposable:
            left -= 1
        if left is not None and left <= 0:
            return replace(self, broken=False, refresh_left=None, clean_from=time)
        if picture.recovery is not None:
            left = picture.recovery if left is None else min(left, picture.recovery)
        return self if left == self.refresh_left else replace(self, refresh_left=left)

    def _advance(self, picture: Picture, time: int) -> "Chain":
        if picture.frame_num is None:
            return self
        reference = self.last_reference if picture.disposable else picture.frame_num
        clock, pace = _clock(picture, time), self.pace
        if clock and self.clock and pace is None and time > self.clock[0] and clock[1] > self.clock[1]:
            pace = (time - self.clock[0], clock[1] - self.clock[1])
        broken, lost, left, clean = self.broken, self.lost, self.refresh_left, self.clean_from
        return Chain(broken, lost, left, clean, reference, clock or self.clock, pace)


def _clock(picture: Picture, time: int) -> tuple[int, int] | None:
    return None if picture.order is None else (time, picture.order)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """An I or P picture that others are predicted from."""

    wrong: bool = False
    order: int = -1  # temporal_reference


@dataclass(frozen=True, slots=True)
class Anchors:
    """The two anchors of MPEG-1/2/4, and how many B pictures between them have come.

    ``temporal_reference`` numbers pictures in order of presentation within a group, so the B pictures still to come
    between two anchors are known: if no more packets are lost than that, and the next picture fits, no anchor is.
    MPEG-4 has no such number; there the times of presentation take its place, counted in their smallest step.
    """

    older: _Anchor = _Anchor()
    newer: _Anchor = _Anchor()
    between: int | None = None  # B pictures of this pair still to come; None = not known
    lost: int = 0
    last_time: int | None = None  # ticks
    period: int = 0  # the smallest step between times so far; 0 = not known

    @property
    def broken(self) -> bool:
        return self.newer.wrong

    def lose(self, count: int) -> "Anchors":
        return replace(self, lost=self.lost + count)

    def step(self, picture: Picture, time: int) -> tuple[bool, "Anchors"]:
        state = self
        if picture.order is None:
            picture, state = self._number_by_time(picture, time)
        if state.lost:
            state = state._judge_loss(picture)
        return state._b(picture) if picture.kind == "B" else state._anchor(picture)

    def spoil(self, picture: Picture) -> "Anchors":
        return self if picture.kind == "B" else replace(self, newer=replace(self.newer, wrong=True))

    def _judge_loss(self, picture: Picture) -> "Anchors":
        if picture.order is not None and self.between is not None:
            if picture.kind == "B":
                fits = self.older.order < picture.order < self.newer.order and self.lost <= self.between - 1
            else:
                fits = self.lost == self.between
            if fits:
                return replace(self, lost=0, between=self.between - self.lost)
        wrong = replace(self.newer, wrong=True)
        return replace(self, older=wrong, newer=wrong, between=None, lost=0)

    def _number_by_time(self, picture: Picture, time: int) -> tuple[Picture, "Anchors"]:
        step = abs(time - self.last_time) if self.last_time is not None else 0
        period = min(self.period or step, step or self.period)
        state = replace(self, last_time=time, period=period)
        if period and period == self.period:
            return replace(picture, order=max(0, round(time / period))), state
        return picture, state

    def _b(self, picture: Picture) -> tuple[bool, "Anchors"]:
        between = None if self.between is None else max(0, self.between - 1)
        return self.older.wrong or self.newer.wrong, replace(self, between=between)

    def _anchor(self, picture: Picture) -> tuple[bool, "Anchors"]:
        wrong = picture.kind != "I" and self.newer.wrong
        older = _Anchor(self.newer.wrong and not picture.closed, -1 if picture.new_group else self.newer.order)
        newer = _Anchor(wrong, -1 if picture.order is None else picture.order)
        between = None if picture.order is None else newer.order - older.order - 1
        known = between is not None and 0 <= between <= 16 and (picture.new_group or older.order >= 0)
        return wrong, replace(self, older=older, newer=newer, between=between if known else None)


@dataclass(frozen=True, slots=True)
class Slots:
    """Eight reference slots and the entropy contexts; a loss may have written any of them."""

    wrong: int = 0  # bit mask
    contexts_wrong: bool = False

    @property
    def broken(self) -> bool:
        return bool(self.wrong) or self.contexts_wrong

    def lose(self, count: int) -> "Slots":
        return Slots(0xFF, True)

    def step(self, picture: Picture, time: int) -> tuple[bool, "Slots"]:
        contexts = self.contexts_wrong and not (picture.reset or picture.resets_contexts)
        wrong = any(self.wrong >> slot & 1 for slot in picture.reads) or (picture.reads_contexts and contexts)
        return wrong, Slots(self.wrong | picture.writes if wrong else self.wrong & ~picture.writes, contexts)

    def spoil(self, picture: Picture) -> "Slots":
        return Slots(self.wrong | picture.writes, self.contexts_wrong or picture.reads_contexts)
