"""The AVID spectrogram against its definition, step by step."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audio.spectrogram import BIN_MEAN, BIN_STD, AvidSpectrogram
from encoders.errors import ConfigError

FRONT = AvidSpectrogram()


def tone(hertz, seconds=0.5, rate=24_000):
    return torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)[None] / 2


@pytest.mark.parametrize(("seconds", "columns"), [("2", 200), ("2/5", 40), ("1/2", 50)])
def test_there_are_100_columns_a_second_of_257_bins(seconds, columns):
    assert FRONT.shape(Fraction(seconds)) == (columns, 257)
    assert FRONT(torch.zeros(2, int(Fraction(seconds) * 24_000))).shape == (2, columns, 257)


def test_statistics_pass_through_the_published_points():
    assert BIN_MEAN[[0, 4, 24, 120, 256]].tolist() == pytest.approx([-13.8, -0.1, -10.3, -29.4, -53.9])
    assert BIN_STD[[0, 4, 24, 120, 256]].tolist() == pytest.approx([21.2, 18.2, 17.6, 20.2, 18.7])
    assert BIN_MEAN[16] == pytest.approx((-1.7 - 10.3) / 2)


def test_a_clip_equals_the_definition_written_out():
    clip = np.random.default_rng(0).standard_normal(9_600).astype(np.float32) / 10
    padded = np.pad(clip.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    power = np.stack([np.abs(np.fft.rfft(padded[t * 240 : t * 240 + 1024] * window)) ** 2 for t in range(40)])
    power = np.concatenate([power[:, :1], (power[:, 1::2] + power[:, 2::2]) / 2], 1)
    decibel = 10 * np.log10(np.maximum(power, 1e-10))
    decibel = np.maximum(decibel, decibel.max() - 100)
    expected = (decibel - BIN_MEAN) / (BIN_STD + 1e-5)
    np.testing.assert_allclose(FRONT(torch.from_numpy(clip)[None])[0].numpy(), expected, atol=2e-4)


def test_a_tone_stands_at_its_frequency():
    """Bin 0 is DC; bin k averages transform bins 2k - 1 and 2k, 23.4 Hz each."""
    decibel = FRONT(tone(3_000)) * torch.from_numpy(BIN_STD) + torch.from_numpy(BIN_MEAN)
    assert decibel[0, 25].argmax() == round(3_000 / (24_000 / 1024)) // 2


def test_silence_is_flat_and_finite():
    out = FRONT(torch.zeros(1, 9_600))
    np.testing.assert_allclose(out[0, 0].numpy(), (-100 - BIN_MEAN) / (BIN_STD + 1e-5), rtol=1e-5)


def test_nothing_lies_more_than_100_decibels_below_the_clip_s_own_maximum():
    loud, soft = tone(1_000), tone(1_000) * 1e-3
    both = torch.cat([loud, soft])
    decibel = FRONT(both) * torch.from_numpy(BIN_STD + 1e-5) + torch.from_numpy(BIN_MEAN)
    spread = decibel.amax((1, 2)) - decibel.amin((1, 2))
    assert (spread <= 100.001).all()
    torch.testing.assert_close(FRONT(both)[1], FRONT(soft)[0])  # rows do not see each other


def test_a_clip_shorter_than_half_a_window_is_refused():
    with pytest.raises(ConfigError, match="an audio clip of 512 samples is too short"):
        FRONT(torch.zeros(1, 512))
