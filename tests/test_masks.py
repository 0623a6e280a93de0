"""What is hidden: exact counts, true rates, seeds that pair methods, and packets turned into clips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import ConfigError, UsageError
from imputation import masks
from imputation.channel import Channel, open_profile
from imputation.presence import PresenceRule
from imputation.reception import RECOVERIES, audio_losses, bad_frames, broken_frames, clip_reception


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@given(st.integers(0, 2**32), st.integers(1, 12), st.data())
@settings(max_examples=40, deadline=None)
def test_uniform_k_hides_exactly_k_clips_of_each_modality(seed, length, data):
    k = data.draw(st.integers(0, length))
    hidden = masks.uniform_k(np.random.default_rng(seed), 4, length, k)
    assert hidden.shape == (4, length, 2) and hidden.dtype == bool
    assert (hidden.sum(axis=1) == k).all()


def test_uniform_k_takes_a_count_for_each_sample():
    hidden = masks.uniform_k(rng(), 3, 5, np.array([0, 2, 5]))
    assert hidden.sum(axis=1).tolist() == [[0, 0], [2, 2], [5, 5]]


def test_uniform_k_chooses_every_clip_alike_and_the_modalities_apart():
    hidden = masks.uniform_k(rng(), 20_000, 5, 2)
    np.testing.assert_allclose(hidden.mean(axis=0), 0.4, atol=0.015)
    assert (hidden[..., 0] & hidden[..., 1]).mean() == pytest.approx(0.16, abs=0.01)


@pytest.mark.parametrize("k", [-1, 6, np.array([2, 6])])
def test_more_clips_than_there_are_cannot_be_hidden(k):
    with pytest.raises(ConfigError, match=r"k (-1|6) of 5 clips cannot be hidden; use 0 to 5"):
        masks.uniform_k(rng(), 2, 5, k)


def test_independent_rates_hold_per_modality():
    hidden = masks.independent_rates(rng(), 20_000, 4, (0.2, 0.6))
    np.testing.assert_allclose(hidden.mean(axis=(0, 1)), (0.2, 0.6), atol=0.01)
    assert not masks.independent_rates(rng(), 9, 4, 0.0).any() and masks.independent_rates(rng(), 9, 4, 1.0).all()
    with pytest.raises(ConfigError, match=r"dropout rate 1\.4"):
        masks.independent_rates(rng(), 1, 4, 1.4)


def test_bursts_come_in_runs_of_the_asked_length():
    hidden = masks.bursts(rng(), 200, 2000, 0.3, 4.0)
    assert hidden.mean() == pytest.approx(0.3, abs=0.01)
    starts = np.count_nonzero(hidden[:, 1:] & ~hidden[:, :-1])
    assert hidden.sum() / starts == pytest.approx(4.0, rel=0.03)
    assert np.corrcoef(hidden[..., 0].ravel(), hidden[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_bursts_of_a_shared_link_hide_both_modalities_together():
    hidden = masks.bursts(rng(), 50, 40, 0.3, 3.0, together=True)
    assert (hidden[..., 0] == hidden[..., 1]).all() and hidden.any()


def test_a_whole_modality_goes_and_never_both():
    hidden = masks.whole_modality(rng(), 10_000, 6, 0.5)
    assert (hidden.all(axis=1) == hidden.any(axis=1)).all()
    gone = hidden[:, 0]
    assert not gone.all(axis=1).any()
    np.testing.assert_allclose(gone.mean(axis=0), 0.25, atol=0.02)


def test_a_paired_mask_does_not_depend_on_its_neighbours():
    alone = masks.paired_uniform(["s7"], 10, 4, draw=2)
    together = masks.paired_uniform(["s1", "s7", "s9"], 10, 4, draw=2)
    assert (together[1] == alone[0]).all()
    assert (masks.paired_uniform(["s7"], 10, 4, draw=3) != alone).any()
    assert masks.paired_uniform([], 10, 4, draw=0).shape == (0, 10, 2)


def test_paired_seeds_are_pinned():
    assert masks.paired_seed("s7", 4, 2) == 781001107
    assert len({masks.paired_seed(s, k, d) for s in range(20) for k in range(10) for d in range(10)}) == 2000
    assert "".join("01"[b] for b in masks.paired_uniform([0, 1], 5, 2, 0).astype(int).ravel()) == "10100001010011000011"


def test_a_paired_rate_is_a_probability_per_clip():
    hidden = masks.paired_rates(range(1500), 10, 0.3, draw=0)
    assert hidden.mean() == pytest.approx(0.3, abs=0.015)


# --- packets to clips ---------------------------------------------------------------------------------------------


def test_network_masks_follow_the_presence_rule():
    profile = open_profile("wifi-poor")
    coverage, _ = clip_reception(profile, 5, batch=40, length=8, clip_seconds=0.4)
    hidden = masks.network(profile, 5, batch=40, length=8, clip_seconds=0.4)
    assert hidden.shape == (40, 8, 2)
    assert (hidden[..., 0] == (coverage[..., 0] <= 0.5 + 1e-9)).all()
    assert (hidden[..., 1] == (coverage[..., 1] <= 0.75 + 1e-9)).all()
    strict = masks.network(profile, 5, batch=40, length=8, rule=PresenceRule(video=0.95, audio=0.95))
    assert (strict >= hidden).all() and strict.sum() > hidden.sum()


def test_network_masks_forgive_what_came_spoiled_and_nothing_else():
    profile, size = open_profile("wifi-poor"), {"batch": 60, "length": 8}
    strict, kind = (
        masks.network(profile, 5, **size, rule=PresenceRule(video=0.5, forgive_video=share)) for share in (0.0, 1.0)
    )
    coverage, spoiled = clip_reception(profile, 5, **size, clip_seconds=0.4)
    assert (strict == masks.network(profile, 5, **size)).all() and (kind <= strict).all() and kind.sum() < strict.sum()
    assert (kind[..., 0] == (coverage[..., 0] + spoiled[..., 0] <= 0.5 + 1e-9)).all()
    assert (kind[..., 1] == strict[..., 1]).all() and not spoiled[..., 1].any()  # its sound is never spoiled
    assert (coverage + spoiled <= 1 + 1e-9).all() and (spoiled[..., 0] > 0).any()
    alone = clip_reception(profile, 5, **size, clip_seconds=0.4, recovery="intra")[1]
    assert not alone.any()  # a picture that stands alone comes or does not


def test_a_frame_is_spoiled_only_by_one_before_it():
    bad, spoiled = (x[0] for x in broken_frames(Channel(open_profile("iid-1"), 2), np.zeros(1), 20.0, "gop"))
    assert (bad == bad_frames(Channel(open_profile("iid-1"), 2), np.zeros(1), 20.0, "gop")[0]).all()
    assert spoiled.any() and (bad & ~spoiled).any() and not (spoiled & ~bad).any()
    assert not (spoiled[1:] & ~bad[:-1]).any() and not spoiled[0]


def test_network_masks_repeat_with_their_seed():
    profile = open_profile("lte-driving")
    one, two = (masks.network(profile, 3, batch=20, length=5) for _ in range(2))
    assert (one == two).all()
    assert (masks.network(profile, 4, batch=20, length=5) != one).any()


def test_whole_clips_go_as_the_profile_says():
    hidden = masks.network(open_profile("clips-40"), 1, batch=500, length=10)
    np.testing.assert_allclose(hidden.mean(axis=(0, 1)), 0.4, atol=0.03)


def test_a_clean_link_hides_nothing_and_a_rendered_stall_looks_present():
    assert not masks.network(open_profile("clean"), 0, batch=10, length=5).any()
    assert masks.network(open_profile("camera-stall"), 0, batch=200, length=10)[..., 0].any()
    assert not masks.network(open_profile("camera-stall+frozen"), 0, batch=200, length=10).any()


def test_a_loss_spoils_frames_until_the_next_intact_key_frame():
    channel = Channel(open_profile("iid-1"), 2)
    bad = bad_frames(channel, np.zeros(1), 20.0, "gop")[0]
    ends = np.flatnonzero(bad[:-1] & ~bad[1:]) + 1
    assert len(ends) and (ends % 60 == 0).all()  # row 0 has its key frames at 0, 60, 120, ...


def test_a_requested_key_frame_comes_eight_frames_after_the_damage():
    channel = Channel(open_profile("ge:0.0001,0.9,0,1"), 11)
    bad = bad_frames(channel, np.zeros(1), 400.0, "pli")[0]
    starts = np.flatnonzero(bad[1:] & ~bad[:-1]) + 1
    lengths = [int(np.argmin(bad[s:])) for s in starts]
    assert max(lengths) == 8 and len(lengths) >= 2


def test_recoveries_help_in_the_order_that_everybody_expects():
    profile, starts = open_profile("wifi-burst"), np.arange(60) * 60.0
    share = {how: bad_frames(Channel(profile, 1), starts, 20.0, how).mean() for how in RECOVERIES}
    assert share["nack"] < share["intra"] < share["pli"] < share["gop"]
    with pytest.raises(UsageError, match="unknown recovery 'wish'"):
        bad_frames(Channel(profile, 1), starts, 1.0, "wish")


def test_fec_repairs_what_stands_alone():
    starts = np.zeros(1)
    plain = audio_losses(Channel(open_profile("iid-10"), 4), starts, 2000.0)
    repaired = audio_losses(Channel(open_profile("iid-10"), 4), starts, 2000.0, fec=True)
    assert (repaired <= plain).all()
    assert repaired.mean() == pytest.approx(0.01, abs=0.002)
