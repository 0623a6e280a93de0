"""Fine-tuning and co-training shared by two processes, against one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from encoders.finetune import finetune
from encoders.processes import processes
from tests.moving import moving, small


def _train(data: str, out: Path) -> None:
    plain = {"clip_where": "mean", "clip": 0.5, "ema": 0.9}
    finetune(small(data, **plain), out / "mean")
    finetune(small(data, **{**plain, "clip_where": "process", "mixup": 0.2, "stochastic_depth": 0.2}), out / "process")


def _share(rank: int, port: int, data: str, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with processes():
        _train(data, out if rank == 0 else out.with_name("elsewhere"))


@pytest.mark.slow
def test_two_processes_train_what_one_trains_on_the_whole_batch(tmp_path):
    """Where the mean over processes is clipped; clipped apart, or mixed apart, they are another batch."""
    data = moving(tmp_path / "data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_share, args=(port, data, tmp_path / "two"), nprocs=2, start_method="spawn")
    _train(data, tmp_path / "one")
    one, two = (load_file(tmp_path / n / "mean" / "model.safetensors") for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4, msg=name)
    assert (tmp_path / "two" / "process" / "metrics.json").exists()
    assert not list((tmp_path / "elsewhere").rglob("*.jsonl"))  # one process writes


@pytest.mark.slow
def test_torchrun_trains_and_resumes(tmp_path):
    data, out = moving(tmp_path / "data"), tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "runtime"]
    few = ["--batch", "4", "--workers", "0", "--views", "1x1", "--set", "warmup=0.5", "--set", "stride=1"]
    tiny = ["--set", "model.dim=16", "--set", "model.heads=2", "--set", "model.depth=1", "--set", "model.frames=4"]
    start = ["train", "vivit_tiny", "--data", data, "--device", "cpu", "--out", str(out), "--epochs", "1", *few, *tiny]
    env, quiet = {**os.environ, "OMP_NUM_THREADS": "1"}, {"capture_output": True, "text": True}
    done = subprocess.run([*torchrun, *start], env=env, **quiet)
    assert (done.returncode, done.stdout.count("trained: ")) == (0, 1), done.stderr
    refused = subprocess.run([*torchrun, *start, "--set", "seed=1"], env=env, **quiet)
    assert "already holds a run" in refused.stderr
