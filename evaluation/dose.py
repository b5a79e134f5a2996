"""Calibration by controlled forgeries: how a score answers to severity, and the least severity it can tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.arrays import Compute
from evaluation.bootstrap import LEVEL as INTERVAL
from evaluation.bootstrap import Sampled, centred, sampled
from evaluation.checks import binary_label, components, finite
from evaluation.clustering import clustering_scores
from evaluation.neighbour_probe import knn_probe_auc
from evaluation.null import null_of
from evaluation.prepared import Prepared
from evaluation.probes import linear_probe_auc
from evaluation.score import Score
from evaluation.separability import distance_scores

SPLITS = 10  # random halves of the faces that are forged in turn; with one, the answer depends on which half it is
CLUSTERS = (2, 8)  # of the k-means scores
LEVEL = 0.05  # of the permutation test at severity 0
MOST_SEVERITIES = 20
NUMBERS = ("detectable", "detectable_low", "detectable_high", "p")  # fields that may be NaN


@dataclass(frozen=True)
class DoseResponse:
    """One score over severities 0 (untouched) to 1."""

    name: str
    severities: tuple[float, ...]
    scores: tuple[Score, ...]
    slope: Score  # per unit of severity, least squares
    detectable: float  # least severity from which on every rise over severity 0 is beyond chance; NaN if there is none
    detectable_low: float  # 95 % range of it in resamples of the faces; NaN stands for none, which is beyond all,
    detectable_high: float  # and both are NaN in the file of an earlier version
    p: float  # at severity 0, one-sided, of the permutation null; NaN for a score that has none
    null_holds: bool  # at severity 0, p is above 5 %, or without p the interval does not lie beyond chance

    def to_dict(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        plain |= {"scores": [score.to_dict() for score in self.scores], "slope": self.slope.to_dict()}
        return plain | {key: None if math.isnan(plain[key]) else plain[key] for key in NUMBERS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DoseResponse:
        """Inverse of :meth:`to_dict`; the file of an earlier version has no range."""
        numbers = {key: math.nan if values.get(key) is None else values[key] for key in NUMBERS}
        scores = {
            "severities": tuple(values["severities"]),
            "scores": tuple(Score.from_dict(score) for score in values["scores"]),
            "slope": Score.from_dict(values["slope"]),
        }
        return cls(**{**values, **numbers, **scores})


def least_severity(curve: DoseResponse) -> str:
    """The least severity told and its range, as ``0.5 [0.25, none]``; the range only where it is known."""
    least, low, high = (
        "none" if math.isnan(value) else f"{value:g}"
        for value in (curve.detectable, curve.detectable_low, curve.detectable_high)
    )
    unknown = least != "none" and low == high == "none"
    return least if unknown else f"{least} [{low}, {high}]"


def dose_response(
    severities: Sequence[float], results: Sequence[Sampled], *, chance: float, p: float = math.nan
) -> DoseResponse:
    """Curve of one score over severities.

    Parameters
    ----------
    severities : strictly rising, from 0; at least three.
    results : one per severity, of the same name, with the same faces, groups, seed and replicates at each, so that
        resamples are paired.
    chance : the score when nothing separates, 0.5 for an AUC and 0 for the others.
    p : of the permutation null at severity 0, where the score has one.

    A severity is told where the rise of the score over severity 0 has a 95 % interval above zero. Both scores are of
    the same faces, so that what these happen to be cancels, as does the score's own bias. The range of the least
    severity told is that of resamples, each of which tells a severity where its own rise less the estimate's half-width
    is above zero.
    """
    x = np.asarray(severities, dtype=np.float64)
    if len(x) < 3 or x[0] != 0 or (np.diff(x) <= 0).any():
        raise ValueError(f"severities must rise from 0 and be at least three, got {list(severities)}")
    if len(results) != len(x) or len({(r.score.name, r.score.n, len(r.draws)) for r in results}) != 1:
        raise ValueError("a dose-response curve needs one score per severity, on the same samples and resamples")
    scores = tuple(result.score for result in results)
    weight = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    value = float(weight @ [score.value for score in scores])
    draws = np.stack([result.draws for result in results])
    interval = centred(value, weight @ draws, (-np.inf, np.inf))
    how = f"least-squares slope over severities {', '.join(f'{s:g}' for s in x)}; {interval.note}, paired"
    higher = scores[0].higher_is_better
    slope = Score(f"{scores[0].name} slope", value, interval.low, interval.high, higher, scores[0].n, how)
    rise = np.array([score.value for score in scores[1:]]) - scores[0].value
    least, low, high = _least(
        x[1:], rise if higher else -rise, draws[1:] - draws[0] if higher else draws[0] - draws[1:]
    )
    beyond = scores[0].low > chance if higher else scores[0].high < chance
    return DoseResponse(
        name=scores[0].name,
        severities=tuple(x.tolist()),
        scores=scores,
        slope=slope,
        detectable=least,
        detectable_low=low,
        detectable_high=high,
        p=p,
        null_holds=bool(not beyond if math.isnan(p) else p > LEVEL),
    )


def _least(
    severities: NDArray[np.float64], rise: NDArray[np.float64], draws: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Least severity told and the ends of its range, from rises ``(s,)`` and their resamples ``(s, replicates)``."""
    ends = np.array([centred(value, row, (-np.inf, np.inf)).low for value, row in zip(rise, draws, strict=True)])
    draws = draws[:, np.isfinite(draws).all(axis=0)]
    if not draws.shape[1]:
        return (math.nan,) * 3
    moved = draws - draws.mean(axis=1, keepdims=True) + ends[:, None]  # a resample's own lower end

    def least(told: NDArray[np.bool_]) -> NDArray[np.float64]:
        from_here_on = np.logical_and.accumulate(told[::-1], axis=0)[::-1]
        return np.where(from_here_on[-1], severities[np.argmax(from_here_on, axis=0)], np.inf)

    tails = np.quantile(least(moved > 0), [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
    found = [*least((ends > 0)[:, None]), *tails]
    return tuple(float(value) if math.isfinite(value) else math.nan for value in found)


def dose_curves(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    method: ArrayLike,
    severity: ArrayLike,
    *,
    seed: int = 0,
    replicates: int = 1000,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> dict[str, list[DoseResponse]]:
    """Curves of each method that has forgeries of the same faces at several severities, by method name.

    Parameters
    ----------
    features, label, group, seed, replicates, compute : as in :func:`evaluation.separability.separability`;
        ``replicates`` is also the number of permutations at severity 0.
    method, severity : ``(n,)`` the manipulation of each fake and its severity above 0; those of originals are not
        looked at.

    Half of the groups, drawn at random, is forged and the other half is not: no face is on both sides, and the same
    faces are compared at every severity. At severity 0 the forged half is its originals, so that the label means
    nothing. All scores are means over ten such halves, whose resamples draw the same faces. Groups that lack the
    original or a severity are left out. Raises ValueError where no method has two to twenty severities in at least four
    groups.
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
            options = {"seed": seed, "replicates": replicates, "compute": compute}
            found[str(name)] = _curves(x[rows], component, dose, levels, chosen, **options)
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
    *,
    seed: int,
    replicates: int,
    compute: Compute,
) -> list[DoseResponse]:
    rng, ids = np.random.default_rng(seed), sorted(chosen)
    halves = [set(rng.permutation(ids)[: len(ids) // 2].tolist()) for _ in range(SPLITS)]
    options = {"seed": seed, "replicates": replicates}
    averaged, p = [], {}
    for level in levels:
        drawn, nulls = [], []
        for forged in halves:
            taken = [
                np.flatnonzero((component == c) & (dose == (level if c in forged else 0)))[: chosen[c]] for c in ids
            ]
            rows = np.concatenate(taken)
            fake = np.isin(component[rows], list(forged)).astype(np.int64)
            prepared = Prepared.of(x[rows], fake, component[rows])
            drawn.append(_scores(prepared, **options, compute=compute))
            if level == 0:
                nulls.append(null_of(prepared, seed=seed, permutations=replicates, compute=compute))
        averaged.append([_averaged(each) for each in zip(*drawn, strict=True)])
        p |= {each[0].name: _combined([null.p for null in each], replicates) for each in zip(*nulls, strict=True)}
    return [
        dose_response(levels.tolist(), results, chance=_chance(name), p=p.get(name, math.nan))
        for results in zip(*averaged, strict=True)
        if (name := results[0].score.name)
    ]


def _scores(prepared: Prepared, *, seed: int, replicates: int, compute: Compute) -> list[Sampled]:
    """The scores that have a known level where nothing separates, see :func:`_chance`."""
    arrays = prepared.space, prepared.label, prepared.component
    options = {"seed": seed, "replicates": replicates}
    results = distance_scores(*arrays, **options, compute=compute)
    for k in CLUSTERS:
        if len(prepared.label) >= 2 * k:
            sample = prepared.kmeans(k, seed), prepared.label, prepared.component
            results.append(clustering_scores("kmeans", k, *sample, replicates, seed)[0])
    return [
        *results,
        _stretched(linear_probe_auc(*arrays, **options)),
        knn_probe_auc(*arrays, **options, compute=compute),
    ]


def _chance(name: str) -> float:
    return 0.5 if "auc" in name else 0.0


def _stretched(fitted: Sampled) -> Sampled:
    """With draws as wide as the interval of a score that is fitted anew for it; its draws hold the fits fixed."""
    score, draws = fitted
    ends = np.nanquantile(draws, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]) if np.isfinite(draws).any() else (0, 0)
    wider = (score.high - score.low) / (ends[1] - ends[0]) if ends[1] > ends[0] else 1.0
    return Sampled(score, score.value + (draws - np.nanmean(draws)) * max(1.0, wider))


def _averaged(drawn: Sequence[Sampled]) -> Sampled:
    """The mean over halves. Their resamples draw the same faces, so that the means of these are the mean's."""
    first, n = drawn[0].score, len(drawn)
    value = float(np.mean([each.score.value for each in drawn]))
    draws = np.mean([each.draws for each in drawn], axis=0)
    how = f"mean over {n} random halves of the faces; {first.how.split(';')[0]}; {{interval}}, the same faces in all"
    bounds = (0, 1) if _chance(first.name) else (-np.inf, np.inf)
    return sampled(first.name, value, draws, n=first.n, how=how, bounds=bounds, higher_is_better=first.higher_is_better)


def _combined(ps: Sequence[float], permutations: int) -> float:
    """Stouffer's p of one-sided p-values of random halves of the same faces, which are independent under the null."""
    from scipy.special import ndtr, ndtri

    within = np.asarray(ps) - 0.5 / (1 + permutations)  # from 1/2 to all but 1/2 of a permutation: neither 0 nor 1
    return float(ndtr(np.sum(ndtri(within)) / math.sqrt(len(within))))
