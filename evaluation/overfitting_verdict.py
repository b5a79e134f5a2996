"""Does a family of backbones do best, and does it overfit more than its validation AUC explains?

"The self-supervised ones do best but risk overfitting" has two parts. The first is about the chosen setting of each
backbone. The second must not blame a model for being stronger: a gap grows with what is learnt, so the comparison is
at equal validation AUC.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.score import Score
from evaluation.welch import half_width

FEWEST = 5
"""Trials on either side below which nothing is compared."""


class Adjusted(NamedTuple):
    """Backbones at equal validation AUC, ``(b,)`` each: their mean outcome there, its variance over trials, the trials,
    and the mean validation AUC that they had; and the variance of the slope that brought them there."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    trials: NDArray[np.int64]
    validation: NDArray[np.float64]
    slope_variance: float


def at_equal_validation(
    validation: ArrayLike, outcome: ArrayLike, backbone: Sequence[str], member: ArrayLike, *, family: bool = True
) -> Score:
    """By how much the mean outcome of the members exceeds that of the others at equal validation AUC.

    Parameters
    ----------
    validation : ``(m,)`` validation AUC of each trial.
    outcome : ``(m,)`` a gap or an AUC of each trial.
    backbone : ``(m,)`` backbone of each trial.
    member : ``(m,)`` whether the trial belongs to the family (or is of the backbone) in question.
    family : whether the question is about the population that the backbones were taken from, or about these.

    Trials outside the range of validation AUC that both sides reach are left out (a choice by what is held equal, which
    moves no mean there), then backbones with a single trial in it. Each backbone's mean is brought to equal validation
    AUC by one least-squares slope within backbones (analysis of covariance), and backbones count alike.

    The 95 % interval of a ``family`` is Welch's over the adjusted means, for which trials are no substitute: NaN with
    one backbone on a side. The error of the slope, common to all, is not in it: times the sides' difference in
    validation AUC it is small beside what backbones differ. Otherwise the interval is over trials (Student's, each
    backbone with its own variance, the slope's error included): what it says holds for these backbones alone. NaN below
    five trials on a side. Raises ValueError on misfitting shapes, NaN or infinity.
    """
    validation, outcome = np.asarray(validation, np.float64), np.asarray(outcome, np.float64)
    member, names = np.asarray(member, dtype=bool), np.asarray(backbone, dtype=object)
    shapes = {validation.shape, outcome.shape, member.shape, names.shape}
    if len(shapes) > 1 or validation.ndim != 1:
        raise ValueError(f"one validation AUC, outcome, backbone and membership per trial, got shapes {shapes}")
    if not (np.isfinite(validation).all() and np.isfinite(outcome).all()):
        raise ValueError("validation AUC or outcome holds NaN or infinity; leave such trials out")
    name = "difference at equal validation AUC"
    kept = _common_range(validation, member)
    found_trials = Counter(names[kept])
    kept &= np.array([found_trials[one] > 1 for one in names], dtype=bool)
    counts = [int(np.sum(kept & (member == side))) for side in (True, False)]
    what = f"{counts[0]} trials against {counts[1]} in the common range of validation AUC"
    if min(counts) < FEWEST:
        how = f"fewer than {FEWEST} trials on a side: {what}"
        return Score(name, math.nan, math.nan, math.nan, False, sum(counts), how)
    sides = {one: bool(side) for one, side in zip(names[kept], member[kept], strict=True)}
    at = _adjusted(validation[kept], outcome[kept], names[kept], list(sides))
    members = np.array(list(sides.values()))
    found = mean_difference(at.mean[members], at.mean[~members])
    if not family:
        width, note = _over_trials(at, members), "95 % interval over trials, of these backbones alone"
        found = replace(found, low=found.value - width, high=found.value + width)
        found = replace(found, how=f"mean of {members.sum()} backbones minus mean of {(~members).sum()}; {note}")
    how = f"analysis of covariance, {what}; {found.how}"
    return replace(found, name=name, higher_is_better=False, n=sum(counts), how=how)


def mean_difference(members: ArrayLike, others: ArrayLike) -> Score:
    """Mean of ``members`` ``(a,)`` minus mean of ``others`` ``(b,)``, a number for each backbone; Welch's 95 % interval
    over backbones, NaN with fewer than two on a side. ``n`` is ``a + b``."""
    sides = [np.asarray(side, np.float64) for side in (members, others)]
    n = sum(map(len, sides))
    if not all(map(len, sides)):
        return Score("difference", math.nan, math.nan, math.nan, True, n, "no backbone on a side")
    value = float(sides[0].mean() - sides[1].mean())
    how = f"mean of {len(sides[0])} backbones minus mean of {len(sides[1])}"
    if min(map(len, sides)) < 2:
        return Score("difference", value, math.nan, math.nan, True, n, f"{how}; one on a side, no interval")
    width = half_width([side.var(ddof=1) / len(side) for side in sides], [len(side) - 1 for side in sides])
    return Score("difference", value, value - width, value + width, True, n, f"{how}; Welch's 95 % interval")


