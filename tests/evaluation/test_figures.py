import dataclasses
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from evaluation import figures


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def overlaps(axes) -> list[tuple[str, str]]:
    """Pairs of tick labels on the vertical axis whose boxes overlap."""
    labels = axes.get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    pairs = itertools.combinations(zip(labels, boxes, strict=True), 2)
    return [(a.get_text(), b.get_text()) for (a, one), (b, two) in pairs if one.overlaps(two)]


def inside(figure) -> bool:
    """Whether all that is drawn, with its labels, lies within the figure."""
    FigureCanvasAgg(figure).draw()  # runs the layout
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("draw", [figures.separability_forest, figures.overfitting, figures.learning_curves])
def test_labels_neither_overlap_nor_leave_the_figure(benchmark, draw, count):
    figure = draw(benchmark(count, seeds=(0, 1), unseen=("resample", "celebdf_v2")).backbones)
    assert inside(figure)
    assert all(not overlaps(axes) for axes in figure.axes)
    assert png(figure).startswith(b"\x89PNG")


def test_forest_is_sorted_with_its_intervals_and_marks_controls(benchmark):
    figure = figures.separability_forest(benchmark().backbones)
    [axes] = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["dinov2_vits14", "mae_vitb16", "imagenet_efficientnet_lite0", "dinov2_vits14-random"]
    assert axes.yaxis_inverted()  # the first is on top
    bars = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert bars[0] == pytest.approx([0.67, 0.758])  # 0.71 - 0.04 and 0.71 + 1.2 * 0.04
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [dot.get_markerfacecolor() for dot in dots] == [figures.BLUE, figures.BLUE, figures.VERMILLION, "white"]
    assert {"self-supervised", "supervised", "random control"} <= set(words(figure))


def test_overfitting_shows_every_set_and_every_seed(benchmark):
    figure = figures.overfitting(benchmark(2, seeds=(0, 1, 2)).backbones)
    [axes] = figure.axes
    assert {"train", "validation", "test", "resample"} <= set(words(figure))
    seeds = [sorted(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    assert len(seeds) == 8  # two backbones, four sets
    assert any(values == pytest.approx([0.85, 0.87, 0.89]) for values in seeds)  # dinov2 on test


def test_learning_curves_read_both_ways_of_naming_splits(benchmark):
    report = benchmark(2)
    rows = report.backbones[0].runs[0].curves
    slashed = [
        {f"{row['split']}/{key}": value for key, value in row.items() if key in ("loss", "auc")} | {"step": row["step"]}
        for row in rows
    ]
    report.backbones[0].runs[0].curves[:] = slashed
    figure = figures.learning_curves(report.backbones)
    first, second = (
        [line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 2]
        for axes in (figure.axes[0], figure.axes[2])
    )
    assert [len(values) for values in first] == [20, 4]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_embedding_has_a_panel_for_each_factor_and_folds_rare_names():
    rng = np.random.default_rng(0)
    method = np.repeat([f"method-{i:02}" for i in range(12)], 5)
    figure = figures.embedding(rng.normal(size=(60, 2)), np.arange(60) % 2, method, ["d"] * 60, "x_$y$, PCA")
    assert inside(figure)
    shown = words(figure)
    assert {"by label", "by method", "by dataset", "real", "fake", "other (6)", r"x_\$y\$, PCA, n = 60"} <= set(shown)
    assert sum(word.startswith("method-") for word in shown) == 6
    assert all(sum(len(c.get_offsets()) for c in axes.collections) >= 60 for axes in figure.axes)


def test_equal_input_gives_equal_bytes(benchmark):
    report = benchmark()
    assert png(figures.separability_forest(report.backbones)) == png(figures.separability_forest(report.backbones))


def test_colours_and_markers_tell_many_families_apart(benchmark):
    one = benchmark().backbones[0]
    many = [dataclasses.replace(one, name=f"b{i}", family=f"family {i}") for i in range(20)]
    styles = figures._family_styles(many)
    assert len(set(styles.values())) == 22  # and two kinds of controls


def test_nothing_to_draw_says_so(benchmark):
    empty = [dataclasses.replace(b, runs=[], separability={}) for b in benchmark().backbones]
    for draw, message in (
        (figures.separability_forest, "separability score"),
        (figures.overfitting, "fine-tuned"),
        (figures.learning_curves, "learning curves"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(empty)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        figures.embedding(np.zeros((3, 3)), [0, 1, 0], ["a"] * 3, ["d"] * 3, "t")


def test_pyplot_is_not_used():
    code = "import sys; import evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
