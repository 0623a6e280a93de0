"""The curriculum: one more hidden clip every step, from one to all but one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import ConfigError
from imputation.curriculum import Curriculum


def test_the_papers_schedule_for_ten_clips():
    levels = [Curriculum.spread(10).k(epoch) for epoch in range(50)]
    assert levels == [level for level in range(1, 9) for _ in range(5)] + [9] * 10


def test_the_papers_schedule_for_five_clips():
    levels = [Curriculum.spread(5).k(epoch) for epoch in range(50)]
    assert levels == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 20


def test_the_rate_is_the_share_of_clips_hidden():
    assert Curriculum(length=5, step=10).dropout_rate(25) == 0.6


@given(st.integers(2, 40), st.integers(1, 200), st.integers(1, 30))
def test_levels_rise_by_one_and_something_stays_seen(length, epochs, step):
    curriculum = Curriculum(length=length, epochs=epochs, step=step)
    levels = [curriculum.k(epoch) for epoch in range(epochs)]
    assert levels[0] == 1
    assert all(b - a in (0, 1) for a, b in pairwise(levels))
    assert max(levels) <= length - 1


@pytest.mark.parametrize("wrong", [{"length": 1}, {"length": 5, "epochs": 0}, {"length": 5, "step": 0}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="use at least"):
        Curriculum(**wrong)
