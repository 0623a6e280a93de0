"""Silence in every codec a microphone may use: it decodes to zeros, as long as what it replaced."""

from fractions import Fraction

import numpy as np
import pytest

from runtime.errors import UsageError
from runtime.packet import CodecConfig
from runtime.silence import silent_payload

av = pytest.importorskip("av")

# FFmpeg's decoder, encoder, channels, options
CODECS = [
    ("opus", "libopus", 1, {}),
    ("opus", "libopus", 2, {}),
    ("opus", "libopus", 1, {"frame_duration": "60"}),
    ("opus", "libopus", 1, {"frame_duration": "2.5"}),
    ("opus", "libopus", 1, {"application": "voip", "b": "12000"}),
    ("aac", "aac", 1, {}),
    ("aac", "aac", 2, {}),
    ("mp3", "libmp3lame", 1, {}),
    ("mp3", "libmp3lame", 2, {}),
    ("mp2", "mp2", 1, {}),
]


def noise_packets(encoder: str, channels: int, options: dict[str, str], count: int = 32) -> tuple[object, list[bytes]]:
    codec = av.CodecContext.create(encoder, "w")
    codec.sample_rate, codec.layout = 48_000, "mono" if channels == 1 else "stereo"
    codec.format = {"libopus": "flt", "aac": "fltp", "libmp3lame": "fltp", "mp2": "s16"}[encoder]
    codec.time_base, codec.options = Fraction(1, 48_000), options
    codec.open()
    rng, packets = np.random.default_rng(0), []
    for i in range(count):
        samples = (rng.standard_normal((channels, codec.frame_size)) * 0.1).astype(np.float32)
        if codec.format.name == "s16":
            samples = (samples * 32_767).astype(np.int16)
        if not codec.format.is_planar:
            samples = samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format=codec.format.name, layout=codec.layout.name
        )
        frame.sample_rate, frame.pts, frame.time_base = 48_000, i * codec.frame_size, codec.time_base
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return codec, packets


def decode(codec: str, encoder: object, packets: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create(codec, "r")
    decoder.extradata, decoder.sample_rate, decoder.layout = encoder.extradata, 48_000, encoder.layout.name
    return [frame.to_ndarray().astype(float) for p in packets for frame in decoder.decode(av.Packet(p))]


@pytest.mark.parametrize(("codec", "encoder", "channels", "options"), CODECS)
def test_a_muted_packet_decodes_to_zeros_of_the_same_length(codec, encoder, channels, options):
    config = CodecConfig(codec=codec, time_base=Fraction(1, 48_000), channels=channels)
    source, packets = noise_packets(encoder, channels, options)
    muted = [silent_payload(config, p) if 5 <= i < 25 else p for i, p in enumerate(packets)]

    heard, quiet = decode(codec, source, packets), decode(codec, source, muted)

    assert [block.shape for block in quiet] == [block.shape for block in heard]
    assert all(np.abs(block).max() > 0 for block in heard[6:24])
    assert all(np.abs(block).max() == 0 for block in quiet[15:24])  # frames overlap, filters ring out
    assert np.abs(quiet[-1]).max() < 3 * np.abs(heard[-1]).max()  # and afterwards it is heard again, not garbage
    assert np.abs(quiet[-1]).max() > 0


def test_mp3_comes_back_clean_because_its_bit_reservoir_was_kept():
    config = CodecConfig(codec="mp3", time_base=Fraction(1, 48_000), channels=2)
    source, packets = noise_packets("libmp3lame", 2, {})
    muted = [silent_payload(config, p) if 5 <= i < 9 else p for i, p in enumerate(packets)]
    heard, quiet = decode("mp3", source, packets), decode("mp3", source, muted)
    np.testing.assert_allclose(quiet[12:], heard[12:], atol=2)  # the decoder dithers the last bit


def test_an_adts_frame_keeps_a_header_that_tells_its_new_length():
    config = CodecConfig(codec="aac", time_base=Fraction(1, 48_000), channels=1)
    adts = bytes.fromhex("fff14c4016bffc") + bytes(175)
    silent = silent_payload(config, adts)
    assert silent[:2] == b"\xff\xf1"
    assert ((silent[3] & 3) << 11 | silent[4] << 3 | silent[5] >> 5) == len(silent) == 13


@pytest.mark.parametrize(
    ("codec", "rest"), [("pcm_s16le", 0), ("pcm_f32be", 0), ("pcm_u8", 0x80), ("pcm_mulaw", 0xFF), ("pcm_alaw", 0xD5)]
)
def test_raw_sound_is_replaced_by_the_code_of_zero(codec, rest):
    config = CodecConfig(codec=codec, time_base=Fraction(1, 8000), channels=1)
    assert silent_payload(config, b"\x01" * 6) == bytes([rest]) * 6


def test_a_codec_without_known_silence_is_named():
    with pytest.raises(UsageError, match="codec vorbis; use mic-mute without"):
        silent_payload(CodecConfig(codec="vorbis", time_base=Fraction(1, 48_000)), b"x")
    with pytest.raises(UsageError, match="6 channels"):
        silent_payload(CodecConfig(codec="aac", time_base=Fraction(1, 48_000), channels=6), b"x")
