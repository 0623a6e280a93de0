"""Headers of coded pictures: real encoders' streams, bytes by hand, and any bytes at all."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.media import VideoTrack, write_media
from runtime.bitstream import parse_mpeg4, parse_mpeg12, parse_vp8, picture_parser
from runtime.nal import nal_units, sei_messages, unescape
from runtime.packet import CodecConfig, Packet
from runtime.picture import Bits, Picture
from runtime.sources.replay import FileSource

PARSED = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4")


def config(codec: str, extradata: bytes = b"") -> CodecConfig:
    return CodecConfig(codec=codec, time_base=Fraction(1, 25), extradata=extradata)


def pictures(path: Path, codec: str, options: dict[str, str], gop: int = 10, count: int = 24):
    """What the parser says of an encoder's packets: (packet, its pictures)."""
    texture = np.random.default_rng(0).integers(0, 256, (96, 200)).astype(np.uint8)
    frames = [texture[:64, 2 * i : 2 * i + 96] for i in range(count)]
    write_media(path, [VideoTrack(frames=frames, codec=codec, options=options, gop=gop)])
    with FileSource(path) as source:
        parse = picture_parser(source.info.codecs["video"])
        assert parse is not None
        return [(p, parse(p.payload)) for p in source.packets() if isinstance(p, Packet)]


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        pytest.param("libx264", "mp4", {"bf": "0"}, id="H.264 with lengths"),
        pytest.param("libx264", "ts", {"bf": "2"}, id="H.264 with start codes"),
        pytest.param("libvpx", "webm", {"deadline": "realtime"}, id="VP8"),
        pytest.param("libvpx-vp9", "webm", {"deadline": "realtime"}, id="VP9"),
        pytest.param("mpeg1video", "mpg", {"bf": "2"}, id="MPEG-1"),
        pytest.param("mpeg2video", "ts", {"bf": "2"}, id="MPEG-2"),
        pytest.param("mpeg4", "mp4", {"bf": "2"}, id="MPEG-4"),
    ],
)
def test_every_packet_of_an_encoder_is_read_and_keyframes_agree(tmp_path, codec, suffix, options):
    read = pictures(tmp_path / f"x.{suffix}", codec, options)
    assert len(read) >= 24
    for packet, found in read:
        assert len(found) >= 1
        assert found[0].kind in ("I", "P", "B")
        assert packet.keyframe == found[0].independent
    assert sum(packet.keyframe for packet, _ in read) >= 2


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libaom-av1"])
def test_newer_codecs_are_read_where_there_is_an_encoder(tmp_path, codec):
    from encoders.errors import OutputError

    quiet = {"libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}, "libsvtav1": {"preset": "10"}}
    try:
        read = pictures(tmp_path / "x.mkv", codec, quiet.get(codec, {"cpu-used": "8"}))
    except OutputError:
        pytest.skip(f"this FFmpeg has no {codec}")
    assert read[0][1][0].reset
    assert all(found for _, found in read)
    if codec != "libx265":
        assert any(p.reads and p.writes for _, found in read for p in found)


def test_frame_numbers_of_h264_count_reference_pictures(tmp_path):
    read = [found[0] for _, found in pictures(tmp_path / "x.mp4", "libx264", {"bf": "2", "preset": "veryfast"})]
    last = None
    for picture in read:
        assert picture.lists is not None
        if picture.reset:
            last = 0
        else:
            assert last is not None
            assert (picture.frame_num - last) % picture.max_frame_num == 1
            last = last if picture.disposable else picture.frame_num
    assert any(p.disposable for p in read)


def test_open_groups_carry_recovery_points(tmp_path):
    options = {"bf": "2", "x264-params": "open-gop=1:keyint=8:min-keyint=4"}
    read = [found[0] for _, found in pictures(tmp_path / "x.mp4", "libx264", options, gop=8)]
    assert [p.reset for p in read].count(True) == 1
    assert sum(p.recovery == 0 for p in read) >= 2


def test_intra_refresh_announces_how_long_it_takes(tmp_path):
    options = {"x264-params": "intra-refresh=1:bframes=0"}
    read = [found[0] for _, found in pictures(tmp_path / "x.mp4", "libx264", options)]
    assert any((p.recovery or 0) > 0 for p in read)


def test_exp_golomb_codes():
    bits = Bits(bytes([0b10100110, 0b01000010, 0b10000000]))
    assert [bits.ue() for _ in range(5)] == [0, 1, 2, 3, 4]
    bits = Bits(bytes([0b10100110, 0b01000010, 0b10000000]))
    assert [bits.se() for _ in range(5)] == [0, 1, -1, 2, -2]


def test_bits_end_with_an_error():
    with pytest.raises(IndexError, match="header ends early"):
        Bits(b"\xff").u(9)
    with pytest.raises(IndexError):
        Bits(b"\0" * 20).ue()


def test_nal_units_between_start_codes_of_both_lengths():
    assert list(nal_units(b"\0\0\0\1\x67ab\0\0\1\x68c\0\0\1\x65", 0)) == [b"\x67ab", b"\x68c", b"\x65"]


def test_a_length_that_looks_like_a_start_code_is_a_length():
    unit = b"\x65" + b"x" * 299
    payload = len(unit).to_bytes(4, "big") + unit
    assert payload.startswith(b"\0\0\1")
    assert list(nal_units(payload, 4)) == [unit]
    assert list(nal_units(b"\0\0\0\1\x65abc", 4)) == [b"\x65abc"]  # start codes where lengths were announced


def test_emulation_prevention_is_undone():
    assert unescape(b"\x01\0\0\x03\x01\0\0\x03\0") == b"\x01\0\0\x01\0\0\0"


def test_sei_sizes_above_255_go_on():
    body = b"\x05\xff\x02" + b"u" * 257 + b"\x06\x01\xc0" + b"\x80"
    assert [(kind, len(payload)) for kind, payload in sei_messages(body)] == [(5, 257), (6, 1)]


def test_a_vp8_key_frame_and_a_hidden_one():
    assert parse_vp8(b"\x10\0\0\x9d\x01\x2a")[0].reset
    assert not parse_vp8(b"\x00\0\0")[0].shown


def test_an_mpeg_group_says_whether_it_is_closed():
    closed = b"\0\0\1\xb8\0\0\0\x40" + b"\0\0\1\0" + (2 << 6 | 1 << 3).to_bytes(2, "big") + b"\xff\xf8"
    (picture,) = parse_mpeg12(closed)
    assert (picture.kind, picture.order, picture.new_group, picture.closed) == ("I", 2, True, True)


def test_a_packed_mpeg4_packet_has_two_pictures():
    payload = b"\0\0\1\xb6\x40ab\0\0\1\xb6\x80cd"
    assert [p.kind for p in parse_mpeg4(payload)] == ["P", "B"]


def test_a_codec_without_headers_we_know_has_no_parser():
    assert picture_parser(config("theora")) is None


@pytest.mark.parametrize("codec", PARSED)
@given(payload=st.binary(max_size=80), extradata=st.binary(max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_bytes_give_pictures_or_none_and_never_an_error(codec, payload, extradata):
    parse = picture_parser(config(codec, extradata))
    assert parse is not None
    for data in (payload, b"\0\0\1" + payload, b"\0\0\1\x67" + payload, b"\x12\0\x0a" + payload):
        assert all(isinstance(p, Picture) for p in parse(data))


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_cut_packets_of_a_real_stream_never_raise(tmp_path, codec):
    read = pictures(tmp_path / "x.mkv", codec, {}, count=4)
    with FileSource(tmp_path / "x.mkv") as source:
        parse = picture_parser(source.info.codecs["video"])
    for packet, _ in read:
        for size in range(min(60, len(packet.payload))):
            parse(packet.payload[:size])
