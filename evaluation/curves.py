"""Figures over depth, severity and degradation: where in a network, and how far, the difference is seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from evaluation.dose import DoseResponse
from evaluation.figures import COLOURS, GREY, MARKERS, STYLE, _short
from evaluation.results import BackboneResult, by_headline, pretty
from evaluation.score import Score


def layer_heatmap(results: Sequence[BackboneResult], data: str) -> Figure:
    """Headline separability of every layer, stem on the left and the card's own features on the right, a row for each
    backbone, best on top.

    Networks have different numbers of layers: every row spans the same width. A layer whose interval holds chance is
    marked by a small dot. Raises ValueError when no backbone has layers.
    """
    rows = [backbone for backbone in by_headline(results, data) if backbone.layers.get(data)]
    if not rows:
        raise ValueError("no backbone has scores of its layers")
    scores = [backbone.layers[data] for backbone in rows]
    values = [score.value for found in scores for score in found if math.isfinite(score.value)]
    least, most = min([0.5, *values]), max([0.55, *values])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.36 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for y, found in enumerate(scores):
            edges = np.linspace(0, 1, len(found) + 1)
            cells = np.array([[score.value for score in found]])
            mesh = axes.pcolormesh(edges, [y - 0.45, y + 0.45], cells, cmap="cividis", vmin=least, vmax=most)
            for (left, right), score in zip(itertools.pairwise(edges), found, strict=True):
                _cell(axes, (left + right) / 2, y, score, len(found), bright=score.value > (least + most) / 2)
        axes.set_yticks(range(len(rows)), [_short(backbone.name, 34) for backbone in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([0, 1], ["stem", "features"])
        axes.spines[:].set_visible(False)
        for text, backbone in zip(axes.get_yticklabels(), rows, strict=True):
            if backbone.is_control:
                text.set(style="italic", color=GREY)
        figure.colorbar(mesh, ax=axes, label=f"{pretty(scores[0][-1].name)} on {_short(data, 20)}")
    return figure


def _cell(axes: Any, x: float, y: float, score: Score, cells: int, bright: bool) -> None:
    colour = "black" if bright else "white"
    if cells <= 14 and math.isfinite(score.value):
        axes.text(x, y, f"{score.value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7.5, color=colour)
    if not score.low > 0.5:
        axes.plot(x, y + 0.33, ".", color=colour, markersize=3)


def dose_response(curves: Mapping[str, Sequence[DoseResponse]]) -> Figure:
    """Scores over severity, one panel for each score and one line for each method, with 95 % intervals.

    Filled dots: from here on the rise over severity 0 is beyond chance. ``curves``: method → curves of the scores.
    """
    names = list(dict.fromkeys(curve.name for found in curves.values() for curve in found))
    if not names:
        raise ValueError("no dose-response curve")
    with matplotlib.rc_context(STYLE):
        columns = min(5, len(names))
        lines = math.ceil(len(names) / columns)
        figure = Figure(figsize=(1.2 + 3.1 * columns, 0.5 + 2.7 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        panels = grid.flat[: len(names)]
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        for number, (method, found) in enumerate(curves.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            for curve in found:
                _curve(panels[names.index(curve.name)], curve, method, style)
        for axes, name in zip(panels, names, strict=True):
            axes.set(xlabel="severity", ylabel=pretty(name))
            axes.axhline(0.5 if "auc" in name else 0, color=GREY, linewidth=1, linestyle=":", zorder=1)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(6, len(handles)), fontsize=9)
    return figure


def _curve(axes: Any, curve: DoseResponse, method: str, style: dict[str, str]) -> None:
    x, y = curve.severities, [score.value for score in curve.scores]
    ends = np.array([(score.low, score.high) for score in curve.scores])
    axes.fill_between(x, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.15, linewidth=0)
    told = [severity >= curve.detectable for severity in x]  # nothing where it is NaN
    axes.plot(x, y, lw=1.4, ms=5, markerfacecolor="white", label=_short(method, 20), **style)
    shown = [(a, b) for a, b, seen in zip(x, y, told, strict=True) if seen]
    if shown:
        axes.plot(*zip(*shown, strict=True), linestyle="", ms=5, **style)


def robustness(results: Mapping[str, Mapping[str, Sequence[tuple[float, Score]]]]) -> Figure:
    """AUC over the strength of each degradation, one panel each, one line for each backbone, with 95 % intervals.

    ``results``: backbone → degradation → (level, AUC) in the order of strength, the untouched images first.
    """
    kinds = list(dict.fromkeys(kind for found in results.values() for kind in found))
    if not kinds:
        raise ValueError("no degradation was scored")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.9 * len(kinds), 3.4 + 0.12 * len(results)), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        for number, (backbone, found) in enumerate(results.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
            for kind, points in found.items():
                axes, places = panels[kinds.index(kind)], range(len(points))
                ends = np.array([(score.low, score.high) for _, score in points])
                axes.fill_between(places, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.1, linewidth=0)
                values = [score.value for _, score in points]
                axes.plot(places, values, lw=1.3, ms=4, label=_short(backbone, 28), **style)
                axes.set_xticks(places, ["none", *(f"{level:g}" for level, _ in points[1:])])
        for axes, kind in zip(panels, kinds, strict=True):
            axes.set(xlabel=kind)
            axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", zorder=1)
        panels[0].set_ylabel("AUC")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=8.5)
    return figure


def reliability(results: Sequence[BackboneResult], data: str) -> Figure:
    """Share of fakes over the mean predicted probability, a small panel for each backbone and a line for each seed."""
    rows = [backbone for backbone in results if any(run.reliability.get(data) for run in backbone.runs)]
    if not rows:
        raise ValueError("no run has a reliability curve")
    columns = min(5, len(rows))
    lines = math.ceil(len(rows) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 1.9 * columns, 0.6 + 2.0 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
        for axes, backbone in zip(grid.flat, rows, strict=False):
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", zorder=1)
            for number, run in enumerate(backbone.runs):
                curve = np.array(run.reliability.get(data, []))
                if len(curve):
                    axes.plot(curve[:, 0], curve[:, 1], "o-", ms=3, lw=1.1, color=COLOURS[number % len(COLOURS)])
            axes.set_title(_short(backbone.name, 24), fontsize=8.5)
            axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.supxlabel("mean predicted probability of fake", fontsize=9.5)
        figure.supylabel(f"share of fakes, {_short(data, 16)}", fontsize=9.5)
    return figure
