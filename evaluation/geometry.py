"""How the label lies in the raw feature space: silhouette, centroids and spreads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Sampled, bootstrap, sampled
from evaluation.pairs import PairSums

ROWS = 1000  # samples whose silhouettes in all resamples are held at a time


def label_silhouette(sums: PairSums) -> Sampled:
    """Silhouette (Rousseeuw 1987) of the label from the summed distances of each sample, with all replicates.

    A resample may hold a group several times. Its copies do not see each other, and each sees itself once, as in the
    sample: the distance of a pair counts with the product of both multiplicities across groups, and with the
    multiplicity alone within one. Copies at distance zero would otherwise tighten both classes.
    """
    resamples, drawn = sums.resamples, sums.drawn.of
    n, fake = len(resamples.label), resamples.label[:, None] == 1
    size = [np.full((n, 1), block.stop - block.start, np.float64) for block in resamples.blocks]
    value = float(silhouettes(fake, list(sums.rows.all.T[:, :, None]), size).mean())
    totals = np.zeros(resamples.copies.shape[1])
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        component = resamples.component[rows]
        copies = resamples.copies[component]
        seen, counts = [], []
        for c in (0, 1):
            own = sums.rows.own[rows, c, None].astype(np.float32)
            seen.append(drawn[c][rows] - (copies - 1) * own)
            counts.append(resamples.totals[c] - (copies - 1) * resamples.sizes[component, c, None])
        totals += np.sum(copies * silhouettes(fake[rows], seen, counts), axis=0, dtype=np.float64)
    how = "mean silhouette of the label, Euclidean distances; {interval}"
    return sampled("silhouette", value, resamples.per_sample(totals), n=n, how=how, bounds=(-1, 1))


def silhouettes(fake: NDArray[np.bool_], sums: list[NDArray], counts: list[NDArray]) -> NDArray:
    """``(rows, r)`` silhouettes from the summed distances to both classes and their sizes, which include the sample.

    Zero where the sample is the only one of its class, or where both mean distances are zero.
    """
    own_count = np.where(fake, counts[1], counts[0]) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = np.where(fake, sums[1], sums[0]) / own_count
        outer = np.where(fake, sums[0], sums[1]) / np.where(fake, counts[0], counts[1])
        result = (outer - inner) / np.maximum(outer, inner)
    return np.where((own_count > 0) & np.isfinite(result), result, 0)


NOTHING = 1e-12  # of features whose total variance is one: rounding
CENTROID_SCORES = (  # name, higher is better, least value, title, why it may be undefined
    (
        "fisher_ratio",
        True,
        -np.inf,
        "squared distance of class means over the trace of both covariances",
        "no variance within the classes, or a class lies in a single group",
    ),
    ("davies_bouldin", False, 0, "Davies-Bouldin index of the label", "the class means coincide"),
    ("calinski_harabasz", True, 0, "Calinski-Harabasz index of the label", "no variance within the classes"),
)


def centroid_scores(
    features: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    *,
    replicates: int,
    seed: int,
) -> list[Sampled]:
    """``fisher_ratio``, ``davies_bouldin`` (lower is better) and ``calinski_harabasz`` of the label.

    The last two equal scikit-learn's. The Fisher ratio is ``|mean_1 - mean_0|² / (tr cov_0 + tr cov_1)``; its numerator
    takes products of samples from different groups only, so that it is zero, not positive, on average when the classes
    do not differ (and may be negative). NaN where a class lies in a single group.
    """
    statistic = _Centroids(features.astype(np.float64), label, component)
    values = statistic(np.ones((1, len(label))))[0]
    draws = bootstrap(statistic, component, replicates, seed)
    return [
        sampled(
            name,
            value,
            drawn,
            n=len(label),
            how=f"{title}; " + ("{interval}" if np.isfinite(value) else f"undefined: {undefined}"),
            bounds=(least, np.inf),
            higher_is_better=higher,
        )
        for (name, higher, least, title, undefined), value, drawn in zip(CENTROID_SCORES, values, draws.T, strict=True)
    ]


class _Centroids:
    """The centroid scores as a function of multiplicities ``(r, n)``, ``(r, 3)``."""

    def __init__(self, x: NDArray[np.float64], label: NDArray[np.int64], component: NDArray[np.int64]) -> None:
        self.x, self.squares = x, np.einsum("ij,ij->i", x, x)
        self.masks = [(label == c).astype(float) for c in (0, 1)]
        self.first = np.unique(component, return_index=True)[1]  # a sample of each group, which knows its multiplicity
        groups = np.zeros((2, len(self.first), x.shape[1]))
        sizes = np.zeros((2, len(self.first)))
        np.add.at(groups, (label, component), x)
        np.add.at(sizes, (label, component), 1)
        self.own_products = np.einsum("agd,bgd->abg", groups, groups)  # within a group, summed over its pairs
        self.own_pairs = np.einsum("ag,bg->abg", sizes, sizes)

    def __call__(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        mass = np.stack([weights @ mask for mask in self.masks])
        total = np.stack([(weights * mask) @ self.x for mask in self.masks])
        mean = total / np.maximum(mass, 1)[:, :, None]
        spread, scatter = np.empty_like(mass), np.empty_like(mass)  # sums of distances to the mean, of their squares
        for c, mask in enumerate(self.masks):
            squared = self.squares + np.sum(mean[c] ** 2, axis=1)[:, None] - 2 * mean[c] @ self.x.T
            squared = np.maximum(squared, 0) * mask
            spread[c] = np.sum(weights * np.sqrt(squared), axis=1)
            scatter[c] = np.sum(weights * squared, axis=1)
        copies = weights[:, self.first].T
        products, pairs = np.einsum("ard,brd->abr", total, total), mass[:, None] * mass[None]

        def squared_distance(left_out: NDArray[np.float64]) -> NDArray[np.float64]:
            """|mean_1 - mean_0|² from mean products of pairs, less ``left_out`` ``(groups, r)`` pairs within groups."""
            sums, counts = products - self.own_products @ left_out, pairs - self.own_pairs @ left_out
            product = np.where(counts > 0, sums / counts, np.nan)
            return product[0, 0] + product[1, 1] - 2 * product[0, 1]

        def positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where(values > NOTHING, values, np.nan)

        with np.errstate(invalid="ignore", divide="ignore"):  # a class is missing, or in one group only: NaN
            fisher = squared_distance(copies**2) / positive((scatter / mass).sum(axis=0))
            # In a resample copies of a group do not see each other (as in the silhouette); with weights of one this is
            # the plain squared distance.
            between = squared_distance(copies**2 - copies)
            davies = (spread / mass).sum(axis=0) / np.sqrt(positive(between))
            within = positive(scatter.sum(axis=0)) / (mass.sum(axis=0) - 2)
            calinski = mass.prod(axis=0) / mass.sum(axis=0) * between / within
        results = np.stack([fisher, davies, calinski], axis=1)
        results[~np.isfinite(results)] = np.nan
        results[(mass == 0).any(axis=0)] = np.nan
        return results
