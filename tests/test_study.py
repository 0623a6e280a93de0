"""The study: what a case is, that every arm is asked the same, that nothing is made twice, and what is made of it."""

import csv
import json
import math
import signal
from dataclasses import replace

import pytest
import torch

from encoders.errors import ConfigError, DataError, UsageError
from encoders.training import Interrupted
from imputation.baselines import Lerp
from imputation.features import FeatureSet
from imputation.study import compare, figures
from imputation.study.cases import open_case
from imputation.study.recipes import ARMS, FILLS, HEADS, PAPER, RULES, Budget, arms_of
from imputation.study.run import Plan, cells, estimate, run
from imputation.study.streaming import Streaming
from imputation.study.workshop import Remembering, Workshop, raw_zero, steps_of
from runtime import cli

SPEAKERS = ("ann", "bob", "cat", "dan")
SMALL = Budget(head_steps=12, tune_steps=8, fill_steps=8, batch=16, hidden=8, fill_preset="curri_mae_tiny")


def windows(per_speaker=12, length=4, width=6, classes=3, seed=0):
    """Classes that both modalities tell, in slow sequences, from several speakers."""
    random = torch.Generator().manual_seed(seed)
    n = per_speaker * len(SPEAKERS)
    label = torch.arange(n) % classes
    centre = torch.randn(classes, 1, 2, width, generator=random) * 2
    own = torch.randn(n, 1, 2, width, generator=random)
    features = centre[label] + own + 0.3 * torch.randn(n, length, 2, width, generator=random) + 5.0
    speaker = [SPEAKERS[i * len(SPEAKERS) // n] for i in range(n)]
    split = ["test" if s == "dan" else "validation" if s == "cat" else "train" for s in speaker]
    return FeatureSet.of(features, label, [f"c{k}" for k in range(classes)], speaker=speaker, split=split,
                         names=[f"{s}/{i}" for i, s in enumerate(speaker)])  # fmt: skip


def saved(path, **sizes):
    windows(**sizes).save(path)
    return path


def case_of(tmp_path, folds="own", **sizes):
    return open_case(f"toy:words={saved(tmp_path / 'toy.safetensors', **sizes)}", folds)


# --- cases


def test_a_file_with_splits_is_one_fold_standardised_by_what_is_learned_from(tmp_path):
    case = case_of(tmp_path)
    (fold,) = case.folds
    assert (set(fold.train.speaker), set(fold.validation.speaker), set(fold.test.speaker)) == (
        {"ann", "bob"}, {"cat"}, {"dan"})  # fmt: skip
    assert fold.train.standardised().flatten(0, 1).mean(0).abs().max() < 1e-5
    assert fold.test.standardiser is fold.train.standardiser
    assert case.chance == pytest.approx(1 / 3)


def test_speakers_are_held_out_in_turn_and_those_after_them_choose(tmp_path):
    case = case_of(tmp_path, "ann,bob,cat,dan")
    assert [f.name for f in case.folds] == list(SPEAKERS)
    for fold, after in zip(case.folds, ("bob", "cat", "dan", "ann"), strict=True):
        assert (set(fold.test.speaker), set(fold.validation.speaker)) == ({fold.name}, {after})
        assert set(fold.train.speaker) == set(SPEAKERS) - {fold.name, after}


def test_other_cuts_of_a_recording_are_learned_from_and_never_tested_on(tmp_path):
    data = windows()
    more = replace(data, names=tuple(f"{name}@1" for name in data.names))
    both = FeatureSet.of(torch.cat([data.features, more.features]), torch.cat([data.label, more.label]), data.labels,
                         names=data.names + more.names, speaker=data.speaker * 2, split=data.split * 2)  # fmt: skip
    both.save(tmp_path / "more.safetensors")
    (fold,) = open_case(f"toy:words={tmp_path / 'more.safetensors'}").folds
    assert len(fold.train) == 2 * 24
    assert len(fold.test) == 12
    assert not any("@" in name for name in fold.test.names + fold.validation.names)


@pytest.mark.parametrize(
    ("text", "folds", "sentence"),
    [
        ("toy={}", "own", "is not ENCODER:DATASET=FILE"),
        ("toy:words={}", "ann,bob", "has 2 groups of speakers; three are needed"),
        ("toy:words={}", "ann,bob,eve", "has no speaker 'eve'; it has ann, bob, cat, dan"),
        ("toy:words=nothing", "own", "does not exist"),
    ],
)
def test_a_case_that_cannot_be_cut_is_refused_in_a_sentence(tmp_path, text, folds, sentence):
    file = saved(tmp_path / "toy.safetensors")
    with pytest.raises((UsageError, DataError), match=sentence):
        open_case(text.format(file), folds)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: replace(d, features=d.features[:, :1], presence=d.presence[:, :1], exists=d.exists[:, :1]),
         "have 1 clip, of which none can be lost"),
        (lambda d: replace(d, label=d.label.clone().fill_(-1)), "row 0 of .* has no label"),
        (lambda d: replace(d, presence=d.presence & (torch.arange(len(d)) != 3)[:, None, None]),
         r"row 3 \(ann/3\) of .* was never seen or heard"),
        (lambda d: replace(d, split=("train",) * len(d)), "has no windows of split validation"),
        (lambda d: replace(d, label=torch.where(torch.tensor([s == "dan" for s in d.speaker]), 2, d.label % 2)),
         "has no 'c2' to learn from"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_studied_are_named(tmp_path, change, sentence):
    change(windows()).save(tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=sentence):
        open_case(f"toy:words={tmp_path / 'bad.safetensors'}")


# --- recipes


def test_every_arm_names_heads_and_fills_that_there_are():
    for name, arm in ARMS.items():
        assert arm.head in HEADS, name
        assert arm.fill in {*FILLS, *RULES, ""}, name
    for name, head in HEADS.items():
        assert head.start in {"", *HEADS}, name
        assert head.fill in {*FILLS, *RULES}, name


def test_every_recipe_is_of_some_arm():
    heads = {arm.head for arm in ARMS.values()}
    assert set(HEADS) == heads | {head.start for head in HEADS.values() if head.start}
    assert set(FILLS) <= {arm.fill for arm in ARMS.values()} | {HEADS[head].fill for head in heads}


def test_the_papers_arms_are_those_of_each_head():
    assert set(arms_of("paper", "linear")) == {
        "Pristine", "Video only", "Audio only", "Backoff", "curri-MAE", "curri-MAE-ft", "curri-MAE-ft-all",
    }  # fmt: skip
    assert {"Regular", "Regular-ft-all", "MAE 40", "MAE 70", "MAE 40+70"} <= set(arms_of("paper", "gru"))
    assert list(arms_of("Pristine; curri-MAE", "gru")) == ["Pristine", "curri-MAE"]
    with pytest.raises(UsageError, match="arm"):
        arms_of("curry", "gru")


def test_steps_count_each_imputer_and_head_once():
    fills, heads = steps_of({name: ARMS[name] for name in ("curri-MAE", "curri-MAE-ft-all")}, SMALL)
    assert fills == SMALL.fill_steps
    assert heads == SMALL.head_steps + SMALL.tune_steps


@pytest.mark.parametrize(("length", "rates"), [(10, "k=4+k=7"), (7, "k=3+k=5"), (5, "k=2+k=4"), (2, "k=1+k=1")])
def test_rates_are_whole_numbers_of_clips_and_leave_one(tmp_path, length, rates):
    case = case_of(tmp_path, length=length)
    shop = Workshop(case.folds[0], "gru", SMALL, tmp_path, seed=0)
    assert shop._rates("k=40%+k=70%") == rates


def test_regular_fills_with_what_a_raw_zero_is(tmp_path):
    fold = case_of(tmp_path).folds[0]
    filled = raw_zero(fold.train)(torch.zeros(1, 4, 2, 6), torch.zeros(1, 4, 2, dtype=torch.bool))
    assert torch.allclose(fold.train.standardiser.inverse(filled.features), torch.zeros(1, 4, 2, 6), atol=1e-5)


# --- streams


def test_a_stream_fills_from_no_more_than_its_lookahead():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 2, 4, generator=random)
    presence = torch.rand(3, 6, 2, generator=random) > 0.4
    exists = torch.ones(3, 6, dtype=torch.bool)
    for ahead in range(3):
        now = Streaming(Lerp(), ahead)(features, presence, exists).features
        for t in range(6 - ahead - 1):
            other = features.clone()
            other[:, t + ahead + 1 :] += 1.0
            later = Streaming(Lerp(), ahead)(other, presence, exists).features
            assert torch.equal(now[:, t], later[:, t])
    assert torch.equal(Streaming(Lerp(), 5)(features, presence, exists).features,
                       Lerp()(features, presence, exists).features)  # fmt: skip


def test_what_a_stream_observed_stays_as_it_is():
    features, presence = torch.randn(2, 5, 2, 3), torch.rand(2, 5, 2) > 0.5
    filled = Streaming(Lerp(), 1)(features, presence)
    assert torch.equal(filled.features[presence], features[presence])
    with pytest.raises(ConfigError, match="lookahead -1 is negative"):
        Streaming(Lerp(), -1)


def test_what_is_asked_again_is_filled_once():
    class Counting(Lerp):
        calls = 0

        def forward(self, *given):
            Counting.calls += 1
            return super().forward(*given)

    fill, features, presence = Remembering(Counting()), torch.randn(2, 4, 2, 3), torch.rand(2, 4, 2) > 0.5
    first = fill(features, presence)
    assert torch.equal(fill(features.clone(), presence.clone()).features, first.features)
    assert Counting.calls == 1
    fill(features, ~presence)
    fill(features + 1, presence)
    assert Counting.calls == 3


# --- runs


def test_a_study_finds_every_arm_in_every_condition_and_nothing_is_made_twice(tmp_path):
    cases = [case_of(tmp_path)]
    plan = Plan(arms="Pristine; curri-MAE; Regular", kinds=("gru",), seeds=1, draws=1, budget=SMALL)
    said = []
    run(cases, plan, tmp_path / "runs", say=said.append)
    file = tmp_path / "runs" / "toy-words" / "own-0" / "found-gru.json"
    found = json.loads(file.read_text())["arms"]
    assert set(found) == {"Pristine", "curri-MAE", "Regular"}
    assert set(found["curri-MAE"]) == {"0/4", "1/4", "2/4", "3/4", "no video", "no audio", "validation"}
    assert set(found["Pristine"]) == {"0/4"}
    assert found["curri-MAE"]["0/4"]["accuracy"] == found["Pristine"]["0/4"]["accuracy"]  # nothing to fill
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    run(cases, plan, tmp_path / "runs", say=said.append)
    assert made == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    assert len(said) == 2


def test_arms_that_join_later_are_made_beside_what_is_there(tmp_path):
    cases = [case_of(tmp_path)]
    first = Plan(arms="curri-MAE", kinds=("gru",), seeds=1, draws=1, budget=SMALL)
    run(cases, first, tmp_path / "runs", say=lambda _: None)
    run(cases, replace(first, arms="curri-MAE; hold"), tmp_path / "runs", say=lambda _: None)
    found = json.loads((tmp_path / "runs/toy-words/own-0/found-gru.json").read_text())["arms"]
    assert set(found) == {"curri-MAE", "hold"}


def test_what_is_interrupted_stops_and_is_gone_on_with(tmp_path):
    cases, plan = [case_of(tmp_path)], Plan(arms="curri-MAE", kinds=("gru",), seeds=1, draws=1, budget=SMALL)

    def interrupt(done, of, loss):
        if done == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped after 3 steps"):
        run(cases, plan, tmp_path / "runs", progress=interrupt, say=lambda _: None)
    run(cases, plan, tmp_path / "runs", say=lambda _: None)
    run(cases, plan, tmp_path / "whole", say=lambda _: None)
    found = [(tmp_path / name / "toy-words/own-0/found-gru.json").read_text() for name in ("runs", "whole")]
    assert found[0] == found[1]


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path):
    case = case_of(tmp_path)
    (fold,) = case.folds
    broken = replace(case, encoder="bad", folds=(replace(fold, train=fold.train.rows(torch.tensor([0]))),))
    plan, said = Plan(arms="gaussian", kinds=("gru",), seeds=1, draws=1, budget=SMALL), []
    with pytest.raises(DataError):
        run([broken, case], plan, tmp_path / "runs", say=said.append)
    assert said[0].startswith("bad-words/own-0, gru: ")
    assert said[1] == "toy-words/own-0, gru: 1 arms"


