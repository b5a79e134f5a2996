"""Did separability predict what fine-tuning gave? All scores of a benchmark against its outcomes, and the verdicts.

Controls are left out: a backbone that is known to be bad would lend any score a relation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluation.claims import Claim, Conclusion, auc_of, claims, conclusions, families, turned
from evaluation.comparison import holm_adjusted
from evaluation.relation import LEAST, Relation, noise_ceiling, relation
from evaluation.results import (
    BackboneResult,
    detection_names,
    detection_scores,
    find,
    headline_score,
    separability_names,
)
from evaluation.score import Score


@dataclass(frozen=True)
class Predictor:
    """One score on one data set against one outcome, over backbones."""

    name: str
    data: str
    """Data set of the score; empty for a baseline, which looks at no feature."""
    outcome: str
    """Data set of the fine-tuned AUC."""
    relations: list[Relation]
    """Weighted Kendall tau, Spearman, Pearson."""
    is_declared: bool
    """Declared before anyone looked, and so tested by itself: the headline on the training set."""
    p_holm: float
    """Of the weighted tau, corrected (Holm) for all scores of this outcome that were not declared; NaN for others."""

    @property
    def verdict(self) -> str:
        """Of the weighted tau: ``supported`` needs an interval above zero and a p that outlasts the correction."""
        tau = self.relations[0]
        chance = tau.p if self.is_declared or not self.data else self.p_holm  # baselines were not picked among many
        return "undecided" if tau.verdict == "supported" and not chance <= 0.05 else tau.verdict

    def to_dict(self) -> dict[str, Any]:
        relations = [_plain(each.to_dict()) for each in self.relations]
        return _plain({**vars(self), "relations": relations, "verdict": self.verdict})


@dataclass(frozen=True)
class Prediction:
    """Relations, claims and family means of a benchmark."""

    backbones: list[str]
    """Fine-tuned backbones that count, controls left out."""
    predictors: list[Predictor]
    missing_baselines: dict[str, list[str]]
    """Outcome → baselines that could not be related to it, with the reason."""
    ceilings: dict[str, float]
    """Outcome → weighted tau that a perfect predictor could expect, given the noise of seeds."""
    claims: list[Claim]
    conclusions: list[Conclusion]
    """One verdict per claim over all its measures."""
    families: dict[str, list[Score]]
    """Measure → mean of each pretext family."""
    too_few: str
    """Why there are no relations; empty where there are."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "backbones": self.backbones,
            "too_few": self.too_few,
            "predictors": [each.to_dict() for each in self.predictors],
            "missing_baselines": self.missing_baselines,
            "ceilings": self.ceilings,
            "claims": [each.to_dict() for each in self.claims],
            "conclusions": [each.to_dict() for each in self.conclusions],
            "families": {name: [score.to_dict() for score in scores] for name, scores in self.families.items()},
        }


def predict(backbones: Sequence[BackboneResult]) -> Prediction:
    """Relate every separability and transferability score to the AUC after fine-tuning.

    Scores on the training set meet the AUC on test and on each unseen set; scores on an unseen set that set's AUC. A
    score whose value is undefined for some backbones is related over the others, if four are left.
    """
    counted = [backbone for backbone in backbones if not backbone.is_control]
    tuned = [backbone for backbone in counted if backbone.runs]
    outcomes = [name for name in detection_names(tuned) if name not in ("train", "validation")]
    too_few = f"too few: {len(tuned)} fine-tuned backbones besides controls, a relation needs {LEAST}"
    enough = outcomes if len(tuned) >= LEAST else []
    baselines = {name: _baselines(tuned, name) for name in enough}
    found = claims(counted, outcomes)
    return Prediction(
        backbones=[backbone.name for backbone in tuned],
        predictors=[p for name in enough for p in _predictors(tuned, name, baselines[name])],
        missing_baselines={name: _missing(tuned, name, baselines[name]) for name in enough},
        ceilings={name: c for name in outcomes if math.isfinite(c := noise_ceiling(_known(_aucs(tuned, name))))},
        claims=found,
        conclusions=conclusions(found),
        families=families(counted, outcomes),
        too_few="" if len(tuned) >= LEAST else too_few,
    )


