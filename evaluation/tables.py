"""The tables of a report: cells with value, interval and sort key, and the headline table as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.results import (
    IN_DOMAIN,
    BackboneResult,
    Report,
    detection_names,
    detection_scores,
    find,
    gap_names,
    gap_scores,
    headline_score,
    over_seeds,
    part_names,
    part_scores,
    pretty,
    ranked,
    separability_names,
)
from evaluation.score import Score

NO_RESULT = "–"
TERMINAL_WIDTH = 110


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number it sorts by."""

    text: str
    sort: float | str
    interval: str = ""
    seeds: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Columns are (name, second line); ``controls`` marks the rows of random-initialisation controls."""

    caption: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    controls: list[bool]
    numeric_from: int = 1


def headline_table(report: Report) -> Table:
    """One row per backbone: separability, AUC on test and on unseen data, and the gaps between sets."""
    backbones = ranked(report)
    separability = separability_names(backbones)[:1]
    data = [name for name in detection_names(backbones) if name not in ("train", "validation")]
    gaps = gap_names(backbones)[:1]
    columns = [("Backbone", ""), ("Pretext family", ""), ("Parameters", "")]
    columns += [(_column_name(headline_score, backbones, name), f"{name}, frozen") for name in separability]
    columns += [("AUC ↑", name if name in IN_DOMAIN else f"{name}, unseen") for name in data]
    columns += [("AUC gap", name) for name in gaps]
    rows = [
        [
            *_identity_cells(backbone),
            *(_headline_cell(backbone, name) for name in separability),
            *(score_cell(detection_scores(backbone, name), each_seed=False) for name in data),
            *(score_cell(gap_scores(backbone, name), each_seed=False) for name in gaps),
        ]
        for backbone in backbones
    ]
    return Table("", columns, rows, [backbone.is_control for backbone in backbones], numeric_from=2)


def _headline_cell(backbone: BackboneResult, data: str) -> Cell:
    score = headline_score(backbone, data)
    return with_null(score_cell([score]), backbone, data, score.name) if score else score_cell([])


def with_null(cell: Cell, backbone: BackboneResult, data: str, name: str) -> Cell:
    """The cell with the p-value of the permutation null, where there is one."""
    panel = backbone.panels.get(data)
    null = panel.null(name) if panel else None
    if cell.text == NO_RESULT or null is None or not math.isfinite(null.p):
        return cell
    hint = f"{cell.hint}; {null.permutations} permutations that respect groups reach {null.high:.3f} once in twenty"
    return replace(cell, seeds=p_text(null.p), hint=hint)


def p_text(p: float) -> str:
    """``p = 0.012``, and ``p < 0.001`` below that."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def separability_table(report: Report, data: str) -> Table:
    """All separability scores on one data set."""
    backbones = ranked(report)
    names = list(dict.fromkeys(score.name for b in backbones for score in b.separability.get(data, [])))

    def score_of(backbone: BackboneResult, name: str) -> Score | None:
        return find(backbone.separability.get(data, []), name)

    def cell(backbone: BackboneResult, name: str) -> Cell:
        return with_null(score_cell([s] if (s := score_of(backbone, name)) else []), backbone, data, name)

    columns = [("Backbone", "")]
    columns += [
        (_column_name(score_of, backbones, name), "fitted on labels" if "probe" in name else "") for name in names
    ]
    rows = [[name_cell(backbone), *(cell(backbone, name) for name in names)] for backbone in backbones]
    return Table(data, columns, rows, [backbone.is_control for backbone in backbones])


