"""A peer in its own environment as an imputer in ours: asked over a pipe, it fills any windows under any masks.

With it a peer stands in `imputation.study` beside our fills: ``join`` adds arms that train it on each fold and tune
heads on what it fills. Where PyPOTS is not at hand, ``bench.peers.prefilled`` answers for it.
"""

import os
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from encoders.errors import DataError, MissingExtraError
from imputation.features import FeatureSet
from imputation.imputer import Filled, checked
from imputation.study.recipes import ARMS, FILLS, HEADS, Arm, Fill, Head
from imputation.study.workshop import FITTED

__all__ = ["Remote", "fit", "join", "pypots_python"]

ROOT = Path(__file__).parents[2]
NAMES = {"saits": "SAITS", "brits": "BRITS", "gpvae": "GP-VAE", "csdi": "CSDI"}
MOST = 2**36  # bytes of an answer
SLOW = ("csdi",)  # to fill: fifty passes for every sample; no head is tuned on what it fills


def pypots_python() -> Path:
    """The interpreter of PyPOTS's environment. Raises MissingExtraError."""
    python = Path(os.environ.get("PYPOTS_PYTHON") or ROOT / "bench/peers/pypots/.venv/bin/python")
    if not python.exists():
        raise MissingExtraError(
            f"{python} does not exist; make PyPOTS's environment with sh bench/peers/pypots/build FOLDER "
            "and set PYPOTS_PYTHON to its bin/python"
        )
    return python


class Remote(nn.Module):
    """The peer in ``folder``, run by ``command`` with the folder and ``options`` behind it; ends with the object.

    Raises DataError, with the peer's own sentence, where it cannot be had or asked.
    """

    here: Tensor

    def __init__(self, command: Sequence[str], folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.folder = folder
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [*command, str(folder.absolute()), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process)
        self.register_buffer("here", torch.zeros(1), persistent=True)  # tells callers the device
        self.rung = self._read().decode()

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled."""
        present, exists = checked(features, presence, exists)
        known = torch.where(present.unsqueeze(-1), features, 0).float()
        asked = {"features": known, "presence": present, "exists": exists}
        self._write(save({name: x.detach().cpu().contiguous() for name, x in asked.items()}))
        found = {name: x.to(features.device) for name, x in load(self._read()).items()}
        keep = (present | ~exists.unsqueeze(-1)).unsqueeze(-1)
        return Filled(torch.where(keep, features, found["features"].to(features)), found["variance"], self.rung)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """(B,) bool: anything at all was observed."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        return present.flatten(1).any(dim=1)

    def __deepcopy__(self, memo: object) -> "Remote":
        """Itself: there is one process, and nothing in it learns."""
        return self

    def close(self) -> None:
        """Let the peer go."""
        self._end()

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((len(content) + 1).to_bytes(8, "little") + b"\0" + content)
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._gone() from None

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        length = int.from_bytes(self._process.stdout.read(8), "little")
        if length > MOST:
            self.close()
            raise DataError(f"the peer in {self.folder} cannot be asked: what it printed first is no answer")
        content = self._process.stdout.read(length)
        if not content or len(content) < length:
            raise self._gone()
        if content[0]:
            raise DataError(content[1:].decode())
        return content[1:]

    def _gone(self) -> DataError:
        self.close()
        return DataError(
            f"the peer in {self.folder} ended by itself ({self._process.returncode}); see what it said above"
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # it is gone already
                stream.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def fit(
    peer: str,
    train: FeatureSet,
    validation: FeatureSet,
    out: Path,
    seed: int,
    *,
    command: Sequence[str],
    training: Mapping[str, int],
) -> Remote:
    """The peer trained on ``train``, its variance fitted on ``validation``, kept in ``out`` and not made again.

    ``training``: steps, batch, components. What it learned from is not kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    windows = out / "windows.safetensors"
    _joined(train, validation).save(windows)
    options = [f"--{name}={value}" for name, value in {**training, "seed": seed}.items()]
    try:
        return Remote(command, out, ["--peer", peer, "--train", str(windows.absolute()), *options])
    finally:
        windows.unlink()


def _joined(train: FeatureSet, validation: FeatureSet) -> FeatureSet:
    """Both as one set with the standardisation of the first."""
    parts = (train, validation)
    tensors: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in ("presence", "exists")}
    both = FeatureSet.of(
        torch.cat([p.features for p in parts]), torch.cat([p.label for p in parts]), train.labels,
        names=train.names + validation.names, speaker=train.speaker + validation.speaker,
        split=["train"] * len(train) + ["validation"] * len(validation), notes=train.notes, **tensors,
    )  # fmt: skip
    return replace(both, standardiser=train.standardiser)


def join(
    peers: Sequence[str] = ("saits", "brits", "gpvae"),
    *,
    python: Path | None = None,
    steps: int,
    batch: int,
    components: int = 32,
) -> list[str]:
    """Add the peers to the study's fills and arms; gives the arms' names. Raises MissingExtraError without PyPOTS.

    Each comes with the head on whole windows, and but for the slow ones with a head tuned on what it fills.
    """
    command = [str(python or pypots_python()), "-m", "bench.peers.pypots.serve"]
    training = {"steps": steps, "batch": batch, "components": components}
    added = {}
    for peer in peers:
        FITTED[peer] = partial(fit, peer, command=command, training=training)
        FILLS[peer] = Fill(kind=peer)
        added[NAMES[peer]] = Arm("pristine", peer, says=f"{NAMES[peer]} of PyPOTS")
        if peer not in SLOW:
            HEADS[f"{peer}_all"] = Head("all", peer)
            added[f"{NAMES[peer]}-ft-all"] = Arm(f"{peer}_all", peer, says=f"{NAMES[peer]} of PyPOTS, head tuned on it")
    ARMS.update(added)
    return list(added)
