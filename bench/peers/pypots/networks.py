"""PyPOTS's networks and losses behind two verbs: the loss of a masked batch, and what it says of every place.

Each network is the library's own (BSD-3-Clause), built through its public class; we hand it the masks of a batch where
its own training would draw them, value by value. Sizes are those of the papers where these took as many columns as we
have, and wider or narrower where that stands beside the number.

Du et al.: "SAITS: Self-Attention-based Imputation for Time Series" (Expert Systems with Applications 2023); Cao et
al.: "BRITS: Bidirectional Recurrent Imputation for Time Series" (NeurIPS 2018); Tashiro et al.: "CSDI: Conditional
Score-based Diffusion Models for Probabilistic Time Series Imputation" (NeurIPS 2021); Fortuin et al.: "GP-VAE: Deep
Probabilistic Time Series Imputation" (AISTATS 2020).

Shape legend: B batch, N step, K column. Masks are numbers, 1 = yes.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from encoders.errors import MissingExtraError


@dataclass(frozen=True, kw_only=True)
class SAITSConfig:
    """The base model of the paper."""

    n_layers: int = 2
    d_model: int = 256
    n_heads: int = 4
    d_ffn: int = 128
    dropout: float = 0.1
    loss: Literal["mae", "mse"] = "mae"  # the paper's; errors are judged by their square, so both can be had


@dataclass(frozen=True, kw_only=True)
class BRITSConfig:
    """``hidden`` is 108 in the paper, for 35 columns."""

    hidden: int = 256
    masked: float = 0.0  # weight of the error at hidden places, as in SAITS; 0 as published: BRITS learns from the seen
    loss: Literal["mae", "mse"] = "mae"


@dataclass(frozen=True, kw_only=True)
class CSDIConfig:
    """A fraction of the paper's (4 layers of 64 channels, 8 heads), which takes 15 times as long on a processor."""

    n_layers: int = 2
    n_channels: int = 16
    n_heads: int = 4
    d_time_embedding: int = 128
    d_feature_embedding: int = 16
    d_diffusion_embedding: int = 128
    n_diffusion_steps: int = 50
    samples: int = 5  # averaged: the mean of what may have been there is the best guess by squared error


@dataclass(frozen=True, kw_only=True)
class GPVAEConfig:
    """For short windows. With PyPOTS's defaults, length scale 7 and beta 0.2, the code says nothing after 800 steps on
    windows of 7 clips, and the mean is filled; that prior is nearly constant over a window."""

    latent_size: int = 64
    encoder: int = 128  # width of two layers
    decoder: int = 256
    beta: float = 0.1
    window_size: int = 3
    length_scale: float = 2.0  # steps


