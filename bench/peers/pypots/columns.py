"""Windows of features as tables of columns, which is what imputers of time series take; and back.

Of each step every modality's D features become columns, (B, N, M, D) to (B, N, M * D), or the first few principal
components of them: some networks look at every pair of columns and cannot take 2 x 512. The components are those of
the observed places of the training windows, each scaled to deviation 1, as these networks expect of a column. What the
components left out say of a place is filled with the mean; ``lost`` is its share of the variance.

Shape legend: B batch, N position, M modality, D width, C components of a modality, K = M * C (or M * D) column.
"""

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError


class Columns(nn.Module):
    """The way to columns and back; ``components`` 0 keeps all features as they are."""

    mean: Tensor
    basis: Tensor
    scale: Tensor
    lost: Tensor

    def __init__(self, width: int, components: int = 0, modalities: int = 2) -> None:
        super().__init__()
        if not 0 <= components <= width:
            raise ConfigError(
                f"components {components} of features {width} wide do not exist; use 1 to {width}, or 0 for all"
            )
        self.width, self.components, self.modalities = width, components, modalities
        self.register_buffer("lost", torch.zeros(modalities))  # share of the variance of each modality
        if components:
            self.register_buffer("mean", torch.zeros(modalities, width))
            self.register_buffer("basis", torch.zeros(modalities, width, components))
            self.register_buffer("scale", torch.ones(modalities, components))

    @classmethod
    def fit(cls, features: Tensor, presence: Tensor, components: int) -> "Columns":
        """From the observed places of features (n, L, M, D), presence (n, L, M). Raises ConfigError, DataError."""
        columns = cls(features.shape[3], components, features.shape[2])
        if components:
            for m in range(features.shape[2]):
                columns._fit_one(m, features[:, :, m][presence[:, :, m]].double())
        return columns

    def _fit_one(self, m: int, places: Tensor) -> None:
        """Of one modality, from its observed places (P, D)."""
        if len(places) <= self.components:
            raise DataError(
                f"modality {m} was observed {len(places)} times in training, too few for {self.components} components; "
                "use fewer components"
            )
        centred = places - places.mean(dim=0)
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(places))  # ascending
        kept = variance[-self.components :].flip(0).clamp(min=0)
        self.mean[m] = places.mean(dim=0)
        self.basis[m] = vectors[:, -self.components :].flip(1)
        self.scale[m] = torch.where(kept > 1e-10, kept.sqrt(), 1.0)
        self.lost[m] = 1 - kept.sum() / variance.clamp(min=0).sum().clamp(min=1e-12)

    @property
    def count(self) -> int:
        """K."""
        return self.modalities * (self.components or self.width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, M, D) to (B, N, K)."""
        if not self.components:
            return features.flatten(2)
        rotated = torch.einsum("bnmd,mdc->bnmc", features - self.mean, self.basis)
        return (rotated / self.scale).flatten(2)

    def inverse(self, table: Tensor) -> Tensor:
        """(B, N, K) to (B, N, M, D)."""
        apart = table.unflatten(2, (self.modalities, -1))
        if not self.components:
            return apart
        return torch.einsum("bnmc,mdc->bnmd", apart * self.scale, self.basis) + self.mean

    def spread(self, mask: Tensor) -> Tensor:
        """A mask (B, N, M) for every column of its modality, (B, N, K), in numbers."""
        return mask.repeat_interleave(self.components or self.width, dim=2).float()
