"""Optical flow: true movement is found, nothing outside the clip is looked at, the cache gives what was computed."""

import json
import multiprocessing
import os
from fractions import Fraction

import numpy as np
import pytest

from encoders.errors import ConfigError, DataError, OutputError
from encoders.settings import from_dict, to_dict
from encoders.video.flow import FlowCache, FlowConfig, mirror_flow, optical_flow, resize_flow

SHAPE = (4, 32, 32)


def moving(right, down, frames=4, size=32, seed=0):
    """A clip of a blurred noise that moves by whole pixels per picture."""
    import cv2

    room = size + 2 * 4 * frames
    noise = np.random.default_rng(seed).integers(0, 256, (room, room)).astype(np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    middle = room // 2 - size // 2
    corners = [(middle - t * down, middle - t * right) for t in range(frames)]
    return np.stack([texture[y : y + size, x : x + size] for y, x in corners])


def typical(flow):
    return np.median(flow, (0, 1, 2)).round(1).tolist()


# --- movement ---


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (0, 2), (-1, 1)])
def test_movement_is_found(method, right, down):
    flow = optical_flow(moving(right, down), FlowConfig(method=method))
    assert flow.shape == (4, 32, 32, 2)
    assert flow.dtype == np.float32
    assert typical(flow) == [right, down]


def test_colour_moves_as_gray_does():
    clip = moving(2, 0)
    np.testing.assert_array_equal(optical_flow(np.repeat(clip[..., None], 3, -1)), optical_flow(clip))


def test_the_first_picture_moves_as_the_second_and_one_alone_stands_still():
    flow = optical_flow(moving(2, 1))
    np.testing.assert_array_equal(flow[0], flow[1])
    assert not optical_flow(moving(2, 1)[:1]).any()


def test_a_field_depends_on_two_pictures_only():
    clip = moving(1, 1)
    other = clip.copy()
    other[3] = 0
    np.testing.assert_array_equal(optical_flow(clip)[:3], optical_flow(other)[:3])


def test_movement_is_cut_and_rounded():
    flow = optical_flow(moving(3, 0), FlowConfig(bound=2.0))
    assert flow.max() <= 2.0
    assert not (flow * 64 % 1).any()


def test_a_mirror_turns_movement_round():
    clip = moving(2, 1)
    mirrored = optical_flow(np.ascontiguousarray(clip[:, :, ::-1]))
    assert typical(mirrored) == typical(mirror_flow(optical_flow(clip))) == [-2, 1]


def test_a_larger_clip_moves_further():
    flow = resize_flow(optical_flow(moving(2, 1)), 64, 128)
    assert flow.shape == (4, 64, 128, 2)
    assert typical(flow) == [8, 2]


@pytest.mark.parametrize(
    ("pictures", "sentence"),
    [
        (np.zeros((4, 32, 32), np.float32), r"flow of float32 pictures \(4, 32, 32\) cannot be found; give uint8"),
        (np.zeros((32, 32), np.uint8), "flow of uint8 pictures"),
        (np.zeros((4, 32, 32, 2), np.uint8), "flow of uint8 pictures"),
        (np.zeros((4, 8, 32), np.uint8), r"flow needs pictures of 16 pixels or more and these are \(4, 8, 32\)"),
        (np.zeros((0, 32, 32), np.uint8), "flow needs pictures"),
    ],
)
def test_what_is_no_clip_is_one_sentence(pictures, sentence):
    with pytest.raises(DataError, match=sentence):
        optical_flow(pictures)


