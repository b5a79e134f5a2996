"""The few operations of the pass over pairs that NumPy and torch write differently: CPU or GPU by one argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU_CHUNK = 4_000_000  # 16 MB of distances: small enough for the caches to help
LEAST_ROWS = 256  # of a chunk by default: with fewer, keeping the nearest neighbours costs more than the distances
GPU_CHUNK = 100_000_000  # 400 MB

_LAST = 2**31  # after every priority

Array = Any  # an NDArray or a torch.Tensor, of the same operators


@dataclass(frozen=True)
class Compute:
    """Where pairwise distances are computed, and how many of them are held at a time.

    Besides ``chunk`` distances of 4 bytes, those that come next and a few temporary arrays of that size, a pass holds
    about 16 bytes per sample and replicate. Results differ between devices and chunks by rounding only.
    """

    device: str = "cpu"
    """``cpu`` (NumPy), or a torch device such as ``cuda``."""
    chunk: int = 0
    """Distances held at a time; 0: those of 256 samples, and at least 4 million on a CPU and 100 million on a GPU."""

    @property
    def arrays(self) -> Host | Torch:
        return Host() if self.device == "cpu" else Torch(self.device)

    def size(self, n: int) -> int:
        """Distances held at a time, of ``n`` samples."""
        return self.chunk or max(LEAST_ROWS * n, CPU_CHUNK if self.device == "cpu" else GPU_CHUNK)


def _round_(bits: Array) -> None:
    """Of float32, whose last three bits go."""
    bits += 4
    bits &= -8


class Host:
    """NumPy."""

    def put(self, values: NDArray) -> Array:
        return values

    def get(self, values: Array) -> NDArray:
        return values

    def full(self, shape: tuple[int, ...], value: float, dtype: str = "float32") -> Array:
        return np.full(shape, value, dtype)

    def copy(self, values: Array) -> Array:
        return values.copy()

    def rounded(self, values: Array) -> Array:
        """A copy of float32 to one part in a million, the eighth of what they tell apart."""
        copy = values.copy()
        _round_(copy.view(np.int32))
        return copy

    def exp_(self, values: Array) -> Array:
        return np.exp(values, out=values)

    def root_(self, values: Array) -> Array:
        return np.sqrt(np.maximum(values, 0, out=values), out=values)

    def sums(self, values: Array, axis: int) -> NDArray[np.float64]:
        """Sums of float32 in float64."""
        return values.sum(axis=axis, dtype=np.float64)

    def where(self, mask: Array) -> tuple[Array, Array]:
        """Rows and columns of a rarely true mask."""
        return np.divmod(np.flatnonzero(mask), mask.shape[1])

    def squared_differences(self, a: Array, b: Array) -> Array:
        difference = a.astype(np.float64) - b
        return np.einsum("ij,ij->i", difference, difference)

    def join(self, a: Array, b: Array) -> Array:
        return np.concatenate([a, b], axis=1)

    def repeat(self, row: Array, times: int) -> Array:
        return np.repeat(row, times, axis=0)

    def take(self, values: Array, columns: Array) -> Array:
        return np.take_along_axis(values, columns, axis=1)

    def choose(self, mask: Array, a: Array, b: Array) -> Array:
        return np.where(mask, a, b)

    def smallest(self, values: Array, k: int, priority: Callable[[Array], Array]) -> Array:
        """``(rows, k)`` columns of the smallest values of each row, in no order.

        Where equal values do not all fit, those of lowest ``priority(rows)`` are taken, integers ``(rows, columns)``.
        """
        kth = np.partition(values, k - 1, axis=1)[:, k - 1 : k]
        mask = values <= kth
        ties = np.flatnonzero(np.count_nonzero(mask, axis=1) > k)  # float32 has few values
        if len(ties):
            rank = np.where(values[ties] < kth[ties], -1, np.where(mask[ties], priority(ties), _LAST))
            mask[ties] = False
            mask[ties[:, None], np.argpartition(rank, k - 1, axis=1)[:, :k]] = True
        return np.flatnonzero(mask).reshape(-1, k) - np.arange(len(values))[:, None] * values.shape[1]


class Torch:
    """torch, on any of its devices."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.device = torch, torch.device(device)

    def put(self, values: NDArray) -> Array:
        return self.torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def get(self, values: Array) -> NDArray:
        return values.cpu().numpy()

    def full(self, shape: tuple[int, ...], value: float, dtype: str = "float32") -> Array:
        return self.torch.full(shape, value, dtype=getattr(self.torch, dtype), device=self.device)

    def copy(self, values: Array) -> Array:
        return values.clone()

    def rounded(self, values: Array) -> Array:
        copy = values.clone()
        _round_(copy.view(self.torch.int32))
        return copy

    def exp_(self, values: Array) -> Array:
        return values.exp_()

    def root_(self, values: Array) -> Array:
        return values.clamp_(min=0).sqrt_()

    def sums(self, values: Array, axis: int) -> NDArray[np.float64]:
        return self.get(values.sum(axis, dtype=self.torch.float64))

    def where(self, mask: Array) -> tuple[Array, Array]:
        return mask.nonzero(as_tuple=True)

    def squared_differences(self, a: Array, b: Array) -> Array:
        return ((a.double() - b.double()) ** 2).sum(1).float()

    def join(self, a: Array, b: Array) -> Array:
        return self.torch.cat([a, b], 1)

    def repeat(self, row: Array, times: int) -> Array:
        return row.expand(times, -1)

    def take(self, values: Array, columns: Array) -> Array:
        return values.gather(1, columns)

    def choose(self, mask: Array, a: Array, b: Array) -> Array:
        return self.torch.where(mask, a, b)

    def smallest(self, values: Array, k: int, priority: Callable[[Array], Array]) -> Array:
        least = self.torch.topk(values, k, dim=1, largest=False)
        best, kth = least.indices, least.values[:, -1:]
        ties = ((values <= kth).sum(1) > k).nonzero()[:, 0]
        if len(ties):
            near, kth = values[ties], kth[ties]
            rank = self.torch.where(near == kth, priority(ties), _LAST)
            rank = self.torch.where(near < kth, -1, rank)
            best[ties] = self.torch.topk(rank, k, dim=1, largest=False).indices
        return best
