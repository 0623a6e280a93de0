"""Fills that are fitted in one go, not trained by steps: fit, calibrate, judge, keep."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from encoders.errors import ConfigError
from encoders.settings import pick, to_dict
from imputation.features import FeatureSet
from imputation.gaussian_fit import fit_gaussian
from imputation.nearest import fit_nearest
from imputation.stored import save_imputer
from imputation.train import fit_variance, validation_error

FITTED: Mapping[str, Callable[..., nn.Module]] = {
    "gaussian": lambda train, validation, **options: fit_gaussian(train, **options),
    "nearest": fit_nearest,
}

__all__ = ["FITTED", "fit_fill"]


def fit_fill(
    kind: str, train: FeatureSet, validation: FeatureSet, out: Path | None = None, **options: Any
) -> tuple[nn.Module, dict[str, float]]:
    """A fill of that kind with its variance calibrated, in eval mode, and its error on validation beside the rules'.

    ``options``: of GaussianConfig, or ``bank`` and ``k`` of `fit_nearest`. With ``out`` it is kept there as
    ``load_imputer`` reads it. Raises UsageError on an unknown kind or option, ConfigError where ``out`` is taken.
    """
    fit = pick(FITTED, kind, "fill")
    if out is not None and (out / "imputer.json").exists():
        raise ConfigError(f"{out} already holds an imputer; choose another --out")
    fill: Any = fit(train, validation, **options).eval()
    fit_variance(fill, validation)
    found = validation_error(fill, validation)
    if out is not None:
        save_imputer(out, fill, kind, to_dict(fill.config), metrics=found)
    return fill, found
