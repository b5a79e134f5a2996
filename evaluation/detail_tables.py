"""The tables behind the headline: differences between backbones, methods, treatments, transferability, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from evaluation.claims import Claim, Conclusion
from evaluation.comparison import Difference, compared
from evaluation.confounds import ALL_TOGETHER
from evaluation.inversion import MOST, backbones_needed, correlation_of
from evaluation.prediction import Predictor
from evaluation.relation import Relation
from evaluation.results import BackboneResult, Report, by_headline, pretty
from evaluation.score import Score
from evaluation.tables import NO_RESULT, Cell, Table, name_cell, p_text, score_cell
from evaluation.treatments import TREATMENTS

DEFAULT_TREATMENT = next(iter(TREATMENTS))


def difference_table(report: Report, data: str) -> Table:
    """Row minus column of the headline score, best first; ▲ where the row separates better, ▼ where worse, after
    Holm's correction for all pairs. No rows where fewer than two backbones can be compared."""
    backbones = [backbone for backbone in by_headline(report.backbones, data) if data in backbone.panels]
    found = compared({backbone.name: backbone.panels[data] for backbone in backbones})
    kept = [b for b in backbones if any(b.name in (each.a, each.b) for each in found)]
    by_pair = {(each.a, each.b): each for each in found}
    columns = [("Row minus column", ""), *((str(number), "") for number in range(1, len(kept) + 1))]
    rows = [
        [_numbered_cell(number, row), *(_difference_cell(by_pair, row.name, column.name) for column in kept)]
        for number, row in enumerate(kept, 1)
    ]
    differ = sum(each.significant for each in found)
    caption = (
        f"{differ} of {len(found)} pairs differ on {data} (paired over the same groups, family-wise error 5 % by Holm)"
    )
    return Table(caption if found else "", columns, rows, [backbone.is_control for backbone in kept])


def _numbered_cell(number: int, backbone: BackboneResult) -> Cell:
    """Columns bear the number alone: a dozen names side by side would not fit."""
    return replace(name_cell(backbone), text=f"{number} {backbone.name}", sort=number)


def _difference_cell(by_pair: dict[tuple[str, str], Difference], row: str, column: str) -> Cell:
    if row == column:
        return Cell("", 0.0)
    sign = 1 if (row, column) in by_pair else -1
    each = by_pair[(row, column) if sign == 1 else (column, row)]
    value = sign * each.score.value
    if not math.isfinite(value):
        return Cell(NO_RESULT, "", hint=each.score.how)
    ahead = value > 0 if each.score.higher_is_better else value < 0
    mark = ("▲ " if ahead else "▼ ") if each.significant else ""
    p = p_text(each.p_holm) if math.isfinite(each.p_holm) else "no p"
    hint = f"{row} minus {column}; {each.score.how}; before correction {p_text(each.p)}"
    return Cell(f"{mark}{value:+.3f}", value, "", p, hint)


def method_table(report: Report, data: str) -> Table:
    """Headline score of all real samples against the fakes of each method, and of one method against another."""
    return _named_table(report, data, lambda panel: panel.by_method)


def treatment_table(report: Report, data: str) -> Table:
    """Headline score after each treatment of the features."""
    return _named_table(report, data, lambda panel: panel.by_treatment)


def treatment_moves(report: Report) -> Table:
    """How far each treatment moves the headline score from that of the default, over the pairs of a backbone (controls
    left out) and a data set that have both; no rows where no panel has been measured.

    A row for each treatment: pairs, mean of the score, mean move, mean size of a move, and the largest with its pair.
    """
    moved: dict[str, list[tuple[float, float, str]]] = {}
    for backbone in report.backbones:
        for data, panel in {} if backbone.is_control else backbone.panels.items():
            values = {name: score.value for name, score in panel.by_treatment.items() if math.isfinite(score.value)}
            for name, value in values.items() if DEFAULT_TREATMENT in values else ():
                moved.setdefault(name, []).append(
                    (value, value - values[DEFAULT_TREATMENT], f"{backbone.name} on {data}")
                )
    columns = [
        ("Treatment", ""),
        ("Pairs", "backbone, data set"),
        ("Mean", ""),
        ("Mean move", f"from {DEFAULT_TREATMENT}"),
    ]
    columns += [("Mean size of a move", ""), ("Largest move", "")]
    rows = [_moves_row(name, found) for name, found in moved.items()]
    return Table("", columns, rows, [False] * len(rows))


