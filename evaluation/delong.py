"""Standard error of the AUC in closed form, for samples that come in groups."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from evaluation.bootstrap import LEVEL
from evaluation.checks import binary_label, components, finite
from evaluation.score import Score


def delong(label: ArrayLike, logit: ArrayLike, group: ArrayLike) -> Score:
    """``auc_delong``: AUC with DeLong's interval on the logit scale, extended to groups.

    Arguments as in :func:`evaluation.detection.detection`. The variance is that of DeLong et al. (Biometrics 44, 1988)
    when every sample is a group of its own, and Obuchowski's (Biometrics 53, 1997, eq. 2-4) otherwise. NaN ends where a
    class lies in one group, or where the AUC is 0 or 1 (the variance is then zero, not the uncertainty).
    """
    from scipy.special import ndtri

    label = binary_label(label)
    logit = finite("logit", logit, len(label))
    component = components(group, len(label))
    size = np.bincount(label)
    # Share of the other class that a sample wins against, from ranks: ties count half.
    rank, own = _ranks(logit), np.empty(len(label))
    for c in (0, 1):
        own[label == c] = _ranks(logit[label == c])
    placement = (rank - own) / size[1 - label]
    placement[label == 0] = 1 - placement[label == 0]
    auc = float(placement[label == 1].mean())
    residual = np.zeros((2, component.max() + 1))  # per class and group: sum of placements less their expectation
    np.add.at(residual, (label, component), placement - auc)
    groups = [len(np.unique(component[label == c])) for c in (0, 1)]
    how = "area under the ROC; "
    if min(groups) < 2 or auc in (0.0, 1.0):
        how += (
            "no interval: a class lies in one group" if min(groups) < 2 else "no interval: the classes do not overlap"
        )
        return Score("auc_delong", auc, math.nan, math.nan, True, len(label), how)
    variance = sum(g / (g - 1) * np.sum(r**2) / n**2 for g, r, n in zip(groups, residual, size, strict=True))
    every = residual.shape[1]
    variance += 2 * every / (every - 1) * np.sum(residual[0] * residual[1]) / size.prod()
    width = ndtri((1 + LEVEL) / 2) * math.sqrt(max(variance, 0)) / (auc * (1 - auc))
    low, high = (1 / (1 + math.exp(-(math.log(auc / (1 - auc)) + end))) for end in (-width, width))
    how += "95 % DeLong interval on the logit scale, groups as clusters (Obuchowski 1997)"
    return Score("auc_delong", auc, low, high, True, len(label), how)


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks. (scipy.stats has it, and takes a second to import.)"""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
