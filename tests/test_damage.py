"""Damage against the truth: files are made here, broken, decoded, and compared with the clean decode.

A frame is damaged if its mean absolute luma error is above 0.5 grey levels, or if it is missing.
"""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from encoders.clips import AudioSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.damage import INTACT, AudioDamage, Damage, StepRule, VideoDamage
from runtime.decode import AudioDecoder, Frame, VideoDecoder
from runtime.packet import CodecConfig, Gap, Packet
from runtime.sources.replay import FileSource

X264 = {"preset": "veryfast", "threads": "1"}
B_FRAMES = {**X264, "bf": "3"}


def moving_pictures(count: int) -> list[np.ndarray]:
    """Gray 128 x 160: a texture that pans, so that every picture differs from the last everywhere."""
    texture = np.kron(np.random.default_rng(0).integers(30, 226, (40, 60)), np.ones((8, 8))).astype(np.uint8)
    return [texture[i % 96 : i % 96 + 128, 2 * i % 160 : 2 * i % 160 + 160] for i in range(count)]


def coded(path: Path, codec: str, options: dict[str, str], gop: int = 50, count: int = 250):
    """The codec's config and packets of moving pictures."""
    write_media(path, [VideoTrack(frames=moving_pictures(count), codec=codec, options=options, gop=gop)])
    with FileSource(path) as source:
        return source.info.codecs["video"], [p for p in source.packets() if isinstance(p, Packet)]


def receive(config: CodecConfig, items, *, numbered: bool = True) -> list[Frame]:
    """Judge, decode, judge what came out: what serving does."""
    tracker = VideoDamage(config, sequence_numbers=numbered)
    decoder = VideoDecoder(config, VideoSpec(frames=1, size=1))
    frames = []
    for item in items:
        verdict, errors = tracker.push(item), decoder.errors
        ready = decoder.decode(item, verdict) if isinstance(item, Packet) else []
        if decoder.errors != errors:
            tracker.decode_error()
        frames += [(f, tracker.frame_flag(f.seqs[0], corrupt=f.corrupt)) for f in ready]
    frames += [(f, tracker.frame_flag(f.seqs[0], corrupt=f.corrupt)) for f in decoder.flush()]
    for frame, verdict in frames:
        frame.damaged, frame.reason = verdict.damaged, verdict.reason
    return [frame for frame, _ in frames]


def compare(clean: list[Frame], lossy: list[Frame]) -> tuple[float, float, int]:
    """(recall, false alarms as a share of all frames, damaged frames)."""
    got = {f.time: f for f in lossy}
    truth, flagged = [], []
    for frame in clean:
        other = got.get(frame.time)
        error = 255.0 if other is None else float(np.abs(frame.pixels.astype(int) - other.pixels).mean())
        truth.append(error > 0.5)
        flagged.append(other is None or other.damaged)
    damaged, alarms = np.array(truth), np.array(flagged)
    return (
        float((damaged & alarms).sum() / max(1, damaged.sum())),
        float((~damaged & alarms).mean()),
        int(damaged.sum()),
    )


def gap(packet: Packet) -> Gap:
    return Gap(modality="video", first_seq=packet.seq, count=1)


def dropped(packets: list[Packet], seed: int = 0, share: float = 14 / 250) -> list[Packet | Gap]:
    hit = np.random.default_rng(seed).random(len(packets)) < share
    return [gap(p) if gone and i > 10 else p for i, (p, gone) in enumerate(zip(packets, hit, strict=True))]


