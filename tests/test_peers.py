"""Imputers of other people: the columns they take, the loop around them, and the file that answers for them.

PyPOTS itself is not needed: a network made up here stands for its own. What needs it runs in its environment, which
PYPOTS_PYTHON names or bench/peers/pypots/.venv holds.
"""

import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.peers import errors
from bench.peers.prefilled import Prefilled, write_prefilled
from bench.peers.pypots import fill, fills, networks
from bench.peers.pypots.columns import Columns
from bench.record import _portable
from encoders.errors import ConfigError, DataError, MissingExtraError, UsageError
from encoders.heads import build_head
from imputation.baselines import Lerp
from imputation.curri_mae import CurriMAE
from imputation.evaluate import Arm, evaluate
from imputation.features import FeatureSet
from imputation.sampling import paired_hidden
from imputation.train import MAETraining, train_mae

ROOT = Path(__file__).parent.parent
L, D = 4, 6


@dataclass(frozen=True, kw_only=True)
class ConstantConfig:
    start: float = 0.0


class Constant(nn.Module):
    """Says one number for each column; learns it where it is asked. Remembers what it was shown."""

    def __init__(self, config: ConstantConfig, length: int, columns: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((columns,), config.start))
        self.length, self.shown = length, []

    def loss(self, table, seen, asked):
        assert not (seen * asked).any()
        self.shown.append((table * seen, seen, asked))
        return ((self.value - table) * asked).square().sum() / asked.sum().clamp(min=1)

    def fill(self, table, seen):
        assert table.shape == (len(table), self.length, len(self.value)) and torch.isfinite(table).all()
        assert not table[seen == 0].any()
        return self.value.expand_as(table)


@pytest.fixture
def constant(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "constant", (Constant, ConstantConfig))
    monkeypatch.setattr(fills, "installed", lambda: "0")
    monkeypatch.setattr(fill, "PEERS", ("constant",))


def windows(count: int = 40, *, whole: bool = True) -> FeatureSet:
    """Windows that drift; every third lacks a place and a position unless ``whole``."""
    g = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    drift = torch.randn(count, L, 2, D, generator=g).cumsum(dim=1)
    presence, exists = torch.ones(count, L, 2, dtype=torch.bool), torch.ones(count, L, dtype=torch.bool)
    if not whole:
        exists[::3, 0], presence[::3, 2, 1] = False, False
    split = ["train"] * (count // 2) + ["validation"] * (count // 4) + ["test"] * (count - count // 2 - count // 4)
    speaker = [f"s{i % 2}" for i in range(count)]
    return FeatureSet.of(
        drift, label, ("no", "yes"), presence=presence, exists=exists, split=split, speaker=speaker
    ).fitted()


# --- columns ----------------------------------------------------------------------------------------------------


def test_columns_are_video_then_audio_and_come_back():
    features = torch.arange(2 * 3 * 2 * 5).float().view(2, 3, 2, 5)
    columns = Columns(5)
    table = columns(features)
    assert table.shape == (2, 3, 10) and columns.count == 10
    assert torch.equal(table[0, 0], torch.arange(10).float())
    assert torch.equal(columns.inverse(table), features)
    mask = torch.tensor([[[True, False]]])
    assert columns.spread(mask)[0, 0].tolist() == [1.0] * 5 + [0.0] * 5


def test_components_keep_what_varies_and_tell_what_they_lose():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 4, 2, 2, generator=g)
    features = hidden @ torch.randn(2, 7, generator=g) + 3  # two directions of seven
    seen = torch.ones(200, 4, 2, dtype=torch.bool)
    exact = Columns.fit(features, seen, 2)
    table = exact(features)
    assert table.shape == (200, 4, 4)
    assert torch.allclose(exact.inverse(table), features, atol=1e-4)
    assert torch.allclose(table.flatten(0, 1).std(dim=0, unbiased=False), torch.ones(4), atol=1e-3)
    assert exact.lost.max() < 1e-5
    one = Columns.fit(features, seen, 1)
    error = (one.inverse(one(features)) - features).square().mean(dim=(0, 1, 3))
    variance = (features - features.mean(dim=(0, 1))).square().mean(dim=(0, 1, 3))
    assert torch.allclose(one.lost, error / variance, atol=1e-4)


def test_components_are_those_of_observed_places():
    g = torch.Generator().manual_seed(0)
    features, seen = torch.randn(50, 4, 2, 5, generator=g), torch.rand(50, 4, 2, generator=g) > 0.3
    noise = torch.where(seen.unsqueeze(-1), features, 1e6)
    assert torch.equal(Columns.fit(noise, seen, 3).scale, Columns.fit(features, seen, 3).scale)


