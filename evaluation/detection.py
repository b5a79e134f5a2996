"""How well scores tell fake from real: ranking, operating points and calibration, with group-bootstrap intervals.

A score (``logit``) rises with fakeness; a sample is called fake when ``logit >= threshold``. Fake = 1 is the positive
class: TPR is the share of fakes found, FPR the share of real samples called fake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import Interval, bca, bootstrap, centred, jackknife, percentile
from evaluation.checks import binary_label, components, finite
from evaluation.score import Score

FPR_LEVELS = (0.001, 0.01, 0.05, 0.1)
ECE_BINS = 15

Rates = tuple[NDArray[np.float64], NDArray[np.float64]]  # FPR and TPR, each (r, points), from (0, 0) to (1, 1)


def balanced_threshold(label: ArrayLike, logit: ArrayLike) -> float:
    """Threshold that maximises balanced accuracy, to be chosen on validation and used elsewhere.

    ``label`` ``(n,)`` 0/1 and ``logit`` ``(n,)``. Candidates are the midpoints between adjacent distinct scores and the
    lowest score itself (everything is called fake). Among equally good ones the midpoint of the widest gap wins, then
    the lowest. Raises ValueError on a missing class, NaN or infinity.
    """
    label = binary_label(label)
    values, bin_ = np.unique(finite("logit", logit, len(label)), return_inverse=True)
    fakes, reals = np.bincount(bin_, label == 1), np.bincount(bin_, label == 0)
    # At candidate i the bins below i are called real: TPR loses their fakes, TNR gains their reals. Balanced accuracy
    # times 2 F R is an integer, so that ties are exact.
    lost, gained = np.cumsum(fakes) - fakes, np.cumsum(reals) - reals
    quality = (fakes.sum() - lost) * reals.sum() + gained * fakes.sum()
    gap = np.diff(values, prepend=values[0])
    best = np.flatnonzero(quality == quality.max())
    best = best[np.argmax(gap[best])]
    middle = values[best] - gap[best] / 2
    return float(middle if best == 0 or middle > values[best - 1] else values[best])  # rounding must not cross a score


def detection(
    label: ArrayLike, logit: ArrayLike, group: ArrayLike, *, threshold: float, replicates: int = 1000, seed: int = 0
) -> list[Score]:
    """Detection metrics of one scored set.

    Parameters
    ----------
    label : ``(n,)`` 0 (real) or 1 (fake), both present.
    logit : ``(n,)`` scores that rise with fakeness; Brier and ECE read them as log-odds.
    group : ``(n,)`` integers or strings; samples that share a group (or tie through ``|``) are resampled together.
    threshold : decision threshold, chosen on *other* data (:func:`balanced_threshold` on validation).

    Returns
    -------
    Scores ``auc``, ``ap``, ``eer``, ``balanced_accuracy``, ``f1``, ``tpr_at_fpr_0.1pct`` … ``_10pct``, ``brier``,
    ``ece``. The equal error rate is the crossing of FPR and 1 - TPR on the linearly interpolated ROC; the two other
    definitions in use (the FPR, or the mean of both rates, at the nearest score) differ from it.

    Intervals condition on the model and the threshold; groups are resampled, and with them the share of fakes, which
    widens the intervals of AP, F1, Brier and ECE where groups hold one class. A resample without one of the classes is
    skipped and counted in ``how``. Raises ValueError on misfitting shapes, a missing class, NaN or infinity.
    """
    label = binary_label(label)
    logit = finite("logit", logit, len(label))
    component = components(group, len(label))
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    metrics = _metrics(label, logit, threshold)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sweep = _sweep(label, logit, weights)
        results = np.stack([metric.of(sweep, weights) for metric in metrics], axis=1)
        results[(sweep.found[:, -1] == 0) | (sweep.alarms[:, -1] == 0)] = np.nan  # a class is missing
        return results

    values = statistic(np.ones((1, len(label))))[0]
    draws = bootstrap(statistic, component, replicates, seed)
    left_out = jackknife(statistic, component)
    scores = []
    for column, (metric, value) in enumerate(zip(metrics, values, strict=True)):
        interval = metric.interval(value, draws[:, column], None if left_out is None else left_out[:, column])
        how = f"{metric.how}; {interval.note}"
        scores.append(Score(metric.name, value, interval.low, interval.high, metric.higher_is_better, len(label), how))
    return scores


def reliability(label: ArrayLike, logit: ArrayLike) -> list[tuple[float, float, int]]:
    """Reliability curve: (mean of sigmoid(logit), share of fakes, samples) of each of the bins of the ECE, from the
    lowest probability up; empty bins are left out. A calibrated model has both numbers alike."""
    label = binary_label(label)
    probability = _sigmoid(finite("logit", logit, len(label)))
    bins = _equal_mass_bins(probability, ECE_BINS)
    return [
        (float(probability[inside].mean()), float(label[inside].mean()), int(inside.sum()))
        for inside in bins.T
        if inside.any()
    ]


def per_video(
    label: ArrayLike, logit: ArrayLike, group: ArrayLike, video: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Video-level ``(label, logit, component)``, each ``(videos,)``: the mean logit of the frames of each video.

    ``video`` ``(n,)`` integers or strings; a manipulated version is a video of its own. Sorted by it, so that the order
    in which samples were scored, by how many processes, does not matter. Raises ValueError where a video has two labels
    or lies in groups that are not tied.
    """
    label = binary_label(label)
    logit = finite("logit", logit, len(label))
    component, video = components(group, len(label)), np.asarray(video)
    if video.shape != label.shape:
        raise ValueError(f"video must have shape {label.shape} like the labels, got {video.shape}")
    names, first, of_sample = np.unique(video, return_index=True, return_inverse=True)
    for what, values in (("label", label), ("group", component)):
        torn = values != values[first][of_sample]
        if torn.any():
            raise ValueError(f"video {names[of_sample[torn][0]]} has more than one {what}")
    order = np.lexsort((logit, of_sample))  # a fixed order of addition
    count = np.bincount(of_sample)
    mean = np.add.reduceat(logit[order], np.cumsum(count) - count) / count
    return label[first], mean, component[first]


