"""Does separability predict what fine-tuning gives? Rank correlation over backbones, its uncertainty and its ceiling.

The unit here is the backbone: with ten of them even a strong relation is uncertain, and "undecided" is an answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.score import Score

Coefficient = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]  # (r, m) and (m,) to (r,)


@dataclass(frozen=True)
class Relation:
    """A correlation over backbones with its permutation null."""

    score: Score
    p: float  # one-sided, P(at least as large by chance), with one added to both counts
    null_high: float  # 95 % quantile of the coefficient when one side is shuffled
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "score": self.score.to_dict()}


def weighted_kendall(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau that weighs exchanges among the best most (Vigna, WWW 2015), as scipy's ``weightedtau``.

    ``x`` ``(m,)`` or, for many at once, ``(r, m)``; ``y`` ``(m,)``. The pair i, j weighs ``1/(rank i) + 1/(rank j)``;
    mean of the taus with the ranks (from the highest) by x and by y, the other breaking ties. NaN for a constant side.
    """
    y = np.broadcast_to(y, x.shape)
    signs = [np.sign(side[..., :, None] - side[..., None, :]) for side in (x, y)]

    def tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.lexsort((-second, -first), axis=-1)
        weight = 1 / (1 + np.argsort(order, axis=-1))
        weight = weight[..., :, None] + weight[..., None, :]
        both, xx, yy = (np.sum(a * b * weight, axis=(-2, -1)) for a, b in (signs, signs[:1] * 2, signs[1:] * 2))
        return _ratio(both, np.sqrt(xx * yy))

    return (tau(x, y) + tau(y, x)) / 2


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation; shapes as in :func:`weighted_kendall`."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y))


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r; shapes as in :func:`weighted_kendall`. NaN where a side is constant."""
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean()
    return _ratio(x @ y, np.sqrt(np.sum(x * x, axis=-1) * (y @ y)))


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


COEFFICIENTS: Mapping[str, Coefficient] = {
    "weighted_kendall": weighted_kendall,
    "spearman": spearman,
    "pearson": pearson,
}


def relation(
    x: ArrayLike, y: ArrayLike, *, x_higher_is_better: bool = True, permutations: int = 1999, seed: int = 0
) -> list[Relation]:
    """Weighted Kendall tau, Spearman and Pearson of a score with the outcome of fine-tuning, over backbones.

    Parameters
    ----------
    x : ``(m,)`` the score of each backbone, or a baseline that needs no data (parameter count, ImageNet accuracy).
    y : ``(m,)`` outcome of each backbone, higher is better; mean over seeds where there are several.
    x_higher_is_better : False turns the sign of ``x``, so that a positive coefficient always means "predicts".

    The 95 % interval is a jackknife over backbones on Fisher's z with Student's quantile; the null shuffles ``x``.
    Coefficients of a constant side are NaN. Raises ValueError for fewer than four backbones, NaN or infinity.
    """
    x, y = _backbones(x=x, y=y)
    x = x if x_higher_is_better else -x
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(len(x)), (permutations, 1)), axis=1)
    return [_relation(name, coefficient, x, y, orders) for name, coefficient in COEFFICIENTS.items()]


def _relation(
    name: str,
    coefficient: Coefficient,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    orders: NDArray[np.int64],
) -> Relation:
    value, m = float(coefficient(x, y)), len(x)
    if not math.isfinite(value):
        how = f"{name} over {m} backbones: undefined, one side is constant"
        return Relation(Score(name, math.nan, math.nan, math.nan, True, m, how), math.nan, math.nan, "undecided")
    low, high = _jackknife_z(coefficient, x, y, value)
    null = coefficient(x[orders], y)
    p = (1 + np.sum(null >= value - 1e-12)) / (1 + len(null))
    how = f"{name} over {m} backbones; 95 % jackknife interval on Fisher's z, backbones left out in turn"
    score = Score(name, value, low, high, True, m, how)
    return Relation(score, float(p), float(np.quantile(null, 0.95)), verdict(score))


def _jackknife_z(
    coefficient: Coefficient, x: NDArray[np.float64], y: NDArray[np.float64], value: float
) -> tuple[float, float]:
    from scipy.special import stdtrit

    m = len(x)
    kept = ~np.eye(m, dtype=bool)
    left_out = np.array([coefficient(x[keep], y[keep]) for keep in kept])
    if not np.isfinite(left_out).all():
        return math.nan, math.nan
    z, centre = (np.arctanh(np.clip(v, -1 + 1e-9, 1 - 1e-9)) for v in (left_out, value))
    width = stdtrit(m - 1, 0.975) * math.sqrt((m - 1) / m * np.sum((z - z.mean()) ** 2))
    return math.tanh(centre - width), math.tanh(centre + width)


def verdict(score: Score) -> str:
    """``supported`` where the whole interval is above zero, ``not supported`` where it is below, else ``undecided``."""
    if score.low > 0:
        return "supported"
    return "not supported" if score.high < 0 else "undecided"


def noise_ceiling(outcomes: ArrayLike, name: str = "weighted_kendall") -> float:
    """The coefficient that a perfect predictor could expect, given the noise of fine-tuning seeds.

    ``outcomes`` is ``(m, s)``, one column per seed, at least two. Mean over seeds of the coefficient between one seed's
    outcomes and the mean of the others.
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim != 2 or outcomes.shape[1] < 2 or not np.isfinite(outcomes).all():
        raise ValueError(f"outcomes must be finite, (backbones, seeds) with at least two seeds, got {outcomes.shape}")
    others = [np.delete(outcomes, seed, axis=1).mean(axis=1) for seed in range(outcomes.shape[1])]
    return float(np.mean([COEFFICIENTS[name](rest, one) for rest, one in zip(others, outcomes.T, strict=True)]))


