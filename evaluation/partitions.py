"""Further label-free clusterings, and what a cluster tells about a sample of another group."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import Sampled, bootstrap, sampled
from evaluation.clustering import canonical_order, clustering_scores
from evaluation.detection import weighted_auc
from evaluation.prepared import Prepared
from evaluation.score import Score

CLUSTERS = (2, 8)
MIXTURE_COMPONENTS = 32  # principal components; a mixture in hundreds of dimensions finds single samples
SPECTRAL_NEIGHBOURS = 15
MOST = 10_000  # samples, above which Ward's method would take n² memory

Array = NDArray[np.float32]
Ids = NDArray[np.int64]


def partitions(
    features: ArrayLike, label: ArrayLike, group: ArrayLike, *, seed: int = 0, replicates: int = 1000
) -> list[Score]:
    """Scores of other clusterings than :func:`evaluation.separability.separability` has; arguments as there.

    ``ward_ami_kK``, ``mixture_ami_kK``, ``spectral_ami_kK`` and the same with ``ari``, for K = 2 and 8 where n >= 5 K
    (Ward and spectral up to 10,000 samples); ``kmeans_accuracy_k2``, the accuracy of the better of the two ways to name
    two clusters real and fake, of which chance is the share of the larger class; and ``kmeans_auc_k32`` (or the
    largest power of two below n/5), the AUC of the share of fakes among the samples of *other groups* in one's
    cluster. Intervals condition on the clusterings.
    """
    prepared = Prepared.of(features, label, group)
    return partitions_of(prepared, seed=seed, replicates=replicates)


def partitions_of(prepared: Prepared, *, seed: int, replicates: int) -> list[Score]:
    """:func:`partitions` of features that are prepared already."""
    space, label, component = prepared.space, prepared.label, prepared.component
    results: list[Sampled] = []
    for method, cluster in METHODS.items():
        for k in CLUSTERS:
            if len(label) >= 5 * k and (method == "mixture" or len(label) <= MOST):
                found = cluster(space, k, seed)[None]
                results += clustering_scores(method, k, found, label, component, replicates, seed)
    results.append(best_match_accuracy(prepared.kmeans(2, seed), label, component, replicates, seed))
    k = min(32, 2 ** max(1, int(np.log2(max(2, len(label) / 5)))))
    results.append(cluster_auc(prepared.kmeans(k, seed), k, label, component, replicates, seed))
    return [result.score for result in results]


def ward(space: Array, k: int, seed: int) -> Ids:
    """Agglomerative clustering that least raises the variance within clusters (Ward 1963); ``seed`` is not used."""
    from sklearn.cluster import AgglomerativeClustering

    return _in_order(space, lambda x: AgglomerativeClustering(k, linkage="ward").fit_predict(x))


def mixture(space: Array, k: int, seed: int) -> Ids:
    """Gaussian mixture with diagonal covariances on the first principal components, best of three starts."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    def cluster(x: NDArray[np.float64]) -> Ids:
        some = PCA(min(MIXTURE_COMPONENTS, *x.shape), random_state=seed).fit_transform(x)
        return GaussianMixture(k, covariance_type="diag", reg_covar=1e-5, n_init=3, random_state=seed).fit_predict(some)

    return _in_order(space, cluster)


def spectral(space: Array, k: int, seed: int) -> Ids:
    """Spectral clustering of the graph of nearest neighbours (von Luxburg 2007)."""
    from sklearn.cluster import SpectralClustering

    neighbours = min(SPECTRAL_NEIGHBOURS, len(space) - 1)
    model = SpectralClustering(k, affinity="nearest_neighbors", n_neighbors=neighbours, random_state=seed)
    return _in_order(space, model.fit_predict)


METHODS: dict[str, Callable[[Array, int, int], Ids]] = {"ward": ward, "mixture": mixture, "spectral": spectral}


def _in_order(space: Array, cluster: Callable[[NDArray[np.float64]], Ids]) -> Ids:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    order, ids = canonical_order(space), np.empty(len(space), np.int64)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # clusters may well be apart
        ids[order] = cluster(space[order].astype(np.float64))
    return ids


def best_match_accuracy(
    clusterings: Ids, label: NDArray[np.int64], component: NDArray[np.int64], replicates: int, seed: int
) -> Sampled:
    """``kmeans_accuracy_k2`` of ``(runs, n)`` clusterings into two, mean over runs."""
    agrees = (clusterings == label).T.astype(np.float64)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        share = weights @ agrees / weights.sum(axis=1, keepdims=True)
        return np.maximum(share, 1 - share).mean(axis=1)

    value = float(statistic(np.ones((1, len(label))))[0])
    draws = bootstrap(statistic, component, replicates, seed)
    chance = max(label.mean(), 1 - label.mean())
    how = (
        f"accuracy of two k-means clusters under the better naming, mean of {len(clusterings)} runs (one cluster alone "
        f"would give {chance:.3f}); {{interval}}, clusterings held fixed"
    )
    return sampled("kmeans_accuracy_k2", value, draws, n=len(label), how=how, bounds=(0, 1))


def cluster_auc(
    clusterings: Ids, k: int, label: NDArray[np.int64], component: NDArray[np.int64], replicates: int, seed: int
) -> Sampled:
    """``kmeans_auc_kK``: AUC of the share of fakes among the other groups' samples in one's cluster, mean over runs.

    A sample whose cluster holds no other group gets the share of fakes of all samples.
    """
    runs = [_other_group_shares(ids, label, component) for ids in clusterings]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        aucs = [[weighted_auc(label, shares(w), w[None])[0] for shares in runs] for w in weights]
        return np.mean(aucs, axis=1)

    value = float(statistic(np.ones((1, len(label))))[0])
    draws = bootstrap(statistic, component, replicates, seed)
    how = (
        f"AUC of the share of fakes among samples of other groups in one's k-means cluster, mean of {len(runs)} runs; "
        "{interval}, clusterings held fixed"
    )
    return sampled(f"kmeans_auc_k{k}", value, draws, n=len(label), how=how, bounds=(0, 1))


def _other_group_shares(
    ids: Ids, label: NDArray[np.int64], component: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Share of fakes in each sample's cluster without its own group, as a function of multiplicities ``(n,)``."""
    # Samples of one group in one cluster form a cell: all of them see the same others.
    cell = np.unique(ids * (component.max() + 1) + component, return_inverse=True)[1]

    def shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        fakes, all_ = ((np.bincount(ids, w)[ids] - np.bincount(cell, w)[cell]) for w in (weights * label, weights))
        return np.where(all_ > 0, fakes / np.maximum(all_, 1), (weights @ label) / weights.sum())

    return shares
