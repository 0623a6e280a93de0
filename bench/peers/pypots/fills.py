"""PyPOTS's imputers, trained and asked as ours are: ``train`` and ``load``.

They see the same standardised training windows in the same batches, with the same places hidden, for as many steps:
batches and masks are those that ``imputation.train.train_mae`` draws from the same seed. Their own loops count epochs
and hide single values, so the loop is ours, around their networks, their losses and their optimizer (Adam, 1e-3).

These networks know no positions that do not exist and no windows of another length: such positions are to them hidden
places, which nobody asks for. A run's folder holds ``config.json``, ``log.jsonl``, a checkpoint, and at the end
``peer.json`` and ``peer.safetensors``.

Shape legend: B batch, N position, L the network's length, M modality, D width, K column.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bench.peers.pypots.columns import Columns
from bench.peers.pypots.networks import NETWORKS, Peer, installed
from encoders.errors import ConfigError, DataError
from encoders.settings import from_dict, override, pick, to_dict
from encoders.training import check_finite, load_weights, save_weights, seed_everything, stop_requests, write_json
from imputation.features import FeatureSet
from imputation.imputer import Filled, blend, checked
from imputation.run import Batches, Progress, Run, positive
from imputation.sampling import Sampling
from imputation.train import fit_variance
from imputation.variance import VarianceTable

__all__ = ["PEERS", "PeerImputer", "PeerTraining", "load", "train", "trained"]

PEERS = tuple(NETWORKS)
MOST_COLUMNS = {"csdi": 128}  # it looks at every pair of columns: a step takes half a minute and more beyond


@dataclass(frozen=True, kw_only=True)
class PeerTraining:
    """A whole run, beside the peer's own sizes."""

    peer: str
    steps: int  # optimizer steps, each on a masked batch
    batch: int = 64
    seed: int = 0
    components: int = 32  # principal components of each modality; 0: all features as they are
    sampling: str = "uniform"  # see imputation.sampling
    lr: float = 1e-3
    sizes: Mapping[str, Any] = field(default_factory=dict)  # of the peer; see bench.peers.pypots.networks
    log_every: int = 20
    save_every: int = 200

    def __post_init__(self) -> None:
        pick(NETWORKS, self.peer, "peer")
        positive(self, "steps", "batch", "lr", "log_every", "save_every")


