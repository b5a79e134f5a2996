"""A reference that fits the label, kept apart by name: a k-NN classifier in grouped cross-validation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.arrays import Array, Compute
from evaluation.bootstrap import Sampled, bootstrap, sampled
from evaluation.detection import weighted_auc
from evaluation.neighbours import tie_keys, vote_statistic
from evaluation.probes import FOLDS, every_fit_has_both_classes, folds
from evaluation.score import Score

CHOICES = (5, 10, 20, 50, 100)  # of k


def knn_probe_auc(
    features: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    *,
    replicates: int,
    seed: int,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> Sampled:
    """``knn_probe_auc``: AUC of the share of fakes among the k nearest neighbours in the training folds.

    Features must be normalised, and are not standardised. Folds are those of the linear probe. For each held-out fold,
    k is the one of 5, 10, 20, 50 and 100 (at most n/5; of equally good ones the largest) with the best AUC among the
    training samples, each asked of the training folds but its own: a fit that never sees the held-out fold. Group
    bootstrap in which neighbours and k are held fixed and neighbours vote as often as they are drawn, as in
    :mod:`evaluation.neighbours`.

    NaN, with the reason in ``how``, where the groups do not allow three folds with both classes left in each fit.
    Source: Cover and Hart, "Nearest neighbor pattern classification", IEEE Trans. Inf. Theory 13, 1967.
    """
    fold, n = folds(label, component, seed), len(label)
    numbers = np.unique(fold)
    if len(numbers) < 3 or not every_fit_has_both_classes(label, fold):
        how = "supervised reference: undefined: too few groups for three folds and both classes in each fit"
        undefined = Score("knn_probe_auc", math.nan, math.nan, math.nan, True, n, how)
        return Sampled(undefined, np.full(replicates, np.nan))
    choices = [k for k in CHOICES if k <= n // 5] or [max(1, n // 5)]
    distance, index = _nearest_of_each_fold(features, fold, choices[-1], compute)
    nearest, chosen = np.full((n, choices[-1]), -1), []
    for place, number in enumerate(numbers):
        found = _merged(np.delete(distance, place, axis=1), np.delete(index, place, axis=1), choices[-1])
        k = _best(found, label, fold != number, choices)
        held_out = np.flatnonzero(fold == number)
        nearest[held_out, :k] = found[held_out, :k]
        chosen.append(k)
    auc = float(weighted_auc(label, _shares(nearest, label)[:, -1], np.ones((1, n)))[0])
    draws = bootstrap(vote_statistic(nearest, label), component, replicates, seed)
    how = (
        "supervised reference: AUC of the share of fakes among the k nearest neighbours in the training folds of "
        f"grouped {FOLDS}-fold cross-validation, k chosen within them (here {', '.join(map(str, chosen))}); "
        "{interval}, in which neighbours and k are held fixed and neighbours vote as often as they are drawn"
    )
    return sampled("knn_probe_auc", auc, draws, n=n, how=how, bounds=(0, 1))


def _nearest_of_each_fold(
    x: NDArray[np.float32], fold: NDArray[np.int64], k: int, compute: Compute
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distances and indices ``(n, folds, k)`` of the nearest samples in each fold; infinite and -1 in one's own, and
    where a fold has fewer."""
    arrays, n, numbers = compute.arrays, len(x), np.unique(fold)
    on_device, keys = arrays.put(x), arrays.put(tie_keys(n))
    squares = arrays.put(np.einsum("ij,ij->i", x, x, dtype=np.float64).astype(np.float32))
    distance = np.full((n, len(numbers), k), np.inf, np.float32)
    index = np.full((n, len(numbers), k), -1, np.int64)
    for place, number in enumerate(numbers):
        members, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        among, size, most = arrays.put(members), squares[arrays.put(members)], min(k, len(members))
        step = max(1, compute.size(n) // len(members))
        for start in range(0, len(others), step):
            rows = others[start : start + step]
            squared = on_device[arrays.put(rows)] @ on_device[among].T
            squared *= -2
            squared += size
            squared += squares[arrays.put(rows)][:, None]
            distances = arrays.rounded(arrays.root_(squared))

            def priority(some: Array, rows: NDArray[np.int64] = rows, among: Array = among) -> Array:
                return keys[arrays.put(rows)][some, None] ^ keys[among][None]

            best = arrays.get(arrays.smallest(distances, most, priority))
            distance[rows, place, :most] = arrays.get(arrays.take(distances, arrays.put(best)))
            index[rows, place, :most] = members[best]
    return distance, index


def _merged(distance: NDArray[np.float32], index: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """``(n, k)`` indices of the nearest over all folds given, the nearest first; -1 where there are fewer."""
    distance, index = distance.reshape(len(distance), -1), index.reshape(len(index), -1)
    keys = tie_keys(len(index))
    order = np.lexsort((keys[index] ^ keys[:, None], distance), axis=1)[:, :k]
    return np.take_along_axis(index, order, axis=1)


def _best(nearest: NDArray[np.int64], label: NDArray[np.int64], train: NDArray[np.bool_], choices: list[int]) -> int:
    shares, one = _shares(nearest[train], label), np.ones((1, int(train.sum())))
    quality = [float(weighted_auc(label[train], shares[:, k - 1], one)[0]) for k in choices]
    return max(zip(quality, choices, strict=True))[1]


def _shares(nearest: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(n, k)`` share of fakes among the first 1 … k neighbours; 1/2 without any."""
    known = nearest >= 0
    fakes, count = np.cumsum(known * label[nearest], axis=1), np.cumsum(known, axis=1)
    return np.where(count > 0, fakes / np.maximum(count, 1), 0.5)
