"""Damage of H.264 pictures, followed through their reference lists.

A slice header says which of the kept pictures it may use (sections 8.2.4 and 8.2.5 of ITU-T H.264), and ``frame_num``
says which reference pictures were lost. So a lost picture that nobody uses any more, such as the middle B picture of a
pyramid, stops spoiling what follows. Wherever this bookkeeping cannot be exact (interlaced frames, long-term
references, a loss that may hold an IDR), ``Chain`` takes over: everything is wrong until a recovery point.
"""

from dataclasses import dataclass, field, replace

from runtime.packet import unwrap
from runtime.picture import Lists, Picture
from runtime.references import Chain

__all__ = ["H264References"]

FAR = 1 << 40  # an order of presentation beyond every other


@dataclass(frozen=True, slots=True)
class _Kept:
    """A reference picture in the decoder; a lost one's order of presentation is known within bounds only.

    In its place FFmpeg keeps a copy of the reference before it, two after that in order of presentation.
    """

    frame_num: int
    low: int
    high: int
    wrong: bool
    place: int  # in order of presentation, to the decoder
    content: int  # number of the picture that it shows

    @property
    def known(self) -> bool:
        return self.low == self.high

    def number(self, picture: Picture) -> int:
        """PicNum, seen from a picture (8.2.4.1)."""
        assert picture.frame_num is not None
        return self.frame_num - (picture.max_frame_num if self.frame_num > picture.frame_num else 0)


@dataclass(frozen=True, slots=True)
class H264References:
    """Which kept pictures are wrong; ``chain`` holds recovery points, losses not judged yet, and the doubtful cases."""

    chain: Chain = field(default_factory=Chain)
    kept: tuple[_Kept, ...] = ()  # in decode order
    exact: bool = False  # kept is what the decoder keeps
    top: int = 0  # the latest order of presentation since the IDR
    last_order: int = 0  # of the last reference picture, unwrapped
    count: int = 0  # pictures kept so far

    @property
    def broken(self) -> bool:
        return self.chain.broken or _any_wrong(self.kept)

    def lose(self, count: int) -> "H264References":
        return replace(self, chain=self.chain.lose(count))

    def step(self, picture: Picture, time: int) -> tuple[bool, "H264References"]:
        order = 0 if picture.order is None else picture.order
        if picture.reset:
            _, chain = self.chain.step(picture, time)
            first = (_Kept(picture.frame_num or 0, order, order, False, order, 0),)
            return False, H264References(chain, first, picture.lists is not None, order, order, 1)
        if picture.order is not None:
            order = unwrap(picture.order, self.last_order, picture.order_size.bit_length() - 1)
        state = self
        if self.chain.lost or self.broken:
            state = self._place_lost(picture, time, order)._hand_over(picture)
        wrong, chain = state.chain.step(picture, time)
        exact = state.exact and not chain.broken
        if state.chain.broken and not chain.broken:  # recovered
            state = replace(state, kept=())
        wrong = wrong or (exact and state._uses_wrong(picture, order))
        return wrong, state._keep(chain, exact, picture, order, wrong)

    def spoil(self, picture: Picture) -> "H264References":
        if picture.disposable:
            return self
        if not self.exact or not self.kept:
            return replace(self, chain=self.chain.spoil(picture))
        return replace(self, kept=(*self.kept[:-1], replace(self.kept[-1], wrong=True)))

    def _place_lost(self, picture: Picture, time: int, order: int) -> "H264References":
        """Keep a wrong picture for each lost reference, if it is certain which were lost."""
        chain = self.chain
        missing = chain.missing_references(picture)
        if not self.exact or chain.broken or not chain.lost or not missing or not self.kept:
            return self
        certain = missing == chain.lost if picture.order is None else missing <= chain.lost
        if not certain or missing > picture.references or not chain.on_time(picture, time):
            return self
        assert chain.last_reference is not None and picture.frame_num is not None
        low, high = self._bounds(picture, order)
        state = self
        for i in range(1, missing + 1):
            frame_num = (chain.last_reference + i) % picture.max_frame_num
            before = state.kept[-1]
            copy = _Kept(frame_num, low, high, True, before.place + 2, before.content)
            state = replace(state, kept=(*_room(state.kept, picture), copy))
        last = (picture.frame_num - 1) % picture.max_frame_num
        return replace(state, chain=replace(chain, lost=0, last_reference=last))

    def _bounds(self, picture: Picture, order: int) -> tuple[int, int]:
        """Where in the order of presentation a picture lost just before this one can lie."""
        if picture.kind == "B" and order > self.top:
            return order + 1, FAR  # this one is predicted from a later picture, which must be the lost one
        anchors = sorted({k.low for k in self.kept if k.known and k.low < self.top})
        return (anchors[-1] if anchors else -FAR) + 1, max(order, self.top) - 1

    def _hand_over(self, picture: Picture) -> "H264References":
        """Leave to the chain what cannot be followed exactly, and what a recovery point is about to clear."""
        if not self.broken or self.chain.broken:
            return self
        if self.exact and picture.lists is not None and picture.recovery is None:
            return self
        return replace(self, chain=replace(self.chain, broken=True, refresh_left=None))

    def _uses_wrong(self, picture: Picture, order: int) -> bool:
        lists = picture.lists
        if lists is None or not _any_wrong(self.kept):
            return False
        if picture.kind == "P":
            return self._p_uses_wrong(picture, lists)
        return picture.kind == "B" and self._b_uses_wrong(picture, lists, order)

    def _p_uses_wrong(self, picture: Picture, lists: Lists) -> bool:
        """The list of a P slice: latest first, then reordered (8.2.4.2.1, 8.2.4.3)."""
        wrong = {k.number(picture): k.wrong for k in self.kept}
        numbers = sorted(wrong, reverse=True)
        for i, number in enumerate(_moved(picture, lists.moves[0])):
            numbers = [*numbers[:i], number, *(n for n in numbers[i:] if n != number)]
        return any(wrong.get(n, True) for n in numbers[: lists.active[0]])

    def _b_uses_wrong(self, picture: Picture, lists: Lists, order: int) -> bool:
        """The lists of a B slice: nearest first (8.2.4.2.3).

        It is wrong if a lost picture may be in a list, if a wrong one is, or if the copies that stand in for lost ones
        push another picture out of its place.
        """
        numbers = {k.number(picture): k.wrong for k in self.kept}
        if any(numbers.get(n, True) for moves in lists.moves for n in _moved(picture, moves)):
            return True
        meant = _nearest([(k.low, k.content) for k in self.kept if k.known], order)
        found = _nearest([(k.place, k.content) for k in self.kept], order)
        wrong = {k.content for k in self.kept if k.wrong and k.known}
        known = [k.low for k in self.kept if k.known]
        for direction, (active, ours, theirs) in zip(
            (1, -1), zip(lists.active, meant, found, strict=True), strict=True
        ):
            if ours[:active] != theirs[:active] or wrong & set(ours[:active]):
                return True
            if any(not k.known and _rank(k.low, k.high, order, known, direction) < active for k in self.kept):
                return True
        return False

    def _keep(self, chain: Chain, exact: bool, picture: Picture, order: int, wrong: bool) -> "H264References":
        """Marking: give up what the slice says or the oldest, keep this picture (8.2.5)."""
        top, kept, lists = max(self.top, order), self.kept, picture.lists
        if picture.disposable:
            return H264References(chain, kept, exact, top, self.last_order, self.count)
        if lists is not None and lists.forgets:
            assert picture.frame_num is not None
            gone = {picture.frame_num - difference for difference in lists.forgets}
            kept = tuple(k for k in kept if k.number(picture) not in gone)
        this = _Kept(picture.frame_num or 0, order, order, wrong, order, self.count)
        kept = (*_room(kept, picture), this)
        return H264References(chain, kept, exact and lists is not None, top, order, self.count + 1)


