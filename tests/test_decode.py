"""Decoding in the runtime: frames and blocks carry what damage tracking said of their packets."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from encoders.clips import AudioSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.decode import AudioDecoder, VideoDecoder
from runtime.errors import SourceError
from runtime.packet import CodecConfig, Packet
from runtime.sources import open_source

VIDEO = VideoSpec(frames=8, size=32)
AUDIO = AudioSpec()
INTACT = SimpleNamespace(damaged=False, reason="", severity=0.0)
SPOILED = SimpleNamespace(damaged=True, reason="lost", severity=0.7)


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Codecs and packets of two seconds of H.264 with B frames and AAC."""
    pattern = np.random.default_rng(0).integers(0, 255, (48, 128), dtype=np.uint8)
    frames = [pattern[:, i : i + 64] for i in range(50)]
    sound = np.sin(2 * np.pi * 300 * np.arange(88_200) / 44_100).astype(np.float32) * 0.5
    tracks = [VideoTrack(frames=frames, gop=25), AudioTrack(samples=sound, sample_rate=44_100)]
    path = write_media(tmp_path_factory.mktemp("stream") / "a.mp4", tracks)
    with open_source(path) as source:
        return source.info.codecs, list(source.packets())


def of(stream, modality):
    codecs, packets = stream
    return codecs[modality], [p for p in packets if p.modality == modality]


def decoded(decoder, packets, damage=lambda _: INTACT):
    return [out for p in packets for out in decoder.decode(p, damage(p))] + decoder.flush()


def test_frames_come_in_presentation_order_and_name_their_packets(stream):
    codec, packets = of(stream, "video")
    frames = decoded(VideoDecoder(codec, VIDEO), packets)
    assert [f.time for f in frames] == [Fraction(i, 25) for i in range(50)]
    assert all(f.duration == Fraction(1, 25) for f in frames)
    times = {p.seq: p.capture_time * p.time_base for p in packets}
    assert all(f.time == times[f.seqs[0]] for f in frames)
    assert [p.seconds for p in packets] != sorted(p.seconds for p in packets)  # there were B frames


def test_a_frame_carries_the_damage_of_its_own_packet(stream):
    codec, packets = of(stream, "video")
    bad = {7, 8, 30}
    frames = decoded(VideoDecoder(codec, VIDEO), packets, lambda p: SPOILED if p.seq in bad else INTACT)
    assert {f.seqs[0] for f in frames if f.damaged} == bad
    assert {(f.reason, f.severity) for f in frames if f.damaged} == {("lost", 0.7)}


def test_lost_packets_leave_the_others_their_times(stream):
    codec, packets = of(stream, "video")
    kept = [p for p in packets if p.seq % 7 != 3]
    frames = decoded(VideoDecoder(codec, VIDEO), kept)
    times = {p.seq: p.capture_time * p.time_base for p in packets}
    assert all(f.time == times[f.seqs[0]] for f in frames)
    assert len(frames) >= len(kept) - 4


def test_blocks_tile_the_sound_on_the_grid(stream):
    codec, packets = of(stream, "audio")
    blocks = decoded(AudioDecoder(codec, AUDIO), packets)
    assert blocks[0].time == 0
    ends = [b.time + b.duration for b in blocks]
    assert [b.time for b in blocks[1:]] == ends[:-1]
    assert all((b.time * 16_000).denominator == 1 for b in blocks)
    assert all(b.samples.dtype == np.float32 and b.samples.ndim == 1 for b in blocks)


def test_every_audible_packet_is_named_by_a_block(stream):
    codec, packets = of(stream, "audio")
    named = {seq for b in decoded(AudioDecoder(codec, AUDIO), packets) for seq in b.seqs}
    assert named == {p.seq for p in packets if not p.skip}


def test_blocks_are_cut_where_damage_begins_and_ends(stream):
    codec, packets = of(stream, "audio")
    blocks = decoded(AudioDecoder(codec, AUDIO), packets, lambda p: SPOILED if 20 <= p.seq < 23 else INTACT)
    start, end = (next(p for p in packets if p.seq == n).seconds for n in (20, 23))
    spoiled = [b for b in blocks if b.damaged]
    assert float(spoiled[0].time) == pytest.approx(start, abs=1 / 16_000)
    assert float(spoiled[-1].time + spoiled[-1].duration) == pytest.approx(end, abs=1 / 16_000)
    assert {s for b in spoiled for s in b.seqs} == {20, 21, 22}
    ends = [b.time + b.duration for b in blocks]
    assert [b.time for b in blocks[1:]] == ends[:-1]


