"""The search space of a sweep, and where its proposals come from: a grid, random draws, or Optuna's TPE.

A space maps each key to a list of choices or to a range ``{low, high, log}``. Grid and random proposals depend on the
sweep file alone. TPE (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011) proposes from the
validation AUCs told so far; it is handed those of an interrupted sweep again, so that nothing is lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.command import InputError, nearest

Values = dict[str, Any]
"""Hyperparameter → value."""


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, even on a logarithmic scale if ``log``; integers if both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, random: np.random.Generator) -> float:
        if self.integer and not self.log:
            return int(random.integers(self.low, self.high, endpoint=True))
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = random.uniform(*ends)
        return self.rounded(math.exp(value) if self.log else value)

    def rounded(self, value: float) -> float:
        """Five digits: a run's name comes from its values, which people read and type again."""
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(f"{value:.5g}")


Space = dict[str, list[Any] | Range]


def parse_space(space: dict[str, Any]) -> Space:
    """A space as the sweep file writes it; InputError on anything else."""
    if not space:
        raise InputError("space is empty; give at least one key with values to try")
    return {key: _parse_dimension(key, values) for key, values in space.items()}


def _parse_dimension(key: str, values: Any) -> list[Any] | Range:
    if isinstance(values, list):
        if not values:
            raise InputError(f"space.{key} is empty; give values to try")
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise InputError(f"space.{key} lists {twice[0]!r} twice; remove one")
        return values
    if not isinstance(values, dict):
        raise InputError(f"space.{key}={values!r}: give a list of choices or a range {{low: …, high: …, log: true}}")
    known = ("low", "high", "log")
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(f"space.{key}: unknown key {unknown[0]!r}{nearest(str(unknown[0]), known)}")
    missing = [name for name in ("low", "high") if name not in values]
    if missing:
        raise InputError(f"space.{key} has no {missing[0]!r}; a range is {{low: …, high: …, log: true}}")
    low, high, log = values["low"], values["high"], values.get("log", False)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high))
    if not numbers or not isinstance(log, bool):
        raise InputError(f"space.{key}={values}: low and high must be numbers (1.0e-4, not 1e-4), log true or false")
    if not low < high or (log and low <= 0):
        raise InputError(f"space.{key}={values}: low must be below high{', and above 0 with log' if log else ''}")
    return Range(low, high, log)


def within(choices: list[Any] | Range, value: Any) -> bool:
    """Whether a value is one of the choices, or lies in the range."""
    if isinstance(choices, list):
        return value in choices
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and choices.low <= value <= choices.high


def grid(space: Space) -> list[Values]:
    """Every combination, in the order of the space; InputError if it has a range."""
    ranges = [key for key, values in space.items() if isinstance(values, Range)]
    if ranges:
        raise InputError(
            f"space.{ranges[0]} is a range, which a grid cannot go through; list values, or sampler=random"
        )
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def random_draws(space: Space, trials: int, seed: int) -> list[Values]:
    """``trials`` independent draws; the first ones stay the same when more are asked for."""
    random = np.random.default_rng(seed)
    return [
        {
            key: values.draw(random) if isinstance(values, Range) else values[random.integers(len(values))]
            for key, values in space.items()
        }
        for _ in range(trials)
    ]


class Listed:
    """Proposals that are known beforehand: (backbone, values) in their order."""

    repeats = 0

    def __init__(self, proposals: Sequence[tuple[int, Values]]) -> None:
        self._left = list(proposals)

    def next(self, most: int = 1) -> list[tuple[int, Values]]:
        """The next proposals, at most so many and of one backbone; none when there are none left."""
        taken = [proposal for proposal in self._left if proposal[0] == self._left[0][0]][:most]
        for proposal in taken:
            self._left.remove(proposal)
        return taken

    def tell(self, backbone: int, values: Values, auc: float | None) -> None:
        """Nothing to learn."""


