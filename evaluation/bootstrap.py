"""Intervals by resampling independent groups.

Frames of one video, or a face and its forgeries, are not independent: what is drawn again with replacement are whole
groups, never samples. A statistic takes a matrix of sample multiplicities ``(r, n)`` and returns one row of results per
replicate, so that one pass over distances, neighbours or sorted scores serves all replicates.

Sources: Davison and Hinkley, *Bootstrap Methods and their Application* (1997), ch. 5; for BCa Efron, "Better bootstrap
confidence intervals", JASA 82 (1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.checks import components
from evaluation.score import Score

LEVEL = 0.95
BCA_MAX_GROUPS = 2000  # above, the acceleration is negligible and its jackknife would cost more than the bootstrap
_CHUNK = 4_000_000  # entries of a weight matrix that are expanded at a time

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # multiplicities (r, n) -> (r,) or (r, scores)


class Interval(NamedTuple):
    """A 95 % interval; ``note`` says how it was made, and why it is NaN where it is."""

    low: float
    high: float
    note: str


class Sampled(NamedTuple):
    """A score and its value in every group resample. Resamples of equal seed and groups draw the same groups, so that
    the draws of two backbones on the same samples are paired."""

    score: Score
    draws: NDArray[np.float64]  # (replicates,), NaN where undefined


def sampled(
    name: str,
    value: float,
    draws: NDArray[np.float64],
    *,
    n: int,
    how: str,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    higher_is_better: bool = True,
) -> Sampled:
    """A score with the centred interval of its ``draws``; ``{interval}`` in ``how`` becomes the interval's note."""
    interval = centred(value, draws, bounds)
    how = how.format(interval=interval.note)
    return Sampled(Score(name, value, interval.low, interval.high, higher_is_better, n, how), draws)


def group_counts(groups: int, replicates: int, seed: int) -> NDArray[np.uint16]:
    """``(replicates, groups)``, not to be written to: how often each group occurs when ``groups`` of them are drawn
    with replacement."""
    return (_kept_counts if groups * replicates <= _CHUNK else _counts)(groups, replicates, seed)


def _counts(groups: int, replicates: int, seed: int) -> NDArray[np.uint16]:
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=replicates)
    counts = draws.astype(np.uint16)
    counts.flags.writeable = False
    return counts


_kept_counts = lru_cache(maxsize=16)(_counts)  # all runs on one data set draw the same


def group_weights(group: ArrayLike, replicates: int, seed: int) -> NDArray[np.uint16]:
    """``(replicates, n)``: multiplicity of every sample when whole groups are drawn with replacement.

    ``group`` is ``(n,)``, integers or strings; ids joined with ``|`` tie (see :func:`evaluation.checks.components`).
    """
    component = components(group, len(np.asarray(group)))
    return group_counts(int(component.max()) + 1, replicates, seed)[:, component]


def bootstrap(statistic: Statistic, component: NDArray[np.int64], replicates: int, seed: int) -> NDArray[np.float64]:
    """``(replicates,)`` or ``(replicates, s)`` results of ``statistic`` on draws of whole components."""
    return _evaluate(statistic, group_counts(int(component.max()) + 1, replicates, seed), component)


def jackknife(statistic: Statistic, component: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Results of ``statistic`` with each component left out in turn; None above ``BCA_MAX_GROUPS`` components."""
    groups = int(component.max()) + 1
    if groups > BCA_MAX_GROUPS:
        return None
    return _evaluate(statistic, 1 - np.eye(groups, dtype=np.uint16), component)


def _evaluate(statistic: Statistic, counts: NDArray, component: NDArray[np.int64]) -> NDArray[np.float64]:
    rows = max(1, _CHUNK // len(component))
    parts = [
        statistic(counts[start : start + rows][:, component].astype(np.float64))
        for start in range(0, len(counts), rows)
    ]
    return np.concatenate(parts)


def block_jackknife(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    component: NDArray[np.int64],
    seed: int,
    blocks: int = 20,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Value ``(s,)`` and 95 % half-width ``(s,)`` of statistics that must be fitted anew for every resample.

    Components are dealt to ``blocks`` random blocks (at most one each), and each block is left out in turn. Unlike in a
    bootstrap no sample occurs twice, which a fit would take for more evidence. The half-width is Student's, with one
    degree of freedom less than blocks; NaN where a block cannot be left out. ``statistic`` takes the indices of the
    samples that are kept. Source: Shao and Wu, "A general theory for jackknife variance estimation", Ann. Stat. 1989.
    """
    from scipy.special import stdtrit

    groups = int(component.max()) + 1
    blocks = min(blocks, groups)
    block = np.random.default_rng(seed).permutation(groups) % blocks
    value = statistic(np.arange(len(component)))
    left_out = np.array([statistic(np.flatnonzero(block[component] != b)) for b in range(blocks)])
    error = np.sqrt((blocks - 1) / blocks * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))
    return value, stdtrit(blocks - 1, (1 + LEVEL) / 2) * error


def percentile(replicates: NDArray[np.float64]) -> Interval:
    """Quantiles of the replicates. For statistics without bias, such as differences of AUC."""
    return _defined(replicates, "percentile", lambda kept: _quantiles(kept, _tails()))


def centred(value: float, replicates: NDArray[np.float64], bounds: tuple[float, float]) -> Interval:
    """Quantiles of the replicates, moved so that their mean is the value, and cut at the statistic's ``bounds``.

    For statistics that are adjusted for chance or compare samples in pairs: copies of a group agree with themselves,
    which shifts the replicates but not the estimate. (A basic or BCa interval would take that shift for a bias of the
    estimate and correct it twice.)
    """

    def ends(kept: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(value - kept.mean() + _quantiles(kept, _tails()), *bounds)

    return _defined(replicates, "centred percentile", ends)


def bca(value: float, replicates: NDArray[np.float64], left_out: NDArray[np.float64] | None) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987); percentile when ``left_out`` (the jackknife) is None."""
    if left_out is None:
        return percentile(replicates)
    return _defined(replicates, "BCa", lambda kept: _quantiles(kept, _bca_levels(value, kept, left_out)))


def _tails() -> NDArray[np.float64]:
    return np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def _quantiles(kept: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.quantile(kept, levels)


def _bca_levels(value: float, kept: NDArray[np.float64], left_out: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtr, ndtri

    below = np.mean(kept < value) + np.mean(kept == value) / 2
    bias = ndtri(np.clip(below, 1 / (len(kept) + 1), len(kept) / (len(kept) + 1)))
    left_out = left_out[np.isfinite(left_out)]
    influence = left_out.mean() - left_out
    spread = np.sum(influence**2) ** 1.5
    acceleration = np.sum(influence**3) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + ndtri(_tails())
    return ndtr(bias + shifted / (1 - acceleration * shifted))


def _defined(
    replicates: NDArray[np.float64], method: str, ends: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Interval:
    """Skip undefined replicates (a class vanished), count them, and say so; NaN when fewer than half are defined."""
    kept = replicates[np.isfinite(replicates)]
    skipped = len(replicates) - len(kept)
    if len(kept) < max(2, len(replicates) / 2):
        return Interval(math.nan, math.nan, f"no interval: undefined in {skipped} of {len(replicates)} group resamples")
    low, high = ends(kept)
    note = f"95 % {method} interval over {len(kept)} group resamples"
    if skipped:
        note += f" ({skipped} more skipped: a class was missing)"
    if np.ptp(kept) == 0:
        note += "; all resamples agree, so it cannot show the uncertainty"
    return Interval(float(low), float(high), note)
