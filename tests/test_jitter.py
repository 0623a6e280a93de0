"""The jitter buffer, by hand and by law: it delivers exactly what an oracle with the same delay delivers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.channel import Channel, open_profile
from runtime.errors import ConfigError
from runtime.jitter import AdaptiveDelay, JitterBuffer, Late, TransitFloor
from runtime.packet import Gap, Packet

MS = Fraction(1, 1000)


def packet(seq: int, at_ms: float | None = None, duration_ms: int = 20, modality: str = "audio") -> Packet:
    """Packet ``seq``, captured at ``at_ms`` (20 ms apart where not said)."""
    capture = seq * 20 if at_ms is None else round(at_ms)
    return Packet(modality=modality, seq=seq, capture_time=capture, time_base=MS, payload=b"x", duration=duration_ms)


def seqs(items: list) -> list:
    """Numbers of packets; gaps as (first, count); late packets as their negative number."""
    return [
        (i.first_seq, i.count) if isinstance(i, Gap) else -i.packet.seq if isinstance(i, Late) else i.seq for i in items
    ]


def test_packets_in_order_pass_at_once():
    buffer = JitterBuffer("audio", 0.1)
    assert [seqs(buffer.push(packet(s), s * 0.02)) for s in (7, 8, 9)] == [[7], [8], [9]]
    assert buffer.next_deadline is None


def test_a_reordered_packet_is_not_lost():
    buffer = JitterBuffer("audio", 0.04)
    assert seqs(buffer.push(packet(7), 0.14)) == [7]
    assert seqs(buffer.push(packet(9), 0.18)) == []  # 8 may still come
    assert seqs(buffer.push(packet(8), 0.2)) == [8, 9]


def test_a_hole_waits_until_the_capture_time_behind_it_plus_the_delay():
    buffer = JitterBuffer("audio", 0.1)
    buffer.push(packet(0), 0.0)
    buffer.push(packet(2), 0.05)
    assert buffer.next_deadline == pytest.approx(0.14)
    assert buffer.poll(0.139) == []
    gap, after = buffer.poll(0.14)
    assert gap == Gap(modality="audio", first_seq=1, count=1, start=0.02, end=0.04)
    assert after.seq == 2


def test_what_comes_after_its_gap_is_late_and_its_copy_a_duplicate():
    buffer = JitterBuffer("audio", 0.1)
    buffer.push(packet(0), 0.0)
    buffer.push(packet(2), 0.05)
    assert seqs(buffer.push(packet(1), 0.14)) == [(1, 1), 2, -1]  # a deadline is passed at its very moment
    assert seqs(buffer.push(packet(1), 0.15)) == []
    assert (buffer.stats.late, buffer.stats.duplicates, buffer.stats.lost) == (1, 1, 0)


def test_every_copy_of_a_packet_but_the_first_is_dropped():
    buffer = JitterBuffer("audio", 0.1)
    pushed = [0, 0, 2, 2, 1, 1, 2, 0]
    assert [seqs(buffer.push(packet(s), 0.01)) for s in pushed] == [[0], [], [], [], [1, 2], [], [], []]
    assert buffer.stats.duplicates == 5


def test_a_known_first_number_makes_the_start_a_hole():
    buffer = JitterBuffer("audio", 0.1, first_seq=0)
    assert seqs(buffer.push(packet(2), 0.05)) == []
    assert seqs(buffer.poll(0.2)) == [(0, 2), 2]


def test_a_packet_from_before_the_first_one_is_late_but_was_never_missed():
    buffer = JitterBuffer("audio", 0.1)
    buffer.push(packet(5), 0.1)
    (late,) = buffer.push(packet(4), 0.11)
    assert late == Late(packet(4), reported=False)
    assert buffer.push(packet(4), 0.12) == []
    assert buffer.stats.duplicates == 1
    assert buffer.stats.expected == buffer.stats.received


def test_the_end_of_the_stream_waits_for_nothing():
    buffer = JitterBuffer("audio", 10.0)
    for s in (0, 2, 3, 6):
        buffer.push(packet(s), 0.0)
    assert seqs(buffer.flush()) == [(1, 1), 2, 3, (4, 2), 6]
    assert buffer.stats.queued == 0


def test_b_frames_set_the_deadline_by_the_earliest_capture_time_behind_the_hole():
    buffer = JitterBuffer("video", 0.2)
    buffer.push(packet(0, 0), 0.0)
    buffer.push(packet(2, 160), 0.06)  # P, shown after the B frames that follow it
    buffer.push(packet(3, 80), 0.1)
    assert buffer.next_deadline == pytest.approx(0.28)


def test_neighbours_out_of_order_in_time_still_bound_a_gap_the_right_way_round():
    buffer = JitterBuffer("video", 0.0)
    buffer.push(packet(0, 160, 40), 0.0)
    gap, _ = buffer.push(packet(2, 120, 40), 0.3)
    assert (gap.start, gap.end) == (0.12, 0.2)


def test_a_capture_clock_that_jumps_ahead_holds_nothing_back():
    buffer = JitterBuffer("audio", 0.1)
    buffer.push(packet(0), 0.0)
    buffer.push(packet(2, at_ms=3_600_000), 0.04)
    assert buffer.next_deadline == pytest.approx(0.04 + 2.0 + 0.1)


def test_a_full_queue_gives_its_hole_up_before_the_deadline():
    buffer = JitterBuffer("audio", 1000.0, capacity=4)
    buffer.push(packet(0), 0.0)
    out = [seqs(buffer.push(packet(s), 0.0)) for s in range(2, 7)]
    assert out == [[], [], [], [], [(1, 1), 2, 3, 4, 5, 6]]
    assert buffer.stats.overflows == 1


def test_a_sender_that_restarts_far_ahead_costs_one_gap_and_no_memory():
    buffer = JitterBuffer("audio", 0.1)
    buffer.push(packet(0), 0.0)
    jumped = 2**63
    far = Packet(modality="audio", seq=jumped, capture_time=20, time_base=MS, payload=b"x")
    buffer.push(far, 0.02)
    assert seqs(buffer.poll(1.0)) == [(1, jumped - 1), jumped]


def test_a_negative_delay_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"jitter delay -0\.1 s is not a waiting time"):
        JitterBuffer("audio", -0.1)
    with pytest.raises(ConfigError, match=r"floor 0\.5 s and cap 0\.4 s contradict"):
        AdaptiveDelay(floor=0.5, cap=0.4)


# ------------------------------------------------------------------------------------------------------------ the law


def oracle(captures, arrivals, delay: float) -> set[int]:
    """Packets delivered by one who knows every arrival: ``inf`` never arrives. See the docstring of runtime.jitter."""
    came = np.isfinite(arrivals)
    due = np.where(came, np.maximum(arrivals, captures + delay), np.inf)
    behind = np.append(np.minimum.accumulate(due[::-1])[::-1][1:], np.inf)
    return set(np.flatnonzero(came & (arrivals < behind)).tolist())


def deliver(captures, arrivals, delay: float, polls=()) -> list:
    """Everything the buffer says when packets come at ``arrivals`` (and it is polled at ``polls``)."""
    buffer = JitterBuffer("audio", delay, first_seq=0)
    moments = sorted([(t, s) for s, t in enumerate(arrivals) if np.isfinite(t)] + [(t, -1) for t in polls])
    items: list = []
    for now, s in moments:
        items += buffer.poll(now) if s < 0 else buffer.push(packet(s, captures[s] * 1000), now)
    return items + buffer.flush()


def check_against_oracle(captures, arrivals, delay: float) -> None:
    items = deliver(captures, arrivals, delay)
    delivered = [i.seq for i in items if isinstance(i, Packet)]
    assert delivered == sorted(delivered)
    assert set(delivered) == oracle(captures, arrivals, delay)
    # every number up to the last one delivered is accounted for once: delivered or in a gap
    gone = [s for i in items if isinstance(i, Gap) for s in range(i.first_seq, i.first_seq + i.count)]
    assert sorted(delivered + gone) == list(range(max(delivered, default=-1) + 1))
    late = {i.packet.seq for i in items if isinstance(i, Late)}
    assert late == set(np.flatnonzero(np.isfinite(arrivals)).tolist()) - set(delivered)


@pytest.mark.parametrize("bursty", [False, True])
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2, 0.4])
def test_it_delivers_what_the_oracle_delivers(loss: float, bursty: bool):
    """Jitter of 20 ms sd bounded by the delay, which reorders most packets: every packet that arrives is delivered."""
    count, delay, burst = 3000, 0.12, 4.0
    name = f"ge:{loss / burst / (1 - loss)},{1 / burst},0,1" if bursty else f"iid-{loss * 100:g}"
    captures = np.arange(count) * 0.02
    rng = np.random.default_rng(3)
    transit = np.clip(rng.normal(0.06, 0.02, count), 0.0, delay)
    lost = Channel(open_profile(name), 5).lost("audio", captures) if loss else np.zeros(count, bool)
    arrivals = np.where(lost, np.inf, captures + transit)
    check_against_oracle(captures, arrivals, delay)
    assert oracle(captures, arrivals, delay) == set(np.flatnonzero(~lost).tolist())
    assert (np.diff(arrivals[~lost]) < 0).mean() > 0.1  # the link did reorder


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=40), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_it_delivers_what_the_oracle_delivers_whatever_the_jitter(transits, delay_ms: int):
    """Jitter beyond the delay: now packets are late, and exactly those that the oracle calls late."""
    captures = np.arange(len(transits)) * 0.02
    arrivals = np.array([s * 0.02 + t / 1000 if here else np.inf for s, (t, here) in enumerate(transits)])
    # millisecond times tie; a tie has no meaning on a line, so each arrival gets a little of its own
    arrivals = arrivals + np.arange(len(transits)) * 1e-7
    check_against_oracle(captures, arrivals, delay_ms / 1000 + 5e-5)


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=30), st.lists(st.integers(0, 900), max_size=20))
@settings(max_examples=100, deadline=None)
def test_how_often_it_is_polled_changes_nothing(transits, polls):
    captures = np.arange(len(transits)) * 0.02
    arrivals = np.array([s * 0.02 + t / 1000 if here else np.inf for s, (t, here) in enumerate(transits)])
    assert deliver(captures, arrivals, 0.05, [p / 1000 for p in polls]) == deliver(captures, arrivals, 0.05)


@given(st.lists(st.integers(0, 60), max_size=80))
@settings(max_examples=100, deadline=None)
def test_expected_is_received_plus_lost_whatever_comes(numbers):
    """Any order, any number of copies."""
    buffer = JitterBuffer("audio", 0.05)
    items: list = []
    for i, s in enumerate(numbers):
        items += buffer.push(packet(s), i * 0.01)
    items += buffer.flush()
    stats = buffer.stats
    assert stats.received == len(numbers) == stats.delivered + stats.duplicates + stats.late
    assert stats.lost >= 0
    early = [i for i in items if isinstance(i, Late) and not i.reported]
    span = max(numbers) - numbers[0] + 1 if numbers else 0
    assert stats.expected == span + stats.duplicates + len(early)


# -------------------------------------------------------------------------------------------------- delay and transit


def test_the_jitter_is_that_of_rfc_3550():
    delay = AdaptiveDelay(floor=0.0, cap=10.0, gain=1.0)
    expected = 0.0
    arrivals = [0.0, 0.025, 0.038, 0.070, 0.079]
    for i, now in enumerate(arrivals):
        delay.update(packet(i), now)
        if i:
            difference = abs((now - arrivals[i - 1]) - 0.02)
            expected += (difference - expected) / 16
    assert delay.seconds == pytest.approx(expected)


def test_fragments_of_one_frame_do_not_inflate_the_jitter():
    delay = AdaptiveDelay(floor=0.0)
    for frame in range(50):
        for fragment in range(5):
            delay.update(packet(frame * 5 + fragment, at_ms=frame * 40), frame * 0.04 + fragment * 0.003)
    assert delay.seconds == pytest.approx(0.0, abs=1e-9)


def test_a_clock_jump_is_not_jitter():
    delay = AdaptiveDelay(floor=0.0)
    delay.update(packet(0), 0.0)
    delay.update(packet(1, at_ms=10_000_000), 0.02)
    assert delay.seconds == pytest.approx(0.0, abs=1e-9)


def test_an_adaptive_buffer_learns_how_long_to_wait():
    """Gaussian transit of 20 ms sd: the delay settles where hardly a packet is late."""
    rng = np.random.default_rng(0)
    buffer = JitterBuffer("audio", AdaptiveDelay(floor=0.02, cap=0.5), first_seq=0, offset=None)
    transit = np.clip(rng.normal(0.1, 0.02, 4000), 0.03, 0.17)
    arrivals = np.arange(4000) * 0.02 + transit
    for s in np.argsort(arrivals).tolist():
        buffer.push(packet(s), float(arrivals[s]))
    assert 0.06 < buffer.delay < 0.2
    assert buffer.stats.late < 0.01 * 4000


def test_an_unknown_clock_offset_is_learned_as_the_least_transit():
    buffer = JitterBuffer("audio", 0.1, offset=None)
    buffer.push(packet(0), 1000.05)
    buffer.push(packet(2), 1000.05)
    assert buffer.next_deadline == pytest.approx(1000.05 - 0.04 + 0.04 + 0.1)


def test_the_least_transit_follows_a_drifting_clock():
    floor = TransitFloor()
    for i in range(5000):
        capture = i * 0.02
        floor.update(capture, capture * 1.001 + 0.05)  # 1000 ppm: 0.1 s in 100 s
    assert floor.value == pytest.approx(0.05 + 0.1, abs=0.021)