@pytest.mark.parametrize(
    ("components", "count", "says"),
    [
        (9, 50, "components 9 of features 5 wide do not exist; use 1 to 5, or 0 for all"),
        (-1, 50, "components -1 of features 5 wide"),
        (4, 1, "modality 0 was observed 3 times in training, too few for 4 components; use fewer components"),
    ],
)
def test_components_that_cannot_be_had(components, count, says):
    features = torch.randn(count, 3, 2, 5)
    with pytest.raises((ConfigError, DataError), match=says):
        Columns.fit(features, torch.ones(count, 3, 2, dtype=torch.bool), components)


# --- training ---------------------------------------------------------------------------------------------------


def test_a_peer_sees_the_batches_and_masks_of_curri_mae(constant, tmp_path, monkeypatch):
    data, seen = windows(whole=False).of_split("train"), []
    ours = CurriMAE.loss

    def spied(self, features, hidden, exists, presence):
        seen.append((features, presence & exists.unsqueeze(-1), hidden))
        return ours(self, features, hidden, exists, presence)

    monkeypatch.setattr(CurriMAE, "loss", spied)
    setting = {"steps": 3, "batch": 8, "seed": 3, "sampling": "uniform"}
    train_mae(MAETraining(preset="curri_mae_tiny", **setting), data, data, tmp_path / "mae")
    peer = fills.train("constant", data, out=tmp_path / "peer", components=0, **setting)
    assert len(peer.network.shown) == len(seen) == 3
    for (features, known, hidden), (table, shown, asked) in zip(seen, peer.network.shown, strict=True):
        assert torch.equal(shown[..., ::D].bool(), known & ~hidden)
        assert torch.equal(asked[..., ::D].bool(), known & hidden)
        assert torch.equal(table, features.flatten(2) * shown)


@pytest.mark.parametrize("components", [0, 3])
def test_a_peer_learns_keeps_the_contract_and_comes_back(constant, tmp_path, components):
    data = windows(whole=False)
    train, test = data.of_split("train"), data.of_split("test")
    peer = fills.train("constant", train, steps=3, batch=8, out=tmp_path, components=components, validation=test)
    features, presence = test.standardised(), test.presence.clone()
    presence[:, 1] = False
    noise = torch.where(presence.unsqueeze(-1), features, torch.nan)
    found = peer(noise, presence, test.exists)
    absent = test.exists.unsqueeze(-1) & ~presence
    assert torch.isfinite(found.features[absent]).all()
    assert torch.equal(found.features[presence], features[presence])
    assert found.features[~test.exists].isnan().all()  # as it came
    assert (found.variance > 0).eq(absent).all() and found.rung == "constant"
    assert not peer.training and peer.applies(presence, test.exists).all()
    again = fills.load(tmp_path)(noise, presence, test.exists)
    assert torch.equal(again.features[absent], found.features[absent])
    assert torch.equal(again.variance, found.variance)
    shorter = peer(features[:, :2], presence[:, :2])
    assert shorter.features.shape == (len(test), 2, 2, D)


def test_a_stopped_training_goes_on_to_the_same_weights(constant, tmp_path, monkeypatch):
    data = windows().of_split("train")
    setting = {"steps": 6, "batch": 8, "components": 0, "save_every": 1}
    whole = fills.train("constant", data, out=tmp_path / "whole", **setting)
    step = fills._step

    def stops(imputer, optimizer, batches, sampling, number, epoch):
        if number == 4:
            raise RuntimeError("the power is gone")
        return step(imputer, optimizer, batches, sampling, number, epoch)

    monkeypatch.setattr(fills, "_step", stops)
    with pytest.raises(RuntimeError):
        fills.train("constant", data, out=tmp_path / "parts", **setting)
    monkeypatch.setattr(fills, "_step", step)
    parts = fills.train("constant", data, out=tmp_path / "parts", resume=True, **setting)
    assert torch.equal(parts.network.value, whole.network.value)
    lines = (tmp_path / "parts" / "log.jsonl").read_text()
    assert lines == (tmp_path / "whole" / "log.jsonl").read_text() and '"step": 6' in lines


