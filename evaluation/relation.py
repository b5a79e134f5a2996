"""Does separability predict what fine-tuning gives? Rank correlation over backbones, its uncertainty and its ceiling.

The unit here is the backbone: with ten of them even a strong relation is uncertain, and "undecided" is an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.coefficients import COEFFICIENTS
from evaluation.inversion import interval
from evaluation.score import Score
from evaluation.welch import half_width

LEAST = 4  # backbones; with fewer, no order is rarer than once in twenty


@dataclass(frozen=True)
class Relation:
    """A correlation over backbones with its permutation null."""

    score: Score
    p: float  # one-sided, P(at least as large by chance)
    null_high: float  # 95 % quantile of the coefficient when one side is shuffled
    verdict: str
    seeds: tuple[float, float] | None = None  # 95 % of the coefficient with seeds drawn anew; None with one seed each

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "score": self.score.to_dict()}


def relation(
    x: ArrayLike,
    y: Sequence[ArrayLike],
    *,
    x_higher_is_better: bool = True,
    permutations: int = 9999,
    seed: int = 0,
) -> list[Relation]:
    """Weighted Kendall tau, Spearman and Pearson of a score with the outcome of fine-tuning, over backbones.

    Parameters
    ----------
    x : ``(m,)`` the score of each backbone, or a baseline that needs no data (parameter count, ImageNet accuracy).
    y : of each backbone its outcome, or the outcomes of its seeds, of which the mean counts; higher is better.
    x_higher_is_better : False turns the sign of ``x``, so that a positive coefficient always means "predicts".
    permutations : of the backbones; all m! of them, and an exact p, where that is no more.

    The 95 % interval (:func:`_interval`) is over backbones, ``seeds`` over fine-tuning seeds; the null shuffles ``x``.
    Coefficients of a constant side are NaN. Raises ValueError for fewer than four backbones, NaN or infinity.
    """
    seeds = [np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in y]
    x, means = _backbones(x=x, y=[each.mean() for each in seeds])
    x = x if x_higher_is_better else -x
    drawn = _drawn_means(seeds, seed) if any(len(each) > 1 for each in seeds) else None
    return [_relation(name, x, means, drawn, permutations, seed) for name in COEFFICIENTS]


def _relation(
    name: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    drawn: NDArray[np.float64] | None,
    permutations: int,
    seed: int,
) -> Relation:
    """Of x and y, both ``(m,)``; ``drawn`` is y with seeds drawn anew, ``(draws, m)``."""
    coefficient, m, how = COEFFICIENTS[name], len(x), f"{name} over {len(x)} backbones"
    value = float(coefficient(x, y))
    if not math.isfinite(value):
        score = Score(name, math.nan, math.nan, math.nan, True, m, f"{how}: undefined, one side is constant")
        return Relation(score, math.nan, math.nan, "undecided")
    how += "; 95 % interval over backbones: correlations of normal data under which this is no surprise"
    how += ", and a jackknife" * (name == "pearson")
    score = Score(name, value, *_interval(name, x, y, value), True, m, how)
    sides = ((np.sort(side) if name == "pearson" else _sorted_ranks(side)).tolist() for side in (x, y))
    null = _null(name, *map(tuple, sides), permutations, seed)
    above = int(np.sum(null >= value - 1e-12))
    # A random sample of orders need not hold the observed one, which is added; all orders do.
    p = above / len(null) if len(null) == math.factorial(m) else (1 + above) / (1 + len(null))
    seeds = None if drawn is None else tuple(np.nanquantile(coefficient(x, drawn), (0.025, 0.975)).tolist())
    return Relation(score, p, float(np.quantile(null, 0.95)), verdict(score), seeds)


@functools.lru_cache(maxsize=128)
def _null(name: str, x: tuple[float, ...], y: tuple[float, ...], permutations: int, seed: int) -> NDArray[np.float64]:
    """The coefficient in all m! orders of x if they are no more than ``permutations``, else in so many random ones.

    It matters not which x belonged to which y: given as sorted ranks, all scores without ties share one null.
    """
    m = len(x)
    if math.factorial(m) <= permutations:
        orders = np.array(list(itertools.permutations(range(m))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(m), (permutations, 1)), axis=1)
    # Some hundred orders at a time, which stay in the processor's cache: faster than all at once.
    parts = np.array_split(np.asarray(x)[orders], 1 + len(orders) // 500)
    return np.concatenate([COEFFICIENTS[name](part, np.asarray(y)) for part in parts])


def _sorted_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.sort(rankdata(values))


def _interval(name: str, x: NDArray[np.float64], y: NDArray[np.float64], value: float) -> tuple[float, float]:
    """That of normal data; for Pearson's r, which outliers move far more than ranks, the wider of it and a jackknife.

    The jackknife leaves out one backbone at a time, on Fisher's z with Student's quantile.
    """
    low, high = interval(name, len(x), value)
    if name == "pearson":
        from scipy.special import stdtrit

        kept = np.array([np.delete(np.arange(len(x)), i) for i in range(len(x))])
        left_out = COEFFICIENTS[name](x[kept], y[kept])
        if np.max(np.abs([value, *left_out])) < 1 - 1e-12:  # a line, which has no finite z, is left to normal data
            z, spread = math.atanh(value), np.arctanh(left_out)
            width = stdtrit(len(x) - 1, 0.975) * math.sqrt((len(x) - 1) * spread.var())
            low, high = min(low, math.tanh(z - width)), max(high, math.tanh(z + width))
    return low, high


def _drawn_means(seeds: Sequence[NDArray[np.float64]], seed: int, draws: int = 999) -> NDArray[np.float64]:
    """Mean outcome ``(draws, m)`` with seeds drawn anew within each backbone; one that has a single seed stays.

    A bootstrap of s values has (s − 1)/s of the variance of their mean, half for two seeds: deviations are stretched
    by the root of its inverse (Rao and Wu, JASA 83, 1988).
    """
    rng, columns = np.random.default_rng(seed), []
    for each in seeds:
        s, mean = len(each), each.mean()
        drawn = each[rng.integers(0, s, (draws, s))].mean(axis=1)
        columns.append(mean + math.sqrt(s / max(s - 1, 1)) * (drawn - mean))
    return np.stack(columns, axis=1)


def verdict(score: Score) -> str:
    """``supported`` where the whole interval is above zero, ``not supported`` where it is below, else ``undecided``."""
    if score.low > 0:
        return "supported"
    return "not supported" if score.high < 0 else "undecided"


def noise_ceiling(outcomes: Sequence[ArrayLike], name: str = "weighted_kendall", seed: int = 0) -> float:
    """The coefficient that a perfect predictor could expect, given the noise of fine-tuning seeds.

    ``outcomes`` holds for each backbone those of its seeds, not necessarily as many. A perfect predictor knows the true
    outcome, without noise; it is held against the mean over the seeds. One-way random effects: the variance within
    backbones is pooled over those with several seeds, that between them is what the means vary by beyond it.

    Pearson's r is the root of the reliability of the means (Spearman 1904); the others are the mean over 2,000
    simulated benchmarks of normal outcomes. 0 where the means vary no more than seeds alone would make them; NaN for
    fewer than four backbones, or fewer than two with several seeds.
    """
    rows = [np.asarray(each, dtype=np.float64) for each in outcomes]
    several = [row for row in rows if len(row) > 1]
    if len(rows) < LEAST or len(several) < 2:
        return math.nan
    within = sum(np.sum((row - row.mean()) ** 2) for row in several) / sum(len(row) - 1 for row in several)
    noise = within / np.array([len(row) for row in rows])  # variance of each mean
    total = np.var([row.mean() for row in rows], ddof=1)
    signal = total - noise.mean()
    if signal <= 0:
        return 0.0
    if name == "pearson":
        return math.sqrt(signal / total)
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, math.sqrt(signal), (2000, len(rows)))
    return float(np.mean(COEFFICIENTS[name](truth, truth + rng.normal(0, np.sqrt(noise), truth.shape))))


def family_means(values: ArrayLike, families: Sequence[str]) -> list[Score]:
    """Mean over the backbones of each pretext family, sorted by name, with Student's 95 % interval.

    NaN ends for a family of one backbone. The unit is the backbone: noise within one is part of it.
    """
    values, families = np.asarray(values, dtype=np.float64), np.asarray(families)
    scores = []
    for family in np.unique(families):
        found = values[families == family]
        width = half_width([_mean_variance(found)], [len(found) - 1]) if len(found) > 1 else math.nan
        how = f"mean over {len(found)} backbone(s); " + (
            "95 % Student's interval over backbones" if len(found) > 1 else "no interval from one backbone"
        )
        mean = float(found.mean())
        scores.append(Score(str(family), mean, mean - width, mean + width, True, len(found), how))
    return scores


def claim(name: str, a: ArrayLike, b: ArrayLike) -> tuple[Score, str]:
    """Is the mean over backbones ``a`` greater than over backbones ``b``? Difference of means and its verdict.

    Welch's 95 % interval; NaN, and so ``undecided``, where a side has fewer than two backbones.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(len(a), len(b)) == 0:
        raise ValueError(f"claim {name!r} needs backbones on both sides, got {len(a)} and {len(b)}")
    n, value = len(a) + len(b), float(a.mean() - b.mean())
    how = f"difference of means over {len(a)} and {len(b)} backbones"
    if min(len(a), len(b)) < 2:
        score = Score(name, value, math.nan, math.nan, True, n, f"{how}; no interval from one backbone")
        return score, verdict(score)
    width = half_width([_mean_variance(side) for side in (a, b)], [len(a) - 1, len(b) - 1])
    score = Score(name, value, value - width, value + width, True, n, f"{how}; Welch's 95 % interval")
    return score, verdict(score)


