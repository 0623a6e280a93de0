"""Windows of features whose statistics are known: what persists, what drifts, what is noise."""

from dataclasses import replace

import torch

from imputation.features import FeatureSet, Standardiser


def persistent(n: int, *, length: int = 8, width: int = 16, speakers: int = 4, seed: int = 0) -> FeatureSet:
    """Standardised windows (n, length, 2, width) of a rotated process: a quarter of its coordinates stays the same
    through a window, a quarter drifts (0.8 from clip to clip), the rest is noise of every clip by itself."""
    g = torch.Generator().manual_seed(seed)
    quarter = width // 4
    constant = torch.randn(n, 1, 2, quarter, generator=g).expand(-1, length, -1, -1)
    drift = [torch.randn(n, 2, quarter, generator=g)]
    for _ in range(length - 1):
        drift.append(0.8 * drift[-1] + 0.6 * torch.randn(n, 2, quarter, generator=g))
    noise = torch.randn(n, length, 2, width - 2 * quarter, generator=g)
    turn = torch.linalg.qr(torch.randn(2, width, width, generator=torch.Generator().manual_seed(99))).Q
    values = torch.einsum("nlmc,mcd->nlmd", torch.cat([constant, torch.stack(drift, 1), noise], -1), turn)
    speaker = [f"s{i % speakers}" for i in range(n)]
    data = FeatureSet.of(values, torch.arange(n) % 2, ("no", "yes"), speaker=speaker)
    return replace(data, standardiser=Standardiser.identity(width))
