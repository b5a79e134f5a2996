"""Figures of a benchmark. Every function returns a matplotlib Figure and touches no global state.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; marker shapes say the same once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from evaluation.results import (
    CONTROL,
    BackboneResult,
    by_headline,
    detection_names,
    detection_scores,
    headline_score,
    over_seeds,
    pretty,
    separability_names,
)
from evaluation.score import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
GREY = "#767676"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
MOST_COLOURS = len(COLOURS)
FIRST_COLOUR = {"label": 0, "method": 0, "dataset": 4}  # a data set is neither real nor fake: other colours


def embedding(points: ArrayLike, label: ArrayLike, method: ArrayLike, dataset: ArrayLike, title: str) -> Figure:
    """One embedding three times, coloured by label, by method and by dataset.

    ``points`` (n, 2); ``label`` (n,) 0 real, 1 fake, or these words; ``method`` and ``dataset`` (n,) names. More than
    seven names share grey as "other", the rarest first.
    """
    points = np.asarray(points)
    factors = {"label": label_names(label), "method": np.asarray(method, str), "dataset": np.asarray(dataset, str)}
    if points.ndim != 2 or points.shape[1] != 2 or any(len(factor) != len(points) for factor in factors.values()):
        raise ValueError(f"points must have the shape (n, 2) and n names of each kind, got {points.shape} and "
                         f"{[len(factor) for factor in factors.values()]}")  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        figure.suptitle(_short(f"{title}, n = {len(points)}", 110), fontsize=11)
        for axes, (name, values) in zip(figure.subplots(1, 3), factors.items(), strict=True):
            _scatter(
                axes, points, values, first_colour=4 if name == "dataset" else 0
            )  # a dataset is neither real nor fake
            axes.set_title(f"by {name}")
    return figure


def label_names(label: ArrayLike) -> np.ndarray:
    """Labels 0 and 1 as the words ``real`` and ``fake``; words stay."""
    label = np.asarray(label)
    return label if label.dtype.kind in "US" else np.where(label == 1, "fake", "real")


def category_colours(values: ArrayLike, first_colour: int = 0) -> dict[str, str]:
    """Name → colour, real first; of more than seven names the rarest are grey and last."""
    names, counts = np.unique(np.asarray(values, str), return_counts=True)
    rare = names[np.argsort(-counts, kind="stable")[MOST_COLOURS - 1 :]] if len(names) > MOST_COLOURS else []
    kept = sorted(set(map(str, names)) - set(map(str, rare)), key=lambda name: (name not in ("real", "pristine"), name))
    palette = COLOURS[first_colour:] + COLOURS[:first_colour]
    return {**dict(zip(kept, palette, strict=False)), **{str(name): GREY for name in rare}}


def _scatter(axes: Axes, points: np.ndarray, values: np.ndarray, first_colour: int) -> None:
    colours = category_colours(values, first_colour)
    order = np.random.default_rng(0).permutation(len(points))  # no class is drawn over another
    size = float(np.clip(4000 / len(points), 4, 26))
    shades = [colours[value] for value in values[order]]
    # A picture within a PDF: thousands of dots would make it slow to open, the words stay text.
    axes.scatter(*points[order].T, s=size, c=shades, alpha=0.75, linewidths=0, rasterized=True)
    shown = {name: colour for name, colour in colours.items() if colour != GREY}
    if len(shown) < len(colours):
        shown[f"other ({len(colours) - len(shown)})"] = GREY
    handles = [axes.scatter([], [], s=30, c=colour, label=_short(name, 24)) for name, colour in shown.items()]
    columns = 2 if len(handles) > 1 else 1
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=columns, fontsize=9,
        handletextpad=0.1, columnspacing=0.8,
    )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#bbbbbb")


def separability_forest(results: Sequence[BackboneResult], data: str | None = None) -> Figure:
    """Headline separability of every backbone with its 95 % interval, best on top, coloured by pretext family.

    Random-initialisation controls are grey and hollow. ``data`` defaults to the first data set with scores. Raises
    ValueError when no backbone has a score.
    """
    data = data if data is not None else next(iter(separability_names(results)), None)
    rows = [(b, score) for b in by_headline(results, data) if data and (score := headline_score(b, data))]
    rows = [(backbone, score) for backbone, score in rows if math.isfinite(score.value)]
    if not rows:
        raise ValueError("no backbone has a separability score")
    styles = _family_styles(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.5 + 0.34 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        drawn = {}
        for y, (backbone, score) in enumerate(rows):
            family = backbone.kind
            colour, marker = styles[family]
            face = "white" if backbone.is_control else colour
            drawn[family] = _interval(
                axes, y, score, color=colour, marker=marker, markerfacecolor=face, label=_short(family, 40)
            )
        chance = 0.5 if "auc" in rows[0][1].name.lower() else 0.0
        axes.axvline(chance, color=GREY, linewidth=1, linestyle=":", zorder=1)
        _backbone_axis(axes, [backbone for backbone, _ in rows])
        direction = "higher" if rows[0][1].higher_is_better else "lower"
        axes.set_xlabel(
            f"{pretty(rows[0][1].name)} on {_short(data, 28)} ({direction} separates better; dotted: chance)"
        )
        handles = [drawn[family] for family in styles if family in drawn]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(4, len(handles)), fontsize=9, columnspacing=1.2
        )
    return figure


def overfitting(results: Sequence[BackboneResult]) -> Figure:
    """AUC on train, validation, test and unseen data of every fine-tuned backbone, with 95 % intervals.

    Mean over seeds; small dots are the seeds. Best on test on top. Raises ValueError when nothing was fine-tuned.
    """
    names = detection_names(results)
    rows = [backbone for backbone in results if any(detection_scores(backbone, name) for name in names)]
    if not rows:
        raise ValueError("no backbone was fine-tuned")
    rows = sorted(rows, key=lambda b: -(score.value if (score := over_seeds(detection_scores(b, "test"))) else 0))
    colours = (GREY, SKY, BLUE, VERMILLION, ORANGE, PURPLE, GREEN, BLACK)
    step = 0.8 / len(names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + (0.22 + 0.13 * len(names)) * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for i, name in enumerate(names):
            style = {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)]}
            for y, backbone in enumerate(rows):
                seeds = detection_scores(backbone, name)
                height = y - 0.4 + (i + 0.5) * step
                if mean := over_seeds(seeds):
                    artist = _interval(axes, height, mean, markersize=5.5, label=_short(name, 28), **style)
                if len(seeds) > 1:
                    axes.plot(
                        [seed.value for seed in seeds],
                        [height] * len(seeds),
                        ".",
                        color=BLACK,
                        markersize=2.5,
                        zorder=5,
                    )
            handles.append(artist)
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color="#e4e4e4", linewidth=0.8, zorder=0)
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":", zorder=1)
        _backbone_axis(axes, rows)
        axes.set_xlabel("AUC after fine-tuning (dotted: chance)")
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(6, len(handles)), fontsize=9, columnspacing=1.2
        )
    return figure


def relation(results: Sequence[BackboneResult], data: str, outcomes: Sequence[str]) -> Figure:
    """Headline separability on ``data`` against AUC after fine-tuning, one panel per outcome, one point per backbone.

    Controls are hollow and take no part in the relation. Raises ValueError when no backbone has both numbers.
    """
    rows = [b for b in by_headline(results, data) if headline_score(b, data) and b.runs]
    if not rows:
        raise ValueError("no backbone has a separability score and a fine-tuned AUC")
    styles = _family_styles(results)
    most = 4  # panels in a row
    columns = min(most, len(outcomes))
    lines = math.ceil(len(outcomes) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(2.6 + 2.9 * columns, max(0.9 + 3 * lines, 0.8 + 0.22 * len(rows))), layout="constrained"
        )
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axes in grid.flat[len(outcomes) :]:
            axes.set_visible(False)
        handles = []
        for axes, outcome in zip(grid.flat, outcomes, strict=False):
            points = [
                _cross(axes, number, backbone, headline_score(backbone, data), score, styles[backbone.kind])
                for number, backbone in enumerate(rows, 1)
                if (score := over_seeds(detection_scores(backbone, outcome)))
            ]
            handles = max(handles, points, key=len)
            axes.set(xlabel=f"{pretty(headline_score(rows[0], data).name)} on {_short(data, 16)}, frozen")
            axes.set_ylabel(f"AUC on {_short(outcome, 20)}, fine-tuned")
            axes.grid(color="#e4e4e4", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.legend(handles=handles, loc="outside right upper", fontsize=8.5, handletextpad=0.3)
    return figure


def _cross(axes: Axes, number: int, backbone: BackboneResult, x: Score, y: Score, style: tuple[str, str]) -> Any:
    """A numbered point with both intervals; its number is in the legend too."""
    colour, marker = style
    for score, line in ((x, lambda ends: (ends, (y.value, y.value))), (y, lambda ends: ((x.value, x.value), ends))):
        if math.isfinite(score.low + score.high):
            axes.plot(*line((score.low, score.high)), color=colour, linewidth=1, alpha=0.45, zorder=1)
    face = "white" if backbone.is_control else colour
    label = f"{number}  {_short(backbone.name, 28)}"
    [dot] = axes.plot(
        x.value, y.value, linestyle="", marker=marker, color=colour, markerfacecolor=face, markersize=7, label=label
    )
    axes.annotate(str(number), (x.value, y.value), (5, 4), textcoords="offset points", fontsize=8.5)
    return dot


def learning_curves(results: Sequence[BackboneResult]) -> Figure:
    """Loss and AUC over optimiser steps, one row per backbone, one line per seed and split.

    Reads the rows of metrics.jsonl: ``step``, ``split`` (train, validation) and numbers; those whose name ends in
    ``loss`` are drawn on the left and those that end in ``auc`` on the right. The dotted line is the selected step.
    Raises ValueError when there are no curves.
    """
    rows = [backbone for backbone in results if any(run.curves for run in backbone.runs)]
    if not rows:
        raise ValueError("no run has learning curves")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.7 + 1.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), 2, squeeze=False, sharex="row")
        handles: dict[str, Any] = {}
        for (left, right), backbone in zip(grid, rows, strict=True):
            for run in backbone.runs:
                for name, (steps, values) in _series(run.curves).items():
                    split = "validation" if "val" in name.lower() else "train"
                    colour, line = (VERMILLION, "o-") if split == "validation" else (BLUE, "-")
                    axes = left if name.lower().endswith("loss") else right
                    [handles[split]] = axes.plot(
                        steps, values, line, color=colour, lw=1.2, ms=3, alpha=0.9, label=split
                    )
                for axes in (left, right):
                    axes.axvline(run.selected_step, color=GREY, linestyle=":", linewidth=1)
            left.set_title(_short(backbone.name, 48), loc="left")
            left.set_ylabel("loss")
            right.set_ylabel("AUC")
        for axes in grid[-1]:
            axes.set_xlabel("optimiser step")
        figure.legend(
            handles=[handles[name] for name in sorted(handles)], loc="outside upper right", ncols=2, fontsize=9
        )
    return figure


def _series(curves: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """``split/name`` → (steps, values) of the losses and AUCs among the rows."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in curves:
        for name, value in row.items():
            if name.lower().endswith(("loss", "auc")) and value is not None:
                steps, values = series.setdefault(f"{row.get('split', '')}/{name}", ([], []))
                steps.append(row["step"])
                values.append(value)
    return series


