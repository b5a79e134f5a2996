"""The order in which training sees the samples: one endless global sequence, known everywhere, stored nowhere.

Each epoch is a permutation of all samples. Shards are permuted; consecutive windows of ``window`` shards are then
permuted sample by sample, so that reads stay inside a few files and a restart touches one window only. With the
global shuffle at packing time, what a window holds is already a random draw.

The permutation is our own two lines (sort by SplitMix64 hashes) rather than a library's generator: the order is part
of a run's state and may not change with a NumPy version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

WINDOW = 16
"""Shards shuffled together."""


def splitmix64(state: np.ndarray | np.uint64, outputs: int = 1) -> np.ndarray:
    """The first ``outputs`` of the SplitMix64 generator from ``state``, a uint64 that broadcasts against (outputs,).

    Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014. Output i is computed from the state
    and i alone. Those of one state are all different (an odd step and a bijective mix).
    """
    with np.errstate(over="ignore"):
        z = state + np.arange(1, outputs + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permutation(n: int, key: int) -> np.ndarray:
    """A permutation of ``range(n)`` (int64) that depends on the 64-bit ``key`` alone, on every machine and version:
    the ranks of n different random numbers."""
    return np.argsort(splitmix64(np.uint64(key), n)).astype(np.int64, copy=False)


class SampleOrder:
    """The global sequence of sample indices, a pure function of (seed, digest, samples per shard, window).

    ``samples_per_shard[s]`` samples of shard s have the indices that follow those of shard s - 1. ``digest`` names
    the data, so that other data give another order. Memory and the cost of jumping to any position are those of one
    window, plus one number per shard.
    """

    def __init__(self, samples_per_shard: Sequence[int], seed: int, digest: str, window: int = WINDOW) -> None:
        self._sizes = np.asarray(samples_per_shard, dtype=np.int64)
        if self._sizes.ndim != 1 or (self._sizes < 0).any() or self._sizes.sum() == 0:
            raise ValueError("samples_per_shard: expected counts >= 0, not all 0")
        if window < 1:
            raise ValueError(f"window={window}: expected at least one shard")
        self.samples = int(self._sizes.sum())
        self.seed, self.digest, self.window = seed, digest, window
        self._first = np.cumsum(self._sizes) - self._sizes  # index of each shard's first sample
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._window: tuple[int, int, np.ndarray] | None = None

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and epoch, both int64 of shape (stop - start,), at positions [start, stop) of the sequence."""
        if not 0 <= start <= stop:
            raise ValueError(f"take({start}, {stop}): expected 0 <= start <= stop")
        index = np.empty(stop - start, np.int64)
        position = start
        while position < stop:
            epoch, offset = divmod(position, self.samples)
            _, ends = self._shards(epoch)
            window = int(np.searchsorted(ends, offset, side="right"))
            inside = self._indices(epoch, window)
            inside = inside[len(inside) - (int(ends[window]) - offset) :][: stop - position]
            index[position - start : position - start + len(inside)] = inside
            position += len(inside)
        return index, np.arange(start, stop, dtype=np.int64) // self.samples

    def next_window(self, position: int) -> list[int]:
        """The shards that are read together after those of this position, in the order of the epoch."""
        epoch, offset = divmod(position, self.samples)
        shards, ends = self._shards(epoch)
        window = int(np.searchsorted(ends, offset, side="right")) + 1
        if window == len(ends):
            shards, window = self._shards(epoch + 1)[0], 0
        return shards[window * self.window : (window + 1) * self.window].tolist()

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's permutation of shards, and the position in the epoch at which each window ends."""
        if epoch not in self._epochs:
            shards = permutation(len(self._sizes), self._key(epoch, "shards"))
            windows = np.arange(0, len(shards), self.window)
            before = {e: kept for e, kept in self._epochs.items() if e == epoch - 1}  # not yet at its end
            self._epochs = {**before, epoch: (shards, np.cumsum(np.add.reduceat(self._sizes[shards], windows)))}
        return self._epochs[epoch]

    def _indices(self, epoch: int, window: int) -> np.ndarray:
        """The samples of one window, in their order."""
        if self._window is None or self._window[:2] != (epoch, window):
            shards = self._shards(epoch)[0][window * self.window : (window + 1) * self.window]
            members = np.concatenate([np.arange(self._sizes[s]) + self._first[s] for s in shards])
            self._window = epoch, window, members[permutation(len(members), self._key(epoch, window))]
        return self._window[2]

    def _key(self, epoch: int, part: int | str) -> int:
        text = f"{self.seed}/{self.digest}/{epoch}/{part}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
