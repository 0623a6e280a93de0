"""Tape: what a live run was told, in the order in which a replay must be told.

Whether a clip is shed is known only after it closed, for then it waits for the models; a replay must know before it
closes. So items are held until the clips that closed on them were answered, and what was shed is written in front of
the item that closed it, at the arrival of the item before: there it changes nothing else.

All calls from any thread. At most the items of the clips under way are held, a fraction of a second.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from runtime.packet import Decision, Packet

Item = Packet | Decision


@dataclass(slots=True)
class _Held:
    """An item, the clips that closed on it or after it and are not answered, and what was shed of them."""

    item: Item
    open: Counter[tuple[int, int]] = field(default_factory=Counter)  # (clip, version)
    shed: list[Decision] = field(default_factory=list)


class Tape:
    """Hands items on to ``write``, each decision to shed where a replay needs it."""

    def __init__(self, write: Callable[[Item], object]) -> None:
        self._write = write
        self._held: deque[_Held] = deque()
        self._before: float | None = None  # arrival of the newest item handed on
        self._lock = threading.Lock()

    def item(self, item: Item) -> None:
        """The receiver is about to be told this."""
        with self._lock:
            self._held.append(_Held(item))
            self._hand_on(keep=1)

    def closed(self, clip: int, version: int = 0) -> None:
        """A clip closed, on the newest item or while nothing came after it."""
        with self._lock:
            if self._held:
                self._held[-1].open[clip, version] += 1

    def shed(self, decision: Decision) -> None:
        """Something of a clip that closed was not encoded."""
        with self._lock:
            for held in self._held:
                if any(clip == decision.clip for clip, _ in held.open):
                    held.shed.append(decision)
                    return

    def answered(self, clip: int, version: int = 0) -> None:
        """Nothing more will be decided about a clip."""
        with self._lock:
            for held in self._held:
                if held.open[clip, version] > 0:
                    held.open -= Counter({(clip, version): 1})
                    break
            self._hand_on(keep=1)  # clips may still close on the newest

    def close(self) -> None:
        """Hand on everything, whatever was still to be decided."""
        with self._lock:
            for held in self._held:
                held.open.clear()
            self._hand_on(keep=0)

    def _hand_on(self, keep: int) -> None:
        while len(self._held) > keep and not self._held[0].open.total():
            held = self._held.popleft()
            for decision in held.shed:
                at = self._before if self._before is not None else held.item.arrival
                self._write(replace(decision, arrival=decision.arrival if at is None else at))
            self._write(held.item)
            self._before = held.item.arrival
