"""The receiver's law: what clips say, when they close, where every packet went, and that grouping changes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.presence import PresenceRule
from runtime.clip import Clip
from runtime.packet import Decision, Packet, StreamInfo
from runtime.receive import Receiver
from tests.fakes import CODECS, INFO, SPEC, TICK, FakeClock, fake_parts, packet, sent, stream, track


def receiver(
    info: StreamInfo = INFO,
    *,
    chained: Sequence[str] = (),
    hold: int = 0,
    rule: PresenceRule | None = None,
    **options: Any,
) -> Receiver:
    options.setdefault("delay", 0.05)
    rule = rule or PresenceRule()
    return Receiver(info, SPEC, rule, parts=fake_parts(chained, hold), stopwatch=FakeClock(), **options)


def play(packets: Sequence[Packet | Decision], to: Receiver) -> list[Clip]:
    """Every packet at its arrival, then the end."""
    clips = [clip for p in packets for clip in to.push(p, p.arrival or 0.0)]
    clips += to.finish()
    to.ledger.check()
    return clips


def newest(clips: Sequence[Clip]) -> list[Clip]:
    """Each clip in its last version."""
    return [*{c.index: c for c in clips}.values()]


def plain(clip: Clip) -> tuple[Any, ...]:
    """A clip as a value that can be compared."""
    content = [None if x is None else x.tobytes() for x in (clip.video, clip.audio)]
    said = (clip.presence, clip.coverage, clip.state, clip.flags, clip.severity)
    return clip.index, clip.epoch, clip.start, clip.version, clip.wait_ms, said, content


def without(packets: Sequence[Packet], modality: str, seqs: Sequence[int]) -> list[Packet]:
    return [p for p in packets if p.modality != modality or p.seq not in set(seqs)]


# ------------------------------------------------------------------------------------------------- a clean stream


def test_a_clean_stream_gives_whole_clips_on_the_grid() -> None:
    clips = play(stream(2.0), receiver())
    assert [(c.index, c.start) for c in clips] == [(i, Fraction(2 * i, 5)) for i in range(5)]
    assert all(c.state == {"video": "observed", "audio": "observed"} for c in clips)
    assert all(c.coverage == {"video": 1.0, "audio": 1.0} and c.version == 0 for c in clips)
    first = clips[0]
    assert first.video is not None and first.audio is not None
    assert first.video[:, 0, 0].tolist() == [10, 11, 13, 14, 15, 16, 18, 19]  # 10 frames, 8 looked at, by time
    assert (first.audio * 128).tolist() == [1 + i // 20 for i in range(400)]


def test_a_clip_closes_as_soon_as_its_last_packets_are_there() -> None:
    r = receiver()
    closed = [(p.arrival, c.index) for p in stream(1.2) for c in r.push(p, p.arrival or 0)]
    assert closed == [(pytest.approx(0.4), 0), (pytest.approx(0.8), 1), (pytest.approx(1.2), 2)]


def test_an_agreed_origin_cuts_the_same_clips_wherever_the_stream_is_joined() -> None:
    whole = play(stream(4.0), receiver())
    joined = play([p for p in stream(4.0) if p.seconds >= 2.5], receiver())
    assert [plain(c)[5:] for c in joined[1:]] == [plain(c)[5:] for c in whole[7:]]
    assert [c.index for c in joined] == [6, 7, 8, 9]


def test_without_an_agreed_origin_the_first_capture_time_is_floored_to_the_grid() -> None:
    packets = [p for p in stream(4.0) if p.seconds >= 2.5]
    clips = play(packets, receiver(replace(INFO, origin=None)))
    assert [(c.index, c.start) for c in clips] == [(i, Fraction(12, 5) + i * Fraction(2, 5)) for i in range(4)]


def test_frames_at_29_97_per_second_are_all_used() -> None:
    base = Fraction(1001, 30_000)
    frames = [
        Packet(modality="video", seq=i, capture_time=i, time_base=base, payload=bytes([i]), duration=1, keyframe=True)
        for i in range(72)
    ]
    r = receiver(replace(INFO, codecs={"video": CODECS["video"]}))
    clips = play(sent(frames), r)
    assert [c.coverage["video"] for c in clips] == [1.0] * 6
    assert r.ledger["video"].counts.used == 72


def test_a_stream_that_ends_within_a_clip_keeps_it_only_if_it_could_be_present() -> None:
    assert len(play(stream(2.2), receiver())) == 5  # half a clip: not more than half
    assert len(play(stream(2.28), receiver())) == 6


@pytest.mark.parametrize("end", [0.1, 2.08, 2.2])
def test_packets_that_reach_only_into_a_clip_that_does_not_exist_are_unused(end: float) -> None:
    r = receiver()
    whole = len(play(stream(end), r)) * 0.4
    for modality, rate in (("video", 25), ("audio", 50)):
        counts = r.ledger[modality].counts
        assert counts.used == round(whole * rate) and counts.unused == len(track(modality, end - whole))
        assert counts.unfinished == 0


def test_an_announced_length_counts_although_the_end_was_lost() -> None:
    packets = [p for p in stream(4.0) if p.seconds < 3.0]
    clips = play(packets, receiver(replace(INFO, duration=4.0)))
    assert len(clips) == 10
    assert clips[-1].state == {"video": "lost", "audio": "lost"}


def test_what_a_clip_waited_and_took_to_decode_is_measured_on_the_clocks_passed_in() -> None:
    late = {("audio", 19): 0.03}
    packets = stream(0.8, delay=lambda p: late.get((p.modality, p.seq), 0.0))
    r = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.1, stopwatch=FakeClock(step=0.001))
    first = play(packets, r)[0]
    assert first.wait_ms == pytest.approx(30 - 20, abs=0.1)  # from the least transit: a block's own length
    assert first.decode_ms == pytest.approx(30)  # 10 frames and 20 blocks


# --------------------------------------------------------------------------------------------------- loss and damage


def test_a_lost_block_is_a_hole_with_silence_in_its_own_clip_only() -> None:
    r = receiver()
    clips = play(without(stream(1.2), "audio", range(22, 26)), r)
    assert [c.coverage["audio"] for c in clips] == [1.0, pytest.approx(0.8), 1.0]
    middle = clips[1].audio
    assert middle is not None
    assert not middle[40:120].any() and middle[30:40].all() and middle[120:].all()
    assert r.ledger["audio"].counts.lost == 4


def test_coverage_at_the_threshold_is_not_above_it() -> None:
    quarter = play(without(stream(1.2), "audio", range(25, 30)), receiver())[1]
    assert quarter.coverage["audio"] == pytest.approx(0.75)
    assert (quarter.presence["audio"], quarter.state["audio"], quarter.audio) == (False, "lost", None)


def test_a_lost_frame_is_closed_with_the_nearest_of_the_same_clip() -> None:
    clips = play(without(stream(1.2), "video", [8, 9, 10, 11]), receiver())
    assert clips[0].coverage["video"] == pytest.approx(0.8)
    assert clips[1].coverage["video"] == pytest.approx(0.8)
    assert clips[0].video is not None and clips[1].video is not None
    assert clips[0].video[-2:, 0, 0].tolist() == [17, 17]  # not 22, which is as near but in the next clip
    assert clips[1].video[:2, 0, 0].tolist() == [22, 22]


@given(st.integers(0, 4), st.sets(st.integers(0, 49)), st.sets(st.integers(0, 99)))
@settings(max_examples=20, deadline=None)
def test_what_is_outside_a_clip_never_shows_in_it(clip: int, frames: set[int], blocks: set[int]) -> None:
    inside = {"video": range(10 * clip, 10 * clip + 10), "audio": range(20 * clip, 20 * clip + 20)}
    lossy = without(without(stream(2.0), "video", sorted(frames)), "audio", sorted(blocks))
    other = [p if p.seq in inside[p.modality] else replace(p, payload=b"\xc8") for p in lossy]
    info = replace(INFO, duration=2.0)
    before, after = ({c.index: c for c in play(x, receiver(info))} for x in (lossy, other))
    assert set(before) == set(after)
    if clip in before:
        assert plain(before[clip])[5:] == plain(after[clip])[5:]


def test_a_frame_with_a_broken_reference_is_damaged_until_the_next_keyframe() -> None:
    video = [replace(p, keyframe=p.seq % 25 == 0) for p in track("video", 2.0)]
    packets = without(sent(video + track("audio", 2.0)), "video", [11])
    r = receiver(chained=("video",))
    clips = play(packets, r)
    assert [round(c.coverage["video"], 3) for c in clips] == [1.0, 0.1, 0.5, 1.0, 1.0]
    assert [c.state["video"] for c in clips] == ["observed", "damaged", "damaged", "observed", "observed"]
    assert clips[1].severity["video"] == 0.5
    assert r.ledger["video"].counts.damaged == 13


def test_damage_that_is_forgiven_is_looked_at_and_still_counted_as_damage() -> None:
    video = [replace(p, keyframe=p.seq % 25 == 0) for p in track("video", 2.0)]
    packets = without(sent(video + track("audio", 2.0)), "video", [11])
    r = receiver(chained=("video",), rule=PresenceRule(forgive_video=1.0))
    clips = play(packets, r)
    assert [round(c.coverage["video"], 3) for c in clips] == [1.0, 0.1, 0.5, 1.0, 1.0]
    assert all(c.presence["video"] and c.state["video"] == "observed" for c in clips)
    assert [c.flags["video"] for c in clips] == [(), ("spoiled",), ("spoiled",), (), ()]
    assert clips[1].video is not None and clips[1].video[-1, 0, 0] == 29  # the last that came, though damaged
    assert (r.ledger["video"].counts.damaged, r.ledger["video"].counts.unused) == (13, 0)


@given(st.sets(st.integers(0, 49)), st.sets(st.integers(0, 99)), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_forgiving_changes_what_is_believed_and_nothing_that_is_said_of_the_loss(
    frames: set[int], blocks: set[int], video: float, audio: float
) -> None:
    lossy = without(without(stream(2.0), "video", sorted(frames)), "audio", sorted(blocks))
    info, kind = replace(INFO, duration=2.0), PresenceRule(forgive_video=video, forgive_audio=audio)
    strict, forgiving = (
        play(lossy, receiver(info, chained=("video", "audio"), rule=rule)) for rule in (PresenceRule(), kind)
    )
    for one, other in zip(strict, forgiving, strict=True):
        assert (one.coverage, one.severity) == (other.coverage, other.severity)
        for m in ("video", "audio"):
            spoiled = "spoiled" in other.flags[m]
            assert other.presence[m] >= one.presence[m]
            assert spoiled or (other.presence[m], other.state[m]) == (one.presence[m], one.state[m])
            assert not spoiled or (other.presence[m] and other.coverage[m] < 1)


def test_ties_between_causes_fall_to_damage() -> None:
    video = [replace(p, keyframe=p.seq in (0, 20)) for p in track("video", 1.2)]
    packets = without(sent(video + track("audio", 1.2)), "video", range(10, 15))
    assert play(packets, receiver(chained=("video",)))[1].state["video"] == "damaged"


def test_a_refused_packet_is_damaged_and_the_stream_goes_on() -> None:
    bad = [replace(p, payload=b"\xff\xff") if (p.modality, p.seq) == ("video", 12) else p for p in stream(1.2)]
    r = receiver()
    assert [c.presence["video"] for c in play(bad, r)] == [True] * 3
    assert r.ledger["video"].counts.damaged == 1


def test_a_packet_without_a_payload_is_malformed_and_its_time_is_missing() -> None:
    bad = [replace(p, payload=b"") if (p.modality, p.seq) == ("audio", 22) else p for p in stream(1.2)]
    r = receiver()
    assert play(bad, r)[1].coverage["audio"] == pytest.approx(0.95)
    assert r.ledger["audio"].counts.malformed == 1
    assert r.ledger["audio"].counts.lost == 0


def test_copies_are_counted_once_each() -> None:
    r = receiver()
    packets = stream(1.2)
    clips = play(sorted(packets + packets[::3], key=lambda p: p.arrival or 0), r)
    assert all(c.coverage == {"video": 1.0, "audio": 1.0} for c in clips)
    assert sum(ledger.counts.duplicate for ledger in r.ledger.values()) == len(packets[::3])


# ------------------------------------------------------------------------------------------------- silence and flags


def test_a_time_step_without_a_missing_number_is_silence_in_audio_and_no_new_frame_in_video() -> None:
    video = [replace(p, seq=i) for i, p in enumerate(p for p in track("video", 1.2) if not 12 <= p.seq < 15)]
    audio = [replace(p, seq=i) for i, p in enumerate(p for p in track("audio", 1.2) if not 22 <= p.seq < 26)]
    clips = play(sent(video + audio), receiver(delay=0.3))
    assert clips[1].coverage == {"video": 1.0, "audio": 1.0}
    assert clips[1].audio is not None and clips[1].video is not None
    assert not clips[1].audio[40:120].any()
    assert clips[1].video[:, 0, 0].tolist() == [20, 21, 21, 21, 25, 26, 28, 29]


def test_content_flags_are_reported_and_leave_presence_alone() -> None:
    still = [replace(p, payload=b"\x50") for p in track("video", 0.8)]
    quiet = [replace(p, payload=b"\x00") for p in track("audio", 0.8)]
    first = play(sent(still + quiet), receiver())[0]
    assert first.presence == {"video": True, "audio": True}
    assert first.flags == {"video": ("frozen",), "audio": ("silent",)}


def test_a_grey_wall_is_blank() -> None:
    first = play(sent([replace(p, payload=b"\xfa") for p in track("video", 0.8)]), receiver())[0]
    assert first.flags["video"] == ("frozen", "blank")


# --------------------------------------------------------------------------------------------------------- deadlines


def test_a_stalled_camera_does_not_hold_the_sound_back() -> None:
    packets = [p for p in stream(4.0) if p.modality == "audio" or p.seconds < 0.8]
    r = receiver()
    closed = {c.index: (p.arrival or 0) for p in packets for c in r.push(p, 0)}
    assert closed[2] == pytest.approx(1.2 + 0.04 + 0.05 + 2 * 0.04, abs=0.02)  # transit, playout delay, two frames
    assert closed[8] == pytest.approx(3.6, abs=0.03)  # silent for two seconds: not waited for any more
    assert [e.kind for e in r.events] == ["started", "started", "ended"]


def test_a_modality_that_never_comes_is_reported_and_lost() -> None:
    r = receiver()
    clips = play(sent(track("audio", 4.0)), r)
    assert len(clips) == 10
    assert all(c.state == {"video": "lost", "audio": "observed"} for c in clips)
    assert [(e.kind, e.modality) for e in r.events] == [("started", "audio"), ("absent", "video")]


def test_a_track_that_is_not_announced_is_lost_and_never_waited_for() -> None:
    r = receiver(replace(INFO, codecs={"audio": CODECS["audio"]}))
    closed = [p.arrival for p in sent(track("audio", 1.2)) for _ in r.push(p, 0)]
    assert closed == pytest.approx([0.4, 0.8, 1.2])


def test_a_modality_that_starts_late_and_ends_early() -> None:
    video = [p for p in track("video", 6.0) if 2.0 <= p.seconds < 4.0]
    clips = play(sent([replace(p, seq=i) for i, p in enumerate(video)] + track("audio", 6.0)), receiver())
    assert [c.presence["video"] for c in clips] == [False] * 5 + [True] * 5 + [False] * 5
    assert all(c.presence["audio"] for c in clips)


def test_packets_of_a_track_that_was_not_chosen_are_unused() -> None:
    r = Receiver(INFO, replace(SPEC, video=None), parts=fake_parts(), delay=0.05)
    clips = play(stream(1.2), r)
    assert set(clips[0].state) == {"audio"}
    assert r.ledger["video"].counts.unused == 30


def test_an_outage_of_both_closes_clips_while_time_passes() -> None:
    r = receiver()
    for p in stream(0.8):
        r.push(p, 0)
    assert [c.state["audio"] for c in r.advance(2.0)] == ["lost", "lost"]
    assert r.next_deadline is not None and r.next_deadline > 2.0


def test_a_file_without_arrival_times_is_never_late_however_it_is_interleaved() -> None:
    packets = []
    for second in range(4):
        for modality in ("video", "audio"):
            packets += [p for p in track(modality, 4.0) if second <= p.seconds < second + 1]
    clips = play(packets, receiver(replace(INFO, sequence_numbers=False)))
    assert [c.coverage for c in clips] == [{"video": 1.0, "audio": 1.0}] * 10


def test_frames_that_are_coded_out_of_order_are_put_in_order() -> None:
    order = [0, 4, 2, 1, 3]  # I P B b b, again and again
    places = [5 * group + place for group in range(10) for place in order]
    video = [packet("video", i, place * 40, level=10 + place) for i, place in enumerate(places)]
    running, timed = 0.0, []
    for p in video:
        running = max(running, p.end_seconds)
        timed.append(replace(p, arrival=running))
    clips = play(sorted(timed + sent(track("audio", 2.0)), key=lambda p: p.arrival or 0), receiver(hold=2))
    assert [c.coverage["video"] for c in clips] == [1.0] * 5
    assert clips[2].video is not None
    assert clips[2].video[:, 0, 0].tolist() == [30, 31, 33, 34, 35, 36, 38, 39]


# ------------------------------------------------------------------------------------------------------- late repair


def late_audio(by: float) -> list[Packet]:
    return stream(4.0, delay=lambda p: by if (p.modality, p.seq) in {("audio", s) for s in range(22, 30)} else 0.0)


def test_late_sound_repairs_its_clip_once_until_the_final_is_due() -> None:
    r = receiver(lookahead=1)
    clips = play(late_audio(0.3), r)
    versions = [(c.index, c.version, c.state["audio"]) for c in clips if c.index == 1]
    assert versions == [(1, 0, "lost"), (1, 1, "observed")]
    repaired = next(c for c in clips if c.version == 1)
    clean = play(stream(4.0), receiver())[1]
    assert repaired.audio is not None and clean.audio is not None
    assert np.array_equal(repaired.audio, clean.audio)
    assert r.ledger["audio"].counts.used == 200
    assert r.ledger["audio"].counts.lost == 0


def test_without_lookahead_a_closed_clip_is_final() -> None:
    r = receiver()
    clips = play(late_audio(0.3), r)
    assert [c.version for c in clips] == [0] * 10
    assert r.ledger["audio"].counts.late == 8


def test_late_sound_after_the_final_is_late() -> None:
    r = receiver(lookahead=1)
    assert all(c.version == 0 for c in play(late_audio(1.2), r))
    assert r.ledger["audio"].counts.late == 8


def test_late_sound_for_an_open_clip_just_fills_it() -> None:
    packets = stream(2.0, delay=lambda p: 0.12 if (p.modality, p.seq) == ("audio", 22) else 0.0)
    r = receiver()
    assert play(packets, r)[1].coverage["audio"] == 1.0
    assert r.ledger["audio"].counts.used == 100


def test_a_late_intra_picture_repairs_and_a_late_inter_picture_does_not() -> None:
    packets = stream(4.0, delay=lambda p: 0.38 if p.modality == "video" and 12 <= p.seq < 19 else 0.0)
    repaired = play(packets, receiver(lookahead=1))
    assert [(c.version, c.state["video"]) for c in repaired if c.index == 1] == [(0, "lost"), (1, "observed")]
    coded = replace(INFO, codecs={**CODECS, "video": replace(CODECS["video"], codec="h264")})
    r = receiver(coded, lookahead=1)
    assert [(c.version, c.state["video"]) for c in play(packets, r) if c.index == 1] == [(0, "lost")]
    assert r.ledger["video"].counts.late == 7


def test_a_clip_whose_time_came_too_late_to_be_used_is_late() -> None:
    coded = replace(INFO, codecs={**CODECS, "video": replace(CODECS["video"], codec="h264")})
    packets = stream(2.0, delay=lambda p: 0.79 - p.end_seconds if p.modality == "video" and 10 <= p.seq < 17 else 0)
    assert play(packets, receiver(coded))[1].state["video"] == "late"


def test_in_order_packets_after_a_stall_repair_too() -> None:
    packets = stream(4.0, delay=lambda p: 0.25 if p.modality == "audio" and p.seconds >= 0.4 else 0.0)
    clips = newest(play(packets, receiver(lookahead=2)))
    assert [c.presence["audio"] for c in clips] == [True] * 10


# ------------------------------------------------------------------------------------------------------------ epochs


def shifted(packets: Sequence[Packet], by: float, seq: int = 0, arrive: float = 0.0) -> list[Packet]:
    ticks = round(by / TICK)
    moved = [replace(p, capture_time=p.capture_time + ticks, seq=p.seq + seq) for p in packets]
    return [replace(p, arrival=(p.arrival or 0) + arrive) for p in moved]


@pytest.mark.parametrize("jump", [100.0, -4.0, 7.3])
def test_a_clock_that_jumps_opens_an_epoch_and_clip_numbers_go_on(jump: float) -> None:
    after = [replace(p, seq=p.seq + (100 if p.modality == "video" else 200)) for p in stream(4.0)]
    r = receiver()
    clips = play(stream(4.0) + shifted(after, 4.0 + jump, arrive=4.0), r)
    assert [c.index for c in clips] == list(range(len(clips)))
    first = next(c for c in clips if c.epoch == 1)
    assert first.start == Fraction(round((4 + jump) * 1000), 1000) // Fraction(2, 5) * Fraction(2, 5)
    assert sum(c.presence["video"] and c.presence["audio"] for c in clips) >= 19
    assert {c.epoch for c in clips} == {0, 1}
    assert [e.kind for e in r.events].count("epoch") == 1


def test_lost_packets_are_no_jump_of_the_clock() -> None:
    packets = [p for p in stream(12.0) if not 3.0 <= p.seconds < 9.0]
    clips = play(packets, receiver())
    assert len(clips) == 30 and {c.epoch for c in clips} == {0}
    untimed = sorted((replace(p, arrival=None) for p in packets), key=lambda p: p.seconds)
    clips = play(untimed, receiver())
    assert len(clips) == 30 and {c.epoch for c in clips} == {0}


def test_an_outage_of_the_devices_is_no_jump_of_the_clock() -> None:
    kept = [p for p in stream(12.0) if not 3.0 <= p.seconds < 9.0]
    numbered = [replace(p, seq=sum(q.modality == p.modality for q in kept[:i])) for i, p in enumerate(kept)]
    clips = play(numbered, receiver())
    assert len(clips) == 30 and {c.epoch for c in clips} == {0}
    assert [c.state["audio"] for c in clips[9:21]] == ["lost"] * 12


def test_a_still_picture_beside_sound_is_no_jump_of_the_clock() -> None:
    slides = [packet("video", i, i * 5000, duration=0) for i in range(4)]
    packets = sorted(slides + track("audio", 16.0), key=lambda p: p.seconds)
    assert {c.epoch for c in play(packets, receiver())} == {0}


def test_when_one_modality_jumps_alone_the_other_is_moved_beside_it() -> None:
    video, audio = sent(track("video", 12.0)), sent(track("audio", 12.0))
    video = [replace(p, capture_time=p.capture_time + 50_000) if p.seconds >= 4 else p for p in video]
    r = receiver()
    clips = play(sorted(video + audio, key=lambda p: p.arrival or 0), r)
    assert {c.epoch for c in clips} == {0, 1}
    assert [c.presence["audio"] for c in clips][-15:] == [True] * 15
    assert [c.presence["video"] for c in clips][-15:] == [True] * 15
    assert "shifted" in [e.kind for e in r.events]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["video", "audio"]), st.integers(0, 60), st.integers(-(2**33), 2**33), st.floats(0, 300)
        ),
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_times_whatever_are_survived(items: list[tuple[str, int, int, float]]) -> None:
    r = receiver(replace(INFO, origin=None), lookahead=1)
    for modality, seq, ms, arrival in sorted(items, key=lambda x: x[3]):
        r.push(packet(modality, seq, ms, level=seq, arrival=arrival), arrival)
    clips = r.finish()
    r.ledger.check()
    assert len(clips) <= 200 * max(len(items), 1)


# --------------------------------------------------------------------------------------------------------- decisions


def test_a_long_outage_is_not_counted_out_in_clips() -> None:
    first, later = stream(2.0), shifted(stream(4.0), 1000.0, arrive=1000.0)
    later = [replace(p, seq=p.seq + 5000) for p in later]
    r = receiver()
    clips = play(first + later, r)
    assert {c.epoch for c in clips} == {0, 1}
    assert 100 < len(clips) < 170
    assert [c.presence["audio"] for c in clips][-10:] == [True] * 10


def test_a_camera_that_comes_back_after_minutes_opens_no_epoch() -> None:
    video = [p for p in track("video", 90.0) if not 2.0 <= p.seconds < 86.0]
    clips = play(sent(video + track("audio", 90.0)), receiver())
    assert {c.epoch for c in clips} == {0}
    assert sum(c.presence["video"] for c in clips) == 15


def test_clocks_that_never_ran_together_are_laid_side_by_side() -> None:
    audio = [replace(p, capture_time=p.capture_time + 900_000) for p in sent(track("audio", 4.0))]
    r = receiver(replace(INFO, origin=None))
    clips = play(sorted(sent(track("video", 4.0)) + audio, key=lambda p: p.arrival or 0), r)
    assert sum(c.presence["video"] and c.presence["audio"] for c in clips) >= 9
    assert len(clips) <= 11


def test_a_shed_clip_is_absent_by_choice_and_its_packets_are_shed() -> None:
    shed = Decision(kind="shed", modality="video", arrival=0.01, clip=1)
    r = receiver()
    clips = play([shed, *stream(1.2)], r)
    assert [c.state["video"] for c in clips] == ["observed", "shed", "observed"]
    assert r.ledger["video"].counts.shed == 10


def test_a_shed_clip_that_is_closed_is_mended_until_its_final_is_due() -> None:
    packets = stream(2.0)
    for lookahead, versions in ((1, [(1, 0, "observed"), (1, 1, "shed")]), (0, [(1, 0, "observed")])):
        shed = Decision(kind="shed", modality="video", arrival=0.9, clip=1)
        at = next(i for i, p in enumerate(packets) if (p.arrival or 0) > 0.9)
        r = receiver(lookahead=lookahead)
        clips = play([*packets[:at], shed, *packets[at:]], r)
        assert [(c.index, c.version, c.state["video"]) for c in clips if c.index == 1] == versions
        assert r.ledger["video"].counts.shed == 10 * lookahead


@pytest.mark.parametrize("clip", [-5, 0, 3, 400, 10**15])
@pytest.mark.parametrize("modality", ["video", "depth"])
def test_a_decision_about_a_clip_that_nobody_knows_does_no_harm(clip: int, modality: str) -> None:
    items = stream(1.2)
    strange = [Decision(kind="shed", modality=modality, arrival=items[-1].arrival or 0.0, clip=clip)] * 3
    assert [plain(c)[:6] for c in play([*items, *strange], receiver())] == [
        plain(c)[:6] for c in play(items, receiver())
    ]


def test_a_format_change_takes_a_new_decoder() -> None:
    change = Decision(kind="format_change", modality="audio", arrival=0.61, codec=CODECS["audio"])
    packets = stream(2.0)
    at = next(i for i, p in enumerate(packets) if (p.arrival or 0) > 0.61)
    clips = play([*packets[:at], change, *packets[at:]], receiver())
    assert [c.coverage["audio"] for c in clips] == [1.0] * 5


def test_drift_between_the_clocks_is_mapped_away_and_each_remap_is_an_event() -> None:
    slow = 1 + 400e-6
    audio = [
        replace(p, capture_time=round(p.capture_time * 1000 / slow), time_base=TICK / 1000, duration=20_000)
        for p in sent(track("audio", 100.0))
    ]
    r = receiver()
    clips = play(sorted(sent(track("video", 100.0)) + audio, key=lambda p: p.arrival or 0), r)
    remaps = [e for e in r.events if e.kind == "clock_remap"]
    assert remaps and min(b.arrival - a.arrival for a, b in pairwise(remaps)) >= 9.9
    assert r.drift_ppm == pytest.approx(400, abs=30)
    assert all(c.presence["audio"] for c in clips[:-1])


# --------------------------------------------------------------------------------------- the law, for any lossy run


@st.composite
def lossy_runs(draw: st.DrawFn) -> list[Packet]:
    """A stream with loss, jitter, reordering, copies and keyframes now and then."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    loss, jitter = draw(st.sampled_from([0.0, 0.05, 0.3, 0.7])), draw(st.sampled_from([0.0, 0.02, 0.2]))
    gop = draw(st.sampled_from([1, 12, 50]))
    packets = []
    for p in track("video", 4.0) + track("audio", 4.0):
        if rng.random() < loss:
            continue
        for _ in range(1 + (rng.random() < 0.03)):
            at = p.end_seconds + float(rng.exponential(jitter)) if jitter else p.end_seconds
            packets.append(replace(p, keyframe=p.modality == "audio" or p.seq % gop == 0, arrival=at))
    if draw(st.booleans()):
        packets = [replace(p, capture_time=p.capture_time - 3000) if p.seconds >= 3 else p for p in packets]
    return sorted(packets, key=lambda p: (p.arrival, p.modality, p.seq))