def expected(validation: ArrayLike, outcome: ArrayLike, score: Score) -> Score:
    """The AUC to expect from the setting that validation selects, trained again and met with new faces.

    ``validation`` ``(m,)`` validation AUCs of a backbone's trials, ``outcome`` ``(m,)`` their test or unseen AUCs;
    ``score`` is that outcome of the selected trial, with its interval over groups. The value is the mean outcome of the
    trials that validate best (a twentieth, at least three, at most all): among them the choice is luck. The 95 %
    interval joins that over groups (of ``score``) with Student's for one more trial like these: their variance counts
    once for the trial to come and once, over their number, for the mean; NaN from one trial. Luck of training that
    shows on validation and test alike is selected for, and makes the value too high: only more seeds would tell it.
    """
    from scipy.special import stdtrit

    validation, outcome = np.asarray(validation, np.float64), np.asarray(outcome, np.float64)
    count = min(len(validation), max(3, round(len(validation) / 20)))
    best = outcome[np.argsort(-validation, kind="stable")[:count]]
    mean, between = float(best.mean()), float(best.var(ddof=1)) if count > 1 else math.nan
    another = stdtrit(count - 1, 0.975) * math.sqrt(between * (1 + 1 / count))
    width = math.hypot((score.high - score.low) / 2, another)
    how = (
        f"mean of the {count} trials that validate best, of {len(validation)}; 95 % interval from that over groups and "
        "Student's for one more trial like these"
    )
    return Score(score.name, mean, mean - width, mean + width, True, score.n, how)


def in_words(best: Score, overfits: Score, *, family: bool = True) -> str:
    """A verdict on "does best but risks overfitting" from the difference of test AUC and that of the gap at equal
    validation AUC: only what the intervals show, of one backbone against others (not ``family``) in words of its own.
    An interval that holds 0 decides nothing: a wide one holds it whatever the truth is."""
    told = _told(overfits, "overfits more", "overfits less")
    if not family and math.isfinite(overfits.low + overfits.high):
        told += " than these others"
    return f"{_told(best, 'does better', 'does worse')}; {told}"


def _told(score: Score, above: str, below: str) -> str:
    if not math.isfinite(score.low + score.high):
        return f"too few backbones or trials to say whether it {above}"
    undecided = f"undecided whether it {above} or {below.split()[-1]}"
    return above if score.low > 0 else below if score.high < 0 else undecided


def _common_range(validation: NDArray[np.float64], member: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if member.all() or not member.any():
        return np.zeros(len(member), dtype=bool)
    low = max(validation[member].min(), validation[~member].min())
    high = min(validation[member].max(), validation[~member].max())
    return (validation >= low) & (validation <= high)


def _adjusted(
    validation: NDArray[np.float64], outcome: NDArray[np.float64], backbone: NDArray[np.object_], names: Sequence[str]
) -> Adjusted:
    """Each of ``names``, of two trials or more, at the mean over backbones of validation AUC."""
    place = np.array([names.index(one) for one in backbone])
    trials = np.bincount(place)
    x, y = (np.bincount(place, values) / trials for values in (validation, outcome))
    within_x, within_y = validation - x[place], outcome - y[place]
    spread = float(within_x @ within_x)
    slope = float(within_x @ within_y) / spread if spread > 0 else 0.0
    squares = np.bincount(place, (within_y - slope * within_x) ** 2)
    freedom = max(1, len(place) - len(names) - 1)
    slope_variance = float(squares.sum()) / freedom / spread if spread > 0 else 0.0
    return Adjusted(y - slope * (x - x.mean()), squares / (trials - 1) / trials, trials, x, slope_variance)


def _over_trials(at: Adjusted, members: NDArray[np.bool_]) -> float:
    """95 % half-width of the difference of two means of backbones that are given: the luck of trials alone."""
    share = np.where(members, 1 / members.sum(), -1 / (~members).sum())
    variances = [*(share**2 * at.variance), float(share @ at.validation) ** 2 * at.slope_variance]
    return half_width(variances, [*(at.trials - 1), max(1, at.trials.sum() - len(at.trials) - 1)])
