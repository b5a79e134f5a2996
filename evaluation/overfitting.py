"""How far two evaluations of one model drift apart: train against validation, test against an unseen dataset."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import bootstrap, percentile
from evaluation.checks import binary_label, components, finite
from evaluation.detection import weighted_auc
from evaluation.score import Score

Scored = tuple[ArrayLike, ArrayLike, ArrayLike]  # label, logit, group: (n,) each


def gap(name: str, a: Scored, b: Scored, *, replicates: int = 1000, seed: int = 0) -> Score:
    """AUC of ``a`` minus AUC of ``b``, two sets scored by one model: positive when ``a`` is the easier one.

    ``a`` and ``b`` are ``(label, logit, group)``, arrays of ``(n_a,)`` and ``(n_b,)``. The sets are taken as
    independent (no group in both, as in train and validation): each is resampled by its own groups, and the interval is
    that of the difference. It conditions on the model. ``n`` is ``n_a + n_b``. Raises ValueError like
    :func:`evaluation.detection.detection`.
    """
    sides = [_auc_with_draws(side, replicates, draw) for side, draw in zip((a, b), _seeds(seed), strict=True)]
    (value_a, draws_a, n_a), (value_b, draws_b, n_b) = sides
    interval = percentile(draws_a - draws_b)
    how = f"AUC {value_a:.4f} (n={n_a}) minus AUC {value_b:.4f} (n={n_b}), resampled independently; {interval.note}"
    return Score(name, value_a - value_b, interval.low, interval.high, False, n_a + n_b, how)


def _seeds(seed: int) -> list[int]:
    """Two independent streams, so that equal groups in both sets do not move together."""
    return [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(2)]


def _auc_with_draws(side: Scored, replicates: int, seed: int) -> tuple[float, NDArray[np.float64], int]:
    label = binary_label(side[0])
    logit = finite("logit", side[1], len(label))
    component = components(side[2], len(label))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return weighted_auc(label, logit, weights)

    value = float(statistic(np.ones((1, len(label))))[0])
    return value, bootstrap(statistic, component, replicates, seed), len(label)
