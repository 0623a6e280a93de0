"""Fitting the Gaussian fill to training windows, in closed form.

The basis of a modality are the eigenvectors of the covariance between *different* clips of one window: the first
coordinates persist (who speaks, where the camera stands), the last change from clip to clip. An eigenvector found on
few windows persists there more than it does elsewhere, so covariances are measured on windows that had no part in the
basis they are measured in: the speakers are dealt to folds, and each fold is seen in the basis of the others (Lam,
"Nonparametric eigenvalue-regularized precision or covariance matrix estimator", Annals of Statistics 2016). What lies
in the tables is therefore what a new speaker shows; how far it is believed is chosen by the error on held-out folds.

Shape legend: n window, N position, M modality, D feature width, C coordinate, G group, J coordinate of the joint
process.
"""

from typing import Any

import torch
from torch import Tensor

from encoders.errors import DataError
from encoders.settings import override
from imputation.features import FeatureSet
from imputation.gaussian import Gaussian, GaussianConfig, conditional, toeplitz
from imputation.windows import sizes, standardised_windows

FOLDS = 5
FLOOR = 1e-3  # least eigenvalue of a covariance, as a share of its variance
PRIOR = 2.0  # windows of mere noise that are thought to have been seen too
SHARES = (1.0, 0.95, 0.9, 0.8, 0.65, 0.45, 0.2, 0.0)  # beliefs in covariances between clips, to choose from
MASKS = 3  # for each number of hidden places, by which they are judged
JOINT_FLOOR = 0.05  # least eigenvalue of the joint covariance, whose cross terms are not measured out of its basis
CROSS = 0.5  # what is believed of a covariance between two coordinates
ROWS = 512  # windows read at once

__all__ = ["fit_gaussian"]


def fit_gaussian(data: FeatureSet, **options: Any) -> Gaussian:
    """The fill for these windows; ``options`` are GaussianConfig's fields but for dim and length.

    Its variance is not calibrated yet: see ``imputation.train.fit_variance``. Raises DataError where there are fewer
    than two windows or a number is not finite.
    """
    made = Gaussian(override(GaussianConfig, sizes(data, options)))
    if len(data) < 2:
        raise DataError(f"{len(data)} training window tells nothing of how features change; give at least 2")
    features, seen = standardised_windows(data)
    folds = _folds(data.speaker)
    curves = []
    for m in range(2):
        basis, curve = _modality(made, features[:, :, m], seen[:, :, m], folds)
        made.basis[m] = basis.float()
        curves.append(curve)
    made.curves.copy_(torch.stack(curves))
    if made.config.joint:
        made.together.copy_(_together(made, features, seen))
    return made