def family_means(values: ArrayLike, families: Sequence[str]) -> list[Score]:
    """Mean over the backbones of each pretext family, sorted by name, with Student's 95 % interval.

    NaN ends for a family of one backbone. The unit is the backbone: noise within one is part of it.
    """
    values, families = np.asarray(values, dtype=np.float64), np.asarray(families)
    scores = []
    for family in np.unique(families):
        found = values[families == family]
        width = _student(len(found) - 1) * math.sqrt(_mean_variance(found)) if len(found) > 1 else math.nan
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
    parts = [_mean_variance(side) for side in (a, b)]
    total = sum(parts)
    freedom = total**2 / sum(v**2 / (len(side) - 1) for v, side in zip(parts, (a, b), strict=True)) if total else 1
    width = _student(freedom) * math.sqrt(total)
    score = Score(name, value, value - width, value + width, True, n, f"{how}; Welch's 95 % interval")
    return score, verdict(score)


def backbones_needed(correlation: float, power: float = 0.8) -> int:
    """How many backbones show a true correlation as different from zero (two-sided 5 %) with the given power.

    Fisher's z: ``((z_{.975} + z_power) / atanh r)² + 3``.
    """
    from scipy.special import ndtri

    if not 0 < abs(correlation) < 1:
        raise ValueError(f"correlation must lie between 0 and 1, exclusive, got {correlation}")
    return math.ceil(((ndtri(0.975) + ndtri(power)) / math.atanh(abs(correlation))) ** 2 + 3)


def backbones_per_side(a: ArrayLike, b: ArrayLike, power: float = 0.8) -> int | None:
    """How many backbones on each side would show the observed difference of means (two-sided 5 %).

    ``2 (s (z_.975 + z_power) / (mean a - mean b))²`` with the pooled standard deviation s. None where that is undefined
    or beyond a thousand.
    """
    from scipy.special import ndtri

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    freedom = len(a) + len(b) - 2
    if min(len(a), len(b)) == 0 or freedom < 1:
        return None
    variance = (np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2)) / freedom
    difference = a.mean() - b.mean()
    if variance == 0 or 1000 * difference**2 < 2 * variance * (ndtri(0.975) + ndtri(power)) ** 2:
        return None
    return max(2, math.ceil(2 * variance * ((ndtri(0.975) + ndtri(power)) / difference) ** 2))


def _student(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _mean_variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1) / len(values))


def _backbones(**sides: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = {name: np.asarray(side, dtype=np.float64) for name, side in sides.items()}
    if len({array.shape for array in arrays.values()}) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise ValueError(f"one number per backbone on both sides, got shapes {[a.shape for a in arrays.values()]}")
    for name, array in arrays.items():
        if len(array) < 4:
            raise ValueError(f"a relation needs at least four backbones, got {len(array)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity; leave such backbones out")
    return list(arrays.values())
