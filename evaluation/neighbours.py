"""Nearest neighbours from other groups, and how well the fakes among them tell a fake."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.arrays import Array, Compute
from evaluation.bootstrap import Sampled, Statistic, bootstrap, sampled
from evaluation.detection import weighted_auc
from evaluation.distances import Tile, pass_over_pairs

NEIGHBOURS = (20, 5, 100)


def tie_keys(n: int) -> NDArray[np.int64]:
    """``(n,)`` random numbers. Of samples at equal distances from sample i, those come first whose key, in an exclusive
    or with that of i, is least: another order for each i. In that of the rows, which are sorted by label, the
    neighbours of images that a backbone maps to one point would all be of one class."""
    return np.random.default_rng(0).integers(2**31, size=n)


class OtherGroupNeighbours:
    """The k nearest neighbours of each sample outside its own component, collected tile by tile.

    The own component is left out because it may hold the very photograph that a fake was made from. Samples at equal
    distances are taken in the random order of :func:`tie_keys`; equal is what differs by less than one part in a
    million, as rounding may, which depends on the rows.
    """

    def __init__(self, label: NDArray[np.int64], component: NDArray[np.int64], headline_only: bool = False) -> None:
        self.label, self.component = label, component
        others = len(label) - np.bincount(component).max()
        # Leaving out one's own label makes it rarer among the rest, which biases the AUC below 0.5 by about
        # 0.56 sqrt(k) / n without any signal: k is limited to a fifth of n, where this stays under 0.01 for n > 500.
        most = max(1, min(others, len(label) // 5))
        ks = [k for k in NEIGHBOURS if k <= most] or [most]
        self.ks = ks[:1] if headline_only else ks
        self._key = tie_keys(len(label))
        self._distance: Array = None
        self._index: Array = None

    def add(self, tile: Tile) -> None:
        if self._distance is None:
            shape = (len(self.label), max(self.ks))
            self._arrays, self._keys = tile.arrays, tile.arrays.put(self._key)
            self._distance, self._index = tile.arrays.full(shape, np.inf), tile.arrays.full(shape, -1, "int64")
        distances = tile.arrays.rounded(tile.values)
        distances[tile.own] = np.inf
        self._merge(tile.rows, distances, tile.start)
        self._merge(slice(tile.rows.stop, len(self.label)), distances[:, tile.square :].T, tile.start)

    def _merge(self, samples: slice, distances: Array, first: int) -> None:
        """Keep the nearest of what ``samples`` have and of the candidates ``first``, ``first`` + 1, …"""
        if samples.start == samples.stop:
            return
        arrays, k = self._arrays, self._distance.shape[1]
        candidates = arrays.join(self._distance[samples], distances)

        def priority(rows: Array) -> Array:
            known, new = self._index[samples][rows], self._keys[None, first : first + distances.shape[1]]
            keys = arrays.join(self._keys[known], arrays.repeat(new, len(rows)))
            return keys ^ self._keys[samples][rows, None]

        best = arrays.smallest(candidates, k, priority)
        self._distance[samples] = arrays.take(candidates, best)
        known = arrays.take(self._index[samples], best.clip(0, k - 1))
        self._index[samples] = arrays.choose(best < k, known, best - k + first)

    @property
    def nearest(self) -> NDArray[np.int64]:
        """``(n, k)``, the nearest first."""
        distance, index = self._arrays.get(self._distance), self._arrays.get(self._index)
        order = np.lexsort((self._key[index] ^ self._key[:, None], distance), axis=1)
        return np.take_along_axis(index, order, axis=1)

    def scores(self, replicates: int, seed: int) -> list[Sampled]:
        """``knn_auc_kK`` for each k; the first is the headline."""
        nearest = self.nearest
        return [neighbour_score(nearest[:, :k], self.label, self.component, replicates, seed) for k in self.ks]


def neighbour_score(
    nearest: NDArray[np.int64], label: NDArray[np.int64], component: NDArray[np.int64], replicates: int, seed: int
) -> Sampled:
    """``knn_auc_kK``: AUC of the share of fakes among the neighbours ``(n, k)``."""
    k, share = nearest.shape[1], label[nearest].mean(axis=1)
    value = float(weighted_auc(label, share, np.ones((1, len(share))))[0])
    draws = bootstrap(vote_statistic(nearest, label), component, replicates, seed)
    how = f"AUC of the share of fakes among the {k} nearest neighbours (Euclidean) from other groups"
    how += "; {interval}, in which neighbours are held fixed and vote as often as they are drawn"
    return sampled(f"knn_auc_k{k}", value, draws, n=len(share), how=how, bounds=(0, 1))


def vote_statistic(nearest: NDArray[np.int64], label: NDArray[np.int64]) -> Statistic:
    """AUC of the share of fakes among the neighbours ``(n, k)``, -1 for none, in a resample: both the samples that are
    asked and the neighbours that vote carry their multiplicity.

    With fixed votes, intervals miss the truth two to four times as often as they should: neighbours are a training
    set, and shared by many samples. A sample without a drawn neighbour is undecided (1/2).
    """
    from scipy.sparse import csr_array

    n, known = len(label), nearest >= 0
    ends = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    voters = csr_array((np.ones(ends[-1], np.float32), nearest[known], ends), shape=(n, n))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights.T.astype(np.float32)
        votes = voters @ drawn
        shares = np.where(votes > 0, (voters @ (drawn * label[:, None])) / np.maximum(votes, 1), 0.5)
        rows = zip(shares.T, weights, strict=True)
        return np.array([weighted_auc(label, share, row[None])[0] for share, row in rows])

    return statistic


def nearest_others(
    space: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> NDArray[np.int64]:
    """``(n, k)`` neighbours from other groups of normalised features, for the k of the headline."""
    neighbours = OtherGroupNeighbours(label, component, headline_only=True)
    pass_over_pairs(space, component, compute, neighbours.add)
    return neighbours.nearest


def neighbour_auc(
    space: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    replicates: int,
    seed: int,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> Sampled:
    """The headline score alone, of normalised features: ``knn_auc_k20``, or the largest k that n allows."""
    return neighbour_score(nearest_others(space, label, component, compute), label, component, replicates, seed)
