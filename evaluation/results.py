"""The results of a benchmark as plain records, and what figures and tables pick from them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evaluation.score import Score

if TYPE_CHECKING:
    from evaluation.panel import Panel
    from evaluation.prediction import Prediction

CONTROL = "control"  # the family of what is no backbone
IN_DOMAIN = ("train", "validation", "test")
CAPITALS = {
    word.lower(): word
    for word in (
        *("AUC", "DeLong", "AP", "EER", "F1", "ECE", "TPR", "FPR", "AMI", "ARI", "kNN", "PCA", "t-SNE", "UMAP"),
        *("Brier", "NCC", "LogME", "SFDA", "TransRate", "PARC", "GBC", "MMD2", "Ward"),
        *("Davies", "Bouldin", "Calinski", "Harabasz", "Fisher", "Wasserstein", "Frechet"),
    )
}


@dataclass(frozen=True)
class RunResult:
    """One fine-tuning run."""

    seed: int
    detection: dict[str, list[Score]]
    """Scores by data name: ``train``, ``validation``, ``test``, then any other name is an unseen data set."""
    gaps: list[Score]
    curves: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    selected_step: int
    directory: str
    slices: dict[str, dict[str, list[Score]]] = field(default_factory=dict)
    """Test or unseen data name → part of it (``per video``, a method against all real samples, ``COLUMN=VALUE``) → the
    scores of ``detection`` on it."""
    reliability: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    """Data name → (mean probability, share of fakes, samples) of bins of equal mass."""


@dataclass(frozen=True)
class BackboneResult:
    """One backbone, pre-trained or as a random-initialisation control: what it is and what was measured."""

    name: str
    initialisation: str
    """``pretrained`` or ``random``."""
    pretext_task: str
    family: str
    licence: str
    parameters: int
    num_features: int
    separability: dict[str, list[Score]]
    """Scores of the frozen features by data name; the first score of a list is the headline."""
    embeddings: dict[str, dict[str, Any]]
    """Data name → arrays: ``pca`` and ``t-SNE`` (or ``tsne``) of (n, 2); ``label``, ``method``, ``dataset`` of (n,)."""
    runs: list[RunResult]
    missing: list[str]
    """What is not there, and why."""
    imagenet_top1: float = math.nan
    """Published accuracy in per cent; NaN where unknown."""
    panels: dict[str, Panel] = field(default_factory=dict)
    """What qualifies the separability scores, by data name: nulls, draws, methods, treatments, transferability."""
    layers: dict[str, list[Score]] = field(default_factory=dict)
    """Data name → headline score of every layer, stem to head; the card's own features last."""
    robustness: dict[str, list[tuple[float, Score]]] = field(default_factory=dict)
    """Degradation → (level, AUC on the degraded test set), the untouched images first; mean over seeds."""

    @property
    def is_control(self) -> bool:
        """Random weights, or no backbone at all (pixel statistics)."""
        return self.initialisation == "random" or self.family == CONTROL

    @property
    def kind(self) -> str:
        """The pretext family, or which control it is."""
        return "random control" if self.initialisation == "random" else self.family


@dataclass(frozen=True)
class Report:
    """Everything that a report says."""

    title: str
    notice: str
    """What the data is and what may not be concluded."""
    command: str
    versions: dict[str, str]
    machine: str
    data: list[dict[str, Any]]
    """Per data set: name, split, samples, real, fake, groups, methods, digest."""
    backbones: list[BackboneResult]
    definitions: dict[str, str] = field(default_factory=dict)
    """Score name → how it is computed."""
    commit: str | None = None
    """Of the code that made the report; None outside a checkout."""
    prediction: Prediction | None = None
    """Whether separability predicted what fine-tuning gave, and the verdicts."""


def pretty(name: str) -> str:
    """A score's or metric's name as people write it: ``tpr_at_fpr_1pct`` is ``TPR at FPR 1 %``."""
    words = re.sub(r"(\d)pct\b", r"\1 %", name.replace("_", " ").replace("tsne", "t-sne"))
    return " ".join(CAPITALS.get(word, word) for word in words.split(" "))


def find(scores: Sequence[Score], name: str) -> Score | None:
    """The score of that name."""
    return next((score for score in scores if score.name == name), None)


def over_seeds(scores: Sequence[Score]) -> Score | None:
    """Mean over fine-tuning seeds; None for no score.

    The seeds share their test data, so the mean of their bounds is the interval of the mean over resampled data when
    the seeds move together, and wider than it otherwise. The spread over seeds is not in it and is shown beside it.
    """
    if len(scores) < 2:
        return scores[0] if scores else None
    value, low, high = (fmean(getattr(score, part) for score in scores) for part in ("value", "low", "high"))
    how = f"mean over {len(scores)} seeds (bounds too); {scores[0].how}"
    return Score(scores[0].name, value, low, high, scores[0].higher_is_better, scores[0].n, how)


def detection_scores(backbone: BackboneResult, data: str, metric: str = "auc") -> list[Score]:
    """The metric on one data set, one score for each seed that has it."""
    found = (find(run.detection.get(data, []), metric) for run in backbone.runs)
    return [score for score in found if score is not None]


def part_names(backbones: Sequence[BackboneResult], data: str) -> list[str]:
    """Parts of a data set that have scores of their own, as first met."""
    return list(dict.fromkeys(name for b in backbones for run in b.runs for name in run.slices.get(data, {})))


def part_scores(backbone: BackboneResult, data: str, part: str, metric: str = "auc") -> list[Score]:
    """The metric on a part of a data set, one score for each seed that has it."""
    found = (find(run.slices.get(data, {}).get(part, []), metric) for run in backbone.runs)
    return [score for score in found if score is not None]


def detection_names(backbones: Sequence[BackboneResult]) -> list[str]:
    """Data names with detection scores: train, validation, test, then unseen ones as first met."""
    names = dict.fromkeys(name for backbone in backbones for run in backbone.runs for name in run.detection)
    return [*(name for name in IN_DOMAIN if name in names), *(name for name in names if name not in IN_DOMAIN)]


def separability_names(backbones: Sequence[BackboneResult]) -> list[str]:
    """Data names with separability scores, as first met."""
    return list(dict.fromkeys(name for backbone in backbones for name in backbone.separability))


def headline_score(backbone: BackboneResult, data: str) -> Score | None:
    """The first separability score on a data set."""
    return next(iter(backbone.separability.get(data, [])), None)


def by_headline(backbones: Sequence[BackboneResult], data: str | None) -> list[BackboneResult]:
    """Best separable first (by the score's direction), backbones without the score last."""

    def rank(backbone: BackboneResult) -> tuple[bool, float]:
        score = headline_score(backbone, data) if data else None
        if score is None or math.isnan(score.value):
            return (True, 0.0)
        return (False, -score.value if score.higher_is_better else score.value)

    return sorted(backbones, key=rank)


def ranked(report: Report) -> list[BackboneResult]:
    """The report's backbones, best separable first."""
    return by_headline(report.backbones, next(iter(separability_names(report.backbones)), None))


def metric_names(backbones: Sequence[BackboneResult]) -> list[str]:
    runs = [run for backbone in backbones for run in backbone.runs]
    return list(dict.fromkeys(score.name for run in runs for scores in run.detection.values() for score in scores))


def gap_names(backbones: Sequence[BackboneResult]) -> list[str]:
    return list(dict.fromkeys(score.name for b in backbones for run in b.runs for score in run.gaps))


def gap_scores(backbone: BackboneResult, name: str) -> list[Score]:
    return [score for run in backbone.runs if (score := find(run.gaps, name))]
