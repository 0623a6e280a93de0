"""Late packets of inter-coded video: their group is decoded anew, and what their absence had spoiled is mended."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.media import VideoTrack, write_media
from runtime.clip import Clip
from runtime.groups import Groups
from runtime.packet import Packet, StreamInfo
from runtime.receive import Receiver
from runtime.sources import open_source
from tests.fakes import packet, track
from tests.test_receive import lossy_runs, newest, plain, receiver
from tests.test_receive import play as play_fakes
from tests.test_receive_media import SPEC, arriving

GROUP = 40  # frames


def film(folder: Path, **options: str) -> tuple[StreamInfo, list[Packet]]:
    """Four seconds of H.264 in groups of 40 frames."""
    ramp = np.add.outer(np.arange(48), np.arange(64)) * 2
    frames = [((ramp + 5 * i) % 256).astype(np.uint8) for i in range(100)]
    codec = {"preset": "veryfast", "sc_threshold": "0", **options}
    made = write_media(folder / "film.mp4", [VideoTrack(frames=frames, gop=GROUP, options=codec)])
    with open_source(made) as source:  # type: ignore[attr-defined]
        packets = [p for p in source.packets() if isinstance(p, Packet)]
        return replace(source.info, sequence_numbers=True), packets


def play(info: StreamInfo, packets: list[Packet], **options: Any) -> tuple[list[Clip], dict[str, int]]:
    spec = replace(SPEC, audio=None)
    r = Receiver(info, spec, delay=0.06, lookahead=options.pop("lookahead", 4), **options)
    clips = [clip for p in packets for clip in r.push(p, 0.0)] + r.finish()
    r.ledger.check()
    return clips, r.ledger["video"].counts.as_dict()


def same_pictures(clips: list[Clip], clean: list[Clip]) -> bool:
    assert [c.index for c in clips] == [c.index for c in clean]
    return all(np.array_equal(a.video, b.video) for a, b in zip(clips, clean, strict=True) if b.video is not None)


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "2"}, {"bf": "0", "x264-params": "open-gop=1"}])
@pytest.mark.parametrize("late", [{33: 0.9}, {30: 0.9, 37: 0.5}, {30: 0.5, 37: 1.0}, {40: 0.7}, {38: 0.4}])
def test_what_a_late_packet_spoiled_is_mended_until_it_is_final(
    tmp_path: Path, options: dict[str, str], late: dict[int, float]
) -> None:
    info, packets = film(tmp_path, **options)
    clean, _ = play(info, arriving(packets))
    hit = arriving(packets, {("video", seq): by for seq, by in late.items()})
    without, counts = play(info, hit)
    assert not same_pictures(newest(without), clean)
    clips, repaired = play(info, hit, late_repair=True)
    again = [c for c in clips if c.version]
    assert again and len({c.index for c in again}) == len(again), "a clip is encoded again once"
    if options != {"bf": "2"} or len(late) == 1:  # else a clip may be whole before its last disposable picture comes
        assert same_pictures(newest(clips), clean)
        assert all(c.coverage["video"] == 1 for c in newest(clips)[:-1])
        assert counts["late"] >= len(late) and repaired["late"] == 0 and repaired["damaged"] == 0
        assert repaired["used"] == len(packets)


def test_after_its_final_a_clip_is_not_mended_but_the_stream_goes_on_whole(tmp_path: Path) -> None:
    info, packets = film(tmp_path, bf="0")
    clean, _ = play(info, arriving(packets))
    clips, counts = play(info, arriving(packets, {("video", 10): 0.9}), lookahead=0, late_repair=True)
    assert [c.state["video"] for c in clips[:2]] == ["observed", "damaged"] and not any(c.version for c in clips)
    assert same_pictures(clips[4:], clean[4:]) and counts["late"] == 1


def test_a_packet_that_never_comes_leaves_what_follows_damaged(tmp_path: Path) -> None:
    info, packets = film(tmp_path, bf="0")
    clean, _ = play(info, arriving(packets))
    hit = [p for p in arriving(packets, {("video", 20): 0.4}) if p.seq != 28]
    clips = newest(play(info, hit, late_repair=True)[0])
    assert same_pictures(clips[:2], clean[:2]) and same_pictures(clips[5:], clean[5:])
    assert clips[3].state["video"] == "damaged"


@given(lossy_runs(), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_every_packet_meets_one_fate_and_extra_calls_change_nothing(
    packets: list[Packet], lookahead: int, hold: int
) -> None:
    options: dict[str, Any] = {"lookahead": lookahead, "chained": ("video",), "hold": hold, "late_repair": True}
    alone, polled = receiver(**options), receiver(**options)
    expected = play_fakes(packets, alone)
    clips = []
    for p in packets:
        clips += polled.advance((p.arrival or 0.0) - 1e-3)
        clips += polled.push(p, 0.0)
    assert [plain(c) for c in clips + polled.finish()] == [plain(c) for c in expected]
    for modality, ledger in alone.ledger.items():
        mine = [p for p in packets if p.modality == modality]
        assert ledger.counts.received == len(mine) and ledger.counts.unfinished == 0
        assert polled.ledger[modality].counts == ledger.counts
    firsts = [c.index for c in expected if c.version == 0]
    assert firsts == list(range(firsts[0], firsts[0] + len(firsts))) if firsts else True
    repairs = [c.index for c in expected if c.version]
    assert len(set(repairs)) == len(repairs) and (lookahead or not repairs)


@given(lossy_runs(), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_pictures_that_need_no_other_are_repaired_as_without_it(packets: list[Packet], lookahead: int) -> None:
    one, other = receiver(lookahead=lookahead), receiver(lookahead=lookahead, late_repair=True)
    assert [plain(c) for c in play_fakes(packets, one)] == [plain(c) for c in play_fakes(packets, other)]
    assert one.ledger.as_dict() == other.ledger.as_dict()


def test_groups_are_bounded_in_packets_and_bytes() -> None:
    groups = Groups(most_packets=20, most_bytes=1 << 20)
    for p in track("video", 4.0):
        groups.add(p, p.seq % 8 == 0)
        assert len(groups._packets) <= 20
    assert [p.seq for p in groups.of(99)] == [96, 97, 98, 99] and groups.runs(99)
    assert [p.seq for p in groups.of(90)] == list(range(88, 96)) and not groups.runs(90)
    assert not groups.of(87)
    for seq in range(100, 130):  # too long to be kept
        groups.add(packet("video", seq), False)
    assert not groups.of(129) and not groups.runs(129) and not groups._packets and not groups._bytes
    heavy = Groups(most_bytes=10)
    heavy.add(replace(packet("video", 0), payload=bytes(11)), True)
    assert not heavy.of(0)
