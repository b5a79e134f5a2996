"""The results of a benchmark as one Markdown page: tables, figures, verdicts, and what may not be concluded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation import detail_tables, tables
from evaluation.results import Report, separability_names
from evaluation.tables import Table, markdown

MOST = 8  # scores of the relation that the page shows, best first

LIMITS = """An interval covers other groups of the same data, not other data sets, recipes or fits. "Undecided" is not
"no": it says that this many backbones cannot tell. Separability on the training split of one data set says nothing of
another. Families differ in much besides their pretext task: size, architecture, input size, training data. p-values in
the tables of separability are not corrected for the number of backbones and scores. `docs/EVALUATION.md` defines every
number."""


def results_page(report: Report, commands: Sequence[str], figures: Sequence[Path], commit: str) -> str:
    """Markdown of ``report``; ``figures`` are paths relative to the page, ``commands`` made it."""
    return "\n\n".join(part.strip() for part in _parts(report, commands, figures, commit)) + "\n"


def _parts(report: Report, commands: Sequence[str], figures: Sequence[Path], commit: str) -> Iterator[str]:
    yield f"# Results: {report.title}"
    yield "This page is written by `python -m jobs.results`; what is not in it was not measured."
    yield report.notice
    yield "```console\n" + "\n".join(f"$ {command}" for command in commands) + "\n```"
    yield f"Commit `{commit}`; {report.machine}; " + ", ".join(f"{k} {v}" for k, v in report.versions.items()) + "."
    yield "## The headline"
    yield "Best separable first, controls in italics, 95 % intervals over groups, p of a label without meaning."
    yield markdown(tables.headline_table(report))
    for figure in figures:
        yield f"![{figure.stem.replace('-', ' ')}]({figure.as_posix()})"
    yield "## Which backbone separates better than which"
    for data in separability_names(report.backbones):
        yield f"- {detail_tables.difference_table(report, data).caption or f'{data}: nothing to compare'}."
    yield from _confounds(report)
    yield "## Detection after fine-tuning"
    yield markdown(tables.detection_table(report, "auc"))
    yield markdown(tables.gap_table(report))
    yield from _relation(report)
    yield "## What may not be concluded"
    yield LIMITS
    missing = [(backbone.name, reason) for backbone in report.backbones for reason in backbone.missing]
    if missing:
        yield "Missing when this page was written:"
        yield "\n".join(f"- {name}: {reason}" for name, reason in missing)


def _confounds(report: Report) -> Iterator[str]:
    """The last row of each backbone: all nuisances at once."""
    for data in separability_names(report.backbones):
        full = detail_tables.confound_table(report, data)
        last = [i for i, row in enumerate(full.rows) if row[1].text == "all of them"]
        if not last:
            continue
        kept = [0, 2, 4, 5, 6]  # without the name of the nuisance and the score that "all of them" do not have
        rows = [[full.rows[i][column] for column in kept] for i in last]
        yield f"## Is it the label, or what comes along with it? On {data}"
        yield (
            "Brightness, sharpness, compression, resolution and source together: how well they tell the label by "
            "themselves, and what is left of the label in the features without them."
        )
        columns = [full.columns[column] for column in kept]
        yield markdown(Table("", columns, rows, [full.controls[i] for i in last]))


def _relation(report: Report) -> Iterator[str]:
    yield "## Does separability predict fine-tuning?"
    prediction = report.prediction
    if prediction is None or prediction.too_few:
        yield f"No relation: {prediction.too_few if prediction else 'not computed'}."
    for outcome in detail_tables.relation_outcomes(report):
        table = detail_tables.relation_table(report, outcome)
        taus = [row[2].sort if isinstance(row[2].sort, float) else -math.inf for row in table.rows]
        scores = sorted((i for i, base in enumerate(table.controls) if not base), key=lambda i: -taus[i])
        shown = list(dict.fromkeys([0, *scores[: MOST - 1]]))  # the headline, whatever it reaches
        order = [*sorted(shown, key=lambda i: -taus[i]), *(i for i, base in enumerate(table.controls) if base)]
        yield f"### AUC on {outcome} after fine-tuning"
        yield (
            f"{detail_tables.relation_note(report, outcome)} The headline and the best of {len(scores)} scores, then "
            "baselines in italics."
        )
        yield markdown(replace(table, rows=[table.rows[i] for i in order], controls=[table.controls[i] for i in order]))
    claims = detail_tables.claim_table(report)
    if claims.rows:
        yield "### Three claims of the literature"
        yield markdown(claims)
        yield markdown(detail_tables.family_table(report))
