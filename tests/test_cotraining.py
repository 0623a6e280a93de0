"""The five schedules of co-training: counts, chance, learning rates, and that a plan knows every step by itself."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.cotraining import SCHEDULES, CoTraining, Plan, Task
from encoders.errors import ConfigError, UsageError
from encoders.settings import from_dict, override, to_dict

# Single-task steps of the public nine-task configuration (google-research/scenic, projects/polyvit), base rates beside.
PAPER = {
    "imagenet": (20_000, 0.03),
    "cifar100": (10_000, 0.03),
    "cifar10": (10_000, 0.03),
    "pets": (500, 0.03),
    "resisc45": (2_500, 0.1),
    "kinetics400": (100_680, 0.1),
    "moments": (123_640, 0.25),
    "audioset": (15_900, 0.5),
    "vggsound": (134_700, 0.5),
}
NINE = [Task(name=name, steps=steps, lr=lr) for name, (steps, lr) in PAPER.items()]
THREE = [Task(name="image", steps=60, lr=0.03), Task(name="video", steps=30, lr=0.1), Task(name="audio", steps=9, lr=1)]


def plan(schedule, tasks=THREE, **changes):
    return Plan(CoTraining(schedule=schedule, **changes), tasks)


def tasks_of(plan):
    return [step.turns[0].task for step in plan]


def test_the_paper_s_nine_tasks_make_417_920_steps():
    whole = plan("weighted", NINE)
    assert len(whole) == 417_920
    assert whole.batches == tuple(steps for steps, _ in PAPER.values())
    shares = [round(100 * n / len(whole), 2) for n in whole.batches]
    assert shares == [4.79, 2.39, 2.39, 0.12, 0.60, 24.09, 29.58, 3.80, 32.23]


# --- who, how often ---


def test_task_by_task_finishes_one_before_the_next():
    order = tasks_of(plan("task_by_task"))
    runs = [task for task, before in zip(order, [None, *order], strict=False) if task != before]
    assert sorted(runs) == [0, 1, 2]
    assert Counter(order) == {0: 60, 1: 30, 2: 9}


def test_task_by_task_draws_its_order():
    firsts = Counter(plan("task_by_task", seed=seed)[0].turns[0].task for seed in range(300))
    assert all(70 < firsts[task] < 130 for task in range(3))


def test_alternating_goes_round_whatever_the_tasks_need():
    assert tasks_of(plan("alternating"))[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert plan("alternating").batches == (33, 33, 33)


def test_a_permutation_gives_every_task_exactly_its_share():
    assert plan("weighted").batches == (60, 30, 9)
    assert plan("uniform").batches == (33, 33, 33)
    assert plan("uniform", [*THREE, Task(name="more", steps=2)]).batches == (26, 25, 25, 25)  # 101 steps


@pytest.mark.parametrize(("schedule", "expected"), [("weighted", (60, 30, 9)), ("uniform", (33, 33, 33))])
def test_independent_draws_give_the_shares_in_expectation(schedule, expected):
    counts = np.array([plan(schedule, draws="independent", seed=seed).batches for seed in range(400)])
    assert (counts.sum(1) == 99).all()
    assert len({tuple(row) for row in counts}) > 100  # and not exactly, each time
    deviation = np.sqrt([99 * (n / 99) * (1 - n / 99) for n in expected])
    np.testing.assert_allclose(counts.mean(0), expected, atol=4 * deviation.max() / 400**0.5)
    np.testing.assert_allclose(counts.std(0), deviation, rtol=0.15)


def test_a_permutation_is_as_likely_to_begin_with_a_task_as_the_task_is_big():
    firsts = Counter(plan("weighted", seed=seed)[0].turns[0].task for seed in range(990))
    np.testing.assert_allclose([firsts[j] for j in range(3)], [600, 300, 90], atol=60)


def test_accumulated_updates_take_every_task_and_compute_what_the_others_do():
    whole = plan("accumulated")
    assert len(whole) == 33
    assert whole.batches == (33, 33, 33)
    assert [turn.task for turn in whole[5].turns] == [0, 1, 2]
    assert len(plan("accumulated", [Task(name="a", steps=1), Task(name="b", steps=1), Task(name="c", steps=1)])) == 1


# --- how much it learns ---


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != "accumulated"])
def test_a_step_learns_at_the_rate_of_its_task(schedule):
    for step in plan(schedule):
        (turn,) = step.turns
        assert step.lr == THREE[turn.task].lr
        assert turn.weight == 1.0


def test_an_accumulated_update_moves_by_each_task_s_own_rate():
    step = plan("accumulated")[0]
    moves = [step.lr * turn.weight for turn in step.turns]
    np.testing.assert_allclose(moves, [0.01, 0.1 / 3, 1 / 3])
    summed = plan("accumulated", accumulate="sum")[0]
    np.testing.assert_allclose([summed.lr * turn.weight for turn in summed.turns], [0.03, 0.1, 1])


# --- every step by itself ---


@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(["permutation", "independent"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_a_plan_is_whole_repeatable_and_counts_every_batch_of_a_task_once(schedule, draws, steps, seed):
    tasks = [Task(name=str(j), steps=n, lr=0.1 * (j + 1)) for j, n in enumerate(steps)]
    one, other = (plan(schedule, tasks, draws=draws, seed=seed) for _ in range(2))
    at = seed % len(one)
    assert one[at] == other[at]  # asked in the middle, as a resumed run does, before anything else
    assert list(one) == list(other)
    seen: Counter[int] = Counter()
    for step in one:
        for turn in step.turns:
            assert turn.batch == seen[turn.task]
            seen[turn.task] += 1
    assert tuple(seen[j] for j in range(len(tasks))) == one.batches
    if schedule in ("task_by_task", "weighted") and draws == "permutation":
        assert one.batches == tuple(steps)


def test_orders_do_not_change_from_one_version_to_the_next():
    tasks = [Task(name="a", steps=5), Task(name="b", steps=3), Task(name="c", steps=2)]
    assert tasks_of(plan("weighted", tasks)) == GOLDEN["weighted"]
    assert tasks_of(plan("weighted", tasks, draws="independent")) == GOLDEN["independent"]
    assert tasks_of(plan("task_by_task", tasks)) == GOLDEN["task_by_task"]


GOLDEN = {
    "weighted": [0, 0, 0, 2, 1, 0, 1, 0, 1, 2],
    "independent": [1, 0, 0, 0, 2, 2, 1, 1, 1, 2],
    "task_by_task": [2, 2, 1, 1, 1, 0, 0, 0, 0, 0],
}


def test_another_seed_is_another_order():
    assert tasks_of(plan("weighted", seed=1)) != tasks_of(plan("weighted", seed=2))


# --- what it refuses ---


def test_settings_are_read_back():
    config = CoTraining(schedule="uniform", draws="independent", seed=7)
    assert from_dict(CoTraining, to_dict(config)) == config
    with pytest.raises(UsageError, match="schedule='wieghted' is not of type"):
        override(config, {"schedule": "wieghted"})


def test_what_makes_no_sense_is_one_sentence():
    with pytest.raises(ConfigError, match="schedule 'wieghted' is unknown; use one of task_by_task, alternating"):
        CoTraining(schedule="wieghted")
    with pytest.raises(ConfigError, match="draws 'dice' is unknown; use one of permutation, independent"):
        CoTraining(draws="dice")
    with pytest.raises(ConfigError, match="seed -1 is negative"):
        CoTraining(seed=-1)
    with pytest.raises(ConfigError, match="task 'pets' has 0 steps; give at least 1, or leave the task out"):
        Task(name="pets", steps=0)
    with pytest.raises(ConfigError, match=r"task 'pets' has lr nan; give one in \(0, 100\]"):
        Task(name="pets", steps=1, lr=float("nan"))
    with pytest.raises(ConfigError, match="no task; give at least one"):
        plan("weighted", [])
    with pytest.raises(ConfigError, match="task 'a' is given twice; name each task once"):
        plan("weighted", [Task(name="a", steps=1), Task(name="a", steps=2)])
    with pytest.raises(IndexError, match="step 99 lies outside the plan's 99 steps"):
        plan("weighted")[99]
