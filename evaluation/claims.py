"""What the literature claims of pretext families, on the measures of a benchmark: verdicts, and what would decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from evaluation.relation import backbones_per_side, claim, family_means
from evaluation.results import (
    BackboneResult,
    detection_scores,
    gap_names,
    gap_scores,
    headline_score,
    over_seeds,
    separability_names,
)
from evaluation.score import Score

FACES, SELF_SUPERVISED, SUPERVISED = "face-recognition", "self-supervised", "supervised"
ALL_OTHERS, BEST_OTHER = "all others", "the best other family"  # what a claim may be held against, beside a family

Measure = Callable[[BackboneResult], Score | None]


@dataclass(frozen=True)
class Claim:
    """A claim of the literature on one measure of this benchmark."""

    text: str
    measure: str
    score: Score
    verdict: str
    lacking: str
    """Family, or ``any other family``, of which there are fewer than two backbones; empty where there are enough."""
    needed: int | None
    """Backbones on each side that would show the observed difference, for or against; None where that is undefined."""
    samples: int | None
    """At which half the interval of one backbone would be the observed difference, see :func:`samples_needed`."""

    @property
    def remedy(self) -> str:
        """What would decide, in plain words; empty where the verdict is not ``undecided``."""
        if self.verdict != "undecided":
            return ""
        if self.lacking:
            return f"needs at least two backbones of {self.lacking}"
        backbones = f"needs {self.needed or 'more than 1,000'} backbones per side"
        if self.score.value < 0:
            backbones += " to be excluded"
        return f"{backbones} and {self.samples:,} samples" if self.samples else backbones

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "score": self.score.to_dict(), "remedy": self.remedy}


@dataclass(frozen=True)
class Conclusion:
    """One verdict on a claim over all its measures."""

    text: str
    verdict: str
    words: str

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def auc_of(outcome: str) -> Measure:
    """AUC after fine-tuning, mean over seeds; None where there is none."""
    return lambda backbone: over_seeds(detection_scores(backbone, outcome))


def headline_of(data: str) -> Measure:
    """The headline separability score, turned so that higher is better; None where there is none."""
    return lambda backbone: turned(headline_score(backbone, data))


def turned(score: Score | None) -> Score | None:
    """The score, with its sign changed where lower is better."""
    if score is None or score.higher_is_better:
        return score
    return replace(score, value=-score.value, low=-score.high, high=-score.low, higher_is_better=True)


def families(backbones: Sequence[BackboneResult], outcomes: Sequence[str]) -> dict[str, list[Score]]:
    """Measure → mean of each pretext family; measures that no backbone has are left out."""
    measures = {f"separability on {data}": headline_of(data) for data in separability_names(backbones)}
    measures |= {f"fine-tuned AUC on {name}": auc_of(name) for name in outcomes}
    known = {name: _known(backbones, measure) for name, measure in measures.items()}
    return {
        name: family_means([score.value for _, score in rows], [family for family, _ in rows])
        for name, rows in known.items()
        if rows
    }


def claims(backbones: Sequence[BackboneResult], outcomes: Sequence[str]) -> list[Claim]:
    """The claims, each on all its measures; ``outcomes`` are the data sets whose AUC after fine-tuning counts."""
    separability = [(f"separability on {data}", headline_of(data)) for data in separability_names(backbones)]
    detection = [(f"fine-tuned AUC on {name}", auc_of(name)) for name in outcomes]
    gap = next(iter(gap_names(backbones)), "")
    gaps: list[tuple[str, Measure]] = [(f"AUC gap {gap}", lambda backbone: over_seeds(gap_scores(backbone, gap)))]
    asked = [
        ("Face recognition is closest", separability, FACES, BEST_OTHER),
        ("Self-supervised separates better than supervised", separability, SELF_SUPERVISED, SUPERVISED),
        ("Self-supervised wins after fine-tuning", detection, SELF_SUPERVISED, BEST_OTHER),
        (f"… and overfits more, by the gap {gap} alone", gaps if gap else [], SELF_SUPERVISED, ALL_OTHERS),
    ]
    return [
        _claim(text, name, _known(backbones, measure), family, against)
        for text, measures, family, against in asked
        for name, measure in measures
    ]


def conclusions(claims: Sequence[Claim]) -> list[Conclusion]:
    """``supported`` where every measure of a claim is, ``not supported`` where one excludes it, else ``undecided``."""
    texts = dict.fromkeys(each.text for each in claims)
    return [_conclusion(text, [each for each in claims if each.text == text]) for text in texts]


def _conclusion(text: str, claims: Sequence[Claim]) -> Conclusion:
    verdicts = [each.verdict for each in claims]
    against = [each.measure for each in claims if each.verdict == "not supported"]
    support = f"{verdicts.count('supported')} of {len(claims)} measures support it"
    if against:
        return Conclusion(text, "not supported", f"{support}; excluded by {', '.join(against)}")
    if "undecided" not in verdicts:
        return Conclusion(text, "supported", support)
    by_remedy: dict[str, list[str]] = {}
    for each in claims:
        if each.remedy:
            by_remedy.setdefault(each.remedy, []).append(each.measure)
    remedies = (
        remedy if len(measures) == len(claims) else f"{remedy} ({', '.join(measures)})"
        for remedy, measures in by_remedy.items()
    )
    return Conclusion(text, "undecided", "; ".join([support, *remedies]))


def _known(backbones: Sequence[BackboneResult], measure: Measure) -> list[tuple[str, Score]]:
    """Family and score of the backbones that have one."""
    scores = [(backbone.family, measure(backbone)) for backbone in backbones]
    return [(family, score) for family, score in scores if score is not None and math.isfinite(score.value)]


def _claim(text: str, measure: str, known: Sequence[tuple[str, Score]], family: str, against: str) -> Claim:
    """``family`` against the family ``against``, :data:`ALL_OTHERS` or :data:`BEST_OTHER`.

    To be the best is more than to be above the mean of the others, among which weak ones hide a stronger one: the
    difference is that from the family with the highest mean, and ``supported`` asks for an interval above zero from
    every other family that has two backbones or more (one that has a single one has no interval, but is no better).
    """
    ours = [score for name, score in known if name == family]
    sides = _others(known, family, against)
    rival = max(sides, key=lambda name: fmean(score.value for score in sides[name]), default="")
    others = sides.get(rival, [])
    absent = "any other family" if against in (ALL_OTHERS, BEST_OTHER) else against
    title = f"{family} minus {against}" + (f" ({rival})" if against == BEST_OTHER and rival else "")
    if not ours or not others:
        lacking = absent if ours else family
        score = Score(title, math.nan, math.nan, math.nan, True, len(known), f"no result of {lacking}")
        return Claim(text, measure, score, "undecided", lacking, None, None)
    lacking = family if len(ours) < 2 else (absent if rival == ALL_OTHERS else rival) if len(others) < 2 else ""
    values = [score.value for score in ours]
    found = {name: claim(title, values, [score.value for score in side]) for name, side in sides.items()}
    score, verdict = found[rival]
    open_ = [name for name, (_, each) in found.items() if len(sides[name]) > 1 and each != "supported"]
    if verdict == "supported" and open_:
        verdict = "undecided"
    needed = [backbones_per_side(values, [score.value for score in sides[name]]) for name in open_]
    samples = samples_needed([*ours, *others], score.value)
    return Claim(text, measure, score, verdict, lacking, None if None in needed else max(needed, default=None), samples)


def _others(known: Sequence[tuple[str, Score]], family: str, against: str) -> dict[str, list[Score]]:
    """What ``family`` is held against: name of each side → its scores; no side without a score."""
    sides: dict[str, list[Score]] = {}
    for name, score in known:
        if against == BEST_OTHER and name != family:
            sides.setdefault(name, []).append(score)
        elif name == against or (against == ALL_OTHERS and name != family):
            sides.setdefault(against, []).append(score)
    return sides


def samples_needed(scores: Sequence[Score], difference: float) -> int | None:
    """Samples at which half the interval of one backbone would be ``difference``; None where it is less already, or
    where that takes more than ten thousand times the samples.

    An interval shrinks with the root of the samples, provided that groups grow in number and not in size.
    """
    widths = [((score.high - score.low) / 2, score.n) for score in scores if math.isfinite(score.high - score.low)]
    if not widths or difference == 0:
        return None
    times = (fmean(width for width, _ in widths) / difference) ** 2
    return math.ceil(times * fmean(n for _, n in widths)) if 1 < times <= 10_000 else None
