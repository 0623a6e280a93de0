"""Linear and few-shot evaluation: exact where there is an exact answer, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from encoders.errors import ConfigError, DataError
from encoders.finetune import finetune
from encoders.linear_probe import Features, few_shot, fit_linear, linear_probe, ridge
from encoders.registry import build
from encoders.tasks import LabelTask
from runtime.cli import run
from tests.moving import SMALL, moving, small

TASK = LabelTask(classes=("a", "b", "c"))


def clouds(count=40, spread=0.3, seed=0, dim=6):
    """Three classes around three points; (N, D) and one-hot (N, K)."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(3, dim))
    classes = np.arange(count) % 3
    x = centres[classes] + spread * random.normal(size=(count, dim))
    return Features(torch.from_numpy(x).float(), torch.eye(3)[classes])


def test_clouds_apart_are_told_apart():
    found = linear_probe(TASK, clouds(90), clouds(60, seed=1))
    assert found["top1"] >= 0.95 and found["samples"] == 60
    assert few_shot(TASK, clouds(90), clouds(60, seed=1), 5)["top1"] >= 0.9


def test_noise_is_not_learned():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    noise = Features(x, torch.eye(3)[torch.arange(300) % 3])
    found = linear_probe(TASK, noise.rows(torch.arange(150)), noise.rows(torch.arange(150, 300)))
    assert abs(found["top1"] - 1 / 3) < 0.12


def test_the_linear_classifier_is_at_the_minimum_of_its_loss():
    data, decay = clouds(60, spread=1.5), 0.1
    weight, bias = (p.requires_grad_() for p in fit_linear(TASK, data.x, data.targets, decay))
    loss = TASK.compute_loss(data.x @ weight + bias, data.targets) + decay / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


@pytest.mark.parametrize("count", [4, 60])
def test_both_forms_of_the_regression_solve_the_normal_equations(count):
    """Fewer samples than dimensions, and more: (X'X + r I) W = X'Y either way."""
    data, new, strength = clouds(count, dim=10), clouds(5, seed=3, dim=10), 3.0
    mean, std = data.x.double().mean(0), data.x.double().std(0, correction=0)
    x, z = (torch.nn.functional.pad((f.x.double() - mean) / std, (0, 1), value=100.0) for f in (data, new))
    weight = torch.linalg.solve(x.T @ x + strength * torch.eye(11).double(), x.T @ (2 * data.targets.double() - 1))
    torch.testing.assert_close(ridge(data, new.x, strength), (z @ weight).float())


def test_draws_differ_and_the_seed_repeats_them():
    train, test = clouds(90, spread=2.0), clouds(90, spread=2.0, seed=1)
    one, again, other = (few_shot(TASK, train, test, 2, seed=s) for s in (0, 0, 1))
    assert one == again != other
    assert one["std"] > 0


def test_what_cannot_be_asked_is_one_sentence():
    with pytest.raises(DataError, match="3 of 3 classes, such as a, have fewer than 99 training samples"):
        few_shot(TASK, clouds(), clouds(), 99)
    with pytest.raises(ConfigError, match="shots 0 and draws 5 must be at least 1"):
        few_shot(TASK, clouds(), clouds(), 0)
    with pytest.raises(ConfigError, match="9 training samples are too few for a linear probe; use --few-shot"):
        linear_probe(TASK, clouds(9), clouds())
    multi = LabelTask(classes=("a", "b", "c"), kind="multi", loss="sigmoid")
    with pytest.raises(ConfigError, match="few-shot evaluation needs one class per sample"):
        few_shot(multi, clouds(), clouds(), 1)
    assert linear_probe(multi, clouds(90), clouds(30, seed=1))["map"] > 0.9


# --- the command ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return moving(tmp_path_factory.mktemp("moving"), train=12, val=6)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return finetune(small(data, epochs=1, warmup=0.5), tmp_path_factory.mktemp("runs") / "run")


def legato(*arguments):
    return run(["eval", *map(str, arguments)])


def test_a_run_is_tested_probed_and_shown_examples(trained, tmp_path, capsys):
    assert legato("--run", trained, "--split", "val", "--views", "1x1", "--json", "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out)["kinetics400 val"]
    kept = json.loads((trained / "metrics.json").read_text())
    assert found == {k: pytest.approx(kept[k]) for k in found}
    assert legato("--run", trained, "--split", "val", "--linear-probe", "--out", tmp_path, "--device", "cpu") == 0
    assert "linear probe: top1" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["linear probe"]["samples"] == 6
    assert legato("--run", trained, "--split", "val", "--few-shot", 5, "--views", "2x3", "--device", "cpu") == 0
    assert "5-shot: top1" in capsys.readouterr().out


def test_weights_of_a_preset_are_probed_without_a_run(data, tmp_path, capsys):
    overrides = {k.removeprefix("model."): v for k, v in SMALL.items()}
    save_file(build("vivit_tiny_fe", **overrides).state_dict(), tmp_path / "w.safetensors")
    sizes = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    few = ["--preset", "vivit_tiny_fe", "--data", data, "--split", "val", "--few-shot", 3, "--device", "cpu"]
    assert legato(*few, *sizes, "--set", "stride=1", "--checkpoint", tmp_path / "w.safetensors") == 0
    assert capsys.readouterr().out.startswith("3-shot: top1")
    assert legato(*few, "--checkpoint", tmp_path / "w.safetensors") == 1
    assert "use weights of the same preset and overrides" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to measure; give a feature file with --arm, or an encoder with --run or --preset"),
        (["--few-shot", 5], 2, "nothing to probe; give --run, or --preset and --data"),
        (["--preset", "vivit_tiny"], 2, "has no head of its own; add --linear-probe or --few-shot 5"),
        (["--run", "x", "--linear-probe", "--few-shot", 5], 2, "are two evaluations; ask for one at a time"),
        (["--run", "x", "--preset", "vivit_tiny"], 2, "--run brings its own preset and weights"),
        (["--run", "nowhere"], 1, "name the --out of a finished `legato train PRESET`"),
        (["--run", "x", "--views", "4x"], 2, "views '4x' is not CLIPSxCROPS"),
        (["features.safetensors", "--arm", "a=b", "--run", "x"], 2, "judge an encoder with --run or --preset alone"),
    ],
)
def test_the_command_fails_in_one_sentence(capsys, arguments, code, says):
    assert legato(*arguments, "--device", "cpu") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("legato: ") and says in last


def test_a_probe_learns_and_is_measured_on_two_splits(trained, capsys):
    assert legato("--run", trained, "--split", "train", "--linear-probe", "--device", "cpu") == 2
    assert "use two other splits" in capsys.readouterr().err
