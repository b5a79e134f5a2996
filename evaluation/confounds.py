"""Does the label separate, or something that comes along with it: source, compression, brightness, sharpness?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.arrays import Compute
from evaluation.checks import binary_label, components, finite
from evaluation.detection import weighted_auc
from evaluation.distances import normalised
from evaluation.matching import matched_score, strata_of
from evaluation.neighbours import nearest_others, neighbour_auc, neighbour_score
from evaluation.partitions import held_out_auc
from evaluation.probes import cross_validated_logits, folds
from evaluation.score import Score

MOST_KNOTS, SAMPLES_PER_KNOT = 12, 40  # of the spline on a nuisance that is a number
FEW_VALUES = 10  # of a number, each of which gets an indicator instead
ALL_TOGETHER = "all of them"  # the name of the row that takes out all nuisances
MOST_CATEGORIES = 20  # of a nuisance that is a name; the rarest share one


@dataclass(frozen=True)
class Confound:
    """One nuisance of the data, its part in the label and in the features."""

    name: str
    label_auc: float  # of the nuisance alone for the label, held out: 0.5 when it carries none
    nuisance: Score  # how well the features separate its upper from its lower half, or its commonest name from others
    label: Score  # how well they separate the label once the nuisance is regressed out
    matched: Score  # how well they separate the label among samples that are alike in the nuisance
    verdict: str

    SCORES = ("nuisance", "label", "matched")

    def to_dict(self) -> dict[str, Any]:
        plain = {**vars(self), **{key: getattr(self, key).to_dict() for key in self.SCORES}}
        return plain | {"label_auc": None if math.isnan(self.label_auc) else self.label_auc}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Confound:
        """Inverse of :meth:`to_dict`."""
        scores = {key: Score.from_dict(values[key]) for key in cls.SCORES}
        alone = math.nan if values["label_auc"] is None else values["label_auc"]
        return cls(**{**values, **scores, "label_auc": alone})


def confounds(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    nuisances: Mapping[str, ArrayLike],
    *,
    seed: int = 0,
    replicates: int = 1000,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> list[Confound]:
    """Neighbour AUC of every nuisance, and of the label without it; the last row takes out all of them.

    Parameters
    ----------
    features, label, group, seed, replicates, compute : as in :func:`evaluation.separability.separability`.
    nuisances : name → ``(n,)`` numbers, such as brightness, sharpness, JPEG quality; or text, such as the source.

    *Regressed out*: features are replaced by the residuals of a regression on a spline of the nuisance (on indicators,
    for text), of all nuisances together on the sum of theirs. What a nuisance does to the features beyond their mean,
    such as their spread, and what several do jointly beyond a sum, stays. *Matched*: real and fake samples are compared
    within strata of 10 to 19 that are nearest in the nuisance (have one name, for text), see
    :mod:`evaluation.matching`; for all nuisances together in the label's logistic regression on the cubes of their
    normal scores (a propensity score). What is fitted to tell the label from nuisances is fitted to other folds of
    groups: a name's share of fakes (its AUC is :func:`evaluation.partitions.held_out_auc`) and the propensity (its AUC
    is a mean over folds, too); NaN where there are no two folds with both classes. Raises ValueError like
    ``separability``, and for a nuisance that does not vary.
    """
    label = binary_label(label)
    component = components(group, len(label))
    space = normalised(finite("features", features, len(label), ndim=2))
    fold = folds(label, component, seed)
    columns = {name: _Nuisance.of(name, values, label, fold, len(nuisances)) for name, values in nuisances.items()}
    if not columns:
        raise ValueError("confounds need at least one nuisance")
    nearest = nearest_others(space, label, component, compute)

    def score(target: NDArray[np.int64]) -> Score:
        return neighbour_score(nearest, target, component, replicates, seed).score

    def among_alike(strata: NDArray[np.int64]) -> Score:
        return matched_score(nearest, label, strata, component, replicates=replicates, seed=seed)

    def without(design: NDArray[np.float64]) -> Score:
        return neighbour_auc(residuals(space, design), label, component, replicates, seed, compute).score

    plain, found = score(label), []
    for name, each in columns.items():
        left, matched = without(each.design), among_alike(each.strata)
        found.append(
            Confound(name, each.label_auc, score(each.halves), left, matched, verdict(plain, left, matched, name))
        )
    if len(columns) > 1:
        every = np.hstack([each.shared for each in columns.values()])
        rough = np.hstack([each.rough for each in columns.values()])
        propensity = cross_validated_logits(rough, label, fold)
        if propensity is None:
            matched, alone = _undefined(plain, "too few groups for two folds with both classes"), math.nan
        else:
            strata = strata_of(propensity, mixed=True, seed=seed)
            matched, alone = among_alike(strata), _auc_within(fold, label, propensity)
        left, none, name = without(every), _undefined(plain, "not one quantity"), ALL_TOGETHER
        found.append(Confound(name, alone, none, left, matched, verdict(plain, left, matched, name)))
    return found


class _Nuisance(NamedTuple):
    label_auc: float
    halves: NDArray[np.int64]
    strata: NDArray[np.int64]
    design: NDArray[np.float64]
    shared: NDArray[np.float64]  # the design beside those of all other nuisances, with fewer columns for few samples
    rough: NDArray[np.float64]  # for the propensity, which matches the worse the more there is to fit

    @classmethod
    def of(
        cls, name: str, values: ArrayLike, label: NDArray[np.int64], fold: NDArray[np.int64], nuisances: int
    ) -> _Nuisance:
        values = np.asarray(values)
        text = values.dtype.kind in "OUS"
        if text:
            _, codes = np.unique(values.astype(str), return_inverse=True)
            rank = np.argsort(np.argsort(-np.bincount(codes), kind="stable"))[codes]
            codes = np.minimum(rank, MOST_CATEGORIES - 1)
            design, halves = np.eye(codes.max() + 1)[codes][:, 1:], codes == 0
            shared = rough = design
        else:
            order = finite(name, values, len(label))
            halves = order > np.median(order)
            halves = halves if halves.any() else order >= np.median(order)
            design, shared, rough = smooth(order), smooth(order, nuisances), cubic(order)
        if len(values) != len(label) or halves.all() or not halves.any():
            raise ValueError(f"nuisance {name!r} is the same in all samples, or has not one value for each")
        everyone = np.ones((1, len(label)))
        auc = held_out_auc(codes, label, fold)(everyone) if text else weighted_auc(label, order, everyone)
        strata = strata_of(codes if text else order, mixed=not text)
        return cls(float(auc[0]), halves.astype(np.int64), strata, design, shared, rough)


def smooth(values: NDArray[np.float64], nuisances: int = 1) -> NDArray[np.float64]:
    """``(n, q)`` columns of which smooth functions of ``values`` ``(n,)`` are made, beside a constant.

    A cubic spline with knots at quantiles, at most 12 and one for 40 samples (for 40 times as many as there are
    ``nuisances`` to share them), and from four on three more in either tail, which is as long as the rest and where the
    label is often pure; or an indicator of each of at most ten values.
    """
    from sklearn.preprocessing import SplineTransformer

    distinct, code = np.unique(values, return_inverse=True)
    if len(distinct) <= FEW_VALUES:
        return np.eye(len(distinct))[code][:, 1:]
    count = int(np.clip(len(values) // (SAMPLES_PER_KNOT * nuisances), 2, MOST_KNOTS))
    levels = np.linspace(0, 1, count)
    if count > 3:
        tail = levels[1] / np.array([8, 4, 2])
        levels = np.concatenate([levels, tail, 1 - tail])
    knots = np.unique(np.quantile(values, levels))
    return SplineTransformer(knots=knots[:, None], include_bias=False).fit_transform(values[:, None])


def cubic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n, 3)``: normal scores of the ranks of ``values`` ``(n,)``, whatever their scale, squared and cubed, too."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    score = ndtri((rankdata(values) - 0.5) / len(values))
    return np.stack([score, score**2, score**3], axis=1)


def _auc_within(fold: NDArray[np.int64], label: NDArray[np.int64], logit: NDArray[np.float64]) -> float:
    """Mean over folds: logits of different fits are not compared."""
    aucs = []
    for number in range(fold.max() + 1):
        part = fold == number
        if len(np.unique(label[part])) == 2:
            aucs.append(weighted_auc(label[part], logit[part], np.ones((1, part.sum())))[0])
    return float(np.mean(aucs)) if aucs else math.nan


def _undefined(like: Score, reason: str) -> Score:
    return Score(like.name, math.nan, math.nan, math.nan, True, like.n, reason)


def residuals(features: NDArray, design: NDArray[np.float64]) -> NDArray[np.float32]:
    """``(n, d)`` features without what is linear in the columns of ``design`` ``(n, q)``, such as :func:`smooth`."""
    full = np.hstack([np.ones((len(design), 1)), design])
    x = features.astype(np.float64)
    return normalised(x - full @ np.linalg.lstsq(full, x, rcond=None)[0])


def verdict(plain: Score, without: Score, matched: Score, name: str) -> str:
    """In plain words: is the label still there without the nuisance?"""
    if not plain.low > 0.5:
        return "not asked: the interval of the headline itself holds 0.5"
    gone = [way for way, score in (("regressed out", without), ("matched", matched)) if not score.low > 0.5]
    if len(gone) == 2:
        return f"without {name} the label no longer separates beyond chance"
    if gone:
        return f"undecided: with {name} {gone[0]} the label no longer separates beyond chance"
    return f"the label still separates without {name}"
