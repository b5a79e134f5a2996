"""Transferability scores from the literature, for the binary target real or fake.

They use the label to fit, but no fine-tuning, and claim to rank pre-trained models for it. Higher is better in each.
Definitions are the papers', computed in float64; where papers leave a choice, the docstring says ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import block_jackknife
from evaluation.checks import binary_label, components, finite
from evaluation.detection import weighted_auc
from evaluation.distances import normalised
from evaluation.score import Score

GBC_COMPONENTS = 64
PARC_SAMPLES = 1000
TRANSRATE_EPSILON = 1e-4
NOTHING = 1e-12  # a share of the variance that is rounding

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def transferability(features: ArrayLike, label: ArrayLike, group: ArrayLike, *, seed: int = 0) -> list[Score]:
    """``logme``, ``h_score``, ``gbc``, ``transrate``, ``sfda``, ``parc``, ``ncc_auc`` of one backbone on one data set.

    Arguments as in :func:`evaluation.separability.separability`. Features are centred and scaled to a total variance of
    one first, which fixes the scale that TransRate and SFDA depend on. The 95 % intervals leave out a twentieth of the
    groups at a time and fit anew. What is undefined is NaN, with the reason in ``how``. Raises ValueError like
    ``separability``.
    """
    label = binary_label(label)
    component = components(group, len(label))
    if component.max() == 0:
        raise ValueError("all samples are tied into one group; transferability needs at least two independent groups")
    space = normalised(finite("features", features, len(label), ndim=2)).astype(np.float64)

    def statistic(kept: NDArray[np.int64]) -> Array:
        x, y, g = space[kept], label[kept], component[kept]
        if len(np.unique(y)) < 2 or not np.ptp(x, axis=0).any():
            return np.full(len(SCORES) + 1, np.nan)
        return np.array([*(score.of(x, y) for score in SCORES.values()), ncc_auc(x, y, g)])

    values, widths = block_jackknife(statistic, component, seed)
    titles = {name: (score.title, score.undefined) for name, score in SCORES.items()} | {"ncc_auc": NCC}
    found = []
    for (name, (title, undefined)), value, width in zip(titles.items(), values, widths, strict=True):
        how = "95 % jackknife interval, a twentieth of the groups left out at a time"
        if np.isnan(value):
            how = f"undefined: {undefined}"
        elif np.isnan(width):
            how = "no interval: undefined without some twentieth of the groups"
        found.append(Score(name, value, value - width, value + width, True, len(label), f"{title}; {how}"))
    return found


def logme(x: Array, label: Labels) -> float:
    """Log maximum evidence per sample of Bayesian linear regression on each class's indicator, mean of the classes.

    You et al., "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021, eq. 2-4. Unlike
    there the regression has an intercept: indicators and features are centred, which costs one degree of freedom, and
    both classes then have the same evidence. NaN where fewer features than samples fit the label without an error, of
    which the evidence has no maximum.
    """
    n, d = len(x) - 1, x.shape[1]
    y = label - label.mean()
    s2, z2 = _spectrum(x - x.mean(axis=0), y)
    rest = max(y @ y - z2.sum(), 0.0) if len(s2) < n else 0.0
    if len(s2) < n and rest <= NOTHING * (y @ y):
        return float("nan")
    alpha, beta = 1.0, 1.0
    for _ in range(1000):  # MacKay's fixed point: alpha and beta that maximise the evidence
        ratio = alpha / beta
        weight = np.sum(s2 * z2 / (s2 + ratio) ** 2)  # |m|², the squared norm of the posterior mean
        residual = np.sum(z2 * (ratio / (s2 + ratio)) ** 2) + rest
        effective = np.sum(s2 / (s2 + ratio))
        spare = n - len(s2) + np.sum(ratio / (s2 + ratio))  # n - effective, without cancellation
        alpha, beta = effective / max(weight, 1e-100), spare / max(residual, 1e-100)
        # The maximum may lie at no weights (alpha without end) or, with as many features as samples, at no noise.
        if abs(alpha / beta - ratio) <= 1e-10 * ratio or not 1e-12 < alpha / beta < 1e12:
            break
    return log_evidence(alpha, beta, s2, z2, rest, n, d) / n


def _spectrum(x: Array, y: Array) -> tuple[Array, Array]:
    """Squared singular values of ``x`` that are not zero, and squared projections of ``y`` on their left vectors."""
    wide = x.shape[1] > len(x)
    s2, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = s2 > s2[-1] * 1e-12
    s2, vectors = s2[keep], vectors[:, keep]
    projected = vectors.T @ y if wide else (y @ x) @ vectors / np.sqrt(s2)
    return s2, projected**2


def log_evidence(alpha: float, beta: float, s2: Array, z2: Array, rest: float, n: int, d: int) -> float:
    """Log evidence of weights ~ N(0, 1/alpha) and noise ~ N(0, 1/beta) from squared singular values and projections."""
    ratio = alpha / beta
    weight = np.sum(s2 * z2 / (s2 + ratio) ** 2)
    residual = np.sum(z2 * (ratio / (s2 + ratio)) ** 2) + rest
    determinant = np.sum(np.log(alpha + beta * s2)) + (d - len(s2)) * np.log(alpha)
    fit = n * np.log(beta / (2 * np.pi)) + d * np.log(alpha) - beta * residual - alpha * weight - determinant
    return float(fit / 2)


def h_score(x: Array, label: Labels) -> float:
    """Regularised H-score ``(1 - a) tr(cov_a⁻¹ cov_classes)`` with Ledoit-Wolf shrinkage a.

    Ibrahim, Ponomareva and Mazumder, "Newer is not always better", ECML 2022, eq. 7.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    shrinkage = float(ledoit_wolf_shrinkage(x))
    return (1 - shrinkage) * between_ratio(x, label, shrinkage)


