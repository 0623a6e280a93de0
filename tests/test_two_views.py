"""Two moments of a recording: where they lie, that views that touch are decoded once, and what is done to each."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.audio.slaney_mel import SlaneyMel
from encoders.clips import AudioSpec, VideoSpec
from encoders.datasets.augment import blur
from encoders.datasets.reader import PairSpec, RecordedPairs
from encoders.datasets.sample import Sample
from encoders.datasets.transforms import ClipAugment
from encoders.datasets.two_views import SYNCHRONIES, RecordedViews, moments, open_views
from encoders.datasets.view_augment import ViewAugment, resize_crop
from encoders.errors import ConfigError, DataError, UsageError

FRONT = SlaneyMel()
SPEC = PairSpec(
    video=VideoSpec(frames=8, size=32, pixel_format="rgb24", crop_share=0.875),
    video_seconds=Fraction(1, 2),
    audio=AudioSpec(sample_rate=16_000),
    audio_seconds=Fraction(2),
)
PLAIN = ViewAugment(
    area=(1.0, 1.0), mirror=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0, blur=0.0,
    cutout=0.0, gain=0.0, frequency_masks=0, time_masks=0, crop=0.0,
)  # fmt: skip
VIDEO, AUDIO = 0.5, 2.0


def drawn(synchrony, length=10.0, count=300):
    random = np.random.default_rng(0)
    return [moments(synchrony, length, VIDEO, AUDIO, random) for _ in range(count)]


# --- where views lie ---


@pytest.mark.parametrize("synchrony", SYNCHRONIES)
@pytest.mark.parametrize("length", [10.0, 4.5, 3.0])
def test_every_view_lies_within_the_recording(synchrony, length):
    for video, audio in drawn(synchrony, length):
        assert all(-1e-9 <= at <= length - VIDEO + 1e-9 for at in video)
        assert all(-1e-9 <= at <= length - AUDIO + 1e-9 for at in audio)


@pytest.mark.parametrize(("synchrony", "share"), [("same_timestamp", 0.0), ("overlapped", 0.5), ("adjacent", 1.0)])
def test_the_second_view_begins_a_share_of_a_clip_later(synchrony, share):
    for (v1, v2), (a1, a2) in drawn(synchrony):
        assert v2 - v1 == pytest.approx(share * VIDEO)
        assert a2 - a1 == pytest.approx(share * AUDIO)


@pytest.mark.parametrize("synchrony", ["same_timestamp", "overlapped", "adjacent"])
def test_the_stretch_of_pictures_lies_within_the_stretch_of_sound(synchrony):
    for (v1, v2), (a1, a2) in drawn(synchrony):
        assert a1 - 1e-9 <= v1 and v2 + VIDEO <= a2 + AUDIO + 1e-9


def test_random_views_are_independent_and_each_in_its_own_sound():
    found = drawn("random")
    for video, audio in found:
        assert all(a <= v <= a + AUDIO - VIDEO for v, a in zip(video, audio, strict=True))
    first, second = (np.array([audio[i] for _, audio in found]) for i in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    assert first.min() < 0.5 and first.max() > 7.5


def test_far_views_are_half_the_recording_apart_and_begin_together():
    for (v1, v2), (a1, a2) in drawn("far_apart"):
        assert v2 - v1 == a2 - a1 == pytest.approx(5)
        assert v1 == a1 and a1 + AUDIO <= 5


@pytest.mark.parametrize(("synchrony", "far"), [("v_far_a_same", 0), ("v_same_a_far", 1)])
def test_one_modality_may_stay_while_the_other_goes_far(synchrony, far):
    found = drawn(synchrony)
    moved = np.array([both[far] for both in found])
    still = np.array([both[1 - far] for both in found])
    assert (moved[:, 1] > moved[:, 0]).all() and (still[:, 0] == still[:, 1]).all()
    assert 0.3 < (still[:, 0] == moved[:, 0]).mean() < 0.7  # that of either moment


@pytest.mark.parametrize("synchrony", SYNCHRONIES)
def test_a_recording_shorter_than_a_clip_begins_at_its_beginning(synchrony):
    for video, audio in drawn(synchrony, length=0.3, count=20):
        assert video == audio == (0.0, 0.0)


def test_a_recording_without_room_for_two_takes_the_last_clip():
    (v1, v2), (a1, a2) = moments("far_apart", 3.0, VIDEO, AUDIO, np.random.default_rng(0))
    assert (a1, a2) == (0.0, 1.0) and (v1, v2) == (0.0, 1.5)


# --- reading ---


class Film:
    """Every picture and every sample says when it was; remembers what it was asked for."""

    def __init__(self, size=(48, 64)):
        self.asked, self.size = [], size

    def __call__(self, path, start, seconds, spec):
        self.asked.append(("video" if spec.video else "audio", start, float(seconds)))
        video = audio = None
        if spec.video:
            times = start + (np.arange(spec.video.frames) + 0.5) * float(seconds) / spec.video.frames
            video = np.zeros((spec.video.frames, *self.size, 3), np.uint8)
            video[:] = np.rint(times * 20)[:, None, None, None]
        if spec.audio:
            audio = np.sin(np.arange(spec.samples) / 9 + start).astype(np.float32)
        return video, audio


def recorded(synchrony="overlapped", augment=PLAIN, seconds=10.0, **changes):
    film = changes.pop("film", Film())
    return RecordedViews([Sample(path=Path("a.mp4"), seconds=seconds)], SPEC, FRONT, augment, synchrony, film), film


@pytest.mark.parametrize(("synchrony", "seconds"), [("same_timestamp", 2.0), ("overlapped", 3.0), ("adjacent", 4.0)])
def test_views_that_touch_are_decoded_once(synchrony, seconds):
    views, film = recorded(synchrony)
    views.read(0, np.random.default_rng(3))
    assert [(kind, long) for kind, _, long in film.asked] == [("video", seconds / 4), ("audio", seconds)]


@pytest.mark.parametrize("synchrony", ["random", "far_apart", "v_far_a_same"])
def test_views_apart_are_decoded_by_themselves(synchrony):
    views, film = recorded(synchrony)
    views.read(0, np.random.default_rng(3))
    assert {long for _, _, long in film.asked} == {0.5, 2.0} and len(film.asked) >= 3


@pytest.mark.parametrize("synchrony", SYNCHRONIES)
def test_a_reading_holds_the_moments_in_their_order(synchrony):
    """The same clips as if each view had been read alone."""
    views, _ = recorded(synchrony)
    for seed in range(3):
        found = views.read(0, np.random.default_rng(seed))
        (v1, v2), audio = moments(synchrony, 10.0, VIDEO, AUDIO, np.random.default_rng(seed))
        assert found.video.shape == (2, 8, 32, 32, 3) and found.audio.shape == (2, 201, 80)
        for view, start in zip(found.video[..., 0, 0, 0], (v1, v2), strict=True):
            np.testing.assert_array_equal(view, np.rint((start + (np.arange(8) + 0.5) / 16) * 20))
        assert len(audio) == 2


def test_the_two_sounds_of_one_stretch_are_its_two_ends():
    views, film = recorded("overlapped")
    found = views.read(0, np.random.default_rng(1))
    whole = np.sin(np.arange(48_000) / 9 + film.asked[1][1]).astype(np.float32)
    ends = FRONT(torch.from_numpy(np.stack([whole[:32_000], whole[16_000:]]))).numpy()
    np.testing.assert_allclose(found.audio, ends, atol=1e-5)


@pytest.mark.parametrize("lacks", ["picture", "sound"])
def test_a_recording_that_lacks_a_track_is_named(lacks):
    def half(path, start, seconds, spec):
        video, audio = Film()(path, start, seconds, spec)
        return (None, audio) if lacks == "picture" else (video, None)

    views, _ = recorded(film=half)
    with pytest.raises(DataError, match=rf"a.mp4 has no {lacks}; it needs both"):
        views.read(0, np.random.default_rng(0))


def test_boxes_are_cut_of_the_whole_picture_not_of_its_centre():
    """CrissCross and AVID-CMA alike: what is asked for keeps the decoded size."""
    regions = []

    def look(path, start, seconds, spec):
        regions.extend([spec.video.region] if spec.video else [])
        return Film()(path, start, seconds, spec)

    recorded(film=look)[0].read(0, np.random.default_rng(0))
    pairs = RecordedPairs([Sample(path=Path("a.mp4"), seconds=9.0)], SPEC, ClipAugment(), read_clip=look)
    pairs.read(0, np.random.default_rng(0))
    assert regions == ["face", "face"]


def test_synthetic_views_share_their_code_and_nothing_else():
    found = open_views("synthetic:4", SPEC, FRONT).read(1, np.random.default_rng(0))
    assert found.video.shape == (2, 8, 32, 32, 3) and found.audio.shape == (2, 201, 80) and not found.squares.any()
    assert (found.video[0] != found.video[1]).any() and (found.audio[0] != found.audio[1]).any()


@pytest.mark.parametrize(
    ("text", "options", "error", "says"),
    [
        ("synthetic:x", {}, UsageError, "names no number of instances"),
        ("synthetic:4", {"splits": ("train",)}, UsageError, "has no split 'train'"),
        ("synthetic:4", {"synchrony": "apart"}, ConfigError, "synchrony 'apart' is unknown; use one of same_timestamp"),
        ("gird:x", {}, UsageError, "dataset 'gird' is unknown"),
        ("folder:/nowhere/at/all", {}, DataError, "does not exist"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(text, options, error, says):
    with pytest.raises(error, match=says):
        open_views(text, SPEC, FRONT, **options)


# --- changes ---


def picture(frames=4, height=48, width=64):
    return np.random.default_rng(9).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_two_views_are_changed_by_themselves_and_all_frames_of_one_alike():
    still = np.repeat(picture(1), 4, 0)
    random = np.random.default_rng(0)
    (one, _), (other, _) = (ViewAugment().video(still, 32, random) for _ in range(2))
    assert (one != other).any()
    for clip in (one, other):
        assert clip.shape == (4, 32, 32, 3) and all((frame == clip[0]).all() for frame in clip)


def test_the_same_draw_gives_the_same_view():
    for change in (lambda r: ViewAugment().video(picture(), 32, r)[0],
                   lambda r: ViewAugment().spectrogram(np.random.default_rng(1).normal(size=(51, 80)).astype("f4"), r)):
        np.testing.assert_array_equal(*(change(np.random.default_rng(5)) for _ in range(2)))


def test_colours_are_dropped_and_pictures_blurred_as_often_as_they_say(monkeypatch):
    blurred, random = [], np.random.default_rng(0)
    monkeypatch.setattr("encoders.datasets.view_augment.blur", lambda clip, sigma: blurred.append(sigma) or clip)
    gray = [ViewAugment().video(picture(1, 12, 16), 8, random)[0] for _ in range(300)]
    assert np.mean([(clip[..., :1] == clip).all() for clip in gray]) == pytest.approx(0.2, abs=0.07)
    assert len(blurred) / 300 == pytest.approx(0.5, abs=0.1)
    assert 0.1 <= min(blurred) < 0.2 and 1.9 < max(blurred) <= 2.0


def test_a_blurred_picture_is_smoother():
    rough = picture(1)
    smooth = blur(rough, 2.0)
    assert np.abs(np.diff(smooth.astype(int), axis=1)).mean() < 0.5 * np.abs(np.diff(rough.astype(int), axis=1)).mean()


def test_squares_have_sides_of_1_to_20_and_lie_within():
    random = np.random.default_rng(0)
    squares = np.stack([ViewAugment()._square(112, random) for _ in range(2000)])
    assert set(squares[:, 2]) == set(range(1, 21))
    assert squares[:, :2].min() == 0 and (squares[:, :2].max(1) + squares[:, 2]).max() == 112
    assert not ViewAugment(cutout=0.0)._square(112, random).any()
    assert ViewAugment()._square(4, random)[2] <= 4


def test_sound_gets_louder_or_softer_by_a_fifth_at_most():
    random = np.random.default_rng(0)
    gains = [ViewAugment().sound(np.ones(1, np.float32), random)[0] for _ in range(500)]
    assert 0.8 <= min(gains) < 0.82 and 1.18 < max(gains) <= 1.2


def test_bands_are_filled_with_the_mean():
    spectrogram = np.random.default_rng(1).normal(size=(201, 80)).astype(np.float32)
    out = ViewAugment(crop=0.0, frequency_masks=1, time_masks=0).spectrogram(spectrogram, np.random.default_rng(3))
    hidden = (out != spectrogram).all(0)
    assert 1 <= hidden.sum() <= 9
    np.testing.assert_allclose(out[:, hidden], spectrogram.mean(), atol=1e-6)


class Draws:
    """A generator that gives what it was told."""

    def __init__(self, scales, places):
        self.scales, self.places = list(scales), list(places)

    def uniform(self, low, high):
        return self.scales.pop(0)

    def integers(self, high):
        return min(self.places.pop(0), high - 1)


def test_a_box_as_large_as_the_spectrogram_in_its_place_changes_nothing():
    spectrogram = np.random.default_rng(1).normal(size=(40, 20)).astype(np.float32)
    np.testing.assert_allclose(resize_crop(spectrogram, Draws((1.0, 1.0), (0, 10))), spectrogram, atol=1e-5)


def test_a_long_box_squeezes_time_and_shows_the_silence_around():
    spectrogram = np.ones((40, 20), np.float32)
    out = resize_crop(spectrogram, Draws((1.5, 1.5), (0, 0)))  # the height is clipped to the canvas's
    assert out.shape == (40, 20)
    assert np.abs(out[0]).max() < 1e-5 and np.abs(out[-1]).max() < 1e-5
    np.testing.assert_allclose(out[10:30], 1, atol=1e-5)


def test_a_short_box_stretches_what_it_shows_corner_on_corner():
    ramp = np.tile(np.arange(20, dtype=np.float32), (40, 1))
    out = resize_crop(ramp, Draws((0.6, 0.6), (4, 15)))
    assert out[:, 0] == pytest.approx(4, abs=1e-4) and out[:, -1] == pytest.approx(15, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mirror": 2.0}, "mirror 2.0 is no probability"),
        ({"area": (0.5, 0.1)}, r"area \(0.5, 0.1\) must be two shares"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma .* must be two numbers above 0"),
        ({"crop_scale": (2.0, 1.0)}, "crop_scale .* the smaller first"),
        ({"hue": 0.7}, "hue 0.7 must lie in"),
        ({"gain": 1.0}, "gain 1.0 must lie in"),
        ({"cutout_side": 0}, "cutout_side 0 and crop_canvas 1.5 must be at least 1"),
        ({"time_width": -1}, "time_width -1 must be >= 0"),
    ],
)
def test_changes_that_cannot_be_made_are_one_sentence(wrong, says):
    with pytest.raises(ConfigError, match=says):
        ViewAugment(**wrong)
