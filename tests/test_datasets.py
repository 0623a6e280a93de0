"""Datasets: what is listed, where a reading may lie, how pictures and sound are changed."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.clips import AudioSpec, VideoSpec
from encoders.datasets.java_sed import FOLDS
from encoders.datasets.reader import PairSpec, RecordedPairs, open_pairs, read_or_next
from encoders.datasets.sample import DATASETS, Sample, list_samples
from encoders.datasets.synthetic import SyntheticPairs
from encoders.datasets.transforms import ClipAugment, change_colours, fit_clip, random_resized_crop
from encoders.errors import ConfigError, DataError, UsageError

DATA = os.environ.get("LEGATO_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="LEGATO_DATA names no folder of recordings")
SPEC = PairSpec(
    video=VideoSpec(frames=8, size=16, pixel_format="rgb24"),
    video_seconds=Fraction(1, 2),
    audio=AudioSpec(sample_rate=8_000),
    audio_seconds=Fraction(2),
)


def picture(frames=4, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


# --- listing ---


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "speakers", "labels"), [("grid", 970, 9, 10), ("java_sed", 192, 8, 6), ("esc10", 400, None, 10)]
)
def test_corpora_are_listed_with_splits_that_share_no_speaker(name, count, speakers, labels):
    samples = list_samples(name)
    assert len(samples) == count
    assert all(s.path.is_file() for s in samples)
    assert len({s.label for s in samples}) == labels
    assert len({s.id for s in samples}) == count
    by_split = {split: {s.speaker for s in samples if s.split == split} for split in ("train", "val", "test")}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & (by_split["train"] | by_split["test"])
    if speakers is not None:
        assert sum(map(len, by_split.values())) == speakers
    assert len(list_samples(name, splits=("val", "test"))) == sum(s.split != "train" for s in samples)


@needs_data
def test_every_java_sed_fold_holds_out_two_actors_once():
    actors = [actor for fold in FOLDS for actor in fold]
    assert sorted(actors) == sorted({s.speaker for s in list_samples("java_sed")})


@needs_data
def test_grid_words_are_aligned_within_their_sentence():
    from encoders.datasets.grid import word_times

    times = word_times(Path(DATA) / "grid-av")
    assert len(times) > 900
    words = times[Path(DATA) / "grid-av/clips/s1/bbaf2n.mp4"]
    assert [w for _, _, w in words if w != "sil"] == ["bin", "blue", "at", "f", "two", "now"]
    assert all(start < end for start, end, _ in words)


def test_a_folder_lists_its_media_and_calls_them_by_their_folder(tmp_path):
    for name in ("b/two.mkv", "a/one.mp4", "a/notes.txt", "three.WAV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    samples = list_samples(f"folder:{tmp_path}")
    assert [(s.path.name, s.label) for s in samples] == [("one.mp4", "a"), ("two.mkv", "b"), ("three.WAV", "")]


def test_a_wrong_dataset_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("LEGATO_DATA", raising=False)
    with pytest.raises(UsageError, match="dataset 'gird' is unknown; did you mean grid"):
        list_samples("gird:x")
    with pytest.raises(UsageError, match="dataset grid has no folder; write grid:PATH"):
        list_samples("grid")
    with pytest.raises(DataError, match=r"dataset folder .*nowhere does not exist"):
        list_samples(f"grid:{tmp_path}/nowhere")
    with pytest.raises(DataError, match=r"labels.csv cannot be read"):
        list_samples(f"grid:{tmp_path}")
    (tmp_path / "labels.csv").write_text("file,speaker\n")
    with pytest.raises(DataError, match=r"labels.csv has no column label, split;"):
        list_samples(f"grid:{tmp_path}")
    (tmp_path / "labels.csv").write_text("file,speaker,label,split,seconds\na.mp4,s1,one,train,3\n")
    with pytest.raises(DataError, match="has no sample of split dev; it has train"):
        list_samples(f"grid:{tmp_path}", splits=["dev"])


def test_a_table_may_leave_out_how_long_recordings_are(tmp_path):
    (tmp_path / "labels.csv").write_text("file,speaker,label,split\na.ogg,s1,one,train\n")
    (tmp_path / "a.ogg").touch()
    (sample,) = list_samples(f"java_sed_takes:{tmp_path}")
    assert (sample.seconds, sample.label, dict(sample.notes)) == (None, "one", {})


def test_every_dataset_names_a_function_that_exists():
    from importlib import import_module

    for target, _ in DATASETS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))


# --- reading ---


@given(st.floats(0.1, 30), st.floats(0, 5), st.integers(0, 999))
def test_a_reading_lies_within_its_span_and_picture_near_sound(length, start, seed):
    pairs = RecordedPairs([], SPEC, ClipAugment(), 0.5)
    sample = Sample(path=Path("x"), start=start, seconds=length)
    sound, look = pairs.spans(sample, np.random.default_rng(seed))
    assert start <= sound <= start + max(0.0, length - 2) + 1e-9
    assert start <= look <= start + max(0.0, length - 0.5) + 1e-9
    if length >= 2:
        assert sound - 0.5 - 1e-9 <= look <= sound + 2 + 0.5 - 0.5 + 1e-9


def recorded(read, count=3):
    samples = [Sample(path=Path(f"{i}.mp4"), seconds=3.0) for i in range(count)]
    return RecordedPairs(samples, SPEC, ClipAugment(), 0.5, read)


def test_a_reading_asks_for_both_spans_and_fits_the_encoders():
    asked = []

    def read(path, start, seconds, spec):
        asked.append((path.name, float(seconds), spec.video is not None, spec.audio is not None))
        return (picture(8) if spec.video else None), (np.ones(16_000, np.float32) if spec.audio else None)

    video, audio = recorded(read).read(1, np.random.default_rng(0))
    assert asked == [("1.mp4", 0.5, True, False), ("1.mp4", 2.0, False, True)]
    assert (video.shape, video.dtype) == ((8, 16, 16, 3), np.uint8)
    assert audio.shape == (16_000,)
    assert 0.9 <= audio[0] <= 1.1


def test_a_broken_recording_is_replaced_by_the_next():
    def read(path, start, seconds, spec):
        if path.name in ("1.mp4", "2.mp4"):
            raise DataError(f"{path} is cut off")
        return picture(8), np.zeros(16_000, np.float32)

    assert read_or_next(recorded(read), 0, np.random.default_rng(0))[0] == 0
    assert read_or_next(recorded(read), 1, np.random.default_rng(0))[0] == 0


def test_nothing_but_broken_recordings_is_one_sentence():
    pairs = recorded(lambda *_: (picture(8), None))
    with pytest.raises(DataError, match=r"3 recordings in a row cannot be read, the first because 0.mp4 has no sound"):
        read_or_next(pairs, 0, np.random.default_rng(0))


@needs_data
def test_a_real_recording_reads_the_same_twice_and_differently_elsewhere():
    pairs = open_pairs("grid", SPEC, splits=("test",))
    video, audio = pairs.read(0, np.random.default_rng(1))
    again, _ = pairs.read(0, np.random.default_rng(1))
    other, _ = pairs.read(0, np.random.default_rng(2))
    assert (video.shape, audio.shape) == ((8, 16, 16, 3), (16_000,))
    assert np.array_equal(video, again)
    assert not np.array_equal(video, other)
    assert audio.std() > 1e-3


def test_synthetic_readings_share_the_code_and_differ_in_the_rest():
    pairs = SyntheticPairs(4, SPEC.video, 8_000, 4_000)
    (one, sound), (two, other) = (pairs.read(1, np.random.default_rng(i)) for i in range(2))
    assert (one.shape, one.dtype, sound.shape, sound.dtype) == ((8, 16, 16, 3), np.uint8, (4_000,), np.float32)
    assert not np.array_equal(one, two)
    stranger = pairs.read(2, np.random.default_rng(2))[1]
    assert alike(sound, other) > 0.9 > alike(sound, stranger)
    assert np.array_equal(pairs.code(1), SyntheticPairs(9, SPEC.video, 8_000, 4_000).code(1))


def alike(one, other):
    """Correlation of two sounds' spectra."""
    return np.corrcoef(*(np.abs(np.fft.rfft(x)) for x in (one, other)))[0, 1]