def between_ratio(x: Array, label: Labels, shrinkage: float) -> float:
    """``tr(cov_a⁻¹ cov_classes)``, where ``cov_a = (1 - a) cov + a tr(cov)/d I``.

    Of two classes, the covariance of the class means has rank one and lies in the span of the centred samples, so that
    no matrix larger than the samples is inverted.
    """
    share, n = label.mean(), len(x)
    contrast = label / label.sum() - (1 - label) / (n - label.sum())  # its product with x: the difference of the means
    s2, z2 = _spectrum(x - x.mean(axis=0), contrast)
    variances = (1 - shrinkage) * s2 / n + shrinkage * s2.sum() / n / x.shape[1]
    return float(share * (1 - share) * np.sum(s2 * z2 / variances))


def gbc(x: Array, label: Labels) -> float:
    """Minus the Bhattacharyya coefficient ``exp(-D_B)`` of Gaussians with diagonal covariance on 64 principal
    components, between -1 (alike) and 0 (apart).

    Pándy et al., "Transferability estimation using Bhattacharyya class separability", CVPR 2022, eq. 1-4; the paper
    sums ordered pairs of classes, which doubles it. Zero where each class is one point.
    """
    if np.sum(_within(x, label) ** 2) <= NOTHING * np.sum(x**2):
        return 0.0
    moved = x - x.mean(axis=0)
    wide = x.shape[1] > len(x)
    s2, vectors = np.linalg.eigh(moved @ moved.T if wide else moved.T @ moved)
    components = (vectors * np.sqrt(np.maximum(s2, 0)) if wide else moved @ vectors)[:, ::-1][:, :GBC_COMPONENTS]
    parts = [components[label == c] for c in (0, 1)]
    means, variances = zip(*((part.mean(axis=0), part.var(axis=0)) for part in parts), strict=True)
    floor = 1e-12 * np.mean(variances)  # a direction without spread in either class
    variances = [np.maximum(variance, floor) for variance in variances]
    middle = (variances[0] + variances[1]) / 2
    distance = np.sum((means[1] - means[0]) ** 2 / middle) / 8
    distance += np.sum(np.log(middle) - np.log(variances[0] * variances[1]) / 2) / 2
    return float(-np.exp(-distance))


def transrate(x: Array, label: Labels) -> float:
    """Coding rate of all features minus that of the classes, ``R(Z) - sum_c n_c/n R(Z_c)``, epsilon 1e-4.

    Huang et al., "Frustratingly easy transferability estimation", ICML 2022, eq. 4-5, in nats. As there, only the whole
    is centred, not the classes: it sees classes in different subspaces, but of two classes that lie on opposite sides
    of the mean it does not see the shift between them.
    """
    moved = x - x.mean(axis=0)
    rates = [coding_rate(moved[label == c]) * np.mean(label == c) for c in (0, 1)]
    return coding_rate(moved) - sum(rates)


def coding_rate(z: Array) -> float:
    """``½ log det(I + ZᵀZ / (n epsilon))``."""
    small = z.T @ z if z.shape[1] <= len(z) else z @ z.T  # both have the same non-zero eigenvalues
    return float(np.linalg.slogdet(np.eye(len(small)) + small / (len(z) * TRANSRATE_EPSILON))[1] / 2)


def sfda(x: Array, label: Labels) -> float:
    """Mean probability of the own class by Fisher discriminants, fitted twice: the second time to samples that the
    first moved towards the other class's mean, the more so the less sure it was of them.

    Shao et al., "Not all models are equal: predicting model transferability in a self-challenging Fisher space", ECCV
    2022, eq. 4-8; like the authors' code the mean of probabilities, not of their logarithms. The shrinkage
    ``exp(-5 s)``, s the largest variance within classes, is the same in both. Between 0.5 (alike) and 1. NaN where each
    class is one point: there is no variance within to weigh the features by.
    """
    from scipy.special import expit

    moved = x - x.mean(axis=0)
    if np.sum(_within(moved, label) ** 2) <= NOTHING * np.sum(moved**2):
        return float("nan")
    shrinkage = float(np.exp(-5 * _largest_variance(_within(moved, label))))
    sure = expit(_fisher_logits(moved, label, shrinkage) * (2 * label - 1))
    kept = expit(2 * sure - 1)[:, None]  # softmax of both classes' probabilities
    other = np.array([moved[label == 1 - c].mean(axis=0) for c in (0, 1)])[label]
    mixed = kept * moved + (1 - kept) * other
    return float(np.mean(expit(_fisher_logits(mixed, label, shrinkage) * (2 * label - 1))))


