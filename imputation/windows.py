"""What fills that are fitted to training windows ask of them, and of their settings."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoders.errors import ConfigError, DataError
from imputation.features import FeatureSet

__all__ = ["sizes", "standardised_windows"]


def sizes(data: FeatureSet, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with the sizes that follow the features; ConfigError where one names them itself."""
    for name in ("dim", "length"):
        if name in options:
            raise ConfigError(f"{name} {options[name]} is not for you to say, it follows the features; leave it out")
    return {"dim": data.width, "length": data.length, **options}


def standardised_windows(data: FeatureSet) -> tuple[Tensor, Tensor]:
    """Features (n, L, M, D), 0 where absent, and where they are not (n, L, M). DataError names what is not finite."""
    features, seen = data.standardised(), data.presence & data.exists.unsqueeze(-1)
    bad = (~torch.isfinite(features).flatten(1).all(dim=1)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise DataError(f"row {row} ({data.names[row]}) of the training windows is not finite; extract it again")
    return torch.where(seen.unsqueeze(-1), features, 0), seen