def _any_wrong(kept: tuple[_Kept, ...]) -> bool:
    return True in [k.wrong for k in kept]  # a generator would cost twice as much for so few


def _room(kept: tuple[_Kept, ...], picture: Picture) -> tuple[_Kept, ...]:
    """Room for one more: the smallest FrameNumWrap goes (8.2.5.3)."""
    most = max(picture.references, 1)
    return kept[len(kept) - most + 1 :] if len(kept) >= most else kept


def _moved(picture: Picture, moves: tuple[int, ...]) -> list[int]:
    """PicNums that a slice names outright (8.2.4.3.1)."""
    assert picture.frame_num is not None
    at, numbers = picture.frame_num, []
    for step in moves:
        at = (at + step) % picture.max_frame_num
        numbers.append(at - (picture.max_frame_num if at > picture.frame_num else 0))
    return numbers


def _nearest(kept: list[tuple[int, int]], here: int) -> tuple[list[int], list[int]]:
    """Contents of lists 0 and 1 from (order of presentation, content), oldest first.

    Of several at one place FFmpeg takes the oldest of the past and the newest of the future.
    """
    past = {place: content for place, content in reversed(kept) if place <= here}
    future = {place: content for place, content in kept if place > here}
    before = [past[place] for place in sorted(past, reverse=True)]
    after = [future[place] for place in sorted(future)]
    return before + after, after + before


def _rank(low: int, high: int, here: int, known: list[int], direction: int) -> int:
    """The best place in list 0 (direction 1) or list 1 (-1) of a picture that lies between ``low`` and ``high``."""
    if direction < 0:
        low, high, here, known = -high, -low, -here, [-k for k in known]
    if low < here:
        nearest = min(high, here - 1)
        return sum(nearest < k < here for k in known)
    return sum(k < here for k in known) + sum(here < k < low for k in known)
