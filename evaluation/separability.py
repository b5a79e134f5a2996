"""How well frozen features separate real from fake: label-free clusterings, geometry, neighbours, and a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.arrays import Compute
from evaluation.bootstrap import Sampled
from evaluation.checks import binary_label
from evaluation.clustering import CLUSTERS, clustering_scores
from evaluation.discrepancy import (
    energy_distance,
    frechet,
    gaussian_kernels,
    kernel_discrepancy,
    median_distance,
    sliced_wasserstein,
)
from evaluation.distances import Tile, pass_over_pairs
from evaluation.geometry import centroid_scores, label_silhouette
from evaluation.neighbour_probe import knn_probe_auc
from evaluation.neighbours import OtherGroupNeighbours
from evaluation.pairs import PairSums, Resamples
from evaluation.prepared import Prepared
from evaluation.probes import linear_probe_auc
from evaluation.score import Score

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what was done
STEPS = len(CLUSTERS) + 3
REFERENCES = ("linear_probe_auc", "knn_probe_auc")  # they fit the label; the last scores of a panel


def separability(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    *,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress | None = None,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Score]:
    """The separability panel of one backbone on one data set.

    Parameters
    ----------
    features : ``(n, d)`` finite numbers, at least two different rows.
    label : ``(n,)`` 0 (real) or 1 (fake), both present.
    group : ``(n,)`` integers or strings: samples that are not independent; ids joined with ``|`` tie. At least two.
    seed, replicates : of the bootstrap; ``seed`` also starts k-means and the folds of the probes.
    progress : called as ``progress(done, total, what)`` after each step.
    compute : where pairwise distances are computed, CPU or GPU, and how many are held at a time.

    Returns
    -------
    In this order: ``knn_auc_k20``, ``_k5``, ``_k100`` (:mod:`evaluation.neighbours`; those k that n allows),
    ``silhouette``, ``fisher_ratio``, ``davies_bouldin`` (the only one of which lower is better),
    ``calinski_harabasz`` (:mod:`evaluation.geometry`), ``energy_distance``, ``mmd2``, ``sliced_wasserstein``,
    ``frechet`` (:mod:`evaluation.discrepancy`), ``kmeans_ami_kK`` and ``kmeans_ari_kK`` for K = 2 … 32
    (:mod:`evaluation.clustering`) and last the supervised :data:`REFERENCES`, ``linear_probe_auc``
    (:mod:`evaluation.probes`) and ``knn_probe_auc`` (:mod:`evaluation.neighbour_probe`).

    The 95 % intervals resample whole groups with replacement and condition on what was fitted (clusterings,
    neighbours): they say how the score would vary with other groups, not with other fits. Only the linear probe is
    fitted anew, in a jackknife over groups.

    All scores are invariant to translation and scale of the features and to the order of the samples, and all but
    ``linear_probe_auc`` (it standardises) and ``sliced_wasserstein`` (random directions) to rotation, up to rounding;
    equal distances are broken at random, by a fixed seed. Raises ValueError on misfitting shapes, a label other
    than 0 and 1, a missing class, NaN or infinity, constant features, or a single group.
    """
    drawn = separability_draws(
        features, label, group, seed=seed, replicates=replicates, progress=progress, compute=compute
    )
    return [result.score for result in drawn]


def separability_draws(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    *,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress | None = None,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Sampled]:
    """Like :func:`separability`, with each score's value in every resample, for :mod:`evaluation.comparison`."""
    prepared = Prepared.of(features, label, group)
    return draws_of(prepared, seed=seed, replicates=replicates, progress=progress, compute=compute)


def draws_of(
    prepared: Prepared,
    *,
    seed: int,
    replicates: int,
    progress: Progress | None = None,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Sampled]:
    """:func:`separability_draws` of features that are prepared already."""
    steps = iter(range(1, STEPS + 1))

    def done(what: str) -> None:
        if progress is not None:
            progress(next(steps), STEPS, what)

    arrays, drawn = (prepared.space, prepared.label, prepared.component), {"replicates": replicates, "seed": seed}
    results = distance_scores(*arrays, **drawn, compute=compute)
    done("distances and neighbours")
    unbiased = len(results) - 2  # energy distance and MMD² stand behind the centroid scores
    results[unbiased:unbiased] = centroid_scores(*arrays, **drawn)
    results += [sliced_wasserstein(*arrays, **drawn), frechet(*arrays, **drawn)]
    done("geometry")
    results += _kmeans_scores(prepared, **drawn, done=done)
    results += [linear_probe_auc(*arrays, **drawn), knn_probe_auc(*arrays, **drawn, compute=compute)]
    done("probes")
    return results


def distance_scores(
    space: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    *,
    replicates: int,
    seed: int,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Sampled]:
    """All scores that need pairwise distances, from one pass: ``knn_auc_kK``, ``silhouette``, ``energy_distance``,
    ``mmd2``. Features must be normalised and sorted by label."""
    resamples, median = Resamples(label, component, replicates, seed), median_distance(space)
    distances = PairSums(compute.arrays, resamples, each=True)
    kernels = PairSums(compute.arrays, resamples, each=False)
    neighbours = OtherGroupNeighbours(label, component)

    def add_kernels(tile: Tile) -> None:
        kernels.add(gaussian_kernels(tile, median))

    pass_over_pairs(space, component, compute, distances.add, add_kernels, neighbours.add)
    results = [*neighbours.scores(replicates, seed), label_silhouette(distances)]
    return [*results, energy_distance(distances), kernel_discrepancy(kernels)]


def _kmeans_scores(prepared: Prepared, *, replicates: int, seed: int, done: Callable[[str], None]) -> list[Sampled]:
    """``kmeans_ami_kK`` and ``kmeans_ari_kK`` for K = 2 … 32 (where n >= 2 K), each a mean over runs of k-means."""
    amis, aris = [], []
    for k in CLUSTERS:
        if len(prepared.label) >= 2 * k:
            sample = (prepared.kmeans(k, seed), prepared.label, prepared.component)
            ami, ari = clustering_scores("kmeans", k, *sample, replicates, seed)
            amis.append(ami)
            aris.append(ari)
        done(f"k-means, k={k}")
    return amis + aris


def separability_by_method(
    features: ArrayLike, label: ArrayLike, group: ArrayLike, method: ArrayLike, **options: Any
) -> dict[str, list[Score]]:
    """:func:`separability` of all real samples from the fakes of each method alone, by method name, sorted.

    ``method`` ``(n,)`` names the manipulation; that of real samples is not looked at. ``options`` as in
    :func:`separability`. With one method this is the whole panel again under its name.
    """
    label = binary_label(label)
    method = np.asarray(method)
    if method.shape != label.shape:
        raise ValueError(f"method must have shape {label.shape} like the labels, got {method.shape}")
    features, group = np.asarray(features), np.asarray(group)
    found = {}
    for name in np.unique(method[label == 1]):
        kept = (label == 0) | (method == name)
        found[str(name)] = separability(features[kept], label[kept], group[kept], **options)
    return found
