"""Where overfitting begins, and how far it goes: numbers from the curves of one run, and from its two checkpoints.

A curve is what every evaluation of a run found: training AUC on a fixed clean subset, validation AUC, and the time as
samples seen divided by training samples (epochs).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import bootstrap, percentile
from evaluation.checks import binary_label, components, finite
from evaluation.detection import weighted_auc
from evaluation.score import Score

NOISE = 0.005
"""AUC differences up to this count as noise of the validation curve."""


def curve_scores(epoch: ArrayLike, train: ArrayLike, validation: ArrayLike, *, noise: float = NOISE) -> list[Score]:
    """Overfitting numbers of one curve.

    Parameters
    ----------
    epoch : ``(k,)`` times of the evaluations, rising.
    train, validation : ``(k,)`` AUC at these times.
    noise : AUC differences up to this do not count as a gain.

    Returns
    -------
    ``first_overfit_epoch`` : the time after which validation never again gains more than ``noise`` while training
        does; NaN where there is no such time.
    ``overfitting_area`` : growth of the gap training - validation since then, integrated over the remaining time by the
        trapezoid rule; AUC x epochs, 0 where there is no overfitting.
    ``fall_from_peak`` : highest validation AUC minus the last one.
    ``gap_at_peak``, ``gap_at_end`` : training minus validation AUC at these two times.

    One curve has no interval: all bounds are NaN. The peak is the highest of ``k`` noisy values, so that the fall is
    above 0 by chance alone; :func:`drop` tests one fall. Raises ValueError on misfitting shapes, NaN or infinity.
    """
    epoch, train, validation = _curve(epoch, train, validation)
    first = first_overfitting(train, validation, noise=noise)
    gap, peak, k = train - validation, int(np.argmax(validation)), len(epoch)
    one = f"from one curve of {k} evaluations, which has no interval"
    area, when = (0.0, math.nan) if first is None else (_area(epoch[first:], gap[first:]), float(epoch[first]))
    how_first = f"time after which validation AUC never gains more than {noise:g} while training AUC does; {one}"
    if first is None:
        how_first += "; never here"
    values = [
        ("first_overfit_epoch", when, True, how_first),
        ("overfitting_area", area, False, f"integral of the growth of train - validation since then; {one}"),
        (
            "fall_from_peak",
            float(validation[peak] - validation[-1]),
            False,
            f"highest minus last validation AUC; {one}",
        ),
        ("gap_at_peak", float(gap[peak]), False, f"train - validation at the highest validation AUC; {one}"),
        ("gap_at_end", float(gap[-1]), False, f"train - validation at the last evaluation; {one}"),
    ]
    return [Score(name, value, math.nan, math.nan, higher, k, how) for name, value, higher, how in values]


def first_overfitting(train: ArrayLike, validation: ArrayLike, *, noise: float = NOISE) -> int | None:
    """The first evaluation after which validation never gains more than ``noise`` over it while training, at some later
    evaluation, does; None where there is none. ``train`` and ``validation`` are ``(k,)`` AUCs."""
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    for place in range(len(train) - 1):
        stalls = np.max(validation[place + 1 :]) - validation[place] <= noise
        goes_on = np.max(train[place + 1 :]) - train[place] > noise
        if stalls and goes_on:
            return place
    return None


def drop(
    name: str,
    label: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    group: ArrayLike,
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Score:
    """AUC of the scores ``before`` minus AUC of the scores ``after``, two checkpoints on the same samples: positive
    where training on made it worse.

    ``label`` ``(n,)`` 0/1, ``before`` and ``after`` ``(n,)`` logits, ``group`` ``(n,)``. Groups are resampled, the same
    for both, so that what is common to both checkpoints cancels. Raises ValueError like
    :func:`evaluation.detection.detection`.
    """
    label = binary_label(label)
    before, after = (finite(side, values, len(label)) for side, values in (("before", before), ("after", after)))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return weighted_auc(label, before, weights) - weighted_auc(label, after, weights)

    value = float(statistic(np.ones((1, len(label))))[0])
    interval = percentile(bootstrap(statistic, components(group, len(label)), replicates, seed))
    how = f"AUC of the first minus AUC of the second checkpoint on the same samples; {interval.note}"
    return Score(name, value, interval.low, interval.high, False, len(label), how)


def memorisation(true_label: ArrayLike, flipped: ArrayLike, logit: ArrayLike) -> Score:
    """Share of training samples with a flipped label that the model calls by that wrong label.

    ``true_label`` ``(n,)`` 0/1, ``flipped`` ``(n,)`` whether training saw the other label, ``logit`` ``(n,)`` of the
    model. 0: it learned what the faces show; 1: it learned the labels by heart; Wilson's 95 % interval. Raises
    ValueError where no label was flipped.
    """
    from scipy.special import ndtri

    true_label = np.asarray(true_label).astype(np.int64)
    flipped, logit = np.asarray(flipped, dtype=bool), finite("logit", logit, len(true_label))
    n = int(flipped.sum())
    if n == 0:
        raise ValueError("memorisation needs samples with a flipped label, got none")
    share = float(np.mean((logit[flipped] >= 0) != (true_label[flipped] == 1)))
    z = float(ndtri(0.975))
    centre, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * width) / (1 + z * z / n) for sign in (-1, 1))
    how = f"share of {n} flipped training labels that the model repeats (threshold 0); Wilson's 95 % interval"
    return Score("memorisation", share, max(0.0, low), min(1.0, high), False, n, how)


def _area(epoch: NDArray[np.float64], gap: NDArray[np.float64]) -> float:
    return float(np.trapezoid(np.clip(gap - gap[0], 0, None), epoch))


def _curve(epoch: ArrayLike, train: ArrayLike, validation: ArrayLike) -> list[NDArray[np.float64]]:
    sides = {"epoch": epoch, "train": train, "validation": validation}
    arrays = {name: np.asarray(side, dtype=np.float64) for name, side in sides.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or arrays["epoch"].ndim != 1 or not len(arrays["epoch"]):
        raise ValueError(f"a curve has one number per evaluation, got shapes {shapes}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if (np.diff(arrays["epoch"]) <= 0).any():
        raise ValueError("epoch must rise from one evaluation to the next")
    return list(arrays.values())
