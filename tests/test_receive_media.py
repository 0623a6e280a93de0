"""The receiver over real codecs: what is clean is whole, what is repaired equals what was never lost."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.clip import Clip
from runtime.packet import Packet, StreamInfo
from runtime.receive import Receiver
from runtime.sources import open_source

SPEC = ClipSpec(
    seconds=Fraction(2, 5),
    video=VideoSpec(frames=8, size=32, region="face"),
    audio=AudioSpec(sample_rate=16_000),
)


def media(folder: Path, sound: str) -> tuple[StreamInfo, list[Packet]]:
    """Four seconds of a moving ramp and a chirp."""
    ramp = np.add.outer(np.arange(48), np.arange(64)) * 2
    time = np.arange(4 * 48_000) / 48_000
    tracks = [
        VideoTrack(frames=[((ramp + 5 * i) % 256).astype(np.uint8) for i in range(100)], gop=25),
        AudioTrack(samples=(0.3 * np.sin(200 * time * (1 + time))).astype(np.float32), sample_rate=48_000, codec=sound),
    ]
    name = "clean.mov" if sound == "pcm_s16le" else "clean.mp4"  # their time stamps are not rounded
    with open_source(write_media(folder / name, tracks)) as source:  # type: ignore[attr-defined]
        packets = [p for p in source.packets() if isinstance(p, Packet)]
        return replace(source.info, sequence_numbers=True), packets


def arriving(packets: list[Packet], late: dict[tuple[str, int], float] | None = None) -> list[Packet]:
    """In order of arrival, as soon as they are sent; some of them late."""
    newest, timed = {"video": 0.0, "audio": 0.0}, []
    for p in packets:
        newest[p.modality] = max(newest[p.modality], p.end_seconds)
        timed.append(replace(p, arrival=newest[p.modality] + (late or {}).get((p.modality, p.seq), 0.0)))
    return sorted(timed, key=lambda p: p.arrival or 0.0)


def play(info: StreamInfo, packets: list[Packet], lookahead: int = 0) -> list[Clip]:
    receiver = Receiver(info, SPEC, delay=0.06, lookahead=lookahead)
    clips = [clip for p in packets for clip in receiver.push(p, 0.0)] + receiver.finish()
    receiver.ledger.check()
    return clips


@pytest.mark.parametrize("sound", ["aac", "libopus", "pcm_s16le"])
def test_a_clean_file_is_whole_and_arrival_times_do_not_change_it(tmp_path: Path, sound: str) -> None:
    info, packets = media(tmp_path, sound)
    offline, live = play(info, packets), play(info, arriving(packets))
    assert len(offline) == len(live) == 10
    for one, other in zip(offline, live, strict=True):
        assert min(*one.coverage.values(), *other.coverage.values()) > 0.98
        assert np.array_equal(one.video, other.video)
        assert np.array_equal(one.audio, other.audio)


@pytest.mark.parametrize("sound", ["aac", "libopus", "pcm_s16le"])
def test_repaired_sound_is_the_sound_that_was_never_lost(tmp_path: Path, sound: str) -> None:
    info, packets = media(tmp_path, sound)
    clean = play(info, arriving(packets))
    hit = [p.seq for p in packets if p.modality == "audio" and 1.4 < p.seconds < 1.55]
    clips = play(info, arriving(packets, {("audio", seq): 0.4 for seq in hit}), lookahead=1)
    first, second = (next(c for c in clips if (c.index, c.version) == (3, v)) for v in (0, 1))
    assert first.state["audio"] == "lost" or first.coverage["audio"] < 0.75
    assert second.presence["audio"] and second.coverage["audio"] > 0.98
    assert second.audio is not None and clean[3].audio is not None
    assert np.abs(second.audio - clean[3].audio).max() < 0.01  # of a tone at 0.3


def test_a_lost_reference_frame_costs_the_rest_of_its_group_only(tmp_path: Path) -> None:
    info, packets = media(tmp_path, "aac")
    keys = [p.seq for p in packets if p.modality == "video" and p.keyframe]
    lost = keys[1] + 3
    clips = play(info, arriving([p for p in packets if (p.modality, p.seq) != ("video", lost)]))
    assert [c.coverage["video"] > 0.98 for c in clips[:2]] == [True, True]
    assert clips[3].state["video"] == "damaged"
    assert [c.coverage["video"] > 0.98 for c in clips[5:]] == [True] * 5
