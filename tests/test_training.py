"""The small functions of training: schedules, groups, checkpoints that survive anything, logs that tell once."""

import json
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from encoders.errors import ConfigError, DataError, MissingExtraError, OutputError
from encoders.training import (
    Checkpoint,
    Logs,
    NotFinite,
    check_finite,
    choose_device,
    constant,
    cosine,
    epoch_order,
    load_checkpoint,
    load_weights,
    multistep,
    parameter_groups,
    processes,
    restore,
    save_checkpoint,
    save_weights,
    snapshot,
    stop_requests,
    writing,
)


def test_schedules_have_their_shapes():
    assert [constant()(x) for x in (0, 0.5, 1)] == [1, 1, 1]
    step = multistep([0.5, 0.75], 0.1)
    assert [step(x) for x in (0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    wave = cosine(warmup=0.2, floor=0.1)
    assert [wave(x) for x in (0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    with pytest.raises(ConfigError, match=r"warmup 1.5 must lie in \[0, 1\)"):
        cosine(warmup=1.5)


def test_biases_and_norms_may_be_spared_from_decay():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    everything = parameter_groups([net], 0.1)
    assert len(everything) == 1
    assert len(everything[0]["params"]) == 4
    decayed, spared = parameter_groups([net], 0.1, decay_vectors=False)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert (len(spared["params"]), spared["weight_decay"]) == (3, 0.0)


@given(st.integers(0, 99), st.integers(0, 9), st.integers(1, 40), st.integers(1, 3))
def test_an_epoch_reads_every_sample_as_often_as_it_should(seed, epoch, size, repeats):
    order = epoch_order(seed, epoch, size, repeats)
    assert np.bincount(order, minlength=size).tolist() == [repeats] * size
    assert np.array_equal(order, epoch_order(seed, epoch, size, repeats))


def test_epochs_differ_in_order():
    assert not np.array_equal(epoch_order(0, 0, 50), epoch_order(0, 1, 50))


def test_a_loss_that_is_no_number_is_one_sentence():
    assert check_finite(torch.tensor(1.5), epoch=0, step=0) == 1.5
    with pytest.raises(NotFinite, match="loss became nan in epoch 2, step 31"):
        check_finite(torch.tensor(math.nan), epoch=2, step=31)


# --- checkpoints ---


def trained(seed, steps):
    """A small net after some steps; gives everything that training depends on."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(seed)
    advance(net, optimizer, draws, steps)
    return net, optimizer, draws


def advance(net, optimizer, draws, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 3, generator=draws)).square().mean().backward()
        optimizer.step()


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path):
    net, optimizer, draws = trained(0, 3)
    save_checkpoint(tmp_path, snapshot({"net": net}, optimizer, {"draws": draws}, {"epoch": 1, "step": 3}))
    advance(net, optimizer, draws, 4)
    torch.manual_seed(99)
    other, its_optimizer, its_draws = trained(5, 1)
    restore(load_checkpoint(tmp_path), {"net": other}, its_optimizer, {"draws": its_draws})
    advance(other, its_optimizer, its_draws, 4)
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_only_the_newest_checkpoint_stays(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, Checkpoint({"x": torch.tensor([step])}, {"epoch": 0, "step": step}))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-0000-00000002.safetensors",
        "checkpoint.json",
    ]
    assert load_checkpoint(tmp_path).tensors["x"].item() == 2


def test_a_save_that_fails_leaves_the_older_checkpoint_whole(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, Checkpoint({"x": torch.tensor([1])}, {"epoch": 0, "step": 1}))

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="could not be written \\(No space left on device\\)"):
        save_checkpoint(tmp_path, Checkpoint({"x": torch.tensor([2])}, {"epoch": 0, "step": 2}))
    assert load_checkpoint(tmp_path).tensors["x"].item() == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "deep" / "a.txt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_altered_or_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no checkpoint to resume"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, Checkpoint({"x": torch.zeros(100)}, {"epoch": 0, "step": 1}))
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"is not the file that .* describes"):
        load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match="holds no checkpoint to resume"):
        load_checkpoint(tmp_path)


def test_weights_of_another_model_are_named(tmp_path):
    net = nn.Linear(3, 4)
    with pytest.raises(DataError, match="the file lacks bias; use weights of the same preset"):
        load_weights(net, {"weight": net.weight}, what="the file")
    with pytest.raises(DataError, match="the file has an unknown extra"):
        load_weights(net, {**net.state_dict(), "extra": net.weight}, what="the file")
    with pytest.raises(DataError, match=r"weight is \(5, 4\), the model needs \(4, 3\)"):
        load_weights(net, nn.Linear(4, 5).state_dict(), what="the file")


def test_weights_keep_the_user_s_file_mode(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"x": torch.zeros(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- logs ---


def test_a_resumed_log_tells_every_step_once(tmp_path):
    with Logs(tmp_path) as logs:
        for step in (1, 2, 3):
            logs.write(step, loss=1.0 * step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with Logs(tmp_path, from_step=2) as logs:
        logs.write(3, loss=30.0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'legato\[train\]', or leave out --tensorboard"):
        Logs(tmp_path, tensorboard=True)


@pytest.mark.slow
def test_tensorboard_events_lie_beside_the_log_when_asked_for(tmp_path):
    pytest.importorskip("tensorboard")
    with Logs(tmp_path, tensorboard=True) as logs:
        logs.write(1, loss=2.0)
    assert next((tmp_path / "tensorboard").iterdir()).stat().st_size > 0
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 2.0}


# --- the world around ---


def test_ctrl_c_leaves_a_note_and_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        with pytest.raises(KeyboardInterrupt):  # the second time we mean it
            os.kill(os.getpid(), signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_process_alone_is_the_whole_world():
    with processes() as (rank, count):
        assert (rank, count) == (0, 1)


def test_a_device_that_is_not_there_is_one_sentence():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"device 'kuda' cannot be used .* use --device cpu"):
        choose_device("kuda")
