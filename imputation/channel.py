"""The one source of loss: which packets a channel drops, delays and doubles (numpy only).

The state of the link is a function of *time*, shared by all modalities: audio and video that cross one link fail
together. It is drawn by stretches of an hour (or of many slots or clips), each from its own seed, so any time
may be asked for, however far from zero; every stretch starts stationary. What happens to a single packet is
drawn from a stream per modality and purpose, one number a packet: how the times are chunked changes nothing,
and one modality never shifts another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imputation.gilbert import chain
from imputation.profiles import (
    PROFILES,
    SLOT_SECONDS,
    Link,
    Process,
    Profile,
    Slots,
    Trace,
    WholeClips,
    open_profile,
    read_trace,
)
from imputation.variates import Draws, exponential, lognormal, truncated_normal

__all__ = ["PROFILES", "Channel", "Profile", "open_profile", "read_trace"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
State = Callable[[str, Floats], Bools]  # (modality, times in seconds) -> True where the link is bad

_HOUR = 3600.0  # seconds of a link drawn at once
_BATCH = 1 << 16  # slots or clips drawn at once
_TOUCH = 1e-4  # of a slot: a time this close below a boundary stands on it (0.4 * 3 / 0.4 is not quite 3)
_KEPT = 8  # stretches remembered
_HELD_BACK = (0.025, 0.08)  # seconds a reordered packet waits longer: more than the spacing of audio packets
_COPY_AFTER = 0.02  # seconds within which a duplicate follows


class Channel:
    """A profile at work, with a seed: the same seed gives the same losses on every machine."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self.seed = seed
        self._bad = _state(profile.process, profile.name, seed)
        self._draws: dict[tuple[str, str], Draws] = {}
        self._last_arrival: dict[str, float] = {}

    def lost(self, modality: str, times: NDArray[np.floating]) -> Bools:
        """Which packets are lost (n,), given when they are sent, in seconds (n,), in sending order."""
        if modality not in self.profile.modalities:
            return np.zeros(len(times), bool)
        process = self.profile.process
        chance = np.where(self.bad(modality, times), process.loss_bad, process.loss_good)
        return self._take(modality, "loss", len(times)) < chance

    def bad(self, modality: str, times: NDArray[np.floating]) -> Bools:
        """Whether the link (or device) is in its bad state at ``times`` (n,), seconds, in any order."""
        at: Floats = np.asarray(times, np.float64)
        assert np.isfinite(at).all(), "packet times must be finite"
        return self._bad(modality, at) if modality in self.profile.modalities else np.zeros(len(times), bool)

    def delays(self, modality: str, times: NDArray[np.floating]) -> Floats:
        """One-way delay of each packet, seconds (n,); see ``arrivals``."""
        return self.arrivals(modality, times) - np.asarray(times, np.float64)

    def arrivals(self, modality: str, times: NDArray[np.floating]) -> Floats:
        """When packets sent at ``times`` (n,) arrive, seconds (n,).

        The link is a queue: a packet overtakes another of its modality only in the reorder variant, which
        holds some packets back.
        """
        held = self._held_back(modality, len(times))
        free: Floats = np.asarray(times, np.float64) + self._free_delay(modality, len(times)) + held
        # A packet held back waits outside the queue: those behind it do not wait for it.
        queue = np.maximum.accumulate(np.where(held > 0, -np.inf, free))
        queue = np.maximum(queue, self._last_arrival.get(modality, -np.inf))
        if len(times):
            self._last_arrival[modality] = float(queue[-1])
        return np.maximum(queue, free)

    def copies(self, modality: str, count: int) -> Floats:
        """How long after itself each of the next ``count`` packets arrives again, seconds; NaN: it does not."""
        if not self.profile.duplicated:
            return np.full(count, np.nan)
        twice = self._take(modality, "duplicate", count) < self.profile.duplicated
        return np.where(twice, _COPY_AFTER * self._take(modality, "duplicate delay", count), np.nan)

    def _free_delay(self, modality: str, count: int) -> Floats:
        base, jitter = self.profile.base_delay, self.profile.jitter
        if modality not in self.profile.modalities or jitter == 0:
            return np.full(count, base if modality in self.profile.modalities else 0.0)
        low = max(-3.0, -base / jitter)  # never before it was sent
        return base + jitter * truncated_normal(self._take(modality, "jitter", count), low, 3.0)

    def _held_back(self, modality: str, count: int) -> Floats:
        if not self.profile.reordered:
            return np.zeros(count)
        chosen = self._take(modality, "reorder", count) < self.profile.reordered
        low, high = _HELD_BACK
        return np.where(chosen, low + (high - low) * self._take(modality, "reorder delay", count), 0.0)

    def _take(self, modality: str, purpose: str, count: int) -> Floats:
        key = (modality, purpose)
        if key not in self._draws:
            self._draws[key] = Draws(self.profile.name, self.seed, f"{purpose} of {modality}")
        return self._draws[key].take(count)