def _within(x: Array, label: Labels) -> Array:
    return x - np.array([x[label == c].mean(axis=0) for c in (0, 1)])[label]


def _largest_variance(moved: Array) -> float:
    from scipy.linalg import eigh

    small = (moved @ moved.T if moved.shape[1] > len(moved) else moved.T @ moved) / len(moved)
    last = len(small) - 1
    return float(eigh(small, eigvals_only=True, subset_by_index=[last, last])[0])


def _fisher_logits(x: Array, label: Labels, shrinkage: float) -> Array:
    """Log-odds of class 1 by linear discriminant analysis with covariance ``(1 - a) S + a tr(S)/d I`` within."""
    from scipy.linalg import solve

    n, d = x.shape
    share = label.mean()
    means = [x[label == c].mean(axis=0) for c in (0, 1)]
    apart, moved = means[1] - means[0], _within(x, label)
    ridge = shrinkage * np.sum(moved**2) / n / d
    scaled = moved * np.sqrt((1 - shrinkage) / n)
    if d <= n:
        weight = solve(scaled.T @ scaled + ridge * np.eye(d), apart, assume_a="pos")
    else:  # Woodbury's identity: no matrix larger than the samples
        inner = solve(scaled @ scaled.T + ridge * np.eye(n), scaled @ apart, assume_a="pos")
        weight = (apart - scaled.T @ inner) / ridge
    return (x - (means[0] + means[1]) / 2) @ weight + np.log(share / (1 - share))


def parc(x: Array, label: Labels) -> float:
    """Spearman correlation over pairs of samples between ``1 - Pearson correlation`` of their features and their labels
    being different.

    Bolya, Mittapalli and Hoffman, "Scalable diverse model selection for accessible transfer learning", NeurIPS 2021,
    eq. 5-6, on at most 1000 samples, evenly spaced in the order of distance from the mean.
    """
    from scipy.stats import spearmanr

    order = np.argsort(np.einsum("ij,ij->i", x, x), kind="stable")
    some = order[np.unique(np.linspace(0, len(order) - 1, PARC_SAMPLES).astype(int))]
    rows = x[some] - x[some].mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1)
    rows /= np.where(norms > 0, norms, 1)[:, None]
    pairs = np.triu_indices(len(some), 1)
    apart = label[some][pairs[0]] != label[some][pairs[1]]
    distances = (1 - rows @ rows.T)[pairs]
    if x.shape[1] < 2 or apart.all() or not apart.any() or np.ptp(distances) == 0:
        return float("nan")  # a correlation across one feature, or over one kind of pair, is undefined
    return float(spearmanr(distances, apart).statistic)


def ncc_auc(x: Array, label: Labels, component: NDArray[np.int64]) -> float:
    """AUC of the nearest class centre: squared distance to the mean of the real samples minus that to the fakes', both
    without the sample's own group. NaN where a class lies in one group."""
    groups = int(component.max()) + 1
    squared = np.empty((2, len(x)))
    for c in (0, 1):
        sums = np.zeros((groups, x.shape[1]))
        np.add.at(sums, component[label == c], x[label == c])
        sizes = np.bincount(component[label == c], minlength=groups)
        others = sizes.sum() - sizes
        if (others[np.unique(component)] == 0).any():
            return float("nan")
        centres = (sums.sum(axis=0) - sums) / np.maximum(others, 1)[:, None]
        squared[c] = np.sum((x - centres[component]) ** 2, axis=1)
    return float(weighted_auc(label, squared[0] - squared[1], np.ones((1, len(x))))[0])


class _Kind(NamedTuple):
    of: Callable[[Array, Labels], float]
    title: str
    undefined: str = "the features do not vary"  # why it may be NaN


SCORES = {
    "logme": _Kind(
        logme,
        "log maximum evidence per sample (LogME), with an intercept",
        "the label is a linear function of the features, so that the evidence has no maximum",
    ),
    "h_score": _Kind(h_score, "regularised H-score, Ledoit-Wolf shrinkage"),
    "gbc": _Kind(gbc, "minus the Bhattacharyya coefficient of diagonal Gaussians on 64 principal components"),
    "transrate": _Kind(transrate, "TransRate, epsilon 1e-4, in nats (blind to a mere shift between two classes)"),
    "sfda": _Kind(
        sfda,
        "mean probability of the own class in self-challenging Fisher space (SFDA)",
        "no variance within the classes",
    ),
    "parc": _Kind(
        parc,
        "Spearman correlation of feature and label distances (PARC)",
        "needs two features, and pairs of samples that differ in distance and in whether their labels agree",
    ),
}
NCC = ("AUC of the nearest class centre without the sample's own group", "a class lies in a single group")
