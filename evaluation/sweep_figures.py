"""Figures of a sweep. Every function returns a matplotlib Figure and touches no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from evaluation.figures import BLUE, COLOURS, GREY, MARKERS, STYLE, VERMILLION
from evaluation.overfitting_results import TrialResult, backbones, clean, finished, outcome
from evaluation.overfitting_scaling import PowerLaw
from evaluation.results import find
from evaluation.score import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 12
MOST_INTERVALS = 60
"""Dots with intervals in a scatter; with more of them it would be bars alone."""
COLUMNS = 3


def surface(trials: Sequence[TrialResult], x: str, y: str, name: str) -> Figure:
    """Mean gap at the last checkpoint, or mean ``AUC on …``, over two hyperparameters, a panel per backbone; trials
    that differ in others are averaged, and each cell says its mean and, above one, its number of trials. One with more
    than eight values is cut into four parts with equally many trials. Trials with flipped labels are left out."""
    trials = [each for each in clean(trials) if math.isfinite(outcome(each, name))]
    names = _names(trials, f"no finished trial has {name!r}")
    columns, rows = _parts([each.values[x] for each in trials]), _parts([each.values[y] for each in trials])
    tables = {}
    for backbone in names:
        cells = [[[] for _ in columns[0]] for _ in rows[0]]
        for each, column, row in zip(trials, columns[1], rows[1], strict=True):
            if each.backbone == backbone:
                cells[row][column].append(outcome(each, name))
        tables[backbone] = cells
    # From the value that says nothing: no gap, or an AUC of a coin.
    middle = 0.5 if name.startswith("AUC on ") else 0.0
    largest = max(abs(outcome(each, name) - middle) for each in trials) or 1.0
    colours = {"cmap": "PuOr" if middle else "RdBu_r", "vmin": middle - largest, "vmax": middle + largest}
    with matplotlib.rc_context(STYLE):
        height = 1.3 + 0.45 * len(rows[0])
        figure, grid = _grid(len(names), max(height, 2.4))
        for axes, backbone in zip(grid, names, strict=False):
            means = np.array([[np.mean(cell) if cell else np.nan for cell in row] for row in tables[backbone]])
            image = axes.imshow(means, aspect="auto", origin="lower", **colours)
            for (row, column), mean in np.ndenumerate(means):
                count = len(tables[backbone][row][column])
                text = "–" if not count else f"{mean:.3f}" + (f"\n({count})" if count > 1 else "")
                colour = "white" if abs(mean - middle) > 0.65 * largest else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
            axes.set_xticks(range(len(columns[0])), columns[0], rotation=30, ha="right")
            axes.set_yticks(range(len(rows[0])), rows[0])
            axes.set(title=backbone, xlabel=x, ylabel=y)
        figure.colorbar(image, ax=list(grid), label=name if middle else f"AUC gap {name}", shrink=0.9)
    return figure


def validation_versus_unseen(trials: Sequence[TrialResult], unseen: str) -> Figure:
    """AUC on validation against AUC on an unseen data set, a dot per trial, with 95 % intervals where there are few; on
    the dotted line both are equal. At equal validation AUC a lower dot is a backbone that transfers less."""
    trials = [each for each in finished(trials) if unseen in each.detection]
    names = _names(trials, f"no finished trial was scored on {unseen!r}")
    few = len(trials) <= MOST_INTERVALS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 5.2), layout="constrained")
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            scores = [(each.detection["validation"], each.detection[unseen]) for each in finished(trials, name)]
            x, y = ([score.value for score in side] for side in zip(*scores, strict=True))
            errors = [_bars([pair[side] for pair in scores]) if few else None for side in (0, 1)]
            axes.errorbar(
                x, y, xerr=errors[0], yerr=errors[1], fmt=MARKERS[place % len(MARKERS)], lw=0.6,
                ms=6 if few else 3, alpha=0.85 if few else 0.5, color=COLOURS[place % len(COLOURS)], label=name,
            )  # fmt: skip
        low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot((low, high), (low, high), ":", color=GREY, lw=1, zorder=1)
        axes.set(xlabel="AUC on validation (selects)", ylabel=f"AUC on {unseen} (unseen)")
        axes.legend(fontsize=9)
    return figure


def overfitting_curves(trials: Sequence[TrialResult]) -> Figure:
    """Training (dashed, clean subset) and validation AUC over time; a triangle marks the point of first overfitting and
    a circle the selected checkpoint. At most twelve trials with true labels: those that overfit most by area."""
    trials = [each for each in clean(trials) if each.evaluations]
    _names(trials, "no finished trial has a curve")
    area = {each.run: outcome(each, "overfitting_area") for each in trials}
    shown = sorted(trials, key=lambda each: -area[each.run])[:MOST_CURVES]
    with matplotlib.rc_context(STYLE):
        figure, grid = _grid(len(shown), 2.5)
        for axes, each in zip(grid, shown, strict=False):
            _curve(axes, each)
        handles = [
            *grid[0].plot([], [], "--", color=BLUE, label="training"),
            *grid[0].plot([], [], "-", color=VERMILLION, label="validation"),
            *grid[0].plot([], [], "v", color="black", label="first overfitting"),
            *grid[0].plot([], [], "o", mfc="none", color=VERMILLION, label="selected"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9)
    return figure


def _curve(axes: Axes, trial: TrialResult) -> None:
    epoch = [row["epoch"] for row in trial.evaluations]
    train, validation = ([row[key] for row in trial.evaluations] for key in ("train/auc", "validation/auc"))
    axes.plot(epoch, train, "--", color=BLUE, lw=1.3)
    axes.plot(epoch, validation, "-", color=VERMILLION, lw=1.3)
    best = int(np.argmax(validation))
    axes.plot(epoch[best], validation[best], "o", mfc="none", color=VERMILLION)
    first = find(trial.curve, "first_overfit_epoch")
    if first and math.isfinite(first.value):
        place = epoch.index(first.value)
        axes.axvline(first.value, color=GREY, lw=0.8, ls=":")
        axes.plot(first.value, validation[place], "v", color="black", ms=6)
    values = ", ".join(f"{name}={_text(value)}" for name, value in trial.values.items())
    axes.set_title(f"{trial.backbone}\n{values}", fontsize=8)
    axes.set(xlabel="epoch", ylabel="AUC")


def learning_curves(curves: dict[str, dict[str, PowerLaw]]) -> Figure:
    """What falls with more training samples, a panel each and a colour per backbone: means over trials as dots, fitted
    power laws as lines; logarithmic axes. ``curves`` as of evaluation.overfitting_tables.learning_curves."""
    what = list(next(iter(curves.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(what) + 2.4, 3.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(what), squeeze=False).ravel(), what, strict=True):
            for place, (backbone, laws) in enumerate(curves.items()):
                colour, law = COLOURS[place % len(COLOURS)], laws[name]
                sizes, means = list(law.means), list(law.means.values())
                axes.plot(sizes, means, MARKERS[place % len(MARKERS)], color=colour, ms=5, label=backbone)
                if math.isfinite(law.scale):
                    axes.plot(sizes, [law(size) for size in sizes], color=colour, lw=1)
            axes.set(xscale="log", yscale="log", xlabel="training samples", title=name)
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            low, high = axes.get_ylim()
            if high > 5 * low:  # labels at 1, 2, 5, or they run into each other
                axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter(FormatStrFormatter("%.2g"))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def importance_bars(importances: dict[str, Sequence[Score]]) -> Figure:
    """Importance of each hyperparameter with its 95 % interval; a panel per outcome."""
    with matplotlib.rc_context(STYLE):
        most = max(len(scores) for scores in importances.values())
        figure, grid = _grid(len(importances), 1.2 + 0.3 * most)
        for axes, (name, scores) in zip(grid, importances.items(), strict=False):
            for place, score in enumerate(scores):
                axes.barh(place, score.value, color=BLUE, height=0.6)
                axes.plot((score.low, score.high), (place, place), color="black", lw=1.2)
            axes.set_yticks(range(len(scores)), [score.name for score in scores])
            axes.invert_yaxis()
            axes.axvline(0, color=GREY, lw=0.8)
            axes.set_title(name)
            axes.set_xlabel("rise of the error (AUC)")
    return figure


def _grid(panels: int, height: float) -> tuple[Figure, Any]:
    columns = min(COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(max(4.2, 3.1 * columns), height * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[panels:]:
        axes.set_visible(False)
    return figure, grid


def _names(trials: Sequence[TrialResult], missing: str) -> list[str]:
    if not trials:
        raise ValueError(missing)
    return backbones(trials)


def _bars(scores: Sequence[Score]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    finite = [math.isfinite(score.low + score.high) for score in scores]
    return [
        [max(0.0, score.value - score.low) if ok else 0.0 for score, ok in zip(scores, finite, strict=True)],
        [max(0.0, score.high - score.value) if ok else 0.0 for score, ok in zip(scores, finite, strict=True)],
    ]


def _parts(values: Sequence[Any]) -> tuple[list[str], list[int]]:
    """Labels of the parts of a hyperparameter's values, and the part of each."""
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    distinct = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    if numeric and len(distinct) > 8:
        parts = np.array_split(np.argsort(values, kind="stable"), 4)
        labels = [f"{_text(values[part[0]])} … {_text(values[part[-1]])}" for part in parts]
        part_of = {int(index): place for place, part in enumerate(parts) for index in part}
        return labels, [part_of[index] for index in range(len(values))]
    return [_text(value) for value in distinct], [distinct.index(value) for value in values]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
