"""The conservation law: every packet has one fate, whatever happens and in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.metrics import FATES, Counts, Histogram, Ledger


def ledger_with(seqs, **receive) -> Ledger:
    ledger = Ledger()
    for seq in seqs:
        ledger.receive(seq, **receive)
    return ledger


def test_a_packet_is_unfinished_until_it_is_settled():
    ledger = ledger_with([1, 2])
    assert ledger.counts == Counts(expected=2, received=2, unfinished=2)
    ledger.mark([1], "used")
    ledger.settle([1])
    assert ledger.counts == Counts(expected=2, received=2, used=1, unfinished=1)


def test_what_nothing_was_made_of_is_unused():
    ledger = ledger_with([1])
    ledger.settle()
    assert ledger.counts.unused == 1


@pytest.mark.parametrize("strong", range(len(FATES) - 1))
def test_the_stronger_fate_counts_in_either_order(strong: int):
    for first, second in ((strong, strong + 1), (strong + 1, strong)):
        ledger = ledger_with([1])
        ledger.mark([1], FATES[first])
        ledger.mark([1], FATES[second])
        ledger.settle()
        assert ledger.counts.as_dict()[FATES[strong]] == 1


def test_a_late_packet_takes_back_its_loss():
    ledger = Ledger()
    ledger.lose(3)
    ledger.receive(7, late=True, was_lost=True)
    ledger.settle()
    assert ledger.counts == Counts(expected=3, received=1, lost=2, late=1)


def test_a_late_packet_that_repaired_counts_as_used():
    ledger = ledger_with([1, 2], late=True)
    ledger.repair([1])
    ledger.settle()
    assert (ledger.counts.used, ledger.counts.late) == (1, 1)


def test_a_repair_from_broken_references_counts_as_damaged():
    ledger = ledger_with([1], late=True)
    ledger.repair([1])
    ledger.mark([1], "damaged")
    ledger.settle()
    assert ledger.counts.damaged == 1


def test_duplicates_never_make_the_loss_negative():
    ledger = ledger_with([1, 1, 1])
    ledger.duplicate(4)
    ledger.receive(2, was_lost=True)  # no gap was ever reported
    assert (ledger.counts.duplicate, ledger.counts.lost) == (6, 0)
    ledger.counts.check()


def test_a_settled_packet_keeps_its_fate():
    ledger = ledger_with([1])
    ledger.mark([1], "used")
    ledger.settle_through(1)
    ledger.mark([1], "damaged")
    ledger.settle()
    assert ledger.counts == Counts(expected=1, received=1, used=1)


def test_an_unknown_fate_is_our_own_mistake():
    with pytest.raises(AssertionError, match="vanished"):
        ledger_with([1]).mark([1], "vanished")


EVENTS = st.one_of(
    st.tuples(st.just("receive"), st.integers(0, 12), st.booleans(), st.booleans()),
    st.tuples(st.sampled_from(["duplicate", "malformed", "lose"]), st.integers(0, 3)),
    st.tuples(st.just("mark"), st.integers(0, 12), st.sampled_from(FATES)),
    st.tuples(st.sampled_from(["repair", "settle", "settle_through"]), st.integers(0, 12)),
)


@given(st.lists(EVENTS, max_size=60))
def test_the_law_holds_after_every_event(events):
    ledger = Ledger()
    received = settled = 0
    for name, number, *rest in events:
        if name == "receive":
            ledger.receive(number, late=rest[0], was_lost=rest[1])
            received += 1
        elif name == "mark":
            ledger.mark([number], rest[0])
        elif name in ("repair", "settle"):
            getattr(ledger, name)([number])
        else:
            getattr(ledger, name)(number)
            received += number if name in ("duplicate", "malformed") else 0
        counts = ledger.counts
        counts.check()
        assert counts.received == received
        assert counts.received - counts.unfinished >= settled  # a fate is never taken back
        settled = counts.received - counts.unfinished
    ledger.settle()
    ledger.counts.check()
    assert ledger.counts.unfinished == 0


def test_a_broken_law_is_noticed():
    with pytest.raises(AssertionError):
        Counts(expected=2, received=2, used=1).check()
    with pytest.raises(AssertionError):
        Counts(expected=2, received=1, used=1).check()


def test_a_histogram_knows_its_mean_and_its_largest():
    histogram = Histogram()
    for value in (1.0, 3.0, 8.0):
        histogram.add(value)
    assert (histogram.count, histogram.mean, histogram.largest) == (3, 4.0, 8.0)
    assert histogram.cumulative()[10] == 3
    assert histogram.cumulative()[2] == 1


@given(st.lists(st.floats(0, 20_000), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, share):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(1, -(-int(share * len(values) * 1000) // 1000))
    true = sorted(values)[min(rank, len(values)) - 1]
    bounds = (0.0, *[b for b in histogram.cumulative() if b != float("inf")], float("inf"))
    low = max(b for b in bounds if b < true or b == 0.0)
    high = min(b for b in bounds if b >= true and b > 0)  # the first bucket holds 0 too
    assert min(low, histogram.largest) <= histogram.quantile(share) <= high


def test_an_empty_histogram_is_all_zeros():
    assert set(Histogram().as_dict().values()) == {0}