class PeerImputer(nn.Module):
    """A peer behind the contract of imputers; its variance is a table fitted on validation windows, as ours is."""

    def __init__(self, name: str, network: Peer, columns: Columns, length: int) -> None:
        super().__init__()
        self.rung, self.network, self.columns, self.length = name, network, columns, length
        self.variance = VarianceTable()

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled. Raises DataError."""
        present, exists = checked(features, presence, exists)
        self._check(features)
        table, seen = self.table(features, present)
        short = self.length - features.shape[1]
        padded = (nn.functional.pad(x, (0, 0, 0, short)) for x in (table, seen))
        guess = self.columns.inverse(self.network.fill(*padded)[:, : features.shape[1]])
        return Filled(blend(features, guess, present, exists), self.variance(present, exists), self.rung)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """(B,) bool: anything at all was observed."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        return present.flatten(1).any(dim=1)

    def table(self, features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Columns (B, N, K) with 0 where nothing is believed, and which those are, in numbers."""
        seen = self.columns.spread(present)
        clean = torch.where(present.unsqueeze(-1), features, 0).float()
        return self.columns(clean) * seen, seen

    def _check(self, features: Tensor) -> None:
        length, width = features.shape[1], features.shape[3]
        if length > self.length or width != self.columns.width:
            raise DataError(
                f"features have {length} positions of width {width}; this {self.rung} was trained on {self.length} of "
                f"width {self.columns.width}"
            )


def train(
    name: str,
    train: FeatureSet,
    *,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    out: Path,
    validation: FeatureSet | None = None,
    components: int = 32,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> PeerImputer:
    """Train the peer called ``name`` on standardised windows; gives the imputer, in eval mode, saved in ``out``.

    ``validation``: where its variance is fitted (else 1 everywhere). ``options``: other fields of PeerTraining.
    ``resume`` goes on after an interruption. Raises ConfigError, DataError, MissingExtraError.
    """
    config = PeerTraining(peer=name, steps=steps, batch=batch, seed=seed, components=components, **options)
    seed_everything(seed)
    batches = Batches(train, batch, seed)
    imputer = new(config, Columns.fit(batches.features, batches.presence, components), train.length)
    sampling = Sampling.parse(config.sampling, length=train.length,
                              clip_seconds=float(train.notes.get("clip_seconds", 0.4)))  # fmt: skip
    optimizer = torch.optim.Adam(imputer.network.parameters(), lr=config.lr)
    run = Run(out, config, {"network": imputer.network}, optimizer, resume=resume, tensorboard=False)
    imputer.train()
    with run, stop_requests() as stop_requested:
        while run.step < steps:
            epoch = run.step * sampling.epochs // steps  # of a curriculum
            loss = _step(imputer, optimizer, batches, sampling, run.step, epoch)
            run.step += 1
            if run.step % config.log_every == 0 or run.step == steps:
                run.log(loss=loss)
            if progress is not None:
                progress(run.step, steps, loss)
            if run.step % config.save_every == 0 or run.step == steps:
                run.save()
            run.stop_if(stop_requested())
    imputer.eval()
    if validation is not None:
        fit_variance(imputer, validation, draws=1)
    save(out, imputer, config)
    return imputer


def new(config: PeerTraining, columns: Columns, length: int) -> PeerImputer:
    """An untrained peer. Raises ConfigError where it could not be trained in reasonable time."""
    most = MOST_COLUMNS.get(config.peer, columns.count)
    if columns.count > most:
        raise ConfigError(
            f"{columns.count} columns are too many for {config.peer}, which looks at every pair of them; "
            f"use components {most // columns.modalities} or fewer"
        )
    made_by, sizes = NETWORKS[config.peer]
    network = made_by(override(sizes(), config.sizes), length, columns.count)
    return PeerImputer(config.peer, network, columns, length)


def _step(
    imputer: PeerImputer, optimizer: torch.optim.Optimizer, batches: Batches, sampling: Sampling, step: int, epoch: int
) -> float:
    """One update on the rows and masks that train_mae would take."""
    rows, rng = batches.indices(step), batches.rng(step)
    exists = batches.existing(rng, rows)
    hidden = batches.to_tensor(sampling.draw(rng, epoch, exists))
    index = batches.to_tensor(rows)
    known = batches.presence[index] & batches.to_tensor(exists).unsqueeze(-1)
    table, _ = imputer.table(batches.features[index], known)
    seen, asked = imputer.columns.spread(known & ~hidden), imputer.columns.spread(known & hidden)
    loss = imputer.network.loss(table, seen, asked)
    value = check_finite(loss, epoch=epoch, step=step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value


def trained(
    peer: str,
    data: FeatureSet,
    out: Path,
    *,
    splits: tuple[str, str] = ("train", "validation"),
    sizes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **asked: Any,
) -> PeerImputer:
    """The peer as it lies in ``out``, or trained now on the first of ``splits``, from where it was stopped.

    Its variance is fitted on the second, if the data have it. ``asked``: steps, batch, seed, components. Raises
    ConfigError where the one that is there was trained otherwise.
    """
    wanted = PeerTraining(peer=peer, **asked, sizes=sizes or {})
    if (out / "peer.json").exists():
        there = from_dict(PeerTraining, _about(out)["training"])
        for name in ("peer", *asked, "sizes"):
            if getattr(there, name) != getattr(wanted, name):
                raise ConfigError(
                    f"{out} was trained with {name} {getattr(there, name)}, not {getattr(wanted, name)}; "
                    "give the same, or another folder"
                )
        return load(out)
    validation = data.of_split(splits[1]) if splits[1] in data.split else None
    return train(peer, data.of_split(splits[0]), out=out, validation=validation, sizes=wanted.sizes,
                 resume=(out / "checkpoint.json").exists(), progress=progress, **asked)  # fmt: skip


def save(out: Path, imputer: PeerImputer, config: PeerTraining) -> None:
    """``peer.json`` and ``peer.safetensors``."""
    save_weights(out / "peer.safetensors", imputer.state_dict())
    about = {"length": imputer.length, "width": imputer.columns.width, "pypots": installed(),
             "variance_lost": imputer.columns.lost.tolist(),
             "parameters": sum(p.numel() for p in imputer.network.parameters())}  # fmt: skip
    write_json(out / "peer.json", {"training": to_dict(config), **about})


def load(out: Path) -> PeerImputer:
    """The imputer that ``train`` left in ``out``, in eval mode. Raises DataError, MissingExtraError."""
    from safetensors.torch import load_file

    about = _about(out)
    try:
        weights = load_file(out / "peer.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"peer.safetensors of {out} cannot be read ({error}); train it again") from None
    config: PeerTraining = from_dict(PeerTraining, about["training"])
    imputer = new(config, Columns(about["width"], config.components), about["length"])
    load_weights(imputer, weights, what=f"the peer in {out}")
    return imputer.eval()


def _about(out: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((out / "peer.json").read_text())
        return about
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "peer.json is damaged"
        raise DataError(f"{out} holds no trained peer ({why}); make one with bench.peers.pypots.fill") from None
