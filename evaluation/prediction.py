"""Did separability predict what fine-tuning gave? All scores of a benchmark against its outcomes, and the verdicts.

Controls are left out: a backbone that is known to be bad would lend any score a relation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.comparison import holm_adjusted
from evaluation.relation import Relation, backbones_per_side, claim, family_means, noise_ceiling, relation
from evaluation.results import (
    BackboneResult,
    detection_names,
    detection_scores,
    find,
    gap_names,
    gap_scores,
    headline_score,
    over_seeds,
    separability_names,
)
from evaluation.score import Score

LEAST = 4  # backbones; with fewer, no order is rarer than once in twenty
FACES, SELF_SUPERVISED, SUPERVISED = "face-recognition", "self-supervised", "supervised"

Value = Callable[[BackboneResult], float]


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
    p_holm: float
    """Of the weighted tau, corrected for all scores of this outcome (Holm)."""

    @property
    def verdict(self) -> str:
        """Of the weighted tau: ``supported`` needs an interval above zero and a p that outlasts the correction."""
        tau = self.relations[0]
        chance = self.p_holm if self.data else tau.p  # a baseline was not picked among many
        return "undecided" if tau.verdict == "supported" and not chance <= 0.05 else tau.verdict

    def to_dict(self) -> dict[str, Any]:
        relations = [_plain(each.to_dict()) for each in self.relations]
        return _plain({**vars(self), "relations": relations, "verdict": self.verdict})


@dataclass(frozen=True)
class Claim:
    """A claim of the literature on one measure of this benchmark."""

    text: str
    measure: str
    score: Score
    verdict: str
    needed: int | None
    """Backbones on each side that would show the observed difference; None where that is undefined."""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "score": self.score.to_dict()}


@dataclass(frozen=True)
class Prediction:
    """Relations, claims and family means of a benchmark."""

    backbones: list[str]
    """Fine-tuned backbones that count, controls left out."""
    predictors: list[Predictor]
    ceilings: dict[str, float]
    """Outcome → weighted tau that a perfect predictor could expect, given the noise of seeds, over the backbones that
    were fine-tuned with several."""
    claims: list[Claim]
    families: dict[str, list[Score]]
    """Measure → mean of each pretext family."""
    too_few: str
    """Why there are no relations; empty where there are."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "backbones": self.backbones,
            "too_few": self.too_few,
            "predictors": [each.to_dict() for each in self.predictors],
            "ceilings": self.ceilings,
            "claims": [each.to_dict() for each in self.claims],
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
    few = f"too few: {len(tuned)} fine-tuned backbones besides controls, a relation needs {LEAST}"
    return Prediction(
        backbones=[backbone.name for backbone in tuned],
        predictors=[] if len(tuned) < LEAST else [p for outcome in outcomes for p in _predictors(tuned, outcome)],
        ceilings={name: ceiling for name in outcomes if (ceiling := _ceiling(tuned, name)) is not None},
        claims=_claims(counted, outcomes),
        families={
            measure: means
            for measure, value in _measures(counted, outcomes).items()
            if (means := _family_means(counted, value))
        },
        too_few=few if len(tuned) < LEAST else "",
    )


def auc_of(outcome: str) -> Value:
    """AUC after fine-tuning, mean over seeds; NaN where there is none."""

    def value(backbone: BackboneResult) -> float:
        score = over_seeds(detection_scores(backbone, outcome))
        return score.value if score else math.nan

    return value


def headline_of(data: str) -> Value:
    """The headline separability score, turned so that higher is better; NaN where there is none."""

    def value(backbone: BackboneResult) -> float:
        return _oriented(headline_score(backbone, data))

    return value


def _oriented(score: Score | None) -> float:
    if score is None:
        return math.nan
    return score.value if score.higher_is_better else -score.value


def _predictors(backbones: Sequence[BackboneResult], outcome: str) -> list[Predictor]:
    y = np.array([auc_of(outcome)(backbone) for backbone in backbones])
    found, baselines = [], []
    for data in separability_names(backbones):
        if data not in ("train", outcome):
            continue
        for name in _score_names(backbones, data):
            x = np.array([_oriented(_score(backbone, data, name)) for backbone in backbones])
            found += _related(name, data, outcome, x, y)
    baselines = [
        each for name, x in _baselines(backbones, outcome).items() for each in _related(name, "", outcome, x, y)
    ]
    holm = holm_adjusted(np.array([relations[0].p for _, _, relations in found]))
    return [
        *(Predictor(name, data, outcome, r, float(p)) for (name, data, r), p in zip(found, holm, strict=True)),
        *(Predictor(name, data, outcome, r, math.nan) for name, data, r in baselines),
    ]