def test_settings_are_checked_and_read_back():
    for changes, sentence in (
        ({"method": "tvl1"}, "flow method 'tvl1' is unknown; use 'dis' or 'farneback'"),
        ({"effort": "much"}, "flow effort 'much' is unknown"),
        ({"bound": 0.0}, r"flow bound 0.0 pixels must lie in \(0, 500\]"),
        ({"bound": float("nan")}, "flow bound nan pixels"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            FlowConfig(**changes)
    assert from_dict(FlowConfig, json.loads(json.dumps(to_dict(FlowConfig(bound=8.0))))) == FlowConfig(bound=8.0)


# --- the cache ---


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "data" / "clip.mp4"
    path.parent.mkdir()
    path.write_bytes(b"a recording")
    return path


class Asked:
    """Gives a clip and counts how often."""

    def __init__(self, clip):
        self.clip, self.times = clip, 0

    def __call__(self):
        self.times += 1
        return self.clip


def test_what_is_kept_is_what_was_computed_to_the_bit(tmp_path, recording):
    cache, asked = FlowCache(tmp_path / "flow"), Asked(moving(2, 1))
    first = cache.flow(recording, 0.4, Fraction(2, 5), asked, SHAPE)
    again = cache.flow(recording, Fraction(2, 5), 0.4, asked, SHAPE)
    assert asked.times == 1
    np.testing.assert_array_equal(first, optical_flow(asked.clip))
    np.testing.assert_array_equal(first, again)
    assert again.dtype == np.float32
    assert [p.name for p in recording.parent.iterdir()] == ["clip.mp4"]  # nothing lies beside the data


def test_another_span_recording_size_or_setting_is_another_entry(tmp_path, recording):
    cache, asked = FlowCache(tmp_path / "flow"), Asked(moving(2, 1))
    cache.flow(recording, 0, 1, asked, SHAPE)
    other = recording.with_name("other.mp4")
    other.write_bytes(recording.read_bytes())
    cache.flow(other, 0, 1, asked, SHAPE)
    cache.flow(recording, 1, 1, asked, SHAPE)
    cache.flow(recording, 0, 2, asked, SHAPE)
    FlowCache(tmp_path / "flow", FlowConfig(method="farneback")).flow(recording, 0, 1, asked, SHAPE)
    asked.clip = moving(2, 1, frames=3)
    cache.flow(recording, 0, 1, asked, (3, 32, 32))
    assert asked.times == 6
    assert len(list((tmp_path / "flow").rglob("*.npz"))) == 6


def test_a_recording_that_changed_is_read_anew(tmp_path, recording):
    cache, asked = FlowCache(tmp_path / "flow"), Asked(moving(2, 1))
    cache.flow(recording, 0, 1, asked, SHAPE)
    recording.write_bytes(b"another recording")
    cache.flow(recording, 0, 1, asked, SHAPE)
    assert asked.times == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"nonsense" * 20,
        lambda data: data[:200] + bytes(50) + data[250:],
        lambda data: b"\x93NUMPY\x01\x00" + data,
        lambda data: b"\x80\x04N.",  # a pickle
    ],
)
def test_damaged_entries_are_made_anew(tmp_path, recording, damage):
    cache, asked = FlowCache(tmp_path / "flow"), Asked(moving(2, 1))
    expected = cache.flow(recording, 0, 1, asked, SHAPE)
    (entry,) = (tmp_path / "flow").rglob("*.npz")
    entry.write_bytes(damage(entry.read_bytes()))
    np.testing.assert_array_equal(cache.flow(recording, 0, 1, asked, SHAPE), expected)
    assert asked.times == 2
    np.testing.assert_array_equal(cache.flow(recording, 0, 1, asked, SHAPE), expected)
    assert asked.times == 2


def test_every_flipped_byte_gives_the_same_flow(tmp_path, recording):
    cache, clip = FlowCache(tmp_path / "flow"), moving(1, 0, frames=2, size=16)
    expected = cache.flow(recording, 0, 1, lambda: clip, (2, 16, 16))
    (entry,) = (tmp_path / "flow").rglob("*.npz")
    whole = entry.read_bytes()
    draw = np.random.default_rng(0)
    for at in draw.choice(len(whole), 120, replace=False):
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        np.testing.assert_array_equal(cache.flow(recording, 0, 1, lambda: clip, (2, 16, 16)), expected)


def test_an_entry_of_something_else_is_not_taken(tmp_path, recording):
    """Names are digests; should two ever collide, what the entry says of itself decides."""
    cache, asked = FlowCache(tmp_path / "flow"), Asked(moving(2, 1))
    cache.flow(recording, 0, 1, asked, SHAPE)
    (entry,) = (tmp_path / "flow").rglob("*.npz")
    with np.load(entry) as file:
        np.savez_compressed(entry, facts=np.array("another"), steps=file["steps"])
    cache.flow(recording, 0, 1, asked, SHAPE)
    assert asked.times == 2


def test_an_interrupted_write_leaves_nothing(tmp_path, recording, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        FlowCache(tmp_path / "flow").flow(recording, 0, 1, Asked(moving(2, 1)), SHAPE)
    assert [p for p in (tmp_path / "flow").rglob("*") if p.is_file()] == []


def test_what_cannot_be_is_one_sentence(tmp_path, recording):
    cache = FlowCache(tmp_path / "flow")
    with pytest.raises(DataError, match=r"missing\.mp4 cannot be read \(No such file or directory\)"):
        cache.flow(recording.with_name("missing.mp4"), 0, 1, Asked(None), SHAPE)
    with pytest.raises(DataError, match=r"are \(4, 32, 32\) and \(5, 32, 32\) \(T, H, W\) was said; make them one"):
        cache.flow(recording, 0, 1, Asked(moving(2, 1)), (5, 32, 32))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        FlowCache(tmp_path / "file").flow(recording, 0, 1, Asked(moving(2, 1)), SHAPE)


def _fill(arguments):
    folder, path = arguments
    return FlowCache(folder).flow(path, 0, 1, lambda: moving(2, 1), SHAPE).tobytes()


@pytest.mark.slow
def test_processes_may_share_a_folder(tmp_path, recording):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_fill, [(str(tmp_path / "flow"), str(recording))] * 9)
    assert len(set(found)) == 1
    assert len(list((tmp_path / "flow").rglob("*.npz"))) == 1
    assert os.listdir(recording.parent) == ["clip.mp4"]
