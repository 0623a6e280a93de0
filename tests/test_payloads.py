"""Payloads and the frames made of them: what a lost, late or broken RTP packet means for the frame it was of."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.depacketize import Pictures, Sound
from runtime.payloads import (
    START_CODE,
    looks_like_h264,
    opus_samples,
    packetize_h264,
    split_h264,
    starts_picture,
)
from runtime.reorder import Arrived, Hole, ReorderBuffer
from runtime.rtp import RtpError, RtpPacket, parse_rtp

DATA = Path(__file__).parent / "data" / "rtp"
STEP = 3600  # ticks between frames at 25 a second
SPS, PPS, SEI = b"\x67\x42\xc0\x0c", b"\x68\xce\x3c\x80", b"\x06\x05\x01\xff\x80"
IDR = b"\x65\x88" + bytes(range(1, 250)) * 12  # in three packets of 1200
P, B = b"\x41\x9a" + b"p" * 200, b"\x01\x9a" + b"b" * 100
P_LONG = b"\x41\x9a" + b"q" * 3000
SECOND_SLICE = b"\x41\x02" + b"s" * 200  # first_mb_in_slice is not 0


def golden(name):
    return parse_rtp((DATA / f"{name}.bin").read_bytes()).payload


class Wire:
    """A sender that numbers its packets; frames are lists of NAL units."""

    def __init__(self, first=0):
        self.seq = first
        self.packets = []

    def frame(self, units, at, *, marker=True, mtu=1200):
        for payload, last in packetize_h264(units, mtu):
            packet = RtpPacket(
                payload_type=96,
                seq=self.seq % 65536,
                timestamp=at * STEP,
                ssrc=1,
                payload=payload,
                marker=last and marker,
            )
            self.packets.append(Arrived(self.seq, packet, at / 25))
            self.seq += 1
        return self

    def stream(self, *frames, **options):
        for at, units in enumerate(frames):
            self.frame(units if isinstance(units, list) else [units], at, **options)
        return self


def received(packets, lost=()):
    """The frames of what came; ``lost``: places in ``packets``."""
    pictures, out, last = Pictures(), [], None
    for place, arrived in enumerate(packets):
        if place in lost:
            continue
        if last is not None and arrived.number != last + 1:
            out += pictures.lose(arrived.number - last - 1)
        out += pictures.push(arrived, arrived.packet.timestamp)
        last = arrived.number
    return out + pictures.flush()


def summary(units):
    return [(u.seq, u.timestamp // STEP, u.corrupt) for u in units]


def test_captured_payloads_of_each_kind():
    (single,) = split_h264(golden("h264_single"))
    assert (single.kind, len(single.data), single.first, single.last) == (1, 198, True, True)
    assert [n.kind for n in split_h264(golden("h264_stap_a"))] == [7, 8, 6]
    (start,) = split_h264(golden("h264_fu_a_start"))
    assert (start.kind, start.first, start.last, start.data[:1]) == (5, True, False, b"\x65")
    assert opus_samples(golden("opus")) == 960


@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=8), st.integers(60, 300))
def test_what_is_packetized_comes_back(bodies, mtu):
    units = [b"\x41" + body for body in bodies]
    payloads = packetize_h264(units, mtu)
    assert all(len(p) <= mtu for p, _ in payloads)
    assert [marker for _, marker in payloads] == [False] * (len(payloads) - 1) + [True]
    wire = Wire().frame(units, 0, mtu=mtu)
    (unit,) = received(wire.packets)
    assert unit.payload == b"".join(START_CODE + u for u in units)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ("", "H.264 payload is empty"),
        ("00", "H.264 payload has the reserved NAL unit type 0"),
        ("7e", "H.264 payload has the reserved NAL unit type 30"),
        ("79", "H.264 payload is a STAP-B; interleaved packetization is not supported, use mode 0 or 1"),
        ("7d", "H.264 payload is a FU-B; interleaved packetization is not supported, use mode 0 or 1"),
        ("78", "H.264 STAP-A holds no NAL unit"),
        ("7800", "H.264 STAP-A announces a NAL unit of 0 bytes, and 0 are left"),
        ("780003aabb", "H.264 STAP-A announces a NAL unit of 3 bytes, and 2 are left"),
        ("780000", "H.264 STAP-A holds a NAL unit of 0 bytes"),
        ("78000178", "H.264 STAP-A holds a NAL unit of type 24"),
        ("7c", "H.264 FU-A ends within its header"),
        ("7c80", "H.264 FU-A carries a NAL unit of type 0"),
        ("7c9c", "H.264 FU-A carries a NAL unit of type 28"),
    ],
)
def test_a_broken_payload_is_named(payload, sentence):
    with pytest.raises(RtpError) as caught:
        split_h264(bytes.fromhex(payload))
    assert str(caught.value) == sentence


def test_frames_that_came_whole():
    wire = Wire().stream([SPS, PPS, SEI, IDR], P, P_LONG, B)
    units = received(wire.packets)
    assert summary(units) == [(0, 0, False), (1, 1, False), (2, 2, False), (3, 3, False)]
    assert [u.keyframe for u in units] == [True, False, False, False]
    assert [u.disposable for u in units] == [False, False, False, True]
    assert units[0].payload == b"".join(START_CODE + u for u in (SPS, PPS, SEI, IDR))


@pytest.mark.parametrize("place", range(4))
def test_a_frame_that_lacks_any_one_of_its_packets_is_corrupt_and_no_other(place):
    wire = Wire().stream([SPS, PPS, IDR], P_LONG, P, P)
    assert len(wire.packets) == 1 + 3 + 3 + 1 + 1
    units = received(wire.packets, lost={4 + place} if place < 3 else {7})
    if place < 3:
        assert summary(units) == [(0, 0, False), (1, 1, True), (2, 2, False), (3, 3, False)]
    else:
        assert summary(units) == [(0, 0, False), (1, 1, False), (3, 3, False)]  # all of it lost: a number is missing


def test_what_there_is_of_a_frame_is_handed_on_up_to_the_hole():
    wire = Wire().stream([SPS, PPS, IDR], P)
    (first, _) = received(wire.packets, lost={2})
    assert first.payload.startswith(START_CODE + SPS + START_CODE + PPS + START_CODE + IDR[:1000])
    assert first.payload[4 + 4 + 4 + 4 + 4 :] == IDR[:1199]
    assert (first.corrupt, first.keyframe) == (True, False)


def test_a_run_that_takes_an_end_a_whole_frame_and_a_beginning():
    wire = Wire().stream([SPS, IDR], P, P_LONG, P, P, P_LONG, P)
    places = [i for i, a in enumerate(wire.packets) if a.packet.timestamp // STEP == 2]
    after = [i for i, a in enumerate(wire.packets) if a.packet.timestamp // STEP == 5]
    units = received(wire.packets, lost=set(range(places[2], after[1])))
    assert summary(units) == [(0, 0, False), (1, 1, False), (2, 2, True), (5, 5, True), (6, 6, False)]


def test_lost_parameter_sets_count_no_frame():
    wire = Wire().stream([SPS, PPS, b"\x65\x88" + b"i" * 1500], P, P, P, [SPS, PPS, b"\x65\x88" + b"i" * 1500], P)
    sets = next(i for i, a in enumerate(wire.packets) if a.packet.timestamp == 4 * STEP)
    assert split_h264(wire.packets[sets].packet.payload)[0].kind == 7
    assert summary(received(wire.packets, lost={sets})) == [(n, n, False) for n in range(6)]


def test_a_lost_slice_in_the_middle_is_seen_by_its_number_and_a_lost_first_slice_by_its_place():
    wire = Wire().stream([IDR], [P, SECOND_SLICE, SECOND_SLICE], P, mtu=210)
    own = [i for i, a in enumerate(wire.packets) if a.packet.timestamp == STEP]
    assert len(own) == 3
    for lost in own:
        assert [c for _, _, c in summary(received(wire.packets, lost={lost}))] == [False, True, False]


def test_b_frames_lost_before_any_step_back_was_seen():
    wire = Wire()
    for units, at in (([IDR], 0), ([P], 1), ([P], 4), ([P], 2), ([B], 3), ([P], 5)):
        wire.frame(units, at)
    lost = next(i for i, a in enumerate(wire.packets) if a.packet.timestamp == 2 * STEP)
    times = [1.0] * 3 + [1.04, 1.08, 1.12, 1.16, 1.2]  # arrivals go on while timestamps go back
    packets = [Arrived(a.number, a.packet, at) for a, at in zip(wire.packets, times, strict=True)]
    units = received(packets, {lost})
    assert [(u.seq, u.timestamp // STEP) for u in units] == [(0, 0), (1, 1), (2, 4), (4, 3), (5, 5)]
    assert not any(u.corrupt for u in units)


def test_joining_in_mid_stream_gives_damage_until_decoding_can_start():
    units = received(Wire().stream(P, P, [SPS, IDR], P).packets)
    assert [u.corrupt for u in units] == [True, False, False, False]  # the first spoils what follows, as a reference
    disposable_first = received(Wire().stream(B, B, P, P, [SPS, IDR]).packets)
    assert [u.corrupt for u in disposable_first] == [True, True, True, False, False]


def test_joining_within_a_key_frame_is_no_key_frame():
    whole = Wire().stream([IDR], P)
    units = received(whole.packets[1:])
    assert summary(units) == [(0, 0, True), (1, 1, True)]  # and what follows is no place to start either
    assert not units[0].keyframe
    slices = Wire().stream([IDR[:150], b"\x65\x02" + b"i" * 150], P, mtu=160)
    assert [u.keyframe for u in received(slices.packets[1:])] == [False, False]


def test_without_marker_bits_a_new_timestamp_ends_a_frame():
    units = received(Wire().stream([SPS, IDR], P, P_LONG, P, marker=False).packets)
    assert summary(units)[:3] == [(0, 0, False), (1, 1, False), (2, 2, False)]


def test_a_sender_that_marks_every_slice_is_found_out():
    wire = Wire()
    for at in range(4):
        for unit in (IDR[:100] if at == 0 else P, SECOND_SLICE):
            wire.frame([unit], at)
    units = received(wire.packets)
    assert [u.timestamp // STEP for u in units] == [0, 0, 1, 2, 3]  # only the first frame came in two
    assert not any(u.corrupt for u in units[:-1])


def test_parameter_sets_marked_as_a_frame_of_their_own_travel_with_the_picture():
    wire = Wire().frame([SPS, PPS], 0).frame([IDR], 1).frame([P], 2)
    units = received(wire.packets)
    assert summary(units) == [(0, 1, False), (1, 2, False)]
    assert units[0].payload.startswith(START_CODE + SPS + START_CODE + PPS + START_CODE + b"\x65")


def test_a_fragment_without_its_start_gives_nothing_of_its_unit():
    fragment = RtpPacket(payload_type=96, seq=0, timestamp=0, ssrc=1, payload=b"\x7c\x45rest", marker=True)
    (unit,) = received([Arrived(0, fragment, 0.0)])
    assert (unit.payload, unit.corrupt, unit.keyframe) == (b"", True, False)


def test_a_malformed_packet_spoils_its_own_frame():
    wire = Wire().stream([SPS, IDR], P, P)
    bad = RtpPacket(payload_type=96, seq=wire.seq, timestamp=3 * STEP, ssrc=1, payload=b"\x78\x00\x09x", marker=True)
    pictures, out = Pictures(), []
    for arrived in [*wire.packets, Arrived(wire.seq, bad, 0.12)]:
        out += pictures.push(arrived, arrived.packet.timestamp)
    assert [c for _, _, c in summary(out)] == [False, False, False, True]
    assert pictures.malformed == 1


def test_the_first_fragments_of_a_frame_are_bounded():
    pictures, out = Pictures(), []
    for n in range(9):
        header = 0x85 if n == 0 else 0x05
        payload = bytes([0x7C, header]) + bytes(1 << 20)
        packet = RtpPacket(payload_type=96, seq=n, timestamp=0, ssrc=1, payload=payload, marker=n == 8)
        out += pictures.push(Arrived(n, packet, 0.0), 0)
    assert out[0].corrupt and len(out[0].payload) <= 8 << 20


KINDS = {"P": [P], "long": [P_LONG], "slices": [P, SECOND_SLICE], "key": [SPS, PPS, IDR]}


@given(
    st.lists(st.sampled_from(sorted(KINDS)), min_size=3, max_size=12),
    st.sampled_from([210, 700, 1200]),
    st.sets(st.floats(0, 1, exclude_max=True), max_size=20),
)
@settings(max_examples=60)
def test_frames_with_a_loss_are_corrupt_or_missing_and_all_others_whole(kinds, mtu, places):
    """The law of this file, for any pattern of losses that leaves the first two frames and the last."""
    sent = [[SPS, IDR], [P], *(KINDS[kind] for kind in kinds), [P]]
    wire = Wire(first=65530).stream(*sent, mtu=mtu)
    free = [i for i, a in enumerate(wire.packets) if 1 < a.packet.timestamp // STEP < len(sent) - 1]
    lost = {free[int(place * len(free))] for place in places}
    hit = {wire.packets[i].packet.timestamp // STEP for i in lost}
    units = received(wire.packets, lost)
    whole = {u.timestamp // STEP: u for u in units if not u.corrupt}
    for at, nals in enumerate(sent):
        if at not in hit:
            assert whole[at].payload.endswith(b"".join(START_CODE + n for n in nals))
        elif at in whole:  # nothing but parameter sets is missing
            assert whole[at].payload.endswith(START_CODE + nals[-1]) and len(nals) == 3
    assert [u.seq for u in units] == [u.timestamp // STEP for u in units], "as many numbers are missing as frames"


def sound(numbers, payload=b"\xfcxx"):
    return [
        Arrived(n, RtpPacket(payload_type=97, seq=n % 65536, timestamp=n * 960, ssrc=1, payload=payload), n / 50)
        for n in numbers
    ]


def test_each_packet_of_sound_is_a_frame_and_each_lost_number_a_lost_frame():
    frames = Sound()
    units = [u for a in sound([7, 8, 11, 12]) for u in frames.push(a, a.packet.timestamp)]
    assert [u.seq for u in units] == [0, 1, 4, 5]
    assert {u.duration for u in units} == {960}
    (late,) = sound([9])
    assert [u.seq for u in frames.late(late, late.packet.timestamp)] == [2]


def test_padding_is_not_missed_and_late_packets_before_it_keep_their_place():
    frames = Sound()
    seqs = [u.seq for a in sound([0, 1, 3]) for u in frames.push(a, 0)]
    frames.pass_over(sound([4])[0])
    seqs += [u.seq for a in sound([5, 7]) for u in frames.push(a, 0)]
    assert seqs == [0, 1, 3, 4, 6]
    assert [frames.late(sound([n])[0], 0)[0].seq for n in (2, 6)] == [2, 5]


def test_numbers_lost_before_padding_stay_lost():
    frames = Sound()
    (first,) = frames.push(sound([0])[0], 0)
    frames.pass_over(sound([3])[0])
    (after,) = frames.push(sound([4])[0], 0)
    assert (first.seq, after.seq) == (0, 3)  # 1 and 2 were lost


def test_broken_sound_keeps_its_number():
    frames = Sound()
    (unit,) = frames.push(sound([0], b"\x03")[0], 0)
    assert (unit.payload, unit.corrupt, frames.malformed) == (b"", True, 1)


@pytest.mark.parametrize(
    ("packet", "milliseconds"),
    [
        ("00", 10),
        ("18aa", 60),
        ("60", 10),
        ("80", 2.5),
        ("fc00", 20),
        ("fdaabb", 40),
        ("fe01aabb", 40),
        ("ff03aabbcc", 60),
        ("ff8301020a1a1b2b2b2b", 60),
        ("0b0200", 0),
        ("ff4102aa0000", 20),
    ],
)
def test_how_long_an_opus_packet_lasts(packet, milliseconds):
    data = bytes.fromhex(packet)
    if not milliseconds:
        with pytest.raises(RtpError):
            opus_samples(data)
    else:
        assert opus_samples(data) == milliseconds * 48


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        ("", "Opus packet is empty"),
        ("fdaabbcc", "Opus packet of two equal frames has 3 bytes for them, an odd number"),
        ("fe09aa", "Opus frame announces 9 bytes, and 1 are left"),
        ("fefd", "Opus packet ends within a frame length"),
        ("ff", "Opus packet of many frames holds none"),
        ("ff00", "Opus packet of many frames holds none"),
        ("ff41", "Opus packet ends within its padding length"),
        ("ff02aabbcc", "Opus frames do not fit: 3 bytes are left for 2 frames"),
        ("1b03aabbcc", "Opus packet lasts 180 ms; 120 ms is the most"),
    ],
)
def test_a_broken_opus_packet_is_named(packet, sentence):
    with pytest.raises(RtpError) as caught:
        opus_samples(bytes.fromhex(packet))
    assert str(caught.value) == sentence


@given(st.binary(max_size=300))
def test_any_payload_is_read_or_refused(payload):
    for read in (split_h264, opus_samples):
        try:
            read(payload)
        except RtpError as error:
            assert str(error)


def test_what_starts_a_picture():
    assert all(starts_picture(split_h264(unit)[0]) for unit in (P, IDR, SPS, PPS, SEI, b"\x09\x10"))
    assert not any(starts_picture(split_h264(unit)[0]) for unit in (SECOND_SLICE, b"\x0c\xff", b"\x41", b"\x7c\x05aa"))


def test_h264_is_told_from_noise_and_sound():
    payloads = [golden(name) for name in ("h264_stap_a", "h264_fu_a_start", "h264_single")]
    assert looks_like_h264(payloads)
    assert not looks_like_h264([golden("opus")] * 8)
    assert not looks_like_h264([SPS, PPS])  # and no picture
    assert not looks_like_h264([b"\x05\x88aaa"])  # an IDR picture that nobody refers to


def test_packets_are_put_in_order_and_holes_wait_from_the_first_packet_behind_them():
    buffer = ReorderBuffer(delay=0.1)
    packet = RtpPacket(payload_type=0, seq=0, timestamp=0, ssrc=0)
    assert [a.number for a in buffer.push(5, packet, 0.0)] == [5]
    assert buffer.push(8, packet, 1.0) == [] == buffer.push(7, packet, 1.05)
    assert buffer.next_deadline == pytest.approx(1.1)
    assert list(buffer.poll(1.09)) == []
    hole, seven, eight = buffer.poll(1.1)
    assert (hole, seven.number, eight.number) == (Hole(6, 1, pytest.approx(1.1)), 7, 8)
    (late,) = buffer.push(6, packet, 1.2)
    assert late.late and late.number == 6
    assert buffer.push(6, packet, 1.3) == [] == buffer.push(8, packet, 1.3)
    assert buffer.duplicates == 2
    assert buffer.push(4, packet, 1.4) == [] and buffer.early == 1


@given(st.permutations(range(12)), st.sets(st.integers(1, 11)))
def test_within_its_delay_any_order_is_put_right(order, lost):
    buffer = ReorderBuffer(delay=1.0)
    packet = RtpPacket(payload_type=0, seq=0, timestamp=0, ssrc=0)
    out = list(buffer.push(0, packet, 0.0))
    for place, number in enumerate(n for n in order if n and n not in lost):
        out += buffer.push(number, packet, place / 100)
    out += buffer.flush(1.0)
    numbers = [n for i in out for n in (range(i.first, i.first + i.count) if isinstance(i, Hole) else [i.number])]
    assert all(b == a + 1 for a, b in pairwise(numbers))
    assert {i.number for i in out if isinstance(i, Arrived)} == set(range(12)) - lost


def test_a_full_buffer_gives_its_hole_up():
    buffer = ReorderBuffer(delay=9.0, capacity=4)
    packet = RtpPacket(payload_type=0, seq=0, timestamp=0, ssrc=0)
    out = [i for n in (0, 2, 3, 4, 5, 6) for i in buffer.push(n, packet, 0.0)]
    assert [i.number for i in out if isinstance(i, Arrived)] == [0, 2, 3, 4, 5, 6]