class Tpe:
    """Proposals of Optuna's TPE, one study per backbone with its number of ``trials``.

    ``known``: (backbone, values, validation AUC, or None for a failure) of proposals whose trials ended before;
    ``unfinished``: (backbone, values) of others, proposed again first, and all of them even where ``trials`` are fewer
    now. ``note`` is told every further proposal.
    ``run_of``: the run that a proposal stands for. TPE may propose one again; the repeat counts as a trial, and takes
    the result of the first instead of being run.
    """

    def __init__(
        self,
        space: Space,
        trials: Sequence[int],
        seed: int,
        known: Sequence[tuple[int, Values, float | None]] = (),
        unfinished: Sequence[tuple[int, Values]] = (),
        note: Callable[[int, Values], None] = lambda backbone, values: None,
        run_of: Callable[[int, Values], Hashable] = lambda backbone, values: (backbone, repr(values)),
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, space
        self._distributions = {key: self._distribution(values) for key, values in space.items()}
        samplers = [optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True) for _ in trials]
        self._studies = [optuna.create_study(direction="maximize", sampler=sampler) for sampler in samplers]
        self._note, self._run_of = note, run_of
        self.repeats = 0
        """Proposals of a run that had been proposed before."""
        self._left = list(trials)
        self._again = [0] * len(trials)  # proposals to come that were noted before
        self._results: dict[Hashable, float | None] = {}
        self._waiting: dict[Hashable, list[Any]] = {}  # run → Optuna's trials that wait for its result
        for backbone, values, auc in known:
            self._left[backbone] -= 1
            self._results[run_of(backbone, values)] = auc
            self._add(backbone, values, auc)
        for backbone, values in unfinished:
            self._again[backbone] += 1
            self._studies[backbone].enqueue_trial(self._coded(values))
        self._left = [max(left, again) for left, again in zip(self._left, self._again, strict=True)]

    def next(self, most: int = 1) -> list[tuple[int, Values]]:
        """The next proposals, at most so many and of one backbone; none when every backbone has had its trials.
        Backbones take turns."""
        found: list[tuple[int, Values]] = []
        while not found and max(self._left) > 0:
            backbone = int(np.argmax(self._left))
            while len(found) < most and self._left[backbone] > 0:
                values = self._ask(backbone)
                found += [] if values is None else [(backbone, values)]
        return found

    def _ask(self, backbone: int) -> Values | None:
        """The next proposal; None if its run was proposed before."""
        self._left[backbone] -= 1
        asked = self._studies[backbone].ask(self._distributions)
        values = self._decoded(asked.params)
        if self._again[backbone]:
            self._again[backbone] -= 1
        else:
            self._note(backbone, values)
        run = self._run_of(backbone, values)
        if run in self._results:
            self._tell(backbone, asked, self._results[run])
        else:
            self._waiting.setdefault(run, []).append(asked)
        if self._waiting.get(run) == [asked]:
            return values
        self.repeats += 1
        return None

    def tell(self, backbone: int, values: Values, auc: float | None) -> None:
        """How the trial of a proposal ended: its validation AUC, or None for a failure."""
        run = self._run_of(backbone, values)
        self._results[run] = auc
        for asked in self._waiting.pop(run):
            self._tell(backbone, asked, auc)

    def _tell(self, backbone: int, asked: Any, auc: float | None) -> None:
        failed = self._optuna.trial.TrialState.FAIL
        self._studies[backbone].tell(asked, auc, state=failed if auc is None else None)

    def _add(self, backbone: int, values: Values, auc: float | None) -> None:
        state = self._optuna.trial.TrialState
        self._studies[backbone].add_trial(
            self._optuna.trial.create_trial(
                params=self._coded(values),
                distributions=self._distributions,
                value=auc,
                state=state.FAIL if auc is None else state.COMPLETE,
            )
        )

    def _distribution(self, values: list[Any] | Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, list):
            return kinds.CategoricalDistribution(range(len(values)))  # places: a choice may be of any kind
        kind = kinds.IntDistribution if values.integer else kinds.FloatDistribution
        return kind(values.low, values.high, log=values.log)

    def _coded(self, values: Values) -> Values:
        return {
            key: values[key] if isinstance(choices, Range) else choices.index(values[key])
            for key, choices in self._space.items()
        }

    def _decoded(self, params: Values) -> Values:
        return {
            key: choices.rounded(params[key]) if isinstance(choices, Range) else choices[params[key]]
            for key, choices in self._space.items()
        }
