"""From a file to predictions: determinism at any speed and chunking, features equal to those inside a replay."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import registry
from encoders.media import AudioTrack, VideoTrack, write_media
from encoders.video.face_box import PRESETS, FaceBox
from imputation.features import FeatureSet
from runtime import cli
from runtime.bundle import Bundle
from runtime.errors import SourceError, UsageError
from runtime.packet import Packet
from runtime.pipeline import Pipeline, ahead, arrival, paced
from runtime.playback import play
from runtime.prediction import Prediction
from runtime.sources import open_source
from runtime.stream import Encoded
from tests.bundles import ENCODERS, tiny_manifest, tiny_tensors, write_tiny_bundle

SECONDS = 4


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Four seconds of a moving square and a rising tone, every picture a keyframe so that losses stay short."""
    frames = []
    for i in range(25 * SECONDS):
        picture = np.full((48, 64), 60, np.uint8)
        picture[10:30, i % 40 : i % 40 + 16] = 200
        frames.append(picture)
    t = np.arange(16_000 * SECONDS) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * (200 + 50 * t) * t)).astype(np.float32)
    path = tmp_path_factory.mktemp("media") / "square.mkv"
    video = VideoTrack(frames=frames, codec="mjpeg", pixel_format="yuvj420p")
    return write_media(path, [video, AudioTrack(samples=tone)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


@pytest.fixture(scope="module")
def pipeline(bundle) -> Pipeline:
    return Pipeline.from_bundle(bundle, device="cpu", lookahead=1)


def text(predictions: list[Prediction]) -> str:
    return json.dumps([p.as_dict(timings=False) for p in predictions])


def lossy(media: Path, seed: int = 1) -> Any:
    return open_source(media, loss="wifi-poor", seed=seed)


def test_every_clip_from_min_clips_on_has_one_final_prediction(pipeline, media):
    said = list(pipeline.run(open_source(media)))
    finals = [p for p in said if p.status == "final"]
    assert [p.clip for p in finals] == list(range(1, 2 * SECONDS))
    assert [p.clip for p in said if p.status == "provisional"] == [p.clip for p in finals]
    assert all(p.observed_share == {"video": 1.0, "audio": 1.0} for p in finals)
    assert finals[-1].end_seconds == pytest.approx(SECONDS) and len(finals[-1].clips) == 6
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in finals)


def test_two_replays_of_a_lossy_source_are_byte_equal_without_timings(pipeline, media):
    first, second = (list(pipeline.run(lossy(media))) for _ in range(2))
    assert text(first) == text(second)
    assert {r for p in first for c in p.clips for r in c.rung.values()} > {"observed"}
    assert text(first) != text(list(pipeline.run(lossy(media, seed=2))))


def test_neither_threads_nor_pace_change_a_prediction(pipeline, bundle, media, monkeypatch):
    threaded = text(list(pipeline.run(lossy(media))))
    single = Pipeline.from_bundle(bundle, device="cpu", lookahead=1, overrides=["engine.decode_ahead=0"])
    assert text(list(single.run(lossy(media)))) == threaded
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr("runtime.pipeline.paced", lambda items, **_: paced(items, lambda: sum(waited), waited.append))
    assert text(list(single.run(lossy(media), speed="realtime"))) == threaded
    assert sum(waited) == pytest.approx(SECONDS, abs=0.5)


def test_a_tenth_of_the_way_says_what_the_whole_says(pipeline, media):
    """Past outputs never change when more input arrives, but for what the end itself makes final."""
    whole = list(pipeline.run(lossy(media)))
    early: list[Prediction] = []
    for prediction in pipeline.run(lossy(media)):
        early.append(prediction)
        if len(early) == 5:
            break
    assert text(early) == text(whole[:5])


def test_features_equal_those_inside_a_replay_bit_for_bit(pipeline, bundle, media, tmp_path):
    inside: list[Encoded] = []
    list(pipeline.run(lossy(media), trace=inside.append))
    newest = {e.clip: e for e in inside}
    out = tmp_path / "f.safetensors"
    command = ["features", str(media), "--bundle", str(bundle), "--out", str(out), "--device", "cpu"]
    assert cli.run([*command, "--loss", "wifi-poor", "--seed", "1", "--set", "window.lookahead=1"]) == 0
    found = FeatureSet.load(out)
    assert found.names == ("square",) and found.length == len(newest) == 8
    raw, presence = (np.stack([getattr(newest[k], name) for k in sorted(newest)]) for name in ("raw", "presence"))
    assert np.array_equal(found.features[0].numpy(), raw)
    assert np.array_equal(found.presence[0].numpy(), presence) and not presence.all()
    standard = np.stack([newest[k].features for k in sorted(newest)])
    assert np.array_equal(found.standardised()[0].numpy(), standard)


def test_other_fills_are_compared_on_the_same_features(pipeline, media):
    said: list[Prediction] = []
    run = play(pipeline, lossy(media), said.append, compare=("lerp", "zero"))
    assert list(run.arms) == ["bundle", "lerp", "zero"] and run.arms["bundle"] == said
    assert [p.clip for p in run.finals("lerp")] == [p.clip for p in run.finals()]
    rungs = {arm: {r for p in run.finals(arm) for c in p.clips for r in c.rung.values()} for arm in run.arms}
    assert rungs["lerp"] == {"observed", "lerp"} and rungs["zero"] == {"observed", "zero"}
    alone = Pipeline(pipeline.bundle, pipeline.config, fill="lerp")
    assert text(list(alone.run(lossy(media)))) == text(run.arms["lerp"])
    assert [c.clip for c in run.clips] == list(range(8)) and run.seconds == pytest.approx(SECONDS)


def test_a_face_bundle_runs_on_the_same_path(media, tmp_path):
    torch.manual_seed(0)
    video = {"front": "local_motion", "region": "face"}
    encoder, finder = registry.build("r2plus1d_tiny", **video), FaceBox(PRESETS["face_box_tiny"])
    manifest = tiny_manifest(
        encoders=ENCODERS | {"video": ENCODERS["video"] | {"overrides": video}},
        face={"preset": "face_box_tiny", "weights": "face.safetensors"},
    )
    weights = {"video.safetensors": encoder.state_dict(), "face.safetensors": finder.state_dict()}
    made = Pipeline.from_bundle(Bundle.write(tmp_path / "face", manifest, tiny_tensors() | weights), device="cpu")
    said = [text(list(made.run(lossy(media)))) for _ in range(2)]
    assert said[0] == said[1]


def test_a_recording_too_short_to_predict_on_is_one_sentence(pipeline, tmp_path):
    short = write_media(tmp_path / "short.wav", [AudioTrack(samples=np.zeros(8000, np.float32), codec="pcm_s16le")])
    with pytest.raises(SourceError, match=r"short gave 1 clip of 0\.5 s, and a prediction needs 2 \(1 s\)"):
        list(pipeline.run(open_source(short)))


def test_an_unknown_fill_speed_or_head_is_refused(pipeline, bundle, media):
    with pytest.raises(UsageError, match="fill 'magic' is unknown to this bundle; use one of ladder, curri_mae"):
        Pipeline.from_bundle(bundle, fill="magic")
    with pytest.raises(UsageError, match="speed 'warp' is unknown; use max or realtime"):
        list(pipeline.run(open_source(media), speed="warp"))
    with pytest.raises(UsageError, match="head 'svm' is not in this bundle; choose from gru, linear"):
        Pipeline.from_bundle(bundle, heads=["svm"])


def packet(seconds: float, at: float | None = None) -> Packet:
    ticks = round(seconds * 1000)
    return Packet(modality="audio", seq=0, capture_time=ticks, time_base=Fraction(1, 1000), payload=b"x", arrival=at)


def test_pace_follows_arrivals_and_never_hurries_back():
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    items = [packet(5.0), packet(5.5), packet(5.2, at=6.0), packet(5.8, at=5.9)]
    assert list(paced(items, lambda: now[0], sleep)) == items
    assert slept == pytest.approx([0.5, 0.5])
    assert arrival(items[0]) == 5.0 and arrival(items[2]) == 6.0


def test_what_the_decoding_thread_raises_is_raised_where_it_is_read():
    def clips() -> Iterator[Any]:
        yield 1
        raise SourceError("the disk went away")

    read = ahead(clips(), 2)
    assert next(read) == 1
    with pytest.raises(SourceError, match="the disk went away"):
        next(read)


def test_a_reader_that_leaves_early_ends_the_decoding_thread():
    made: list[int] = []

    def clips() -> Iterator[Any]:
        for i in range(1000):
            made.append(i)
            yield i

    read = ahead(clips(), 2)
    assert next(read) == 0
    read.close()
    assert len(made) <= 6


def test_a_thread_that_waits_for_the_pace_is_woken_to_stop():
    stop = threading.Event()
    items = [packet(0.0), packet(0.01), packet(3600.0), packet(3601.0)]
    read = ahead((p for p in paced(items, sleep=stop.wait)), 2, stop)
    assert [next(read), next(read)] == items[:2]
    began = time.monotonic()
    read.close()  # as Ctrl-C does
    assert time.monotonic() - began < 4  # it joins the thread, which else would sleep for an hour
    assert not any(t.name == "legato-decode" for t in threading.enumerate())


def test_a_source_of_which_nothing_could_be_seen_is_no_silent_success(pipeline, media):
    class Garbage:
        """The packets of a file, their payloads overwritten: what an encrypted file looks like."""

        def __init__(self) -> None:
            self.info = open_source(media).info

        def packets(self) -> Iterator[Packet]:
            for item in open_source(media).packets():
                if item.modality == "video":
                    yield replace(item, payload=b"\x13" * len(item.payload))

    said = []
    with pytest.raises(SourceError, match=r"nothing of its 8 clips could be seen or heard .*100 of video"):
        said += pipeline.run(Garbage())
    assert all(p.abstained and p.label is None for p in said)
