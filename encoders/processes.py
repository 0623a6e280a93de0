"""Several processes training as one: the group that torchrun describes, and what they tell each other.

A loop calls these whether or not it shares its work; alone they do nothing.
"""

import gc
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

__all__ = [
    "any_process",
    "average_buffers",
    "average_gradients",
    "gather_rows",
    "mean_over_processes",
    "processes",
    "quiet_worker",
    "wait_for_all",
    "world",
]


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Join the group that torchrun describes in the environment, if any; gives (rank, number of processes)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        yield world()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield world()
        distributed.barrier()  # a process that leaves while another still sends to it can die of it
    finally:
        distributed.destroy_process_group()
        # What is left in reference cycles may hold threads of the group; at the interpreter's end that aborts.
        gc.collect()


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """Every process's rows, one after another in order of rank; no gradient flows through. Equal shapes only."""
    _, count = world()
    if count == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(count)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same bits on each."""
    _, count = world()
    if count > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
        value = value / count
    return value


def any_process(flag: bool) -> bool:
    """True on all processes if it is on one."""
    if world()[1] == 1:
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    return bool(mean_over_processes(torch.tensor(float(flag), device=device)) > 0)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over all processes, in one message."""
    if world()[1] == 1:
        return
    owners = [p for p in parameters if p.grad is not None]
    flat = mean_over_processes(torch.cat([p.grad.flatten() for p in owners if p.grad is not None]))
    for p, grad in zip(owners, flat.split([p.numel() for p in owners]), strict=True):
        assert p.grad is not None
        p.grad.copy_(grad.view_as(p))


def average_buffers(module: nn.Module) -> None:
    """Running statistics are means over the processes: what is saved belongs to all of them."""
    if world()[1] > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean_over_processes(buffer))


def wait_for_all() -> None:
    """Nobody goes on before everybody is here."""
    any_process(False)


def quiet_worker(_: int) -> None:
    """Ctrl-C is the main process's affair; and one thread each is enough to decode."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