def test_what_cannot_be_trained_is_one_sentence(constant, tmp_path):
    data = windows().of_split("train")
    with pytest.raises(UsageError, match="peer 'constat' is unknown; did you mean constant"):
        fills.train("constat", data, steps=1, out=tmp_path)
    with pytest.raises(ConfigError, match="steps 0 must be above 0"):
        fills.train("constant", data, steps=0, out=tmp_path)
    with pytest.raises(ConfigError, match="components 32 of features 6 wide do not exist"):
        fills.train("constant", data, steps=1, out=tmp_path)
    with pytest.raises(UsageError, match="setting 'star' is unknown; did you mean start"):
        fills.train("constant", data, steps=1, out=tmp_path, components=0, sizes={"star": 1})
    with pytest.raises(DataError, match="holds no trained peer"):
        fills.load(tmp_path)
    assert not list(tmp_path.iterdir())  # all before any compute
    wide = fills.PeerTraining(peer="csdi", steps=1, components=0)
    with pytest.raises(ConfigError, match=r"1024 columns are too many for csdi.*use components 64 or fewer"):
        fills.new(wide, Columns(512), 10)
    peer = fills.train("constant", data, steps=1, out=tmp_path, components=0)
    longer = torch.zeros(1, L + 1, 2, D)
    with pytest.raises(DataError, match="features have 5 positions of width 6; this constant was trained on 4"):
        peer(longer, torch.ones(1, L + 1, 2, dtype=torch.bool))


def test_without_pypots_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypots", None)
    monkeypatch.setitem(sys.modules, "pypots.imputation", None)
    with pytest.raises(MissingExtraError, match=r"PyPOTS is not installed here.*bench/peers/pypots/build"):
        fills.train("saits", windows().of_split("train"), steps=1, out=tmp_path, components=0)
    assert not list(tmp_path.iterdir())


def test_gaps_are_steps_since_a_column_was_seen():
    seen = torch.tensor([1.0, 0, 0, 1, 1]).view(1, 5, 1)
    assert networks.gaps(seen).flatten().tolist() == [0, 1, 2, 3, 1]


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def test_windows() -> FeatureSet:
    return windows(whole=False).of_split("test")


def test_the_file_answers_as_the_imputer_did(test_windows, tmp_path):
    path = tmp_path / "lerp.safetensors"
    write_prefilled(path, Lerp(), test_windows, draws=2, batch=3, profiles=("clips-30",), peer={"peer": "lerp"})
    prefilled = Prefilled(path)
    head = build_head("gru", dim=D, classes=2, hidden=4).eval()
    arms = [Arm("live", head, Lerp()), Arm("file", head, prefilled)]
    results = evaluate(
        arms, test_windows, draws=2, profiles=("clips-30",), batch=7
    )  # other batches than it was made in
    for condition in results.conditions:
        live, file = results.score("live", condition), results.score("file", condition)
        assert (live.accuracy, live.ece, live.speakers) == (file.accuracy, file.ece, file.speakers)
        assert results.error("lerp", condition).video == pytest.approx(
            results.error("file", condition).video, nan_ok=True
        )
    assert deepcopy(prefilled) is prefilled  # as training of a head does
    assert prefilled.rung == "lerp" and prefilled.about["about"] == {"peer": {"peer": "lerp"}}
    assert "machine" not in json.dumps(prefilled.about) and str(tmp_path) not in json.dumps(prefilled.about)


def test_another_mask_window_or_feature_has_no_answer(test_windows, tmp_path):
    write_prefilled(tmp_path / "f", Lerp(), test_windows, levels=[2], draws=1)
    prefilled, features = Prefilled(tmp_path / "f"), test_windows.standardised()
    hidden = torch.from_numpy(paired_hidden(test_windows.names, test_windows.exists.numpy(), 2, 0))
    presence = test_windows.presence & ~hidden
    assert torch.isfinite(prefilled(features, presence, test_windows.exists).features).all()
    assert prefilled(features[:0], presence[:0], test_windows.exists[:0]).features.shape == (0, L, 2, D)
    whole = torch.ones_like(presence[1:2])
    assert torch.equal(prefilled(features[1:2], whole).features, features[1:2])  # nothing to fill, nothing to look up

    other = torch.from_numpy(paired_hidden(test_windows.names, test_windows.exists.numpy(), 2, 1))
    says = "was not filled for a window with .* places hidden so; it holds 10 windows of test, 1 draws from seed 0"
    for x, p, e in (
        (features, test_windows.presence & ~other, test_windows.exists),
        (features + 1e-3, presence, test_windows.exists),
        (features.flip(0), presence, test_windows.exists),
        (features, presence, torch.ones_like(test_windows.exists)),
        (features[:, :3], presence[:, :3], test_windows.exists[:, :3]),
    ):
        with pytest.raises(DataError, match=says):
            prefilled(x, p, e)


