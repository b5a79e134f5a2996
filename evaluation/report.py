"""The report of a benchmark: one self-contained HTML file. Also here: the headline table as text and as Markdown."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import detail_tables, tables
from evaluation.results import (
    BackboneResult,
    Report,
    RunResult,
    detection_names,
    gap_names,
    metric_names,
    pretty,
    separability_names,
)
from evaluation.tables import markdown_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BackboneResult", "Report", "RunResult", "markdown_table", "render", "save_figures", "text_table"]


def render(report: Report) -> str:
    """The report as one self-contained HTML page: no script or style but its own, no network, opens from a file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from evaluation.scatter import scatters

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # the order of choices is that of the data
    environment.filters["breakable"] = _breakable
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = "".join((folder / name).read_text(encoding="utf-8") for name in ("tables.js", "scatter.js"))
    return environment.get_template("report.html.j2").render(
        report=report,
        headline=tables.headline_table(report),
        separability=[_separability(report, name) for name in separability_names(report.backbones)],
        claims=detail_tables.claim_table(report),
        families=detail_tables.family_table(report),
        relations=[
            (outcome, detail_tables.relation_note(report, outcome), detail_tables.relation_table(report, outcome))
            for outcome in detail_tables.relation_outcomes(report)
        ],
        detection=[tables.detection_table(report, name) for name in metric_names(report.backbones)],
        slices=[tables.slice_table(report, data) for data in detection_names(report.backbones)],
        gaps=tables.gap_table(report),
        backbones=tables.backbone_table(report),
        data=tables.data_table(report),
        runs=tables.run_table(report),
        figures=[(title, _svg(figure), note) for title, figure, note in figures_of(report)],
        pictures=list(_pictures(report)),
        scatters=scatters(report.backbones),
        definitions=_definitions(report),
        missing=[(backbone.name, reason) for backbone in report.backbones for reason in backbone.missing],
        pretty=pretty,
        seeds=max((len(backbone.runs) for backbone in report.backbones), default=0),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _separability(report: Report, data: str) -> dict[str, Any]:
    """The tables on one data set: all scores, and below them what qualifies the headline."""
    return {
        "data": data,
        "scores": tables.separability_table(report, data),
        "differences": detail_tables.difference_table(report, data),
        "methods": detail_tables.method_table(report, data),
        "treatments": detail_tables.treatment_table(report, data),
        "confounds": detail_tables.confound_table(report, data),
        "transferability": detail_tables.transferability_table(report, data),
    }


def _definitions(report: Report) -> dict[str, str]:
    gaps = gap_names(report.backbones)
    general = {name: how for name, how in report.definitions.items() if name not in gaps}
    return general | {name: "AUC on the first set minus AUC on the second, same model; positive: the first is easier; "
                      "each set is resampled by its own groups" for name in gaps}  # fmt: skip


def figures_of(report: Report) -> Iterator[tuple[str, Figure, str]]:
    """(title, figure, what it shows) of each figure over all backbones."""
    from evaluation import curves, figures

    backbones = report.backbones
    for data in separability_names(backbones):
        note = "Score of the frozen features with its 95 % interval."
        yield f"Separability on {data}", figures.separability_forest(backbones, data), note
    for data in separability_names(backbones):
        if any(backbone.layers.get(data) for backbone in backbones):
            note = (
                "Headline score of every layer, mean over positions, from the stem to the features that the tables are "
                "about. A small dot: the interval holds chance."
            )
            yield f"Layers on {data}", curves.layer_heatmap(backbones, data), note
    if detection_names(backbones):
        note = "AUC with 95 % intervals. Train − validation is overfitting; test − unseen is the change of data set."
        yield "Overfitting", figures.overfitting(backbones), note
    for data in separability_names(backbones)[:1]:
        outcomes = [name for name in detection_names(backbones) if name not in ("train", "validation")]
        if report.prediction and len(report.prediction.backbones) > 1 and outcomes:
            note = "Each point is a backbone, with both 95 % intervals. The verdicts are below."
            yield "Separability and fine-tuning", figures.relation(backbones, data, outcomes), note
    if any(backbone.robustness for backbone in backbones):
        note = "AUC on test after fine-tuning, the images degraded at the size that the network sees."
        found = {backbone.name: backbone.robustness for backbone in backbones if backbone.robustness}
        yield "Robustness", curves.robustness(found), note
    if any(run.reliability.get("test") for backbone in backbones for run in backbone.runs):
        note = "On test, bins of equal mass; the diagonal is a calibrated model. Every seed is a line."
        yield "Reliability", curves.reliability(backbones, "test"), note
    if any(run.curves for backbone in backbones for run in backbone.runs):
        note = "Thin lines: seeds. Dotted: the step that validation selected."
        yield "Learning curves", figures.learning_curves(backbones), note


def save_figures(report: Report, folder: Path, *, pdf: bool = True) -> tuple[list[Path], list[Path]]:
    """All figures as PNG and, for papers, PDF: those over all backbones, named by their titles, and in ``pictures`` the
    feature space of each backbone. Returns the PNG files of either."""
    figures = [_save(figure, folder, title, pdf) for title, figure, _ in figures_of(report)]
    pictures = [
        _save(figure, folder / "pictures", title, pdf)
        for backbone in report.backbones
        for title, figure in _embeddings(backbone)
    ]
    return figures, pictures


def _save(figure: Figure, folder: Path, title: str, pdf: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-") + ".png")
    figure.savefig(path, dpi=160)
    if pdf:  # equal figures give equal bytes
        figure.savefig(path.with_suffix(".pdf"), dpi=300, metadata={"CreationDate": None})
    return path


def _embeddings(backbone: BackboneResult) -> Iterator[tuple[str, Figure]]:
    """(title, figure) of the two-dimensional pictures of one backbone."""
    from evaluation import figures

    for data, arrays in backbone.embeddings.items():
        for kind in [key for key in ("pca", "t-SNE", "tsne", "umap") if key in arrays]:
            title = f"{backbone.name}, {data}, {pretty(kind)}"
            arguments = (arrays[kind], arrays["label"], arrays["method"], arrays["dataset"])
            yield title, figures.embedding(*arguments, title=title)


def _pictures(report: Report) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(backbone, [(title, data address)]) of the two-dimensional pictures."""
    for backbone in report.backbones:
        pictures = [(title, _png(figure)) for title, figure in _embeddings(backbone)]
        if pictures:
            yield backbone.name, pictures


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):  # equal figures give equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _breakable(text: str) -> str:
    """Escaped text whose lines may break after an underscore, a slash or a full stop before a letter."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_/]|\.(?=[A-Za-z]))", r"\1<wbr>", str(escape(text))))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
