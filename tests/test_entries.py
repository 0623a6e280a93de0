"""What a fresh receiver needs: fed only what lies above the numbers that are said, it gives the same clips."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.errors import OutputError
from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.clip import Clip
from runtime.jitter import AdaptiveDelay
from runtime.packet import Packet, StreamInfo
from runtime.receive import Receiver
from runtime.sources import open_source
from tests.fakes import INFO, SPEC, fake_parts, packet, stream, track
from tests.test_receive import shifted

SECONDS = 4
MEDIA_SPEC = ClipSpec(
    seconds=Fraction(2, 5),
    video=VideoSpec(frames=8, size=32, region="face"),
    audio=AudioSpec(sample_rate=16_000),
)
OPEN = "open-gop=1:b-pyramid=normal:bframes=3"
X264 = {"preset": "veryfast", "bf": "3", "threads": "1"}
VIDEO = {
    "h264, closed groups, B": ("libx264", X264, "mov"),
    "h264, open groups, B pyramid": ("libx264", {**X264, "x264-params": OPEN}, "mov"),
    "h264, no B": ("libx264", {"preset": "ultrafast", "tune": "zerolatency", "threads": "1"}, "mov"),
    "h264, refreshed row by row": ("libx264", {**X264, "x264-params": "intra-refresh=1:bframes=0:ref=1"}, "mov"),
    "hevc, open groups": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=0:open-gop=1:pools=1"}, "mov"),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"}, "mkv"),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "mkv"),
    "mpeg2, B": ("mpeg2video", {"bf": "2"}, "mkv"),
    "mjpeg": ("mjpeg", {}, "mkv"),
}
SOUND = {  # codec, options, rate, how far a fresh decoder's samples may be off
    "pcm": ("pcm_s16le", {}, 48_000, 0.0),
    "pcm as it is": ("pcm_s16le", {}, 16_000, 0.0),
    "aac": ("aac", {"aac_pns": "0"}, 48_000, 1e-6),
    "opus": ("libopus", {}, 48_000, 1e-6),
    "mp3": ("libmp3lame", {}, 44_100, 1e-6),
}


def media(folder: Path, tracks: list[VideoTrack | AudioTrack], suffix: str) -> tuple[StreamInfo, list[Packet]]:
    with open_source(write_media(folder / f"whole.{suffix}", tracks)) as source:
        packets = [p for p in source.packets() if isinstance(p, Packet)]
        return replace(source.info, sequence_numbers=True, duration=None), packets


def pictures() -> list[np.ndarray]:
    """A ramp under a square that moves: every picture differs from the one before."""
    ramp = np.add.outer(np.arange(48), np.arange(64))
    made = []
    for i in range(25 * SECONDS):
        picture = ((ramp + 5 * i) % 256).astype(np.uint8)
        picture[i % 32 : i % 32 + 12, i % 40 : i % 40 + 12] = 230
        made.append(picture)
    return made


def play(info: StreamInfo, packets: list[Packet]) -> tuple[Receiver, list[Clip]]:
    receiver = Receiver(info, MEDIA_SPEC, delay=0.06)
    return receiver, [c for p in packets for c in receiver.push(p, p.decode_seconds)] + receiver.finish()


def agrees(info: StreamInfo, packets: list[Packet], tolerance: float = 0.0, strict: bool = True) -> list[int]:
    """Begin afresh for the sake of every clip; how many packets each beginning could do without.

    Not ``strict``: the fresh receiver may believe less than the first one did, never more.
    """
    receiver, whole = play(info, packets)
    spared = []
    for clip in whole[::2]:
        needed = {m: receiver.needed(m, clip.start) for m in info.codecs}
        rest = [p for p in packets if p.seq > (-1 if (n := needed[p.modality]) is None else n)]
        spared.append(len(packets) - len(rest))
        _, again = play(replace(info, origin=receiver.spec_origin), rest)
        later = {c.start: c for c in again if c.start >= clip.start}
        assert list(later) == [c.start for c in whole if c.start >= clip.start]
        for expected in whole[whole.index(clip) :]:
            found = later[expected.start]
            where = f"from {float(clip.start)} s: clip at {float(expected.start)} s"
            if not strict and found.coverage["video"] < expected.coverage["video"]:
                continue
            assert (found.state, found.coverage) == (expected.state, expected.coverage), where
            assert np.array_equal(found.video, expected.video), where
            if expected.audio is not None:
                assert found.audio is not None
                assert np.abs(found.audio - expected.audio).max() <= tolerance, where
    return spared


@pytest.mark.parametrize("kind", VIDEO)
@pytest.mark.parametrize("lost", [(), (30, 31, 47, 60)], ids=["whole", "with gaps"])
def test_pictures_from_an_entry_on_are_the_same(tmp_path: Path, kind: str, lost: tuple[int, ...]) -> None:
    codec, options, suffix = VIDEO[kind]
    try:
        info, packets = media(tmp_path, [VideoTrack(frames=pictures(), codec=codec, options=options, gop=20)], suffix)
    except OutputError as error:
        pytest.skip(f"{codec} is not in this build: {error}")
    # Entered at an open group, H.264's reference lists are not known to the last: after a loss it is more careful.
    spared = agrees(info, [p for p in packets if p.seq not in lost], strict=not (lost and "open" in kind))
    assert max(spared) >= (76 if codec == "mjpeg" else 60)


@pytest.mark.parametrize("kind", SOUND)
@pytest.mark.parametrize("lost", [(), (30, 31, 47, 60)], ids=["whole", "with gaps"])
def test_sound_from_an_entry_on_is_the_same(tmp_path: Path, kind: str, lost: tuple[int, ...]) -> None:
    codec, options, rate, tolerance = SOUND[kind]
    time = np.arange(SECONDS * rate) / rate
    tone = (0.3 * np.sin(200 * time * (1 + time))).astype(np.float32)
    track = AudioTrack(samples=tone, sample_rate=rate, codec=codec, options=options)
    info, packets = media(tmp_path, [track], "mp4" if codec == "libopus" else "mov")
    spared = agrees(info, [p for p in packets if p.seq not in lost], tolerance)
    assert spared == sorted(spared) and spared[-1] > 0.6 * len(packets)


# ---------------------------------------------------------------------------------------------------- both, and epochs


def test_what_is_needed_only_grows_and_never_falls_behind_the_clip() -> None:
    receiver = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.05)
    said = []
    for p in stream(8.0):
        for clip in receiver.push(p, p.arrival or 0.0):
            said.append(tuple(receiver.needed(m, clip.start) for m in ("video", "audio")))
    assert said[0] == (None, None)
    assert said[5] == (5 * 10 - 1, 5 * 20 - 1)  # every fake packet stands alone: the clip's own first
    assert receiver.needed("video", 100.0) == 198 and receiver.needed("audio", 100.0) == 398  # the last may stay on
    assert receiver.needed("video", -1.0) is None


def test_a_modality_that_never_came_or_is_not_there_needs_everything() -> None:
    receiver = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.05)
    assert receiver.needed("audio", 3.0) is None and receiver.spec_origin == 0
    only = Receiver(replace(INFO, origin=None), replace(SPEC, audio=None), parts=fake_parts(), delay=0.05)
    only.push(packet("video", 7, 1_230), 0.0)
    assert only.needed("audio", 3.0) is None and only.needed("video", 3.0) == 6
    assert only.spec_origin == Fraction(6, 5)


def test_broken_pictures_are_no_place_to_begin() -> None:
    video = [replace(p, keyframe=p.seq % 10 == 0, corrupt=p.seq == 50) for p in track("video", 4.0)]
    receiver = Receiver(INFO, SPEC, parts=fake_parts(chained=("video",)), delay=0.05)
    for p in video:
        receiver.push(p, p.end_seconds)
    assert [receiver.needed("video", t) for t in (1.99, 2.0, 2.3, 2.4)] == [39, 39, 39, 59]


def test_after_a_jump_of_the_clock_each_epoch_is_asked_for_by_its_own_times() -> None:
    after = [replace(p, seq=p.seq + (100 if p.modality == "video" else 200)) for p in stream(4.0)]
    receiver = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.05)
    for p in stream(4.0) + shifted(after, 2.0 - 4.0 + 100, arrive=4.0):
        receiver.push(p, p.arrival or 0.0)
    assert receiver.spec_origin is not None and 97 < receiver.spec_origin <= 98
    assert receiver.needed("video", 99.0) == 124 and receiver.needed("audio", 99.0) == 249
    assert receiver.needed("video", 2.0, epoch=0) == 49
    assert receiver.needed("video", 50.0) == 98  # before the epoch: what was on screen when it began


def test_jitter_and_delay_are_told_in_milliseconds() -> None:
    fixed = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.05)
    assert (fixed.jitter_ms("audio"), fixed.delay_ms("audio")) == (0.0, 50.0)
    adaptive = Receiver(INFO, SPEC, parts=fake_parts(), delay=AdaptiveDelay(floor=0.02, cap=0.5, gain=5.0))
    for p in stream(2.0, delay=lambda p: 0.03 * (p.seq % 2)):
        adaptive.push(p, p.arrival or 0.0)
    assert 20 < adaptive.jitter_ms("audio") < 31
    assert adaptive.delay_ms("audio") == pytest.approx(5 * adaptive.jitter_ms("audio"))
    assert adaptive.delay_ms("depth") == 0.0