def test_synthetic_has_no_splits():
    with pytest.raises(UsageError, match="data 'synthetic:8' has no split 'train'; leave the split out"):
        open_pairs("synthetic:8", SPEC, splits=("train",))


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:x", "synthetic:-3", "synthetic:0"])
def test_synthetic_needs_a_number(text):
    with pytest.raises(UsageError, match="write for example synthetic:64"):
        open_pairs(text, SPEC)


# --- changing ---


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 999))
def test_a_random_crop_fits_any_picture(height, width, seed):
    clip = random_resized_crop(picture(2, height, width), 12, np.random.default_rng(seed))
    assert (clip.shape, clip.dtype) == ((2, 12, 12, 3), np.uint8)


def test_all_frames_of_a_clip_are_changed_alike():
    still = np.repeat(picture(1), 5, axis=0)
    clip = ClipAugment().video(still, 16, np.random.default_rng(3))
    assert (clip == clip[:1]).all()


def test_a_gray_clip_keeps_its_axes():
    clip = ClipAugment().video(picture()[..., 0], 16, np.random.default_rng(3))
    assert clip.shape == (4, 16, 16)


def test_no_change_of_colours_changes_nothing():
    clip = picture()
    same = change_colours(clip, np.random.default_rng(0), brightness=0, contrast=0, saturation=0, hue=0)
    assert np.array_equal(clip, same)


