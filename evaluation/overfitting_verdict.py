"""Does a family of backbones do best, and does it overfit more than its validation AUC explains?

"The self-supervised ones do best but risk overfitting" has two parts. The first is about the chosen setting of each
backbone. The second must not blame a model for being stronger: a gap grows with what is learnt, so the comparison is
at equal validation AUC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import percentile
from evaluation.score import Score

FEWEST = 5
"""Trials on either side below which nothing is compared."""


def at_equal_validation(
    validation: ArrayLike,
    outcome: ArrayLike,
    backbone: Sequence[str],
    member: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """By how much the outcome of the members' trials exceeds that of the others at equal validation AUC.

    Parameters
    ----------
    validation : ``(m,)`` validation AUC of each trial.
    outcome : ``(m,)`` a gap or an AUC of each trial.
    backbone : ``(m,)`` backbone of each trial.
    member : ``(m,)`` whether the trial belongs to the family (or is of the backbone) in question.

    Trials outside the range of validation AUC that both sides reach are left out. The difference is the coefficient of
    membership in a least-squares fit on it and on validation AUC (analysis of covariance: one slope for both). The 95 %
    interval draws backbones of each side again, and trials within them; with one backbone on a side it does not hold
    the luck of that choice, and says so. NaN below five trials on a side. Raises ValueError on misfitting shapes, NaN
    or infinity.
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
    sides = [np.flatnonzero(kept & (member == side)) for side in (True, False)]
    counts = f"{len(sides[0])} trials against {len(sides[1])} in the common range of validation AUC"
    if min(map(len, sides)) < FEWEST:
        how = f"fewer than {FEWEST} trials on a side: {counts}"
        return Score(name, math.nan, math.nan, math.nan, False, int(kept.sum()), how)
    value = _difference(validation, outcome, member, np.concatenate(sides))
    random = np.random.default_rng(seed)
    by_side = [[rows[names[rows] == one] for one in dict.fromkeys(names[rows])] for rows in sides]
    draws = np.array(
        [
            _difference(validation, outcome, member, np.concatenate([_drawn(random, parts) for parts in by_side]))
            for _ in range(resamples)
        ]
    )
    low, high, _ = percentile(draws)
    of = f"{len(by_side[0])} backbones against {len(by_side[1])}"
    alone = "; one backbone on a side: the luck of its choice is not in the interval" if 1 in map(len, by_side) else ""
    how = f"analysis of covariance, {counts}, {of}; 95 % percentile interval over {resamples} resamples{alone}"
    return Score(name, value, low, high, False, int(kept.sum()), how)


def mean_difference(members: ArrayLike, others: ArrayLike) -> Score:
    """Mean of ``members`` ``(a,)`` minus mean of ``others`` ``(b,)``, a number for each backbone; Welch's 95 % interval
    over backbones, NaN with fewer than two on a side. ``n`` is ``a + b``."""
    from scipy.special import stdtrit

    sides = [np.asarray(side, np.float64) for side in (members, others)]
    n = sum(map(len, sides))
    if not all(map(len, sides)):
        return Score("difference", math.nan, math.nan, math.nan, True, n, "no backbone on a side")
    value = float(sides[0].mean() - sides[1].mean())
    how = f"mean of {len(sides[0])} backbones minus mean of {len(sides[1])}"
    if min(map(len, sides)) < 2:
        return Score("difference", value, math.nan, math.nan, True, n, f"{how}; one on a side, no interval")
    errors = [float(side.var(ddof=1) / len(side)) for side in sides]
    total = sum(errors)
    if total == 0:
        return Score("difference", value, value, value, True, n, f"{how}; all equal within a side")
    freedom = total**2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True))
    width = float(stdtrit(freedom, 0.975)) * math.sqrt(total)
    return Score("difference", value, value - width, value + width, True, n, f"{how}; Welch's 95 % interval")


def expected(validation: ArrayLike, outcome: ArrayLike, score: Score) -> Score:
    """The AUC to expect from the setting that validation selects, trained again and met with new faces.

    ``validation`` ``(m,)`` validation AUCs of a backbone's trials, ``outcome`` ``(m,)`` their test or unseen AUCs;
    ``score`` is that outcome of the selected trial, with its interval over groups. The value is the mean outcome of the
    trials that validate best (a twentieth, at least three, at most all): among them the choice is luck. The interval
    adds two variances: over groups (from ``score``) and between those trials; normal, 95 %.
    """
    validation, outcome = np.asarray(validation, np.float64), np.asarray(outcome, np.float64)
    count = min(len(validation), max(3, round(len(validation) / 20)))
    best = outcome[np.argsort(-validation, kind="stable")[:count]]
    mean, between = float(best.mean()), float(best.var(ddof=1)) if count > 1 else math.nan
    width = math.hypot((score.high - score.low) / 2, 1.959964 * math.sqrt(between))
    how = (
        f"mean of the {count} trials that validate best, of {len(validation)}; 95 % interval from the variance over "
        "groups and that between these trials"
    )
    return Score(score.name, mean, mean - width, mean + width, True, score.n, how)


def in_words(best: Score, overfits: Score) -> str:
    """A verdict on "does best but risks overfitting" from the difference of test AUC and that of the gap at equal
    validation AUC: only what the intervals show."""
    return f"{_told(best, 'does better', 'does worse')}; {_told(overfits, 'overfits more', 'overfits less')}"


def _told(score: Score, above: str, below: str) -> str:
    if not math.isfinite(score.low + score.high):
        return f"too few backbones or trials to say whether it {above}"
    return above if score.low > 0 else below if score.high < 0 else f"not shown that it {above} or {below.split()[-1]}"


def _common_range(validation: NDArray[np.float64], member: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if member.all() or not member.any():
        return np.zeros(len(member), dtype=bool)
    low = max(validation[member].min(), validation[~member].min())
    high = min(validation[member].max(), validation[~member].max())
    return (validation >= low) & (validation <= high)


def _difference(
    validation: NDArray[np.float64], outcome: NDArray[np.float64], member: NDArray[np.bool_], rows: NDArray[np.int64]
) -> float:
    """Coefficient of membership: both sides' means, brought to equal validation AUC by the slope within sides."""
    x, y, side = validation[rows], outcome[rows], member[rows]
    means = [(x[side == one].mean(), y[side == one].mean()) for one in (True, False)]
    centred_x, centred_y = (v - np.where(side, *(m[k] for m in means)) for k, v in enumerate((x, y)))
    spread = float(centred_x @ centred_x)
    slope = float(centred_x @ centred_y) / spread if spread > 0 else 0.0
    return float(means[0][1] - means[1][1] - slope * (means[0][0] - means[1][0]))


def _drawn(random: np.random.Generator, parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Backbones with replacement, and of each its trials with replacement."""
    chosen = random.integers(len(parts), size=len(parts))
    return np.concatenate([random.choice(parts[place], len(parts[place])) for place in chosen])
