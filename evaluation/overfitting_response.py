"""How hyperparameters move a gap or a score, over the trials of a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.score import Score

FEWEST = 10
"""Trials below which no forest is fitted."""
TREES, SHUFFLES = 30, 3
BINS = 4
"""Parts of a range in a marginal curve."""


def importance(
    trials: Sequence[Mapping[str, Any]], outcome: ArrayLike, *, resamples: int = 20, seed: int = 0
) -> list[Score]:
    """Permutation importance of each hyperparameter for ``outcome``, most important first.

    Parameters
    ----------
    trials : ``m`` mappings with the same keys, hyperparameter → value; what is no number is a category.
    outcome : ``(m,)`` a gap or a score of each trial.

    A random forest is fitted to a resample of the trials and asked about those left out; the importance is by how much
    its mean absolute error rises, in units of the outcome, when the hyperparameter is shuffled among them (Breiman,
    Random Forests, 2001). Value and 95 % interval are mean and quantiles over resamples. Hyperparameters that move
    together share their importance. Raises ValueError for fewer than ten trials, NaN or infinity.
    """
    from sklearn.ensemble import RandomForestRegressor

    names, x, y = _table(trials, outcome)
    if len(y) < FEWEST:
        raise ValueError(f"importance needs at least {FEWEST} trials, got {len(y)}")
    random, found = np.random.default_rng(seed), []
    while len(found) < resamples:
        drawn = random.integers(len(y), size=len(y))
        rest = np.setdiff1d(np.arange(len(y)), drawn)
        if len(rest) < 2:
            continue
        forest = RandomForestRegressor(TREES, random_state=len(found), n_jobs=1).fit(x[drawn], y[drawn])
        found.append(_rises(forest.predict, x[rest], y[rest], random))
    low, high = np.quantile(found, (0.025, 0.975), axis=0)
    how = (
        f"rise of the mean absolute error of a random forest when it is shuffled, over {len(y)} trials; "
        f"95 % interval over {resamples} resamples of the trials"
    )
    mean = np.mean(found, axis=0)
    scores = [Score(*each, True, len(y), how) for each in zip(names, mean, low, high, strict=True)]
    return sorted(scores, key=lambda score: -score.value)


def _rises(
    predict: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """``(hyperparameters,)`` rise of the mean absolute error when one is shuffled, as sklearn's permutation_importance
    has it, but all shuffles in one prediction, which takes a quarter of the time."""
    shuffled = np.tile(x, (x.shape[1], SHUFFLES, 1, 1))
    for column, repeats in enumerate(shuffled):
        for repeat in repeats:
            random.shuffle(repeat[:, column])
    errors = np.abs(predict(shuffled.reshape(-1, x.shape[1])).reshape(shuffled.shape[:3]) - y).mean(axis=(1, 2))
    return errors - np.abs(predict(x) - y).mean()


def marginal(trials: Sequence[Mapping[str, Any]], outcome: ArrayLike, name: str) -> list[tuple[str, Score]]:
    """Mean outcome at each value of one hyperparameter, over all others: (value, score) in the order of the values.

    A number with more than eight values is cut into quarters of the trials. Student's 95 % interval over trials; NaN
    from one trial. Arguments as in :func:`importance`.
    """
    names, _, y = _table(trials, outcome)
    if name not in names:
        raise ValueError(f"no hyperparameter {name!r}; there are {', '.join(names)}")
    values = [trial[name] for trial in trials]
    parts = _quarters(values) if _numeric(values) and len(set(values)) > 8 else _each(values)
    return [(label, _mean(label, y[members])) for label, members in parts]


def _each(values: Sequence[Any]) -> list[tuple[str, NDArray[np.int64]]]:
    distinct = sorted(set(values)) if _numeric(values) else list(dict.fromkeys(values))
    return [(_text(one), np.flatnonzero([value == one for value in values])) for one in distinct]


def _quarters(values: Sequence[float]) -> list[tuple[str, NDArray[np.int64]]]:
    parts = np.array_split(np.argsort(values, kind="stable"), BINS)
    return [(f"{_text(values[part[0]])} … {_text(values[part[-1]])}", part) for part in parts]


def _mean(label: str, y: NDArray[np.float64]) -> Score:
    from scipy.special import stdtrit

    n, mean = len(y), float(y.mean())
    if n < 2:
        return Score(label, mean, math.nan, math.nan, False, n, "one trial; no interval")
    width = float(stdtrit(n - 1, 0.975) * y.std(ddof=1) / math.sqrt(n))
    return Score(label, mean, mean - width, mean + width, False, n, f"mean over {n} trials; Student's 95 % interval")


def _table(
    trials: Sequence[Mapping[str, Any]], outcome: ArrayLike
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    y = np.asarray(outcome, dtype=np.float64)
    if y.shape != (len(trials),) or not len(trials):
        raise ValueError(f"one outcome per trial: got {len(trials)} trials and outcomes of shape {y.shape}")
    if not np.isfinite(y).all():
        raise ValueError("the outcome holds NaN or infinity; leave such trials out")
    names = list(trials[0])
    if any(list(trial) != names for trial in trials):
        raise ValueError("all trials must have the same hyperparameters in the same order")
    return names, np.column_stack([_codes([trial[name] for trial in trials]) for name in names]), y


def _codes(values: Sequence[Hashable]) -> NDArray[np.float64]:
    if _numeric(values):
        return np.asarray(values, dtype=np.float64)
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return np.asarray([places[value] for value in values], dtype=np.float64)


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