def test_another_budget_may_not_stand_beside_what_is_there(tmp_path):
    cases, plan = [case_of(tmp_path)], Plan(arms="hold", kinds=("gru",), seeds=1, draws=1, budget=SMALL)
    run(cases, plan, tmp_path / "runs", say=lambda _: None)
    other = replace(plan, budget=replace(SMALL, tune_steps=9))
    with pytest.raises(ConfigError, match="was made with tune_steps 8 and not 9; give the same, or another --runs"):
        run(cases, other, tmp_path / "runs", say=lambda _: None)


def test_an_imputer_taught_through_a_head_has_as_many_steps_in_all(tmp_path):
    case = case_of(tmp_path)
    Workshop(case.folds[0], "gru", SMALL, tmp_path / "runs", seed=0).fill("uniform_kl")
    logs = [tmp_path / "runs/gru/fills/uniform_kl" / name / "log.jsonl" for name in ("first", "")]
    steps = [max(json.loads(line)["step"] for line in log.read_text().splitlines()) for log in logs]
    assert sum(steps) == SMALL.fill_steps


def test_what_is_to_come_is_said_before_and_nothing_after(tmp_path):
    cases, plan = [case_of(tmp_path)], Plan(arms="curri-MAE", kinds=("gru",), seeds=2, draws=1, budget=SMALL)
    before = estimate(cases, plan, tmp_path / "runs")
    assert (before.cells, before.fill_steps, before.head_steps) == (2, 2 * SMALL.fill_steps, 2 * SMALL.head_steps)
    assert before.seconds > 0
    run(cases, plan, tmp_path / "runs", say=lambda _: None)
    assert estimate(cases, plan, tmp_path / "runs").cells == 0


