"""Applies a loss profile to packets: drops, delays, reorders and doubles them, or renders a dead device.

Pure: the packets' own times say when they are sent. The channel decides; this file only obeys it.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from imputation.channel import Channel
from imputation.profiles import Profile
from runtime.packet import CodecConfig, Decision, Packet
from runtime.silence import silent_payload

_APART = 1.0  # seconds by which the modalities of a container may lead each other


def impair(
    packets: Iterable[Packet | Decision],
    profile: Profile,
    seed: int = 0,
    *,
    codecs: Mapping[str, CodecConfig] | None = None,
    batch: int = 64,
) -> Iterator[Packet | Decision]:
    """The packets that come through, in order of arrival, each with its ``arrival`` in seconds.

    ``packets`` come in the order they are sent: at their ``arrival`` where a recording has one, else at their
    decode time, and none before its predecessor. ``codecs`` (by modality) is needed by the ``+zeros`` rendering
    only. ``batch`` packets are judged at once; the result does not depend on it, a live source takes 1. Decisions
    keep their place.
    """
    link = Link(profile, seed, codecs or {})
    waiting: list[tuple[float, int, Packet | Decision]] = []  # (arrival, order of sending, packet)
    order = 0
    source = iter(packets)
    while items := list(islice(source, batch)):
        for arrivals, watermark in link.judge(items):
            for arrival, packet in arrivals:
                heapq.heappush(waiting, (arrival, order, packet))
                order += 1
            while waiting and waiting[0][0] <= watermark:
                yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


class Link:
    """The channel and what it remembers of the packets it saw; a live source shows it one packet at a time."""

    def __init__(self, profile: Profile, seed: int, codecs: Mapping[str, CodecConfig]) -> None:
        self._channel = Channel(profile, seed)
        self._codecs = codecs
        self._sent: dict[str, float] = {}  # when the newest packet of a modality was sent
        self._paced = False  # arrival times were given: packets truly come in order of sending
        self._picture: Packet | None = None  # the last key frame that came through
        self._stalled = False  # the decoder still shows that key frame

    def judge(self, items: list[Packet | Decision]) -> Iterator[tuple[list[tuple[float, Packet | Decision]], float]]:
        """For each item: when it arrives (never, once, twice), and the time before which nothing more will."""
        sent, watermarks = self._times(items)
        out: list[list[tuple[float, Packet | Decision]]] = [[(float(sent[i]), item)] for i, item in enumerate(items)]
        for modality in self._sent:
            own = {i: item for i, item in enumerate(items) if isinstance(item, Packet) and item.modality == modality}
            if own:
                verdicts = self._verdicts(modality, list(own.values()), sent[list(own)])
                for i, verdict in zip(own, verdicts, strict=True):
                    out[i] = verdict
        yield from zip(out, watermarks, strict=True)

    def _times(self, items: list[Packet | Decision]) -> tuple[np.ndarray, list[float]]:
        sent = np.zeros(len(items))
        watermarks = []
        for i, item in enumerate(items):
            if isinstance(item, Packet):
                self._paced = item.arrival is not None
                at = item.decode_seconds if item.arrival is None else item.arrival
                sent[i] = self._sent[item.modality] = max(self._sent.get(item.modality, at), at)
            else:  # a decision comes after all that was sent before it
                sent[i] = max(self._sent.values(), default=float("-inf"))
            watermarks.append(self._watermark())
        return sent, watermarks

    def _watermark(self) -> float:
        """No packet still to come was sent before this."""
        if not self._sent:
            return float("-inf")
        newest = max(self._sent.values())
        if self._paced:
            return newest
        slowest = min(self._sent.values()) if len(self._sent) > 1 else newest - _APART
        return max(slowest, newest - _APART)

    def _verdicts(
        self, modality: str, packets: list[Packet], sent: np.ndarray
    ) -> list[list[tuple[float, Packet | Decision]]]:
        lost = self._channel.lost(modality, sent)
        arrivals = self._channel.arrivals(modality, sent)
        copies = self._channel.copies(modality, len(packets))
        out: list[list[tuple[float, Packet | Decision]]] = []
        for packet, gone, arrival, after in zip(packets, lost, arrivals.tolist(), copies.tolist(), strict=True):
            kept = self._render(packet, bool(gone))
            times = [] if kept is None else [arrival] if np.isnan(after) else [arrival, arrival + after]
            out.append([(at, replace(kept, arrival=at)) for at in times if kept is not None])
        return out

    def _render(self, packet: Packet, lost: bool) -> Packet | None:
        """The packet that is sent in its place; None if it does not come."""
        rendering = self._channel.profile.rendering
        if rendering == "frozen" and packet.modality == "video":
            return self._frozen(packet, lost)
        if not lost or rendering == "absent":
            return None if lost else packet
        assert packet.modality in self._codecs, f"+zeros needs the codec of {packet.modality}"
        return replace(packet, payload=silent_payload(self._codecs[packet.modality], packet.payload))

    def _frozen(self, packet: Packet, lost: bool) -> Packet | None:
        """The last key frame, again and again, until a key frame comes after the stall: nothing else decodes to it."""
        if not lost and (packet.keyframe or not self._stalled):
            self._stalled = False
            self._picture = packet if packet.keyframe else self._picture
            return packet
        self._stalled = True
        if self._picture is None:
            return None
        return replace(packet, payload=self._picture.payload, keyframe=True, disposable=False)
