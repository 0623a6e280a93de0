"""Time as a served stream sees it: a clock that can stand still, when answers are due, and how long they took."""

from runtime.clip import Clip
from runtime.clock import Clock

__all__ = ["Latency", "Pace", "PausableClock", "Wait"]

REMEMBERED = 1000  # clips about which nothing was sent yet


class PausableClock:
    """A clock that can stand still, for as long as there is a reason to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._away = 0.0  # seconds that it stood still
        self._since: float | None = None
        self._reasons: set[str] = set()

    def now(self) -> float:
        """Seconds, not counting those it stood still."""
        return (self._clock.now() if self._since is None else self._since) - self._away

    def pause(self, reason: str) -> None:
        """Stand still until ``go`` was called for each reason."""
        if not self._reasons:
            self._since = self._clock.now()
        self._reasons.add(reason)

    def go(self, reason: str) -> None:
        """This reason is gone."""
        self._reasons.discard(reason)
        if not self._reasons and self._since is not None:
            self._away += self._clock.now() - self._since
            self._since = None


class Pace:
    """When a clip's answer is due: soon after it closed; a sender ahead of real time is not in a hurry.

    So a file that is sent as fast as it can be neither pushes live streams aside nor is shed for its haste.
    """

    def __init__(self, within: float) -> None:
        self._within = within
        self._epoch = -1
        self._anchor = 0.0

    def deadline(self, clip: Clip, now: float) -> float:
        """Seconds on the axis of ``now``."""
        end = float(clip.start + clip.seconds)
        if clip.epoch != self._epoch:
            self._epoch, self._anchor = clip.epoch, now - end
        return max(now, self._anchor + end) + self._within


class Latency:
    """How long it took from the end of a clip until the first prediction about it had left."""

    def __init__(self) -> None:
        self._closed: dict[int, float] = {}  # clip -> when it ended

    def closed(self, clip: Clip, now: float) -> None:
        """A clip closed, some time after it had ended."""
        self._closed[clip.index] = now - clip.wait_ms / 1e3

    def sent(self, clip: int, now: float) -> float | None:
        """A prediction has left: seconds since its clip ended; None for a further one."""
        ended = self._closed.pop(clip, None)
        for old in [c for c in self._closed if c < clip - REMEMBERED]:
            del self._closed[old]
        return None if ended is None else now - ended


class Wait:
    """For how long something has been waited for without a break."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._since: float | None = None

    def waited(self, now: float, waiting: bool) -> bool:
        """Whether it was too long by now."""
        if not waiting:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._most

    def over(self) -> None:
        """It goes on."""
        self._since = None
