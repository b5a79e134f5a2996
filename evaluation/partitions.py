"""Further label-free clusterings, and what a cluster tells about a sample of another group."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import Sampled, bootstrap, sampled
from evaluation.clustering import canonical_order, clustering_scores
from evaluation.prepared import Prepared
from evaluation.probes import folds
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
    largest power of two below n/5), the AUC of the share of fakes that the *other folds of groups* have in one's
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
    fold = folds(label, component, seed)
    results.append(cluster_auc(prepared.kmeans(k, seed), k, fold, label, component, replicates, seed))
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
    clusterings: Ids,
    k: int,
    fold: NDArray[np.int64],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    replicates: int,
    seed: int,
) -> Sampled:
    """``kmeans_auc_kK`` of ``(runs, n)`` clusterings: :func:`held_out_auc` of the clusters, mean over runs.

    ``fold`` ``(n,)`` as of :func:`evaluation.probes.folds`; NaN, with the reason in ``how``, where it is one fold.
    """
    name, n = f"kmeans_auc_k{k}", len(label)
    if fold.max() == 0:
        how = "undefined: too few groups for two folds that hold both classes"
        return Sampled(Score(name, math.nan, math.nan, math.nan, True, n, how), np.full(replicates, np.nan))
    runs = [held_out_auc(ids, label, fold) for ids in clusterings]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.mean([run(weights) for run in runs], axis=0)

    value = float(statistic(np.ones((1, n)))[0])
    draws = bootstrap(statistic, component, replicates, seed)
    how = (
        f"AUC of the share of fakes that the other folds of groups have in one's k-means cluster, within each of "
        f"{fold.max() + 1} folds, mean over folds and {len(runs)} runs; {{interval}}, clusterings held fixed"
    )
    return sampled(name, value, draws, n=n, how=how, bounds=(0, 1))


def held_out_auc(
    ids: Ids, label: NDArray[np.int64], fold: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """How well the share of fakes of one's cluster or category, taken from the other folds, tells a fake: AUC within
    each fold, mean over the folds with both classes; as a function of multiplicities ``(r, n)``.

    ``ids`` ``(n,)`` from 0, ``fold`` ``(n,)`` from 0. Samples of different folds are not compared: the more fakes a
    fold holds, the lower are the shares that the others give it, which would put the AUC below 0.5 where the label
    means nothing. So would leaving out the own group alone, by about 1 / (2 K). A cluster that the other folds lack
    has their share of all samples. NaN where there is one fold, or none with both classes.
    """
    k, count = int(ids.max()) + 1, int(fold.max()) + 1
    cells = np.zeros((len(ids), count * 2 * k), np.float32)
    cells[np.arange(len(ids)), (fold * 2 + label) * k + ids] = 1

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = (weights.astype(np.float32) @ cells).astype(np.float64).reshape(-1, count, 2, k)
        others = counts.sum(axis=1, keepdims=True) - counts
        size, total = others.sum(axis=2), others.sum(axis=(2, 3))
        overall = others[:, :, 1].sum(axis=2) / np.maximum(total, 1)
        share = np.where(size > 0, others[:, :, 1] / np.maximum(size, 1), overall[:, :, None])
        fake, real = share[:, :, :, None], share[:, :, None, :]
        won = np.einsum("rfk,rfl,rfkl->rf", counts[:, :, 1], counts[:, :, 0], (fake > real) + (fake == real) / 2)
        pairs = counts.sum(axis=3).prod(axis=2) * (total > 0)
        both = (pairs > 0).sum(axis=1)
        auc = np.where(pairs > 0, won / np.maximum(pairs, 1), 0).sum(axis=1)
        return np.divide(auc, both, out=np.full(len(auc), np.nan), where=both > 0)

    return statistic
