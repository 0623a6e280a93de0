"""What training clips go through: alike in all frames, within bounds, with the papers' odds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.datasets.augment import Augment, colour_jitter, crop_at, erased, simclr, to_short_side
from encoders.datasets.mixup import cutmix, mix, mixed, mixup, smooth
from encoders.datasets.rand_augment import OPERATIONS, rand_augment
from encoders.datasets.spec_augment import SpecAugment
from encoders.errors import ConfigError


def noise(frames=3, height=20, width=30, channels=3, seed=0):
    shape = (frames, height, width, channels) if channels else (frames, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def still(frames=4, **size):
    """The same noise in every frame: what treats frames alike keeps them alike."""
    return np.repeat(noise(1, **size), frames, 0)


def alike(clip):
    return all(np.array_equal(clip[0], frame) for frame in clip)


def rng(seed=0):
    return np.random.default_rng(seed)


EVERYTHING = (
    Augment(),
    Augment(colour=1.0, grayscale=1.0, mirror=1.0),
    Augment(rand_layers=3, rand_magnitude=20.0),
    Augment(simclr=True),
    Augment(area=(0.05, 1.0)),
    Augment(scale=(1.0, 1.0), shift=3),
)


@pytest.mark.parametrize("augment", EVERYTHING)
@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("seed", range(8))
def test_frames_of_a_clip_are_changed_alike(augment, channels, seed):
    out = augment(still(channels=channels), 16, 12, rng(seed))
    assert out.shape[:3] == (4, 12, 12) and out.ndim == (4 if channels else 3)
    assert out.dtype == np.uint8
    assert alike(out)


@pytest.mark.parametrize("augment", EVERYTHING)
def test_the_same_draw_gives_the_same_clip_and_the_input_stays(augment):
    clip = noise()
    before = clip.copy()
    assert np.array_equal(augment(clip, 16, 12, rng(5)), augment(clip, 16, 12, rng(5)))
    assert np.array_equal(clip, before)


def test_without_chance_a_crop_is_a_part_of_the_resized_clip():
    plain = Augment(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
    clip = noise(2, 16, 24)
    out = plain(clip, 16, 12, rng(1))
    places = [(y, x) for y in range(5) for x in range(13) if np.array_equal(out, clip[:, y : y + 12, x : x + 12])]
    assert len(places) == 1


def test_scale_jitter_draws_height_and_width_apart_within_its_bounds(monkeypatch):
    seen = []
    monkeypatch.setattr("encoders.datasets.augment.resize", lambda f, h, w: seen.append((h, w)) or np.zeros((h, w, 3), np.uint8))  # noqa: E501
    augment = Augment(colour=0.0, grayscale=0.0)
    for seed in range(300):
        augment(noise(1, 40, 60), 100, 10, rng(seed))
    heights, widths = np.array(seen).T
    assert 90 <= heights.min() < 95 and 128 < heights.max() <= 133
    assert 135 <= widths.min() < 142 and 192 < widths.max() <= 200
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2


def test_rand_augment_comes_before_simclr_and_that_before_colours(monkeypatch):
    called = []
    for name in ("rand_augment", "simclr", "colour_jitter"):
        monkeypatch.setattr(f"encoders.datasets.augment.{name}", lambda c, *_, n=name, **__: called.append(n) or c)
    for augment in (
        Augment(rand_layers=1, simclr=True, colour=1.0),
        Augment(simclr=True, colour=1.0),
        Augment(colour=1.0),
    ):
        augment(noise(), 16, 12, rng())
    assert called == ["rand_augment", "simclr", "colour_jitter"]


def test_odds_are_what_they_say():
    clip = noise(1, 16, 16)
    gray = sum(bool((Augment(colour=0.0)(clip, 16, 16, rng(s))[..., 0] == Augment(colour=0.0)(clip, 16, 16, rng(s))[..., 1]).all()) for s in range(400))  # noqa: E501
    assert 20 <= gray <= 62  # 10 % of 400
    plain = Augment(scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
    mirrored = sum(np.array_equal(plain(clip, 16, 16, rng(s)), clip[:, :, ::-1]) for s in range(200))
    assert 70 <= mirrored <= 130


def test_crops_of_a_test_lie_along_the_longer_side():
    wide = to_short_side(noise(1, 20, 50), 20)
    tall = to_short_side(noise(1, 50, 20), 20)
    for place, at in enumerate((0, 15, 30)):
        assert np.array_equal(crop_at(wide, 20, place), wide[:, :, at : at + 20])
        assert np.array_equal(crop_at(tall, 20, place), tall[:, at : at + 20])
    assert np.array_equal(crop_at(wide, 20, 0, 1), wide[:, :, 15:35])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mirror": 1.5}, "mirror 1.5 is no probability"),
        ({"scale": (1.2, 0.9)}, "scale .* the smaller first"),
        ({"area": (0.0, 1.0)}, "area .* must be two shares"),
        ({"rand_layers": -1}, "rand_layers -1"),
    ],
)
def test_contradictions_are_one_sentence(changes, says):
    with pytest.raises(ConfigError, match=says):
        Augment(**changes)


# --- RandAugment ---


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 15, 20])
@pytest.mark.parametrize("channels", [0, 3])
def test_every_operation_keeps_shape_type_and_likeness(name, magnitude, channels):
    clip = still(channels=channels)
    out = OPERATIONS[name](clip, magnitude / 10, rng(3))
    assert out.shape == clip.shape and out.dtype == np.uint8 and alike(out)


def test_operations_do_what_they_are_called():
    clip = noise(2, 8, 8)
    op = {name: lambda m, f=f: f(clip, m / 10, rng()) for name, f in OPERATIONS.items()}
    assert np.array_equal(op["invert"](5), 255 - clip)
    assert np.array_equal(op["solarize"](5), np.where(clip < 128, clip, 255 - clip))
    assert np.array_equal(op["posterize"](10), clip & 0xF0)
    assert not op["posterize"](0).any()
    assert np.array_equal(op["posterize"](20), clip)
    assert np.array_equal(op["solarize_add"](10), np.where(clip < 128, np.minimum(clip.astype(int) + 110, 255), clip))
    for enhance in ("colour", "contrast", "brightness", "sharpness"):
        assert np.abs(op[enhance](5).astype(int) - clip).max() <= 1  # factor 1: as it was
    assert np.abs(op["brightness"](0).astype(int) - clip * 0.1).max() <= 1
    assert op["colour"](0).std(-1).mean() < clip.std(-1).mean() / 5
    cut = OPERATIONS["cutout"](np.zeros((1, 224, 224, 3), np.uint8), 1.0, rng(1))
    assert (cut == 128).all(-1).sum() <= 80 * 80 and (cut == 128).any()


def test_equalize_and_autocontrast_against_an_exact_answer():
    ramp = np.tile(np.arange(64, 128, dtype=np.uint8), (1, 64, 1))  # (1, 64, 64): every value 64 times
    stretched = OPERATIONS["autocontrast"](ramp, 1.0, rng())
    assert (stretched.min(), stretched.max()) == (0, 255)
    equal = OPERATIONS["equalize"](ramp, 1.0, rng())
    # 64 values of 64 pixels each: a step is (4096 - 64) // 255 = 15, so the k-th value becomes (64 k + 7) // 15
    assert equal[0, 0].tolist() == [0] + [min(255, (64 * k + 7) // 15) for k in range(1, 64)]
    flat = np.full((1, 4, 4, 3), 77, np.uint8)
    assert all(np.array_equal(OPERATIONS[n](flat, 1.0, rng()), flat) for n in ("autocontrast", "equalize"))


def test_one_choice_in_twelve_changes_nothing(monkeypatch):
    seen = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda c, m, r, n=name: seen.append(n) or c)
    for seed in range(1200):
        rand_augment(noise(1, 2, 2), rng(seed), layers=1, magnitude=9)
    assert 1050 <= len(seen) <= 1145  # 11 / 12 of 1200
    counts = [seen.count(name) for name in OPERATIONS]
    assert min(counts) > 60


# --- colours ---


def test_colours_stay_within_their_bounds():
    gray = np.full((1, 8, 8, 3), 128, np.uint8)
    shifts = [int(colour_jitter(gray, rng(s)).mean()) - 128 for s in range(100)]
    assert -33 <= min(shifts) < -20 and 20 < max(shifts) <= 33


def test_a_box_is_erased_alike_in_all_frames_and_no_more_than_a_third():
    clip = np.full((3, 40, 60, 3), 255, np.uint8)
    kept = clip.copy()
    for seed in range(50):
        out = erased(clip, rng(seed))
        gone = (out != clip).any((0, 3))
        rows, columns = gone.any(1).nonzero()[0], gone.any(0).nonzero()[0]
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.015 < high * wide / 2400 < 0.36 and 0.25 < high / wide < 4
        noise = out[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        assert noise.mean() / 255 == pytest.approx(0.45, abs=0.06) and noise[0].std() > 40
        assert not np.array_equal(noise[0], noise[1])
    assert np.array_equal(clip, kept)
    once = Augment(erase=1.0).without_chance()
    assert np.array_equal(once(clip, 40, 40, rng()), np.full((3, 40, 40, 3), 255, np.uint8))
    often = Augment(scale=(1.0, 1.0), colour=0.0, grayscale=0.0, erase=0.25)
    changed = [(often(clip[:1], 40, 40, rng(seed)) != 255).any() for seed in range(200)]
    assert 30 < sum(changed) < 70


def test_simclr_reverses_time_half_of_the_time():
    clip = np.stack([np.full((16, 16, 3), 40 * t + 20, np.uint8) for t in range(4)])
    backwards = 0
    for seed in range(100):
        out = simclr(clip, rng(seed)).astype(int).mean((1, 2, 3))
        backwards += abs(out[0] - out[-1]) > 1 and (out[0] > out[-1]) != (rng(seed).random() > 2)
    assert 25 < backwards < 75


# --- targets ---


def test_mixup_takes_the_mirrored_row_and_one_share_for_all():
    x, y = torch.arange(4.0)[:, None], torch.eye(4)
    out, targets = mix(x, y, 0.75)
    assert out.flatten().tolist() == [0.75, 1.25, 1.75, 2.25]
    assert targets[0].tolist() == [0.75, 0, 0, 0.25]
    assert mixup(x, y, 0.0, rng())[0] is x
    shares = [float(mixup(x, y, 0.3, rng(s))[1][0, 0]) for s in range(500)]
    assert 0.45 < np.mean(shares) < 0.55
    assert np.std(shares) == pytest.approx((0.25 / 1.6) ** 0.5, abs=0.03)  # of Beta(0.3, 0.3)


def test_cutmix_puts_a_box_of_the_mirrored_row_into_all_frames():
    x = torch.arange(3.0)[:, None, None, None, None].expand(3, 2, 4, 20, 30)  # (B, C, T, H, W), each its number
    for seed in range(50):
        out, targets = cutmix(x, torch.eye(3), 1.0, rng(seed))
        assert torch.equal(out[1], x[1])  # the middle row is its own partner
        other = out[0] == 2
        assert torch.equal(other, other[:1, :1].expand_as(other)) and (other | (out[0] == 0)).all()
        rows, columns = other[0, 0].any(1), other[0, 0].any(0)
        assert torch.equal(other[0, 0], rows[:, None] & columns)  # a box, and the targets say how large it is
        share = float(other.float().mean())
        assert targets[0].tolist() == pytest.approx([1 - share, 0, share], abs=1e-6)
    shares = [float(cutmix(x, torch.eye(3), 1.0, rng(seed))[1][0, 2]) for seed in range(500)]
    assert 0.2 < np.mean(shares) < 0.45 and max(shares) > 0.8  # half, less what falls off the edges


def test_either_mixup_or_cutmix_by_an_even_chance():
    x, y = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8), torch.eye(4)
    assert mixed(x, y, 0.0, 0.0, rng())[0] is x
    boxes = [set(mixed(x, y, 5.0, 5.0, rng(seed))[0][0].unique().tolist()) <= {0, 3} for seed in range(200)]
    assert 70 < sum(boxes) < 130
    assert all(torch.equal(mixed(x, y, 0.3, 0.0, rng(s))[0], mixup(x, y, 0.3, rng(s))[0]) for s in range(5))
    with pytest.raises(ConfigError, match=r"cutmix 1.0 cuts pictures of models that see alone; use 0, or mixup"):
        mixed({"rgb": x}, y, 0.0, 1.0, rng())
    with pytest.raises(ConfigError, match=r"cutmix -1 must be >= 0, and of pictures; use 0 for none"):
        cutmix(x, y, -1, rng())


def test_smoothing_leaves_a_distribution():
    out = smooth(torch.eye(5), 0.2)
    assert out[0].tolist() == pytest.approx([0.84, 0.04, 0.04, 0.04, 0.04])
    with pytest.raises(ConfigError, match=r"label smoothing 1.0 must lie in \[0, 1\)"):
        smooth(torch.eye(2), 1.0)


# --- SpecAugment ---


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10_000))
def test_a_spectrogram_keeps_its_shape_and_what_is_hidden_is_its_mean(frames, bins, seed):
    spectrogram = np.random.default_rng(seed).normal(size=(frames, bins)).astype(np.float32)
    before = spectrogram.copy()
    out = SpecAugment(warp=0)(spectrogram, rng(seed))
    assert out.shape == (frames, bins) and np.array_equal(spectrogram, before)
    changed = out != spectrogram
    assert np.allclose(out[changed], spectrogram.mean(), atol=1e-5)


def test_masks_are_no_wider_than_they_may_be_and_a_warp_moves_one_frame():
    spectrogram = np.random.default_rng(0).normal(size=(300, 128)).astype(np.float32)
    for seed in range(30):
        out = SpecAugment(time_masks=1, warp=0)(spectrogram, rng(seed))
        hidden = np.isclose(out, spectrogram.mean(dtype=np.float64))
        assert hidden.all(0).sum() <= 48 and hidden.all(1).sum() <= 48
    ramp = np.repeat(np.arange(50, dtype=np.float32)[:, None], 2, 1)
    warp = SpecAugment(frequency_masks=0, time_masks=0, warp=1)
    moved = [warp(ramp, rng(seed)) for seed in range(20)]
    assert all((each[0] == 0).all() and (each[-1] == 49).all() for each in moved)
    largest = [float(np.abs(each - ramp).max()) for each in moved]
    assert 0 in largest and 0.9 < max(largest) <= 1.01
