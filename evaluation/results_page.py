"""The results of a benchmark as one Markdown page: the headline first, long tables folded, verdicts and limits."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evaluation import detail_tables, page_tables, tables
from evaluation.confounds import ALL_TOGETHER
from evaluation.page_tables import Doses
from evaluation.results import Report, detection_names, metric_names, separability_names
from evaluation.tables import Table, markdown

MOST = 8  # scores of the relation that are shown unfolded

LIMITS = """An interval covers other groups of the same data, not other data sets, recipes or fits. "Undecided" is not
"no": it says that this many backbones cannot tell. Separability on the training split of one data set says nothing of
another. Families differ in much besides their pretext task: size, architecture, input size, training data. p-values in
the tables of separability are not corrected for the number of backbones and scores. `docs/EVALUATION.md` defines every
number."""


@dataclass(frozen=True)
class Page:
    """What the page says beside the report."""

    commands: Sequence[str]
    """Shell commands that made the results, this page's last."""
    commit: str
    """Of the code that writes the page."""
    figures: Sequence[Path] = ()
    """Figures over all backbones, relative to the page, named by their titles."""
    pictures: Sequence[Path] = ()
    """PCA and t-SNE of each backbone, relative to the page."""
    doses: Doses = field(default_factory=dict)


def results_page(report: Report, page: Page) -> str:
    """Markdown of ``report``."""
    return "\n\n".join(part.strip() for part in _parts(report, page)) + "\n"


def _parts(report: Report, page: Page) -> Iterator[str]:
    yield f"# Results: {report.title}"
    yield "This page is written by `python -m jobs.results`; what is not in it was not measured."
    yield report.notice
    yield "## The headline"
    yield "Best separable first, controls in italics, 95 % intervals over groups, p of a label without meaning."
    yield markdown(tables.headline_table(report))
    yield from _images(page, "separability-on-")
    yield "## How it was made"
    yield "```console\n" + "\n".join(f"$ {command}" for command in page.commands) + "\n```"
    yield (
        f"This page was written by commit `{page.commit}` on {report.machine}, with "
        f"{', '.join(f'{name} {version}' for name, version in report.versions.items())}. The numbers are those of the "
        "result files that it found; an earlier commit or another machine may have computed some of them."
    )
    yield from _table("Data", tables.data_table(report))
    yield from _table("Backbones and licences of their weights", tables.backbone_table(report))
    for data in separability_names(report.backbones):
        yield from _separability(report, data)
    yield from _treatments(report)
    yield from _images(page, "layers-on-")
    yield from _doses(report, page.doses)
    yield from _detection(report, page)
    yield from _relation(report, page)
    if page.pictures:
        yield "## Pictures of the feature spaces"
        yield "For looking, not for measuring: no score is computed from them. The report has them to hover over."
        images = [f"![{path.stem.replace('-', ' ')}]({path.as_posix()})" for path in page.pictures]
        yield from _folded("PCA and t-SNE of each backbone, by label, method and data set", *images)
    yield "## What may not be concluded"
    yield LIMITS
    missing = [(backbone.name, reason) for backbone in report.backbones for reason in backbone.missing]
    if missing:
        yield "Missing when this page was written:"
        yield "\n".join(f"- {name}: {reason}" for name, reason in missing)


def _folded(title: str, *content: str) -> Iterator[str]:
    """GitHub reads Markdown inside of HTML only between empty lines."""
    yield f"<details>\n<summary>{html.escape(title)}</summary>"
    yield from content
    yield "</details>"


def _table(title: str, table: Table, note: str = "") -> Iterator[str]:
    """Folded; nothing where it has no rows."""
    if table.rows:
        yield from _folded(title, *([note] if note else []), markdown(table))


def _images(page: Page, *starts: str) -> Iterator[str]:
    for path in page.figures:
        if path.stem.startswith(starts):
            yield f"![{path.stem.replace('-', ' ')}]({path.as_posix()})"


def _separability(report: Report, data: str) -> Iterator[str]:
    yield f"## Separability on {data}"
    differences = detail_tables.difference_table(report, data)
    if differences.caption:
        yield f"{differences.caption}."
    note = "Row minus column of the headline score; ▲ the row separates better, ▼ worse, after Holm's correction."
    yield from _table("Which backbone separates better than which", differences, note)
    note = "p is one-sided, of the same score under permuted labels; scores without p have no null here."
    yield from _table("All scores", page_tables.score_table(report, data), note)
    note = "Mean over permutations of the label that respect groups, and what they reach once in twenty."
    yield from _table("Their permutation nulls", page_tables.null_table(report, data), note)
    note = "They fit the label and claim to rank backbones for fine-tuning; higher is better in each."
    yield from _table("Transferability scores", detail_tables.transferability_table(report, data), note)
    note = "The headline score of all real samples against the fakes of one method, and of one method against another."
    yield from _table("By method", detail_tables.method_table(report, data), note)
    note = "The headline score after each treatment; centring moves no distance and is the default."
    yield from _table("By treatment of the features", detail_tables.treatment_table(report, data), note)
    yield from _confounds(report, data)


