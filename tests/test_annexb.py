"""Length-prefixed NAL units to Annex B: same units, same pictures; hostile records never raise."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.annexb import START_CODE, to_annexb
from runtime.bitstream import picture_parser
from runtime.nal import nal_units
from runtime.packet import CodecConfig
from runtime.sources import open_source

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"
SPS, PPS, VPS = b"\x67\x64\0\x0b\xac", b"\x68\xe9\x70", b"\x40\x01\x0c"
AVCC = b"\x01\x64\0\x0b\xff\xe1\0\x05" + SPS + b"\x01\0\x03" + PPS
HVCC = (
    b"\x01"
    + bytes(20)
    + b"\xff\x03"
    + b"".join(
        bytes([kind]) + b"\0\x01" + len(unit).to_bytes(2, "big") + unit
        for kind, unit in ((32, VPS), (33, SPS), (34, PPS))
    )
)


def codec(name: str, extradata: bytes) -> CodecConfig:
    return CodecConfig(codec=name, time_base=Fraction(1, 90_000), extradata=extradata)


def test_avcc_becomes_parameter_sets_with_start_codes():
    config, convert = to_annexb(codec("h264", AVCC))
    assert config == codec("h264", START_CODE + SPS + START_CODE + PPS)
    assert convert(b"\0\0\0\x02\x65\x88\0\0\0\x01\x06") == START_CODE + b"\x65\x88\0\0\1\x06"


def test_hvcc_becomes_parameter_sets_with_start_codes():
    config, convert = to_annexb(codec("hevc", HVCC))
    assert config.extradata == START_CODE + VPS + START_CODE + SPS + START_CODE + PPS
    assert convert(b"\0\0\0\x03\x26\x01\xaf") == START_CODE + b"\x26\x01\xaf"


def test_short_lengths_are_read_as_the_record_says():
    short = AVCC[:4] + b"\xfd" + AVCC[5:]  # two bytes
    assert to_annexb(codec("h264", short))[1](b"\0\x02\x65\x88\0\x01\x06") == START_CODE + b"\x65\x88\0\0\1\x06"


@pytest.mark.parametrize(
    "config",
    [
        codec("h264", START_CODE + SPS),
        codec("h264", b""),
        codec("hevc", START_CODE + VPS + bytes(30)),
        codec("vp8", AVCC),
        codec("aac", b"\x12\x10"),
    ],
)
def test_what_needs_no_conversion_passes_unchanged(config):
    same, convert = to_annexb(config)
    assert same is config
    assert convert(b"\0\0\0\x02\x65\x88") == b"\0\0\0\x02\x65\x88"


def test_a_payload_with_start_codes_in_a_stream_with_lengths_keeps_its_units():
    _, convert = to_annexb(codec("h264", AVCC))
    assert convert(b"\0\0\1\x65\x88\0\0\1\x06") == START_CODE + b"\x65\x88\0\0\1\x06"


@given(st.binary(max_size=64), st.binary(max_size=64), st.sampled_from(["h264", "hevc"]))
def test_any_bytes_are_taken(extradata, payload, name):
    for head in (b"", AVCC[:6], HVCC[:23]):
        config, convert = to_annexb(codec(name, head + extradata))
        assert isinstance(config.extradata + convert(payload), bytes)


@given(st.integers(0, len(AVCC)), st.integers(0, len(HVCC)))
def test_a_cut_record_gives_what_is_whole(avcc, hvcc):
    assert b"".join((START_CODE + SPS, START_CODE + PPS)).startswith(units(codec("h264", AVCC[:avcc])))
    assert b"".join(START_CODE + u for u in (VPS, SPS, PPS)).startswith(units(codec("hevc", HVCC[:hvcc])))


def units(config: CodecConfig) -> bytes:
    changed, _ = to_annexb(config)
    return b"" if changed is config else changed.extradata


@given(st.lists(st.binary(min_size=2, max_size=300).map(lambda b: b"\x41" + b.replace(b"\0", b"\x01")), max_size=4))
def test_no_unit_is_changed_or_lost(parts):
    payload = b"".join(len(unit).to_bytes(4, "big") + unit for unit in parts)
    assert list(nal_units(to_annexb(codec("h264", AVCC))[1](payload), 0)) == parts


def test_a_payload_without_a_unit_is_passed_on():
    assert to_annexb(codec("h264", AVCC))[1](b"\xff\xff") == b"\xff\xff"
    assert to_annexb(codec("h264", AVCC))[1](b"") == b""


def test_the_demo_says_and_shows_the_same():
    from encoders.clips import VideoSpec
    from encoders.media import VideoPacketDecoder

    with open_source(DEMO) as source:
        before = source.info.codecs["video"]
        packets = [p for p in source.packets() if p.modality == "video"][:200]
    after, convert = to_annexb(before)
    converted = [replace(p, payload=convert(p.payload)) for p in packets]
    old, new = picture_parser(before), picture_parser(after)
    assert [old(p.payload) for p in packets] == [new(p.payload) for p in converted]

    def shown(config, items):
        decoder = VideoPacketDecoder(config, VideoSpec(frames=5, size=32))
        frames = [frame for packet in items for frame in decoder.decode(packet)]
        return [frame.pixels for frame in frames + decoder.flush()]

    pictures = shown(before, packets), shown(after, converted)
    assert len(pictures[0]) == len(pictures[1]) > 50
    assert all(np.array_equal(a, b) for a, b in zip(*pictures, strict=True))
