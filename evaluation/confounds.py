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
from evaluation.neighbours import nearest_others, neighbour_auc, neighbour_score
from evaluation.partitions import held_out_auc
from evaluation.probes import cross_validated_logits, folds
from evaluation.score import Score

STRATA = 5  # of equal size, by a nuisance that is a number
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

    *Regressed out*: features are replaced by the residuals of a linear regression on the nuisance and its square (on
    indicators, for text). What a nuisance does beyond that stays, so a label that still separates is not proof; one
    that does not is. *Matched*: real and fake samples are compared within fifths of the nuisance (within one name, for
    text); for all nuisances together within fifths of the label's logistic regression on them (a propensity score).
    What is fitted to tell the label from nuisances is fitted to other folds of groups: a name's share of fakes (its AUC
    is :func:`evaluation.partitions.held_out_auc`) and the propensity (its AUC is a mean over folds, too); NaN where
    there are no two folds with both classes. Raises ValueError like ``separability``, and for a nuisance that does not
    vary.
    """
    label = binary_label(label)
    component = components(group, len(label))
    space = normalised(finite("features", features, len(label), ndim=2))
    fold = folds(label, component, seed)
    columns = {name: _Nuisance.of(name, values, label, fold) for name, values in nuisances.items()}
    if not columns:
        raise ValueError("confounds need at least one nuisance")
    nearest = nearest_others(space, label, component, compute)

    def score(target: NDArray[np.int64], strata: NDArray[np.int64] | None = None) -> Score:
        return neighbour_score(nearest, target, component, replicates, seed, strata).score

    def without(design: NDArray[np.float64]) -> Score:
        return neighbour_auc(residuals(space, design), label, component, replicates, seed, compute).score

    plain, found = score(label), []
    for name, each in columns.items():
        left, matched = without(each.design), score(label, each.strata)
        found.append(
            Confound(name, each.label_auc, score(each.halves), left, matched, verdict(plain, left, matched, name))
        )
    if len(columns) > 1:
        every = np.hstack([each.design for each in columns.values()])
        propensity = cross_validated_logits(every, label, fold)
        if propensity is None:
            matched, alone = _undefined(plain, "too few groups for two folds with both classes"), math.nan
        else:
            matched, alone = score(label, _fifths(propensity)), _auc_within(fold, label, propensity)
        left, none, name = without(every), _undefined(plain, "not one quantity"), "all of them"
        found.append(Confound(name, alone, none, left, matched, verdict(plain, left, matched, name)))
    return found


class _Nuisance(NamedTuple):
    label_auc: float
    halves: NDArray[np.int64]
    strata: NDArray[np.int64]
    design: NDArray[np.float64]

    @classmethod
    def of(cls, name: str, values: ArrayLike, label: NDArray[np.int64], fold: NDArray[np.int64]) -> _Nuisance:
        values = np.asarray(values)
        text = values.dtype.kind in "OUS"
        if text:
            _, codes = np.unique(values.astype(str), return_inverse=True)
            rank = np.argsort(np.argsort(-np.bincount(codes), kind="stable"))[codes]
            codes = np.minimum(rank, MOST_CATEGORIES - 1)
            design, halves, strata = np.eye(codes.max() + 1)[codes][:, 1:], codes == 0, codes
        else:
            order = finite(name, values, len(label))
            halves = order > np.median(order)
            halves = halves if halves.any() else order >= np.median(order)
            z = (order - order.mean()) / (order.std() or 1)
            strata, design = _fifths(order), np.stack([z, z**2], axis=1)
        if len(values) != len(label) or halves.all() or not halves.any():
            raise ValueError(f"nuisance {name!r} is the same in all samples, or has not one value for each")
        everyone = np.ones((1, len(label)))
        auc = held_out_auc(strata, label, fold)(everyone) if text else weighted_auc(label, order, everyone)
        return cls(float(auc[0]), halves.astype(np.int64), strata, design)


def _fifths(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.searchsorted(np.quantile(values, np.arange(1, STRATA) / STRATA), values, side="left")


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
    """``(n, d)`` features without what is linear in the columns of ``design`` ``(n, q)``."""
    full = np.hstack([np.ones((len(design), 1)), design])
    x = features.astype(np.float64)
    return normalised(x - full @ np.linalg.lstsq(full, x, rcond=None)[0])


def verdict(plain: Score, without: Score, matched: Score, name: str) -> str:
    """In plain words: is the label still there without the nuisance?"""
    if not plain.low > 0.5:
        return "the label does not separate beyond chance to begin with"
    gone = [way for way, score in (("regressed out", without), ("matched", matched)) if not score.low > 0.5]
    if len(gone) == 2:
        return f"without {name} the label no longer separates beyond chance"
    if gone:
        return f"undecided: with {name} {gone[0]} the label no longer separates beyond chance"
    return f"the label still separates without {name}"
