"""Training of curri-MAE and of heads: it learns, it resumes to the same bits, it says what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.errors import ConfigError, DataError, UsageError
from encoders.training import Interrupted
from imputation.curri_mae import curri_mae_tiny
from imputation.features import FeatureSet
from imputation.run import Batches, resumed
from imputation.sampling import Sampling, hide, paired_hidden, profile_hidden
from imputation.stored import load_head, load_imputer
from imputation.train import MAETraining, fit_variance, train_mae, validation_error
from imputation.train_head import HeadTraining, train_head

LENGTH = 5


def toy(n: int = 96, seed: int = 0) -> FeatureSet:
    """Two classes; a smooth common signal in both modalities, so that what is hidden can be told from the rest."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    phase = torch.rand(n, 1, generator=g) * 6
    t = torch.arange(LENGTH).view(1, -1)
    wave = torch.stack([torch.sin(t + phase), torch.cos(t + phase)], -1)  # (n, L, 2)
    mix = torch.randn(2, 2, 16, generator=torch.Generator().manual_seed(99))
    features = torch.einsum("nlc,mcd->nlmd", wave, mix) + (2 * label - 1).view(-1, 1, 1, 1) * mix.mean(1) * 0.7
    features = features + 0.1 * torch.randn(features.shape, generator=g)
    split = ["train"] * (2 * n // 3) + ["validation"] * (n - 2 * n // 3)
    speaker = [f"s{i % 4}" for i in range(n)]
    data = FeatureSet.of(features, label, ("no", "yes"), split=split, speaker=speaker, notes={"clip_seconds": 0.4})
    return data.fitted()


def parts() -> tuple[FeatureSet, FeatureSet]:
    data = toy()
    return data.of_split("train"), data.of_split("validation")


def mae_config(**changes) -> MAETraining:
    return MAETraining(
        **{"preset": "curri_mae_tiny", "epochs": 4, "batch": 32, "lr": 3e-3, "curriculum_step": 1} | changes
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class StopAt:
    """A progress callback that asks the process to stop, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, done: int, of: int, loss: float) -> None:
        if done == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


class TestSampling:
    exists = np.ones((400, LENGTH), bool)

    def draw(self, text: str, epoch: int = 0, exists: np.ndarray | None = None) -> np.ndarray:
        sampling = Sampling.parse(text, length=LENGTH, epochs=50, step=10)
        return sampling.draw(np.random.default_rng(0), epoch, self.exists if exists is None else exists)

    @pytest.mark.parametrize(("text", "counts"), [("none", {0}), ("max", {4}), ("k=3", {3}), ("all", {0, 1, 2, 3, 4})])
    def test_the_named_number_of_clips_is_hidden_in_both_modalities(self, text, counts):
        k = self.draw(text).sum(axis=1)  # (B, M)
        assert set(np.unique(k)) == counts and (k[:, 0] == k[:, 1]).all()

    def test_the_curriculum_grows_with_the_epoch_and_holds(self):
        assert [self.draw("curriculum", e).sum(axis=1).max() for e in (0, 9, 10, 29, 30, 49)] == [1, 1, 2, 3, 4, 4]

    def test_uniform_hides_one_number_in_the_whole_batch(self):
        assert len(np.unique(self.draw("uniform").sum(axis=1))) == 1

    def test_independent_draws_each_modality_for_itself(self):
        k = self.draw("independent").sum(axis=1)
        assert (k[:, 0] != k[:, 1]).any()

    def test_whole_takes_one_modality_away_entirely(self):
        k = self.draw("whole").sum(axis=1)
        assert ((k == LENGTH).sum(axis=1) == 1).all()

    def test_a_mixture_draws_one_of_its_kinds(self):
        sampling = Sampling.parse("k=1+k=4", length=LENGTH)
        rng = np.random.default_rng(0)
        assert {int(sampling.draw(rng, 0, self.exists)[0, :, 0].sum()) for _ in range(20)} == {1, 4}

    def test_only_existing_places_are_hidden_and_one_is_left(self):
        exists = np.random.default_rng(1).random((400, LENGTH)) < 0.6
        for text in ("max", "all", "curriculum", "whole", "profile=clips-50"):
            hidden = self.draw(text, 49, exists)
            assert not hidden[~exists].any()
        left = (exists[:, :, None] & ~self.draw("max", 0, exists)).sum(axis=1)
        assert (left == exists.any(axis=1)[:, None]).all()

    def test_a_profile_hides_about_its_rate(self):
        assert 0.4 < self.draw("profile=clips-50").mean() < 0.6

    def test_places_are_uniform(self):
        hidden = hide(np.random.default_rng(0), np.ones((5000, LENGTH), bool), np.full((5000, 2), 2))
        assert np.abs(hidden.mean(axis=0) - 2 / LENGTH).max() < 0.03

    @pytest.mark.parametrize("text", ["k=5", "k=-1", "k=x", "magic", "profile=magic"])
    def test_a_wrong_sampling_is_refused(self, text):
        with pytest.raises((ConfigError, UsageError)):
            Sampling.parse(text, length=LENGTH)

    def test_paired_masks_belong_to_the_sample_not_the_batch(self):
        exists = np.ones((3, 8), bool)
        whole = paired_hidden(["a", "b", "c"], exists, 3, 0)
        assert (paired_hidden(["c", "a"], exists[:2], 3, 0) == whole[[2, 0]]).all()
        assert (whole.sum(axis=1) == 3).all()
        assert (paired_hidden(["a", "b", "c"], exists, 3, 1) != whole).any()

    def test_paired_masks_equal_those_of_masks(self):
        from imputation.masks import paired_uniform

        assert (paired_hidden(["a", "b"], np.ones((2, 8), bool), 3, 4) == paired_uniform(["a", "b"], 8, 3, 4)).all()

    def test_profile_masks_repeat(self):
        exists = np.ones((4, 8), bool)
        assert (profile_hidden("clips-30", exists, 2, 0.4) == profile_hidden("clips-30", exists, 2, 0.4)).all()


class TestBatches:
    def test_every_window_is_read_once_in_an_epoch(self):
        train, _ = parts()
        batches = Batches(train, 16, seed=3)
        rows = np.concatenate([batches.indices(s) for s in range(batches.per_epoch)])
        assert sorted(rows) == list(range(len(train)))

    def test_a_step_reads_the_same_whenever_it_is_asked_for(self):
        train, _ = parts()
        a, b = Batches(train, 16, seed=3), Batches(train, 16, seed=3)
        list(map(a.indices, range(9)))
        assert (a.indices(9) == b.indices(9)).all()
        assert a.rng(9).random() == b.rng(9).random()

    def test_lookahead_and_short_windows_shorten_both_ends(self):
        train, _ = parts()
        batches = Batches(train, 16, seed=3, lookahead=2, short=1.0, min_clips=2)
        exists = batches.existing(np.random.default_rng(0), np.zeros(500, int))
        assert exists[:, 1:3].all()  # at least min_clips, up to the window's last clip
        assert set(exists[:, 3:].sum(axis=1)) == {0, 1, 2} and set(exists[:, :1].sum(axis=1)) == {0, 1}
        assert not (~exists[:, 3] & exists[:, 4]).any()


class TestMAE:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            pytest.param({"sampling": "uniform"}, marks=pytest.mark.slow),
            pytest.param({"overrides": {"residual": "observed_mean"}}, marks=pytest.mark.slow),
        ],
    )
    def test_it_fills_better_than_every_rule(self, tmp_path, changes):
        train, validation = parts()
        steps = {"steps": 120, "epochs": 50, "curriculum_step": 10, "evaluate_every": 60}
        imputer = train_mae(mae_config(**steps, **changes), train, validation, tmp_path)
        found = validation_error(imputer, validation)
        for m in ("video", "audio"):
            assert found[f"mse_{m}"] < 0.8 * min(found[f"{rule}_mse_{m}"] for rule in ("zero", "lerp", "observed_mean"))

    def test_what_is_saved_is_what_was_trained(self, tmp_path):
        train, validation = parts()
        imputer = train_mae(mae_config(steps=5), train, validation, tmp_path)
        assert same(load_imputer(tmp_path), imputer)
        about = json.loads((tmp_path / "imputer.json").read_text())
        assert about["overrides"] == {"dim": 16, "length": LENGTH} and about["steps"] == 5
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert {"lerp_mse_video", "zero_mse_audio", "mse_video"} <= set(log[-1])

    @pytest.mark.parametrize("stop", [1, 3, 4])
    def test_a_stopped_run_goes_on_to_the_same_bits(self, tmp_path, stop):
        train, validation = parts()
        config = mae_config(steps=6, overrides={"log_variance": True}, lookahead=1, short=0.5, min_clips=2)
        whole = train_mae(config, train, validation, tmp_path / "whole")
        with pytest.raises(Interrupted, match=f"stopped after {stop} steps"):
            train_mae(config, train, validation, tmp_path / "cut", progress=StopAt(stop))
        again = resumed(MAETraining, tmp_path / "cut", {})
        assert again == config
        assert same(train_mae(again, train, validation, tmp_path / "cut", resume=True), whole)
        for name in ("imputer.json", "log.jsonl", "config.json"):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_a_finished_run_is_not_overwritten(self, tmp_path):
        train, validation = parts()
        train_mae(mae_config(steps=1), train, validation, tmp_path)
        with pytest.raises(ConfigError, match="already holds a run"):
            train_mae(mae_config(steps=1), train, validation, tmp_path)

    def test_a_resumed_run_cannot_become_another(self, tmp_path):
        train, validation = parts()
        train_mae(mae_config(steps=1), train, validation, tmp_path)
        with pytest.raises(ConfigError, match=r"lr of the run in .* is fixed"):
            resumed(MAETraining, tmp_path, {"lr": 0.5})
        with pytest.raises(DataError, match="holds no run to resume"):
            resumed(MAETraining, tmp_path / "nowhere", {})

    def test_it_may_start_from_given_weights(self, tmp_path):
        train, validation = parts()
        begin = curri_mae_tiny(dim=16, length=LENGTH).model.state_dict()
        config = mae_config(steps=1, lr=1e-12)
        trained = train_mae(config, train, validation, tmp_path, start=begin)
        assert all(torch.allclose(v, begin[k], atol=1e-6) for k, v in trained.model.state_dict().items())

    @pytest.mark.parametrize("changes", [{"lr": 0}, {"epochs": 0}, {"lookahead": -1}, {"batch": 0}])
    def test_a_contradiction_is_refused(self, changes):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            mae_config(**changes)

    def test_the_variance_matches_the_error_on_validation(self, tmp_path):
        train, validation = parts()
        imputer = train_mae(mae_config(steps=60, overrides={"log_variance": True}), train, validation, tmp_path)
        features, presence = validation.standardised(), validation.presence.clone()
        hidden = torch.from_numpy(paired_hidden(validation.names, validation.exists.numpy(), 2, 7))
        with torch.inference_mode():
            out = imputer(features, presence & ~hidden)
        error = (out.features - features).square().mean(-1)[hidden].mean()
        assert 0.5 < float(out.variance[hidden].mean() / error) < 2

    def test_rules_get_a_variance_too(self):
        from imputation.baselines import Lerp

        lerp, (_, validation) = Lerp(), parts()
        fit_variance(lerp, validation)
        assert (lerp.variance.table != 1).any() and lerp.variance.table.isfinite().all()


def head_config(**changes) -> HeadTraining:
    return HeadTraining(**{"overrides": {"hidden": 8}, "steps": 60, "batch": 32, "lr": 1e-2} | changes)


class TestHead:
    @pytest.mark.parametrize("kind", ["linear", "gru", "backoff"])
    def test_a_pristine_head_learns_and_is_kept(self, tmp_path, kind):
        train, validation = parts()
        overrides = {"hidden": 8} if kind == "gru" else {}
        head, _ = train_head(head_config(kind=kind, overrides=overrides), train, validation, tmp_path)
        metrics = json.loads((tmp_path / "head.json").read_text())["metrics"]["validation"]
        assert metrics["val_accuracy"] > 0.9
        assert same(load_head(tmp_path), head)

    def test_a_stopped_run_goes_on_to_the_same_bits(self, tmp_path):
        train, validation = parts()
        imputer = curri_mae_tiny(dim=16, length=LENGTH)
        config = head_config(steps=7, train="both", sampling="all", reconstruction=1.0, consistency=0.5)
        whole = train_head(config, train, validation, tmp_path / "whole", imputer=imputer)
        with pytest.raises(Interrupted):
            train_head(config, train, validation, tmp_path / "cut", imputer=imputer, progress=StopAt(4))
        cut = train_head(config, train, validation, tmp_path / "cut", imputer=imputer, resume=True)
        assert same(whole[0], cut[0]) and same(whole[1], cut[1])

    @pytest.mark.parametrize(("train_what", "moves"), [("head", (True, False)), ("imputer", (False, True))])
    def test_only_what_is_to_be_trained_changes(self, tmp_path, train_what, moves):
        train, validation = parts()
        imputer = curri_mae_tiny(dim=16, length=LENGTH)
        head, _ = train_head(head_config(steps=1), train, validation, tmp_path / "pristine")
        config = head_config(steps=8, train=train_what, sampling="all", consistency=1.0)
        after = train_head(config, train, validation, tmp_path / "x", imputer=imputer, head=head)
        assert (not same(after[0], head), not same(after[1].model, imputer.model)) == moves
        assert (tmp_path / "x" / "head.json").exists() == moves[0]

    def test_consistency_makes_a_frozen_head_agree_with_itself(self, tmp_path):
        train, validation = parts()
        head, _ = train_head(head_config(), train, validation, tmp_path / "pristine")
        fill = curri_mae_tiny(dim=16, length=LENGTH)
        config = head_config(steps=50, train="imputer", sampling="max", task=0.0, consistency=1.0, imputer_lr=5e-3)

        def divergence(imputer: torch.nn.Module) -> float:
            x = validation.standardised()
            hidden = torch.from_numpy(paired_hidden(validation.names, validation.exists.numpy(), 4, 0))
            with torch.inference_mode():
                whole = head(x).log_softmax(-1)
                now = head(imputer(x, ~hidden).features).log_softmax(-1)
            return float(torch.nn.functional.kl_div(now, whole, log_target=True, reduction="batchmean"))

        _, tuned = train_head(config, train, validation, tmp_path / "kl", imputer=fill, head=head)
        assert divergence(tuned) < 0.6 * divergence(fill)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"kind": "magic"}, "magic"),
            ({"train": "magic"}, "magic"),
            ({"train": "imputer"}, "sampling 'none' hides nothing"),
            ({"train": "imputer", "sampling": "all"}, "needs an imputer that can learn"),
            ({"task": 0.0}, "nothing to learn"),
            ({"kind": "backoff", "sampling": "all", "overrides": {}}, "backoff"),
        ],
    )
    def test_a_contradiction_is_refused(self, tmp_path, changes, sentence):
        train, validation = parts()
        with pytest.raises((ConfigError, UsageError), match=sentence):
            train_head(head_config(**changes), train, validation, tmp_path)

    def test_windows_without_labels_are_refused_by_row(self, tmp_path):
        train, validation = parts()
        train.label[5] = -1
        with pytest.raises(DataError, match="row 5 of the training windows has no label"):
            train_head(head_config(), train, validation, tmp_path)


PROGRAM = """
from pathlib import Path
from encoders.training import processes
from tests.test_imputer_training import mae_config, parts
from imputation.train import train_mae
import sys, torch
with processes() as (rank, count):
    assert count == 2
    imputer = train_mae(mae_config(steps=4), *parts(), Path(sys.argv[1]))
    total = torch.cat([p.flatten() for p in imputer.model.parameters()])
    both = [torch.empty_like(total) for _ in range(2)]
    torch.distributed.all_gather(both, total.detach())
    assert torch.equal(*both), "processes drifted apart"
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "program.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "imputer.safetensors").exists()