def _moves_row(name: str, found: Sequence[tuple[float, float, str]]) -> list[Cell]:
    mean = fmean(value for value, _, _ in found)
    cells = [Cell(pretty(name), name), Cell(str(len(found)), len(found)), Cell(f"{mean:.3f}", mean)]
    if name == DEFAULT_TREATMENT:
        return [*cells, *[Cell(NO_RESULT, "")] * 3]
    move, size = fmean(each for _, each, _ in found), fmean(abs(each) for _, each, _ in found)
    _, largest, pair = max(found, key=lambda each: abs(each[1]))
    return [*cells, Cell(f"{move:+.3f}", move), Cell(f"{size:.3f}", size), Cell(f"{largest:+.3f}", largest, "", pair)]


def nuisance_names(report: Report, data: str) -> list[str]:
    """What came along with the label and varied, as the panels on ``data`` have it; not the row of all together."""
    panels = [backbone.panels[data] for backbone in report.backbones if data in backbone.panels]
    names = dict.fromkeys(each.name for panel in panels for each in panel.confounds)
    return [name for name in names if name != ALL_TOGETHER]


def confound_table(report: Report, data: str) -> Table:
    """For each backbone and nuisance: is the label still there without it? In the order of the headline."""
    rows, controls = [], []
    for backbone in by_headline(report.backbones, data):
        panel = backbone.panels.get(data)
        for each in panel.confounds if panel else []:
            alone = Cell(f"{each.label_auc:.3f}", each.label_auc) if math.isfinite(each.label_auc) else Cell("–", "")
            scores = (score_cell([score]) for score in (each.nuisance, each.label, each.matched))
            rows.append(
                [name_cell(backbone), Cell(each.name, each.name), alone, *scores, Cell(each.verdict, each.verdict)]
            )
            controls.append(backbone.is_control)
    columns = [
        ("Backbone", ""),
        ("Nuisance", ""),
        ("Its AUC for the label", "0.5: none"),
        ("It in the features", "kNN AUC"),
    ]
    columns += [("Label, regressed out", "kNN AUC"), ("Label, matched", "kNN AUC"), ("Verdict", "")]
    return Table("", columns, rows, controls, numeric_from=2)


def transferability_table(report: Report, data: str) -> Table:
    """Scores that claim to rank backbones for fine-tuning; they fit the label."""
    return _named_table(report, data, lambda panel: {score.name: score for score in panel.transferability})


def _named_table(report: Report, data: str, named: Callable[[Any], dict[str, Score]]) -> Table:
    backbones = [backbone for backbone in by_headline(report.backbones, data) if data in backbone.panels]
    names = list(dict.fromkeys(name for backbone in backbones for name in named(backbone.panels[data])))
    rows = [[name_cell(b), *(score_cell(_one(named(b.panels[data]).get(name))) for name in names)] for b in backbones]
    columns = [("Backbone", ""), *((pretty(name), "") for name in names)]
    return Table("", columns, rows if names else [], [backbone.is_control for backbone in backbones])


def _one(score: Score | None) -> list[Score]:
    return [score] if score else []


def claim_table(report: Report) -> Table:
    """The verdicts: of each claim over all its measures, then measure by measure; and what would decide."""
    columns = [("Claim", ""), ("Measured by", ""), ("Verdict", ""), ("Would decide", ""), ("Difference of means", "")]
    rows = []
    for conclusion in report.prediction.conclusions if report.prediction else []:
        claims = [each for each in report.prediction.claims if each.text == conclusion.text]
        rows += [_conclusion_row(conclusion), *map(_claim_row, claims)]
    return Table("", columns, rows, [False] * len(rows), numeric_from=4)


def _conclusion_row(each: Conclusion) -> list[Cell]:
    texts = (each.text, "all measures together", each.verdict)
    return [*(Cell(text, text) for text in texts), Cell(each.words, ""), Cell(NO_RESULT, "")]


def _claim_row(each: Claim) -> list[Cell]:
    score = each.score
    if math.isfinite(score.value):
        ends = f"[{score.low:+.3f}, {score.high:+.3f}]" if math.isfinite(score.low) else "one backbone on a side"
        difference = Cell(f"{score.value:+.3f}", score.value, ends, "", f"{score.name}; {score.how}")
    else:
        difference = Cell(NO_RESULT, "", hint=score.how)
    hint = "backbones: to show the observed difference (power 80 %); samples: to know one backbone that closely"
    remedy = Cell(each.remedy or NO_RESULT, each.needed or "", hint=hint if each.needed else "")
    measured = f"{each.measure}: {score.name}"
    return [Cell(each.text, each.text), Cell(measured, measured), Cell(each.verdict, each.verdict), remedy, difference]


