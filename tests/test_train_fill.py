"""The commands of features: train an imputer and heads, compare them; and what they say when something is wrong."""

import json
from pathlib import Path

import pytest
import torch

from imputation.features import FeatureSet
from runtime.cli import run


@pytest.fixture
def features(tmp_path) -> Path:
    g = torch.Generator().manual_seed(0)
    label = torch.arange(48) % 2
    values = torch.randn(48, 4, 2, 16, generator=g) + (2.0 * label - 1).view(-1, 1, 1, 1)
    split = ["train"] * 24 + ["validation"] * 12 + ["test"] * 12
    data = FeatureSet.of(values, label, ("no", "yes"), split=split, speaker=[f"s{i % 2}" for i in range(48)])
    data.save(tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def legato(*arguments: object) -> int:
    return run([str(a) for a in arguments])


def train_all(features: Path) -> Path:
    """An imputer and two heads, a few steps each; the folder they lie in."""
    out, common = features.parent, ("--features", features, "--device", "cpu", "--steps", 3)
    assert legato("train", "curri-mae", *common, "--out", out / "mae", "--preset", "curri_mae_tiny") == 0
    small = ("--set", "overrides.hidden=8")
    assert legato("train", "head", *common, "--out", out / "plain", *small) == 0
    tuned = ("--imputer", out / "mae", "--init", out / "plain", "--sampling", "all", *small)
    assert legato("train", "head", *common, "--out", out / "tuned", *tuned) == 0
    assert legato("train", "head", *common, "--out", out / "backoff", "--kind", "backoff") == 0
    return out


def test_from_features_to_a_table(features, capsys):
    out = train_all(features)
    arms = [f"zero={out / 'plain'}+zero", f"tuned={out / 'tuned'}+{out / 'mae'}", f"backoff={out / 'backoff'}"]
    options = [x for arm in arms for x in ("--arm", arm)]
    common = ("eval", features, *options, "--draws", 2, "--levels", "0,2", "--profile", "clips-30")
    capsys.readouterr()
    calibrated = ("--calibrate", "validation", "--risk", 0.2)
    assert legato(*common, "--out", out / "r", "--reference", "zero", *calibrated) == 0
    shown = capsys.readouterr().out
    for word in (
        "zero",
        "tuned",
        "backoff",
        "2/4",
        "clips-30",
        "observed_mean",
        "points against zero",
        "calibrated by",
    ):
        assert word in shown
    assert {p.name for p in (out / "r").iterdir()} == {
        "accuracy.png", "calibration.png", "errors.csv", "reliability.csv", "results.json", "risk_coverage.csv",
        "scores.csv",
    }  # fmt: skip
    settings = json.loads((out / "r" / "results.json").read_text())["settings"]
    assert settings["calibrated_on"] == "validation" and settings["calibration"]["zero"]["promise"]["risk_asked"] == 0.2
    assert legato(*common, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["scores"]) == 9


@pytest.mark.slow
def test_fills_that_are_fitted_are_arms_and_bases(features, capsys):
    out, common = features.parent, ("--features", features)
    assert legato("train", "fill", "gaussian", *common, "--out", out / "gp", "--set", "joint=2") == 0
    assert legato("train", "fill", "nearest", *common, "--out", out / "near", "--set", "bank=9") == 0
    short = (*common, "--device", "cpu", "--steps", 2)
    over = ("--base", "gaussian", "--set", "base_options.groups=3", "--preset", "curri_mae_tiny")
    assert legato("train", "curri-mae", *short, *over, "--out", out / "over") == 0
    assert legato("train", "head", *short, "--out", out / "plain", "--set", "overrides.hidden=8") == 0
    arms = [x for fill in ("gp", "near", "over") for x in ("--arm", f"{fill}={out / 'plain'}+{out / fill}")]
    capsys.readouterr()
    assert legato("eval", features, *arms, "--draws", 1, "--levels", "0,2", "--json") == 0
    found = json.loads(capsys.readouterr().out)["errors"]
    assert {e["fill"] for e in found} >= {"gp", "near", "over"}


def test_an_imputer_is_trained_through_a_head_that_stays(features):
    out = train_all(features)
    before = (out / "plain" / "head.safetensors").read_bytes()
    through = ("--train", "imputer", "--init", out / "plain", "--imputer", out / "mae", "--sampling", "all")
    common = ("--features", features, "--device", "cpu", "--steps", 2, "--consistency", 1.0)
    assert legato("train", "head", *common, *through, "--out", out / "kl") == 0
    assert (out / "kl" / "imputer.safetensors").exists() and not (out / "kl" / "head.safetensors").exists()
    assert (out / "plain" / "head.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "curri-mae", "--preset", "curri_mae_smal"], 2, "did you mean curri_mae_small"),
        (["train", "curri-mae", "--sampling", "magic"], 2, "sampling 'magic' is unknown"),
        (["train", "curri-mae", "--set", "lrr=1"], 2, "lrr"),
        (["train", "curri-mae", "--set", "overrides.widht=1", "--preset", "curri_mae_tiny"], 2, "widht"),
        (["train", "curri-mae", "--train-split", "dev"], 1, "split 'dev' has no windows"),
        (["train", "curri-mae", "--base", "gausian"], 2, "did you mean gaussian"),
        (["train", "fill", "magic"], 2, "fill 'magic' is unknown"),
        (["train", "fill", "gaussian", "--set", "group=3"], 2, "did you mean groups"),
        (["train", "fill", "gaussian", "--set", "dim=3"], 2, "dim"),
        (["train", "curri-mae", "--init", "zero"], 2, "is a rule without weights"),
        (["train", "head", "--imputer", "nowhere"], 1, "nowhere holds no imputer"),
        (["train", "head", "--train", "imputer", "--sampling", "all"], 2, "name its folder with --init"),
        (["train", "head", "--resume"], 1, "holds no run to resume"),
    ],
)
def test_a_mistake_is_one_sentence(features, capsys, arguments, code, sentence):
    device = () if "fill" in arguments else ("--device", "cpu")
    given = [*arguments, "--features", features, "--out", features.parent / "x", *device]
    assert legato(*given) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said and said.startswith("legato: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arm", "nonsense"], "is not NAME=HEAD or NAME=HEAD+FILL"),
        (["--arm", "a=nowhere", "--risk", "0.1"], "--risk 0.1 needs a threshold"),
        (["--arm", "a=nowhere", "--calibrate", "validation", "--risk", "1.5"], "--risk 1.5 is no share"),
        (["--arm", "a=nowhere", "--delta", "0"], "--delta 0 is no share"),
        (["--arm", "a=nowhere"], "nowhere holds no head"),
        (["--arm", "a=x", "--metric", "beauty"], "metric 'beauty' is unknown"),
        (["--arm", "a=x", "--split", "dev"], "split 'dev' has no windows"),
        (["--arm", "a=x", "--lookahead", "9"], "lookahead 9"),
    ],
)
def test_a_wrong_comparison_is_one_sentence(features, capsys, arguments, sentence):
    assert legato("eval", features, *arguments) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_a_nan_is_named_by_file_and_row(features, capsys):
    data = FeatureSet.load(features)
    data.features[7, 0, 0, 0] = float("nan")
    data.save(features)
    assert legato("train", "curri-mae", "--features", features, "--out", features.parent / "x") == 1
    assert f"row 7 (7) of {features} is not finite" in capsys.readouterr().err
