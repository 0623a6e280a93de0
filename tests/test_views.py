"""Where clips lie in a recording, how they are read, and how the views of a test are averaged."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.datasets.augment import Augment
from encoders.datasets.labelled import LabelledClips, Look, train_or_next
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling, Views, starts_of, views_of
from encoders.errors import ConfigError, DataError, UsageError
from encoders.multi_view import score
from encoders.multi_view import test as judge
from encoders.tasks import LabelTask

PLAIN = Augment(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
LOOK = Look(size=8, short_side=8, pixel_format="gray")


def counting(sample, start, seconds, frames, look):
    """Frames whose every pixel is the number of the 25 Hz frame they show."""
    at = [int((sample.start + start + (i + 0.5) * float(seconds) / frames) * 25 + 1e-6) for i in range(frames)]
    return np.stack([np.full((8, 12), t, np.uint8) for t in at])


def clips(lengths=(4.0,), sampling=None, read=counting, **changes):
    samples = [Sample(path=Path(f"{i}.mp4"), seconds=s, label="ab"[i % 2]) for i, s in enumerate(lengths)]
    return LabelledClips(samples, sampling or ClipSampling(frames=8, stride=2), LOOK, PLAIN, read, **changes)


def shown(clip):
    return clip[:, 0, 0].tolist()


# --- in time ---


def test_training_clips_start_anywhere_and_are_evenly_spaced():
    random, all_clips, starts = np.random.default_rng(0), clips(), []
    for _ in range(200):
        clip = shown(all_clips.train(0, random))
        assert set(np.diff(clip)) == {2}
        starts.append(clip[0])
    assert min(starts) <= 3 and max(starts) >= 82  # 4 s are 100 frames, the clip spans 16


def test_a_short_recording_is_repeated():
    assert shown(clips((0.4,)).frames(0, 0.0)) == [1, 3, 5, 7, 9, 1, 3, 5]  # 10 frames for a clip that spans 16
    one = clips((0.04,)).frames(0, 0.0)
    assert shown(one) == [0] * 8


def test_spread_over_the_sample_whatever_its_length():
    spread = ClipSampling(frames=4, stride=0)
    assert shown(clips((1.6,), spread).frames(0, 0.0)) == [5, 15, 25, 35]
    assert shown(clips((0.8,), spread).train(0, np.random.default_rng(0))) == [2, 7, 12, 17]


@given(st.floats(0.04, 30), st.integers(1, 40), st.integers(0, 4), st.integers(1, 6))
def test_views_are_linearly_spaced_and_stay_inside(length, frames, stride, count):
    sampling = ClipSampling(frames=frames, stride=stride)
    starts = starts_of(length, sampling, count)
    assert len(starts) == count
    last = max(0.0, length - float(sampling.seconds)) if stride else 0.0
    assert all(0 <= s <= last + 1e-9 for s in starts)
    assert np.allclose(np.diff(starts), np.diff(starts)[:1]) if count > 1 else starts[0] == pytest.approx(last / 2)
    for start in starts:
        indices = sampling.indices(start, length)
        assert len(indices) == frames and indices.min() >= 0 and indices.max() < sampling.steps(length)


def test_a_test_takes_clips_times_squares():
    views = clips((4.0,)).views(0, Views(clips=4, crops=3))
    assert views.shape == (12, 8, 8, 8)
    assert [v[0, 0, 0] for v in views[::3]] == [1, 29, 57, 85]
    assert np.array_equal(views[0], views[1])  # the same time, another square of a flat picture


@pytest.mark.parametrize(
    ("text", "error"),
    [("4x3", None), ("1X1", None), ("4x2", ConfigError), ("0x1", ConfigError), ("4", UsageError), ("ax3", UsageError)],
)
def test_views_as_text(text, error):
    if error is None:
        assert views_of(text).count in (12, 1)
    else:
        with pytest.raises(error, match="views"):
            views_of(text)


# --- in space ---


def test_a_box_is_looked_at_alone():
    look = Look(size=4, short_side=4, box=(0.5, 0.25, 0.5, 0.5))
    clip = np.arange(8 * 12).reshape(1, 8, 12).astype(np.uint8)
    assert np.array_equal(look.cut(clip), clip[:, 2:6, 6:12])


# --- kept in memory ---


def test_clips_from_memory_are_the_clips_that_are_read():
    read, kept = clips((4.0, 0.4)), clips((4.0, 0.4))
    assert kept.keep(1.0) == 0
    for index in (0, 1):
        for start in (0.0, 0.36, 1.0):
            assert shown(kept.frames(index, start)) == shown(read.frames(index, start))
        assert np.array_equal(kept.views(index, Views()), read.views(index, Views()))


def broken(sample, *rest):
    if sample.path.stem in ("0", "2"):
        raise DataError(f"{sample.path} is broken; mend it")
    return counting(sample, *rest)


def test_what_cannot_be_decoded_leaves_memory_and_is_counted():
    data = clips((1.0, 1.0, 1.0, 1.0), read=broken)
    assert data.keep(1.0) == 2
    assert [s.path.stem for s in data.samples] == ["1", "3"]
    with pytest.raises(DataError, match=r"none of 1 samples can be read, the first because 0.mp4 is broken"):
        clips((1.0,), read=broken).keep(1.0)
    with pytest.raises(ConfigError, match=r"4 samples decoded would take about .* the limit is 1e-07"):
        clips((1.0,) * 4).keep(1e-7)


def test_a_broken_recording_is_replaced_by_the_next_in_training():
    data = clips((1.0, 1.0, 1.0), read=broken)
    assert train_or_next(data, 0, np.random.default_rng(0))[0] == 1
    assert train_or_next(data, 2, np.random.default_rng(0))[0] == 1
    with pytest.raises(DataError, match=r"1 recordings in a row cannot be read, the first because 0.mp4 is broken"):
        train_or_next(clips((1.0,), read=broken), 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClipSampling(frames=0), "frames 0 and fps 25 must be positive"),
        (lambda: ClipSampling(fps=Fraction(0)), "fps 0 must be positive"),
        (lambda: Look(size=0), "short_side 256 is less than the size 0"),
        (lambda: Look(box=(0, 0, 0, 1)), "box .* leaves the picture"),
    ],
)
def test_contradictions_are_one_sentence(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


# --- averaged ---


class Counter(torch.nn.Module):
    """Logits that tell the frame and the square they see."""

    def prepare(self, clips):
        return clips.float()

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0]], 1)


def test_logits_are_averaged_over_views_before_any_softmax():
    data, views = clips((4.0, 2.0)), Views(clips=4, crops=3)
    scores, read = score(Counter(), data, views, 2, batch=5)
    assert read.all()
    for i in (0, 1):
        expected = Counter()(torch.from_numpy(data.views(i, views)).float()).mean(0)
        torch.testing.assert_close(scores[i], expected)


def test_unreadable_recordings_are_left_out_of_a_test_and_counted():
    task = LabelTask(classes=("a", "b"))
    found = judge(Counter(), task, clips((1.0, 1.0, 1.0, 1.0), read=broken), Views())
    assert (found["samples"], found["unreadable"]) == (2, 2)
    with pytest.raises(DataError, match="none of 1 samples of the test can be read"):
        judge(Counter(), task, clips((1.0,), read=broken), Views())
