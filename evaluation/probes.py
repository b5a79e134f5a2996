"""References that fit the label, kept apart by name: how much a supervised head could read from frozen features."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import Sampled, block_jackknife, bootstrap
from evaluation.detection import weighted_auc
from evaluation.score import Score

FOLDS = 5
PENALTY = 10  # C times d; between 0.01 and 1000 it was best or close to it on real faces, frozen backbones of 384-1280


def linear_probe_auc(
    features: NDArray[np.float32],
    label: NDArray[np.int64],
    component: NDArray[np.int64],
    *,
    replicates: int,
    seed: int,
) -> Sampled:
    """``linear_probe_auc``: logistic regression, grouped cross-validation, AUC of the pooled out-of-fold scores.

    Features are standardised by the training folds; the L2 penalty ``C = 10/d`` gives the logit a prior standard
    deviation of about 3 whatever the width. Folds are stratified and no component straddles them. The interval is a
    jackknife that leaves out a twentieth of the groups at a time and fits anew (_Probe): one that resamples the scores
    of fixed fits misses the truth two to three times as often as it should. (The draws, for paired differences, are
    such.)
    NaN, with the reason in ``how``, where the groups do not allow two folds with both classes.
    """
    fold = folds(label, component, seed)
    probes = None if not every_fit_has_both_classes(label, fold) else _probes(features, label, fold)

    def statistic(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        if not every_fit_has_both_classes(label[kept], fold[kept]):
            return np.array([math.nan])
        logit = np.concatenate([probe.held_out_logits(kept) for probe in probes])
        rows = np.concatenate([np.intersect1d(probe.held_out, kept, assume_unique=True) for probe in probes])
        return weighted_auc(label[rows], logit, np.ones((1, len(rows))))

    n, how = len(label), "supervised reference: "
    if probes is None:
        how += "undefined: too few groups for two folds that hold both classes"
        undefined = Score("linear_probe_auc", math.nan, math.nan, math.nan, True, n, how)
        return Sampled(undefined, np.full(replicates, np.nan))
    (value,), (width,) = block_jackknife(statistic, component, seed)
    out_of_fold = _out_of_fold(probes, n)
    how += (
        f"AUC of a logistic regression on standardised features (C = {PENALTY}/d), scores out of fold in grouped "
        f"{FOLDS}-fold cross-validation; 95 % jackknife interval, a twentieth of the groups left out at a time"
    )
    draws = bootstrap(lambda weights: weighted_auc(label, out_of_fold, weights), component, replicates, seed)
    low, high = np.clip([value - width, value + width], 0, 1)
    return Sampled(Score("linear_probe_auc", value, low, high, True, n, how), draws)


def folds(label: NDArray[np.int64], component: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """``(n,)`` fold of each sample: stratified, no component straddles; all 0 where two folds are not possible.

    Folds depend on the groups alone, not on the order of the samples.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.zeros(len(label), np.int64)
    count = min(FOLDS, *(len(np.unique(component[label == c])) for c in (0, 1)), *np.bincount(label))
    if count < 2:
        return fold
    order = np.lexsort((label, component))
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(order, label[order], component[order])):
        fold[order[held_out]] = number
    return fold


def cross_validated_logits(
    features: NDArray, label: NDArray[np.int64], fold: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """``(n,)`` logits, each from a fit on the other folds; None where a fit would lack a class."""
    if not every_fit_has_both_classes(label, fold):
        return None
    return _out_of_fold(_probes(features, label, fold), len(label))


def _out_of_fold(probes: list[_Probe], n: int) -> NDArray[np.float64]:
    logits = np.empty(n)
    for probe in probes:
        logits[probe.held_out] = probe.held_out_logits(np.arange(n))
    return logits


def every_fit_has_both_classes(label: NDArray[np.int64], fold: NDArray[np.int64]) -> bool:
    """Whether the samples outside of each fold hold both classes, ``label`` and ``fold`` ``(n,)``."""
    return all(len(np.unique(label[fold != number])) == 2 for number in np.unique(fold))


def _probes(features: NDArray, label: NDArray[np.int64], fold: NDArray[np.int64]) -> list[_Probe]:
    return [_Probe(features, label, np.flatnonzero(fold == number)) for number in np.unique(fold)]


class _Probe:
    """One fold's logistic regression, and the same with some training samples left out.

    The first fit is scikit-learn's. Leaving a few samples out moves it little, so that Newton steps with the Hessian of
    the first fit arrive in a handful of products instead of a fit from scratch. The scaling stays that of the fold.
    """

    STEPS, TOLERANCE = 30, 1e-6

    def __init__(self, features: NDArray, label: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
        from scipy.linalg import cho_factor
        from sklearn.preprocessing import StandardScaler

        self.held_out, d = held_out, features.shape[1]
        self.train = np.setdiff1d(np.arange(len(label)), held_out)
        scaler = StandardScaler().fit(features[self.train].astype(np.float64))
        scaled = scaler.transform(features.astype(np.float64))
        if d > len(self.train):  # weights lie in the span of the training samples: the same fit in fewer coordinates
            scaled = scaled @ np.linalg.qr(scaled[self.train].T)[0]
        self.x = np.column_stack([scaled, np.ones(len(label))])
        self.label, self.strength = label.astype(np.float64), PENALTY / d
        self.weights = self._fit(self.train)
        self.ridge = np.append(np.ones(scaled.shape[1]), 0.0)  # the intercept is free
        share = _share(self.x[self.train], self.weights)
        curvature = self.strength * share * (1 - share)
        hessian = (self.x[self.train] * curvature[:, None]).T @ self.x[self.train] + np.diag(self.ridge)
        self.hessian = cho_factor(hessian, overwrite_a=True)

    def held_out_logits(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits of the held-out samples in ``kept`` (sorted), from a fit on the training samples in ``kept``."""
        return self.x[np.intersect1d(self.held_out, kept, assume_unique=True)] @ self._refit(kept)

    def _refit(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        from scipy.linalg import cho_solve

        rows, weights = np.intersect1d(self.train, kept, assume_unique=True), self.weights.copy()
        x, label = self.x[rows], self.label[rows]
        for _ in range(self.STEPS):
            gradient = self.strength * x.T @ (_share(x, weights) - label) + self.ridge * weights
            step = cho_solve(self.hessian, gradient, check_finite=False)
            weights -= step
            if np.abs(step).max() <= self.TOLERANCE * np.abs(weights).max():
                return weights
        return self._fit(rows)  # few samples: without some of them the Hessian is another

    def _fit(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        from sklearn.linear_model import LogisticRegression

        fit = LogisticRegression(C=self.strength, max_iter=1000, tol=1e-6)
        fit.fit(self.x[rows, :-1], self.label[rows])
        return np.append(fit.coef_[0], fit.intercept_)


def _share(x: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return expit(x @ weights)
