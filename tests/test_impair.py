"""Loss applied to packets: what comes through, when, and in which order."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.channel import Channel, open_profile
from runtime.errors import UsageError
from runtime.impair import impair
from runtime.packet import CodecConfig, Decision, Packet

MS = Fraction(1, 1000)


def audio(seq: int) -> Packet:
    return Packet(modality="audio", seq=seq, capture_time=20 * seq, time_base=MS, payload=b"\x07" * 4, keyframe=True)


def video(seq: int, *, every: int = 10) -> Packet:
    key = seq % every == 0
    return Packet(modality="video", seq=seq, capture_time=40 * seq, time_base=MS, payload=b"%d" % seq, keyframe=key)


def stream(seconds: int = 60) -> list[Packet]:
    packets = [audio(i) for i in range(50 * seconds)] + [video(i) for i in range(25 * seconds)]
    return sorted(packets, key=lambda p: (p.seconds, p.modality))


def numbers(packets: list[Packet], modality: str) -> list[int]:
    return [p.seq for p in packets if p.modality == modality]


def test_a_clean_profile_delivers_everything_at_once():
    packets = stream(2)
    through = list(impair(packets, open_profile("clean"), seed=3))
    assert through == [replace(p, arrival=p.seconds) for p in packets]


def test_what_the_channel_loses_does_not_come_and_nothing_else_is_missing():
    profile = open_profile("wifi-poor")
    through = list(impair(stream(), profile, seed=5))
    channel = Channel(profile, 5)
    assert numbers(through, "audio") == np.flatnonzero(~channel.lost("audio", np.arange(3000) * 0.02)).tolist()
    assert numbers(through, "video") == np.flatnonzero(~channel.lost("video", np.arange(1500) * 0.04)).tolist()
    assert len(through) < 4500


def test_packets_come_in_order_of_arrival_and_never_before_they_were_sent():
    through = list(impair(stream(), open_profile("congestion+reorder"), seed=1))
    arrivals = [p.arrival for p in through]
    assert arrivals == sorted(arrivals)
    assert all(p.arrival >= p.seconds for p in through)


def test_a_link_is_a_queue_and_keeps_the_order_of_each_modality():
    through = list(impair(stream(), open_profile("congestion"), seed=1))
    assert numbers(through, "audio") == sorted(numbers(through, "audio"))
    assert numbers(through, "video") == sorted(numbers(through, "video"))


def test_the_reorder_variant_lets_some_packets_be_overtaken_and_loses_the_same_ones():
    plain = list(impair(stream(120), open_profile("iid-5"), seed=2))
    mixed = list(impair(stream(120), open_profile("iid-5+reorder"), seed=2))
    assert sorted(numbers(mixed, "audio")) == numbers(plain, "audio")
    overtaken = np.diff(numbers(mixed, "audio")) < 0
    assert 1 <= np.count_nonzero(overtaken) <= 25  # of 6000, one in a thousand is held back


def test_the_dup_variant_sends_some_packets_twice():
    plain = list(impair(stream(120), open_profile("iid-5"), seed=2))
    doubled = list(impair(stream(120), open_profile("iid-5+dup"), seed=2))
    assert set(numbers(doubled, "audio")) == set(numbers(plain, "audio"))
    assert 1 <= len(doubled) - len(plain) <= 25
    assert [p.arrival for p in doubled] == sorted(p.arrival for p in doubled)


def test_a_recorded_arrival_is_when_the_packet_was_sent_into_the_lossy_link():
    late = [replace(audio(i), arrival=5 + 0.02 * i) for i in range(100)]
    through = list(impair(late, open_profile("wired"), seed=0))
    assert all(0 <= p.arrival - (5 + 0.02 * p.seq) < 0.06 for p in through)


def test_a_frame_is_sent_after_the_frame_it_refers_to():
    order = (0, 3, 1, 2)  # I P B B, in decode order
    through = list(impair([video(i) for i in order], open_profile("clean"), seed=0))
    assert [(p.seq, p.arrival) for p in through] == [(0, 0.0), (3, 0.12), (1, 0.12), (2, 0.12)]


def test_a_paced_source_gets_its_packets_back_without_waiting_for_the_end():
    def live():
        for i in range(1000):
            yield replace(audio(i), arrival=0.02 * i)
        pytest.fail("the whole stream was read before anything came out")

    first = next(impair(live(), open_profile("iid-1"), seed=0, batch=1))
    assert first.seq == 0


def test_a_decision_keeps_its_place():
    packets = stream(4)
    decision = Decision(kind="device_lost", modality="video", arrival=1.3)
    marked = [*packets[:100], decision, *packets[100:]]
    through = list(impair(marked, open_profile("clean"), seed=0))
    assert through[100] is decision
    assert len(through) == len(marked)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 400), name=st.sampled_from(["wifi-poor+reorder+dup", "lte-driving", "camera-stall+frozen"]))
def test_the_size_of_the_batch_changes_nothing(batch, name):
    packets, profile = stream(8), open_profile(name)
    assert list(impair(packets, profile, 9, batch=batch)) == list(impair(packets, profile, 9, batch=10**6))


def test_a_frozen_camera_repeats_its_last_key_frame_until_the_next_one():
    profile = open_profile("camera-stall+frozen")
    packets = [video(i) for i in range(25 * 200)]
    through = list(impair(packets, profile, seed=4))
    stalled = Channel(profile, 4).lost("video", np.arange(len(packets)) * 0.04)
    assert stalled.any()

    assert [p.seq for p in through] == [p.seq for p in packets]  # no number is missing
    first = int(np.flatnonzero(stalled)[0])
    shown = through[first].payload
    assert int(shown) % 10 == 0 and int(shown) < first
    back = next(i for i in range(first, len(packets)) if not stalled[i] and packets[i].keyframe)
    assert all(p.payload == shown and p.keyframe for p in through[first:back])
    assert through[back].payload == packets[back].payload


def test_a_muted_microphone_sends_silence_with_every_number_in_place():
    profile = open_profile("mic-mute+zeros")
    codecs = {"audio": CodecConfig(codec="pcm_s16le", time_base=MS)}
    packets = [audio(i) for i in range(50 * 300)]
    through = list(impair(packets, profile, seed=1, codecs=codecs))
    muted = Channel(profile, 1).lost("audio", np.arange(len(packets)) * 0.02)
    assert muted.any() and not muted.all()
    assert [p.payload == bytes(4) for p in through] == muted.tolist()


def test_silence_in_an_unknown_codec_is_refused_in_a_sentence():
    codecs = {"audio": CodecConfig(codec="atrac3", time_base=MS)}
    with pytest.raises(UsageError, match="atrac3"):
        list(impair([audio(i) for i in range(20_000)], open_profile("mic-mute+zeros"), seed=1, codecs=codecs))
