"""Where overfitting begins, and how far it goes: numbers from the curves of one run.

A curve is what every evaluation of a run found: training AUC on a fixed clean subset, validation AUC, and the time as
samples seen divided by training samples (epochs).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.score import Score


def auc_error(auc: float, fakes: int, reals: int) -> float:
    """Standard error of an AUC measured on so many independent samples (Hanley and McNeil, "The meaning and use of the
    area under a ROC curve", Radiology 143, 1982, eq. 1 and 2).

    As the tolerance of a curve it is the one-standard-error rule (Breiman et al., Classification and Regression Trees,
    1984, 3.4.3): what is within one standard error of the best is not told from it. A change between two evaluations on
    the same samples errs less than that as far as they agree on the samples (equally at a correlation of 0.5), so the
    rule calls too little a gain rather than too much.
    """
    above_two_reals, two_fakes_above = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (fakes - 1) * (above_two_reals - auc**2) + (reals - 1) * (two_fakes_above - auc**2)
    return math.sqrt(variance / (fakes * reals))


def curve_scores(epoch: ArrayLike, train: ArrayLike, validation: ArrayLike, *, noise: float) -> list[Score]:
    """Overfitting numbers of one curve.

    Parameters
    ----------
    epoch : ``(k,)`` times of the evaluations, rising.
    train, validation : ``(k,)`` AUC at these times.
    noise : AUC differences up to this do not count as a gain; :func:`auc_error` of the highest validation AUC.

    Returns
    -------
    ``first_overfit_epoch`` : the time after which validation never again gains more than ``noise``, all later
        evaluations together, while training does; NaN where there is no such time. Validation need not fall: gains to
        the end that add up to less than ``noise`` are none.
    ``overfitting_area`` : growth of the gap training - validation since then, integrated over the remaining time by the
        trapezoid rule; AUC x epochs, 0 where there is no overfitting.
    ``fall_from_peak`` : highest validation AUC minus the last one.
    ``gap_at_peak``, ``gap_at_end`` : training minus validation AUC at these two times.

    One curve has no interval: all bounds are NaN. The peak is the highest of ``k`` noisy values, so that the fall is
    above 0 by chance alone; :func:`evaluation.overfitting.drop` tests one fall. Raises ValueError on misfitting shapes,
    NaN or infinity.
    """
    epoch, train, validation = _curve(epoch, train, validation)
    first = first_overfitting(train, validation, noise=noise)
    gap, peak, k = train - validation, int(np.argmax(validation)), len(epoch)
    one = f"from one curve of {k} evaluations, which has no interval"
    area, when = (0.0, math.nan) if first is None else (_area(epoch[first:], gap[first:]), float(epoch[first]))
    how_first = f"time after which validation AUC never gains more than {noise:.3g} while training AUC does; {one}"
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


def first_overfitting(train: ArrayLike, validation: ArrayLike, *, noise: float) -> int | None:
    """The first evaluation after which validation never gains more than ``noise`` over it while training, at some later
    evaluation, does; None where there is none. ``train`` and ``validation`` are ``(k,)`` AUCs."""
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    for place in range(len(train) - 1):
        stalls = np.max(validation[place + 1 :]) - validation[place] <= noise
        goes_on = np.max(train[place + 1 :]) - train[place] > noise
        if stalls and goes_on:
            return place
    return None


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
