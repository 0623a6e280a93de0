"""The straight way through the receiver does what the long way does, whatever the stream."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.presence import PresenceRule
from runtime.jitter import AdaptiveDelay
from runtime.packet import Decision, Packet, StreamInfo
from runtime.receive import Receiver
from tests.fakes import CODECS, INFO, SPEC, TICK, FakeClock, fake_parts, stream, track
from tests.test_receive import plain


class LongWay(Receiver):
    """A receiver that asks every question of every packet."""

    def _goes_straight(self, *_: Any) -> bool:
        return False


def said(kind: type[Receiver], items: Sequence[Packet | Decision], info: StreamInfo, **options: Any) -> list[Any]:
    """Everything that can be seen of a receiver, after every item."""
    made: dict[str, Any] = {"parts": fake_parts(options.pop("chained", ()), options.pop("hold", 0))}
    receiver = kind(info, SPEC, PresenceRule(), stopwatch=FakeClock(step=0.001), **(made | options))
    seen: list[Any] = []
    for item in items:
        clips = receiver.push(item, item.arrival or 0.0)
        seen.append(([(*plain(c), c.decode_ms) for c in clips], receiver.next_deadline, len(receiver.events)))
        seen.append([receiver.needed(m, 1.0) for m in ("video", "audio")])
    seen.append([plain(c) for c in receiver.finish()])
    receiver.ledger.check()
    seen += [receiver.events, receiver.ledger.as_dict(), receiver.drift_ppm, receiver.spec_origin]
    seen += [(receiver.jitter_ms(m), receiver.delay_ms(m)) for m in ("video", "audio")]
    return seen


def any_stream(seed: int, harm: float, jitter: float, gop: int, timed: bool) -> list[Packet | Decision]:
    """Anything that may come: loss, jitter, copies, holes in time, jumps of either clock, empty packets, decisions."""
    rng = np.random.default_rng(seed)
    seconds = float(rng.choice([3.0, 6.0]))
    jumps = {m: (int(rng.integers(0, 300)), int(rng.choice([0, 0, 0, 900, -900, 40_000, -40_000]))) for m in CODECS}
    items: list[Packet | Decision] = []
    for p in track("video", seconds) + track("audio", seconds):
        if rng.random() < harm:
            continue
        first, by = jumps[p.modality]
        changes: dict[str, Any] = {"keyframe": p.modality == "audio" or p.seq % gop == 0}
        changes["capture_time"] = p.capture_time + (by if p.seq >= first else 0)
        if rng.random() < harm / 4:
            changes["payload"] = b"" if rng.random() < 0.5 else b"\xff\xff"
        if rng.random() < harm / 4:
            changes["duration"] = 0
        if rng.random() < harm / 4:
            changes["time_base"], changes["capture_time"] = TICK / 2, 2 * changes["capture_time"]
            changes["duration"] = 80
        late = float(rng.exponential(jitter)) if jitter else 0.0
        for _ in range(1 + (rng.random() < harm / 4)):
            items.append(replace(p, arrival=p.end_seconds + late, **changes))
    if rng.random() < 0.5:
        items.append(Decision(kind="shed", modality="video", arrival=float(rng.uniform(0, 3)), clip=4))
        items.append(Decision(kind="clock_remap", modality="audio", arrival=1.7, offset=Fraction(1, 100)))
        items.append(Decision(kind="format_change", modality="video", arrival=2.1, codec=CODECS["video"]))
    if rng.random() < 0.3:
        since, leap = float(rng.uniform(0.5, seconds)), float(rng.choice([1.0, 50.0, 70.0, 1e5, 3e9]))
        items = [replace(x, arrival=x.arrival + leap * (x.arrival > since)) for x in items]
    items.sort(key=lambda x: (x.arrival, x.modality))
    return items if timed else [replace(x, arrival=None) if isinstance(x, Packet) else x for x in items]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.sampled_from([0.0, 0.02, 0.2]),
    st.integers(0, 2),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(["fixed", "adaptive", "none"]),
)
@settings(max_examples=40, deadline=None)
def test_straight_or_the_long_way_nothing_differs(
    seed: int, harm: float, jitter: float, lookahead: int, ways: tuple[bool, bool, bool], delay: str
) -> None:
    timed, sequenced, agreed = ways
    items = any_stream(seed, harm, jitter, 1 + 11 * (seed % 2), timed)
    info = replace(INFO, sequence_numbers=sequenced, origin=Fraction(0) if agreed else None)
    delays = {"fixed": 0.05, "adaptive": AdaptiveDelay(floor=0.02, cap=0.3), "none": 0.0}
    options: dict[str, Any] = {"delay": delays[delay], "lookahead": lookahead, "chained": ("video",), "hold": lookahead}
    assert said(Receiver, items, info, **options) == said(LongWay, items, info, **options)


@pytest.mark.parametrize("arrivals", [True, False])
def test_nearly_every_packet_of_a_clean_stream_goes_straight(arrivals: bool) -> None:
    straight = []

    class Counted(Receiver):
        def _goes_straight(self, *packet: Any) -> bool:
            straight.append(super()._goes_straight(*packet))
            return straight[-1]

    receiver = Counted(INFO, SPEC, parts=fake_parts(), delay=0.05)
    for p in stream(8.0):
        receiver.push(p if arrivals else replace(p, arrival=None), p.arrival or 0.0)
    assert straight.count(True) >= 590  # of 600; the first ones teach the rest