class Peer(nn.Module):
    """``core`` is the library's module; ``own`` the tensors of one batch, as it wants them named."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def loss(self, table: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """Its own training loss. table (B, N, K); seen, asked (B, N, K): what it is shown, and what was hidden."""
        given = self.inputs(table, seen) | {"X_ori": table * (seen + asked), "indicating_mask": asked}
        loss: Tensor = self.core(given, calc_criterion=True)["loss"]
        return loss

    def fill(self, table: Tensor, seen: Tensor) -> Tensor:
        """Its guess at every place, seen or not: (B, N, K)."""
        guess: Tensor = self.core(self.inputs(table, seen))["reconstruction"]
        return guess

    def inputs(self, table: Tensor, seen: Tensor) -> dict[str, Any]:
        return {"X": table * seen, "missing_mask": seen}


class SAITS(Peer):
    """Two blocks of self-attention along the steps; reconstructs what it saw and what was hidden."""

    def __init__(self, config: SAITSConfig, length: int, columns: int) -> None:
        width = config.d_model // config.n_heads
        super().__init__(
            _core(
                "SAITS", n_steps=length, n_features=columns, n_layers=config.n_layers, d_model=config.d_model,
                n_heads=config.n_heads, d_k=width, d_v=width, d_ffn=config.d_ffn, dropout=config.dropout,
                training_loss=_criterion(config.loss),
            )
        )  # fmt: skip


class BRITS(Peer):
    """Two recurrent networks, one from each end; learns to tell what it is about to see."""

    def __init__(self, config: BRITSConfig, length: int, columns: int) -> None:
        criterion = _criterion(config.loss)
        super().__init__(
            _core(
                "BRITS", n_steps=length, n_features=columns, rnn_hidden_size=config.hidden, training_loss=criterion,
            )
        )  # fmt: skip
        self.masked, self.criterion = config.masked, criterion()

    def loss(self, table: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        found = self.core(self.inputs(table, seen), calc_criterion=True)
        loss: Tensor = found["loss"]
        if self.masked:
            loss = loss + self.masked * self.criterion(found["reconstruction"], table * (seen + asked), asked)
        return loss

    def inputs(self, table: Tensor, seen: Tensor) -> dict[str, Any]:
        return {"forward": _one_way(table, seen), "backward": _one_way(table.flip(1), seen.flip(1))}


def _one_way(table: Tensor, seen: Tensor) -> dict[str, Tensor]:
    return {"X": table * seen, "missing_mask": seen, "deltas": gaps(seen)}


def gaps(seen: Tensor) -> Tensor:
    """Steps since a column was last seen, by the rule of GRU-D (Che et al. 2018): (B, N, K)."""
    out = [torch.zeros_like(seen[:, 0])]
    for step in range(1, seen.shape[1]):
        out.append(1 + (1 - seen[:, step - 1]) * out[-1])
    return torch.stack(out, dim=1)


class CSDI(Peer):
    """A diffusion model: every sample is a way the hidden part may have been; the fill is their mean.

    Its noise comes from a generator of its own, so that the same batch is filled the same way.
    """

    def __init__(self, config: CSDIConfig, length: int, columns: int) -> None:
        sizes = {name: value for name, value in asdict(config).items() if name != "samples"}
        super().__init__(_core("CSDI", n_steps=length, n_features=columns, **sizes))
        self.samples = config.samples

    def fill(self, table: Tensor, seen: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            found = self.core(self.inputs(table, seen), n_sampling_times=self.samples)
        guess: Tensor = found["reconstruction"].mean(dim=1)  # (B, samples, N, K)
        return guess

    def loss(self, table: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        given = self.inputs(table, seen)
        given |= {"X_ori": (table * (seen + asked)).transpose(1, 2), "indicating_mask": asked.transpose(1, 2)}
        loss: Tensor = self.core(given, calc_criterion=True)["loss"]
        return loss

    def inputs(self, table: Tensor, seen: Tensor) -> dict[str, Any]:
        step = torch.arange(table.shape[1], dtype=table.dtype, device=table.device).expand(table.shape[:2])
        shown = (table * seen).transpose(1, 2)  # (B, K, N)
        return {"X": shown, "cond_mask": seen.transpose(1, 2), "observed_tp": step}


class GPVAE(Peer):
    """A variational autoencoder whose code moves smoothly along the steps; like BRITS it learns from the seen."""

    def __init__(self, config: GPVAEConfig, length: int, columns: int) -> None:
        super().__init__(
            _core(
                "GPVAE", n_steps=length, n_features=columns, latent_size=config.latent_size,
                encoder_sizes=(config.encoder,) * 2, decoder_sizes=(config.decoder,) * 2, beta=config.beta,
                window_size=config.window_size, length_scale=config.length_scale,
            )
        )  # fmt: skip

    def fill(self, table: Tensor, seen: Tensor) -> Tensor:
        guess: Tensor = self.core(self.inputs(table, seen), n_sampling_times=1)["reconstruction"][:, 0]
        return guess


# name -> (what it is, its config)
NETWORKS: dict[str, tuple[Any, Any]] = {
    "saits": (SAITS, SAITSConfig),
    "brits": (BRITS, BRITSConfig),
    "csdi": (CSDI, CSDIConfig),
    "gpvae": (GPVAE, GPVAEConfig),
}


def installed() -> str:
    """The library's version. Raises MissingExtraError."""
    with _quiet():
        _library()
    return version("pypots")


def _core(name: str, **sizes: Any) -> nn.Module:
    """The network inside the library's public class ``name``."""
    with _quiet():
        core: nn.Module = getattr(_library(), name)(device="cpu", verbose=False, **sizes).model
    return core


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library greets when it is imported, and warns of what it will not save and of its own layers."""
    silent = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # the greeting asks for an encoding
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _library() -> Any:
    try:
        return import_module("pypots.imputation")
    except ImportError:
        raise MissingExtraError(
            "PyPOTS is not installed here; run this in its own environment: sh bench/peers/pypots/build"
        ) from None


def _criterion(name: str) -> Any:
    with _quiet():
        _library()
    return getattr(import_module("pypots.nn.modules.loss"), name.upper())