@given(lossy_runs(), st.integers(0, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_packet_meets_one_fate_and_every_clip_closes(
    packets: list[Packet], lookahead: int, chained: bool
) -> None:
    r = receiver(lookahead=lookahead, chained=("video",) if chained else (), hold=1)
    clips = play(packets, r)
    for modality in ("video", "audio"):
        mine = [p for p in packets if p.modality == modality]
        counts = r.ledger[modality].counts if mine else None
        assert counts is None or counts.received == len(mine)
        assert counts is None or counts.duplicate == len(mine) - len({p.seq for p in mine})
        assert counts is None or counts.unfinished == 0
    firsts = [c.index for c in clips if c.version == 0]
    assert firsts == list(range(firsts[0], firsts[0] + len(firsts))) if firsts else True
    for c in clips:
        assert all((c.state[m] == "observed") == c.presence[m] for m in c.state)
        assert all((getattr(c, m) is not None) == c.presence[m] for m in c.state)
        assert all(0 <= x <= 1 for x in c.coverage.values())
    repairs = [c.index for c in clips if c.version]
    assert len(set(repairs)) == len(repairs) and (lookahead or not repairs)


@given(lossy_runs(), st.integers(0, 2), st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=20, deadline=None)
def test_extra_calls_change_nothing(packets: list[Packet], lookahead: int, shares: list[float]) -> None:
    alone = receiver(lookahead=lookahead)
    expected = [plain(c) for c in play(packets, alone)]
    polled, clips = receiver(lookahead=lookahead), []
    for i, p in enumerate(packets):
        clips += polled.push(p, 1e6)  # what is passed as now does not matter where arrivals are known
        here, there = p.arrival or 0.0, packets[i + 1].arrival or 0.0 if i + 1 < len(packets) else p.arrival or 0.0
        clips += polled.advance(here + shares[i % len(shares)] * (there - here) * 0.999)
    clips += polled.finish()
    assert [plain(c) for c in clips] == expected
    assert polled.ledger.as_dict() == alone.ledger.as_dict()
    assert polled.events == alone.events