def test_a_lost_audio_packet_leaves_a_hole_of_its_size(stream):
    codec, packets = of(stream, "audio")
    blocks = decoded(AudioDecoder(codec, AUDIO), [p for p in packets if p.seq not in (30, 31)])
    holes = [float(b.time - (a.time + a.duration)) for a, b in pairwise(blocks)]
    assert [h for h in holes if h] == pytest.approx([2048 / 44_100], abs=2 / 16_000)


def test_sound_after_a_hole_is_where_it_would_be_without(stream):
    codec, packets = of(stream, "audio")

    def track(kept):
        out = np.zeros(40_000, np.float32)
        for b in decoded(AudioDecoder(codec, AUDIO), kept):
            start = int(b.time * 16_000)
            out[start : start + len(b.samples)] = b.samples
        return out

    whole, holed = track(packets), track([p for p in packets if p.seq != 40])
    after = int(43 * 1024 / 44_100 * 16_000)
    assert np.abs(whole - holed)[after : after + 8000].max() < 1e-4


def test_times_that_jump_back_begin_a_new_run(stream):
    codec, packets = of(stream, "audio")
    decoder = AudioDecoder(codec, AUDIO)
    first = decoded(decoder, packets[:20])
    again = decoded(decoder, packets[:20])
    assert [b.time for b in first] == [b.time for b in again]


def test_decode_errors_are_counted_and_never_raised(stream):
    for modality, decoder_of, spec in (("video", VideoDecoder, VIDEO), ("audio", AudioDecoder, AUDIO)):
        codec, packets = of(stream, modality)
        decoder = decoder_of(codec, spec)
        outs = decoded(decoder, [replace(p, payload=b"\x00" * 40) if p.seq % 2 else p for p in packets])
        assert decoder.errors > 0
        assert outs


def test_an_empty_payload_is_no_end_of_stream(stream):
    codec, packets = of(stream, "video")
    packets = [replace(p, payload=b"") if p.seq == 20 else p for p in packets]
    decoder = VideoDecoder(codec, VIDEO)
    assert len(decoded(decoder, packets)) >= 48
    assert decoder.errors == 1


def test_a_decoder_can_be_used_again_after_a_flush(stream):
    codec, packets = of(stream, "video")
    decoder = VideoDecoder(codec, VIDEO)
    first, second = decoded(decoder, packets[:25]), decoded(decoder, packets[:25])
    assert [f.time for f in first] == [f.time for f in second]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))


def test_flushing_an_unused_decoder_gives_nothing(stream):
    assert VideoDecoder(of(stream, "video")[0], VIDEO).flush() == []
    assert AudioDecoder(of(stream, "audio")[0], AUDIO).flush() == []


def test_pixels_do_not_change_when_more_is_decoded(stream):
    """A decoder uses its buffers again; frames must own theirs."""
    codec, packets = of(stream, "video")
    decoder = VideoDecoder(codec, VIDEO)
    early = [f for p in packets[:10] for f in decoder.decode(p)]
    copies = [f.pixels.copy() for f in early]
    decoded(decoder, packets[10:])
    assert all(np.array_equal(f.pixels, c) for f, c in zip(early, copies, strict=True))


def test_raw_pcm_and_raw_pictures_need_no_container():
    base = Fraction(1, 48_000)
    codec = CodecConfig(codec="pcm_s16le", time_base=base, sample_rate=48_000, channels=2)
    loud = np.full((960, 2), 16384, "<i2").tobytes()
    packets = [Packet(modality="audio", seq=i, capture_time=960 * i, time_base=base, payload=loud) for i in range(4)]
    blocks = decoded(AudioDecoder(codec, AUDIO), packets)
    sound = np.concatenate([b.samples for b in blocks])
    assert len(sound) == 1280
    assert sound[200:-200] == pytest.approx(0.5, abs=1e-4)

    base = Fraction(1, 25)
    codec = CodecConfig(codec="rawvideo", time_base=base, width=6, height=4, pixel_format="gray")
    image = np.arange(24, dtype=np.uint8)
    packet = Packet(modality="video", seq=0, capture_time=5, time_base=base, payload=image.tobytes(), keyframe=True)
    (frame,) = decoded(VideoDecoder(codec, VIDEO), [packet])
    assert frame.time == Fraction(1, 5)
    assert np.array_equal(frame.pixels, image.reshape(4, 6))


def test_a_codec_that_is_not_there_is_one_sentence():
    with pytest.raises(SourceError, match="codec 'nonsense' has no decoder here"):
        VideoDecoder(CodecConfig(codec="nonsense", time_base=Fraction(1, 25)), VIDEO)
