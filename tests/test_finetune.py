"""Fine-tuning: exact resume, Ctrl-C, broken losses, accumulation, EMA, what is kept, and what is refused."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from encoders import finetune as loop
from encoders.classifier import build_classifier, load_encoder, start_from
from encoders.errors import ConfigError, DataError, UsageError
from encoders.finetune import finetune
from encoders.recipes import resumed
from encoders.training import Interrupted, NotFinite
from runtime.cli import run
from tests.checkpoints import same
from tests.moving import SMALL, moving, small

MIXED = {"mixup": 0.3, "smoothing": 0.1, "stochastic_depth": 0.3, "ema": 0.9, "augment.rand_layers": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return moving(tmp_path_factory.mktemp("moving"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Everything that draws: mixup, stochastic depth, RandAugment, and a running mean."""
    return finetune(small(data, **MIXED), tmp_path_factory.mktemp("runs") / "whole")


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in rows if "lr" in r]


@pytest.mark.parametrize("stop", [(0, 1), (1, 1)])
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(data, whole, tmp_path, stop):
    def interrupt(epoch, done, steps, loss):
        if (epoch, done) == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="all is saved, go on with --resume"):
        finetune(small(data, **MIXED), tmp_path / "run", progress=interrupt)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    torch.manual_seed(4321)  # whatever happened in between
    finetune(resumed(tmp_path / "run"), tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")
    assert losses(whole) == losses(tmp_path / "run")
    assert (whole / "metrics.json").read_text() == (tmp_path / "run" / "metrics.json").read_text()


def test_the_running_mean_is_what_is_kept(whole):
    saved = load_file(next(whole.glob("checkpoint-*.safetensors")))
    kept = load_file(whole / "model.safetensors")
    assert all(torch.equal(kept[k], saved[f"ema.model.{k}"]) for k in kept)
    assert any(not torch.equal(kept[k], saved[f"model.{k}"]) for k in kept)


def test_a_finished_run_leaves_an_encoder_its_classes_and_its_metrics(whole):
    config = json.loads((whole / "config.json").read_text())
    assert (config["recipe"], config["preset"]) == ("vivit_kinetics400", "vivit_tiny_fe")
    assert json.loads((whole / "classes.json").read_text())["classes"] == ["left", "right"]
    metrics = json.loads((whole / "metrics.json").read_text())
    assert (metrics["split"], metrics["views"], metrics["samples"], metrics["unreadable"]) == (["val"], "1x1", 4, 0)
    overrides = {k.removeprefix("model."): v for k, v in SMALL.items()}
    encoder = load_encoder("vivit_tiny_fe", overrides, load_file(whole / "video.safetensors"))
    assert encoder.encode(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)).shape == (2, 16)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(data, tmp_path):
    plain = {"lr": 0.01, "clip": 0.0, "augment.colour": 0.0}
    one, parts = (finetune(small(data, accumulate=n, **plain), tmp_path / str(n)) for n in (1, 2))
    a, b = load_file(one / "model.safetensors"), load_file(parts / "model.safetensors")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4, msg=name)


def test_steps_may_end_in_the_middle_of_an_epoch(data, tmp_path):
    out = finetune(small(data, steps=3, save_every=99), tmp_path / "run")
    assert [step for step, _ in losses(out)] == [1, 2, 3]
    assert (out / "checkpoint-0001-00000003.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["vivit_tiny_fe", "r2plus1d_tiny"])
def test_motion_is_learned(data, tmp_path, preset):
    """Left or right cannot be seen in one frame; an encoder without a head of its own gets a linear one."""
    still = {"augment.mirror": 0.0, "augment.colour": 0.0, "augment.grayscale": 0.0, "augment.scale": (1.0, 1.0)}
    larger = {"model.dim": 48, "model.mlp_dim": 96, "model.tubelet": (2, 8, 8)} if preset != "r2plus1d_tiny" else {}
    few = {"optimizer": "adamw", "lr": 3e-3, "epochs": 60, "cache": "memory", "eval_every": 60}
    config = small(data, preset, **few, **still, **larger)
    out = finetune(config, tmp_path / "run")
    assert json.loads((out / "metrics.json").read_text())["top1"] >= 0.75
    assert losses(out)[-1][1] < 0.2


def test_a_loss_that_becomes_nan_stops_before_it_spreads(data, tmp_path):
    def poison(epoch, done, steps, loss):
        if (epoch, done) == (1, 1):
            with torch.no_grad():
                next(iter(alive["run"].model.parameters())).fill_(torch.nan)

    alive = {}
    step = loop.train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFinite, match="loss became nan in epoch 1, step 3"):
        patch.setattr(loop, "train_step", lambda run, *rest: step(alive.setdefault("run", run), *rest))
        finetune(small(data), tmp_path / "run", progress=poison)
    saved = load_file(next((tmp_path / "run").glob("checkpoint-*.safetensors")))
    assert all(torch.isfinite(x).all() for x in saved.values() if x.is_floating_point())


# --- where it starts from ---


def test_a_run_starts_from_another_with_its_head_only_where_the_classes_agree(whole):
    overrides = {k.removeprefix("model."): v for k, v in SMALL.items()}
    weights = load_file(whole / "model.safetensors")
    same_task, other_task = (build_classifier("vivit_tiny_fe", k, overrides) for k in (2, 5))
    assert start_from(same_task, weights, "vivit_tiny_fe", overrides)
    assert all(torch.equal(same_task.state_dict()[k], weights[k]) for k in weights)
    assert not start_from(other_task, weights, "vivit_tiny_fe", overrides)
    encoder = load_file(whole / "video.safetensors")
    assert all(torch.equal(other_task.state_dict()[k], encoder[k]) for k in encoder)
    assert not start_from(build_classifier("vivit_tiny_fe", 2, overrides), encoder, "vivit_tiny_fe", overrides)


