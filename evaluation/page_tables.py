"""Tables of the results page alone: scores as rows, what chance reaches, and the answer to controlled forgeries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluation.dose import DoseResponse, least_severity
from evaluation.results import Report, pretty, ranked
from evaluation.tables import NO_RESULT, Cell, Table, p_text, separability_table

Doses = Mapping[str, Mapping[str, Sequence[DoseResponse]]]  # backbone → method → curves, the headline's first


def score_table(report: Report, data: str) -> Table:
    """All separability scores on one data set, a row for each score and a column for each backbone."""
    table = separability_table(report, data)
    heads = [
        (row[0].text, "control" if control else "") for row, control in zip(table.rows, table.controls, strict=True)
    ]
    names = [f"{name}, {second}" if second else name for name, second in table.columns]
    rows = [[Cell(name, name), *(row[i] for row in table.rows)] for i, name in enumerate(names) if i]
    return Table(data, [("Score", ""), *heads], rows, [False] * len(rows))


def null_table(report: Report, data: str) -> Table:
    """Mean of the permutation null, and what it reaches once in twenty times; laid out as :func:`score_table`."""
    backbones = [backbone for backbone in ranked(report) if data in backbone.panels]
    names = list(dict.fromkeys(null.name for backbone in backbones for null in backbone.panels[data].nulls))
    rows = []
    for name in names:
        nulls = [backbone.panels[data].null(name) for backbone in backbones]
        cells = [
            Cell(f"{null.mean:.3f}, {null.high:.3f}", null.mean)
            if null and math.isfinite(null.mean)
            else Cell(NO_RESULT, "")
            for null in nulls
        ]
        rows.append([Cell(pretty(name), name), *cells])
    heads = [(backbone.name, "control" if backbone.is_control else "") for backbone in backbones]
    return Table(data, [("Score", ""), *heads], rows, [False] * len(rows))


def dose_table(report: Report, doses: Doses) -> Table:
    """A row for each method and backbone, by the least severity that the headline tells; beside it its 95 % range."""
    rows = [(method, backbone, curves[0]) for backbone, found in doses.items() for method, curves in found.items()]
    rows.sort(key=lambda row: (row[0], _least(row[2]), -row[2].slope.value))
    columns = [("Method", ""), ("Backbone", ""), ("Score", ""), ("Least severity told", "")]
    columns += [("Slope", "per unit of severity"), ("At severity 0", ""), ("Within chance there", "")]
    cells = [
        [
            Cell(method, method),
            Cell(backbone, backbone),
            Cell(pretty(curve.name), curve.name),
            _severity_cell(curve),
            _slope_cell(curve),
            Cell(f"{curve.scores[0].value:.3f}", curve.scores[0].value, "", _p(curve)),
            Cell("yes" if curve.null_holds else "NO", ""),
        ]
        for method, backbone, curve in rows
    ]
    return Table("", columns, cells, _controls(report, [backbone for _, backbone, _ in rows]), numeric_from=3)


def full_dose_table(report: Report, doses: Doses) -> Table:
    """Least severity told and slope of every score; a row for each method and backbone."""
    rows = sorted((method, backbone) for backbone, found in doses.items() for method in found)
    names = list(dict.fromkeys(curve.name for found in doses.values() for curves in found.values() for curve in curves))
    cells = []
    for method, backbone in rows:
        curves = {curve.name: curve for curve in doses[backbone][method]}
        cells.append(
            [Cell(method, method), Cell(backbone, backbone), *(_dose_cell(curves.get(name)) for name in names)]
        )
    columns = [("Method", ""), ("Backbone", ""), *((pretty(name), "") for name in names)]
    return Table("", columns, cells, _controls(report, [backbone for _, backbone in rows]), numeric_from=2)


def _controls(report: Report, names: Sequence[str]) -> list[bool]:
    controls = {backbone.name for backbone in report.backbones if backbone.is_control}
    return [name in controls for name in names]


def _least(curve: DoseResponse) -> float:
    return math.inf if math.isnan(curve.detectable) else curve.detectable


def _severity_cell(curve: DoseResponse) -> Cell:
    least, *ends = least_severity(curve).split(" ", 1)
    return Cell(least, _least(curve), *ends)


def _slope_cell(curve: DoseResponse) -> Cell:
    slope = curve.slope
    return Cell(f"{slope.value:+.3f}", slope.value, f"[{slope.low:+.3f}, {slope.high:+.3f}]")


def _p(curve: DoseResponse) -> str:
    return p_text(curve.p) if math.isfinite(curve.p) else ""


def _dose_cell(curve: DoseResponse | None) -> Cell:
    if curve is None:
        return Cell(NO_RESULT, "")
    outside = "" if curve.null_holds else "; severity 0 is not within chance"
    return Cell(f"{least_severity(curve)} (slope {curve.slope.value:+.3f}{outside})", _least(curve))
