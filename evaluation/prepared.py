"""Features as the label-free scores want them: checked, normalised, sorted by label; their clusterings, made once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.checks import binary_label, components, finite
from evaluation.clustering import kmeans_runs
from evaluation.distances import normalised


@dataclass(frozen=True)
class Prepared:
    """One backbone's features on one data set."""

    space: NDArray[np.float32]
    """``(n, d)``, mean zero and total variance one."""
    label: NDArray[np.int64]
    """``(n,)`` sorted: real samples first."""
    component: NDArray[np.int64]
    """``(n,)`` independent units."""
    unit: NDArray[np.int64] | None = None
    """``(n,)`` what is exchanged as a whole under the null of :mod:`evaluation.null`; None: each sample."""
    _kmeans: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, features: ArrayLike, label: ArrayLike, group: ArrayLike, unit: ArrayLike | None = None) -> Prepared:
        """Without ``unit`` ``(n,)``, each sample is one. Raises ValueError for what
        :func:`evaluation.separability.separability` does not take."""
        label = binary_label(label)
        component = components(group, len(label))
        if component.max() == 0:
            raise ValueError("all samples are tied into one group; at least two independent groups are needed")
        space = normalised(finite("features", features, len(label), ndim=2))
        if unit is not None and np.shape(unit) != label.shape:
            raise ValueError(f"unit must have shape {label.shape} like the labels, got {np.shape(unit)}")
        order = np.argsort(label, kind="stable")
        return cls(space[order], label[order], component[order], None if unit is None else np.asarray(unit)[order])

    def kmeans(self, k: int, seed: int) -> NDArray[np.int64]:
        """Cluster ids of :func:`evaluation.clustering.kmeans_runs`."""
        if (k, seed) not in self._kmeans:
            self._kmeans[k, seed] = kmeans_runs(self.space, k, seed)
        return self._kmeans[k, seed]
