"""Clusterings that never see the label, scored against it afterwards."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Sampled, bootstrap, sampled

CLUSTERS = (2, 4, 8, 16, 32)
METHODS = {"kmeans": "k-means", "ward": "Ward", "mixture": "Gaussian mixture", "spectral": "spectral"}
RUNS = 5  # independent k-means runs, averaged
STARTS = 3  # k-means++ starts of each run; the one of least inertia counts


def kmeans_runs(features: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
    """``(RUNS, n)`` cluster ids.

    Starts are drawn from the samples sorted by their distance from the mean, so that neither the order of the rows nor
    a rotation changes the result; one thread, so that the order of additions is fixed.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    order = canonical_order(features)
    found = np.empty((RUNS, len(features)), np.int64)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than k: some clusters stay empty
        for run in range(RUNS):
            model = KMeans(k, n_init=STARTS, random_state=seed + run)
            found[run, order] = model.fit_predict(features[order])
    return found


def canonical_order(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Samples sorted by their distance from the mean: one order, whatever that of the rows."""
    return np.argsort(np.einsum("ij,ij->i", features, features, dtype=np.float64), kind="stable")


def clustering_scores(
    method: str,
    k: int,
    clusterings: NDArray[np.int64],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    replicates: int,
    seed: int,
) -> tuple[Sampled, Sampled]:
    """``METHOD_ami_kK`` and ``METHOD_ari_kK``: agreement of ``(runs, n)`` clusterings with the label, mean over runs.

    Equal to scikit-learn's (arithmetic mean of entropies in the AMI). In resamples the expected mutual information is
    held at the sample's, from which it differs in second order only.
    """
    tables = [_cells(ids, label) for ids in clusterings]
    cells = np.concatenate(tables, axis=1)
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    chance = [_expected_information(table.sum(axis=0)) for table in tables]

    def of_runs(weights: NDArray[np.float64]) -> NDArray[np.float64]:  # (runs, r, 2)
        # Counts up to 2^24 are exact in float32, at half the price of the product.
        counts = (weights.astype(np.float32) @ cells).astype(np.float64)
        parts = zip(np.split(counts, ends, axis=1), chance, strict=True)
        return np.array([np.stack([_ami(part, expected), _ari(part)], axis=1) for part, expected in parts])

    runs = of_runs(np.ones((1, len(label))))[:, 0]
    values = runs.mean(axis=0)
    draws = bootstrap(lambda weights: of_runs(weights).mean(axis=0), component, replicates, seed)
    titles = {"ami": "adjusted mutual information", "ari": "adjusted Rand index"}
    scores = []
    for column, (short, title) in enumerate(titles.items()):
        how = f"{title} of {METHODS[method]} clusters with the label, mean of {len(clusterings)} runs"
        if len(runs) > 1:  # of other seeds, which the interval does not cover
            how += f" (here {runs[:, column].min():.3f} to {runs[:, column].max():.3f})"
        how += "; {interval}, clusterings held fixed"
        scores.append(
            sampled(f"{method}_{short}_k{k}", values[column], draws[:, column], n=len(label), how=how, bounds=(-1, 1))
        )
    return scores[0], scores[1]


def table_scores(
    clusterings: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AMI and ARI of ``(runs, n)`` clusterings with each of ``(r, n)`` labellings, ``(r,)`` means over runs."""
    ami, ari = [], []
    for ids in clusterings:
        members = np.eye(ids.max() + 1, dtype=np.float32)[ids]
        fakes = (labels.astype(np.float32) @ members).astype(np.float64)
        counts = np.stack([members.sum(axis=0) - fakes, fakes], axis=2).reshape(len(labels), -1)
        # The chance term depends on the number of fakes alone.
        sizes, which = np.unique(labels.sum(axis=1), return_inverse=True)
        first = [np.flatnonzero(which == i)[0] for i in range(len(sizes))]
        chance = np.array([_expected_information(counts[i]) for i in first])[which]
        ami.append(_ami(counts, chance))
        ari.append(_ari(counts))
    return np.mean(ami, axis=0), np.mean(ari, axis=0)


def _cells(ids: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.float32]:
    """``(n, 2 k)`` membership in each cell of the table clusters × label."""
    ids = np.unique(ids, return_inverse=True)[1]
    cells = np.zeros((len(ids), 2 * (ids.max() + 1)), np.float32)
    cells[np.arange(len(ids)), 2 * ids + label] = 1
    return cells


def _expected_information(counts: NDArray) -> float:
    from scipy.sparse import csr_matrix
    from sklearn.metrics.cluster import expected_mutual_information

    table = np.rint(counts).astype(np.int64).reshape(-1, 2)
    return float(expected_mutual_information(csr_matrix(table), int(table.sum())))


def _ami(counts: NDArray[np.float64], expected: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """``(r,)`` AMI of tables ``(r, 2 k)``; 0 for a single cluster, NaN where a class is missing."""
    table = counts.reshape(len(counts), -1, 2) / counts.sum(axis=1)[:, None, None]
    clusters, classes = _entropy(table.sum(axis=2)), _entropy(table.sum(axis=1))
    information = clusters + classes - _entropy(table.reshape(len(table), -1))
    ami = (information - expected) / ((clusters + classes) / 2 - expected)
    return np.where(classes > 0, np.where(clusters > 0, ami, 0.0), np.nan)


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import entr

    return entr(shares).sum(axis=1)


def _ari(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(r,)`` ARI of tables ``(r, 2 k)`` (Hubert and Arabie 1985); 0 for a single cluster, NaN without a class."""
    table = counts.reshape(len(counts), -1, 2)
    n = counts.sum(axis=1)
    classes = table.sum(axis=1)
    both, rows, columns, pairs = (
        (_pairs(table).sum(axis=(1, 2))),
        (_pairs(table.sum(axis=2)).sum(axis=1)),
        (_pairs(classes).sum(axis=1)),
        _pairs(n),
    )
    expected = rows * columns / pairs
    span = (rows + columns) / 2 - expected
    ari = np.divide(both - expected, span, out=np.zeros_like(span), where=span != 0)
    return np.where((classes > 0).all(axis=1), ari, np.nan)


def _pairs(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts * (counts - 1) / 2