def detection_table(report: Report, metric: str) -> Table:
    """One detection metric on train, validation, test and unseen data side by side, of the backbones with runs. Behind
    them the parts of these sets, but for the AUC, which is the table that people read: :func:`slice_table` has its."""
    backbones = _fine_tuned(report)
    data = detection_names(backbones)
    scores = {(name, ""): [detection_scores(b, name, metric) for b in backbones] for name in data}
    for name in data if metric != "auc" else []:
        for part in part_names(backbones, name):
            found = [part_scores(b, name, part, metric) for b in backbones]
            scores |= {(name, part): found} if any(found) else {}
    arrow = next((_arrow(each[0]) for found in scores.values() for each in found if each), "")
    columns = [("Backbone", "")]
    columns += [(name, part or ("" if name in IN_DOMAIN else "unseen")) for name, part in scores]
    rows = [[name_cell(b), *(score_cell(found[i]) for found in scores.values())] for i, b in enumerate(backbones)]
    return Table(f"{pretty(metric)} {arrow}", columns, rows, [b.is_control for b in backbones])


def slice_table(report: Report, data: str) -> Table:
    """AUC after fine-tuning on parts of a data set: whole videos, real samples against the fakes of each method, values
    of columns."""
    backbones = [b for b in ranked(report) if any(run.slices.get(data) for run in b.runs)]
    names = part_names(backbones, data)
    rows = [[name_cell(b), *(score_cell(part_scores(b, data, name)) for name in names)] for b in backbones]
    columns = [("Backbone", ""), *((name, "AUC") for name in names)]
    return Table(f"AUC on parts of {data}", columns, rows, [b.is_control for b in backbones])


def gap_table(report: Report) -> Table:
    """Differences of AUC between two sets scored by one model, of the backbones with runs."""
    backbones = _fine_tuned(report)
    names = gap_names(backbones)
    rows = [[name_cell(b), *(score_cell(gap_scores(b, name)) for name in names)] for b in backbones]
    columns = [("Backbone", ""), *((name, "") for name in names)]
    return Table("Difference of AUC", columns, rows, [b.is_control for b in backbones])


def _fine_tuned(report: Report) -> list[BackboneResult]:
    return [backbone for backbone in ranked(report) if backbone.runs]


def _column_name(score_of: Callable[..., Score | None], backbones: Sequence[BackboneResult], name: str) -> str:
    score = next((score for backbone in backbones if (score := score_of(backbone, name))), None)
    return f"{pretty(score.name)} {_arrow(score)}" if score else name


def _arrow(score: Score) -> str:
    return "↑" if score.higher_is_better else "↓"


def name_cell(backbone: BackboneResult) -> Cell:
    return Cell(backbone.name, backbone.name, hint=f"{backbone.pretext_task}; {backbone.initialisation}")


def _identity_cells(backbone: BackboneResult) -> list[Cell]:
    size = f"{backbone.parameters / 1e6:.1f} M" if backbone.parameters else NO_RESULT
    return [name_cell(backbone), Cell(backbone.kind, backbone.kind), Cell(size, backbone.parameters)]


def score_cell(scores: Sequence[Score], each_seed: bool = True) -> Cell:
    score = over_seeds(scores)
    if score is None or not math.isfinite(score.value):
        return Cell(NO_RESULT, "", hint=score.how if score else "")
    interval = f"[{score.low:.3f}, {score.high:.3f}]" if math.isfinite(score.low + score.high) else ""
    seeds = (
        (" ".join(f"{each.value:.3f}" for each in scores) if each_seed else f"{len(scores)} seeds")
        if scores[1:]
        else ""
    )
    return Cell(f"{score.value:.3f}", score.value, interval, seeds, f"n = {score.n}; {score.how}")


def backbone_table(report: Report) -> Table:
    columns = [("Backbone", ""), ("Initialisation", ""), ("Pretext task", ""), ("Pretext family", "")]
    columns += [("Licence of the weights", ""), ("Parameters", ""), ("Features", "d")]
    columns += [("ImageNet top-1", "%, published")]
    rows = [
        [
            *(Cell(text, text) for text in (b.name, b.initialisation, *_origin(b))),
            *(Cell(f"{count:,}" if count else NO_RESULT, count) for count in (b.parameters, b.num_features)),
            _top1_cell(b),
        ]
        for b in report.backbones
    ]
    return Table("Backbones", columns, rows, [b.is_control for b in report.backbones], numeric_from=5)