def flipped(packets: list[Packet], seed: int = 0) -> list[Packet]:
    """Four bit flips in each of 14 of 250 packets, nowhere told."""
    rng = np.random.default_rng(seed)
    hit = set(rng.choice(np.arange(1, len(packets)), 14, replace=False).tolist())
    out = []
    for i, packet in enumerate(packets):
        data = bytearray(packet.payload)
        for bit in rng.choice(len(data) * 8, 4, replace=False).tolist() if i in hit else []:
            data[bit // 8] ^= 1 << bit % 8
        out.append(replace(packet, payload=bytes(data)))
    return out


@pytest.mark.parametrize(
    ("codec", "options", "suffix", "gop"),
    [
        pytest.param("libx264", {**X264, "bf": "0"}, "mkv", 50, id="H.264 P only"),
        pytest.param("libx264", B_FRAMES, "mkv", 50, id="H.264 B frames"),
        pytest.param("libx264", {**B_FRAMES, "x264-params": "open-gop=1"}, "mkv", 30, id="H.264 open groups"),
        pytest.param("libx264", {**X264, "x264-params": "intra-refresh=1:bframes=0"}, "mkv", 40, id="H.264 no IDR"),
        pytest.param("libvpx", {"deadline": "realtime", "cpu-used": "8"}, "webm", 50, id="VP8"),
        pytest.param("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "webm", 50, id="VP9"),
        pytest.param("mpeg1video", {}, "mpg", 12, id="MPEG-1"),
        pytest.param("mpeg1video", {"bf": "2"}, "mpg", 12, id="MPEG-1 B frames"),
        pytest.param("mpeg4", {"bf": "2"}, "mkv", 25, id="MPEG-4"),
    ],
)
def test_dropped_packets_spoil_what_we_say_they_spoil(tmp_path, codec, options, suffix, gop):
    config, packets = coded(tmp_path / f"x.{suffix}", codec, options, gop)
    clean = receive(config, packets)
    assert not any(f.damaged for f in clean)
    recall, false_alarms, damaged = compare(clean, receive(config, dropped(packets)))
    assert damaged > 20
    assert recall >= 0.98
    assert false_alarms <= 0.03


@pytest.mark.parametrize("gop", [18, 25, 34])
def test_a_lost_idr_spoils_its_group_whatever_its_numbers_wrap_to(tmp_path, gop):
    """After 18 or 34 pictures, frame_num of the picture after the IDR is that of the picture before it."""
    config, packets = coded(tmp_path / "x.mkv", "libx264", {**X264, "bf": "0"}, gop, count=3 * gop)
    second = next(i for i, p in enumerate(packets) if p.keyframe and i)
    lossy = receive(config, [gap(p) if i == second else p for i, p in enumerate(packets)])
    recall, false_alarms, damaged = compare(receive(config, packets), lossy)
    assert (recall, false_alarms) == (1.0, 0.0) and damaged >= gop // 2


def test_bit_flips_are_found_through_what_the_decoder_says(tmp_path):
    # The default preset: in smaller packets a flip is more often decoded to something else without any error.
    config, packets = coded(tmp_path / "x.mkv", "libx264", {**X264, "preset": "medium", "bf": "0"})
    clean = receive(config, packets)
    scores = [compare(clean, receive(config, flipped(packets, seed))) for seed in range(3)]
    assert sum(s[2] for s in scores) > 200
    assert np.average([s[0] for s in scores], weights=[s[2] for s in scores]) >= 0.98
    assert max(s[1] for s in scores) <= 0.03


def test_holes_in_a_container_are_found_by_decode_times_and_frame_numbers(tmp_path):
    config, packets = coded(tmp_path / "x.mkv", "libx264", B_FRAMES)
    holed = [p for p in dropped(packets, seed=3) if isinstance(p, Packet)]
    recall, false_alarms, damaged = compare(receive(config, packets), receive(config, holed, numbered=False))
    assert damaged > 20
    assert recall >= 0.98
    assert false_alarms <= 0.03


def test_intra_only_codecs_lose_only_what_is_lost(tmp_path):
    write_media(
        tmp_path / "x.avi",
        [VideoTrack(frames=moving_pictures(40), codec="mjpeg", pixel_format="yuvj420p")],
    )
    with FileSource(tmp_path / "x.avi") as source:
        config, packets = source.info.codecs["video"], list(source.packets())
    items = dropped(packets, share=0.3)
    frames = receive(config, items)
    assert len(frames) == sum(isinstance(i, Packet) for i in items) < 40
    assert not any(f.damaged for f in frames)


def test_a_lost_b_frame_that_nobody_needs_spoils_nothing(tmp_path):
    config, packets = coded(tmp_path / "x.mkv", "libx264", {**B_FRAMES, "x264-params": "b-pyramid=none"}, count=50)
    order = [p.capture_time for p in packets]
    b_frames = [i for i in range(2, 40) if order[i] < max(order[:i])]
    items = [gap(p) if i == b_frames[3] else p for i, p in enumerate(packets)]
    frames = receive(config, items)
    assert len(frames) == 49
    assert not any(f.damaged for f in frames)


# ------------------------------------------------------------------------------------- verdicts, without any decoder

MPEG = CodecConfig(codec="mpeg1video", time_base=Fraction(1, 25))


def mpeg(seq: int, kind: str, order: int, time: int, **changes) -> Packet:
    """An MPEG-1 picture header: temporal reference and coding type."""
    coding = {"I": 1, "P": 2, "B": 3}[kind]
    payload = b"\0\0\1\0" + (order << 6 | coding << 3).to_bytes(2, "big") + b"\xff" * 40
    if kind == "I":
        payload = b"\0\0\1\xb8" + b"\0\0\0\0" + payload
    given = {"modality": "video", "seq": seq, "capture_time": time, "time_base": Fraction(1, 25), "payload": payload}
    return Packet(**(given | changes))


#  decode order I0 P3 B1 B2 P6 B4 B5 I9 B7 B8 P12
GROUP = [("I", 0), ("P", 3), ("B", 1), ("B", 2), ("P", 6), ("B", 4), ("B", 5)]


def pushed(tracker: VideoDamage, items) -> list[str]:
    return [tracker.push(i).reason for i in items]


def group() -> list[Packet]:
    return [mpeg(i, kind, order, order) for i, (kind, order) in enumerate(GROUP)]


def test_a_lost_anchor_spoils_until_the_next_intra_picture():
    packets = [*group(), mpeg(7, "I", 2, 9), mpeg(8, "B", 0, 7), mpeg(9, "B", 1, 8), mpeg(10, "P", 5, 12)]
    packets[1] = gap(packets[1])
    reasons = pushed(VideoDamage(MPEG), packets)
    assert reasons == ["", "lost", *["reference"] * 5, "", "reference", "reference", ""]  # 8 and 9 are leading pictures


def test_an_error_told_late_reaches_every_picture_decoded_since():
    tracker, packets = VideoDamage(MPEG), group()
    pushed(tracker, packets)
    assert tracker.frame_flag(0) == INTACT
    assert tracker.frame_flag(2).reason == ""  # B1 leaves the decoder before P3 is known to be wrong
    assert tracker.frame_flag(3).reason == ""
    assert tracker.frame_flag(1, corrupt=True).reason == "corrupt"
    assert [tracker.frame_flag(i).reason for i in (5, 6, 4)] == ["reference"] * 3
    assert tracker.push(mpeg(7, "P", 9, 9)).reason == "reference"
    assert tracker.push(mpeg(8, "I", 2, 12)).reason == ""


def test_a_corrupt_b_picture_spoils_only_itself():
    tracker, packets = VideoDamage(MPEG), group()
    pushed(tracker, packets)
    reasons = [tracker.frame_flag(i, corrupt=i == 2).reason for i in (0, 2, 3, 1, 5, 6, 4)]
    assert reasons == ["", "corrupt", "", "", "", "", ""]


def test_a_refused_packet_spoils_what_follows():
    tracker, packets = VideoDamage(MPEG), group()
    pushed(tracker, packets[:2])
    assert tracker.decode_error().reason == "corrupt"
    assert pushed(tracker, packets[2:]) == ["reference"] * 5
    assert tracker.errors == 1


def test_a_swallowed_reference_spoils_what_follows():
    tracker, packets = VideoDamage(MPEG), group()
    pushed(tracker, packets)
    reasons = [tracker.frame_flag(i).reason for i in (0, 2, 3, 5, 6, 4)]  # P3 never comes out
    assert reasons[:3] == ["", "", ""]
    assert reasons[3:] == ["reference"] * 3


def test_what_leads_the_group_that_a_stream_was_joined_at_is_damaged_and_spoils_nothing():
    tracker = VideoDamage(MPEG)
    joined = [mpeg(7, "I", 2, 9), mpeg(8, "B", 0, 7), mpeg(9, "B", 1, 8), mpeg(10, "P", 5, 12), mpeg(11, "B", 3, 10)]
    assert pushed(tracker, joined) == ["", "reference", "reference", "", ""]
    assert [tracker.frame_flag(i).reason for i in (7, 11, 10)] == [""] * 3  # 8 and 9 never come out


def test_decode_times_in_place_of_presentation_times_swallow_nothing():
    tracker = VideoDamage(MPEG)
    packets = [replace(p, capture_time=i) for i, p in enumerate(group())]
    pushed(tracker, packets)
    reasons = [tracker.frame_flag(i).reason for i in (0, 2, 3, 1, 5, 6, 4)]  # B1 and B2 before P3, whatever the times
    assert reasons[3:] == [""] * 4


def test_a_packet_that_is_decoded_but_never_shown_is_not_missed():
    tracker, packets = VideoDamage(MPEG), group()
    packets[1] = replace(packets[1], skip=1)
    pushed(tracker, packets)
    assert [tracker.frame_flag(i).reason for i in (0, 2, 3, 5, 6, 4)] == [""] * 6


def test_what_the_transport_calls_corrupt_is_corrupt():
    packets = group()
    packets[1] = replace(packets[1], corrupt=True)
    assert pushed(VideoDamage(MPEG), packets)[:3] == ["", "corrupt", "reference"]


def test_a_header_that_cannot_be_read_counts_as_a_reference():
    tracker, packets = VideoDamage(MPEG), group()
    tracker.push(packets[0])
    tracker.push(gap(packets[1]))
    assert tracker.push(replace(packets[2], payload=b"?")).reason == "reference"


def test_a_codec_without_parser_goes_by_the_keyframe_flag():
    config = CodecConfig(codec="theora", time_base=Fraction(1, 25))
    tracker, packets = VideoDamage(config), group()
    tracker.push(gap(packets[0]))
    assert tracker.push(packets[1]).reason == "reference"
    assert tracker.push(replace(packets[2], keyframe=True)) == INTACT
    assert tracker.push(packets[3]) == INTACT


def test_severity_grows_with_what_is_lost_and_ends_with_it():
    tracker, packets = VideoDamage(MPEG), group()
    tracker.push(packets[0])
    tracker.push(gap(packets[1]))
    once = tracker.push(packets[4]).severity
    tracker.push(gap(packets[1]))
    assert 0 < once < tracker.push(packets[4]).severity <= 1
    assert tracker.push(mpeg(9, "I", 0, 20)).severity == 0


# ----------------------------------------------------------------------------------- containers without numbers


def lost(rule: StepRule, times) -> list[int]:
    return [rule.lost_before(t) for t in times]


def test_a_decode_step_above_one_and_a_half_medians_is_a_loss():
    rule = StepRule()
    assert lost(rule, range(0, 400, 40)) == [0] * 10
    assert rule.lost_before(440) == 1  # two steps
    assert rule.lost_before(600) == 3  # four steps
    assert not rule.unknown


def test_rounded_milliseconds_are_still_a_steady_rate():
    rule = StepRule()
    assert sum(lost(rule, [round(i * 1001 / 30) for i in range(200)])) == 0
    assert not rule.unknown


def test_a_variable_rate_tells_nothing_and_says_so():
    rule = StepRule()
    times = np.cumsum(np.random.default_rng(0).integers(20, 200, 100)).tolist()
    assert sum(lost(rule, times)) == 0
    assert rule.unknown


def test_a_tracker_with_numbers_never_doubts_them():
    assert not VideoDamage(MPEG).unknown
    assert VideoDamage(MPEG, sequence_numbers=False).unknown  # until it has seen enough


# --------------------------------------------------------------------------------------------------------------- audio


AUDIBLE = 0.02  # mean absolute error; the tone has 0.25, the dither of AC-3 0.004


def spoiled_by_decoding(path: Path, codec: str, rate: int) -> tuple[list[bool], list[Damage]]:
    """For each packet after a single lost one: whether its sound is wrong in truth, and the verdict."""
    t = np.arange(rate * 2) / rate
    sweep = (0.4 * np.sin(2 * np.pi * (200 + 400 * t) * t)).astype(np.float32)
    samples = np.stack([sweep, sweep]) if codec == "vorbis" else sweep  # FFmpeg's own encoder takes nothing else
    write_media(path, [AudioTrack(samples=samples, sample_rate=rate, codec=codec)])
    with FileSource(path) as source:
        config, packets = source.info.codecs["audio"], list(source.packets())
    hit = len(packets) // 2
    tracker = AudioDamage(config)
    verdicts = [
        tracker.push(Gap(modality="audio", first_seq=p.seq, count=1) if i == hit else p) for i, p in enumerate(packets)
    ]

    def decoded(skipped: int) -> np.ndarray:
        decoder = AudioDecoder(config, AudioSpec(sample_rate=rate))
        out = np.zeros(rate * 3, np.float32)
        blocks = [b for i, p in enumerate(packets) if i != skipped for b in decoder.decode(p)] + decoder.flush()
        for block in blocks:
            at = round(block.time * rate)
            if at >= 0:
                out[at : at + len(block.samples)] = block.samples[: len(out) - at]
        return out

    error = np.abs(decoded(-1) - decoded(hit))
    spans = [(round(p.seconds * rate), round(p.end_seconds * rate)) for p in packets]
    wrong = [bool(len(error[max(a, 0) : b]) and error[max(a, 0) : b].mean() > AUDIBLE) for a, b in spans]
    return wrong[hit + 1 : hit + 13], verdicts[hit + 1 : hit + 13]


@pytest.mark.parametrize(
    ("codec", "suffix", "rate"),
    [
        pytest.param("pcm_s16le", "wav", 16_000, id="PCM"),
        pytest.param("flac", "flac", 16_000, id="FLAC"),
        pytest.param("aac", "mp4", 16_000, id="AAC"),
        pytest.param("mp2", "mpg", 48_000, id="MP2"),
        pytest.param("libmp3lame", "mp3", 44_100, id="MP3"),
        pytest.param("ac3", "mp4", 48_000, id="AC-3"),
        pytest.param("libopus", "ogg", 48_000, id="Opus"),
        pytest.param("vorbis", "ogg", 48_000, id="Vorbis"),
    ],
)
def test_sound_is_flagged_as_long_as_a_hole_is_heard(tmp_path, codec, suffix, rate):
    wrong, verdicts = spoiled_by_decoding(tmp_path / f"x.{suffix}", codec, rate)
    flagged = [v.damaged for v in verdicts]
    missed = [i for i, (w, f) in enumerate(zip(wrong, flagged, strict=True)) if w and not f]
    assert missed == []
    assert sum(flagged) <= sum(wrong) + 4  # Opus converges sooner than the 80 ms it is given
    assert not flagged[-1]


AAC = CodecConfig(codec="aac", time_base=Fraction(1, 48_000), sample_rate=48_000)


def sound(seq: int, time: int | None = None, **changes) -> Packet:
    given = {
        "modality": "audio",
        "seq": seq,
        "capture_time": seq * 1024 if time is None else time,
        "time_base": Fraction(1, 48_000),
        "payload": b"x",
        "duration": 1024,
    }
    return Packet(**(given | changes))


def after_a_hole(config: CodecConfig, count: int = 5) -> list[bool]:
    tracker = AudioDamage(config)
    tracker.push(sound(0))
    tracker.push(Gap(modality="audio", first_seq=1, count=1))
    return [tracker.push(sound(s)).damaged for s in range(2, 2 + count)]


def test_low_complexity_aac_is_spoiled_for_a_frame():
    assert after_a_hole(replace(AAC, extradata=b"\x11\x88")) == [True, False, False, False, False]


@pytest.mark.parametrize(
    "extradata",
    [
        b"\x2b\x11\x88\x00",  # object type 5
        b"\xeb\x09\x88\x00",  # object type 29
        b"\x13\x10\x56\xe5\x9d\x48\x80",  # a trailing extension, SBR present
        b"\x13\x08",  # 24 kHz inside a stream of 48 kHz
    ],
)
def test_high_efficiency_aac_is_spoiled_for_two(extradata: bytes):
    assert after_a_hole(replace(AAC, extradata=extradata)) == [True, True, False, False, False]


def test_an_extension_that_says_no_replication_is_low_complexity():
    assert after_a_hole(replace(AAC, extradata=b"\x11\x88\x56\xe5\x00")) == [True, False, False, False, False]


def test_a_refused_audio_packet_is_a_hole():
    tracker = AudioDamage(AAC)
    tracker.push(sound(0))
    assert tracker.decode_error().reason == "corrupt"
    assert [tracker.push(sound(s)).damaged for s in (1, 2)] == [True, False]


def test_a_step_in_time_is_a_hole_only_without_numbers_and_not_in_silence_on_purpose():
    def verdict(codec: str, numbered: bool) -> bool:
        tracker = AudioDamage(replace(AAC, codec=codec), sequence_numbers=numbered)
        tracker.push(sound(0))
        return tracker.push(sound(1, time=20_480)).damaged

    assert verdict("aac", False)
    assert not verdict("aac", True)
    assert not verdict("opus", False)
