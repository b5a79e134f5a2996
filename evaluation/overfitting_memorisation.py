"""What a model has learnt by heart: flipped training labels that it repeats, against its errors on unseen faces."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.checks import binary_label, components, finite
from evaluation.overfitting import Scored
from evaluation.score import Score


def memorisation(train: Scored, flipped: ArrayLike, validation: Scored) -> list[Score]:
    """How many flipped labels a model repeats, and how many it would repeat by erring as on validation.

    Parameters
    ----------
    train : ``(label, logit, group)`` of the training samples, ``(n,)`` each, the labels being the *true* ones.
    flipped : ``(n,)`` whether training saw the other label.
    validation : the same of the validation samples, none of whose groups is in ``train``.

    Returns
    -------
    ``memorisation`` : share of the flipped labels that the model repeats (logit against a threshold of 0).
    ``validation_error`` : share of validation samples on the wrong side of that threshold, each true class weighted by
        its share of the flipped samples: a threshold of 0 errs unequally on both.
    ``memorisation_above_error`` : the first minus the second. What is learnt by heart makes it larger. It is not 0
        without that: faces of a flipped sample's group have true labels in training, which those of validation have
        not, and a model that learns the group repeats fewer flips.

    95 % intervals: Wilson's of a share with the number of samples that would vary as much if they were independent,
    groups being what is independent (Korn and Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24, 1998); of the difference from both
    (Newcombe, "Interval estimation for the difference between independent proportions", Stat. Med. 17, 1998, method
    10). They condition on the model and on which labels were flipped. Raises ValueError where no label was flipped or
    validation lacks a class.
    """
    flipped = np.asarray(flipped, dtype=bool)
    if not flipped.any():
        raise ValueError("memorisation needs samples with a flipped label, got none")
    true, repeats, seen = (part[flipped] for part in _wrong(train))
    classes = np.bincount(true, minlength=2) / len(true)
    how = f"share of {len(true)} flipped training labels that the model repeats (threshold 0)"
    memorised = _share("memorisation", true, repeats, seen, classes, how)
    label, wrong, unseen = _wrong(validation)
    how = f"share of {len(binary_label(label))} validation samples called wrongly (threshold 0), classes as flipped"
    error = _share("validation_error", label, wrong, unseen, classes, how)
    return [memorised, error, _above(memorised, error)]


def _above(memorised: Score, error: Score) -> Score:
    value = memorised.value - error.value
    low = value - math.hypot(memorised.value - memorised.low, error.high - error.value)
    high = value + math.hypot(memorised.high - memorised.value, error.value - error.low)
    how = "memorisation minus validation error, both at threshold 0; Newcombe's 95 % interval. Higher: more by heart"
    return Score("memorisation_above_error", value, low, high, False, memorised.n + error.n, how)


def _share(
    name: str,
    label: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    component: NDArray[np.int64],
    classes: NDArray[np.float64],
    how: str,
) -> Score:
    """Share of ``wrong`` ``(n,)`` with the classes weighted as ``classes`` ``(2,)``."""
    count = np.maximum(1, np.bincount(label, minlength=2))
    weight, means = (classes / count)[label], np.bincount(label, wrong, minlength=2) / count
    share = float(np.clip(classes @ means, 0, 1))
    groups, place = np.unique(component, return_inverse=True)
    if len(groups) < 2:
        return Score(name, share, math.nan, math.nan, False, len(wrong), f"{how}; one group, no interval")
    moved = np.bincount(place, weight * (wrong - means[label]))  # by which each group moves the share
    variance = len(groups) / (len(groups) - 1) * float(moved @ moved)
    # Where nothing varies, as if each group were one sample: how alike groups are is then unknown.
    independent = share * (1 - share) / variance if variance > 1e-12 else len(groups)
    low, high = _wilson(share, independent, len(groups) - 1)
    how += f"; Wilson's 95 % interval, {len(groups)} groups that tell as much as {independent:.0f} independent samples"
    return Score(name, share, low, high, False, len(wrong), how)


def _wilson(share: float, n: float, freedom: int) -> tuple[float, float]:
    from scipy.special import stdtrit

    t = float(stdtrit(freedom, 0.975))
    centre, width = share + t * t / (2 * n), t * math.sqrt(share * (1 - share) / n + t * t / (4 * n * n))
    low, high = ((centre + sign * width) / (1 + t * t / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _wrong(scored: Scored) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Labels, whether each sample is called wrongly, and its independent group, ``(n,)`` each."""
    label = np.asarray(scored[0]).astype(np.int64)
    logit = finite("logit", scored[1], len(label))
    return label, (logit >= 0) != (label == 1), components(scored[2], len(label))