def _baselines(backbones: Sequence[BackboneResult], outcome: str) -> dict[str, np.ndarray]:
    """What is known without a look at the features: name → one number per backbone, higher is thought better.

    The mean rank is that of the AUC after fine-tuning on the other data sets (train and validation left out): how far
    does a ranking of backbones carry from one data set to another?
    """
    from scipy.stats import rankdata

    others = [name for name in detection_names(backbones) if name not in ("train", "validation", outcome)]
    aucs = np.array([[auc_of(name)(backbone) for name in others] for backbone in backbones])
    complete = aucs[:, np.isfinite(aucs).all(axis=0)] if others else np.empty((len(backbones), 0))
    found = {
        "number of parameters": np.array([backbone.parameters or math.nan for backbone in backbones]),
        "number of features": np.array([backbone.num_features or math.nan for backbone in backbones]),
        "ImageNet top-1": np.array([backbone.imagenet_top1 for backbone in backbones]),
    }
    if complete.shape[1]:
        found["mean rank on other data sets"] = rankdata(complete, axis=0).mean(axis=1)
    return found


def _related(name: str, data: str, outcome: str, x: np.ndarray, y: np.ndarray) -> list[tuple[str, str, list[Relation]]]:
    kept = np.isfinite(x) & np.isfinite(y)
    return [(name, data, relation(x[kept], y[kept]))] if kept.sum() >= LEAST else []


def _score_names(backbones: Sequence[BackboneResult], data: str) -> list[str]:
    scores = [score for b in backbones for score in _scores(b, data)]
    return list(dict.fromkeys(score.name for score in scores))


def _scores(backbone: BackboneResult, data: str) -> list[Score]:
    panel = backbone.panels.get(data)
    return [*backbone.separability.get(data, []), *(panel.transferability if panel else [])]


def _score(backbone: BackboneResult, data: str, name: str) -> Score | None:
    return find(_scores(backbone, data), name)


def _ceiling(backbones: Sequence[BackboneResult], outcome: str) -> float | None:
    values = [[score.value for score in detection_scores(backbone, outcome)] for backbone in backbones]
    several = [row for row in values if len(row) > 1]
    if len(several) < LEAST:
        return None
    return noise_ceiling([row[: min(map(len, several))] for row in several])


def _measures(backbones: Sequence[BackboneResult], outcomes: Sequence[str]) -> dict[str, Value]:
    measures = {f"separability on {data}": headline_of(data) for data in separability_names(backbones)}
    return measures | {f"fine-tuned AUC on {name}": auc_of(name) for name in outcomes}


def _family_means(backbones: Sequence[BackboneResult], value: Value) -> list[Score]:
    known = [(v, backbone.family) for backbone in backbones if math.isfinite(v := value(backbone))]
    return family_means([v for v, _ in known], [family for _, family in known]) if known else []


def _claims(backbones: Sequence[BackboneResult], outcomes: Sequence[str]) -> list[Claim]:
    claims = []
    for data in separability_names(backbones):
        measure, value = f"separability on {data}", headline_of(data)
        claims.append(_claim("Face recognition is closest", measure, backbones, value, FACES))
        claims.append(
            _claim("Self-supervised separates better than supervised", measure, backbones, value, SELF_SUPERVISED,
                   against=SUPERVISED)
        )  # fmt: skip
    for name in outcomes:
        measure = f"fine-tuned AUC on {name}"
        claims.append(
            _claim("Self-supervised wins after fine-tuning", measure, backbones, auc_of(name), SELF_SUPERVISED)
        )
    for name in gap_names(backbones)[:1]:

        def gap(backbone: BackboneResult, name: str = name) -> float:
            score = over_seeds(gap_scores(backbone, name))
            return score.value if score else math.nan

        claims.append(_claim("… and overfits more", f"AUC gap {name}", backbones, gap, SELF_SUPERVISED))
    return claims


def _claim(
    text: str, measure: str, backbones: Sequence[BackboneResult], value: Value, family: str, against: str | None = None
) -> Claim:
    """``family`` against the family ``against``, or against all others."""
    known = [(backbone.family, v) for backbone in backbones if math.isfinite(v := value(backbone))]
    ours = [v for name, v in known if name == family]
    others = [v for name, v in known if (name == against if against else name != family)]
    name = f"{family} minus {against or 'all others'}"
    if not ours or not others:
        lacking = family if not ours else against or "any other family"
        score = Score(name, math.nan, math.nan, math.nan, True, len(known), f"no result of {lacking}")
        return Claim(text, measure, score, "undecided", None)
    score, verdict = claim(name, ours, others)
    return Claim(text, measure, score, verdict, backbones_per_side(ours, others))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