def test_weights_of_another_preset_are_refused(data, whole, tmp_path):
    with pytest.raises(DataError, match=r"the weights to start from .*; use weights of the same preset"):
        finetune(small(data, preset="r2plus1d_tiny"), tmp_path / "a", init=whole)
    with pytest.raises(DataError, match=r"the weights to start from: .* is \(.*\), the model needs"):
        finetune(small(data, **{"model.dim": 32}), tmp_path / "b", init=whole)
    with pytest.raises(DataError, match=r"model.safetensors cannot be read"):
        finetune(small(data), tmp_path / "c", init=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- what is refused before anything is computed ---


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"batch": 9}, ConfigError, "batch 9 is more than the 8 samples of the training split"),
        ({"accumulate": 3}, ConfigError, "batch 4 cannot be shared by 1 processes in 3 parts each"),
        ({"model.frames": 5}, ConfigError, "5 frames cannot be cut into patches of 2"),
        ({"model.size": 33}, ConfigError, "33 rows cannot be cut into patches of 16"),
        ({"model.classes": 4}, ConfigError, "classes 4 cannot be set; the head follows the dataset's classes"),
        ({"warmup": 9}, ConfigError, "the warm-up of 18 steps takes all 4; shorten it or train longer"),
        ({"validation_splits": ("train",)}, ConfigError, "split train both trains and validates"),
        ({"train_splits": ("test",)}, DataError, "has no sample of split test; it has train, val"),
        ({"kind": "noun_verb"}, UsageError, "has no head 'noun'"),
        ({"views": "4x2"}, ConfigError, "views 4x2 cannot be taken"),
        ({"views": "four"}, UsageError, "views 'four' is not CLIPSxCROPS"),
        ({"smoothing": 1.0}, ConfigError, r"smoothing 1.0 must lie in \[0, 1\)"),
        ({"box": (0.5, 0.5, 0.7, 0.2)}, ConfigError, "leaves the picture"),
        ({"short_side": 16}, ConfigError, "short_side 16 is less than the size 32"),
        ({"cache": "memory", "cache_gb": 1e-6}, ConfigError, "8 samples decoded would take about 0.0 GiB"),
    ],
)
def test_contradictions_stop_before_anything_is_trained(data, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        finetune(small(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_head_is_named(data, tmp_path):
    folder = Path(data.partition(":")[2])
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "train").symlink_to(folder / "train")
    odd = tree / "val" / "upwards"
    odd.mkdir(parents=True)
    (odd / "valval00000_000000_000010.mp4").symlink_to(next((folder / "val" / "left").iterdir()))
    task = loop.open_splits(small(data))[0]
    with pytest.raises(DataError, match="has the label 'upwards', which is none of the head's 2 classes"):
        for sample in loop.open_splits(small(f"kinetics400:{tree}"))[2].samples:
            task.places(sample)


def test_a_folder_that_holds_a_run_is_not_overwritten_and_a_resumed_run_may_not_change(data, whole):
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        finetune(small(data), whole)
    with pytest.raises(ConfigError, match=r"lr of the run in .* is fixed"):
        resumed(whole, lr=0.5)
    with pytest.raises(ConfigError, match=r"overrides of the run in .* is fixed"):
        resumed(whole, **{"model.dim": 8})
    assert resumed(whole, workers=1).workers == 1


# --- the command ---


def legato(*arguments):
    return run(["train", *map(str, arguments)])


def test_the_command_trains_by_the_preset_s_name(data, tmp_path, capsys):
    few = ["--epochs", 1, "--batch", 4, "--workers", 0, "--views", "1x1", "--set", "warmup=0.5", "--set", "stride=1"]
    sizes = [x for k, v in SMALL.items() for x in ("--set", f"{k}={v}")]
    out = tmp_path / "run"
    assert legato("vivit_tiny_fe", "--data", data, "--out", out, "--device", "cpu", *few, *sizes) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"trained: {out / 'video.safetensors'}")
    assert "FLOP in all" in said.err
    assert legato("vivit_tiny", "--out", out, "--resume") == 2
    assert "holds a run of vivit_tiny_fe, not of vivit_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["vivit_tiny_f"], 2, "nothing to train is called 'vivit_tiny_f'; did you mean vivit_tiny_fe"),
        (["vivit_tiny"], 2, "no data to train on; give --data"),
        (["vivit_tiny", "--data", "a", "--data", "b"], 2, "learns one task but 2 datasets are given; use polyvit"),
        (["vivit_tiny", "--data", "kinetics40:x"], 2, "did you mean kinetics400"),
        (["vivit_tiny", "--data", "kinetics400:nowhere"], 1, "dataset folder nowhere does not exist"),
        (["vivit_tiny", "--data", "ssv2:x", "--recipe", "vivit_ssv"], 2, "did you mean vivit_ssv2"),
        (["vivit_tiny", "--data", "ssv2:x", "--set", "lr=fast"], 2, "lr='fast' is not of type float"),
        (["vivit_tiny", "--data", "ssv2:x", "--set", "model.dept=3"], 2, "did you mean depth"),
        (["conv2d_tiny", "--data", "grid_digits:x"], 1, "dataset folder x does not exist"),
        (["vivit_tiny", "--resume"], 1, "holds no run to resume"),
    ],
)
def test_the_command_fails_in_one_sentence(tmp_path, capsys, arguments, code, says):
    assert legato(*arguments, "--out", tmp_path / "run") == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("legato: ")
    assert says in last
    assert not (tmp_path / "run").exists()
