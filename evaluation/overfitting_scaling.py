"""Learning curves: how an error or a gap falls with the amount of training data."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import percentile
from evaluation.score import Score

FEWEST_SIZES = 3


class PowerLaw(NamedTuple):
    """``value = scale * size ** -exponent``."""

    exponent: Score
    scale: float
    means: dict[float, float]
    """Size → mean value of its trials, to which it was fitted."""

    def __call__(self, size: float) -> float:
        return self.scale * size**-self.exponent.value


def power_law(size: ArrayLike, value: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> PowerLaw:
    """Fit ``value = scale * size ** -exponent`` to the mean values at each size, by least squares of the logarithms
    (Hestness et al., Deep Learning Scaling is Predictable, Empirically, 2017).

    ``size`` ``(m,)`` training groups or samples of each trial, above 0; ``value`` ``(m,)`` its error (1 - AUC) or gap,
    falling with more data if the exponent is positive. The 95 % interval is over resamples of the trials within each
    size. NaN where there are fewer than three sizes or a mean is not above 0: no power law then. Raises ValueError on
    misfitting shapes, NaN, infinity or a size of 0.
    """
    size, value = np.asarray(size, np.float64), np.asarray(value, np.float64)
    if size.shape != value.shape or size.ndim != 1 or not len(size):
        raise ValueError(f"one value per trial: got sizes of shape {size.shape} and values of shape {value.shape}")
    if not (np.isfinite(size).all() and np.isfinite(value).all() and (size > 0).all()):
        raise ValueError("sizes must be above 0, and neither sizes nor values may be NaN or infinite")
    sizes = np.unique(size)
    parts = [value[size == one] for one in sizes]
    means = np.array([part.mean() for part in parts])
    by_size = dict(zip(sizes.tolist(), means.tolist(), strict=True))
    what = f"from {len(value)} trials at {len(sizes)} sizes from {sizes[0]:g} to {sizes[-1]:g}"
    if len(sizes) < FEWEST_SIZES or (means <= 0).any():
        why = f"fewer than {FEWEST_SIZES} sizes" if len(sizes) < FEWEST_SIZES else "a mean is not above 0"
        nothing = _exponent(math.nan, math.nan, math.nan, len(value), f"no power law: {why}; {what}")
        return PowerLaw(nothing, math.nan, by_size)
    exponent, scale = _fit(sizes, means[None])
    random = np.random.default_rng(seed)
    drawn = np.column_stack([random.choice(part, (resamples, len(part))).mean(axis=1) for part in parts])
    replicates = np.full(resamples, math.nan)
    fits = (drawn > 0).all(axis=1)
    replicates[fits] = _fit(sizes, drawn[fits])[0]
    if max(map(len, parts)) == 1:
        low, high, note = math.nan, math.nan, "one trial at each size, which has no interval"
    else:
        low, high, note = percentile(replicates)
        note = note.replace("group resamples", "resamples of the trials")
    return PowerLaw(_exponent(float(exponent[0]), low, high, len(value), f"{what}; {note}"), float(scale[0]), by_size)


def _fit(sizes: NDArray[np.float64], means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exponents and scales, ``(r,)`` each, of mean values ``(r, sizes)``."""
    x, y = np.log(sizes), np.log(means)
    centred = x - x.mean()
    slope = y @ centred / (centred @ centred)
    return -slope, np.exp(y.mean(axis=1) - slope * x.mean())


def _exponent(value: float, low: float, high: float, n: int, how: str) -> Score:
    return Score("exponent", value, low, high, True, n, f"b of value = a size^-b, fitted to the means; {how}")
