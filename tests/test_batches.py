"""The laws of batching and shedding, clause by clause, with time and costs passed in."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batches import Batch, BatchPolicy, BatchQueue, Load, Ticket
from runtime.costs import CostModel
from runtime.errors import ConfigError, LegatoError

WINDOW = 10


def free(_load: Load) -> float:
    return 0.0


def dear(video: float = 0.010, audio: float = 0.001, windows: float = 0.0005) -> Any:
    """A device without economies of scale."""
    return lambda load: load.video * video + load.audio * audio + load.windows * windows


def half(_ticket: Ticket) -> float:
    return 0.5


def ticket(stream: int = 0, clip: int | None = 0, deadline: float = 1.0, **fields: Any) -> Ticket:
    fields.setdefault("submitted", 0.0)
    fields.setdefault("needs", ("video", "audio") if clip is not None else ())
    return Ticket(stream=stream, clip=clip, deadline=deadline, **fields)


def queue(window: int = WINDOW, **policy: Any) -> BatchQueue:
    policy.setdefault("max_wait_seconds", 0.0)
    return BatchQueue(BatchPolicy(**policy), window)


def drained(line: BatchQueue, now: float = 0.0, cost: Any = free, share: Any = half) -> list[Batch]:
    out = []
    while len(line):
        out.append(line.take(now, cost, share))
    return out


def names(batch: Batch) -> list[tuple[int, int | None]]:
    return [(t.stream, t.clip) for t in batch.tickets]


# -- order ----------------------------------------------------------------------------------------------------------


def test_the_earliest_deadline_goes_first_and_a_stream_stays_in_order():
    line = queue(max_batch=2)
    for stream, clip, deadline in [(0, 0, 0.9), (0, 1, 0.3), (1, 0, 0.5), (2, 0, 0.4)]:
        line.add(ticket(stream, clip, deadline))
    assert [names(b) for b in drained(line)] == [[(2, 0), (1, 0)], [(0, 0), (0, 1)]]


def test_a_batch_is_no_larger_than_its_earliest_deadline_allows():
    line = queue(shed=False)
    line.add(ticket(0, deadline=0.025))
    for stream in range(1, 9):
        line.add(ticket(stream, deadline=1.0))
    assert names(line.take(0.0, dear(), half)) == [(0, 0), (1, 0)]
    assert len(line.take(0.023, dear(), half).tickets) == 7


def test_a_stream_in_time_never_waits_for_a_late_one():
    line = queue(max_batch=2, shed=False)
    line.add(ticket(0, deadline=0.5))
    for stream in (1, 2, 3):
        line.add(ticket(stream, deadline=1.2))
    assert [names(b) for b in drained(line, now=1.0)] == [[(1, 0), (2, 0)], [(3, 0), (0, 0)]]


def test_a_late_one_does_not_ride_along_at_a_neighbours_cost():
    line = queue(shed=False)
    line.add(ticket(0, deadline=0.5))
    line.add(ticket(1, deadline=1.012))
    assert [names(b) for b in drained(line, 1.0, dear())] == [[(1, 0)], [(0, 0)]]


def test_what_waits_behind_a_late_clip_of_its_stream_goes_with_it():
    line = queue(max_batch=4, shed=False)
    line.add(ticket(0, 0, 0.5))
    line.add(ticket(0, 1, 2.0))
    line.add(ticket(1, 0, 3.0))
    assert names(line.take(1.0, free, half)) == [(1, 0), (0, 0), (0, 1)]


def test_when_a_miss_cannot_be_avoided_the_batch_is_as_large_as_it_may_be():
    line = queue(max_batch=8, shed=False)
    for stream in range(12):
        line.add(ticket(stream, deadline=0.02))
    assert len(line.take(0.0, dear(), half).tickets) == 8


# -- when a batch leaves --------------------------------------------------------------------------------------------


def test_a_batch_waits_for_company_but_not_longer_than_it_may():
    line = queue(max_wait_seconds=0.02)
    assert line.due(0.0, free) is None
    line.add(ticket(0, deadline=1.0, submitted=0.1))
    assert line.due(0.1, free) == pytest.approx(0.12)
    assert line.due(0.5, free) == 0.5


def test_a_batch_leaves_when_it_is_full_or_its_time_runs_out():
    line = queue(max_wait_seconds=0.5, max_batch=2)
    line.add(ticket(0, deadline=0.2))
    assert line.due(0.0, lambda _: 0.05) == pytest.approx(0.15)
    line.add(ticket(1, deadline=0.9))
    assert line.due(0.0, lambda _: 0.05) == 0.0


# -- shedding -------------------------------------------------------------------------------------------------------


def played(line: BatchQueue, stream: int, clips: int, first: int = 0) -> None:
    """A stream that was well served until now."""
    for clip in range(first, first + clips):
        line.add(ticket(stream, clip, 1e9))
        drained(line)


def overloaded(shares: dict[int, float], deadlines: dict[int, float], **policy: Any) -> tuple[BatchQueue, Batch]:
    line = queue(**policy)
    for stream in shares:
        played(line, stream, 10)
    for stream in shares:
        line.add(ticket(stream, 10, deadlines[stream]))
    return line, line.take(0.0, dear(), lambda t: shares[t.stream])


def test_nothing_is_shed_while_there_is_time():
    line, batch = overloaded({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    assert batch.shed == [] and line.counters["shed_video"] == 0


def test_the_clip_whose_window_was_seen_best_is_shed_first():
    _, batch = overloaded({0: 0.5, 1: 1.0, 2: 0.7}, {0: 0.028, 1: 0.028, 2: 0.028})
    assert [(s.ticket.stream, s.modality, s.reason) for s in batch.shed] == [(1, "video", "load")]
    assert [t.shed for t in batch.tickets] == [(), ("video",), ()]


def test_ties_fall_to_the_later_deadline_then_to_the_stream():
    _, batch = overloaded({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.028, 1: 0.0285, 2: 0.028})
    assert [s.ticket.stream for s in batch.shed] == [1]
    _, batch = overloaded({2: 1.0, 1: 1.0, 3: 1.0}, {2: 0.028, 1: 0.028, 3: 0.028})
    assert [s.ticket.stream for s in batch.shed] == [1]


def test_video_goes_before_audio():
    _, batch = overloaded({0: 1.0, 1: 0.9}, {0: 0.0116, 1: 0.0116})
    assert [(s.ticket.stream, s.modality) for s in batch.shed] == [(0, "video"), (1, "video")]


def test_audio_goes_first_where_the_bundle_says_so():
    line = queue(shed_order=("audio", "video"))
    played(line, 0, 10)
    line.add(ticket(0, 10, 0.0121))
    line.add(ticket(1, 0, 0.0121, needs=("audio",)))  # a stream's first clip is never shed
    assert [(s.ticket.stream, s.modality) for s in line.take(0.0, dear(), half).shed] == [(0, "audio")]


def test_audio_follows_when_all_the_video_that_may_go_is_gone():
    line = queue()
    played(line, 0, 10)
    line.add(ticket(0, 10, 0.0146))
    for stream in (1, 2, 3):
        line.add(ticket(stream, 0, 0.0146, needs=("audio",)))
    batch = line.take(0.0, dear(audio=0.0045, windows=0.0), half)
    assert [(s.ticket.stream, s.modality) for s in batch.shed] == [(0, "video"), (0, "audio")]


def test_a_stream_is_not_shed_twice_running():
    line = queue()
    played(line, 0, 10)
    fates = []
    for clip in range(10, 16):
        line.add(ticket(0, clip, 1000.0125, submitted=1000.0))
        line.add(ticket(1, clip, 1000.0125, submitted=1000.0, needs=("audio",)))
        batches = drained(line, 1000.0, dear())
        fates += [bool(t.shed) for batch in batches for t in batch.tickets if t.stream == 0]
    assert fates == [True, False, True, False, True, False]


def test_after_an_excess_shedding_aims_lower_until_it_was_calm_for_a_second():
    line = queue(hold_seconds=1.0, calm=0.8)
    for stream in (0, 1):
        played(line, stream, 10)

    def shed_at(now: float, clip: int, allowed: float) -> int:
        for stream in (0, 1):
            line.add(ticket(stream, clip, now + allowed, submitted=now))
        return len(line.take(now, dear(), half).shed)

    assert shed_at(10.0, 10, 0.024) == 0  # 23 ms fit into 24
    assert shed_at(11.0, 11, 0.020) == 1
    assert shed_at(11.5, 12, 0.024) == 1  # calm means 19.2 ms
    assert shed_at(12.4, 13, 0.030) == 0
    assert shed_at(12.51, 14, 0.024) == 0  # a second after the last excess


def test_what_waited_until_it_was_too_late_gives_up_video_within_the_same_limits():
    line = queue(stale=9.0)
    played(line, 0, 10)
    for clip in range(10, 16):
        line.add(ticket(0, clip, 0.5, submitted=0.0))
    line.add(ticket(1, 0, 0.5, submitted=2.0))  # was late when it came: that is no load of ours
    batch = line.take(2.0, dear(), half)
    assert [(s.ticket.stream, s.ticket.clip, s.modality) for s in batch.shed] == [
        (0, clip, "video") for clip in (10, 12, 14)
    ]


def test_what_is_later_by_a_whole_budget_is_not_looked_at_at_all():
    line = queue()
    played(line, 0, 10)
    for clip in range(10, 14):
        line.add(ticket(0, clip, 0.5 + 0.2 * clip - 2.0, submitted=0.2 * clip - 2.0))
    line.add(ticket(0, 13, 1.1, submitted=0.6, version=1))
    batch = line.take(1.25, dear(), half)  # due at 0.5, 0.7, 0.9 and 1.1 s, each with half a second
    shed = {(s.ticket.clip, s.modality) for s in batch.shed}
    assert {(10, "video"), (10, "audio"), (11, "video"), (11, "audio")} <= shed
    assert not {clip for clip, modality in shed if modality == "audio"} & {12, 13}


def test_a_repair_of_a_shed_clip_stays_shed_and_is_never_shed_itself():
    line, batch = overloaded({0: 1.0, 1: 0.5}, {0: 0.015, 1: 0.015})
    assert [s.ticket.stream for s in batch.shed] == [0]
    drained(line)
    for stream in (0, 1):
        line.add(ticket(stream, 10, 0.001, version=1))
    repaired = line.take(0.0, dear(), half)
    assert {t.stream: t.shed for t in repaired.tickets} == {0: ("video",), 1: ()} and repaired.shed == []


def test_a_repair_that_waits_behind_its_clip_loses_what_the_clip_loses():
    line = queue(stale=9.0)
    played(line, 0, 10)
    line.add(ticket(0, 10, 0.5, submitted=0.0))
    line.add(ticket(0, 10, 0.5, submitted=0.0, version=1))
    line.add(ticket(0, 11, 0.5, submitted=0.0))
    batch = line.take(2.0, dear(), half)
    assert [(s.ticket.version, s.ticket.clip, s.modality) for s in batch.shed] == [(0, 10, "video")]
    assert [t.shed for t in (*batch.tickets, *drained(line))] == [("video",), ("video",), ()]


def test_a_policy_without_shedding_sheds_nothing():
    _, batch = overloaded({0: 1.0, 1: 1.0}, {0: 0.001, 1: 0.012}, shed=False)
    assert batch.shed == []


# -- bounds ---------------------------------------------------------------------------------------------------------


def test_a_stream_that_piles_up_loses_its_oldest_content_and_its_neighbour_nothing():
    line = queue(per_stream=2)
    line.add(ticket(1, 0, size=100))
    emptied = [line.add(ticket(0, clip, size=100)) for clip in range(4)]
    assert [[(s.ticket.clip, s.modality) for s in e] for e in emptied] == [
        [],
        [],
        [(0, "video"), (0, "audio")],
        [(1, "video"), (1, "audio")],
    ]
    assert line.bytes == 300 and line.counters["overflowed"] == 2
    by_stream = defaultdict(list)
    for batch in drained(line):
        for t in batch.tickets:
            by_stream[t.stream].append(t.shed)
    assert by_stream == {0: [("video", "audio")] * 2 + [()] * 2, 1: [()]}
    assert line.bytes == 0


def test_when_all_together_hold_too_much_the_one_that_holds_most_gives_up_first():
    line = queue(max_bytes=500)
    line.add(ticket(0, 0, size=200))
    line.add(ticket(1, 0, size=150))
    line.add(ticket(1, 1, size=150))
    assert line.bytes == 500
    emptied = line.add(ticket(2, 0, size=50))
    assert {(s.ticket.stream, s.ticket.clip) for s in emptied} == {(1, 0)} and line.counters["evicted"] == 1


def test_a_line_that_is_full_refuses_in_one_sentence():
    line = queue(max_line=3)
    for clip in range(3):
        line.add(ticket(0, clip))
    with pytest.raises(LegatoError, match="3 clips waiting, the most it may; send no faster than it plays"):
        line.add(ticket(0, 3))
    assert len(line) == 3 and line.counters["refused"] == 1


def test_a_removed_stream_leaves_nothing_behind():
    line = queue()
    for stream in (0, 1):
        line.add(ticket(stream, 0, size=10))
    assert [t.clip for t in line.remove(0)] == [0] and line.remove(0) == []
    assert (len(line), line.bytes) == (1, 10) and names(drained(line)[0]) == [(1, 0)]


@pytest.mark.parametrize(
    ("field", "value"), [("max_batch", 0), ("per_stream", 0), ("max_wait_seconds", -1.0), ("shed_share", 1.5)]
)
def test_a_policy_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        BatchPolicy(**{field: value})


# -- laws -----------------------------------------------------------------------------------------------------------

ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),  # stream
        st.floats(0, 0.05),  # seconds since the one before
        st.floats(-0.05, 0.3),  # time allowed
        st.sampled_from([(), ("video",), ("audio",), ("video", "audio")]),
        st.integers(0, 12),  # 0: a repair of the clip before, 1: a new epoch
        st.floats(0, 1),  # observed share
    ),
    max_size=60,
)


def run(arrivals: list[Any], policy: BatchPolicy, speed: float, window: int = 5) -> tuple[BatchQueue, list[Any]]:
    """Plays arrivals against a device; (time, batch, waiting before) of every batch."""
    line, cost, now, busy = BatchQueue(policy, window), dear(0.01 * speed, 0.002 * speed, 0.001 * speed), 0.0, 0.0
    clips: dict[int, int] = defaultdict(int)
    epochs: dict[int, int] = defaultdict(int)
    shares, log = {}, []

    def work(until: float) -> None:
        nonlocal busy
        while (due := line.due(busy, cost)) is not None and due <= until:
            before = [t for s in range(4) for t in line.waiting(s)]
            batch = line.take(due, cost, lambda t: shares[id(t)])
            log.append((due, batch, before))
            busy = due + cost(sum_of(batch.tickets))

    for stream, step, allowed, needs, kind, share in arrivals:
        work(now)
        now += step
        busy = max(busy, now) if not len(line) else busy
        repair = kind == 0 and clips[stream] > 0
        if not repair:
            epochs[stream] += kind == 1
            clips[stream] += 1
        t = ticket(stream, clips[stream], now + allowed, submitted=now, needs=needs, size=1,
                   version=int(repair), epoch=epochs[stream])  # fmt: skip
        shares[id(t)] = share
        line.add(t)
    work(float("inf"))
    return line, log


def sum_of(tickets: list[Ticket]) -> Load:
    load = Load()
    for t in tickets:
        load = load.plus(t)
    return load


@given(ARRIVALS, st.integers(1, 6), st.sampled_from([0.2, 1.0, 3.0]))
def test_nothing_is_lost_and_each_stream_stays_in_order(arrivals, most, speed):
    line, log = run(arrivals, BatchPolicy(max_batch=most, max_wait_seconds=0.01), speed)
    left = [t for _, batch, _ in log for t in batch.tickets]
    assert len(left) == len(set(map(id, left))) == len(arrivals) and len(line) == line.bytes == 0
    for stream in range(4):
        own = [(t.clip, t.version) for t in left if t.stream == stream]
        assert own == sorted(own, key=lambda pair: pair[0])
    assert all(1 <= len(batch.tickets) <= most for _, batch, _ in log)


@given(ARRIVALS, st.integers(1, 6), st.sampled_from([0.2, 1.0, 3.0]))
def test_nothing_that_could_be_in_time_is_left_behind_for_something_later(arrivals, most, speed):
    """Over streams whose own deadlines grow: no clip left in line is earlier than a timely one that was taken."""
    _, log = run(arrivals, BatchPolicy(max_batch=most, max_wait_seconds=0.0), speed)
    cost = dear(0.01 * speed, 0.002 * speed, 0.001 * speed)
    for now, batch, before in log:
        taken = set(map(id, batch.tickets))
        heads: dict[int, Ticket] = {}
        for t in before:
            heads.setdefault(t.stream, t)
        for head in heads.values():
            if id(head) in taken:
                continue
            if now + cost(Load(1, 1, 1)) > head.deadline:  # cannot be in time, or only just
                continue
            assert not [t for t in batch.tickets if t.deadline < now and t.stream != head.stream]
            others = [t for t in batch.tickets if t.stream != head.stream]
            first_of = {t.stream: t for t in reversed(others)}
            assert all(t.deadline <= head.deadline for t in first_of.values() if t.deadline >= now)


@given(ARRIVALS, st.integers(1, 6), st.sampled_from([1.0, 3.0, 10.0]), st.sampled_from([0.4, 0.25, 0.0]))
def test_shedding_never_breaks_its_limits(arrivals, most, speed, most_share):
    _, log = run(
        arrivals, BatchPolicy(max_batch=most, shed_share=most_share, per_stream=1000, stale=float("inf")), speed
    )
    fates: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for _, batch, _ in log:
        for t in batch.tickets:
            if t.version == 0:
                fates[t.stream, t.epoch].append(bool(t.shed))
            assert set(t.shed) <= set(t.needs)
    for row in fates.values():
        assert not any(a and b for a, b in pairwise(row))
        for end in range(1, len(row) + 1):
            window = row[max(0, end - 5) : end]
            assert sum(window) <= most_share * len(window) + 1e-9


@given(ARRIVALS, st.integers(1, 6))
def test_a_device_with_time_to_spare_sheds_nothing(arrivals, most):
    patient = [(stream, step, max(allowed, 0.01), *rest) for stream, step, allowed, *rest in arrivals]
    _, log = run(patient, BatchPolicy(max_batch=most, max_wait_seconds=0.0), 1e-6)
    assert [s for _, batch, _ in log for s in batch.shed] == []


@given(ARRIVALS, st.integers(1, 6), st.sampled_from([1.0, 3.0]))
def test_the_same_arrivals_give_the_same_batches(arrivals, most, speed):
    first, second = (
        [
            (now, names(b), [t.shed for t in b.tickets])
            for now, b, _ in run(arrivals, BatchPolicy(max_batch=most), speed)[1]
        ]
        for _ in range(2)
    )
    assert first == second


@given(st.integers(2, 40), st.integers(1, 5))
def test_a_flooding_streams_neighbour_is_served_in_time_and_whole(flood, neighbours):
    line = queue(max_batch=4, per_stream=8)
    for clip in range(flood):
        line.add(ticket(0, clip, 0.5, size=1, submitted=0.0))
    for stream in range(1, neighbours + 1):
        line.add(ticket(stream, 0, 0.2, size=1, submitted=0.0))
    now, done = 0.0, {}
    while len(line):
        batch = line.take(now, dear(), half)
        now += dear()(sum_of(batch.tickets))
        done.update({(t.stream, t.clip): (now, t.shed) for t in batch.tickets})
    for stream in range(1, neighbours + 1):
        at, shed = done[stream, 0]
        assert at <= 0.2 and shed == ()


# -- costs ----------------------------------------------------------------------------------------------------------


def test_costs_are_learned_by_batch_size_and_lie_on_lines_between():
    costs = CostModel()
    assert costs.seconds(Load(3, 3, 3)) == 0.0
    costs.observe("video", 1, 0.004)
    costs.observe("video", 3, 0.006)
    assert costs.seconds(Load(video=1)) == pytest.approx(0.004)
    assert costs.seconds(Load(video=2)) == pytest.approx(0.006)  # 3 ms a row
    assert costs.seconds(Load(video=6)) == pytest.approx(0.012)
    costs.observe("windows", 4, 0.004)
    assert costs.seconds(Load(video=1, windows=2)) == pytest.approx(0.006)


def test_a_cost_follows_the_newest_batches_slowly():
    costs = CostModel()
    for seconds in (0.001, 0.011):
        costs.observe("audio", 1, seconds)
    assert costs.seconds(Load(audio=1)) == pytest.approx(0.003)
    costs.observe("audio", 0, 1.0)
    assert costs.seconds(Load(audio=1)) == pytest.approx(0.003)
