"""The presence rule: strictly above the threshold, and the largest missing share names the state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import ConfigError
from imputation.presence import ABSENT_STATES, PresenceRule, absent_state


def test_a_clip_exactly_at_its_threshold_is_absent():
    rule = PresenceRule()
    assert not rule.present("video", 0.5)
    assert rule.present("video", 0.51)
    assert not rule.present("audio", 0.75)
    assert rule.present("audio", 0.76)


def test_rounding_of_summed_durations_does_not_lift_a_clip_over_its_threshold():
    fifteen_of_twenty = sum([0.05] * 15)  # 0.7500000000000001
    assert fifteen_of_twenty > 0.75
    assert not PresenceRule().present("audio", fifteen_of_twenty)


def test_the_rule_reads_whole_arrays_and_answers_numbers_with_a_bool():
    rule = PresenceRule(video=0.25)
    assert rule.present("video", np.array([[0.2, 0.25], [0.3, 1.0]])).tolist() == [[False, False], [True, True]]
    assert rule.present("video", 0.3) is True
    assert rule.present("video", np.float64(0.3)) is True


def test_at_threshold_zero_anything_at_all_is_present():
    rule = PresenceRule(video=0.0, audio=0.0)
    assert not rule.present("audio", 0.0)
    assert rule.present("audio", 0.001)


@pytest.mark.parametrize("value", [1.0, -0.1, 7.5, float("nan")])
def test_a_threshold_outside_zero_to_one_is_refused_with_its_name(value):
    with pytest.raises(ConfigError, match=r"presence threshold audio="):
        PresenceRule(audio=value)


def test_an_unknown_modality_is_refused():
    with pytest.raises(ConfigError, match="'smell'"):
        PresenceRule().present("smell", 1.0)


@pytest.mark.parametrize("value", [1.1, -0.1, float("nan")])
def test_forgiving_a_share_outside_zero_to_one_is_refused_with_its_name(value):
    with pytest.raises(ConfigError, match=r"presence forgive_video=.* is not in \[0, 1\]"):
        PresenceRule(forgive_video=value)


def test_what_is_forgiven_counts_as_covered_and_no_more_than_that():
    rule = PresenceRule(forgive_video=1.0, audio=0.25, forgive_audio=0.5)
    assert rule.present("video", 0.0, 0.6) and not rule.present("video", 0.0, 0.5)
    assert rule.present("audio", 0.0, 0.5) and not rule.present("audio", 0.0, 0.51)
    assert rule.present("audio", 0.3, 0.7)  # what is good of it is enough by itself
    assert rule.forgives("video", 0.6) is True and rule.forgives("video", 0.0) is False
    spoiled = np.array([0.0, 0.3, 0.5, 0.6])
    assert rule.forgives("audio", spoiled).tolist() == [False, True, True, False]
    assert rule.present("audio", np.array([0.2, 0.2, 0.0, 0.2]), spoiled).tolist() == [False, True, True, False]


def test_a_share_that_is_summed_from_small_parts_is_forgiven_up_to_its_bound():
    third = sum([0.1] * 3)  # 0.30000000000000004
    assert PresenceRule(audio=0.25, forgive_audio=0.3).present("audio", 0.0, third)


SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda x: (min(x), max(x) - min(x)))  # good, spoiled


@given(SHARES, st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["video", "audio"]))
def test_forgiving_more_never_makes_a_present_clip_absent(shares, threshold, one, other, modality):
    less, more = (PresenceRule(**{modality: threshold, f"forgive_{modality}": share}) for share in sorted((one, other)))
    assert more.present(modality, *shares) >= less.present(modality, *shares) >= less.present(modality, shares[0])


@given(SHARES, st.floats(0, 0.99))
def test_a_rule_that_forgives_nothing_asks_for_coverage_only(shares, threshold):
    rule = PresenceRule(video=threshold)
    assert rule.present("video", *shares) == (shares[0] > threshold + 1e-9)
    assert not rule.forgives("video", shares[1])


@given(st.floats(0, 1), st.floats(0, 0.99), st.floats(0, 1))
def test_what_never_came_is_forgiven_nobody(coverage, threshold, forgiven):
    rule = PresenceRule(video=threshold, forgive_video=forgiven)
    assert rule.present("video", coverage, 0.0) == PresenceRule(video=threshold).present("video", coverage)


def test_the_largest_missing_share_names_the_state():
    assert absent_state({"lost": 0.6, "damaged": 0.3}) == "lost"
    assert absent_state({"lost": 0.2, "damaged": 0.3, "late": 0.1}) == "damaged"
    assert absent_state({"shed": 1.0}) == "shed"


def test_ties_fall_in_the_written_order():
    assert absent_state(dict.fromkeys(reversed(ABSENT_STATES), 0.25)) == "damaged"
    assert absent_state({"shed": 0.5, "lost": 0.5}) == "lost"
    assert absent_state({"lost": 0.1 + 0.2, "late": 0.3}) == "late"  # a tie but for rounding


def test_a_clip_of_which_nothing_is_known_was_lost():
    assert absent_state({}) == "lost"
    assert absent_state({"damaged": 0.0, "lost": 0.0}) == "lost"


@given(st.dictionaries(st.sampled_from(ABSENT_STATES), st.floats(0, 1), min_size=1))
def test_the_state_is_always_a_cause_with_a_maximal_share(missing):
    largest = max(missing.values())
    state = absent_state(missing)
    assert state in ABSENT_STATES
    assert largest == 0 or missing[state] >= largest - 1e-8