def family_table(report: Report) -> Table:
    """Mean of each pretext family over its backbones."""
    measures = report.prediction.families if report.prediction else {}
    families = list(dict.fromkeys(score.name for scores in measures.values() for score in scores))
    columns = [("Pretext family", ""), *((measure, "") for measure in measures)]
    rows = [
        [
            Cell(family, family),
            *(_family_cell(next((s for s in scores if s.name == family), None)) for scores in measures.values()),
        ]
        for family in sorted(families)
    ]
    return Table("", columns, rows, [False] * len(rows))


def _family_cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(NO_RESULT, "")
    cell = score_cell([score])
    return Cell(cell.text, cell.sort, cell.interval, f"{score.n} backbone" + "s" * (score.n > 1), cell.hint)


def relation_table(report: Report, outcome: str) -> Table:
    """Every score against the AUC after fine-tuning on ``outcome``; baselines without frozen features in italics."""
    rows = [each for each in _predictors(report) if each.outcome == outcome]
    columns = [("Score", ""), ("On", ""), ("Weighted Kendall τ", ""), ("p", "of no relation"), ("p", "Holm")]
    columns += [("Spearman", ""), ("Pearson", ""), ("Verdict", "of τ"), ("n", "backbones")]
    cells = [_relation_row(each) for each in rows]
    return Table("", columns, cells, [not each.data for each in rows], numeric_from=2)


def relation_outcomes(report: Report) -> list[str]:
    """Data sets whose AUC after fine-tuning is related to the scores."""
    return list(dict.fromkeys(each.outcome for each in _predictors(report)))


def relation_note(report: Report, outcome: str) -> str:
    """How the scores were tested, what chance alone reaches, what the noise of seeds allows, which baselines lack."""
    rows = [each for each in _predictors(report) if each.outcome == outcome]
    if not rows:
        return ""
    others = sum(bool(each.data) and not each.is_declared for each in rows)
    parts = [
        f"{pretty(each.name)} on {each.data} is the one score declared in advance, whatever the data, and is tested by "
        f"itself; the {others} other scores are corrected for each other (Holm)."
        for each in rows
        if each.is_declared
    ]
    most = max(each.relations[0].score.n for each in rows)
    highs = [each.relations[0].null_high for each in rows if each.relations[0].score.n == most]
    highs = sorted(filter(math.isfinite, highs))
    if highs:
        parts.append(
            f"With {most} backbones, chance alone reaches a weighted tau of {highs[len(highs) // 2]:.2f} once in "
            f"twenty; a true correlation of 0.5 would need {_needed(0.5)} backbones to be supported (power 80 %)."
        )
    tau = next((each.relations[0].score for each in rows if each.is_declared), None)
    if tau and 0 < abs(tau.value) < 1:
        rho = round(correlation_of("weighted_kendall", tau.n, tau.value), 2)
        parts.append(
            f"The headline's own weighted tau of {tau.value:.2f}, the mean of benchmarks with a true correlation of "
            f"{rho:.2f}, would need {_needed(rho)}."
        )
    if outcome in report.prediction.ceilings:
        ceiling = report.prediction.ceilings[outcome]
        parts.append(f"The noise of seeds allows a perfect predictor a weighted tau of {ceiling:.2f}.")
    if missing := report.prediction.missing_baselines[outcome]:
        parts.append(f"Baselines that are missing: {', '.join(missing)}.")
    return " ".join(parts)


def _needed(correlation: float) -> str:
    if not 0 < abs(correlation) < 1:
        return "no number of them" if correlation == 0 else "hardly any"
    return str(backbones_needed(correlation) or f"more than {MOST}")


def _predictors(report: Report) -> Sequence[Predictor]:
    return report.prediction.predictors if report.prediction else []


def _relation_row(each: Predictor) -> list[Cell]:
    tau = each.relations[0]
    return [
        Cell(pretty(each.name), each.name),
        Cell(each.data or "baseline", each.data),
        _coefficient_cell(tau),
        _p_cell(tau.p),
        Cell("declared", "", hint="declared in advance: not corrected") if each.is_declared else _p_cell(each.p_holm),
        *map(_coefficient_cell, each.relations[1:]),
        Cell(each.verdict, each.verdict),
        Cell(str(tau.score.n), tau.score.n),
    ]


def _coefficient_cell(each: Relation) -> Cell:
    cell = score_cell([each.score])
    return replace(cell, seeds=f"over seeds [{each.seeds[0]:.2f}, {each.seeds[1]:.2f}]") if each.seeds else cell


def _p_cell(p: float) -> Cell:
    return Cell(p_text(p).removeprefix("p = ").removeprefix("p "), p) if math.isfinite(p) else Cell(NO_RESULT, "")