def _confounds(report: Report, data: str) -> Iterator[str]:
    """The last row of each backbone, all nuisances at once; the others folded."""
    full = detail_tables.confound_table(report, data)
    last = [i for i, row in enumerate(full.rows) if row[1].text == ALL_TOGETHER]
    if last:
        kept = [0, 2, 4, 5, 6]  # without the name of the nuisance and the score that "all of them" do not have
        rows = [[full.rows[i][column] for column in kept] for i in last]
        yield f"### Is it the label, or what comes along with it? On {data}"
        names = detail_tables.nuisance_names(report, data)
        yield (
            f"What varied here, together ({', '.join(names)}): how well it tells the label by itself, and what is left "
            "of the label in the features without it."
        )
        yield markdown(Table("", [full.columns[column] for column in kept], rows, [full.controls[i] for i in last]))
    yield from _table("Each of what comes along with the label", full)


def _treatments(report: Report) -> Iterator[str]:
    table = detail_tables.treatment_moves(report)
    if table.rows:
        yield "## Does the treatment of the features matter?"
        yield (
            "The headline score after each treatment, over all backbones but controls and all data sets: how far it "
            "moves from that of the default, by itself (with its sign) and in size."
        )
        yield markdown(table)


def _doses(report: Report, doses: Doses) -> Iterator[str]:
    if not doses:
        return
    yield "## How strong must a forgery be to be told?"
    yield (
        "Controlled forgeries of the same faces at rising severity: the least severity from which on the rise over "
        "severity 0 has a 95 % interval above zero, with the range of it over resamples of the faces, and the slope, "
        "paired over severities. At severity 0 nothing is forged: the score must lie within chance there. Not "
        "corrected for the number of rows."
    )
    yield markdown(page_tables.dose_table(report, doses))
    yield from _table("All scores: least severity told and slope", page_tables.full_dose_table(report, doses))


def _detection(report: Report, page: Page) -> Iterator[str]:
    yield "## Detection after fine-tuning"
    yield (
        "AUC, then its gaps between sets (above 0: worse on the second). Means over seeds, whose bounds are averaged "
        "too; each seed follows its interval. Thresholds and checkpoints saw the validation set alone."
    )
    yield markdown(tables.detection_table(report, "auc"))
    yield markdown(tables.gap_table(report))
    yield from _images(page, "overfitting", "robustness")
    for metric in metric_names(report.backbones):
        if metric != "auc":
            table = tables.detection_table(report, metric)
            yield from _table(table.caption, table)
    for data in detection_names(report.backbones):
        table = tables.slice_table(report, data)
        yield from _table(
            table.caption, table, "Per video: the mean logit. By method: its fakes against all real samples."
        )
    curves = list(_images(page, "reliability", "learning-curves"))
    if curves:
        yield from _folded("Reliability and learning curves", *curves)
    yield from _table("Runs", tables.run_table(report))


def _relation(report: Report, page: Page) -> Iterator[str]:
    yield "## Does separability predict fine-tuning?"
    prediction = report.prediction
    if prediction is None or prediction.too_few:
        yield f"No relation: {prediction.too_few if prediction else 'not computed'}."
    yield from _images(page, "separability-and-fine-tuning")
    for outcome in detail_tables.relation_outcomes(report):
        yield from _outcome(report, outcome)
    claims = detail_tables.claim_table(report)
    if claims.rows:
        yield "### Three claims of the literature"
        yield markdown(claims)
        yield (
            "Closest, and winning, is who is above the best other family and every other that has two backbones. That "
            "a family overfits more is asked of one gap alone, in which a stronger model may be blamed for being "
            "stronger: `docs/OVERFITTING.md` compares at equal validation AUC."
        )
        yield from _table("Means of the pretext families", detail_tables.family_table(report))


def _outcome(report: Report, outcome: str) -> Iterator[str]:
    """The headline, the scores that relate best and the baselines; the whole table folded."""
    table = detail_tables.relation_table(report, outcome)
    taus = [row[2].sort if isinstance(row[2].sort, float) else -math.inf for row in table.rows]
    scores = sorted((i for i, base in enumerate(table.controls) if not base), key=lambda i: -taus[i])
    shown = list(dict.fromkeys([0, *scores[: MOST - 1]]))  # the headline, whatever it reaches
    order = [*sorted(shown, key=lambda i: -taus[i]), *(i for i, base in enumerate(table.controls) if base)]
    yield f"### AUC on {outcome} after fine-tuning"
    yield detail_tables.relation_note(report, outcome)
    yield (
        f"Shown are the headline and those of {len(scores)} scores whose τ came out highest: **chosen after looking at "
        "these very numbers**, so that their τ is too high and their uncorrected p too small. Baselines that need no "
        "features are in italics."
    )
    yield markdown(replace(table, rows=[table.rows[i] for i in order], controls=[table.controls[i] for i in order]))
    yield from _table(f"All {len(scores)} scores against the AUC on {outcome}", table)
