"""H.264 judged at a glance: whatever happens to a stream, the verdicts are those of following every reference."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.media import VideoTrack, write_media
from runtime import damage
from runtime.bitstream import picture_parser
from runtime.damage import Damage, VideoDamage
from runtime.h264 import H264Headers
from runtime.packet import CodecConfig, Gap, Packet
from runtime.sources import open_source

WAYS = {  # options of x264, suffix (mkv: lengths; ts: start codes)
    "P only": ("bframes=0:keyint=20", "mkv"),
    "B": ("bframes=3:b-pyramid=normal:keyint=24", "mkv"),
    "open groups": ("bframes=3:open-gop=1:keyint=16:min-keyint=4", "mkv"),
    "refresh": ("intra-refresh=1:bframes=0:keyint=20", "mkv"),
    "weights, four references": ("bframes=2:ref=4:weightp=2:keyint=30", "mkv"),
    "slices": ("bframes=1:slices=3:keyint=20", "mkv"),
    "start codes": ("bframes=2:keyint=20:repeat-headers=1", "ts"),
    "one group": ("bframes=1:keyint=infinite", "mkv"),
}


@cache
def coded(way: str) -> tuple[CodecConfig, tuple[Packet, ...]]:
    """Eighty pictures in which a square moves over a ramp."""
    options, suffix = WAYS[way]
    frames = []
    for i in range(80):
        frame = (np.add.outer(np.arange(48), np.arange(64)) + 3 * i).astype(np.uint8)
        frame[i % 30 : i % 30 + 10, i % 50 : i % 50 + 10] = 230
        frames.append(frame)
    track = VideoTrack(frames=frames, options={"preset": "veryfast", "threads": "1", "x264-params": options})
    with TemporaryDirectory() as folder, open_source(write_media(Path(folder) / f"a.{suffix}", [track])) as source:
        packets = tuple(p for p in source.packets() if isinstance(p, Packet))
        return source.info.codecs["video"], packets


def said(tracker: VideoDamage, config: CodecConfig, packets: tuple[Packet, ...], seed: int, harm: float) -> list[Any]:
    """Everything a tracker says of a stream in which some packets are lost, corrupt, refused, or come out late."""
    rng = np.random.default_rng(seed)
    out: list[Any] = []
    inside: list[Packet] = []
    for p in packets:
        luck = rng.random()
        if luck < harm:
            out.append(tracker.push(Gap(modality="video", first_seq=p.seq, count=1)))
            continue
        if luck < 1.3 * harm:
            cut = p.payload[: rng.integers(1, len(p.payload))]
            p = replace(p, payload=cut) if luck < 1.15 * harm else replace(p, corrupt=True)
        out.append((p.seq, tracker.push(p), tracker.entry))
        if rng.random() < harm / 3:
            out.append(tracker.decode_error())
            continue
        if rng.random() >= harm / 3:  # else it is swallowed
            inside.append(p)
        while len(inside) > 3:
            ready = min(inside, key=lambda x: x.capture_time)
            inside.remove(ready)
            out.append((ready.seq, tracker.frame_flag(ready.seq, corrupt=rng.random() < harm / 3)))
    return out


def closely(config: CodecConfig, **options: Any) -> VideoDamage:
    """A tracker that never only glances."""
    tracker = VideoDamage(config, **options)
    tracker._headers.glance = lambda _payload: None  # type: ignore[union-attr, method-assign]
    return tracker


@pytest.mark.parametrize("way", WAYS)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.05, 0.2]), st.booleans(), st.sampled_from([300, 5]))
@settings(max_examples=12, deadline=None)
def test_a_glance_says_what_a_close_look_says(way: str, seed: int, harm: float, numbered: bool, put_off: int) -> None:
    config, packets = coded(way)
    kept, damage.PUT_OFF = damage.PUT_OFF, put_off
    try:
        quick, slow = VideoDamage(config, sequence_numbers=numbered), closely(config, sequence_numbers=numbered)
        assert said(quick, config, packets * 2, seed, harm) == said(slow, config, packets * 2, seed, harm)
    finally:
        damage.PUT_OFF = kept
    quick._work_off()
    assert quick._references.broken == slow._references.broken
    assert quick._severity == slow._severity and quick._sizes == slow._sizes


@pytest.mark.parametrize("way", WAYS)
def test_what_a_glance_tells_is_what_the_header_says(way: str) -> None:
    config, packets = coded(way)
    headers, parse, seen = H264Headers(config.extradata), picture_parser(config), 0
    assert parse is not None
    for p in packets:
        glance, (picture,) = headers.glance(p.payload), parse(p.payload)
        if glance is None:
            headers.parse(p.payload)  # parameter sets in the stream
            continue
        seen += 1
        told = (picture.frame_num, picture.max_frame_num, picture.reset, picture.disposable, picture.independent)
        assert glance[:5] == told
        assert headers.slice(glance.unit, None) == picture
    assert seen > 60 or way in ("start codes", "refresh")


@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0\0\1", b"\0\0\1", b"\0\0\0\x30"]))
def test_anything_may_be_glanced_at(rest: bytes, start: bytes) -> None:
    config, _ = coded("B")
    headers = H264Headers(config.extradata)
    glance = headers.glance(start + rest)
    if glance is not None:
        (picture,) = headers.parse(start + rest)
        assert headers.slice(glance.unit, None) == picture


def test_a_group_that_never_ends_is_followed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "PUT_OFF", 20)
    config, packets = coded("one group")
    tracker = VideoDamage(config)
    kept = []
    for p in packets:
        assert tracker.push(p) == Damage()
        kept.append(len(tracker._put_off))
    assert max(kept) <= 20