def test_hue_turns_red_to_green_a_third_of_the_circle_on(monkeypatch):
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 200

    class Third:
        def uniform(self, low, high):
            return 1.0 if low == 1.0 else 1 / 3

        def permutation(self, count):
            return range(count)

    turned = change_colours(red, Third(), brightness=0, contrast=0, saturation=0, hue=0.4)
    assert turned[0, 0, 0].tolist() == [0, 200, 0]


def test_colour_leaves_gray_gray_and_brightness_scales():
    gray = np.full((1, 3, 3, 3), 100, np.uint8)
    out = change_colours(gray, np.random.default_rng(1), brightness=0, contrast=0, saturation=0.4, hue=0.2)
    assert np.array_equal(out, gray)
    out = change_colours(gray, np.random.default_rng(1), brightness=0.4, contrast=0, saturation=0, hue=0)
    assert 60 <= out[0, 0, 0, 0] <= 140
    assert len(np.unique(out)) == 1


def test_too_much_hue_is_refused():
    with pytest.raises(ConfigError, match=r"hue 0.7 must lie in 0..0.5"):
        change_colours(picture(), np.random.default_rng(0), hue=0.7)


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre():
    ramp = np.zeros((1, 32, 64, 3), np.uint8)
    ramp[:, :, 16:48] = 255
    clip = fit_clip(ramp, 28, 0.875)  # shorter side 32: nothing is resized
    assert np.array_equal(clip[0], ramp[0, 2:30, 18:46])


def test_sound_is_louder_or_softer_by_a_tenth_at_most():
    gains = [ClipAugment().audio(np.ones(4, np.float32), np.random.default_rng(i))[0] for i in range(50)]
    assert 0.9 <= min(gains) < 0.95
    assert 1.05 < max(gains) <= 1.1


@needs_data
def test_grid_words_are_all_the_words_of_a_sentence():
    words = list_samples("grid_words", splits=["train"])
    assert len(words) == 6 * len(list_samples("grid_digits", splits=["train"])) == 6 * 599
    assert [s.label for s in words[:6]] == ["bin", "blue", "at", "f", "two", "now"]
    assert len({s.id for s in words}) == len(words)
    assert len({s.label for s in words}) == 51