@pytest.mark.parametrize("content", [None, b"", b"not a file of tensors", "features"])
def test_a_file_that_holds_no_fills(content, tmp_path, test_windows):
    path = tmp_path / "f.safetensors"
    if content == "features":
        test_windows.save(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"f\.safetensors holds no filled windows.*make it with bench\.peers\.pypots"):
        Prefilled(path)


def test_a_peer_that_says_no_number_is_not_written_down(test_windows, tmp_path):
    class Broken(Lerp):
        def predict(self, features, present):
            return torch.full_like(features, torch.nan)

    with pytest.raises(DataError, match="lerp filled places with what is no number; train it again"):
        write_prefilled(tmp_path / "f", Broken(), test_windows)
    with pytest.raises(DataError, match="nothing is hidden in these windows; name levels above 0"):
        write_prefilled(tmp_path / "f", Lerp(), windows().of_split("test"), levels=[0])
    assert not list(tmp_path.iterdir())


# --- the commands -----------------------------------------------------------------------------------------------


def test_from_features_to_a_table_of_errors(constant, tmp_path, capsys):
    windows().save(tmp_path / "f.safetensors")
    common = ["--features", str(tmp_path / "f.safetensors"), "--steps", "2", "--out", str(tmp_path / "peers")]
    common += ["--peers", "constant", "--components", "3", "--batch", "8", "--draws", "1"]
    assert fill.main(common) == 0
    made = tmp_path / "peers" / "constant.filled.safetensors"
    assert capsys.readouterr().out.strip() == str(made)
    assert fill.main(common) == 0  # what is there is asked, not made again
    assert fill.main([*common[:3], "9", *common[4:]]) == 2
    assert "was trained with steps 2, not 9; give the same, or another folder" in capsys.readouterr().err

    asked = ["--features", str(tmp_path / "f.safetensors"), "--results", str(tmp_path), "--name", "r", "--filled"]
    assert errors.main([*asked, f"constant={made}", "--draws", "1"]) == 0
    page = (tmp_path / "r.md").read_text()
    for words in ("| zero |", "| lerp |", "| constant |", "2 steps of 8", "3 components of each modality"):
        assert words in page
    found = json.loads((tmp_path / "r.json").read_text())["errors"]
    assert list(found["constant"]) == ["1/4", "2/4", "3/4"] and np.isfinite(found["constant"]["3/4"]).all()
    assert errors.main([*asked, f"zero={made}"]) == 2
    assert "zero names two fills" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--peers", "sait"], "peer 'sait' is unknown"),
        (["--split", "tst"], "split 'tst' has no windows; the file has test, train, validation"),
        (["--draws", "0"], "draws 0 fill nothing"),
        (["--features", "nowhere"], "nowhere is not a feature file"),
        (["--set", "start"], "is not key=value"),
    ],
)
def test_a_mistake_of_the_command_is_one_sentence(constant, tmp_path, capsys, change, says):
    windows().save(tmp_path / "f.safetensors")
    common = ["--features", str(tmp_path / "f.safetensors"), "--steps", "2", "--out", str(tmp_path / "peers")]
    assert fill.main([*common, "--peers", "constant", "--components", "0", *change]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert says in error and error.count("\n") == 0
    assert not (tmp_path / "peers").exists()


def test_a_record_names_no_folder_of_a_machine():
    assert _portable("saits=/somewhere/here/saits.safetensors") == "saits=saits.safetensors"
    assert _portable("/somewhere/f") == "f"
    assert _portable("lr=0.1") == "lr=0.1"


# --- PyPOTS -----------------------------------------------------------------------------------------------------


def pypots() -> str:
    there = os.environ.get("PYPOTS_PYTHON", str(ROOT / "bench/peers/pypots/.venv/bin/python"))
    if not Path(there).exists():
        pytest.skip("PyPOTS has no environment here; make one with sh bench/peers/pypots/build")
    return there


@pytest.mark.slow
def test_every_peer_trains_and_its_fills_are_read_here(tmp_path):
    python = pypots()
    data = windows(whole=False)
    data.save(tmp_path / "f.safetensors")
    command = [python, "-m", "bench.peers.pypots.fill", "--features", str(tmp_path / "f.safetensors"), "--steps", "2",
               "--out", str(tmp_path / "p"), "--components", "3", "--draws", "1", "--peers", *networks.NETWORKS
              ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(networks.NETWORKS)  # and no greeting
    for name in networks.NETWORKS:
        prefilled = Prefilled(tmp_path / "p" / f"{name}.filled.safetensors")
        found = errors.errors({name: prefilled}, data.of_split("test"), draws=1)[name]
        assert np.isfinite(list(found.values())).all()