def _folds(speakers: tuple[str, ...]) -> Tensor:
    """The fold of each window: whole speakers, or runs of one speaker's windows."""
    names = sorted(set(speakers))
    if len(names) == 1:
        return torch.arange(len(speakers)) * min(FOLDS, len(speakers)) // len(speakers)
    return torch.tensor([names.index(s) * min(FOLDS, len(names)) // len(names) for s in speakers])


def _modality(made: Gaussian, features: Tensor, seen: Tensor, folds: Tensor) -> tuple[Tensor, Tensor]:
    """Basis (D, C) of all windows (n, N, D), seen (n, N); and the covariance by lag that each group has elsewhere."""
    parts = [(features[folds == f], seen[folds == f]) for f in folds.unique().tolist()]
    between = torch.stack([_between(x) for x, _ in parts])  # (folds, D, D)
    total = between.sum(dim=0)
    products, counts = [], []
    for own, (x, s) in zip(between, parts, strict=True):
        basis = _persistent(total - own)
        product = torch.zeros(x.shape[2], x.shape[1], x.shape[1], dtype=torch.double)  # (C, N, N)
        for values in x.split(ROWS):
            y = values.double() @ basis
            product += torch.einsum("bic,bjc->cij", y, y)
        products.append(torch.stack([product[a:b].mean(dim=0) for a, b in made.config.slices]))
        counts.append(s.double().T @ s.double())
    return _persistent(total), _believed(torch.stack(products), torch.stack(counts), len(features))


def _believed(products: Tensor, counts: Tensor, windows: int) -> Tensor:
    """Covariances by lag (G, N) of sums of products (folds, G, N, N) over counts (folds, N, N).

    Features are stationary only nearly, and what is off weighs most where a solve leans on many places. So lags are
    believed by the share that predicts best: those of all folds but one, judged on the moments of that one as they are.
    """
    others = [(_by_lag(products.sum(0) - p), _by_lag(counts.sum(0) - c)) for p, c in zip(products, counts, strict=True)]
    shares = torch.tensor(SHARES, dtype=torch.double)
    observed = _some_masks(products.shape[-1])  # (K, N)
    error = torch.zeros(len(SHARES), products.shape[1], dtype=torch.double)
    for product, count, (rest, many) in zip(products, counts, others, strict=True):
        curves = _definite(rest / many.clamp(min=1), windows)
        lagged = curves.expand(len(SHARES), -1, -1).clone()  # (shares, G, N)
        lagged[..., 1:] *= shares.view(-1, 1, 1)
        moments = product / count.clamp(min=1)
        for share, each in enumerate(lagged):
            weight, _ = conditional(toeplitz(each, each.shape[-1]).unsqueeze(1), observed)  # (G, K, N, N)
            error[share] += count.trace() * _expected(weight, moments.unsqueeze(1), observed)
    best = shares[error.argmin(dim=0)]
    curves = _definite(_by_lag(products.sum(0)) / _by_lag(counts.sum(0)).clamp(min=1), windows)
    return torch.cat([curves[:, :1], best.unsqueeze(1) * curves[:, 1:]], dim=1)


def _expected(weight: Tensor, moments: Tensor, observed: Tensor) -> Tensor:
    """The mean squared error of predicting by weight (G, K, N, N) what has second moments (G, 1, N, N): (G,)."""
    told = weight @ moments
    error = moments - told - told.transpose(-1, -2) + told @ weight.transpose(-1, -2)
    return (error.diagonal(dim1=-2, dim2=-1) * ~observed).sum(dim=(1, 2)) / (~observed).sum()


def _some_masks(length: int) -> Tensor:
    """Observed places (K, N) of a few masks with every number hidden but all; always the same."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(MASKS, length - 1, length, generator=generator).argsort(dim=-1).argsort(dim=-1)
    return (ranks >= torch.arange(1, length).view(1, -1, 1)).flatten(0, 1)


def _by_lag(matrices: Tensor) -> Tensor:
    """Sums along the diagonals of symmetric (..., N, N): (..., N)."""
    lags = range(matrices.shape[-1])
    return torch.stack([matrices.diagonal(lag, dim1=-2, dim2=-1).sum(dim=-1) for lag in lags], dim=-1)


def _between(features: Tensor) -> Tensor:
    """Sum over windows (n, N, D) and over pairs of different places of their outer product, (D, D) float64."""
    total = torch.zeros(features.shape[2], features.shape[2], dtype=torch.double)
    for values in (x.double() for x in features.split(ROWS)):
        whole, places = values.sum(dim=1), values.flatten(0, 1)
        total += whole.T @ whole - places.T @ places
    return total


def _persistent(between: Tensor) -> Tensor:
    """Eigenvectors as columns, what persists the most first."""
    vectors: Tensor = torch.linalg.eigh(between).eigenvectors
    return vectors.flip(1)


def _definite(curves: Tensor, windows: int) -> Tensor:
    """Covariances by lag (G, N), drawn towards noise: for few windows, and until each is one of a process."""
    variance = curves[:, :1].clamp(min=1e-6)
    lags = curves[:, 1:] * (windows / (windows + PRIOR))
    least = torch.linalg.eigvalsh(toeplitz(torch.cat([variance, lags], dim=1), curves.shape[1]))[:, :1]
    keep = ((1 - FLOOR) * variance / (variance - least).clamp(min=1e-12)).clamp(max=1.0)
    return torch.cat([variance, keep * lags], dim=1)


def _together(made: Gaussian, features: Tensor, seen: Tensor) -> Tensor:
    """The joint covariance of the leading coordinates of both modalities, (2 J, N, 2 J, N).

    On its diagonal are the coordinates' own covariances; beside it, half believed, those by lag between any two.
    """
    config, length, joint = made.config, features.shape[1], made.config.joint
    basis = made.basis[:, :, :joint].double()
    product = torch.zeros(2 * joint, length, 2 * joint, length, dtype=torch.double)
    count = torch.zeros(2 * joint, length, 2 * joint, length, dtype=torch.double)
    for x, s in zip(features.split(ROWS), seen.split(ROWS), strict=True):
        y = torch.einsum("bnmd,mdj->bmjn", x.double(), basis).flatten(1, 2)  # (b, 2 J, N)
        known = s.double().transpose(1, 2).repeat_interleave(joint, dim=1)
        product += torch.einsum("bin,bjk->injk", y, y)
        count += torch.einsum("bin,bjk->injk", known, known)
    covariance = torch.zeros_like(product)
    position = torch.arange(length)
    for lag in range(1 - length, length):
        a, b = (position[:, None] - position == lag).nonzero(as_tuple=True)
        mean = product[:, a, :, b].sum(dim=0) / count[:, a, :, b].sum(dim=0).clamp(min=1)  # (2 J, 2 J)
        covariance[:, a, :, b] = CROSS * mean * len(features) / (len(features) + PRIOR)
    group = [next(g for g, (a, b) in enumerate(config.slices) if a <= c < b) for c in range(joint)]
    own = toeplitz(made.curves[:, group], length).flatten(0, 1)  # (2 J, N, N)
    for i in range(2 * joint):
        covariance[i, :, i, :] = own[i]
    size = 2 * joint * length
    matrix = covariance.reshape(size, size)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    least = JOINT_FLOOR * float(values.mean())
    return ((vectors * values.clamp(min=least)) @ vectors.T).view_as(covariance)
