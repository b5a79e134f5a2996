import dataclasses

import numpy as np
import pytest

from evaluation.bootstrap import Sampled
from evaluation.curves import dose_response as dose_figure
from evaluation.curves import layer_heatmap, reliability, robustness
from evaluation.dose import dose_response
from evaluation.report import save_figures
from evaluation.score import Score


def score(value, name="knn_auc_k20"):
    return Score(name, value, value - 0.03, value + 0.03, True, 100, "")


@pytest.fixture
def report(benchmark):
    """Backbones with 3, 5, 7 … layers, the best in the middle, and robustness curves."""
    made = benchmark(4)
    backbones = [
        dataclasses.replace(
            each,
            layers={"train": [score(0.6 - 0.02 * abs(i - number)) for i in range(2 * number + 3)]},
            robustness={"JPEG quality": [(0.0, score(0.8)), (90.0, score(0.7)), (10.0, score(0.6))]},
        )
        for number, each in enumerate(made.backbones)
    ]
    return dataclasses.replace(made, backbones=backbones)


def test_heat_map_has_a_cell_per_layer_and_names_every_backbone(report):
    figure = layer_heatmap(report.backbones, "train")
    axes = figure.axes[0]
    cells = sum(len(each.layers["train"]) for each in report.backbones)
    assert len(axes.texts) == cells
    assert len(axes.collections) == len(report.backbones)  # a row of cells each
    dots = [line for line in axes.lines if line.get_marker() == "."]
    low = sum(not each.low > 0.5 for backbone in report.backbones for each in backbone.layers["train"])
    assert len(dots) == low > 0
    assert {text.get_text() for text in axes.get_yticklabels()} == {each.name for each in report.backbones}
    with pytest.raises(ValueError, match="no backbone"):
        layer_heatmap(report.backbones, "elsewhere")


def test_dose_response_fills_what_is_told():
    rng = np.random.default_rng(0)
    values = [0.5, 0.52, 0.7, 0.9]
    results = [Sampled(score(value), value + 0.01 * rng.normal(size=50)) for value in values]
    curve = dose_response([0, 0.3, 0.6, 1], results, chance=0.5)
    assert curve.detectable == 0.6
    axes = dose_figure({"blend": [curve]}).axes[0]
    line, told = [each for each in axes.lines if each.get_marker() == "o"]
    assert line.get_ydata() == pytest.approx(values)
    assert list(told.get_xdata()) == [0.6, 1]


def test_robustness_has_a_panel_per_degradation(report):
    figure = robustness({each.name: each.robustness for each in report.backbones})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "90", "10"]
    assert len([line for line in axes.lines if len(line.get_xdata()) == 3]) == len(report.backbones)


def test_reliability_has_a_line_per_seed_beside_the_diagonal(benchmark):
    made = benchmark(3, seeds=(0, 1)).backbones
    curve = [(0.2, 0.3, 50), (0.8, 0.7, 50)]
    runs = [dataclasses.replace(run, reliability={"test": curve}) for run in made[0].runs]
    (axes,) = reliability([dataclasses.replace(made[0], runs=runs), *made[1:]], "test").axes
    assert len(axes.lines) == 3
    assert list(axes.lines[1].get_ydata()) == [0.3, 0.7]
    with pytest.raises(ValueError, match="no run"):
        reliability(made, "test")


def test_figures_are_saved_for_papers(report, tmp_path):
    figures, pictures = save_figures(report, tmp_path)
    names = [path.stem for path in figures]
    assert names[:3] == ["separability-on-train", "separability-on-resample", "layers-on-train"]
    assert "robustness" in names
    assert len({path.stem for path in pictures}) == 2 * len(report.backbones)  # PCA and t-SNE of each
    assert pictures[1] == tmp_path / "pictures" / "dinov2_vits14-train-resample-t-sne.png"
    for path in [*figures, *pictures]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
