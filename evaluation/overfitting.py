"""How far two evaluations of one model drift apart: train against validation, test against an unseen dataset."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import bootstrap, percentile
from evaluation.checks import binary_label, components, finite
from evaluation.detection import weighted_auc
from evaluation.score import Score

Scored = tuple[ArrayLike, ArrayLike, ArrayLike]  # label, logit, group: (n,) each


class Resampled(NamedTuple):
    """AUC of one scored set, and in each group resample. Equal groups, replicates and seed draw the same groups, so
    that the draws of two checkpoints on one set are paired."""

    value: float
    draws: NDArray[np.float64]  # (replicates,), NaN where a class was missing
    n: int


def resampled_auc(scored: Scored, *, replicates: int = 1000, seed: int = 0) -> Resampled:
    """``scored`` is ``(label, logit, group)``, arrays of ``(n,)``. Raises ValueError like
    :func:`evaluation.detection.detection`."""
    label = binary_label(scored[0])
    logit = finite("logit", scored[1], len(label))
    component = components(scored[2], len(label))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return weighted_auc(label, logit, weights)

    value = float(statistic(np.ones((1, len(label))))[0])
    return Resampled(value, bootstrap(statistic, component, replicates, seed), len(label))


def auc_score(auc: Resampled) -> Score:
    """``auc`` with its percentile interval."""
    interval = percentile(auc.draws)
    how = f"area under the ROC, ties count half; {interval.note}"
    return Score("auc", auc.value, interval.low, interval.high, True, auc.n, how)


def gap(name: str, a: Scored, b: Scored, *, replicates: int = 1000, seed: int = 0) -> Score:
    """AUC of ``a`` minus AUC of ``b``, two sets scored by one model: positive when ``a`` is the easier one.

    ``a`` and ``b`` are ``(label, logit, group)``, arrays of ``(n_a,)`` and ``(n_b,)``. The sets are taken as
    independent (no group in both, as in train and validation): each is resampled by its own groups, and the interval is
    that of the difference. It conditions on the model. ``n`` is ``n_a + n_b``. Raises ValueError like
    :func:`evaluation.detection.detection`.
    """
    seeds = independent_seeds(2, seed)
    return gap_between(
        name, *(resampled_auc(side, replicates=replicates, seed=one) for side, one in zip((a, b), seeds, strict=True))
    )


def gap_between(name: str, a: Resampled, b: Resampled) -> Score:
    """:func:`gap` of two sets that were resampled with independent seeds."""
    interval = percentile(a.draws - b.draws)
    how = f"AUC {a.value:.4f} (n={a.n}) minus AUC {b.value:.4f} (n={b.n}), resampled independently; {interval.note}"
    return Score(name, a.value - b.value, interval.low, interval.high, False, a.n + b.n, how)


def drop(name: str, before: Resampled, after: Resampled) -> Score:
    """AUC of the checkpoint ``before`` minus AUC of the checkpoint ``after``: positive where training on made it worse.

    Both on the same samples, resampled with the same seed: groups are drawn the same for both, so that what is common
    cancels.
    """
    interval = percentile(before.draws - after.draws)
    how = f"AUC of the first minus AUC of the second checkpoint on the same samples; {interval.note}"
    return Score(name, before.value - after.value, interval.low, interval.high, False, before.n, how)


def independent_seeds(count: int, seed: int = 0) -> list[int]:
    """Independent streams, so that equal groups in two sets do not move together."""
    return [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(count)]
