"""Lost packets where no sequence numbers tell of them: by the steps of the decode time."""

from collections import Counter, deque
from statistics import median

__all__ = ["StepRule"]


class StepRule:
    """Finds lost packets where no sequence numbers tell: a decode-time step larger than 1.5 times the running median.

    Only where steps vary by less than 5 %; with a variable frame rate it says nothing and ``unknown`` is True.
    """

    def __init__(self, window: int = 48, least: int = 6) -> None:
        self._steps: deque[int] = deque()
        self._counts: Counter[int] = Counter()  # the same steps; only few differ, which keeps each packet cheap
        self._window, self._least = window, least
        self._last: int | None = None
        self.unknown = True

    def lost_before(self, decode_time: int) -> int:
        """How many packets are missing between the last one and this one; ticks."""
        last, self._last = self._last, decode_time
        if last is None or decode_time <= last:
            return 0
        step = decode_time - last
        middle = self._median() if len(self._steps) >= self._least else 0
        self._note(step)
        if len(self._counts) == 1 and step == middle:  # every step is the same
            self.unknown = False
            return 0
        steady = sum(n for s, n in self._counts.items() if _near(s, middle)) if middle else 0
        self.unknown = steady * 4 < len(self._steps) * 3 or not middle
        return 0 if self.unknown or step <= 1.5 * middle else max(0, round(step / middle) - 1)

    def _note(self, step: int) -> None:
        self._steps.append(step)
        self._counts[step] += 1
        if len(self._steps) > self._window:
            old = self._steps.popleft()
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]

    def _median(self) -> float:
        return next(iter(self._counts)) if len(self._counts) == 1 else median(self._steps)


def _near(step: int, middle: float) -> bool:
    """A whole multiple of the median, within 5 % or the rounding of one tick: a steady rate with holes is steady."""
    times = max(1, round(step / middle))
    return times <= 16 and abs(step - times * middle) <= max(0.05 * middle, 1)
