"""The report of a sweep: one self-contained HTML page, and its tables."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.overfitting_interaction import DATA, DEPTH, crossed, with_depth
from evaluation.overfitting_response import FEWEST, importance, marginal
from evaluation.overfitting_results import (
    SweepReport,
    TrialResult,
    backbones,
    clean,
    finished,
    gap_names,
    outcome,
    recommended,
    unseen_names,
    varied,
)
from evaluation.overfitting_tables import (
    interaction_tables,
    learning_curves,
    learning_table,
    memorisation_table,
    score_cell,
    verdict_table,
)
from evaluation.overfitting_verdict import expected
from evaluation.results import IN_DOMAIN, find, pretty
from evaluation.score import Score
from evaluation.tables import NO_RESULT, Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = ("first_overfit_epoch", "overfitting_area", "fall_from_peak", "memorisation")


Drawn = tuple[str, "Figure", str]
"""Title of a figure, the figure, and what it shows."""


def render(report: SweepReport) -> tuple[str, list[Drawn]]:
    """The report as one self-contained HTML page (no script or style but its own, no network, opens from a file), and
    its figures."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "tables.js"))
    done = finished(report.trials)
    importances, notes = _importances(clean(done))
    drawn = list(_figures(done, importances))
    page = environment.get_template("sweep.html.j2").render(
        report=report,
        recommended=recommended_table(report.trials),
        figures=[(title, _svg(figure), note) for title, figure, note in drawn],
        trials=trial_table(done),
        responses=[*_importance_tables(importances), *_marginal_tables(clean(done))],
        notes=notes,
        unfinished=[each for each in report.trials if not each.finished],
        changed=[each for each in done if each.note],
        learning=learning_table(report.trials),
        interactions=interaction_tables(report.trials),
        memorised=memorisation_table(report.trials),
        verdicts=verdict_table(report.trials),
        definitions=_definitions(done),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )
    return page, drawn


