"""The filterbank against its definition, written out, and against another implementation."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audio.filterbank import FLOOR, SCENIC, SCENIC_RAW, STATISTICS, Filterbank
from encoders.errors import ConfigError, DataError

FRONT = Filterbank()
RATE = 16_000


def noise(samples, seed=0, scale=0.1):
    return (np.random.default_rng(seed).standard_normal(samples) * scale).astype(np.float32)


def tone(hertz, samples=6_400, scale=0.5):
    return (scale * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)).astype(np.float32)


def heard(clip, front=FRONT):
    return front.log_mel(torch.from_numpy(clip)[None])[0].numpy()


def by_hand(clip):
    """The recipe in plain NumPy, frame by frame."""
    def mel(f):
        return 1127 * np.log(1 + f / 700)

    edges, at = np.linspace(mel(20), mel(8_000), 130), mel(np.arange(256) * RATE / 512)
    out = []
    for start in range(0, len(clip) - 399, 160):
        frame = clip[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399))
        power = np.abs(np.fft.rfft(frame, 512)[:256]) ** 2
        weights = [
            np.clip(np.minimum((at - a) / (b - a), (c - at) / (c - b)), 0, None)
            for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
        ]
        out.append(np.log(np.maximum([(w * power).sum() for w in weights], 1.1920929e-07)))
    return np.array(out)


@pytest.mark.parametrize(("seconds", "frames"), [("10", 998), ("1", 98), ("2/5", 38), ("1/40", 1)])
def test_frames_stand_inside_the_clip(seconds, frames):
    assert FRONT.shape(Fraction(seconds)) == (frames, 128)
    assert FRONT(torch.zeros(2, int(Fraction(seconds) * RATE))).shape == (2, frames, 128)


@pytest.mark.parametrize("clip", [noise(4_000), tone(1_000, 4_000), noise(4_000, scale=1e-4) + 0.3])
def test_a_clip_equals_the_definition_written_out(clip):
    np.testing.assert_allclose(heard(clip), by_hand(clip), atol=1e-5)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # 128 do not fit 257 bins
@pytest.mark.parametrize("clip", [noise(RATE), tone(440, RATE), np.zeros(RATE, np.float32)], ids="ntz")
def test_it_equals_the_extractor_of_transformers(clip):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.ASTFeatureExtractor(max_length=128)
    if not hasattr(extractor, "mel_filters"):
        pytest.skip("with torchaudio installed it is torchaudio that would be tested")
    theirs = extractor(clip, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    ours = Filterbank(frames=128)(torch.from_numpy(clip)[None])[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_is_shorter_is_filled_with_zeros_before_it_is_standardised():
    clip = torch.from_numpy(noise(6_400))[None]
    longer = Filterbank(frames=64)(clip)
    assert longer.shape == (1, 64, 128) == (1, *Filterbank(frames=64).shape(Fraction(2, 5)))
    torch.testing.assert_close(longer[:, :38], FRONT(clip))
    mean, std = STATISTICS["audioset"]
    torch.testing.assert_close(longer[:, 38:], torch.full((1, 26, 128), -mean / (2 * std)))
    torch.testing.assert_close(Filterbank(frames=20)(clip), FRONT(clip)[:, :20])


def test_a_tone_stands_at_its_frequency_and_the_waveforms_mean_is_not_heard():
    out = heard(tone(1_000))
    centres = 700 * np.expm1(np.linspace(*(1127 * np.log(1 + np.array([20, 8_000]) / 700)), 130)[1:-1] / 1127)
    assert abs(centres[out.mean(0).argmax()] - 1_000) < 20
    np.testing.assert_allclose(heard(tone(1_000) + np.float32(0.2)), out, atol=1e-2)


def test_silence_is_flat_and_finite():
    np.testing.assert_allclose(heard(np.zeros(6_400, np.float32)), np.log(FLOOR), rtol=1e-6)


def test_a_dataset_brings_its_own_statistics():
    clip = torch.from_numpy(noise(6_400))[None]
    raw = FRONT.log_mel(clip)
    torch.testing.assert_close(FRONT.standardised_by("esc50")(clip), (raw + 6.6268077) / (2 * 5.358466))


def test_scenic_has_a_hundred_frames_a_second_and_audiosets_published_spread():
    clip = torch.from_numpy(noise(6_400))[None]
    assert SCENIC.shape(Fraction(2, 5)) == (40, 128) == SCENIC(clip).shape[1:]
    assert SCENIC.shape(Fraction(8)) == (800, 128)
    torch.testing.assert_close((SCENIC_RAW(clip) - 1.102) / 2.762, SCENIC(clip), atol=1e-5, rtol=1e-5)
    # one unit of what is seen is one of AudioSet's standard deviations
    torch.testing.assert_close(SCENIC(clip) * 4.5689974 - 4.2677393, SCENIC.log_mel(clip), atol=1e-4, rtol=1e-4)


def test_rows_do_not_hear_each_other():
    pair = torch.from_numpy(np.stack([noise(6_400), noise(6_400, 1)]))
    torch.testing.assert_close(FRONT(pair)[1:], FRONT(pair[1:]))


@pytest.mark.parametrize(("samples", "front"), [(399, FRONT), (0, FRONT), (200, SCENIC)])
def test_sound_shorter_than_a_frame_is_one_sentence(samples, front):
    with pytest.raises(DataError, match=f"sound of {samples} samples is shorter than a mel frame of 400; give at"):
        front(torch.zeros(1, samples))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_fft": 256}, "n_fft 256 is less than the window of 400 samples; raise it"),
        ({"std": 0.0}, r"std 0.0 of a filterbank must be more than 0"),
        ({"shape_of_window": "blackman"}, "shape_of_window 'blackman' is unknown; use hann or hamming"),
        ({"low": 9_000.0}, "low 9000 Hz must lie below half the sample rate of 16000"),
        ({"frames": -1}, "frames -1 must be >= 0"),
    ],
)
def test_contradictions_are_one_sentence(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Filterbank(**change)