def _origin(backbone: BackboneResult) -> tuple[str, str, str]:
    """Pretext task, family and licence; a random control has the card of the pre-trained one, and none of these."""
    if backbone.initialisation == "random":
        return NO_RESULT, backbone.kind, NO_RESULT
    return backbone.pretext_task, backbone.family, backbone.licence


def _top1_cell(backbone: BackboneResult) -> Cell:
    if backbone.is_control or not math.isfinite(backbone.imagenet_top1):
        return Cell(NO_RESULT, "")
    return Cell(f"{backbone.imagenet_top1:.1f}", backbone.imagenet_top1)


def data_table(report: Report) -> Table:
    keys = list(dict.fromkeys(key for row in report.data for key in row))
    rows = [[_value_cell(row.get(key, NO_RESULT)) for key in keys] for row in report.data]
    return Table("Data", [(key, "") for key in keys], rows, [False] * len(rows), numeric_from=len(keys))


def run_table(report: Report) -> Table:
    columns = [("Backbone", ""), ("Seed", ""), ("Selected step", "best on validation"), ("Directory", "")]
    rows = [
        [name_cell(b), _value_cell(run.seed), _value_cell(run.selected_step), _value_cell(run.directory)]
        for b in report.backbones
        for run in b.runs
    ]
    return Table("Runs", columns, rows, [b.is_control for b in report.backbones for _ in b.runs], numeric_from=4)


def _value_cell(value: Any) -> Cell:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple, dict)) else str(value)
    return Cell(text, value if isinstance(value, (int, float)) else text)


def text_table(report: Report) -> str:
    """The headline table for a terminal, at most 110 columns wide; columns that do not fit continue below."""
    table = headline_table(report)
    columns = [
        [*head, *(_plain(_terminal_cell(row[i]), 30) for row in table.rows)] for i, head in enumerate(table.columns)
    ]
    name, family, _, *numbers = columns
    blocks: list[list[list[str]]] = [[name, family, *numbers]]
    if _width(blocks[0]) > TERMINAL_WIDTH:
        blocks = [[name]]
        for column in numbers:
            if _width([*blocks[-1], column]) > TERMINAL_WIDTH:
                blocks.append([name])
            blocks[-1].append(column)
    return "\n\n".join(map(_text_block, blocks))


def _text_block(columns: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([*lines[:2], "-" * _width(columns), *lines[2:]])


def _width(columns: list[list[str]]) -> int:
    return sum(2 + max(map(len, column)) for column in columns) - 2


def markdown_table(report: Report) -> str:
    """The headline table in GitHub's Markdown."""
    return markdown(headline_table(report))


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown; rows of controls in italics."""
    heads = [_markdown(f"{name} ({second})" if second else name) for name, second in table.columns]
    lines = [heads, ["---" for _ in heads]]
    for row, control in zip(table.rows, table.controls, strict=True):
        mark = "*" if control else ""
        lines.append([f"{mark}{text}{mark}" if (text := _markdown_cell(cell)) else "" for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    return " ".join(filter(None, (_markdown(cell.text), *(_escaped(text) for text in (cell.interval, cell.seeds)))))


def _terminal_cell(cell: Cell) -> str:
    """``.812 [.77, .85]``: two digits in the bounds and no leading zeros, so that a line fits a terminal."""
    bounds = re.sub(r"\d+\.\d+", lambda match: f"{float(match[0]):.2f}", cell.interval)
    text = f"{cell.text} {bounds}".strip()
    return re.sub(r"(?<!\d)0\.", ".", text) if cell.interval else text


def _plain(text: str, width: int) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _markdown(text: str) -> str:
    return re.sub(r"([\[\]])", r"\\\1", _escaped(text))


def _escaped(text: str) -> str:
    """All but brackets, which stand around every interval, and the sign in "p < 0.001": both mean nothing there."""
    return re.sub(r"([\\|>`*]|<(?! ))", r"\\\1", " ".join(text.split()))