def _aucs(backbones: Sequence[BackboneResult], outcome: str) -> list[list[float]]:
    """AUC after fine-tuning of each backbone, one number for each seed that has it."""
    return [[score.value for score in detection_scores(backbone, outcome)] for backbone in backbones]


def _known(rows: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    return [row for row in rows if row and all(map(math.isfinite, row))]


def _predictors(
    backbones: Sequence[BackboneResult], outcome: str, baselines: dict[str, Sequence[float]]
) -> list[Predictor]:
    """The declared score first, if the training set has it, then the others, then the baselines."""
    aucs, found = _aucs(backbones, outcome), []
    for data in sorted({"train", outcome} & {*separability_names(backbones)}, key=lambda data: data != "train"):
        headline = next((score.name for b in backbones if (score := headline_score(b, data))), "")
        for name in _score_names(backbones, data):
            relations = _relations([_value(find(_scores(backbone, data), name)) for backbone in backbones], aucs)
            if relations:
                is_declared = data == "train" and name == headline
                found.append(Predictor(name, data, outcome, relations, is_declared, math.nan))
    p = np.array([math.nan if each.is_declared else each.relations[0].p for each in found])
    related = {name: _relations(values, aucs) for name, values in baselines.items()}
    return [
        *(replace(each, p_holm=float(holm)) for each, holm in zip(found, holm_adjusted(p), strict=True)),
        *(Predictor(name, "", outcome, each, False, math.nan) for name, each in related.items() if each),
    ]


def _baselines(backbones: Sequence[BackboneResult], outcome: str) -> dict[str, Sequence[float]]:
    """What is known without a look at the features: name → one number per backbone, higher is thought better.

    The mean rank is that of the AUC after fine-tuning on the other data sets (train and validation left out): how far
    does a ranking of backbones carry from one data set to another? NaN where no other set has all backbones.
    """
    from scipy.stats import rankdata

    others = [name for name in detection_names(backbones) if name not in ("train", "validation", outcome)]
    aucs = np.array([[_value(auc_of(name)(backbone)) for name in others] for backbone in backbones])
    complete = aucs[:, np.isfinite(aucs).all(axis=0)]
    unknown = np.full(len(backbones), math.nan)
    return {
        "number of parameters": [backbone.parameters or math.nan for backbone in backbones],
        "number of features": [backbone.num_features or math.nan for backbone in backbones],
        "ImageNet top-1": [backbone.imagenet_top1 for backbone in backbones],
        "mean rank on other data sets": rankdata(complete, axis=0).mean(axis=1) if complete.size else unknown,
    }


def _missing(backbones: Sequence[BackboneResult], outcome: str, baselines: dict[str, Sequence[float]]) -> list[str]:
    """Why baselines have no relation: known for too few of the backbones with an AUC."""
    tuned = [len(row) > 0 for row in _aucs(backbones, outcome)]
    known = {name: int(np.sum(np.isfinite(values) & tuned)) for name, values in baselines.items()}
    return [
        f"{name} (known for {count} of {sum(tuned)} backbones, a relation needs {LEAST})"
        for name, count in known.items()
        if count < LEAST
    ]


def _relations(x: Sequence[float], aucs: Sequence[Sequence[float]]) -> list[Relation]:
    """Over the backbones that have both numbers; empty for fewer than four."""
    kept = [(value, row) for value, row in zip(x, aucs, strict=True) if math.isfinite(value) and _known([row])]
    return relation([value for value, _ in kept], [row for _, row in kept]) if len(kept) >= LEAST else []


def _value(score: Score | None) -> float:
    score = turned(score)
    return math.nan if score is None else score.value


def _score_names(backbones: Sequence[BackboneResult], data: str) -> list[str]:
    scores = [score for b in backbones for score in _scores(b, data)]
    return list(dict.fromkeys(score.name for score in scores))


def _scores(backbone: BackboneResult, data: str) -> list[Score]:
    panel = backbone.panels.get(data)
    return [*backbone.separability.get(data, []), *(panel.transferability if panel else [])]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
