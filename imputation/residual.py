"""curri-MAE that learns only what a simpler fill leaves over: prediction = base fill + residual.

The autoencoder reads the same features as ever and its error is taken on the same hidden places; only what it is asked
for is less. Its prediction layers begin at zero, so that an untrained one fills as its base does, and what the base
knows (how the features of a modality hang together in time) need not be learned from few recordings.

Shape legend: B batch, N position, M modality, D feature width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.settings import pick
from imputation.curri_mae import CurriMAEConfig, CurriMAEImputer, Loss, Prediction
from imputation.curri_mae import preset as mae_preset
from imputation.features import FeatureSet
from imputation.gaussian import GaussianConfig
from imputation.gaussian_fit import fit_gaussian
from imputation.imputer import build

BASES = {"gaussian": GaussianConfig, "lerp": None, "observed_mean": None, "hold": None}

__all__ = ["BASES", "ResidualImputer", "new_base", "residual"]


class ResidualImputer(CurriMAEImputer):
    """``base`` is any fitted imputer without parameters; it is kept with the weights and never changed."""

    def __init__(self, config: CurriMAEConfig, base: nn.Module) -> None:
        if config.residual:
            raise ConfigError(
                f"residual {config.residual!r} and a base of its own are two bases for one model; leave residual empty"
            )
        super().__init__(config)
        self.rung = "residual"
        self.base = base
        self.begin_as_base()

    def begin_as_base(self) -> None:
        """Forget what the prediction layers say: nothing is added to the base."""
        for layer in (self.model.decoder_pred_a, self.model.decoder_pred_v):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def predict(self, features: Tensor, present: Tensor, exists: Tensor) -> Prediction:
        left = self.model(features, present, exists)
        return left._replace(mean=left.mean + self._base(features, present, exists))

    def loss(self, features: Tensor, hidden: Tensor, exists: Tensor, presence: Tensor) -> Loss:
        """``CurriMAE.loss`` of what the base leaves over."""
        known = presence & ~hidden
        base = self._base(features, known & exists.unsqueeze(-1), exists)
        return self.model.loss(features, hidden, exists, presence, base)

    @torch.no_grad()
    def _base(self, features: Tensor, present: Tensor, exists: Tensor) -> Tensor:
        """What the base fills absent places with (B, N, M, D), 0 at all others."""
        filled: Tensor = self.base(features, present, exists).features
        absent = ~present & exists.unsqueeze(-1)
        return torch.where(absent.unsqueeze(-1), filled, 0)


def new_base(name: str, data: FeatureSet, options: Mapping[str, Any]) -> nn.Module:
    """The base of that name, fitted to these windows where it has anything to fit."""
    pick(BASES, name, "base")
    made: nn.Module = fit_gaussian(data, **options) if name == "gaussian" else build(name, **options)
    return made


def residual(
    *,
    preset: str = "curri_mae_small",
    base: str = "gaussian",
    base_options: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> ResidualImputer:
    """An untrained one over an unfitted base; ``overrides`` are CurriMAEConfig's fields. Raises UsageError."""
    config = mae_preset(preset, **overrides)
    pick(BASES, base, "base")
    options = dict(base_options or {})
    if base == "gaussian":
        options = {"dim": config.dim, "length": config.length, **options}
    return ResidualImputer(config, build(base, **options))
