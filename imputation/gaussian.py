"""Filling by a temporal Gaussian process: the conditional mean of what is absent, given what was observed.

Each modality has an orthonormal basis of its features, ordered from what persists through a window to what changes
from clip to clip. Every coordinate in it is a stationary Gaussian process by itself; coordinates of like persistence
share one covariance over clip lags, so one small solve for each group, modality and mask serves all of them (kriging;
Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.2, with the covariance read off the
data). Fitted in closed form (`imputation.gaussian_fit`); nothing here is learned by steps.

With ``joint`` the most persistent coordinates of both modalities form one process: what is absent in one modality is
then told by the other as well.

Shape legend: B batch, N position, M modality (video, audio), D feature width, C coordinate (D of them), G group,
J coordinates in the joint process, of each modality.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError
from encoders.settings import override
from imputation.imputer import Filled, blend, checked

ROWS = 64  # windows whose joint process is solved at once; its systems are large

__all__ = ["Gaussian", "GaussianConfig", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """Sizes. Group widths grow by a constant factor, for the most persistent coordinates differ the most."""

    dim: int = 512  # D, what an encoder gives per clip and modality
    length: int = 10  # the most positions a window may have, lookahead included
    groups: int = 8  # covariances per modality, at most
    joint: int = 0  # J, coordinates of each modality that are conditioned on both modalities; 0: none

    def __post_init__(self) -> None:
        for name in ("dim", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} of a Gaussian fill is not positive; use 1 or more")
        if self.length < 2:
            raise ConfigError(f"length {self.length} leaves nothing to predict from; use 2 or more")
        if not 0 <= self.joint <= self.dim:
            raise ConfigError(f"joint {self.joint} is not within 0 to {self.dim}, the width of a feature; use 4, or 0")

    @property
    def slices(self) -> list[tuple[int, int]]:
        """[first, last) coordinate of each group: one by itself, then ever wider, D in all."""
        ratio = self.dim ** (1 / max(1, self.groups - 1))
        edges = sorted({0, *(round(ratio**i) for i in range(self.groups - 1)), self.dim})
        return list(pairwise(edges))


class Gaussian(nn.Module):
    """The fill; until fitted it knows no correlation and fills with the mean.

    Its variance is the process's own, averaged over dimensions and scaled by one fitted factor per modality.
    """

    rung = "gaussian"
    estimates = True  # its variance is its own: `fit_variance` scales it
    basis: Tensor
    curves: Tensor
    scale: Tensor
    together: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("basis", torch.eye(c.dim).repeat(2, 1, 1))  # (M, D, C)
        curves = torch.zeros(2, len(c.slices), c.length)
        curves[..., 0] = 1
        self.register_buffer("curves", curves)  # (M, G, N): covariance by lag
        self.register_buffer("scale", torch.ones(2))
        if c.joint:
            self.register_buffer("together", torch.eye(2 * c.joint * c.length).view((2 * c.joint, c.length) * 2))
        self.register_load_state_dict_post_hook(_refuse_nan)

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled. Raises DataError on another width."""
        present, exists = checked(features, presence, exists)
        mean, variance = self.predict(features, present)
        variance = (variance * self.scale).masked_fill(present | ~exists.unsqueeze(-1), 0.0)
        return Filled(blend(features, mean, present, exists), variance, self.rung)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """Windows in which anything at all was observed: (B,) bool."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        return present.flatten(1).any(dim=1)

    def predict(self, features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional mean of every place (B, N, M, D) and its variance (B, N, M), mean over dimensions.

        Reads observed places only; at those the mean is the feature and the variance 0, to rounding.
        """
        c, length = self.config, features.shape[1]
        if length > c.length or features.shape[3] != c.dim:
            raise DataError(
                f"features have {length} positions of width {features.shape[3]}; this Gaussian fill takes at most "
                f"{c.length} of width {c.dim}"
            )
        with torch.autocast(features.device.type, enabled=False):
            clean = torch.where(present.unsqueeze(-1), features, 0).float().transpose(1, 2)  # (B, M, N, D)
            told, left = self._apart(clean @ self.basis, present.transpose(1, 2))
            mean = told @ self.basis.transpose(1, 2)
        return mean.transpose(1, 2), left.transpose(1, 2)

    def _apart(self, seen: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Each coordinate from its own past and future: (B, M, N, C), present (B, M, N) -> mean, variance (B, M, N)."""
        slices, joint = self.config.slices, self.config.joint
        weight, left = conditional(toeplitz(self.curves, seen.shape[2]), present.unsqueeze(2))
        weight = weight.to(seen.dtype)  # (B, M, G, N, N)
        told = torch.cat([weight[:, :, g] @ seen[..., a:b] for g, (a, b) in enumerate(slices)], dim=-1)
        apart = left.new_tensor([max(0, b - max(a, joint)) for a, b in slices])
        total = (left * apart.view(-1, 1)).sum(dim=2)
        if joint:
            chunks = zip(seen[..., :joint].split(ROWS), present.split(ROWS), strict=True)
            means, sums = zip(*(self._joint(x, p) for x, p in chunks), strict=True)
            told = torch.cat([torch.cat(means), told[..., joint:]], dim=-1)
            total = total + torch.cat(sums)
        return told, (total / self.config.dim).clamp(min=1e-6).to(seen.dtype)

    def _joint(self, seen: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Leading coordinates (B, M, N, J) from both modalities -> their mean, and the sum of their variances."""
        batch, _, length, joint = seen.shape
        size = 2 * joint * length
        covariance = self.together[:, :length, :, :length].reshape(size, size).double()
        mask = present.unsqueeze(2).expand(-1, -1, joint, -1).reshape(batch, size)
        weight, left = conditional(covariance, mask)
        told = weight.to(seen.dtype) @ seen.transpose(2, 3).reshape(batch, size, 1)
        shape = (batch, 2, joint, length)
        return told.view(shape).transpose(2, 3), left.view(shape).sum(dim=2)


def toeplitz(curves: Tensor, length: int) -> Tensor:
    """Covariances by lag (..., N') to matrices over the first ``length`` positions, (..., N, N) float64."""
    position = torch.arange(length, device=curves.device)
    return curves.double()[..., (position[:, None] - position).abs()]


def conditional(covariance: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """How to predict every place from the observed ones, and how far off that is.

    covariance: (..., S, S) float64, positive definite; observed: (..., S) bool, broadcast against it.
    -> weight (..., S, S), zero in the columns of what was not observed, and variance (..., S).
    """
    there = observed.to(covariance.dtype)
    known = covariance * there.unsqueeze(-1)  # (..., S, S): rows of observed places
    system = known * there.unsqueeze(-2) + torch.diag_embed(1 - there)  # what is hidden stands apart, as identity
    factor = torch.linalg.cholesky_ex(system).L
    weight = torch.cholesky_solve(known, factor).transpose(-1, -2)
    left = covariance.diagonal(dim1=-2, dim2=-1) - (weight * known.transpose(-1, -2)).sum(dim=-1)
    return weight, left.clamp(min=0)


def _refuse_nan(module: nn.Module, _: Any) -> None:
    for name, tensor in module.named_buffers():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"{name} of the Gaussian fill holds what is not finite; fit it again with `legato train fill`"
            )


def gaussian(**overrides: Any) -> Gaussian:
    """An unfitted fill; ``overrides`` are GaussianConfig's fields. Raises UsageError and ConfigError."""
    given: Mapping[str, Any] = overrides
    return Gaussian(override(GaussianConfig, given))
