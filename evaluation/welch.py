"""Student's interval of a sum of independent estimates whose variances differ."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def half_width(variances: ArrayLike, freedoms: ArrayLike) -> float:
    """95 % half-width of a sum of independent estimates, in their unit.

    ``variances`` ``(k,)`` are those of the terms of the sum, factors included, each estimated with as many degrees of
    freedom as ``freedoms`` ``(k,)`` says: for the mean of n numbers its squared standard error, with n - 1. Their sum
    has the degrees of freedom of Welch and Satterthwaite, ``(Σ v)² / Σ (v² / f)`` (Satterthwaite, "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2, 1946). 0 where no term varies.
    """
    from scipy.special import stdtrit

    variances, freedoms = np.asarray(variances, np.float64), np.asarray(freedoms, np.float64)
    total = float(variances.sum())
    if total == 0:
        return 0.0
    return float(stdtrit(total**2 / np.sum(variances**2 / freedoms), 0.975)) * math.sqrt(total)
