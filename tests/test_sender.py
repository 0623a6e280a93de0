"""What a client keeps until it is acknowledged: nothing needed is lost, memory is bounded, a gap is said to be one."""

import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import stream_pb2 as pb
from runtime.errors import SourceError
from runtime.packet import Decision, Packet
from runtime.serve import outgoing
from runtime.serve.capture import Capture
from runtime.serve.outgoing import Outgoing, Pace
from runtime.serve.sender import Kept, Reread
from tests.fakes import CODECS, INFO, FakeClock, ListSource, packet

WIDER = replace(CODECS["video"], width=64, height=48)
CHANGE = Decision(kind="format_change", modality="video", arrival=0.0, codec=WIDER)


def taken(feed):
    """Everything that can be taken now, by name."""
    items = []
    while (item := feed.take()) is not None:
        items.append(item)
    return [name(item) for item in items]


def name(item):
    return f"{item.modality[0]}{item.seq}" if isinstance(item, Packet) else item.kind


def video(*seqs):
    return [packet(seq=seq) for seq in seqs]


def feeds(items):
    """The same items, read again and kept."""
    return [Reread(lambda: ListSource(items)), Kept(INFO, iter(items))]


def mixed(count):
    return [p for i in range(count) for p in (packet(seq=i), packet("audio", i))]


@pytest.mark.parametrize("which", [0, 1])
def test_everything_is_taken_once_in_order(which):
    feed = feeds(mixed(2))[which]
    feed.rewind()
    assert taken(feed) == ["v0", "a0", "v1", "a1"]
    assert feed.ended
    assert feed.last_seq == {"video": 1, "audio": 1}


@pytest.mark.parametrize("which", [0, 1])
def test_after_a_cut_sending_goes_on_behind_what_is_acknowledged(which):
    feed = feeds(mixed(4))[which]
    feed.rewind()
    taken(feed)
    feed.acknowledge({"video": 1, "audio": 2})
    feed.rewind()
    assert not feed.ended
    assert taken(feed) == ["v2", "v3", "a3"]


@pytest.mark.parametrize("which", [0, 1])
def test_an_acknowledgement_never_goes_back(which):
    feed = feeds(video(0, 1, 2))[which]
    feed.rewind()
    taken(feed)
    feed.acknowledge({"video": 1})
    feed.acknowledge({"video": 0})
    feed.rewind()
    assert taken(feed) == ["v2"]


@pytest.mark.parametrize("which", [0, 1])
def test_packets_out_of_order_are_judged_by_their_numbers(which):
    feed = feeds(video(0, 2, 3, 1, 5))[which]
    feed.rewind()
    taken(feed)
    feed.acknowledge({"video": 2})
    feed.rewind()
    assert taken(feed) == ["v3", "v5"]
    assert feed.last_seq == {"video": 5}


@pytest.mark.parametrize("which", [0, 1])
def test_a_change_of_format_that_was_passed_is_in_the_codecs(which):
    feed = feeds([*video(0, 1), CHANGE, *video(2, 3)])[which]
    assert feed.rewind()["video"] == CODECS["video"]
    assert taken(feed) == ["v0", "v1", "format_change", "v2", "v3"]
    feed.acknowledge({"video": 0})
    assert feed.rewind()["video"] == CODECS["video"]
    assert taken(feed) == ["v1", "format_change", "v2", "v3"]
    feed.acknowledge({"video": 1})
    assert feed.rewind()["video"] == WIDER
    assert taken(feed) == ["v2", "v3"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("va"), st.integers(0, 9)), max_size=30),
    st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 9), st.integers(-1, 9)), max_size=5),
)
def test_both_ways_of_keeping_agree(order, cuts):
    items = [packet("video" if m == "v" else "audio", seq) for m, seq in order]
    one, other = feeds(items)
    for feed in (one, other):
        feed.rewind()
    for count, v, a in cuts:
        through = {m: seq for m, seq in (("video", v), ("audio", a)) if seq >= 0}
        for feed in (one, other):
            for _ in range(count):
                feed.take()
            feed.acknowledge(through)
        assert one.rewind() == other.rewind()
    assert taken(one) == taken(other)


def test_a_file_is_opened_again_and_closed():
    opened = []

    def again():
        opened.append(ListSource(video(0, 1)))
        return opened[-1]

    feed = Reread(again)
    feed.rewind()
    assert len(opened) == 1  # what was opened for its description is read
    feed.take()
    feed.rewind()
    assert taken(feed) == ["v0", "v1"]
    feed.close()
    assert [source.closed for source in opened] == [True, True]


def test_an_earlier_clients_acknowledgements_count():
    feed = Reread(lambda: ListSource(video(0, 1, 2)), {"video": 1})
    feed.rewind()
    assert taken(feed) == ["v2"]


# -- bounded memory ---------------------------------------------------------------------------------------------------