def _interval(axes: Axes, y: float, score: Score, **style: Any) -> Any:
    """A dot with its interval as a horizontal bar; the dot alone where no interval is defined."""
    ends = (score.low, score.high) if math.isfinite(score.low + score.high) else (score.value, score.value)
    axes.plot(ends, (y, y), color=style["color"], linewidth=1.8, solid_capstyle="butt", zorder=2)
    [dot] = axes.plot(score.value, y, linestyle="", zorder=3, **{"markersize": 7, **style})
    return dot


def _backbone_axis(axes: Axes, backbones: Sequence[BackboneResult]) -> None:
    """Names on the vertical axis, the first on top; controls in grey italics."""
    axes.set_yticks(range(len(backbones)), [_short(backbone.name, 34) for backbone in backbones])
    axes.set_ylim(len(backbones) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for text, backbone in zip(axes.get_yticklabels(), backbones, strict=True):
        if backbone.is_control:
            text.set(style="italic", color=GREY)


def _family_styles(results: Sequence[BackboneResult]) -> dict[str, tuple[str, str]]:
    """Kind → (colour, marker); the pair is unique for up to 56 families. Controls are grey."""
    families = sorted({backbone.family for backbone in results if not backbone.is_control})
    styles = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(families)}
    return {**styles, "random control": (GREY, "o"), CONTROL: (GREY, "D")}


def _short(text: str, width: int) -> str:
    """Text within ``width`` printable characters, its dollar signs escaped: names are never mathematics."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    text = text if len(text) <= width else f"{text[: width - 8]}…{text[-7:]}"
    return text.replace("$", r"\$")
