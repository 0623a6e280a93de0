"""RTP packets: captured bytes, every field, back to the same bytes; what is no RTP is refused in a sentence."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.rtp import RtpError, RtpPacket, is_rtcp, pack_extensions, parse_extensions, parse_rtp

DATA = Path(__file__).parent / "data" / "rtp"
PACKET = RtpPacket(payload_type=96, seq=65535, timestamp=0xFFFFFFFF, ssrc=1, payload=b"frame", marker=True)

packets = st.builds(
    RtpPacket,
    payload_type=st.integers(0, 127),
    seq=st.integers(0, 65535),
    timestamp=st.integers(0, 2**32 - 1),
    ssrc=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=40),
    marker=st.booleans(),
    csrc=st.lists(st.integers(0, 2**32 - 1), max_size=15).map(tuple),
    padding=st.integers(0, 255),
)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("h264_single", (96, 1362, 2103826708, 1545448914, True, 198, "419b0621")),
        ("h264_stap_a", (96, 1169, 2103257908, 1545448914, False, 655, "18001667")),
        ("h264_fu_a_start", (96, 1170, 2103257908, 1545448914, False, 1188, "7c858884")),
        ("opus", (97, 2672, 2960325636, 3436711494, True, 81, "7899c25f")),
        ("pcmu", (0, 3336, 3137756144, 3156315599, False, 155, "e5c8bab3")),
    ],
)
def test_captured_packets_are_read_field_by_field_and_written_back(name, fields):
    data = (DATA / f"{name}.bin").read_bytes()
    p = parse_rtp(data)
    assert (p.payload_type, p.seq, p.timestamp, p.ssrc, p.marker, len(p.payload), p.payload[:4].hex()) == fields
    assert (p.csrc, p.profile, p.extension, p.padding) == ((), None, b"", 0)
    assert bytes(p) == data
    assert not is_rtcp(data)


def test_every_part_of_a_header():
    data = bytes.fromhex("b2e0 0007 00000010 00000001 0000000a 0000000b bede 0001 10aa0000 6869 00000004")
    p = parse_rtp(data)
    assert (p.marker, p.payload_type, p.seq, p.timestamp, p.ssrc) == (True, 96, 7, 16, 1)
    assert p.csrc == (10, 11)
    assert (p.profile, p.extension) == (0xBEDE, bytes.fromhex("10aa0000"))
    assert (p.payload, p.padding) == (b"hi", 4)
    assert bytes(p) == data


def test_a_packet_of_nothing_but_padding():
    p = parse_rtp(bytes(replace(PACKET, payload=b"", padding=255)))
    assert (p.payload, p.padding) == (b"", 255)


@given(packets, st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 20)))
def test_what_is_written_is_read(packet, extension):
    if extension is not None:
        packet = replace(packet, profile=extension[0], extension=bytes(4 * extension[1]))
    assert parse_rtp(bytes(packet)) == packet


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_an_error(data):
    try:
        packet = parse_rtp(data)
    except RtpError as error:
        assert str(error)
    else:
        assert parse_rtp(bytes(packet)) == packet


@given(packets, st.data())
def test_a_packet_cut_anywhere_is_shorter_or_refused(packet, draw):
    data = bytes(packet)
    cut = data[: draw.draw(st.integers(0, len(data) - 1))]
    with suppress(RtpError):
        assert len(parse_rtp(cut).payload) < len(packet.payload) + packet.padding


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("", "RTP packet has 0 bytes; a header takes 12"),
        ("8060000100000001000000", "RTP packet has 11 bytes; a header takes 12"),
        ("406000010000000100000001", "RTP version is 1; only 2 is known"),
        ("8f600001000000010000000100000000", "RTP packet ends within its list of 15 contributing sources"),
        ("906000010000000100000001bede", "RTP packet ends within the head of its header extension"),
        (
            "906000010000000100000001bedeffff01",
            "RTP header extension announces 262140 bytes, and 1 are left",
        ),
        ("a06000010000000100000001", "RTP padding has length 0; its last byte counts itself"),
        ("a0600001000000010000000100", "RTP padding has length 0; its last byte counts itself"),
        ("a060000100000001000000010003", "RTP padding of 3 bytes is longer than the 2 bytes after the header"),
    ],
)
def test_a_broken_header_is_named(data, sentence):
    with pytest.raises(RtpError) as caught:
        parse_rtp(bytes.fromhex(data))
    assert str(caught.value) == sentence


def test_reports_on_a_shared_port_are_told_apart():
    assert all(is_rtcp(bytes([0x80, kind, 0, 0])) for kind in (192, 200, 203, 207, 223))
    assert not any(is_rtcp(bytes([0x80, kind, 0, 0])) for kind in (0, 96, 127, 128 + 96, 255))
    assert not is_rtcp(b"\x80") and not is_rtcp(b"\x40\xc8")


elements = st.dictionaries(st.integers(1, 255), st.binary(max_size=255), max_size=6)
short_elements = st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), max_size=6)


@given(elements | short_elements)
def test_extension_elements_survive_both_forms(chosen):
    profile, data = pack_extensions(chosen)
    short = all(n < 15 and 1 <= len(d) <= 16 for n, d in chosen.items())
    assert (profile == 0xBEDE) == short
    assert parse_extensions(profile, data) == chosen


def test_padding_between_elements_and_the_reserved_identifier():
    assert parse_extensions(0xBEDE, bytes.fromhex("10aa 00 00 21bbcc f0ff")) == {
        1: b"\xaa",
        2: b"\xbb\xcc",
    }
    assert parse_extensions(0x1234, b"anything") == {} == parse_extensions(None, b"")


@pytest.mark.parametrize(
    ("profile", "data", "sentence"),
    [
        (0xBEDE, "13aabb", "RTP header extension element 1 has 4 bytes, and 2 are left"),
        (0x1000, "05", "RTP header extension ends within the head of an element"),
        (0x100F, "0504aa", "RTP header extension element 5 has 4 bytes, and 1 are left"),
    ],
)
def test_a_broken_extension_is_named(profile, data, sentence):
    with pytest.raises(RtpError) as caught:
        parse_extensions(profile, bytes.fromhex(data))
    assert str(caught.value) == sentence


def test_an_element_that_fits_no_form_is_refused():
    with pytest.raises(RtpError, match="element 256 of 1 bytes fits no form"):
        pack_extensions({256: b"x"})
