"""Limits: what a config may ask for, what a packet may be, how frames in fragments become whole."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import stream_pb2 as pb
from runtime.packet import CodecConfig
from runtime.recording import RecordingReader
from runtime.serve.convert import codec_to_wire, packet_to_wire
from runtime.serve.fragments import Fragments
from runtime.serve.limits import CODECS, Gate, Limits, check_codec, plan_stream
from runtime.serve.status import Refused
from tests import fakes
from tests.fakes import TICK, packet
from tests.serving import offer

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"


def wired(**changes: Any) -> pb.CodecConfig:
    """A codec of 720p that may be opened, with fields changed."""
    good = CodecConfig(codec="h264", time_base=Fraction(1, 90000), width=1280, height=720, frame_rate=Fraction(30))
    wire = codec_to_wire("video", good)
    for name, value in changes.items():
        if isinstance(value, pb.Rational):
            getattr(wire, name).CopyFrom(value)
        else:
            setattr(wire, name, value)
    return wire


def ask(**fields: Any) -> pb.StreamConfig:
    fields.setdefault("codecs", [codec_to_wire(m, c) for m, c in fakes.CODECS.items()])
    return pb.StreamConfig(**fields)


def refusal(config: pb.StreamConfig) -> Refused:
    with pytest.raises(Refused) as caught:
        plan_stream(config, offer(), Limits())
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value


# -- configs --------------------------------------------------------------------------------------------------


def test_a_plan_takes_what_is_absent_from_bundle_and_server():
    plan = plan_stream(ask(name="desk"), offer(), Limits())
    assert plan.heads == ("gru",)
    assert (plan.lookahead, plan.playout_delay, plan.info.origin, plan.token) == (0, None, None, b"")
    assert plan.info.name == "desk" and not plan.recording_consent
    assert plan.info.codecs == fakes.CODECS


def test_a_file_says_how_long_it_is_and_what_its_numbers_are_worth():
    zero = pb.Rational(denominator=1)
    file = {"origin": zero, "duration_seconds": 12.5}
    plan = plan_stream(ask(**file, sequence_numbers=False, recorded=True), offer(), Limits())
    assert (plan.info.duration, plan.info.sequence_numbers, plan.recorded) == (12.5, False, True)
    plan = plan_stream(ask(), offer(), Limits())
    assert (plan.info.duration, plan.info.sequence_numbers, plan.recorded) == (None, True, False)
    assert plan_stream(ask(duration_seconds=12.5), offer(), Limits()).info.duration is None  # from where?
    later = pb.ResumePoint(stream="9f", epoch=1, origin=zero)  # whose own end nobody announced
    assert plan_stream(ask(**file, resume_point=later), offer(), Limits()).info.duration is None


@pytest.mark.parametrize(("fields", "field"), [
    ({"name": "x" * 257}, "name"),
    ({"heads": ["gru", "nose"]}, "heads[1]"),
    ({"lookahead": 3}, "lookahead"),
    ({"playout_delay_ms": -1.0}, "playout_delay_ms"),
    ({"playout_delay_ms": float("nan")}, "playout_delay_ms"),
    ({"playout_delay_ms": 1e9}, "playout_delay_ms"),
    ({"resume_token": b"x" * 15}, "resume_token"),
    ({"duration_seconds": -1.0}, "duration_seconds"),
    ({"duration_seconds": float("nan")}, "duration_seconds"),
    ({"duration_seconds": float("inf")}, "duration_seconds"),
    ({"origin": pb.Rational(numerator=1, denominator=0)}, "origin"),
    ({"origin": pb.Rational(numerator=1 << 62, denominator=1)}, "origin"),
    ({"codecs": []}, "codecs"),
    ({"codecs": [wired(), wired()]}, "codecs[1].modality"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused_by_its_field(fields, field):
    assert refusal(ask(**fields)).field == field


@pytest.mark.parametrize(("changes", "field"), [
    ({"modality": 0}, "modality"),
    ({"modality": 7}, "modality"),
    ({"codec": ""}, "codec"),
    ({"codec": "gif"}, "codec"),
    ({"codec": "concat:/etc/passwd"}, "codec"),
    ({"codec": "aac"}, "codec"),  # no codec of pictures
    ({"time_base": pb.Rational(numerator=0, denominator=1)}, "time_base"),
    ({"time_base": pb.Rational(numerator=-1, denominator=90000)}, "time_base"),
    ({"time_base": pb.Rational(numerator=1, denominator=0)}, "time_base"),
    ({"time_base": pb.Rational(numerator=1 << 62, denominator=1)}, "time_base"),
    ({"time_base": pb.Rational(numerator=1, denominator=1 << 62)}, "time_base"),
    ({"extradata": bytes(65537)}, "extradata"),
    ({"width": 4097}, "width"),
    ({"height": 2305}, "height"),
    ({"frame_rate": pb.Rational(numerator=61, denominator=1)}, "frame_rate"),
    ({"frame_rate": pb.Rational(numerator=0, denominator=1)}, "frame_rate"),
    ({"rotation": 45}, "rotation"),
    ({"sample_rate": 192_001}, "sample_rate"),
    ({"channels": 9}, "channels"),
    ({"sample_format": "evil"}, "sample_format"),
    ({"codec": "rawvideo", "pixel_format": "bayer_bggr8"}, "pixel_format"),
    ({"codec": "rawvideo", "pixel_format": "rgb24", "width": 0}, "width"),
])  # fmt: skip
def test_a_codec_that_may_not_be_opened_is_refused_by_its_field(changes, field):
    with pytest.raises(Refused) as caught:
        check_codec("codecs[0]", wired(**changes), Limits())
    assert caught.value.field == f"codecs[0].{field}"
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_codec_without_a_time_base_is_refused():
    wire = wired()
    wire.ClearField("time_base")
    with pytest.raises(Refused, match="such as 1/90000"):
        check_codec("codec", wire, Limits())


def test_raw_sound_must_say_what_it_is():
    wire = codec_to_wire("audio", CodecConfig(codec="pcm_s16le", time_base=TICK, channels=1))
    with pytest.raises(Refused, match="send sample_rate and channels"):
        check_codec("codec", wire, Limits())


def test_every_codec_on_the_list_can_be_decoded_here():
    av = pytest.importorskip("av")
    for modality, names in CODECS.items():
        for name in names:
            assert av.codec.Codec(name, "r").type == modality


def test_names_cannot_move_a_cursor():
    plan = plan_stream(ask(name="a\x1b[2Jb\n"), offer(), Limits())
    assert plan.info.name == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}"


# -- packets --------------------------------------------------------------------------------------------------


def gate(**limits: Any) -> Gate:
    return Gate(fakes.CODECS, Limits(**limits))


def wire_of(*packets: Any) -> list[pb.Packet]:
    return [packet_to_wire(p, TICK) for p in packets]


def test_a_good_packet_passes_unchanged():
    (wire,) = wire_of(packet(seq=3))
    assert gate().packet(wire, 1.5) == packet(seq=3, arrival=1.5)


def test_more_than_sixty_pictures_a_second_do_not_pass_and_a_burst_does():
    gated = gate()
    fast = [packet(seq=i, ms=i * 2) for i in range(2000)]  # 500 a second for 4 s
    passed = sum(gated.packet(w, 0.0) is not None for w in wire_of(*fast))
    assert 2 * 60 + 4 * 60 <= passed <= 2 * 60 + 4 * 63 + 1


def test_sixty_pictures_a_second_pass_for_ever():
    gated = gate()
    steady = [packet(seq=i, ms=i * 1000 / 60) for i in range(6000)]
    assert all(gated.packet(w, 0.0) is not None for w in wire_of(*steady))


def test_a_clock_that_stands_still_or_jumps_is_no_endless_supply():
    gated = gate()
    still = [packet(seq=i, ms=0) for i in range(1000)]
    assert sum(gated.packet(w, 0.0) is not None for w in wire_of(*still)) == 120
    gated = gate()
    leaps = [packet(seq=i, ms=i * 100_000) for i in range(1000)]
    assert sum(gated.packet(w, 0.0) is not None for w in wire_of(*leaps)) == 120


def test_media_seconds_grow_by_at_most_a_second_a_packet():
    gated = gate()
    for w in wire_of(*(packet("audio", seq=i, ms=i * 1_000_000) for i in range(5))):
        gated.packet(w, 0.0)
    assert gated.media_seconds == 4.0


def test_the_keyframe_claim_is_put_right_where_the_bitstream_can_tell():
    reader = RecordingReader(DEMO)
    video = [p for p in reader.packets() if getattr(p, "modality", "") == "video" and hasattr(p, "payload")][:200]
    gated = Gate(reader.info.codecs, Limits())
    base = reader.info.codecs["video"].time_base
    for claim in (True, False):
        judged = [gated.packet(packet_to_wire(replace(p, keyframe=claim), base), 0.0) for p in video]
        assert [j.keyframe for j in judged] == [p.keyframe for p in video]
    assert 0 < sum(p.keyframe for p in video) < len(video)


def test_where_it_cannot_tell_the_claim_stands():
    for claim in (True, False):
        (wire,) = wire_of(packet(seq=1, keyframe=claim))
        assert gate().packet(wire, 0.0).keyframe is claim


@given(st.binary(max_size=200))
def test_no_bytes_of_a_packet_raise(data):
    wire = pb.Packet()
    try:
        wire.ParseFromString(data)
    except Exception:
        return
    gate().packet(wire, 0.0)


@given(
    st.integers(0, 9), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip
def test_no_numbers_of_a_packet_raise(modality, seq, time, duration, decode, above, below):
    base = pb.Rational(numerator=above, denominator=below)
    wire = pb.Packet(modality=modality, seq=seq, capture_time=time, duration=duration, decode_time=decode,
                     time_base=base, payload=b"x")  # fmt: skip
    judged = gate().packet(wire, 0.0)
    assert judged is None or abs(judged.seconds) <= 10**10


# -- fragments ------------------------------------------------------------------------------------------------


def fragments(base: int, count: int, ms: int = 0) -> list[pb.Packet]:
    """A frame in ``count`` packets from number ``base`` on."""
    parts = wire_of(*(replace(packet(seq=base + i, ms=ms), payload=bytes([(base + i) % 256])) for i in range(count)))
    for index, part in enumerate(parts):
        part.fragment_index, part.fragment_count = index, count
    return parts


def put_together(parts: list[pb.Packet], made: Fragments | None = None) -> list[tuple[int, bytes]]:
    made = made or Fragments()
    return [(w.seq, w.payload) for p in parts if (w := made.push(p, "video")) is not None]


def test_frames_in_fragments_get_consecutive_numbers():
    sent = [*fragments(0, 3), *fragments(3, 1), *fragments(4, 2), *wire_of(packet(seq=6, level=6))]
    assert put_together(sent) == [(0, b"\0\1\2"), (1, b"\3"), (2, b"\4\5"), (3, b"\6")]


def test_a_missing_fragment_is_a_missing_frame():
    sent = [*fragments(0, 3), *fragments(3, 3)[:2], *fragments(6, 3)]
    assert [number for number, _ in put_together(sent)] == [0, 2]


def test_fragments_may_come_in_any_order():
    sent = [*fragments(0, 2)[::-1], *fragments(2, 3)[::-1]]
    assert put_together(sent) == [(0, b"\0\1"), (1, b"\2\3\4")]


def test_a_frame_that_comes_after_the_next_one_takes_its_place_before_it():
    numbers = [n for n, _ in put_together([*fragments(0, 1), *fragments(4, 2), *fragments(1, 3)])]
    assert numbers[0] < numbers[2] < numbers[1]


def test_a_repeated_fragment_changes_nothing():
    first, second = fragments(0, 2)
    assert put_together([first, first, second]) == [(0, b"\0\1")]


def test_what_a_receiver_no_longer_needs_is_told_in_packets():
    made = Fragments()
    put_together([*fragments(0, 3), *fragments(3, 1), *fragments(4, 2), *wire_of(packet(seq=6))], made)
    assert [made.through("video", number) for number in range(4)] == [2, 3, 5, 6]
    assert made.through("audio", 17) == 17


@pytest.mark.parametrize(("index", "count"), [(0, 0), (3, 3), (0, 5000), (9, 10)])
def test_a_fragment_without_a_place_is_malformed(index, count):
    (wire,) = wire_of(packet(seq=4))
    wire.fragment_index, wire.fragment_count = index, count
    with pytest.raises(ValueError, match="fragment"):
        Fragments().push(wire, "video")


def test_frames_that_never_become_whole_are_let_go():
    made = Fragments()
    for frame in range(1000):
        made.push(fragments(frame * 2, 2)[0], "video")
    assert len(made._tracks["video"].open) <= 8
    assert len(made._tracks["video"].starts) <= 4096
