"""Checkpoints: everything that training goes on from, as safetensors with a JSON beside it.

Whatever interrupts a save, the older state or the newer is whole; a resumed run on a CPU repeats the uninterrupted
one bit for bit.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from encoders.errors import DataError, OutputError

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "load_weights",
    "restore",
    "save_checkpoint",
    "save_weights",
    "snapshot",
    "write_json",
    "writing",
]


@dataclass
class Checkpoint:
    """A moment of training: tensors by dotted name, plain values beside them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below ``name.``, without it."""
        return {k[len(name) + 1 :]: v for k, v in self.tensors.items() if k.startswith(name + ".")}


def snapshot(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
    values: Mapping[str, Any],
) -> Checkpoint:
    """Everything that training from here on depends on."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    state = optimizer.state_dict()
    for index, slots in state["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": torch.as_tensor(v) for slot, v in slots.items()}
    tensors |= {f"generator.{name}": g.get_state() for name, g in generators.items()}
    tensors["generator.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    return Checkpoint(tensors, {**values, "groups": state["param_groups"]})


def restore(
    checkpoint: Checkpoint,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> None:
    """Put a snapshot back; raises DataError where it is of another model."""
    for name, module in modules.items():
        load_weights(module, checkpoint.part(name), what=f"{name} of the checkpoint")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.part("optimizer").items():
        index, _, slot = key.partition(".")
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": checkpoint.values["groups"]})
    for name, generator in generators.items():
        generator.set_state(checkpoint.tensors[f"generator.{name}"])
    torch.set_rng_state(checkpoint.tensors["generator.torch"])
    if torch.cuda.is_available() and "generator.cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["generator.cuda"])


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Strict loading; raises DataError naming the first key that is missing, unknown or of another shape."""
    own = module.state_dict()
    for key in sorted(own.keys() ^ weights.keys()):
        kind = "lacks" if key in own else "has an unknown"
        raise DataError(f"{what} {kind} {key}; use weights of the same preset and overrides")
    for key, value in weights.items():
        if own[key].shape != value.shape:
            raise DataError(
                f"{what}: {key} is {tuple(value.shape)}, the model needs {tuple(own[key].shape)}; "
                "use weights of the same preset and overrides"
            )
    module.load_state_dict(weights)


def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save_file

    with writing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors writes for its owner only; we keep the user's umask
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}, partial, dict(metadata or {}))
        partial.chmod(mode)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint.json`` and the tensors it names; whatever interrupts this, the older pair or the new is whole.

    Tensors go to a file of their own name first, then the JSON that points at them replaces the old one in one
    step, then older tensors are removed.
    """
    name = "checkpoint-{epoch:04d}-{step:08d}.safetensors".format(**checkpoint.values)
    save_weights(folder / name, checkpoint.tensors)
    values = {**checkpoint.values, "tensors": name, "sha256": _sha256(folder / name)}
    write_json(folder / "checkpoint.json", values)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the pair back; raises DataError when it is missing, altered or cut."""
    from safetensors.torch import load_file

    path = folder / "checkpoint.json"
    try:
        values = json.loads(path.read_text())
        tensors_path = folder / values["tensors"]
        if _sha256(tensors_path) != values["sha256"]:
            raise DataError(f"{tensors_path} is not the file that {path} describes; restore it or train anew")
        return Checkpoint(load_file(tensors_path), values)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder} holds no checkpoint to resume ({_why(error)}); name a run that saved one") from None


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write that becomes ``path`` only when the block ends well; raises OutputError when it cannot."""
    partial = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        why = getattr(error, "strerror", None) or str(error).split("I/O error: ")[-1].split(" (os error")[0]
        if getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTDIR):
            why = "a file is where a folder is needed"
        raise OutputError(f"{path} could not be written ({why}); free space or choose another --out") from None
    finally:
        with suppress(OSError):  # where its folder could not be, neither is it
            partial.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values atomically, readable by people."""
    with writing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")


def _why(error: Exception) -> str:
    """Half a sentence, without Python's numbers and quotes."""
    return getattr(error, "strerror", None) or f"it is damaged: {error}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