def _state(process: Process, name: str, seed: int) -> State:
    """The link's state as a function of time."""
    match process:
        case Link() if process.bad_share == 0:
            return lambda modality, times: np.zeros(len(times), bool)
        case Link():
            link = _Stretches(lambda block: _link_switches(process, Draws(name, seed, "link", block)))
            return lambda modality, times: link.look_up(times, _HOUR, _bad_within_hour)
        case Slots():
            slots = _Stretches(lambda block: _slot_states(process, Draws(name, seed, "slots", block)))
            return lambda modality, times: slots.look_up(_cell(times, SLOT_SECONDS), _BATCH, _state_of_cell)
        case WholeClips():
            clips = {modality: _clip_states(process, name, seed, modality) for modality in ("video", "audio")}
            return lambda modality, times: clips[modality].look_up(
                _cell(times - process.origin, process.clip_seconds), _BATCH, _state_of_cell
            )
        case Trace():
            trace = np.frombuffer(process.slots, np.uint8).astype(bool)
            offset = int(Draws(name, seed, "offset").take(1)[0] * len(trace))
            return lambda modality, times: trace[(_cell(times, SLOT_SECONDS).astype(np.int64) + offset) % len(trace)]


def _cell(times: Floats, seconds: float) -> Floats:
    """The whole number of the cell of length ``seconds`` in which each time lies."""
    return np.floor(times / seconds + _TOUCH)


class _Stretches:
    """States drawn stretch by stretch and remembered for a while."""

    def __init__(self, draw: Callable[[int], NDArray[Any]]) -> None:
        self._draw = draw
        self._kept: dict[int, NDArray[Any]] = {}

    def look_up(self, place: Floats, size: float, read: Callable[[Any, Floats], Bools]) -> Bools:
        """States (n,) at ``place`` (n,), stretches being ``size`` long; ``read`` gets one and places within it."""
        blocks = np.floor(place / size)
        out = np.empty(len(place), bool)
        for block in np.unique(blocks):
            chosen = blocks == block
            out[chosen] = read(self._stretch(int(block)), place[chosen] - block * size)
        return out

    def _stretch(self, block: int) -> NDArray[Any]:
        if block not in self._kept:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[block] = self._draw(block)
        return self._kept[block]


def _link_switches(link: Link, draws: Draws) -> Floats:
    """When the link turns bad, good, bad, ... within its hour: seconds, ascending; good before the first.

    A link that starts bad turns bad at -1. What is left of the first bad stay is a random part of one met at
    a random moment, which is longer than average: with log-normal stays too, the hour starts stationary.
    """
    start, length, left = draws.take(3)[:, None]
    cycle = link.good_seconds + link.bad_seconds
    steps, ends_at = [], 0.0
    if start[0] < link.bad_share:
        steps.append(_bad_seconds(link, length, by_length=True) * (left if link.bad_sigma else 1.0))
        ends_at = float(steps[0][0])
    while ends_at < _HOUR:
        count = int((_HOUR - ends_at) / cycle * 1.2) + 16
        pairs = draws.take(2 * count).reshape(count, 2)
        good, bad = exponential(pairs[:, 0], link.good_seconds), _bad_seconds(link, pairs[:, 1])
        steps.append(np.stack([good, bad], axis=1).ravel())
        ends_at = float(np.cumsum(np.concatenate(steps))[-1])
    switches = np.cumsum(np.concatenate(steps))
    return np.concatenate([[-1.0], switches]) if start[0] < link.bad_share else switches


def _bad_seconds(link: Link, u: Floats, *, by_length: bool = False) -> Floats:
    if link.bad_sigma:
        return lognormal(u, link.bad_seconds, link.bad_sigma, by_length=by_length)
    return exponential(u, link.bad_seconds)  # has no memory: what is left of a stay is as long as a stay


def _clip_states(clips: WholeClips, name: str, seed: int, modality: str) -> _Stretches:
    return _Stretches(lambda block: Draws(name, seed, f"clips of {modality}", block).take(_BATCH) < clips.rate)


def _slot_states(slots: Slots, draws: Draws) -> Bools:
    u = draws.take(_BATCH + 1)
    return chain(slots.chain, bool(u[0] < slots.chain.bad_share), u[1:])


def _bad_within_hour(switches: Floats, seconds: Floats) -> Bools:
    return np.asarray(np.searchsorted(switches, seconds, side="right") % 2 == 1)


def _state_of_cell(states: Bools, place: Floats) -> Bools:
    return states[place.astype(np.int64)]
