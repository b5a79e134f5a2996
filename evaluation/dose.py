"""Calibration by controlled forgeries: how a score answers to severity, and the least severity it can tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import Sampled, centred
from evaluation.checks import binary_label, components, finite
from evaluation.null import null_of
from evaluation.prepared import Prepared
from evaluation.score import Score
from evaluation.separability import draws_of

CHANCE = {  # scores with a known level where nothing separates; knn_auc for every k
    "knn_auc": 0.5,
    "silhouette": 0.0,
    "energy_distance": 0.0,
    "mmd2": 0.0,
    "kmeans_ami_k2": 0.0,
    "kmeans_ami_k8": 0.0,
    "linear_probe_auc": 0.5,
}
LEVEL = 0.05  # of the permutation test at severity 0
MOST_SEVERITIES = 20


@dataclass(frozen=True)
class DoseResponse:
    """One score over severities 0 (untouched) to 1."""

    name: str
    severities: tuple[float, ...]
    scores: tuple[Score, ...]
    slope: Score  # per unit of severity, least squares
    detectable: float  # least severity above 0 from which on every interval lies beyond chance; NaN if there is none
    p: float  # at severity 0, one-sided, of the permutation null; NaN for a score that has none
    null_holds: bool  # at severity 0 the interval holds chance, and p is not below 5 %

    def to_dict(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        plain |= {"scores": [score.to_dict() for score in self.scores], "slope": self.slope.to_dict()}
        return plain | {key: None if math.isnan(plain[key]) else plain[key] for key in ("detectable", "p")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DoseResponse:
        """Inverse of :meth:`to_dict`."""
        numbers = {key: math.nan if values[key] is None else values[key] for key in ("detectable", "p")}
        scores = {
            "severities": tuple(values["severities"]),
            "scores": tuple(Score.from_dict(score) for score in values["scores"]),
            "slope": Score.from_dict(values["slope"]),
        }
        return cls(**{**values, **numbers, **scores})


def dose_response(
    severities: Sequence[float], results: Sequence[Sampled], *, chance: float, p: float = math.nan
) -> DoseResponse:
    """Curve of one score over severities.

    Parameters
    ----------
    severities : strictly rising, from 0; at least three.
    results : of :func:`evaluation.separability.separability_draws`, one per severity, of the same name, with the same
        faces, groups, seed and replicates at each: then the slope's resamples are paired.
    chance : the score when nothing separates, 0.5 for an AUC and 0 for the others.
    p : of the permutation null at severity 0, where the score has one.
    """
    x = np.asarray(severities, dtype=np.float64)
    if len(x) < 3 or x[0] != 0 or (np.diff(x) <= 0).any():
        raise ValueError(f"severities must rise from 0 and be at least three, got {list(severities)}")
    if len(results) != len(x) or len({(r.score.name, r.score.n, len(r.draws)) for r in results}) != 1:
        raise ValueError("a dose-response curve needs one score per severity, on the same samples and resamples")
    scores = tuple(result.score for result in results)
    weight = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    value = float(weight @ [score.value for score in scores])
    draws = weight @ np.stack([result.draws for result in results])
    interval = centred(value, draws, (-np.inf, np.inf))
    how = f"least-squares slope over severities {', '.join(f'{s:g}' for s in x)}; {interval.note}, paired"
    higher = scores[0].higher_is_better
    slope = Score(f"{scores[0].name} slope", value, interval.low, interval.high, higher, scores[0].n, how)
    beyond = [score.low > chance if higher else score.high < chance for score in scores]
    least = next((i for i in range(1, len(x)) if all(beyond[i:])), None)
    return DoseResponse(
        name=scores[0].name,
        severities=tuple(x.tolist()),
        scores=scores,
        slope=slope,
        detectable=math.nan if least is None else float(x[least]),
        p=p,
        null_holds=bool(scores[0].low <= chance <= scores[0].high and not p <= LEVEL),
    )


def dose_curves(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    method: ArrayLike,
    severity: ArrayLike,
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, list[DoseResponse]]:
    """Curves of each method that has forgeries of the same faces at several severities, by method name.

    Parameters
    ----------
    features, label, group, seed, replicates : as in :func:`evaluation.separability.separability`; ``replicates`` is
        also the number of permutations at severity 0.
    method, severity : ``(n,)`` the manipulation of each fake and its severity above 0; those of originals are not
        looked at.

    Half of the groups, drawn at random, is forged and the other half is not: no face is on both sides, and the same
    faces are compared at every severity. At severity 0 the forged half is its originals, so that the label means
    nothing. Groups that lack the original or a severity are left out. Raises ValueError where no method has two to
    twenty severities in at least four groups.
    """
    label = binary_label(label)
    method = np.asarray(method)
    x = finite("features", features, len(label), ndim=2)
    severity = finite("severity", np.where(label == 1, severity, 0.0), len(label))
    found = {}
    for name in np.unique(method[label == 1]):
        rows = np.flatnonzero((label == 0) | (method == name))
        dose = np.where(label[rows] == 1, severity[rows], 0.0)
        levels = np.unique(dose)
        if (dose[label[rows] == 1] <= 0).any() or not 3 <= len(levels) <= MOST_SEVERITIES + 1:
            continue
        component = components(np.asarray(group)[rows], len(rows))
        chosen = _same_faces(component, dose, levels)
        if len(chosen) >= 4:
            found[str(name)] = _curves(x[rows], component, dose, levels, chosen, seed, replicates)
    if not found:
        raise ValueError(
            f"no method has forgeries of the same groups at 2 to {MOST_SEVERITIES} severities above 0, in four groups"
        )
    return found


def _same_faces(component: NDArray[np.int64], dose: NDArray[np.float64], levels: NDArray[np.float64]) -> dict[int, int]:
    """Component → samples to take of it at every dose, the same number at each; only those that have every dose."""
    counts = np.zeros((component.max() + 1, len(levels)), np.int64)
    np.add.at(counts, (component, np.searchsorted(levels, dose)), 1)
    return {int(c): int(counts[c].min()) for c in np.flatnonzero(counts.min(axis=1))}


def _curves(
    x: NDArray[np.float64],
    component: NDArray[np.int64],
    dose: NDArray[np.float64],
    levels: NDArray[np.float64],
    chosen: dict[int, int],
    seed: int,
    replicates: int,
) -> list[DoseResponse]:
    ids = np.random.default_rng(seed).permutation(sorted(chosen))
    forged = set(ids[: len(ids) // 2].tolist())
    panels, p = [], {}
    for level in levels:
        taken = [
            np.flatnonzero((component == c) & (dose == (level if c in forged else 0)))[: chosen[c]] for c in chosen
        ]
        rows = np.concatenate(taken)
        fake = np.isin(component[rows], list(forged)).astype(np.int64)
        prepared = Prepared.of(x[rows], fake, component[rows])
        drawn = draws_of(prepared, seed=seed, replicates=replicates)
        panels.append({each.score.name: each for each in drawn})
        if level == 0:
            p = {null.name: null.p for null in null_of(prepared, seed=seed, permutations=replicates)}
    curves = []
    for name in panels[0]:
        chance = CHANCE.get("knn_auc" if name.startswith("knn_auc") else name)
        if chance is not None:
            results = [panel[name] for panel in panels]
            curves.append(dose_response(levels.tolist(), results, chance=chance, p=p.get(name, math.nan)))
    return curves
