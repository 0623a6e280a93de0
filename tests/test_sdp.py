"""Session descriptions: what ffmpeg, cameras and people write, and what is wrong with the rest."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import SourceError
from runtime.packet import CodecConfig
from runtime.sdp import MOST_BYTES, Format, codec_of, parse_sdp, static_format

FFMPEG = """\
v=0
o=- 0 0 IN IP4 127.0.0.1
s=No Name
t=0 0
a=tool:libavformat LIBAVFORMAT_VERSION
m=video 5004 RTP/AVP 96
c=IN IP4 127.0.0.1
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1; sprop-parameter-sets=Z0LADNoFB+hAAAADAEAAAAwjxQqo,aM48gA==; profile-level-id=42C00C
m=audio 5006 RTP/AVP 97
c=IN IP4 127.0.0.1
b=AS:32
a=rtpmap:97 opus/48000/2
"""
CAMERA = (
    "v=0\r\no=- 1 1 IN IP4 10.0.0.7\r\ns=front door\r\nc=IN IP4 239.1.2.3/16\r\nt=0 0\r\n"
    "m=video 40000/2 RTP/AVP 26 96\r\na=framerate:29.97\r\na=rtpmap:96 h264/90000\r\na=rtcp:40009 IN IP4 239.1.2.3\r\n"
    "m=audio 40010 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\na=rtcp-mux\r\n"
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"
)


def test_what_ffmpeg_writes():
    video, audio = parse_sdp(FFMPEG)
    assert (video.kind, video.port, video.rtcp_port, video.address) == ("video", 5004, 5005, "127.0.0.1")
    (h264,) = video.formats
    assert (h264.payload_type, h264.encoding, h264.rate, h264.modality) == (96, "H264", 90_000, "video")
    assert h264.parameters["packetization-mode"] == "1"
    assert audio.formats == (Format(payload_type=97, encoding="OPUS", rate=48_000, channels=2),)


def test_parameter_sets_become_annex_b():
    video, audio = parse_sdp(FFMPEG)
    config = codec_of(video.formats[0])
    assert config.extradata[:5] == b"\0\0\0\1\x67" and config.extradata[-8:] == b"\0\0\0\1\x68\xce\x3c\x80"
    assert (config.codec, config.time_base) == ("h264", Fraction(1, 90_000))
    assert codec_of(audio.formats[0]) == CodecConfig(
        codec="opus", time_base=Fraction(1, 48_000), sample_rate=48_000, channels=2
    )


def test_what_a_camera_writes():
    video, audio = parse_sdp(CAMERA)
    assert (video.address, video.port, video.rtcp_port) == ("239.1.2.3", 40000, 40009)
    assert [f.payload_type for f in video.formats] == [96]  # JPEG is not spoken here
    assert codec_of(video.formats[0]).frame_rate == Fraction("29.97")
    assert [(f.payload_type, f.encoding) for f in audio.formats] == [(0, "PCMU"), (8, "PCMA")]
    assert audio.rtcp_port == audio.port
    assert [codec_of(f).codec for f in audio.formats] == ["pcm_mulaw", "pcm_alaw"]


def test_a_payload_type_may_mean_something_else_than_it_usually_does():
    (media,) = parse_sdp("v=0\nm=audio 5004 RTP/AVP 0\na=rtpmap:0 opus/48000/2\n")
    assert media.formats[0].encoding == "OPUS"
    assert static_format(0).encoding == "PCMU" and static_format(96) is None


@pytest.mark.parametrize("line", ["H264", "H264/", "H264/0", "opus/8000/2", "PCMU/8000/9", "L16/44100", "x" * 500])
def test_a_format_that_cannot_be_played_is_left_out(line):
    (media,) = parse_sdp(f"v=0\nm=audio 5004 RTP/AVP 99\na=rtpmap:99 {line}\n")
    assert media.formats == ()


def test_parameter_sets_that_are_no_base64_are_left_out():
    text = "v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 sprop-parameter-sets=%%%,,aM48gA==,Z\n"
    assert codec_of(parse_sdp(text)[0].formats[0]).extradata == b"\0\0\0\1\x68\xce\x3c\x80"


def test_an_address_of_ipv6_and_none():
    assert parse_sdp("v=0\nc=IN IP6 ff15::101\nm=audio 2 RTP/AVP 0\n")[0].address == "ff15::101"
    assert parse_sdp("v=0\nm=audio 2 RTP/AVP 0\n")[0].address == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "session description does not begin with v=0; give an SDP file as ffmpeg -sdp_file writes it"),
        ("RIFF....", "session description does not begin with v=0; give an SDP file as ffmpeg -sdp_file writes it"),
        ("v=0\ns=-\n", "session description names no media; it needs an m=video or m=audio line"),
        ("v=0\nm=video\n", "session description has a line 'm=video'; write m=video PORT RTP/AVP PAYLOAD-TYPE"),
        (
            "v=0\nm=video 5004 RTP/SAVPF 96\n",
            "session description asks for RTP/SAVPF; encrypted RTP is not supported, use RTP/AVP",
        ),
        ("v=0\n" + "a" * MOST_BYTES, f"session description has {MOST_BYTES + 4} characters; {MOST_BYTES} is the most"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(text, sentence):
    with pytest.raises(SourceError) as caught:
        parse_sdp(text)
    assert str(caught.value) == sentence


@given(st.text(max_size=200), st.integers(0, len(CAMERA)))
def test_any_text_is_media_or_one_sentence(noise, place):
    for text in (noise, CAMERA[:place] + noise + CAMERA[place:]):
        try:
            for media in parse_sdp(text):
                assert all(codec_of(f).codec for f in media.formats)
        except SourceError as error:
            assert "\n" not in str(error)


def test_a_raised_digit_is_no_number():
    """``"¹".isdigit()`` holds and ``int("¹")`` fails."""
    (media,) = parse_sdp("v=0\r\nc=IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP ¹26 0\r\n")
    assert [f.payload_type for f in media.formats] == [0]
