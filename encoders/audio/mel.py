"""The mel scale and its triangles, which every mel front shares (numpy only).

Shapes: F mel bin.
"""

import numpy as np
from jaxtyping import Float

__all__ = ["hz_to_mel", "mel_filters"]


def hz_to_mel(hz: Float[np.ndarray, "n"] | float) -> Float[np.ndarray, "n"]:
    """The HTK mel scale: 2595 log10(1 + f / 700)."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)


def mel_filters(bins: int, n_fft: int, sample_rate: int, low: float, high: float) -> Float[np.ndarray, "f bins"]:
    """Triangles of unit height, equally wide in mel, over the bins of a power spectrum: (n_fft // 2 + 1, bins)."""
    edges = np.linspace(hz_to_mel(low), hz_to_mel(high), bins + 2)
    at = hz_to_mel(np.arange(n_fft // 2 + 1) * (sample_rate / n_fft))[:, None]
    rise = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall)).astype(np.float32)
