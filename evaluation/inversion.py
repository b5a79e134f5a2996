"""What a coefficient over m backbones says of the relation behind it: interval, power and backbones needed.

All of it comes from simulated benchmarks of m backbones whose two sides are normal with a known correlation: the
interval holds the correlations under which the observed coefficient is no surprise, and the power is how often that
interval excludes zero. No formula is as good for the weighted tau: its variance hardly falls with m, since half its
weight is on the few best, and leaving backbones out in turn (jackknife) says little of it for ten of them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.coefficients import COEFFICIENTS

DRAWS = 10_000  # simulated benchmarks for each correlation; a width is known to 2 % then
_Z = np.append(np.linspace(0.4, 2.8, 7), [3.5, 4.5, 6, 8, math.inf])  # Fisher's; perfect orders are common far out only
CORRELATIONS = np.tanh(np.concatenate([-_Z[::-1], [0], _Z]))
TAIL = 0.025
POWER_DRAWS = 4000
MOST = 200  # backbones, beyond which a number needed is of no use to anyone


def interval(name: str, m: int, value: float) -> tuple[float, float]:
    """95 % interval of the coefficient ``name`` that was ``value`` over ``m`` backbones.

    A correlation belongs to it if more than 2.5 % of its simulated benchmarks have a coefficient at least as high as
    ``value``, and more than 2.5 % one at least as low. Given are the ends, as the mean coefficient of m backbones under
    these correlations. The order of sides that are not normal is covered as far as a monotone change of each makes them
    so (a normal copula); Pearson's r needs them normal themselves.
    """
    law, value = _law(name, m), round(value, 9)
    above = np.array([DRAWS - np.searchsorted(row, value, "left") for row in law.draws]) / DRAWS
    below = np.array([np.searchsorted(row, value, "right") for row in law.draws]) / DRAWS
    low = _crossing(above, law.mean)
    high = _crossing(below[::-1], law.mean[::-1])
    return min(low, value), max(value, high)


def _crossing(share: NDArray[np.float64], mean: NDArray[np.float64]) -> float:
    """Where a ``share`` that rises along the correlations passes 2.5 %, on the scale of the ``mean``."""
    from scipy.special import ndtri

    quantile = ndtri(np.clip(np.maximum.accumulate(share), 0.1 / DRAWS, 1 - 0.1 / DRAWS))  # nearly a line
    return float(np.interp(ndtri(TAIL), quantile, mean))


def correlation_of(name: str, m: int, value: float) -> float:
    """The correlation of normal data under which ``value`` is the mean coefficient of ``m`` backbones."""
    return float(np.interp(value, _law(name, m).mean, CORRELATIONS))


@functools.lru_cache(maxsize=512)
def power(name: str, m: int, correlation: float) -> float:
    """How often :func:`interval` lies beyond zero, on the side of a true ``correlation`` of normal data."""
    sign, (x, noise) = math.copysign(1, correlation), np.random.default_rng([1, m]).normal(size=(2, POWER_DRAWS, m))
    none = np.sort(sign * _coefficients(name, x, noise, 0.0))
    found = sign * _coefficients(name, x, noise, correlation)
    return float(np.mean(found > none[-1 - int(TAIL * POWER_DRAWS)] + 1e-9))


@functools.lru_cache(maxsize=512)
def backbones_needed(correlation: float, target: float = 0.8, name: str = "weighted_kendall") -> int | None:
    """How many backbones show a true correlation by an interval beyond zero with the power ``target``.

    That is the verdict on a score that was declared beforehand; one corrected for many others needs more. None where
    200 are not enough. Raises ValueError unless the correlation lies between 0 and 1, exclusive, or their negatives.
    """
    if not 0 < abs(correlation) < 1:
        raise ValueError(f"correlation must lie between 0 and 1, exclusive, got {correlation}")
    few, enough = 3, 8
    while power(name, enough, correlation) < target:
        if enough == MOST:
            return None
        few, enough = enough, min(2 * enough, MOST)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if power(name, middle, correlation) >= target else (middle, enough)
    return enough


class _Law(NamedTuple):
    """Of a coefficient under each of the c :data:`CORRELATIONS`."""

    mean: NDArray[np.float64]  # (c,)
    draws: NDArray[np.float64]  # (c, DRAWS), sorted


@functools.lru_cache(maxsize=32)  # 2 MB each
def _law(name: str, m: int) -> _Law:
    # The same draws for all correlations, so that there is little left to smooth.
    x, noise = np.random.default_rng([0, m]).normal(size=(2, DRAWS, m))
    draws = np.stack([np.sort(_coefficients(name, x, noise, rho)) for rho in CORRELATIONS]).round(9)
    mean = np.maximum.accumulate(draws.mean(axis=1))
    mean[CORRELATIONS == 0] = 0  # known, so that "above zero" and "beyond chance" are one
    return _Law(mean, draws)


def _coefficients(
    name: str, x: NDArray[np.float64], noise: NDArray[np.float64], correlation: float
) -> NDArray[np.float64]:
    """``(r,)`` of simulated benchmarks ``(r, m)``; as many at a time as stay in the processor's cache."""
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    parts = 1 + x.size * x.shape[1] // 200_000
    pieces = zip(np.array_split(x, parts), np.array_split(y, parts), strict=True)
    return np.concatenate([COEFFICIENTS[name](*piece) for piece in pieces])
