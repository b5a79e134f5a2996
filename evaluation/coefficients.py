"""Correlation of two sides over backbones: the weighted Kendall tau, Spearman's and Pearson's, of many sets at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Coefficient = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Two sides of (..., m), which broadcast, to (...)."""


def weighted_kendall(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau that weighs exchanges among the best most (Vigna, WWW 2015), as scipy's ``weightedtau``.

    ``x`` and ``y`` are ``(..., m)`` and broadcast. The pair i, j weighs ``1/(rank i) + 1/(rank j)``; mean of the taus
    with the ranks (from the highest) by x and by y, the other breaking ties. NaN for a constant side.
    """
    x, y = np.broadcast_arrays(x, y)
    signs_x, signs_y = (np.sign(side[..., :, None] - side[..., None, :]) for side in (x, y))
    # A pair's weight is a sum over its two members, so that each backbone counts its own pairs and weighs them once.
    pairs = ((signs_x, signs_y), (signs_x, signs_x), (signs_y, signs_y))
    counts = [np.einsum("...ij,...ij->...i", first, second) for first, second in pairs]

    def tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        inverse_rank = 1 / (1 + np.argsort(np.lexsort((-second, -first), axis=-1), axis=-1))
        both, xx, yy = (np.einsum("...i,...i->...", count, inverse_rank) for count in counts)
        return _ratio(both, np.sqrt(xx * yy))

    return (tau(x, y) + tau(y, x)) / 2


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation; shapes as in :func:`weighted_kendall`."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r; shapes as in :func:`weighted_kendall`. NaN where a side is constant."""
    x, y = (side - side.mean(axis=-1, keepdims=True) for side in (x, y))
    return _ratio(np.sum(x * y, axis=-1), np.sqrt(np.sum(x * x, axis=-1) * np.sum(y * y, axis=-1)))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


COEFFICIENTS: Mapping[str, Coefficient] = {
    "weighted_kendall": weighted_kendall,
    "spearman": spearman,
    "pearson": pearson,
}
