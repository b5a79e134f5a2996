"""Two-dimensional pictures of features: principal components, t-SNE and UMAP.

A picture is for looking; no score of this suite is computed from one.
"""

from __future__ import annotations

import numpy as np

TSNE_COMPONENTS = 50  # t-SNE works on the first principal components, as its authors advise
MINIMUM_TSNE = 5  # samples; below that no perplexity of at least 1 is defined


def pca(features: np.ndarray, components: int = 2) -> np.ndarray:
    """Project ``features`` (n, d) on their first principal components; returns float64 (n, components).

    Columns are ordered by variance; the sign of each is fixed by scikit-learn's rule, so that reruns are equal.
    Raises ValueError when n or d is smaller than ``components``, or when a value is not finite.
    """
    from sklearn.decomposition import PCA

    features = _checked(features)
    if min(features.shape) < components:
        raise ValueError(f"{components} principal components need at least as many samples and features; "
                         f"got features of shape {features.shape}")  # fmt: skip
    return PCA(components, svd_solver="full").fit_transform(features)


def tsne(features: np.ndarray, *, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """Embed ``features`` (n, d) with t-SNE on their first 50 principal components; returns float64 (n, 2).

    openTSNE, PCA initialisation, exact neighbours, Euclidean distance, one thread: equal seeds give equal points on
    one machine. ``perplexity`` is lowered to (n - 1) / 3 where n is small. Identical samples all lie at the origin.
    Raises ValueError for fewer than five samples or values that are not finite.

    Van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; Poličar et al., "openTSNE", JSS 2024.
    """
    from openTSNE import TSNE

    features = _checked(features)
    n = len(features)
    if n < MINIMUM_TSNE:
        raise ValueError(f"t-SNE needs at least {MINIMUM_TSNE} samples, got {n}")
    reduced = pca(features, min(TSNE_COMPONENTS, *features.shape))
    if not reduced.std(axis=0).max() > 1e-12 * max(1.0, np.abs(features).max()):
        return np.zeros((n, 2))
    if reduced.shape[1] < 2:  # the PCA initialisation needs two columns
        reduced = np.column_stack([reduced, np.zeros(n)])
    model = TSNE(
        perplexity=min(perplexity, (n - 1) / 3), neighbors="exact", initialization="pca", n_jobs=1, random_state=seed
    )
    return np.asarray(model.fit(reduced), dtype=np.float64)


def umap(features: np.ndarray, *, seed: int = 0, neighbours: int = 15) -> np.ndarray:
    """Embed ``features`` (n, d) with UMAP on their first 50 principal components; returns float64 (n, 2).

    One thread: equal seeds give equal points on one machine. ``neighbours`` is lowered to n - 1 where n is small. The
    first call of a process compiles for half a minute. Raises ValueError for fewer than five samples or values that are
    not finite. McInnes, Healy and Melville, "UMAP", arXiv 1802.03426.
    """
    import warnings

    from umap import UMAP

    features = _checked(features)
    n = len(features)
    if n < MINIMUM_TSNE:
        raise ValueError(f"UMAP needs at least {MINIMUM_TSNE} samples, got {n}")
    reduced = pca(features, min(TSNE_COMPONENTS, *features.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread; small n
        init = "spectral" if n > 10 else "random"
        model = UMAP(n_neighbors=min(neighbours, n - 1), init=init, random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(reduced), dtype=np.float64)


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must have the shape (n, d) with n and d at least 1, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{(~np.isfinite(features).all(axis=1)).sum()} of {len(features)} samples have features that "
                         "are not finite")  # fmt: skip
    return features
