"""Do features of one class lie together? Clusters without labels, compared with the labels; and a map of both.

As the MMT paper judges its features (table 5 and its figures): k-means with as many clusters as there are classes (the
paper does not name its clustering), the adjusted Rand index (Hubert and Arabie, 1985) and homogeneity (Rosenberg and
Hirschberg, 2007) of clusters against classes, and t-SNE (van der Maaten and Hinton, 2008). On scikit-learn, the extra
``explain``.

Shapes: N sample, D width.
"""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError, DataError, MissingExtraError

__all__ = ["agreement", "map_of", "require_scikit_learn"]

RESTARTS = 10  # of k-means; the best is kept
PERPLEXITY = 30.0  # neighbours, about; t-SNE's usual number


def require_scikit_learn() -> ModuleType:
    """scikit-learn, or a MissingExtraError that says how to get it."""
    try:
        import sklearn
    except ImportError:
        raise MissingExtraError(
            "scikit-learn is not installed; run pip install 'legato[explain]', or use --no-clusters"
        ) from None
    module: ModuleType = sklearn
    return module


def agreement(features: NDArray[Any], labels: NDArray[np.int64], classes: int, *, seed: int = 0) -> dict[str, float]:
    """How well k-means finds the classes: ``ari`` (0 by chance, 1 all of them) and ``homogeneity`` (0 to 1).

    Features are standardised channel by channel, so that none drowns the others.
    """
    x = _standard(features, labels)
    if not 2 <= classes <= len(x):
        raise ConfigError(
            f"{classes} clusters of {len(x)} samples say nothing; give at least as many samples as classes"
        )
    require_scikit_learn()
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, homogeneity_score

    found = KMeans(classes, n_init=RESTARTS, random_state=seed).fit_predict(x)
    return {"ari": float(adjusted_rand_score(labels, found)), "homogeneity": float(homogeneity_score(labels, found))}


def map_of(features: NDArray[Any], *, perplexity: float = PERPLEXITY, seed: int = 0) -> NDArray[np.float64]:
    """A plane (N, 2) on which neighbours stay neighbours (t-SNE); begun from the principal axes, so it is the same
    every time. Of few samples perplexity is a third of them at most."""
    x = _standard(features, None)
    if len(x) < 4:
        raise DataError(f"{len(x)} samples make no map; give at least 4")
    if not perplexity > 0:
        raise ConfigError(f"perplexity {perplexity} must be > 0; {PERPLEXITY:g} is usual")
    require_scikit_learn()
    from sklearn.manifold import TSNE

    near = min(perplexity, (len(x) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=near, init="pca", random_state=seed).fit_transform(x), np.float64)


def _standard(features: NDArray[Any], labels: NDArray[np.int64] | None) -> NDArray[np.float32]:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or (labels is not None and len(labels) != len(x)):
        raise DataError(f"features of shape {x.shape} are not (samples, width), one for each label")
    if not np.isfinite(x).all():
        raise DataError("features hold numbers that are not finite; look for what the encoder was given")
    return np.asarray((x - x.mean(0)) / (x.std(0) + 1e-6), np.float32)
