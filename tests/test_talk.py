"""The default bundle's task: what windows show, what augmentation may change, how scores count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.video import face_box
from runtime.errors import UsageError
from runtime.talk import augment
from runtime.talk.corpus import SAMPLE_RATE, Corpus, Utterance, silent_spans, spans_between
from runtime.talk.fill import balanced
from runtime.talk.judge import unseen_windows
from runtime.talk.making import new_net
from runtime.talk.recipe import GRID_SPEAKERS, JAVA_PAIRS, Recipe, folded
from runtime.talk.score import auc, scene, score, trial
from runtime.talk.windows import CONDITIONS, LABEL_OF, Grid, Reel, mix, noise, speaker_odds, still, talk

FRAMES = 50  # two seconds at 25 frames a second


def utterance(speaker: str = "a", shade: int = 100, tone: float = 300.0) -> Utterance:
    """Two seconds: silent for 0.6 s at both ends, where the picture stands; a tone between, where it moves."""
    times = np.arange(FRAMES) / 25
    pictures = np.full((FRAMES, 64, 64), shade, np.uint8)
    pictures[15:35, 30:34] += (np.arange(20) * 5).astype(np.uint8)[:, None, None]
    at = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    sound = np.where((at > 0.6) & (at < 1.4), 0.3 * np.sin(2 * np.pi * tone * at), 1e-4 * np.sin(9 * at))
    return Utterance(
        "toy", speaker, f"{speaker}/{shade}", "train", pictures, times, sound.astype(np.float32), ((0, 11), (39, 50))
    )


def corpus() -> Corpus:
    return Corpus([utterance(s, shade, tone) for s, tone in (("a", 300.0), ("b", 500.0)) for shade in (60, 90, 120)])


def test_silence_is_found_at_both_ends_and_kept_away_from_speech() -> None:
    (start, end), (again, last) = silent_spans(utterance().sound, 1 / 25, FRAMES)
    assert (start, last) == (0, FRAMES)
    assert end == pytest.approx(15 - 8, abs=1) and again == pytest.approx(35 + 8, abs=1)


def test_a_silence_shorter_than_a_quarter_second_is_none() -> None:
    assert spans_between([8, 40], 50) == []
    assert spans_between([], 50) == [(0, 50)]


def test_a_reel_is_read_by_time_across_its_joints() -> None:
    reel = Reel([utterance(shade=60), utterance(shade=120)])
    assert reel.seconds == pytest.approx(4.0)
    shown = reel.sight(np.array([0.1, 1.99, 2.0, 3.9]))
    assert shown[:, 0, 0].tolist() == [60, 60, 120, 120]
    assert np.abs(reel.sound(0.7, 800)).max() > 0.2 > np.abs(reel.sound(1.9, 800)).max()


def test_a_faster_reel_is_shorter_in_picture_and_sound_alike() -> None:
    reel = Reel([utterance()], speed=1.25)
    assert reel.seconds == pytest.approx(1.6)
    loud = np.flatnonzero(np.abs(reel.sound(0, 25_600)) > 0.1)
    assert loud[0] / SAMPLE_RATE == pytest.approx(0.6 / 1.25, abs=0.01)
    assert loud[-1] / SAMPLE_RATE == pytest.approx(1.4 / 1.25, abs=0.01)


def test_a_still_face_shows_silent_frames_only() -> None:
    rng, grid = np.random.default_rng(0), Grid()
    for _ in range(20):
        shown = still(rng, corpus().by_speaker["a"], grid, frozen=0.0)
        assert shown.shape == (100, 64, 64)
        assert (shown[:, 30] == shown[:, 0]).all(), "a moving mouth in a still face"


def test_a_frozen_face_is_one_picture() -> None:
    shown = still(np.random.default_rng(1), corpus().by_speaker["a"], Grid(), frozen=1.0)
    assert (shown == shown[0]).all()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_condition_is_heard_as_it_is_named(condition: str) -> None:
    rng, whole, grid = np.random.default_rng(3), corpus(), Grid()
    sight, sound = scene(rng, condition, whole.by_speaker["a"], whole.by_speaker["b"], grid, [])
    assert sight.shape == (100, 64, 64) and sound.shape == (grid.samples,) and sound.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(sound))
    peak = {tone: spectrum[int(tone * 4) - 8 : int(tone * 4) + 8].max() / np.median(spectrum) for tone in (300, 500)}
    voiced = condition not in ("still_noise", "talk_noise")
    assert (max(peak.values()) > 30) == voiced
    if condition in ("pair", "talk_same"):
        assert peak[300] > peak[500]
    if condition == "talk_other":
        assert peak[500] > peak[300]


def test_a_pair_moves_when_it_sounds() -> None:
    sight, sound = talk(np.random.default_rng(5), [utterance(shade=s) for s in (60, 60, 60)], Grid())
    moving = np.abs(np.diff(sight[:, 30, 0].astype(int))) > 0
    loud = np.sqrt(np.square(sound.reshape(100, -1)).mean(1)) > 0.05
    assert (moving & loud[1:]).sum() / moving.sum() > 0.9


def test_a_trial_has_every_condition_of_every_speaker_and_repeats() -> None:
    first = trial(corpus(), ["a", "b"], 2, 7, Grid(clips=3), [])
    again = trial(corpus(), ["a", "b"], 2, 7, Grid(clips=3), [])
    assert (
        len(first.sounds) == 2 * 6 * 2
        and (first.sounds == again.sounds).all()
        and (first.pictures == again.pictures).all()
    )
    assert (first.label == [LABEL_OF[CONDITIONS[c]] for c in first.condition]).all()


def test_mixing_keeps_the_level_and_the_ratio() -> None:
    rng = np.random.default_rng(0)
    voice, back = np.sin(np.arange(16_000) * 0.1).astype(np.float32), noise(rng, [], 16_000)
    out = mix(voice, back, 6.0, 0.05)
    assert np.sqrt(np.mean(out**2)) == pytest.approx(0.05, rel=0.01)
    share = np.dot(out, voice) / np.dot(voice, voice) * np.sqrt(np.mean(voice**2))  # what of it is voice
    rest = np.sqrt(np.mean(out**2) - share**2)
    assert 20 * np.log10(share / rest) == pytest.approx(6.0, abs=0.7)


def test_large_speakers_are_tamed() -> None:
    unequal = Corpus([utterance("a", s % 200) for s in range(81)] + [utterance("b")])
    names, odds = speaker_odds(unequal)
    assert names == ["a", "b"] and odds[0] / odds[1] == pytest.approx(3.0)


def test_without_strength_the_crop_is_the_middle_of_the_stored_picture() -> None:
    stored = np.arange(64 * 64, dtype=np.uint16).reshape(1, 1, 64, 64).repeat(4, 1) % 251
    out = augment.pictures(stored.astype(np.uint8), torch.Generator(), clips=2, size=40, strength=0.0)
    assert out.shape == (2, 2, 40, 40)
    torch.testing.assert_close(
        out[0, 0], torch.from_numpy(stored[0, 0, 12:52, 12:52].astype(np.float32)), atol=1e-2, rtol=0
    )


def test_augmented_pictures_stay_in_range_and_repeat_with_their_generator() -> None:
    stored = np.random.default_rng(0).integers(0, 255, (2, 20, 64, 64), dtype=np.uint8)
    first = augment.pictures(stored, torch.Generator().manual_seed(1), clips=2, size=40)
    again = augment.pictures(stored, torch.Generator().manual_seed(1), clips=2, size=40)
    assert first.shape == (4, 10, 40, 40) and first.min() >= 0 and first.max() <= 255
    assert torch.equal(first, again)


@pytest.mark.parametrize("ratio", [0.8, 1.25, 1.6])
def test_a_raised_voice_keeps_its_pace(ratio: float) -> None:
    at = torch.arange(16_000) / SAMPLE_RATE
    sound = torch.sin(2 * torch.pi * 400 * at) * (at > 0.5)
    out = augment.pitch(sound[None], torch.tensor([ratio]))[0]
    spectrum = torch.fft.rfft(out[9_000:15_000]).abs()
    assert float(spectrum.argmax()) * SAMPLE_RATE / 6_000 == pytest.approx(400 * ratio, rel=0.02)
    assert float(out[:7_000].abs().max()) < 0.1 < float(out[9_000:].abs().max())


def test_another_voice_keeps_loudness_removed() -> None:
    mel = torch.randn(6, 1, 40, 48, generator=torch.Generator().manual_seed(0))
    out = augment.voice(mel, torch.Generator().manual_seed(2), clips=3)
    assert out.shape == mel.shape and not torch.allclose(out, mel)
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(6, 1), atol=1e-5, rtol=0)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs_in_order(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(np.mean(pairs))


def test_the_score_is_the_mean_of_class_recalls() -> None:
    condition = np.array([0, 1, 2, 2, 3, 4, 5, 5])
    said = np.array([0, 2, 1, 1, 2, 2, 1, 2])
    found = score(np.eye(3)[said] * 5.0, condition)
    assert found["recall_nobody"] == 0.5 and found["recall_on_screen"] == 1.0 and found["recall_off_screen"] == 0.75
    assert found["score"] == pytest.approx(0.75) and found["talk_same"] == 0.5


@pytest.mark.parametrize("test", [("grid/s1", "grid/s2"), ("grid/s4", "grid/s31"), JAVA_PAIRS[0], JAVA_PAIRS[3]])
def test_a_fold_shares_no_speaker_between_its_parts(test: tuple[str, ...]) -> None:
    fold = folded(Recipe(), test)
    parts = [set(fold.train), set(fold.validation), set(fold.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) and set(test) == parts[2] and len(fold.validation) >= 2
    assert set.union(*parts) >= set(GRID_SPEAKERS) - set(test)


def test_an_unknown_speaker_is_named() -> None:
    with pytest.raises(UsageError, match="speaker 'grid/s9' is unknown"):
        folded(Recipe(), ("grid/s9",))


def test_calibration_sees_every_class_equally_often() -> None:
    label = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    rows = balanced(label)
    assert torch.bincount(label[rows]).tolist() == [4, 4, 4] and set(rows.tolist()) == set(range(7))


def test_corpora_of_other_picture_sizes_are_judged_together() -> None:
    small, large = ("toy/a", "toy/b"), ("java/c", "java/d")
    spoken = [utterance(s) for s in small]
    spoken += [replace(u, pictures=u.pictures.repeat(2, axis=2)) for u in map(utterance, large)]
    net, face = new_net().eval().requires_grad_(False), face_box.build("face_box").eval()
    found = unseen_windows(
        net, face, Corpus(spoken), [*small, *large], 1, 0, Grid(clips=2), [], "test", False, lambda done, of: None
    )
    assert list(found.speaker) == [s for s in (*small, *large) for _ in CONDITIONS]
