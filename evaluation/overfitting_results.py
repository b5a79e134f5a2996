"""The results of a sweep as plain records, and what tables and figures pick from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.results import IN_DOMAIN, find
from evaluation.score import Score


@dataclass(frozen=True)
class TrialResult:
    """One trial: what was tried, how it ended, and, if it finished, what came out."""

    run: str
    backbone: str
    family: str
    values: dict[str, Any]
    """Hyperparameter → value, the same keys in every trial."""
    status: str
    """``finished``, ``stopped`` (by the scheduler), ``failed`` or ``not run``."""
    reason: str = ""
    detection: dict[str, Score] = field(default_factory=dict)
    """AUC by data name at the selected checkpoint."""
    gaps: list[Score] = field(default_factory=list)
    """At the selected checkpoint."""
    last_gaps: list[Score] = field(default_factory=list)
    """At the last checkpoint."""
    drops: list[Score] = field(default_factory=list)
    """Selected minus last checkpoint, by data name."""
    curve: list[Score] = field(default_factory=list)
    """See evaluation.overfitting_curves.curve_scores."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Rows with ``epoch``, ``train/auc`` and ``validation/auc``."""
    train_samples: int = 0
    """Samples of the training set; 0 if not known."""
    note: str = ""
    """How the run differs from what was planned."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class SweepReport:
    """Everything that a sweep's report says."""

    title: str
    notice: str
    command: str
    versions: dict[str, str]
    machine: str
    searched: dict[str, str]
    """What was searched, and how, in words."""
    trials: list[TrialResult]


def finished(trials: Sequence[TrialResult], backbone: str | None = None) -> list[TrialResult]:
    """The finished trials, of one backbone or of all."""
    return [each for each in trials if each.finished and backbone in (None, each.backbone)]


def clean(trials: Sequence[TrialResult], backbone: str | None = None) -> list[TrialResult]:
    """The finished trials that saw the true labels: with flipped ones, the probe of memorisation, training AUC and with
    it the gaps mean another thing."""
    return [each for each in finished(trials, backbone) if not each.values.get("flipped_labels")]


def backbones(trials: Sequence[TrialResult]) -> list[str]:
    """Backbones in the order in which they were first met."""
    return list(dict.fromkeys(each.backbone for each in trials))


def unseen_names(trials: Sequence[TrialResult]) -> list[str]:
    """Data sets that took no part in training."""
    return list(dict.fromkeys(name for each in trials for name in each.detection if name not in IN_DOMAIN))


def varied(trials: Sequence[TrialResult]) -> list[str]:
    """Hyperparameters with more than one value among the trials."""
    names = dict.fromkeys(name for each in trials for name in each.values)
    return [name for name in names if len({repr(each.values[name]) for each in trials}) > 1]


def gap_names(trials: Sequence[TrialResult]) -> list[str]:
    return list(dict.fromkeys(score.name for each in trials for score in each.gaps))


def outcome(trial: TrialResult, name: str) -> float:
    """A gap at the last checkpoint, an AUC (``AUC on NAME``) at the selected one, or a number of the curve; NaN if the
    trial has none of that name."""
    if name.startswith("AUC on "):
        score = trial.detection.get(name.removeprefix("AUC on "))
    else:
        score = find(trial.last_gaps, name) or find(trial.curve, name)
    return score.value if score else math.nan


def recommended(trials: Sequence[TrialResult], backbone: str) -> TrialResult | None:
    """The backbone's trial with the highest validation AUC among those with true labels, the first of equals; selection
    sees nothing else."""
    candidates = clean(trials, backbone)
    return max(candidates, key=lambda each: each.detection["validation"].value, default=None)
