"""The grid, and how frames and samples are laid on it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.clips import (
    FLICKS,
    AudioSpec,
    ClipSpec,
    VideoSpec,
    fit_frame,
    from_flicks,
    grid_floor,
    lay_audio,
    lay_video,
    on_screen,
    sample_points,
    silence_holes,
    to_flicks,
)
from encoders.errors import ConfigError

T = ClipSpec().flicks


@pytest.mark.parametrize(
    "base", [Fraction(1, 1000), Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 44_100), Fraction(1, 12_288)]
)
def test_flicks_hold_every_common_time_base_exactly(base: Fraction) -> None:
    assert from_flicks(to_flicks(123_457, base)) == 123_457 * base or base.denominator == 12_288


@given(st.integers(-(10**12), 10**12), st.sampled_from([1_000_000, 90_000, 12_288, 48_000]))
def test_rounding_to_flicks_never_crosses_a_grid_line(ticks: int, per_second: int) -> None:
    exact = Fraction(ticks, per_second)
    rounded = to_flicks(ticks, Fraction(1, per_second))
    assert abs(from_flicks(rounded) - exact) <= Fraction(1, 2 * FLICKS)
    cell = exact // Fraction(2, 5)
    assert rounded // T in (cell, cell + (exact % Fraction(2, 5) > Fraction(2, 5) - Fraction(1, FLICKS)))


def test_a_clip_that_is_no_whole_number_of_samples_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="choose a clip length"):
        _ = ClipSpec(seconds=Fraction(1, 3), audio=AudioSpec()).samples


def test_the_grid_line_at_or_before_a_time_also_below_zero() -> None:
    assert [grid_floor(t, 10) for t in (0, 9, 10, -1)] == [0, 0, 10, -10]


def test_an_encoder_looks_at_the_middles_of_equal_parts() -> None:
    assert sample_points(100, 80, 4) == [110, 130, 150, 170]


def test_frames_are_chosen_by_time_and_not_by_index() -> None:
    rate = Fraction(30_000, 1001)  # 11 or 12 frames in 400 ms
    for clip in range(20):
        starts = [i / rate for i in range(400)]
        spans = [(int(s * FLICKS), int((s + 1 / rate) * FLICKS)) for s in starts]
        inside = [s for s in spans if s[1] > clip * T and s[0] < (clip + 1) * T]
        points = sample_points(clip * T, T, 8)
        for point, i in zip(points, on_screen(inside, points), strict=True):
            assert inside[i][0] <= point < inside[i][1]


def test_a_hole_takes_the_nearest_picture_and_a_tie_the_earlier() -> None:
    spans = [(0, 10), (30, 40)]
    assert on_screen(spans, [5, 12, 19, 20, 21, 29, 35, 90]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert on_screen([(20, 30)], [0, 25, 99]) == [0, 0, 0]


def test_pictures_are_laid_on_the_clip_by_time() -> None:
    pictures = [np.full((4, 6), 10 * i, np.uint8) for i in range(4)]
    spans = [(i * T // 4, (i + 1) * T // 4) for i in range(4)]
    clip = lay_video(pictures, spans, 0, T, VideoSpec(frames=8, size=4, region="face"))
    assert clip.shape == (8, 4, 6)
    assert clip[:, 0, 0].tolist() == [0, 0, 10, 10, 20, 20, 30, 30]


def test_a_frame_region_is_the_centre_as_a_square() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200  # the centre square
    clip = lay_video([picture], [(0, T)], 0, T, VideoSpec(frames=2, size=20, pixel_format="rgb24"))
    assert clip.shape == (2, 20, 20, 3)
    assert clip.min() == 200


def test_crop_share_cuts_closer() -> None:
    picture = np.zeros((100, 100), np.uint8)
    picture[10:90, 10:90] = 255
    assert fit_frame(picture, 50).min() == 0
    assert fit_frame(picture, 50, crop_share=0.75).min() == 255


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.floats(0.3, 1.0))
def test_any_picture_gives_a_square_of_the_size_asked_for(height: int, width: int, size: int, share: float) -> None:
    assert fit_frame(np.zeros((height, width), np.uint8), size, share).shape == (size, size)


def test_pictures_whose_size_changes_within_a_clip_take_the_size_of_the_first() -> None:
    pictures = [np.zeros((4, 6), np.uint8), np.full((8, 12), 9, np.uint8)]
    clip = lay_video(pictures, [(0, T // 2), (T // 2, T)], 0, T, VideoSpec(frames=2, size=4, region="face"))
    assert clip.shape == (2, 4, 6)
    assert clip[1].min() == 9


def test_blocks_are_laid_at_their_place_and_cut_to_the_clip() -> None:
    ones = np.ones(4, np.float32)
    assert lay_audio([ones, 2 * ones, 3 * ones], [-2, 4, 8], 10).tolist() == [1, 1, 0, 0, 2, 2, 2, 2, 3, 3]


def test_sound_fades_out_before_a_hole_and_in_after_it() -> None:
    samples = np.ones(100, np.float32)
    silence_holes(samples, [(40, 60)], fade=5)
    assert not samples[40:60].any()
    assert (np.diff(samples[34:41]) < 0).all()
    assert (np.diff(samples[59:66]) > 0).all()
    assert (samples[:35] == 1).all() and (samples[65:] == 1).all()


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8, unique=True), st.integers(0, 12))
def test_holes_anywhere_are_silent_and_nothing_gets_louder(edges: list[int], fade: int) -> None:
    edges = sorted(edges)
    holes = list(zip(edges[::2], edges[1::2], strict=False))
    samples = np.ones(50, np.float32)
    silence_holes(samples, holes, fade)
    assert all(not samples[a:b].any() for a, b in holes)
    assert samples.max(initial=0) <= 1 and samples.min() >= 0