def test_a_file_waits_for_room():
    feed = Kept(INFO, iter(video(*range(10))), max_bytes=1500)  # about 500 a packet
    feed.rewind()
    assert taken(feed) == ["v0", "v1", "v2"]
    assert feed.blocked
    assert not feed.ended
    feed.acknowledge({"video": 0})
    assert not feed.blocked
    assert taken(feed) == ["v3"]
    assert feed.dropped == 0


def live(**bounds):
    return Kept(INFO, **bounds)


def put(feed, items):
    for item in items:
        feed.put(item)


def test_a_live_source_drops_the_oldest_and_says_so():
    feed = live(max_bytes=2100)
    feed.rewind()
    put(feed, video(*range(10)))
    assert feed.bytes <= 2100
    assert taken(feed) == ["v6", "v7", "v8", "v9"]
    [gap] = feed.gaps()
    assert (gap.modality, gap.first_seq, gap.count) == ("video", 0, 6)
    assert (gap.start, round(gap.end, 3)) == (0.0, 0.24)
    assert feed.gaps() == []


def test_whole_groups_of_pictures_go():
    group = [packet(seq=i, keyframe=i % 5 == 0) for i in range(10)]
    feed = live(max_bytes=9 * 501)
    feed.rewind()
    put(feed, group)  # one too many: 0 goes, and with it all that hangs on it
    assert taken(feed) == ["v5", "v6", "v7", "v8", "v9"]
    assert [(g.first_seq, g.count) for g in feed.gaps()] == [(0, 5)]


def test_pictures_that_hang_on_a_dropped_one_never_get_in():
    feed = live(max_bytes=2 * 501)
    feed.rewind()
    put(feed, [packet(seq=i, keyframe=i in (0, 7)) for i in range(9)])
    assert taken(feed) == ["v7", "v8"]
    assert [(g.first_seq, g.count) for g in feed.gaps()] == [(0, 7)]


def test_sound_goes_on_while_a_keyframe_is_waited_for():
    feed = live(max_bytes=2 * 501)
    feed.rewind()
    put(feed, [packet(seq=i, keyframe=i == 0) for i in range(3)])
    put(feed, [packet("audio", 0), packet(seq=3, keyframe=False), packet("audio", 1)])
    assert taken(feed) == ["a0", "a1"]


def test_what_the_server_has_had_is_no_gap():
    feed = live(max_bytes=2100)
    feed.rewind()
    for p in video(*range(10)):
        feed.put(p)
        assert feed.take() is p
    assert feed.gaps() == []
    assert feed.dropped == 0
    feed.rewind()  # but a fresh server does not get it any more
    assert taken(feed) == ["v6", "v7", "v8", "v9"]


def test_time_bounds_what_is_kept():
    feed = live(max_seconds=1.0)
    feed.rewind()
    put(feed, [replace(p, arrival=p.seconds) for p in video(*range(50))])
    assert taken(feed)[0] == "v24"


def test_a_change_of_format_is_told_although_the_pictures_before_it_went():
    feed = live(max_bytes=2100)
    feed.rewind()
    put(feed, [*video(0, 1), CHANGE, *video(2, 3, 4, 5)])
    assert taken(feed)[0] == "format_change"
    assert feed.rewind()["video"] in (CODECS["video"], WIDER)


@settings(max_examples=60)
@given(st.data())
def test_memory_is_bounded_and_every_packet_is_sent_or_a_gap(data):
    feed = live(max_bytes=4000)
    feed.rewind()
    sent, seq = [], 0
    for step in data.draw(st.lists(st.sampled_from(["put", "key", "take", "ack"]), max_size=60)):
        if step in ("put", "key"):
            feed.put(packet(seq=seq, keyframe=step == "key"))
            seq += 1
        elif step == "take":
            item = feed.take()
            sent += [item.seq] if item is not None else []
        elif sent:
            feed.acknowledge({"video": data.draw(st.sampled_from(sent))})
        assert feed.bytes <= 4000
    sent += [int(n[1:]) for n in taken(feed)]
    lost = [s for gap in feed.gaps() for s in range(gap.first_seq, gap.first_seq + gap.count)]
    assert sorted(sent + lost) == list(range(seq))
    assert feed.dropped == len(lost)


def test_capture_reads_while_nobody_takes():
    source = ListSource(video(*range(20)))
    feed = Capture(source, max_bytes=2100)
    feed._thread.join(5)
    feed.rewind()
    assert taken(feed) == ["v16", "v17", "v18", "v19"]
    assert feed.ended
    assert [gap.count for gap in feed.gaps()] == [16]
    feed.close()
    assert source.closed


def test_capture_hands_on_what_the_source_raised():
    class Broken(ListSource):
        def packets(self):
            yield from video(0)
            raise SourceError("the cable is out")

    feed = Capture(Broken([]))
    feed._thread.join(5)
    feed.rewind()
    assert name(feed.take()) == "v0"
    with pytest.raises(SourceError, match="cable"):
        feed.take()


# -- messages ---------------------------------------------------------------------------------------------------------


