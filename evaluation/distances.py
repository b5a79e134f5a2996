"""One pass over all pairs of samples, each pair once, for every score that needs Euclidean distances.

Distances come from float32 matrix products, ``|x - y|² = |x|² + |y|² - 2 x·y``, which is exact enough only where the
result is not much smaller than its terms. Features are therefore centred first (an offset of 100 would destroy float32
neighbours), and pairs in which the terms still cancel are computed again from differences in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.arrays import Array, Compute, Host, Torch

_CANCELLED = 0.02  # below this share of |x|², float32 has lost more than 1 part in 10^5 of |x - y|²


class Tile(NamedTuple):
    """Values of pairs: ``rows`` against themselves and all later samples. Earlier ones came in earlier tiles."""

    arrays: Host | Torch
    rows: slice
    values: Array  # (rows, n - rows.start) distances; column 0 is the sample rows.start
    own: tuple[NDArray[np.int64], NDArray[np.int64]]  # indices into values of pairs within one component

    @property
    def start(self) -> int:
        return self.rows.start

    @property
    def square(self) -> int:
        """Columns before this one are the rows themselves; pairs with later columns stand for their mirror, too."""
        return self.rows.stop - self.rows.start


def normalised(features: NDArray) -> NDArray[np.float32]:
    """``(n, d)`` float32 features, moved to mean zero and scaled to a root mean square distance of 1 from the mean.

    Every separability score is invariant to both. Raises ValueError when all rows are equal.
    """
    moved = features - features.mean(axis=0, dtype=np.float64)
    largest = np.abs(moved).max()
    if largest <= 1e-12 * np.abs(features).max():  # what rounding of the mean leaves of equal rows
        raise ValueError("features are constant: all rows are equal, nothing can be separated")
    moved /= largest  # squares of tiny or huge features neither vanish nor overflow
    return (moved / np.sqrt(np.mean(np.sum(moved**2, axis=1)))).astype(np.float32)


def pass_over_pairs(
    features: NDArray[np.float32],
    component: NDArray[np.int64],
    compute: Compute,
    *takers: Callable[[Tile], None],
) -> None:
    """Give each taker all tiles of centred ``features`` ``(n, d)``, in order. Takers must not change a tile.

    On a CPU with several cores they work beside each other and beside the computation of the next tile, on a thread
    each, as far as there are cores. BLAS gets the cores that are left: its own threads would spin while a single one
    does the rest, which is most of the work. Results are the same to the bit.
    """
    found = tiles(features, component, compute)
    cores = _blas_threads() if compute.device == "cpu" else 1
    if cores == 1:
        for tile in found:
            for take in takers:
                take(tile)
        return
    from threadpoolctl import threadpool_limits

    workers = 1 + len(takers)
    with threadpool_limits(max(1, cores // workers), "blas"), ThreadPoolExecutor(min(workers, cores)) as pool:
        tile = next(found, None)
        while tile is not None:
            following = pool.submit(next, found, None)
            for work in [pool.submit(take, tile) for take in takers]:
                work.result()
            tile = following.result()


def _blas_threads() -> int:
    """Threads that BLAS may use here: as many as there are cores for this process."""
    from threadpoolctl import threadpool_info

    return max((each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"), default=1)


def tiles(features: NDArray[np.float32], component: NDArray[np.int64], compute: Compute) -> Iterator[Tile]:
    """Euclidean distances between the rows of centred ``features`` ``(n, d)``, some rows at a time."""
    arrays, n = compute.arrays, len(features)
    size = compute.size(n)
    x = arrays.put(features)
    squares = arrays.put(np.einsum("ij,ij->i", features, features, dtype=np.float64).astype(np.float32))
    own = _OwnPairs(component)
    start = 0
    while start < n:
        rows = slice(start, min(n, start + max(1, size // (n - start))))
        yield Tile(arrays, rows, _distances(arrays, x, squares, rows, size), own.among(rows))
        start = rows.stop


def _distances(arrays: Host | Torch, x: Array, squares: Array, rows: slice, most: int) -> Array:
    later = slice(rows.start, None)
    squared = x[rows] @ x[later].T
    squared *= -2
    squared += squares[later]
    squared += squares[rows, None]
    row, column = arrays.where(squared < _CANCELLED * squares[rows, None])
    block = max(1, most // x.shape[1])
    for first in range(0, len(row), block):
        i, j = row[first : first + block], column[first : first + block]
        squared[i, j] = arrays.squared_differences(x[rows][i], x[later][j])
    return arrays.root_(squared)


class _OwnPairs:
    """Pairs of samples of the same component, a sample with itself included."""

    def __init__(self, component: NDArray[np.int64]) -> None:
        self.component = component
        self.order = np.argsort(component, kind="stable")
        self.size = np.bincount(component)
        self.start = np.cumsum(self.size) - self.size

    def among(self, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column in the tile of ``rows``, which has no earlier samples."""
        component = self.component[rows]
        counts = self.size[component]
        row = np.repeat(np.arange(len(component)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        column = self.order[self.start[component[row]] + within] - rows.start
        return row[column >= 0], column[column >= 0]


class Products:
    """``V @ W`` of the symmetric matrix V of all pairs, which comes in tiles, and of W that are zero outside a block.

    ``weights``: (block of samples, ``(samples in it, r)`` float32). ``of[b]`` is ``(n, r)`` after the last tile.
    """

    def __init__(self, arrays: Host | Torch, n: int, weights: Sequence[tuple[slice, NDArray[np.float32]]]) -> None:
        self.arrays = arrays
        self.weights = [(block, arrays.put(each)) for block, each in weights]
        self._of = [arrays.full((n, each.shape[1]), 0) for _, each in weights]
        self.n = n

    def add(self, tile: Tile) -> None:
        later, beyond = slice(tile.start, self.n), slice(tile.rows.stop, self.n)
        for (block, weights), out in zip(self.weights, self._of, strict=True):
            columns, rows = overlap(block, later), overlap(block, tile.rows)
            out[tile.rows] += tile.values[:, moved(columns, tile.start)] @ weights[moved(columns, block.start)]
            mirrored = tile.values[moved(rows, tile.start), tile.square :].T
            out[beyond] += mirrored @ weights[moved(rows, block.start)]

    @property
    def of(self) -> list[NDArray[np.float32]]:
        return [self.arrays.get(each) for each in self._of]


class Forms:
    """``sum_ij A_ir V_ij B_jr`` of the symmetric matrix V of all pairs, for all pairs A, B of W as in
    :class:`Products`, without holding their products. ``of[a][b]`` is ``(r,)`` float64."""

    def __init__(self, arrays: Host | Torch, n: int, weights: Sequence[tuple[slice, NDArray[np.float32]]]) -> None:
        self.weights = [(block, arrays.put(each)) for block, each in weights]
        self.n = n
        self.of = [[np.zeros(1) for _ in weights] for _ in weights]

    def add(self, tile: Tile) -> None:
        square, beyond = tile.rows, slice(tile.rows.stop, self.n)
        for b, (block, weights) in enumerate(self.weights):
            for part in (square, beyond):
                columns = overlap(block, part)
                product = tile.values[:, moved(columns, tile.start)] @ weights[moved(columns, block.start)]
                for a, (other, left) in enumerate(self.weights):
                    rows = overlap(other, tile.rows)
                    terms = left[moved(rows, other.start)] * product[moved(rows, tile.start)]
                    sums = tile.arrays.sums(terms, 0)
                    self.of[a][b] = self.of[a][b] + sums
                    if part is beyond:
                        self.of[b][a] = self.of[b][a] + sums


def overlap(a: slice, b: slice) -> slice:
    """What two ranges of samples share; empty where they do not meet."""
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def moved(a: slice, origin: int) -> slice:
    """The same range, counted from ``origin``."""
    return slice(a.start - origin, a.stop - origin)