def test_a_seed_of_everything_comes_before_the_next(tmp_path):
    cases = [case_of(tmp_path, "ann,bob,cat,dan")]
    order = [(c.seed, c.fold.name, c.kind) for c in cells(cases, Plan(seeds=2))]
    assert order[:3] == [(0, "ann", "linear"), (0, "ann", "gru"), (0, "bob", "linear")]
    assert [seed for seed, _, _ in order] == [0] * 8 + [1] * 8


# --- comparisons


def answers_of(table):
    """arm -> condition -> accuracies by unit."""
    units = {
        arm: {c: {("f", i): {"accuracy": a, "std": 0.0, "ece": 0.1, "rate": 0.5} for i, a in enumerate(values)}
              for c, values in conditions.items()}
        for arm, conditions in table.items()
    }  # fmt: skip
    return compare.Answers("toy:words", "gru", 2, 0.5, units)


def test_differences_are_paired_by_fold_and_seed():
    table = answers_of({"a": {"1/2": [0.5, 0.9, 0.7]}, "b": {"1/2": [0.4, 0.8, 0.6]}})
    pair = table.pair("a", "b", ["1/2"])
    assert pair.mean == pytest.approx(0.1)
    assert pair.error == pytest.approx(0.0, abs=1e-9)
    assert pair.count == 3