def backbones_per_side(a: ArrayLike, b: ArrayLike, power: float = 0.8) -> int | None:
    """How many backbones on each side would show the observed difference of means by Welch's interval, as of
    :func:`claim`, with the given power.

    The variances are the observed ones of either side, the degrees of freedom those of Welch and Satterthwaite,
    ``(n - 1) (va + vb)² / (va² + vb²)`` for n on each side, and the power that of the noncentral t distribution. Where
    :func:`claim` is undecided, the answer is above what the smaller side has. None for a side of fewer than two, for no
    difference, no variance, or more than a thousand.
    """
    from scipy.special import nctdtr, stdtrit

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    least = min(len(a), len(b))
    if least < 2:
        return None
    va, vb, difference = a.var(ddof=1), b.var(ddof=1), abs(a.mean() - b.mean())
    if va + vb == 0 or difference == 0:
        return None
    n = np.arange(least + 1 if claim("", a, b)[1] == "undecided" else 2, 1001)
    freedom = (n - 1) * (va + vb) ** 2 / (va**2 + vb**2)
    shown = 1 - nctdtr(freedom, difference / np.sqrt((va + vb) / n), stdtrit(freedom, 0.975))
    return int(n[(shown >= power).argmax()]) if (shown >= power).any() else None


def _mean_variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values))


def _backbones(**sides: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = {name: np.asarray(side, dtype=np.float64) for name, side in sides.items()}
    if len({array.shape for array in arrays.values()}) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise ValueError(f"one number per backbone on both sides, got shapes {[a.shape for a in arrays.values()]}")
    for name, array in arrays.items():
        if len(array) < LEAST:
            raise ValueError(f"a relation needs at least four backbones, got {len(array)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity; leave such backbones out")
    return list(arrays.values())
