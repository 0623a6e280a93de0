"""The outbox: what goes first when a client does not read, and what is kept for one that comes back."""

import pytest

from protos import stream_pb2 as pb
from runtime.serve.outbox import Ack, Outbox
from runtime.serve.status import Refused


def test_a_full_outbox_lets_provisional_go_then_reports_and_never_finals():
    box = Outbox(limit=4)
    for clip in range(4):
        box.put("provisional", response(), (0, clip, "h", 0))
    box.put("report", response())
    box.put("final", response(), (0, 0, "h", 1))
    assert [e.kind for e in box._queue] == ["provisional", "provisional", "report", "final"]
    for clip in range(3):
        box.put("final", response(), (0, clip + 1, "h", 1))
    assert [e.kind for e in box._queue] == ["final"] * 4
    assert box.dropped == 5
    box.put("provisional", response(), (0, 9, "h", 0))
    assert box.dropped == 6
    with pytest.raises(Refused, match="the client reads none"):
        box.put("final", response(), (0, 9, "h", 1))


def test_totals_that_were_not_sent_are_replaced():
    box = Outbox()
    for count in range(3):
        box.put("stats", pb.StreamResponse(stats=pb.StreamStats(clips_shed=count)))
    assert box.pop()[0].stats.clips_shed == 2
    assert box.pop() is None


def test_what_a_dropped_message_acknowledged_goes_with_a_later_one():
    box = Outbox(limit=2)
    box.put("provisional", response(), (0, 0, "h", 0))
    box.progress(Ack({"video": 7}, None))
    box.put("final", response(), (0, 0, "h", 1))
    box.put("final", response(), (0, 1, "h", 1))
    first, second = box.pop()[0], box.pop()[0]
    assert dict(first.ack_through_seq) == {"video": 7}
    assert not second.ack_through_seq


def test_what_was_forgotten_cannot_be_resumed():
    box = Outbox(kept=3)
    for clip in range(5):
        box.put("final", response(), (0, clip, "h", 0))
        box.pop()
    with pytest.raises(Refused) as caught:
        box.rewind(None)
    assert caught.value.code == "DATA_LOSS"
    with pytest.raises(Refused):
        box.rewind(1)
    box.rewind(2)
    assert [e.key[1] for e in box._queue] == [2, 3, 4]


def test_an_ack_lets_go_of_what_was_stored():
    box = Outbox()
    for clip in range(5):
        box.put("final", response(), (0, clip, "h", 0))
        box.pop()
    box.acknowledge((0, 2, "h", 0))
    box.acknowledge((0, 1, "h", 0))  # older: nothing new
    assert box.stats() == {"queued": 0, "kept": 2, "dropped": 0}
    with pytest.raises(Refused, match="was never sent"):
        box.acknowledge((0, 5, "h", 0))


def response() -> pb.StreamResponse:
    return pb.StreamResponse()
