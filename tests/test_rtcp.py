"""RTCP: compound packets there and back, and the clocks that sender reports tie together."""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.rtcp import (
    CNAME,
    Goodbye,
    ReceiverReport,
    ReportBlock,
    SenderClock,
    SenderReport,
    SourceDescription,
    pack_rtcp,
    parse_rtcp,
)
from runtime.rtp import RtpError

DATA = Path(__file__).parent / "data" / "rtp"
U32 = st.integers(0, 2**32 - 1)
blocks = st.lists(
    st.builds(
        ReportBlock,
        ssrc=U32,
        fraction_lost=st.integers(0, 255),
        packets_lost=st.integers(-(2**23), 2**23 - 1),
        highest_seq=U32,
        jitter=U32,
        last_report=U32,
        delay=U32,
    ),
    max_size=31,
).map(tuple)
items = st.lists(st.tuples(st.integers(1, 8), st.binary(max_size=255)), max_size=4).map(tuple)
compounds = st.lists(
    st.one_of(
        st.builds(
            SenderReport,
            ssrc=U32,
            ntp=st.integers(0, 2**64 - 1),
            timestamp=U32,
            packets=U32,
            octets=U32,
            blocks=blocks,
        ),
        st.builds(ReceiverReport, ssrc=U32, blocks=blocks),
        st.builds(SourceDescription, chunks=st.lists(st.tuples(U32, items), max_size=4).map(tuple)),
        st.builds(Goodbye, ssrcs=st.lists(U32, max_size=31).map(tuple), reason=st.binary(max_size=255)),
    ),
    min_size=1,
    max_size=4,
)


def test_a_captured_sender_report():
    data = (DATA / "rtcp_sr.bin").read_bytes()
    (report,) = parse_rtcp(data)
    assert report == SenderReport(ssrc=1545448914, ntp=0xEEAA8DFB40418937, timestamp=2103263938)
    assert float(report.wall) == pytest.approx(0xEEAA8DFB + 0.251, abs=1e-3)
    assert pack_rtcp(report) == data


def test_a_compound_of_every_kind_byte_by_byte():
    data = bytes.fromhex(
        "81c8000c 00000001 0000000200000003 00000004 00000005 00000006"  # sender report
        "00000009 80fffffe 00010002 00000003 00000004 00000005"  # half lost, two more came than were sent
        "81c90007 00000001 00000009 00000000 00000000 00000000 00000000 00000000"
        "81ca0003 00000001 0104 61406263 0000"  # a name, a@bc, then zeros to the next word
        "82cb0004 00000001 00000002 05 616464696f 0000"
    )
    sender, receiver, description, goodbye = parse_rtcp(data)
    assert (sender.ntp, sender.timestamp, sender.packets, sender.octets) == (0x0000000200000003, 4, 5, 6)
    (block,) = sender.blocks
    assert (block.ssrc, block.fraction_lost, block.packets_lost, block.highest_seq) == (9, 128, -2, 0x10002)
    assert (block.jitter, block.last_report, block.delay) == (3, 4, 5)
    assert receiver.ssrc == 1 and receiver.blocks[0].ssrc == 9
    assert description.chunks == ((1, ((CNAME, b"a@bc"),)),)
    assert (description.cname(1), description.cname(2)) == (b"a@bc", None)
    assert goodbye == Goodbye(ssrcs=(1, 2), reason=b"addio")
    assert parse_rtcp(pack_rtcp(sender, receiver, description, goodbye)) == [sender, receiver, description, goodbye]


@given(compounds)
def test_what_is_written_is_read(packets):
    assert parse_rtcp(pack_rtcp(*packets)) == packets


@given(st.binary(max_size=120))
def test_any_bytes_are_reports_or_an_error(data):
    try:
        parse_rtcp(data)
    except RtpError as error:
        assert str(error)


@given(compounds, st.data())
def test_a_compound_cut_anywhere_raises_nothing_else(packets, draw):
    data = pack_rtcp(*packets)
    with suppress(RtpError):
        assert len(parse_rtcp(data[: draw.draw(st.integers(0, len(data)))])) <= len(packets)


def test_unknown_packets_are_passed_over_and_padding_is_taken_off():
    feedback = bytes.fromhex("81ce0002 00000001 00000002")
    padded = bytes.fromhex("a0c90002 00000001 00000004")
    assert parse_rtcp(feedback + padded) == [ReceiverReport(ssrc=1)]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("", "RTCP compound is empty"),
        ("80c8", "RTCP packet has 2 bytes; a header takes 4"),
        ("40c80000", "RTCP version is 1; only 2 is known"),
        ("80c80006", "RTCP packet announces 24 bytes, and 0 are left"),
        ("80c8000100000001", "RTCP packet of type 200 ends early, after 4 bytes"),
        ("9fc9000100000001", "RTCP packet of type 201 ends early, after 4 bytes"),
        ("a0c9000100000000", "RTCP padding of 0 bytes does not fit its packet of 4 bytes"),
        ("a0c90001000000ff", "RTCP padding of 255 bytes does not fit its packet of 4 bytes"),
        ("81ca00020000000101ff4142", "RTCP item 1 announces 255 bytes, and 2 are left"),
        ("9fcb000100000001", "RTCP packet of type 203 ends early, after 4 bytes"),
    ],
)
def test_a_broken_compound_is_named(data, sentence):
    with pytest.raises(RtpError) as caught:
        parse_rtcp(bytes.fromhex(data))
    assert str(caught.value) == sentence


def report(seconds, timestamp):
    return SenderReport(ssrc=1, ntp=int(Fraction(seconds) * 2**32), timestamp=timestamp % 2**32)


def test_a_report_ties_timestamps_to_the_wall_clock():
    clock = SenderClock(90_000)
    assert not clock.known
    clock.report(report(100, 9_000), near=0)
    assert clock.wall(9_000) == 100
    assert clock.wall(9_000 + 45_000) == Fraction(201, 2)


def test_timestamps_of_reports_wrap_beside_those_of_packets():
    clock = SenderClock(90_000)
    clock.report(report(100, 2**32 + 90_000), near=2**32 - 90_000)  # the packets have not wrapped yet
    assert clock.wall(2**32 - 90_000) == 98
    clock.report(report(102, 2**32 - 90_000), near=5 * 2**32)
    assert clock.wall(5 * 2**32) == 103


def test_a_clock_that_was_set_anew_is_noticed_and_followed():
    clock = SenderClock(8_000)
    clock.report(report(100, 0), near=0)
    clock.report(report(104, 4 * 8_000), near=4 * 8_000)
    assert clock.resets == 0
    clock.report(report(1_000, 8 * 8_000), near=8 * 8_000)
    assert clock.resets == 1 and clock.wall(8 * 8_000) == 1_000


def test_a_sender_without_a_wall_clock_ties_nothing():
    clock = SenderClock(8_000)
    clock.report(report(0, 5), near=5)
    assert not clock.known
