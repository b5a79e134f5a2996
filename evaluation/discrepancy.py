"""How far the distribution of fake features lies from that of real ones; zero when they are the same.

Energy distance and MMD² use pairs from different groups only, so they are unbiased: around zero, sometimes below it,
when the classes do not differ. Fréchet and sliced Wasserstein distances are positive even then, the more so the fewer
the samples: compare them at equal n only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Sampled, bootstrap, sampled
from evaluation.distances import Tile
from evaluation.pairs import PairSums

BANDWIDTHS = (4, 2, 1, 0.5, 0.25)  # times the median distance
DIRECTIONS = 64
COMPONENTS = 64


def energy_distance(sums: PairSums) -> Sampled:
    """``energy_distance`` from sums of distances: 2 E|X-Y| - E|X-X'| - E|Y-Y'| (Székely and Rizzo 2013), in units of
    the features' spread."""
    title = "energy distance between real and fake over pairs from different groups, total spread of features = 1"
    return _difference("energy_distance", title, sums, sign=-1)


def kernel_discrepancy(sums: PairSums) -> Sampled:
    """``mmd2``: unbiased squared maximum mean discrepancy (Gretton et al., JMLR 13, 2012, eq. 3), mean of Gaussian
    kernels whose bandwidths are 1/4 to 4 times the median distance, from sums of :func:`gaussian_kernels`."""
    title = "unbiased MMD² over pairs from different groups, Gaussian kernels of 1/4 to 4 times the median distance"
    return _difference("mmd2", title, sums, sign=1)


def gaussian_kernels(tile: Tile, median: float) -> Tile:
    """Mean of the Gaussian kernels of distances; each bandwidth is half the one before, so its kernel is the fourth
    power."""
    power = tile.values * tile.values
    power *= -0.5 / (BANDWIDTHS[0] * median) ** 2
    tile.arrays.exp_(power)
    total = tile.arrays.copy(power)
    for _ in BANDWIDTHS[1:]:
        power *= power
        power *= power
        total += power
    total /= len(BANDWIDTHS)
    return tile._replace(values=total)


def median_distance(features: NDArray[np.float32]) -> float:
    """Median distance among at most 1000 samples, evenly spaced in the order of distance from the mean."""
    from scipy.spatial.distance import pdist

    order = np.argsort(np.einsum("ij,ij->i", features, features, dtype=np.float64), kind="stable")
    some = order[np.unique(np.linspace(0, len(order) - 1, 1000).astype(int))]
    distances = pdist(features[some].astype(np.float64))
    return float(np.median(distances[distances > 0]))


def _difference(name: str, title: str, sums: PairSums, sign: int) -> Sampled:
    value, drawn = ((means[0, 0] + means[1, 1] - 2 * means[0, 1]) * sign for means in sums.means())
    state = "undefined: a class lies in a single group" if np.isnan(value) else "{interval}"
    return sampled(name, float(value), drawn, n=len(sums.resamples.label), how=f"{title}; {state}")


def sliced_wasserstein(
    features: NDArray[np.float32], label: NDArray[np.int64], component: NDArray[np.int64], *, replicates: int, seed: int
) -> Sampled:
    """``sliced_wasserstein``: mean over random directions of the 1-Wasserstein distance ``∫|F0-F1|`` of the classes."""
    directions = np.random.default_rng(seed).normal(size=(features.shape[1], DIRECTIONS))
    directions *= np.sqrt(features.shape[1]) / np.linalg.norm(directions, axis=0)  # unit variance on average
    projected = features.astype(np.float64) @ directions
    orders = np.argsort(projected, axis=0, kind="stable")
    steps = np.diff(np.take_along_axis(projected, orders, axis=0), axis=0)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        fake, real = (weights * (label == c) for c in (1, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            signed = fake / fake.sum(axis=1, keepdims=True) - real / real.sum(axis=1, keepdims=True)
        total = np.zeros(len(weights))
        for order, step in zip(orders.T, steps.T, strict=True):
            total += np.abs(np.cumsum(signed[:, order[:-1]], axis=1)) @ step
        return total / DIRECTIONS

    title = f"mean 1-Wasserstein distance over {DIRECTIONS} random directions, positive even without a difference"
    return _bounded("sliced_wasserstein", title, statistic, label, component, replicates, seed)


def frechet(
    features: NDArray[np.float32], label: NDArray[np.int64], component: NDArray[np.int64], *, replicates: int, seed: int
) -> Sampled:
    """``frechet``: squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson and Landau 1982),
    ``|m0-m1|² + tr(S0 + S1 - 2 (S0 S1)^½)``, on the first 64 principal components of all samples."""
    x = features.astype(np.float64)
    basis = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :COMPONENTS]
    x = (x - x.mean(axis=0)) @ basis

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([_frechet(x, label, row) for row in weights])

    title = f"squared Fréchet distance of Gaussians on {basis.shape[1]} principal components, positive even without a"
    return _bounded("frechet", f"{title} difference", statistic, label, component, replicates, seed)


def _frechet(x: NDArray[np.float64], label: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    means, covariances = [], []
    for c in (0, 1):
        w = weights[label == c]
        if w.sum() < 2:
            return float("nan")
        part = x[label == c]
        means.append(w @ part / w.sum())
        moved = (part - means[c]) * np.sqrt(w / (w.sum() - 1))[:, None]
        covariances.append(moved.T @ moved)
    # tr (S0 S1)^½ is the nuclear norm of S0^½ S1^½, here from the eigenvalues of the symmetric S0^½ S1 S0^½.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    return float(np.sum((means[1] - means[0]) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * shared)


def _bounded(
    name: str,
    title: str,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    replicates: int,
    seed: int,
) -> Sampled:
    value = float(statistic(np.ones((1, len(label))))[0])
    draws = bootstrap(statistic, component, replicates, seed)
    return sampled(name, value, draws, n=len(label), how=f"{title}; {{interval}}", bounds=(0, np.inf))