def test_a_difference_is_tested_by_students_t():
    pair = compare.Pair.of([0.02, 0.04, 0.03, 0.05])
    assert pair.error == pytest.approx(0.00645497, rel=1e-5)
    assert pair.p == pytest.approx(0.012318, abs=1e-4)  # t = 5.422, three degrees of freedom
    assert math.isnan(compare.Pair.of([0.1]).p)


def test_holm_rejects_in_steps():
    assert compare.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == {"a", "d"}  # Holm (1979)
    assert compare.holm({"a": 0.2, "b": math.nan}) == set()


def test_the_mean_over_rates_leaves_whole_windows_out():
    table = answers_of({"a": {"0/2": [1.0], "1/2": [0.5], "no video": [0.0]}})
    assert table.averaged("a") == 0.5
    assert table.averaged("a", lossy=False) == 0.75
    with pytest.raises(DataError, match="were never asked the same"):
        answers_of({"a": {"1/2": [1.0]}, "b": {"0/2": [1.0]}}).pair("a", "b", ["1/2"])


def test_figures_are_drawn_of_arms_that_were_asked(tmp_path):
    ours = answers_of({"drops": {"0/2": [1.0], "1/2": [0.5]}})
    assert [p.name for p in figures.write([ours], tmp_path)] == ["scores.csv"]
    paper = answers_of({"Pristine": {"0/2": [1.0]}, "curri-MAE": {"0/2": [1.0], "1/2": [0.5]}})
    names = [p.name for p in figures.write([paper], tmp_path, plot=False)]
    assert names == ["scores.csv", "figure-toy.csv"]


