"""Learning curves: how an error or a gap falls with the amount of training data."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evaluation.score import Score
from evaluation.welch import half_width

FEWEST_SIZES = 3


class PowerLaw(NamedTuple):
    """``value = scale * size ** -exponent``."""

    exponent: Score
    scale: float
    means: dict[float, float]
    """Size → mean value of its trials, to which it was fitted."""

    def __call__(self, size: float) -> float:
        return self.scale * size**-self.exponent.value


def power_law(size: ArrayLike, value: ArrayLike) -> PowerLaw:
    """Fit ``value = scale * size ** -exponent`` to the mean values at each size, by least squares of the logarithms
    (Hestness et al., Deep Learning Scaling is Predictable, Empirically, 2017).

    ``size`` ``(m,)`` training groups or samples of each trial, above 0; ``value`` ``(m,)`` its error (1 - AUC) or gap,
    falling with more data if the exponent is positive. The 95 % interval is over the trials within each size: Student's
    of the sum of log means that the exponent is, each with its own variance (to first order that of the mean over its
    square); NaN where a size has a single trial. NaN altogether where there are fewer than three sizes or a mean is not
    above 0: no power law then. Raises ValueError on misfitting shapes, NaN, infinity or a size of 0.
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
    x, y = np.log(sizes), np.log(means)
    share = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    slope = float(share @ y)
    if min(map(len, parts)) > 1:
        variances = [part.var(ddof=1) / len(part) for part in parts] * (share / means) ** 2
        width, note = half_width(variances, [len(part) - 1 for part in parts]), "Student's 95 % interval over trials"
    else:
        width, note = math.nan, "one trial at a size, no interval"
    exponent = _exponent(-slope, -slope - width, -slope + width, len(value), f"{what}; {note}")
    return PowerLaw(exponent, math.exp(y.mean() - slope * x.mean()), by_size)


def _exponent(value: float, low: float, high: float, n: int, how: str) -> Score:
    return Score("exponent", value, low, high, True, n, f"b of value = a size^-b, fitted to the means; {how}")
