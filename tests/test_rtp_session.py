"""RTP sessions: who speaks, when it was captured, what is lost, what reports say; hostile senders."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.packet import Decision, Packet
from runtime.rtcp import CNAME, Goodbye, SenderReport, SourceDescription, pack_rtcp
from runtime.rtp import RtpPacket
from runtime.rtp_session import RtpSession
from runtime.sdp import Format, static_format

H264 = Format(payload_type=96, encoding="H264", rate=90_000)
OPUS = Format(payload_type=97, encoding="OPUS", rate=48_000, channels=2)
PCMU = static_format(0)
IDR, P = b"\x65\x88" + b"i" * 30, b"\x41\x9a" + b"p" * 30
SOUND = b"\xfcsound"  # Opus, 20 ms
VIDEO_SSRC, AUDIO_SSRC = 0x11, 0x22


def session(*formats, delay=0.03):
    chosen = {f.modality: (0, {f.payload_type: f}) for f in formats or (H264, OPUS)}
    return RtpSession(chosen, delay)


def video(n, *, ssrc=VIDEO_SSRC, ticks=0, **fields):
    """The n-th of 25 frames a second, one packet each; every 25th a key frame."""
    fields = {"payload": P if n % 25 else IDR, "marker": True, "payload_type": 96, **fields}
    return bytes(RtpPacket(seq=n % 65536, timestamp=(n * 3600 + ticks) % 2**32, ssrc=ssrc, **fields))


def audio(n, *, ssrc=AUDIO_SSRC, ticks=0, **fields):
    """The n-th of 50 packets of sound a second."""
    fields = {"payload": SOUND, "payload_type": 97, **fields}
    return bytes(RtpPacket(seq=n % 65536, timestamp=(n * 960 + ticks) % 2**32, ssrc=ssrc, **fields))


def feed(target, datagrams):
    """(arrival, datagram) pairs, in order of arrival; the items that come out."""
    return [item for at, data in sorted(datagrams, key=lambda pair: pair[0]) for item in target.receive(data, at)]


def frames(items, modality="video"):
    return [i for i in items if isinstance(i, Packet) and i.modality == modality]


def report(ssrc, wall, timestamp):
    return pack_rtcp(SenderReport(ssrc=ssrc, ntp=int(Fraction(wall) * 2**32), timestamp=timestamp % 2**32))


def test_frames_are_captured_when_their_first_packet_arrived_and_then_as_timestamps_say():
    items = feed(session(H264), [(10 + n / 25 + (0.01 if n % 2 else 0), video(n, ticks=777)) for n in range(6)])
    got = frames(items)
    assert [p.seq for p in got] == list(range(6))
    assert [round(p.seconds, 4) for p in got] == [round(10 + n / 25, 4) for n in range(6)]
    assert [p.arrival for p in got[2:]] == [10 + n / 25 + (0.01 if n % 2 else 0) for n in range(2, 6)]
    assert got[0].arrival == got[1].arrival  # a sender is believed with its second packet
    assert (got[0].keyframe, got[1].keyframe, got[0].time_base) == (True, False, Fraction(1, 90_000))


def test_numbers_and_timestamps_wrap():
    start = 65_530
    items = feed(session(H264), [(n / 25, video(start + n, ticks=2**32 - 3600 * (start + 3))) for n in range(20)])
    got = frames(items)
    assert [p.seq for p in got] == list(range(20))
    assert [round(p.seconds * 25) for p in got] == list(range(20))


def test_reordered_packets_are_put_right_and_copies_dropped():
    arrivals = [(n / 25, video(n)) for n in range(10)]
    arrivals[4] = (5 / 25 + 0.01, arrivals[4][1])
    arrivals += [(0.3, video(7)), (0.31, video(7))]
    target = session(H264)
    got = frames(feed(target, arrivals))
    assert [p.seq for p in got] == list(range(10)) and not any(p.corrupt for p in got)
    stats = target.tracks["video"].stats
    assert (stats.duplicates, stats.lost, stats.discarded) == (2, 0, 0)


def test_a_hole_waits_its_time_and_no_longer():
    target = session(H264)
    feed(target, [(n / 25, video(n)) for n in range(4)])
    assert target.receive(video(5), 0.2) == []
    assert target.next_deadline == pytest.approx(0.23)
    assert target.advance(0.229) == []
    (got,) = target.advance(1.0)
    assert (got.seq, got.arrival) == (5, pytest.approx(0.23))
    assert target.receive(video(4), 1.1) == []
    assert (target.tracks["video"].stats.lost, target.tracks["video"].stats.discarded) == (0, 1)


def test_late_sound_keeps_its_place_so_that_a_clip_can_be_repaired():
    target = session(OPUS)
    items = feed(target, [(n / 50, audio(n)) for n in range(8) if n != 4])
    items += target.receive(audio(4), 0.4)
    assert [p.seq for p in frames(items, "audio")] == [0, 1, 2, 3, 5, 6, 7, 4]
    assert frames(items, "audio")[-1].capture_time == 4 * 960
    assert target.tracks["audio"].stats.lost == 0


def test_silence_is_no_loss():
    jumps = [(n / 50, audio(n)) for n in range(4)] + [(2 + n / 50, audio(n, ticks=96_000)) for n in range(4, 8)]
    got = frames(feed(session(OPUS), jumps), "audio")
    assert [p.seq for p in got] == list(range(8))
    assert got[4].seconds - got[3].seconds == pytest.approx(2.02)


def test_padding_other_payload_types_and_other_ssrcs_are_no_media():
    target = session(OPUS)
    others = [(0.05, audio(2, payload=b"", padding=8)), (0.07, audio(3, payload_type=101)), (0.09, audio(0, ssrc=9))]
    got = feed(target, [(0, audio(0)), (0.02, audio(1)), *others, (0.1, audio(4)), (0.12, audio(5))])
    assert [p.seq for p in frames(got, "audio")] == [0, 1, 2, 3]
    stats = target.tracks["audio"].stats
    assert (stats.ignored, stats.foreign, stats.lost) == (2, 1, 0)


def test_a_new_sender_goes_on_where_the_old_one_fell_silent():
    target = session(H264)
    before = feed(target, [(n / 25, video(n)) for n in range(10)])
    after = feed(target, [(1 + n / 25, video(n + 25_000, ssrc=7, ticks=12345)) for n in range(10)])
    assert [p.seq for p in frames(before)] == list(range(10))
    assert [p.seq for p in frames(after)] == list(range(11, 21)), "a hole says that nothing follows from what was"
    assert frames(after)[0].seconds == pytest.approx(1.0)
    assert target.tracks["video"].stats.senders == 2


def test_a_second_sender_beside_the_first_is_not_listened_to():
    target = session(H264)
    both = [(n / 25, video(n)) for n in range(20)] + [(n / 25 + 0.01, video(n, ssrc=7)) for n in range(20)]
    got = frames(feed(target, both))
    assert [p.seq for p in got] == list(range(20))
    assert target.tracks["video"].stats.foreign == 20


def test_after_a_goodbye_the_next_sender_is_heard_at_once_and_loses_nothing():
    target = session(H264)
    feed(target, [(n / 25, video(n)) for n in range(5)])
    target.receive(pack_rtcp(Goodbye(ssrcs=(VIDEO_SSRC,))), 0.17)
    assert target.gone
    got = feed(target, [(0.2 + n / 25, video(n, ssrc=7)) for n in range(3)])
    assert [p.keyframe for p in frames(got)] == [True, False, False]
    assert not target.gone


def test_a_sender_that_begins_its_numbers_anew_leaves_a_hole():
    target = session(H264)
    items = feed(target, [(n / 25, video(n)) for n in range(5)])
    items += feed(target, [(0.2 + n / 25, video(n + 30_000, ticks=-30_000 * 3600 + 5 * 3600)) for n in range(4)])
    assert [p.seq for p in frames(items)] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert target.tracks["video"].stats.restarts == 1


def test_a_timestamp_that_jumps_alone_is_malformed_and_one_that_goes_on_ties_the_clock_anew():
    target = session(H264)
    wild = [(n / 25, video(n, ticks=2**31 if n == 4 else 0)) for n in range(8)]
    got = frames(feed(target, wild))
    assert [p.seq for p in got] == [0, 1, 2, 3, 5, 6, 7] and target.tracks["video"].stats.malformed == 1
    moved = [(n / 25, video(n, ticks=90_000 * 3600)) for n in range(8, 12)]
    got = frames(feed(target, moved))
    assert [p.seq for p in got] == [8, 9, 10, 11]
    assert [round(p.seconds * 25) for p in got] == [8, 9, 10, 11]


def test_another_payload_type_changes_the_format():
    formats = {0: PCMU, 97: OPUS}
    target = RtpSession({"audio": (0, formats)})
    items = feed(target, [(n / 50, audio(n, payload_type=0, payload=b"u" * 160)) for n in range(4)])
    items += feed(target, [(0.08 + n / 50, audio(n + 4)) for n in range(3)])
    assert [i.seq for i in frames(items, "audio")] == list(range(7))
    (change,) = [i for i in items if isinstance(i, Decision)]
    assert (change.kind, change.codec.codec) == ("format_change", "opus")


def both(seconds, behind=0.3, start=0.0):
    """Video whose encoder holds pictures back for ``behind`` seconds, and sound that comes at once."""
    count = int(seconds * 25)
    pictures = [(start + n / 25 + behind, video(n, ticks=500)) for n in range(count)]
    return pictures + [(start + n / 50, audio(n, ticks=900)) for n in range(2 * count)]


def av_offset(items):
    """Sound's capture time minus the pictures', of what was captured together, in seconds, at the end."""
    picture, sound = frames(items)[-1], frames(items, "audio")[-1]
    return (sound.seconds - picture.seconds) - (2 * picture.seq - sound.seq) / -50


def test_sender_reports_put_sound_where_it_was_captured():
    alone = feed(session(), both(2))
    assert av_offset(alone) == pytest.approx(-0.3, abs=0.01)  # as they arrived
    early = [(0.0, report(VIDEO_SSRC, 1000, 500)), (0.0, report(AUDIO_SSRC, 1000, 900))]
    target = session()
    assert av_offset(feed(target, early + both(2))) == pytest.approx(0, abs=1e-4)
    assert target.tracks["audio"].steps == 1


def test_a_small_error_is_put_right_slowly():
    target = session()
    items = feed(target, both(1, behind=0.1))
    assert av_offset(items) == pytest.approx(-0.1, abs=0.01)
    target.receive(report(VIDEO_SSRC, 1000, 500), 1.2)
    target.receive(report(AUDIO_SSRC, 1000, 900), 1.2)
    later = [(at + 1, d) for at, d in ((n / 25 + 0.2, video(n + 25, ticks=500)) for n in range(100))]
    later += [(1.2 + n / 50, audio(n + 50, ticks=900)) for n in range(200)]
    got = feed(target, later)
    steps = [b.seconds - a.seconds for a, b in zip(frames(got, "audio"), frames(got, "audio")[1:], strict=False)]
    assert max(abs(step - 0.02) for step in steps) < 1.01e-3
    assert av_offset(got) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "reports",
    [
        [report(VIDEO_SSRC, 1000, 500)],  # one alone says nothing
        [report(VIDEO_SSRC, 1000, 500), report(AUDIO_SSRC, 9000, 900)],  # clocks that were never set
        [report(VIDEO_SSRC, 1000, 500), report(77, 1000, 900)],  # of somebody else
        [report(VIDEO_SSRC, 0, 500), report(AUDIO_SSRC, 0, 900)],  # no wall clock
    ],
)
def test_reports_that_cannot_be_used_move_nothing(reports):
    target = session()
    items = feed(target, both(1) + [(1.5, r) for r in reports])
    items += feed(target, [(2 + n / 25, video(n + 25, ticks=500)) for n in range(20)])
    assert av_offset(items + feed(target, [(3, audio(50, ticks=900))])) == pytest.approx(-0.3, abs=0.01)


def test_senders_with_different_names_have_clocks_that_differ():
    target = session()
    names = [
        pack_rtcp(SourceDescription(chunks=((ssrc, ((CNAME, name),)),)))
        for ssrc, name in ((VIDEO_SSRC, b"camera"), (AUDIO_SSRC, b"phone"))
    ]
    items = feed(target, both(1))
    for data in (*names, report(VIDEO_SSRC, 1000, 500), report(AUDIO_SSRC, 1000, 900)):
        target.receive(data, 1.5)
    assert av_offset(items) == pytest.approx(-0.3, abs=0.01)
    assert target.tracks["audio"].sender.target is None


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.3))
@settings(max_examples=25)
def test_what_comes_out_is_numbered_once_and_in_order(seed, loss):
    """Any loss, order and copies: numbers of a modality never repeat, pictures never go back, RTP packets add up."""
    rng = random.Random(seed)
    target = session()
    arrivals = []
    for at, data in both(2):
        for _ in range(rng.choice((1, 1, 1, 2))):
            if rng.random() >= loss:
                arrivals.append((at + rng.random() * 0.08, data))
    items = feed(target, arrivals) + target.finish(9.0)
    for modality, track in target.tracks.items():
        seqs = [p.seq for p in frames(items, modality)]
        assert len(seqs) == len(set(seqs))
        if modality == "video":
            assert seqs == sorted(seqs)
        stats = track.stats
        made = len(seqs) + stats.duplicates + stats.discarded + stats.foreign + stats.ignored + stats.refused
        assert stats.received == made
    arrived = [i.arrival for i in items]
    assert arrived == sorted(arrived)


@given(st.lists(st.one_of(st.binary(max_size=60), st.integers(0, 60)), max_size=80), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_nothing_that_comes_is_an_exception(script, seed):
    """Random bytes, and real packets with anything in their fields."""
    rng = random.Random(seed)
    target, now = session(), 0.0
    for step in script:
        now += rng.random() / 20
        data = step if isinstance(step, bytes) else hostile(rng, step)
        for item in target.receive(data, now):
            assert item.arrival <= now
    target.finish(now)


def hostile(rng, n):
    """A packet that is right in most ways."""
    data = bytearray(rng.choice((video, audio))(n))
    for _ in range(rng.choice((0, 0, 1, 3))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data) + 1)))])


def test_jumps_of_a_million_and_floods_of_senders_take_no_memory():
    target, rng = session(H264), random.Random(1)
    feed(target, [(n / 25, video(n)) for n in range(10)])
    for n in range(6_000):
        target.receive(video(n, ssrc=rng.randrange(2**32)), 1 + n * 1e-5)
        target.receive(video(rng.randrange(10**6)), 1 + n * 1e-5)
    track = target.tracks["video"]
    assert len(track._candidates) <= 16
    assert len(track.sender.reorder._queue) <= 2048 and len(track.sender.reorder._missing) <= 4096
    assert len(target._early) <= 16