def text_table(trials: Sequence[TrialResult]) -> str:
    """The finished trials for a terminal: what varied, AUC by data set, gap at the end; best validation first."""
    done = _best_first(finished(trials))
    if not done:
        return "no finished trial"
    names, gaps = varied(done), gap_names(done)[:1]
    data = list(done[0].detection)
    lines = [["backbone", *names, *(f"AUC {name}" for name in data), *gaps]]
    for each in done:
        aucs = [f"{each.detection[name].value:.3f}" for name in data]
        lines.append([each.backbone, *(_value(each.values[name]) for name in names), *aucs,
                      *(_number(outcome(each, gap)) for gap in gaps)])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    heads = [f"{name} ({second})" if second else name for name, second in table.columns]
    lines = [heads, ["---"] * len(heads)]
    lines += [[f"{cell.text} {cell.interval}".strip() for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def trial_table(trials: Sequence[TrialResult]) -> Table:
    """One row per finished trial, best validation first."""
    trials = _best_first(finished(trials))
    names, data, gaps = varied(trials), list(trials[0].detection) if trials else [], gap_names(trials)
    columns = [("Backbone", ""), *((name, "") for name in names)]
    columns += [("AUC ↑", name if name in IN_DOMAIN else f"{name}, unseen") for name in data]
    columns += [("Gap at the end", name) for name in gaps]
    curve = [name for name in CURVE if any(find(each.curve, name) for each in trials)]
    columns += [(pretty(name).capitalize(), "") for name in curve]
    rows = [
        [
            Cell(each.backbone, each.backbone, hint=each.run),
            *(_value_cell(each.values[name]) for name in names),
            *(score_cell(each.detection.get(name)) for name in data),
            *(score_cell(find(each.last_gaps, name)) for name in gaps),
            *(score_cell(find(each.curve, name)) for name in curve),
        ]
        for each in trials
    ]
    return Table("", columns, rows, [False] * len(rows))


def recommended_table(trials: Sequence[TrialResult]) -> Table:
    """For each backbone the trial that validation selects, with its test and unseen AUC."""
    best = [found for name in backbones(trials) if (found := recommended(trials, name))]
    names, unseen = varied(finished(trials)), unseen_names(trials)
    columns = [("Backbone", ""), ("Pretext family", ""), *((name, "") for name in names)]
    columns += [("AUC ↑", name) for name in ("validation", "test")] + [("AUC ↑", f"{name}, unseen") for name in unseen]
    columns += [("Expected AUC", name) for name in ("test", *(f"{name}, unseen" for name in unseen))]
    columns += [("Trials", "to choose from")]
    rows = [
        [
            Cell(each.backbone, each.backbone, hint=each.run),
            Cell(each.family, each.family),
            *(_value_cell(each.values[name]) for name in names),
            *(score_cell(each.detection.get(name)) for name in ("validation", "test", *unseen)),
            *(score_cell(_expected(trials, each, name)) for name in ("test", *unseen)),
            Cell(str(count := len(clean(trials, each.backbone))), count),
        ]
        for each in best
    ]
    return Table("", columns, rows, [False] * len(rows), numeric_from=2)


def _expected(trials: Sequence[TrialResult], best: TrialResult, name: str) -> Score | None:
    """What the recommended setting may be expected to give on a data set."""
    scored = [each for each in clean(trials, best.backbone) if name in each.detection]
    if best not in scored:
        return None
    sides = ([each.detection[data].value for each in scored] for data in ("validation", name))
    return expected(*sides, best.detection[name])


def _outcomes(trials: Sequence[TrialResult]) -> list[str]:
    """What hyperparameters may move: the gaps at the end, and AUC on unseen data."""
    return [*gap_names(trials), *(f"AUC on {name}" for name in unseen_names(trials))]


def _importances(trials: Sequence[TrialResult]) -> tuple[dict[str, list[Score]], list[str]]:
    """Importance by outcome, and what must be said about it."""
    names = varied(trials)
    if len(trials) < FEWEST or not (names or len(backbones(trials)) > 1):
        return {}, [f"Importance needs at least {FEWEST} finished trials that differ; there are {len(trials)}."]
    tried = [{**({"backbone": each.backbone} if len(backbones(trials)) > 1 else {}),
              **{name: each.values[name] for name in names}} for each in trials]  # fmt: skip
    found = {name: importance(tried, [outcome(each, name) for each in trials]) for name in _outcomes(trials)}
    note = "Importance tells what the outcome depends on in this space, not in which direction; the means below do."
    return found, [note]


def _importance_tables(importances: dict[str, list[Score]]) -> Iterator[tuple[str, Table]]:
    for name, scores in importances.items():
        rows = [[Cell(score.name, score.name), score_cell(score)] for score in scores]
        columns = [("Hyperparameter", ""), ("Importance", "rise of the error, AUC")]
        yield f"Importance for {name}", Table("", columns, rows, [False] * len(rows))


def _marginal_tables(trials: Sequence[TrialResult]) -> Iterator[tuple[str, Table]]:
    outcomes = _outcomes(trials)
    for name in varied(trials) if len(trials) > 1 else []:
        tried = [{name: each.values[name]} for each in trials]
        found = [marginal(tried, [outcome(each, one) for each in trials], name) for one in outcomes]
        rows = [
            [Cell(label, place), *(score_cell(dict(each)[label]) for each in found)]
            for place, (label, _) in enumerate(found[0])
        ]
        columns = [(name, ""), *((one, "mean over trials") for one in outcomes)]
        yield f"Means at each {name}", Table("", columns, rows, [False] * len(rows))


def surface_axes(names: Sequence[str]) -> tuple[str, str] | None:
    """The two hyperparameters of the gap surface: the first of learning rate, depth and data size that were varied."""
    wanted = [name for name in ("learning_rate", "unfrozen_blocks", "mode", "train_groups") if name in names]
    wanted += [name for name in names if name not in (*wanted, "seed")]
    return (wanted[0], wanted[1]) if len(wanted) > 1 else None


def _figures(trials: Sequence[TrialResult], importances: dict[str, list[Score]]) -> Iterator[Drawn]:
    from evaluation import sweep_figures

    true = clean(trials)
    deep = with_depth(true) if crossed(true) else []
    axes = surface_axes(varied(true))
    if axes and not (deep and DATA in axes):  # which are depth and data
        yield from _surfaces(true, *axes, gap_names(true))
    if deep:
        yield from _surfaces(deep, DEPTH, DATA, [*gap_names(true), *(f"AUC on {name}" for name in unseen_names(true))])
    for unseen in unseen_names(trials):
        note = "A dot per trial; dotted: equal AUC."
        yield f"Validation versus {unseen}", sweep_figures.validation_versus_unseen(trials, unseen), note
    if any(each.evaluations for each in true):
        note = "Training: a fixed part of its data, not augmented. The twelve trials with the largest overfitting area."
        yield "Curves", sweep_figures.overfitting_curves(true), note
    curves = learning_curves(trials)
    if curves:
        note = "Means over trials with true labels; lines: the fitted power laws. Both axes are logarithmic."
        yield "Learning curves", sweep_figures.learning_curves(curves), note
    if importances:
        yield "Importance", sweep_figures.importance_bars(importances), "Bars with 95 % intervals over trials."


def _surfaces(trials: Sequence[TrialResult], x: str, y: str, outcomes: Sequence[str]) -> Iterator[Drawn]:
    from evaluation import sweep_figures

    for name in outcomes:
        auc = name.startswith("AUC on ")
        note = "Means at the selected checkpoint; in brackets: trials. Orange: below a coin."
        if not auc:
            note = "Mean difference of AUC at the last checkpoint; in brackets: trials. Red: the second set is harder."
        yield f"{'' if auc else 'Gap '}{name} over {x} × {y}", sweep_figures.surface(trials, x, y, name), note


def _definitions(trials: Sequence[TrialResult]) -> dict[str, str]:
    parts: list[Callable[[TrialResult], Sequence[Score]]] = [lambda t: t.curve, lambda t: t.last_gaps]
    scores = {score.name: score for each in trials for part in parts for score in part(each)}.values()
    found = {pretty(score.name): re.sub(r"\d+\.\d{4} ", "", score.how) for score in scores}
    return {
        "AUC": "P(fake scores above real) + P(equal)/2, with a 95 % percentile interval over resamples of groups",
        **found,
    }


def _best_first(trials: Sequence[TrialResult]) -> list[TrialResult]:
    return sorted(trials, key=lambda each: -each.detection["validation"].value)


def _value_cell(value: Any) -> Cell:
    return Cell(_value(value), value if isinstance(value, (int, float)) else str(value))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NO_RESULT


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # equal figures give equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _breakable(text: str) -> str:
    """Escaped text whose lines may break after an underscore, a slash or a full stop before a letter."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_/]|\.(?=[A-Za-z]))", r"\1<wbr>", str(escape(text))))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
