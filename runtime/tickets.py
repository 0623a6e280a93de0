"""Tickets: jobs in line for the models, the policy they wait under, and how batches would follow one another; pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runtime.errors import ConfigError

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How batches form and what gives when they cannot keep up; times in seconds. Raises ConfigError."""

    max_batch: int = 32  # clips
    max_wait_seconds: float = 0.02  # that a clip with time to spare waits for company
    per_stream: int = 16  # clips of one stream that wait with their content
    max_bytes: int = 512 << 20  # of content that waits in all
    max_line: int = 512  # jobs of one stream
    shed: bool = True
    shed_order: tuple[str, ...] = ("video", "audio")  # video is the dearer one
    shed_share: float = 0.4  # of a window's clips, at most
    hold_seconds: float = 1.0  # without an excess, before the bar is the deadline itself again
    stale: float = 1.0  # times the time from submitting to deadline by which a clip may be late and still be encoded
    calm: float = 0.8  # of the time from submitting to deadline that shedding aims at once it has begun

    def __post_init__(self) -> None:
        for name in ("max_batch", "per_stream", "max_line", "max_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a batch policy needs 1 or more")
        for name in ("max_wait_seconds", "hold_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; use seconds, 0 or more")
        if not self.stale >= 0:
            raise ConfigError(f"stale is {self.stale}; use 0 or more times the time that a clip has")
        for name in ("shed_share", "calm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; use a share from 0 to 1")


class Load(NamedTuple):
    """What a batch asks of the device, in rows."""

    video: int = 0
    audio: int = 0
    windows: int = 0

    def plus(self, ticket: "Ticket") -> "Load":
        """With one job more."""
        video, audio, windows = ticket.load
        return Load(self.video + video, self.audio + audio, self.windows + windows)


Cost = Callable[[Load], float]  # predicted seconds; grows with every part of the load


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A job in line. ``needs`` are the modalities that would be encoded, ``size`` the bytes that wait with it."""

    stream: Any  # an id that can be compared and hashed
    clip: int | None  # None: the stream's end
    deadline: float
    submitted: float
    epoch: int = 0
    version: int = 0
    needs: tuple[str, ...] = ()
    windows: int = 1  # that it will make due
    size: int = 0
    payload: Any = None
    shed: tuple[str, ...] = ()  # of ``needs``: what is not encoded; changed by ``lose`` only
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        self.lose(())

    def lose(self, modalities: Iterable[str]) -> None:
        """These are not encoded, beside what was shed before."""
        self.shed += tuple(m for m in modalities if m not in self.shed)
        left = [m for m in self.needs if m not in self.shed]
        self.load = Load("video" in left, "audio" in left, self.windows)


class Shed(NamedTuple):
    """A modality of a clip that is not encoded, and why: load, stale, overflow."""

    ticket: Ticket
    modality: str
    reason: str


Bar = Callable[[Ticket], float]  # by when a job must be done


def load_of(tickets: Iterable[Ticket]) -> Load:
    """What a batch of these asks for."""
    video = audio = windows = 0
    for ticket in tickets:
        load = ticket.load
        video, audio, windows = video + load[0], audio + load[1], windows + load[2]
    return Load(video, audio, windows)


def fit(tickets: Sequence[Ticket], start: int, now: float, cost: Cost, most: int, bar: Bar) -> tuple[int, float]:
    """(end, completion) of the largest batch from ``start`` on that keeps every bar in it; at least one job."""
    whole = tickets[start : start + most]
    if whole and (then := now + cost(load_of(whole))) <= min(map(bar, whole)):
        return start + len(whole), then  # costs grow with the load: so does every part of it
    end, done = start, now
    load, first = Load(), float("inf")
    while end < len(tickets) and end - start < most:
        load, first = load.plus(tickets[end]), min(first, bar(tickets[end]))
        then = now + cost(load)
        if end > start and then > first:
            break
        end, done = end + 1, then
    return end, done


def first_miss(tickets: Sequence[Ticket], now: float, cost: Cost, most: int, bar: Bar) -> int | None:
    """The last job of the first batch that misses a bar when all leave in batches, one after the other."""
    if len(tickets) <= most and now + cost(load_of(tickets)) <= min(map(bar, tickets), default=now):
        return None  # as it mostly is
    at = 0
    while at < len(tickets):
        end, done = fit(tickets, at, now, cost, most, bar)
        if done > min(bar(t) for t in tickets[at:end]) + _ROUNDING:
            return end - 1
        at, now = end, done
    return None
