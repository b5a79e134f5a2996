"""All that is measured of one backbone's frozen features on one data set, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evaluation.arrays import Compute
from evaluation.bootstrap import Sampled
from evaluation.checks import binary_label, components, finite
from evaluation.confounds import Confound, confounds
from evaluation.distances import normalised
from evaluation.neighbours import neighbour_auc
from evaluation.null import Null, exchange_units, null_of
from evaluation.partitions import partitions_of
from evaluation.prepared import Prepared
from evaluation.score import Score
from evaluation.separability import REFERENCES, STEPS, Progress, draws_of
from evaluation.transferability import transferability
from evaluation.treatments import TREATMENTS, treat

CONFOUND_REPLICATES = 200  # at most: some twenty scores, whose intervals only carry a verdict
LATER_STEPS = 5  # after those of separability


@dataclass(frozen=True)
class Panel:
    """Separability scores of one backbone on one data set, the headline first, and what qualifies them."""

    scores: list[Score]
    nulls: list[Null] = field(default_factory=list)
    """Permutation nulls of the label-free scores."""
    draws: list[float] = field(default_factory=list)
    """The headline score in every group resample, for paired differences between backbones."""
    by_method: dict[str, Score] = field(default_factory=dict)
    """Headline score of all real samples against the fakes of one method, and, as ``A against B``, of the fakes of one
    method against those of another; empty with a single method."""
    by_treatment: dict[str, Score] = field(default_factory=dict)
    """Headline score after each treatment of the features."""
    transferability: list[Score] = field(default_factory=list)
    confounds: list[Confound] = field(default_factory=list)
    """Whether the label separates without what comes along with it: brightness, sharpness, compression …"""

    @property
    def headline(self) -> Sampled:
        """The first score with its draws."""
        return Sampled(self.scores[0], np.array(self.draws))

    def null(self, name: str) -> Null | None:
        """The permutation null of the score of that name, where there is one."""
        return next((null for null in self.nulls if null.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: NaN becomes ``None``."""
        return {
            "scores": [score.to_dict() for score in self.scores],
            "nulls": [
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in null.to_dict().items()}
                for null in self.nulls
            ],
            "draws": [None if math.isnan(value) else value for value in self.draws],
            "by_method": {name: score.to_dict() for name, score in self.by_method.items()},
            "by_treatment": {name: score.to_dict() for name, score in self.by_treatment.items()},
            "transferability": [score.to_dict() for score in self.transferability],
            "confounds": [each.to_dict() for each in self.confounds],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Panel:
        """Inverse of :meth:`to_dict`; other keys are left out."""

        def scores(key: str) -> list[Score]:
            return [Score.from_dict(each) for each in values[key]]

        def named(key: str) -> dict[str, Score]:
            return {name: Score.from_dict(each) for name, each in values[key].items()}

        return cls(
            scores=scores("scores"),
            nulls=[Null(**{k: math.nan if v is None else v for k, v in null.items()}) for null in values["nulls"]],
            draws=[math.nan if value is None else value for value in values["draws"]],
            by_method=named("by_method"),
            by_treatment=named("by_treatment"),
            transferability=scores("transferability"),
            confounds=[Confound.from_dict(each) for each in values.get("confounds", [])],
        )


def panel(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    method: ArrayLike,
    nuisances: Mapping[str, ArrayLike] | None = None,
    *,
    video: ArrayLike | None = None,
    seed: int = 0,
    replicates: int = 1000,
    progress: Progress | None = None,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> Panel:
    """Measure everything on one set of features.

    Arguments as in :func:`evaluation.separability.separability`; ``method`` ``(n,)`` names the manipulation of each
    fake; ``nuisances`` are those of :func:`evaluation.confounds.confounds`, of which what does not vary is left out;
    ``video`` ``(n,)``, where it is known, is what the null exchanges (:func:`evaluation.null.exchange_units`).
    ``replicates`` is also the number of permutations. Raises ValueError like ``separability``.
    """
    label = binary_label(label)
    method, features, group = np.asarray(method), np.asarray(features), np.asarray(group)
    if method.shape != label.shape:
        raise ValueError(f"method must have shape {label.shape} like the labels, got {method.shape}")

    def tell(done: int, total: int, what: str) -> None:
        if progress is not None:
            progress(done, total + LATER_STEPS, what)

    prepared = Prepared.of(features, label, group, exchange_units(label, group, method, video))
    drawn = draws_of(prepared, seed=seed, replicates=replicates, progress=tell, compute=compute)
    nulls = null_of(prepared, seed=seed, permutations=replicates, compute=compute)
    tell(STEPS + 1, STEPS, "permutation null")
    options = {"seed": seed, "replicates": replicates, "compute": compute}
    methods = [str(name) for name in np.unique(method[label == 1])]
    by_method = {}
    for name in methods if len(methods) > 1 else []:
        kept = (label == 0) | (method == name)
        by_method[name] = headline(features[kept], label[kept], group[kept], **options)
    for a, b in combinations(methods, 2):
        kept = (label == 1) & np.isin(method, (a, b))
        of_b = (method[kept] == b).astype(np.int64)
        by_method[f"{a} against {b}"] = headline(features[kept], of_b, group[kept], **options)
    by_treatment = {name: headline(treat(features, name), label, group, **options) for name in TREATMENTS}
    tell(STEPS + 2, STEPS, "methods and treatments")
    transfer = transferability(features, label, group, seed=seed)
    tell(STEPS + 3, STEPS, "transferability")
    further = partitions_of(prepared, seed=seed, replicates=replicates)
    tell(STEPS + 4, STEPS, "further clusterings")
    varying = {name: values for name, values in (nuisances or {}).items() if len(np.unique(np.asarray(values))) > 1}
    options["replicates"] = min(replicates, CONFOUND_REPLICATES)
    confounded = confounds(features, label, group, varying, **options) if varying else []
    tell(STEPS + 5, STEPS, "confounds")
    scores, fitted = [each.score for each in drawn], len(REFERENCES)
    return Panel(
        scores=[*scores[:-fitted], *further, *scores[-fitted:]],
        nulls=nulls,
        draws=drawn[0].draws.tolist(),
        by_method=by_method,
        by_treatment=by_treatment,
        transferability=transfer,
        confounds=confounded,
    )


def headline(
    features: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    *,
    seed: int,
    replicates: int,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> Score:
    """The headline score alone; NaN, with the reason in ``how``, where it is undefined."""
    label = binary_label(label)
    component = components(group, len(label))
    try:
        if component.max() == 0:
            raise ValueError("all samples are tied into one group")
        space = normalised(finite("features", features, len(label), ndim=2))
    except ValueError as reason:
        return Score("knn_auc", math.nan, math.nan, math.nan, True, len(label), f"undefined: {reason}")
    return neighbour_auc(space, label, component, replicates, seed, compute).score