# --- the command


@pytest.mark.slow
def test_the_command_writes_the_figures_and_goes_on(tmp_path, capsys):
    file = saved(tmp_path / "toy.safetensors")
    command = ["eval", "--protocol", "paper", "--case", f"toy:words={file}", "--runs", str(tmp_path / "runs"),
               "--out", str(tmp_path / "out"), "--seeds", "1", "--draws", "1"]  # fmt: skip
    small = [x for k in ("head_steps=4", "tune_steps=4", "fill_steps=4", "hidden=8", "fill_preset=curri_mae_tiny")
             for x in ("--set", k)]  # fmt: skip
    assert cli.run([*command, *small]) == 0
    said = capsys.readouterr().out
    assert "1 cases, 1 seeds, heads linear and gru: 2 trainings of all arms" in said
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"scores.csv", "figure-toy.csv", "figure-toy.png", "fixed-rates-toy.csv", "fixed-rates-toy.png"}
    with (tmp_path / "out" / "figure-toy.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["arm"] for row in rows} == set(figures.MAIN)
    assert {row["lost"] for row in rows if row["arm"] == "curri-MAE"} == {"0/4", "1/4", "2/4", "3/4"}
    assert cli.run([*command, *small]) == 0
    assert "0 trainings of all arms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--case", "toy:words={}"], "give --runs"),
        (["--runs", "{}"], "no features to study; give --case"),
        (["--case", "toy:words={}", "--runs", "r", "--folds", "java=a"], "names 'java', of which there is no --case"),
        (["--case", "toy:words={}", "--runs", "r", "--heads", "mbt"], "must be of linear, gru"),
        (["--case", "toy:words={}", "--case", "toy:words={}", "--runs", "r"], "share a name"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_in_a_sentence(tmp_path, capsys, more, sentence):
    file = saved(tmp_path / "toy.safetensors")
    assert cli.run(["eval", "--protocol", "paper", *(part.format(file) for part in more)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_paper_arms_have_a_figure():
    assert set(figures.MAIN) | set(figures.FIXED_RATES) | set(figures.MIXTURES) - {"curri-MAE-ft*"} >= set(PAPER)
