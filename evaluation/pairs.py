"""Sums of a pairwise quantity over the classes, in the sample and in all group resamples, from one pass over pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.arrays import Host, Torch
from evaluation.bootstrap import group_counts
from evaluation.distances import Forms, Products, Tile, moved, overlap


class RowSums:
    """Sums of each sample over the samples of every block, ``(n, blocks)`` float64 after the last tile.

    ``all`` over all samples of the block, ``own`` over those of the sample's own component.
    """

    def __init__(self, n: int, blocks: Sequence[slice]) -> None:
        self.n, self.blocks = n, list(blocks)
        self.block_of = np.zeros(n, np.int64)
        for number, block in enumerate(blocks):
            self.block_of[block] = number
        self.all, self.own = np.zeros((n, len(self.blocks))), np.zeros((n, len(self.blocks)))

    def add(self, tile: Tile) -> None:
        later, beyond = slice(tile.start, self.n), slice(tile.rows.stop, self.n)
        for number, block in enumerate(self.blocks):
            columns, rows = (moved(overlap(block, part), tile.start) for part in (later, tile.rows))
            self.all[tile.rows, number] += tile.arrays.sums(tile.values[:, columns], 1)
            self.all[beyond, number] += tile.arrays.sums(tile.values[rows, tile.square :], 0)
        row, column = tile.own
        values = tile.arrays.get(tile.values[tile.own])
        mirror = column >= tile.square
        np.add.at(self.own, (row + tile.start, self.block_of[column + tile.start]), values)
        np.add.at(self.own, (column[mirror] + tile.start, self.block_of[row[mirror] + tile.start]), values[mirror])


class Resamples:
    """Multiplicities of groups and classes. Samples must be sorted by label, so that a class is a block."""

    def __init__(self, label: NDArray[np.int64], component: NDArray[np.int64], replicates: int, seed: int) -> None:
        if np.any(np.diff(label) < 0):
            raise ValueError("samples must be sorted by label, real first")
        groups = int(component.max()) + 1
        self.label, self.component = label, component
        self.copies = group_counts(groups, replicates, seed).T.astype(np.float32)  # (groups, replicates)
        self.sizes = np.zeros((groups, 2), np.float32)  # samples of each class in each group
        np.add.at(self.sizes, (component, label), 1)
        reals = int(np.sum(label == 0))
        self.blocks = (slice(0, reals), slice(reals, len(label)))
        self.weights = [(block, self.copies[component[block]]) for block in self.blocks]  # (n_c, replicates) each
        self.totals = [(self.sizes[:, c] @ self.copies).astype(np.float32) for c in (0, 1)]  # (replicates,)

    def per_sample(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """``sums`` ``(replicates,)`` over the samples drawn; NaN where a class is missing."""
        missing = (self.totals[0] == 0) | (self.totals[1] == 0)
        return np.where(missing, np.nan, sums / (self.totals[0] + self.totals[1]))


class PairSums:
    """Sums of a pairwise quantity over real and fake samples: of each sample (``each``), or over all pairs alone."""

    def __init__(self, arrays: Host | Torch, resamples: Resamples, *, each: bool) -> None:
        n = len(resamples.label)
        self.resamples = resamples
        self.rows = RowSums(n, resamples.blocks)
        self.drawn = (Products if each else Forms)(arrays, n, resamples.weights)

    def add(self, tile: Tile) -> None:
        self.rows.add(tile)
        self.drawn.add(tile)

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means over pairs from different groups: ``(2, 2)`` of the sample and ``(2, 2, replicates)``.

        A U-statistic over independent units: without groups of more than one sample it is the usual unbiased one. NaN
        where there is no pair from different groups.
        """
        resamples, label = self.resamples, self.resamples.label
        own = np.zeros((len(resamples.sizes), 2, 2))
        np.add.at(own, (resamples.component, label), self.rows.own)
        sample = np.stack([self.rows.all[block].sum(axis=0) for block in resamples.blocks]) - own.sum(axis=0)
        copies = resamples.copies.astype(np.float64)
        drawn = np.array(self._forms()) - np.einsum("gab,gr->abr", own, copies**2)
        sizes = resamples.sizes.astype(np.float64)
        return _ratio(sample, _pairs(sizes, np.ones((len(sizes), 1)))[:, :, 0]), _ratio(drawn, _pairs(sizes, copies))

    def _forms(self) -> list[list[NDArray[np.float64]]]:
        if isinstance(self.drawn, Forms):
            return self.drawn.of
        return [
            [np.einsum("ir,ir->r", weights, product[block], dtype=np.float64) for product in self.drawn.of]
            for block, weights in self.resamples.weights
        ]


def _pairs(sizes: NDArray[np.float64], copies: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(2, 2, r)``: number of pairs of samples from different groups, by class."""
    totals = sizes.T @ copies
    within = np.einsum("ga,gb,gr->abr", sizes, sizes, copies**2)
    return totals[:, None] * totals[None] - within


def _ratio(sums: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(sums, pairs, out=np.full(sums.shape, np.nan), where=pairs > 0)
