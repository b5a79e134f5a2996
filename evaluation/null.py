"""What the separability scores would be if the label meant nothing: a permutation null that respects groups."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.arrays import Compute, Host, Torch
from evaluation.clustering import CLUSTERS, table_scores
from evaluation.detection import weighted_auc
from evaluation.discrepancy import gaussian_kernels, median_distance
from evaluation.distances import Forms, Products, Tile, pass_over_pairs
from evaluation.geometry import ROWS, silhouettes
from evaluation.neighbours import OtherGroupNeighbours
from evaluation.pairs import RowSums
from evaluation.prepared import Prepared


@dataclass(frozen=True)
class Null:
    """A score against its distribution under permuted labels."""

    name: str
    value: float
    p: float  # one-sided, P(score at least as good by chance), with one added to both counts
    mean: float  # of the null
    high: float  # 95 % quantile of the null: what chance reaches once in twenty times
    permutations: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def exchange_units(
    label: ArrayLike, group: ArrayLike, method: ArrayLike, video: ArrayLike | None = None
) -> NDArray[np.int64]:
    """``(n,)`` ids of what is exchanged as a whole under the null, all arguments ``(n,)``.

    The video where it is known: its frames look alike whatever its label, so that they count as one. Without it, all
    samples of one group, label and method: they *may* be frames of one video, and taking them for several would make p
    too small.
    """
    if video is not None:
        return np.unique(np.asarray(video), return_inverse=True)[1]
    columns = [np.unique(np.asarray(each), return_inverse=True)[1] for each in (label, group, method)]
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1)


def permuted_labels(
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    permutations: int,
    seed: int,
    unit: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """``(permutations, n)`` labels under the null that they say nothing of a unit or of its group.

    A unit ``(n,)`` is what :func:`exchange_units` names, by default each sample; it has one label and lies in one
    group. Two exchanges, of units and never of samples:

    - groups exchange their share of fake units: pure ones (all real or all fake) with any other pure one, mixed ones
      with those of as many units;
    - within a group any of its units may be the fake ones.

    So where groups are pure, whole groups change their label; where every group pairs a real video with its fakes,
    videos exchange labels within groups only. No share is ever rounded: labels of which no group could have been made
    are no null to be held against (with groups of 1 + 2 and of 1 + 1, p of the energy distance was .05 or less in 1 %
    of sets without a difference). Taken as exchangeable are hence pure groups, mixed groups of a size, and within a
    group its units, with all that they hold: also their numbers of samples; where these differ, the number of fakes
    varies.
    """
    unit = np.arange(len(label)) if unit is None else unit
    _, first, of_sample = np.unique(unit, return_index=True, return_inverse=True)
    fake, owner = label[first], component[first]
    if (fake[of_sample] != label).any() or (owner[of_sample] != component).any():
        raise ValueError("a video (or another unit of exchange) must have one label and lie in one group")
    rng = np.random.default_rng(seed)
    size, fakes = np.bincount(owner), np.bincount(owner, fake)  # in units
    kind = np.where((fakes > 0) & (fakes < size), size, 0)  # of groups that exchange their shares; 0: pure
    by_kind = np.argsort(kind, kind="stable")
    start = np.cumsum(size) - size
    result = np.empty((permutations, len(fake)), np.int64)
    for row in result:
        share = np.empty(len(size))
        share[np.lexsort((rng.random(len(size)), kind))] = (fakes / size)[by_kind]
        order = np.lexsort((rng.random(len(fake)), owner))  # units by group, in random order within
        rank = np.arange(len(fake)) - np.repeat(start, size)
        row[order] = rank < np.repeat(np.rint(share * size), size)
    return result[:, of_sample]


def separability_null(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    unit: ArrayLike | None = None,
    *,
    seed: int = 0,
    permutations: int = 999,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Null]:
    """Permutation null of the label-free scores of :func:`evaluation.separability.separability`, same arguments;
    ``unit`` as in :func:`permuted_labels`.

    Returns one :class:`Null` for each of ``knn_auc_kK``, ``silhouette``, ``energy_distance``, ``mmd2``,
    ``kmeans_ami_kK`` and ``kmeans_ari_kK``. Distances, neighbours and clusterings do not depend on the label, so one
    pass serves all permutations. Permutations in which a class is missing or a score is undefined count as at least as
    good, which keeps p valid.
    """
    return null_of(Prepared.of(features, label, group, unit), seed=seed, permutations=permutations, compute=compute)


def null_of(
    prepared: Prepared,
    *,
    seed: int,
    permutations: int,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Null]:
    """:func:`separability_null` of features that are prepared already."""
    space, label, component = prepared.space, prepared.label, prepared.component
    permuted = permuted_labels(label, component, permutations, seed, prepared.unit)
    labels = np.vstack([label, permuted])  # the first row is the truth

    neighbours = OtherGroupNeighbours(label, component)
    median = median_distance(space)
    distances = _LabelSums(compute.arrays, labels, component, each=True)
    kernels = _LabelSums(compute.arrays, labels, component, each=False)

    def add_kernels(tile: Tile) -> None:
        kernels.add(gaussian_kernels(tile, median))

    pass_over_pairs(space, component, compute, neighbours.add, distances.add, add_kernels)
    nearest = neighbours.nearest
    found = {f"knn_auc_k{k}": _knn_aucs(labels, nearest[:, :k]) for k in neighbours.ks}
    found["silhouette"] = distances.silhouettes()
    found["energy_distance"] = -distances.differences()
    found["mmd2"] = kernels.differences()
    for k in CLUSTERS:
        if len(label) >= 2 * k:
            found[f"kmeans_ami_k{k}"], found[f"kmeans_ari_k{k}"] = table_scores(prepared.kmeans(k, seed), labels)
    return [_null(name, values) for name, values in found.items()]


def _null(name: str, values: NDArray[np.float64]) -> Null:
    value, permuted = values[0], values[1:]
    kept = permuted[np.isfinite(permuted)]
    if not np.isfinite(value) or not len(kept):
        return Null(name, float(value), float("nan"), float("nan"), float("nan"), len(permuted))
    # Rounding must not make an equal permutation lose.
    worse = np.sum(kept < value - 1e-9 * max(1.0, abs(value)))
    p = (1 + len(permuted) - worse) / (1 + len(permuted))
    return Null(name, float(value), float(p), float(kept.mean()), float(np.quantile(kept, 0.95)), len(permuted))


def _knn_aucs(labels: NDArray[np.int64], nearest: NDArray[np.int64]) -> NDArray[np.float64]:
    one = np.ones((1, labels.shape[1]))
    return np.array([weighted_auc(label, label[nearest].mean(axis=1), one)[0] for label in labels])


class _LabelSums:
    """Sums of a pairwise quantity by class, for many labellings of the same samples."""

    def __init__(self, arrays: Host | Torch, labels: NDArray[np.int64], component: NDArray[np.int64], each: bool):
        self.fake = np.ascontiguousarray(labels.T, dtype=np.float32)  # (n, labellings)
        self.component, n = component, len(component)
        everyone = slice(0, n)
        self.rows = RowSums(n, [everyone])
        weights = [(everyone, self.fake)]
        self.products = Products(arrays, n, weights) if each else None
        self.forms = None if each else Forms(arrays, n, weights)
        self.own_fakes = 0.0  # over pairs of fakes within a component

    def add(self, tile: Tile) -> None:
        from scipy.sparse import csr_array

        self.rows.add(tile)
        (self.products or self.forms).add(tile)
        row, column = tile.own
        values = tile.arrays.get(tile.values[tile.own]) * np.where(column < tile.square, 1, 2)  # and their mirror
        fake = self.fake[tile.start :]
        own = csr_array((values, (row, column)), shape=(tile.square, len(fake)))
        self.own_fakes = self.own_fakes + np.sum(fake[: tile.square] * (own @ fake), axis=0, dtype=np.float64)

    def silhouettes(self) -> NDArray[np.float64]:
        """``(labellings,)``, from sums of distances."""
        n, fakes = len(self.component), self.fake.sum(axis=0, dtype=np.float64)
        to_fakes, total = self.products.of[0], np.zeros(len(fakes))
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            fake = self.fake[rows] == 1
            seen = [self.rows.all[rows].astype(np.float32) - to_fakes[rows], to_fakes[rows]]
            counts = [np.broadcast_to(size, fake.shape) for size in (n - fakes, fakes)]
            total += silhouettes(fake, seen, counts).sum(axis=0, dtype=np.float64)
        return total / n

    def differences(self) -> NDArray[np.float64]:
        """``(labellings,)``: mean over real-real plus fake-fake minus twice real-fake pairs, from different groups."""
        other = self.rows.all - self.rows.own
        if self.products:
            both = np.einsum("ir,ir->r", self.fake, self.products.of[0], dtype=np.float64)
        else:
            both = self.forms.of[0][0]
        fake_fake = both - self.own_fakes
        fake_any = self.fake.T.astype(np.float64) @ other[:, 0]
        real_fake = fake_any - fake_fake
        real_real = other.sum() - fake_any - real_fake
        groups = int(self.component.max()) + 1
        fakes = np.zeros((groups, self.fake.shape[1]))
        np.add.at(fakes, self.component, self.fake)
        reals = np.bincount(self.component)[:, None] - fakes

        def pairs(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
            return a.sum(axis=0) * b.sum(axis=0) - np.sum(a * b, axis=0)

        with np.errstate(invalid="ignore", divide="ignore"):  # a class in one group only: NaN
            within = real_real / pairs(reals, reals) + fake_fake / pairs(fakes, fakes)
            return within - 2 * real_fake / pairs(reals, fakes)