def outgo(items, *, realtime=False, clock=None, batch_seconds=0.1, feed=None):
    clock = clock or FakeClock()
    feed = feed or Kept(INFO, iter(items))
    pace = Pace(clock, realtime=realtime, batch_seconds=batch_seconds)
    out = Outgoing(pb.StreamConfig(), feed, feed.rewind(), pace, nullcontext(), rest=clock.move)
    out.start()
    return out


def kinds(messages):
    return [m.WhichOneof("request") for m in messages]


def until_the_end(out, clock=None):
    messages = []
    while not out.ends_sent:
        messages.append(next(out))
    return messages


def test_messages_come_in_their_order():
    messages = until_the_end(outgo([*mixed(2), CHANGE, *video(2)]))
    assert kinds(messages) == ["config", "packets", "codec", "packets", "end_of_stream", "end_of_stream"]
    assert [p.seq for p in messages[1].packets.packets] == [0, 0, 1, 1]
    assert messages[2].codec.width == 64
    assert [(m.end_of_stream.modality, m.end_of_stream.last_seq) for m in messages[4:]] == [(1, 2), (2, 1)]


def test_no_packet_leaves_before_the_server_has_answered():
    out = outgo(mixed(1))
    out._started.clear()
    assert kinds([next(out)]) == ["config"]
    assert out._poll() is None
    out.start()
    assert kinds([next(out)]) == ["packets"]


def test_real_time_means_never_early_and_batches_of_a_tenth():
    clock = FakeClock()
    items = sorted((replace(p, arrival=p.seconds) for p in mixed(100)), key=lambda p: p.seconds)
    out = outgo(items, realtime=True, clock=clock)
    sent = []
    while not out.ends_sent:
        message = next(out)
        sent += [(clock.seconds, p) for p in message.packets.packets]
        batch = [p.capture_time for p in message.packets.packets if p.modality == pb.MODALITY_VIDEO]
        assert not batch or max(batch) - min(batch) <= 100
    assert len(sent) == 200
    late = [at - p.capture_time / 1000 for at, p in sent]
    assert min(late) >= -1e-9
    assert max(late) <= 0.1 + 1e-9


def test_a_stream_taken_up_again_catches_up_and_keeps_its_pace():
    clock, items = FakeClock(), [replace(p, arrival=p.seconds) for p in video(*range(100))]
    feed, pace = Kept(INFO, iter(items)), Pace(clock, realtime=True, batch_seconds=0.1)
    first = Outgoing(pb.StreamConfig(), feed, feed.rewind(), pace, nullcontext(), rest=clock.move)
    first.start()
    for _ in range(4):
        next(first)
    clock.move(2.0)  # nobody was there
    again = Outgoing(pb.StreamConfig(), feed, feed.rewind(), pace, nullcontext(), rest=clock.move)
    again.start()
    next(again)
    at, batch = clock.seconds, next(again).packets.packets
    assert clock.seconds == at  # at once
    assert batch[0].seq == 0
    assert 2.0 <= batch[-1].capture_time / 1000 <= at
    until_the_end(again)
    assert clock.seconds == pytest.approx(99 * 0.04, abs=0.2)


def test_acknowledgements_go_out_also_after_the_end():
    clock = FakeClock()
    out = outgo(video(0), clock=clock)
    until_the_end(out)
    out.acknowledge(("s", 0, 7, "count", 1))
    message = next(out)
    assert (message.ack.prediction.stream, message.ack.prediction.clip) == ("s", 7)
    out.acknowledge(("s", 0, 8, "count", 1))
    before = clock.seconds
    assert next(out).ack.prediction.clip == 8
    assert clock.seconds - before >= outgoing.ACK_SECONDS - 1e-9


def test_a_batch_is_bounded():
    out = outgo(video(*range(1000)))
    sizes = [len(m.packets.packets) for m in until_the_end(out) if m.HasField("packets")]
    assert sum(sizes) == 1000
    assert max(sizes) <= outgoing.BATCH_PACKETS


def test_closing_ends_the_iteration_from_another_thread():
    out = Outgoing(pb.StreamConfig(), Kept(INFO), CODECS, Pace(FakeClock(), realtime=False, batch_seconds=0.1),
                   nullcontext())  # fmt: skip
    said = []
    thread = threading.Thread(target=lambda: said.extend(out))
    thread.start()
    out.close()
    thread.join(2)
    assert not thread.is_alive()
    assert len(said) <= 1


def test_video_in_containers_clothes_is_undressed():
    from tests.test_annexb import AVCC, START_CODE

    info = replace(INFO, codecs={"video": replace(CODECS["video"], codec="h264", extradata=AVCC)})
    item = replace(packet(), payload=b"\0\0\0\x02\x65\x88")
    messages = until_the_end(outgo([], feed=Kept(info, iter([item]))))
    assert messages[0].config.codecs[0].extradata.startswith(START_CODE)
    assert messages[1].packets.packets[0].payload == START_CODE + b"\x65\x88"
