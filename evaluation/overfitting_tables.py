"""Tables of a sweep that hold backbones and families against each other: learning curves, depth x data size, flipped
labels, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evaluation.overfitting_interaction import by_side, crossed
from evaluation.overfitting_response import marginal
from evaluation.overfitting_results import (
    TrialResult,
    backbones,
    clean,
    finished,
    gap_names,
    recommended,
    unseen_names,
)
from evaluation.overfitting_scaling import PowerLaw, power_law
from evaluation.overfitting_verdict import at_equal_validation, in_words, mean_difference
from evaluation.results import find
from evaluation.score import Score
from evaluation.tables import NO_RESULT, Cell, Table

Outcome = Callable[[TrialResult], float]

ERROR = "1 − validation AUC"


def learning_curves(trials: Sequence[TrialResult]) -> dict[str, dict[str, PowerLaw]]:
    """Backbone → what falls with more data → its power law over training samples; empty where the sweep did not vary
    them."""
    trials = [each for each in clean(trials) if each.train_samples]
    if len({each.train_samples for each in trials}) < 2:
        return {}
    gap = gap_names(trials)[0]
    return {
        name: {
            ERROR: power_law(*_sizes(trials, name, lambda each: 1 - each.detection["validation"].value)),
            gap: power_law(*_sizes(trials, name, lambda each: _value(each.last_gaps, gap))),
        }
        for name in backbones(trials)
    }


def learning_table(trials: Sequence[TrialResult]) -> Table:
    """Exponents of the learning curves of each backbone, and the value that they give at the largest size."""
    curves = learning_curves(trials)
    names = list(next(iter(curves.values()), {}))
    most = max((each.train_samples for each in clean(trials)), default=0)
    columns = [("Backbone", "")]
    for name in names:
        columns += [(f"{name}: exponent", "of training samples"), (f"{name}: fit", f"at {most}, and at {2 * most}")]
    rows = []
    for backbone, laws in curves.items():
        cells = [Cell(backbone, backbone)]
        for law in laws.values():
            fits = f"{law(most):.3f}, {law(2 * most):.3f}" if math.isfinite(law.scale) else NO_RESULT
            cells += [score_cell(law.exponent), Cell(fits, law(most) if math.isfinite(law.scale) else "")]
        rows.append(cells)
    return Table("", columns, rows, [False] * len(rows))


def interaction_tables(trials: Sequence[TrialResult]) -> list[tuple[str, Table]]:
    """What unfreezing deeper does to the gap and to unseen AUC with little and with much data, a table each; none where
    the sweep did not vary both."""
    if not crossed(trials):
        return []
    outcomes = [(f"Gap {gap} at the end", lambda each, g=gap: find(each.last_gaps, g)) for gap in gap_names(trials)[:1]]
    outcomes += [(f"AUC on {name}", lambda each, u=name: each.detection.get(u)) for name in unseen_names(trials)]
    effect = "deepest minus shallowest"
    columns = [("Backbone or family", ""), ("Effect of depth, least data", effect)]
    columns += [("Effect of depth, most data", effect), ("Interaction", "first minus second")]
    found = []
    for title, outcome in outcomes:
        rows = [[Cell(label, label), *map(score_cell, effects)] for label, effects in by_side(trials, outcome)]
        found.append((title, Table("", columns, rows, [False] * len(rows))))
    return found


MEMORISATION = {
    "memorisation": "repeats the flipped label",
    "validation_error": "errs on validation",
    "memorisation_above_error": "difference",
}


def memorisation_table(trials: Sequence[TrialResult]) -> Table:
    """For each backbone and share of flipped labels: how many of them the last checkpoint repeats, against the errors
    that it makes on validation; means over trials."""
    probes = [each for each in finished(trials) if all(find(each.curve, name) for name in MEMORISATION)]
    columns = [("Backbone", ""), ("Flipped labels", "share"), ("Trials", "")]
    columns += [("Share", what) for what in MEMORISATION.values()]
    rows = []
    for backbone in backbones(probes):
        own = [each for each in probes if each.backbone == backbone]
        tried = [{"flipped_labels": each.values["flipped_labels"]} for each in own]
        means = [
            dict(marginal(tried, [_value(each.curve, name) for each in own], "flipped_labels")) for name in MEMORISATION
        ]
        rows += [
            [
                Cell(backbone, backbone),
                Cell(share, float(share)),
                Cell(str(score.n), score.n),
                *(score_cell(mean[share]) for mean in means),
            ]
            for share, score in means[0].items()
        ]
    return Table("", columns, rows, [False] * len(rows))


def verdict_table(trials: Sequence[TrialResult]) -> Table:
    """Each pretext family, then each backbone, against all others: test AUC of the recommended settings, and gap and
    unseen AUC of all trials at equal validation AUC. A family's intervals are over backbones; those of one backbone at
    equal validation AUC are over trials, and speak of these backbones alone."""
    unseen = unseen_names(trials)
    gaps = gap_names(clean(trials))[:1]
    columns = [("Against all others", ""), ("Backbones", ""), ("Test AUC", "difference, recommended settings")]
    columns += [(f"Gap {gap}", "difference at equal validation AUC") for gap in gaps]
    columns += [(f"AUC on {name}", "difference at equal validation AUC") for name in unseen]
    columns += [("Verdict", "")]
    rows = []
    for label, members, family in _sides(trials):
        best = _best(trials, members)
        outcomes = [*(_gap(name) for name in gaps), *(_auc(name) for name in unseen)]
        differences = [_at_equal(trials, members, outcome, family) for outcome in outcomes]
        words = in_words(best, differences[0], family=family) if gaps else ""
        cells = [Cell(label, label), Cell(str(len(members)), len(members))]
        rows.append([*cells, *map(score_cell, [best, *differences]), Cell(words, words)])
    return Table("", columns, rows, [False] * len(rows), numeric_from=1)


def score_cell(score: Score | None) -> Cell:
    """A score with its interval, or a dash with the reason."""
    if score is None or not math.isfinite(score.value):
        return Cell(NO_RESULT, "", hint=score.how if score else "")
    interval = f"[{score.low:.3f}, {score.high:.3f}]" if math.isfinite(score.low + score.high) else ""
    return Cell(f"{score.value:.3f}", score.value, interval, hint=f"n = {score.n}; {score.how}")


def _sides(trials: Sequence[TrialResult]) -> list[tuple[str, set[str], bool]]:
    """What is held against the rest, its backbones, and whether it is a family: families, then backbones; nothing that
    is all there is."""
    names = backbones(clean(trials))
    families: dict[str, set[str]] = {}
    for each in clean(trials):
        families.setdefault(each.family, set()).add(each.backbone)
    sides = [(f"{family} (family)", members, True) for family, members in families.items()]
    sides += [(name, {name}, False) for name in names]
    return [side for side in sides if len(side[1]) < len(names)]


def _best(trials: Sequence[TrialResult], members: set[str]) -> Score:
    """Difference of test AUC between the recommended settings of the members and those of the others."""
    found = {name: recommended(trials, name) for name in backbones(clean(trials))}
    tests = {name: each.detection["test"].value for name, each in found.items() if each and "test" in each.detection}
    sides = [[value for name, value in tests.items() if (name in members) == side] for side in (True, False)]
    return mean_difference(*sides)


def _gap(name: str) -> Outcome:
    return lambda each: _value(each.gaps, name)


def _auc(name: str) -> Outcome:
    return lambda each: each.detection[name].value if name in each.detection else math.nan


def _at_equal(trials: Sequence[TrialResult], members: set[str], outcome: Outcome, family: bool) -> Score:
    kept = [each for each in clean(trials) if math.isfinite(outcome(each))]
    return at_equal_validation(
        [each.detection["validation"].value for each in kept],
        [outcome(each) for each in kept],
        [each.backbone for each in kept],
        [each.backbone in members for each in kept],
        family=family,
    )


def _sizes(trials: Sequence[TrialResult], name: str, outcome: Outcome) -> tuple[list[int], list[float]]:
    pairs = [(each.train_samples, outcome(each)) for each in trials if each.backbone == name]
    pairs = [(size, value) for size, value in pairs if math.isfinite(value)]
    return [size for size, _ in pairs], [value for _, value in pairs]


def _value(scores: Sequence[Score], name: str) -> float:
    score = find(scores, name)
    return score.value if score else math.nan