def auc(label: NDArray, logit: NDArray) -> float:
    """P(fake above real) + P(equal)/2 of samples ``(n,)``, as ``sklearn.metrics.roc_auc_score``, whose import takes
    longer than a small run trains. NaN without both classes.

    A quotient of whole numbers: equally good orders have equal values, so that a rule for ties applies.
    """
    found, alarms = (_from_zero(counts)[0] for counts in _sweep(label, logit, np.ones((1, len(label)))))
    in_order = np.diff(alarms) @ (found[1:] + found[:-1])  # pairs, twice; equal scores once
    pairs = found[-1] * alarms[-1]
    return float(in_order / (2 * pairs)) if pairs else math.nan


def weighted_auc(label: NDArray, logit: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """``(r,)`` AUC under sample multiplicities ``(r, n)``: P(fake above real) + P(equal)/2; NaN without both classes.

    With weights of one it equals ``sklearn.metrics.roc_auc_score``.
    """
    return _auc(_sweep(label, logit, weights), weights)


class _Sweep(NamedTuple):
    """Weighted counts at or above each distinct score, from the highest down: ``(r, distinct)`` each."""

    found: NDArray[np.float64]  # fakes called fake
    alarms: NDArray[np.float64]  # reals called fake


class _Metric(NamedTuple):
    name: str
    higher_is_better: bool
    how: str
    of: Callable[[_Sweep, NDArray[np.float64]], NDArray[np.float64]]
    interval: Callable[[float, NDArray[np.float64], NDArray[np.float64] | None], Interval]


def _sweep(label: NDArray, logit: NDArray, weights: NDArray) -> _Sweep:
    order = np.argsort(-logit, kind="stable")
    starts = np.flatnonzero(np.diff(logit[order], prepend=np.inf))  # equal scores are one step
    weights, label = weights[:, order], label[order]
    return _Sweep(
        np.cumsum(np.add.reduceat(weights * (label == 1), starts, axis=1), axis=1),
        np.cumsum(np.add.reduceat(weights * (label == 0), starts, axis=1), axis=1),
    )


def _rates(sweep: _Sweep) -> Rates:
    with np.errstate(invalid="ignore"):  # 0/0 where a class is missing: NaN
        return tuple(_from_zero(counts / counts[:, -1:]) for counts in (sweep.alarms, sweep.found))


def _from_zero(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """With a column of zeros before the first; numpy.pad takes most of the time of a bootstrap of small sets."""
    padded = np.zeros((len(rates), rates.shape[1] + 1))
    padded[:, 1:] = rates
    return padded


def _auc(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
    fpr, tpr = _rates(sweep)
    return np.sum(np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2, axis=1)


def _ap(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
    _, tpr = _rates(sweep)
    called = sweep.found + sweep.alarms
    precision = np.divide(sweep.found, called, out=np.zeros_like(called), where=called > 0)
    return np.sum(np.diff(tpr, axis=1) * precision, axis=1)


def _eer(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
    fpr, tpr = _rates(sweep)
    excess = fpr + tpr - 1  # FPR - FNR: from -1 at (0, 0), rising along the ROC, to 1 at (1, 1)
    after = np.argmax(excess >= 0, axis=1)[:, None]
    after = np.maximum(after, 1)  # NaN rows have no crossing

    def at(values: NDArray, position: NDArray) -> NDArray:
        return np.take_along_axis(values, position, axis=1)[:, 0]

    start, end = at(excess, after - 1), at(excess, after)
    share = start / (start - end)
    return at(fpr, after - 1) + share * (at(fpr, after) - at(fpr, after - 1))


def _tpr_at(level: float) -> Callable[[_Sweep, NDArray], NDArray[np.float64]]:
    def of(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
        fpr, tpr = _rates(sweep)
        return np.max(np.where(fpr <= level, tpr, 0.0), axis=1)

    return of


def _metrics(label: NDArray, logit: NDArray, threshold: float) -> list[_Metric]:
    fake, called = label == 1, logit >= threshold
    probability = _sigmoid(logit)
    bins = _equal_mass_bins(probability, ECE_BINS)
    at = f"at threshold {threshold:.6g}, fixed on other data"

    def balanced_accuracy(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
        return (_mean(called, weights, fake) + _mean(~called, weights, ~fake)) / 2

    def f1(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
        return _ratio(2 * weights @ (called & fake), weights @ called.astype(float) + weights @ fake)

    def brier(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
        return _mean((probability - label) ** 2, weights, np.ones(len(label), bool))

    def ece(sweep: _Sweep, weights: NDArray) -> NDArray[np.float64]:
        surplus = weights @ (bins * (probability - label)[:, None])  # per bin: sum of (p - y)
        return _ratio(np.abs(surplus).sum(axis=1), weights.sum(axis=1))

    def plain(value: float, draws: NDArray, left_out: NDArray | None) -> Interval:
        return percentile(draws)  # the jackknife, and so BCa, is inconsistent for quantiles

    def shifted(value: float, draws: NDArray, left_out: NDArray | None) -> Interval:
        return centred(value, draws, (0, 1))  # |bias| per bin grows with noise, in the resample twice

    return [
        _Metric("auc", True, "area under the ROC, ties count half", _auc, bca),
        _Metric("ap", True, "average precision (fake is positive), step-wise, not interpolated", _ap, bca),
        _Metric("eer", False, "equal error rate: FPR = 1 - TPR on the linearly interpolated ROC", _eer, plain),
        _Metric("balanced_accuracy", True, f"mean of TPR and TNR {at}", balanced_accuracy, bca),
        _Metric("f1", True, f"F1 of fake {at}", f1, bca),
        *(
            _Metric(
                f"tpr_at_fpr_{100 * level:g}pct",
                True,
                f"highest TPR of a threshold with FPR <= {100 * level:g} % (one real is {100 / np.sum(~fake):.3g} %)",
                _tpr_at(level),
                plain,
            )
            for level in FPR_LEVELS
        ),
        _Metric("brier", False, "mean squared error of sigmoid(logit)", brier, bca),
        _Metric(
            "ece", False, f"expected calibration error of sigmoid(logit), {ECE_BINS} bins of equal mass", ece, shifted
        ),
    ]


def _ratio(above: NDArray, below: NDArray) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _mean(values: NDArray, weights: NDArray, mask: NDArray) -> NDArray[np.float64]:
    return _ratio(weights @ (values * mask), weights @ mask.astype(float))


def _sigmoid(logit: NDArray) -> NDArray[np.float64]:
    from scipy.special import expit

    return expit(logit)


def _equal_mass_bins(values: NDArray, bins: int) -> NDArray[np.bool_]:
    """``(n, bins)`` membership in bins between quantiles; equal values share a bin, so some bins may stay empty."""
    edges = np.quantile(values, np.arange(1, bins) / bins)
    return np.searchsorted(edges, values, side="left")[:, None] == np.arange(bins)
