import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from evaluation.bootstrap import Sampled
from evaluation.dose import dose_response
from evaluation.page_tables import dose_table, full_dose_table, null_table, score_table
from evaluation.report import figures_of
from evaluation.results_page import Page, results_page
from evaluation.score import Score

FIGURES = [
    "separability-on-train", "separability-on-resample", "layers-on-train", "overfitting",
    "separability-and-fine-tuning", "robustness", "reliability", "learning-curves",
]  # fmt: skip
PICTURES = ["dinov2_vits14-pca", "dinov2_vits14-t-sne"]


def curve(values, p, name="knn_auc_k20"):
    """Over severities 0, 0.5 and 1, every interval 0.06 wide."""
    draws = [value + 0.01 * np.random.default_rng(place).normal(size=50) for place, value in enumerate(values)]
    scores = [Score(name, value, value - 0.03, value + 0.03, True, 60, "") for value in values]
    return dose_response([0, 0.5, 1], [Sampled(*pair) for pair in zip(scores, draws, strict=True)], chance=0.5, p=p)


DOSES = {
    "mae_vitb16": {"blend": [curve([0.5, 0.52, 0.9], 0.4)]},
    "dinov2_vits14": {"blend": [curve([0.5, 0.6, 0.8], 0.2), curve([0.5, 0.5, 0.5], 0.6, "linear_probe_auc")]},
    "dinov2_vits14-random": {"blend": [curve([0.58, 0.5, 0.5], 0.01)]},
}


@pytest.fixture(scope="module")
def report(benchmark):
    """With AUC on parts of the test set."""
    made = benchmark(9, seeds=(0, 1))
    slices = {"test": {"per video": [Score("auc", 0.77, 0.7, 0.8, True, 50, "")]}}
    backbones = [
        dataclasses.replace(each, runs=[dataclasses.replace(run, slices=slices) for run in each.runs])
        for each in made.backbones
    ]
    return dataclasses.replace(made, backbones=backbones)


@pytest.fixture(scope="module")
def page(report):
    figures, pictures = ([Path("RESULTS", f"{name}.png") for name in names] for names in (FIGURES, PICTURES))
    return results_page(report, Page(["make benchmark-real", "then"], "abc1234", figures, pictures, DOSES))


def tables(text):
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def test_page_has_tables_verdicts_and_limits(page):
    for words in (
        "# Results: Quickstart: four backbones", "$ make benchmark-real\n$ then\n", "This page was written by commit "
        "`abc1234`", "an earlier commit or another machine may have computed", "Three claims of the literature",
        "Self-supervised separates better", "*dinov2_vits14-random*", "*mean rank on other data sets*",
        "What may not be concluded", "undecided", "chosen after looking at these very numbers",
    ):  # fmt: skip
        assert words in page
    for lines in tables(page):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(bars) == 1
        assert len(lines) > 2  # no table without a row


def test_headline_comes_first_and_the_long_tables_are_folded(page):
    assert page.index("## The headline") < page.index("## How it was made") < page.index("## Separability on train")
    folded = "\n".join(re.findall(r"<details>\n(.*?)</details>", page, re.DOTALL))
    titles = re.findall(r"<summary>(.*?)</summary>\n\n", page)
    assert page.count("<details>") == page.count("</details>") == len(titles)
    for title in (
        "Data", "Which backbone separates better than which", "All scores", "Their permutation nulls",
        "Transferability scores", "By method", "By treatment of the features", "AP ↑", "EER ↓", "balanced accuracy ↑",
        "AUC on parts of test", "Runs", "Means of the pretext families", "All scores: least severity told and slope",
    ):  # fmt: skip
        assert title in titles
    open_tables = tables(re.sub(r"<details>\n.*?</details>", "", page, flags=re.DOTALL))
    # headline, treatments, doses, AUC, gaps, two relations, claims
    assert len(open_tables) == 8
    assert "0.710 [0.670, 0.758] p = 0.005" in folded


def test_the_page_names_what_varied_and_nothing_else(report):
    one = report.backbones[0]
    panel = one.panels["train"]
    (sharpness,) = panel.confounds
    found = [dataclasses.replace(sharpness, name=name) for name in ("brightness", "sharpness", "all of them")]
    backbones = [dataclasses.replace(one, panels={"train": dataclasses.replace(panel, confounds=found)})]
    text = results_page(dataclasses.replace(report, backbones=backbones), Page([], ""))
    assert "What varied here, together (brightness, sharpness): how well" in text
    assert "resolution" not in text


def test_the_page_says_how_far_treatments_move_the_headline(page):
    part = page.split("## Does the treatment of the features matter?")[1].split("##")[0]
    # Eight backbones on one set; both treatments have the same level in this benchmark. Mean of the levels: .136.
    assert "| centred | 8 | 0.636 | – | – | – |" in part
    assert "| whitened | 8 | 0.636 | +0.000 | 0.000 | +0.000 " in part


def test_every_figure_and_picture_is_on_the_page_once(report, page):
    for name in [*FIGURES, *PICTURES]:
        assert page.count(f"](RESULTS/{name}.png)") == 1
    titles = {title.lower().replace(" ", "-") for title, *_ in figures_of(report)}
    assert titles <= set(FIGURES)


def test_without_runs_doses_and_pictures_the_page_says_what_there_is(benchmark):
    text = results_page(benchmark(3), Page([], ""))
    assert "No relation: too few" in text
    assert "How strong must a forgery be" not in text
    assert "Pictures of the feature spaces" not in text


def test_scores_are_rows_and_backbones_columns(report):
    table = score_table(report, "train")
    assert [name for name, _ in table.columns[:3]] == [
        "Score",
        "dinov2_vits14",
        "vit_small_patch14_reg4_dinov2.lvd142m",
    ]
    assert table.columns[-1] == ("dinov2_vits14-random", "control")
    assert [row[0].text for row in table.rows] == [
        "kNN AUC ↑", "silhouette ↑", "kmeans AMI k8 ↑", "Davies Bouldin ↓", "linear probe AUC ↑, fitted on labels",
    ]  # fmt: skip
    assert table.rows[3][1].text == "2.790"  # 3 - 0.21
    nulls = null_table(report, "train")
    assert [[cell.text for cell in row[:2]] for row in nulls.rows] == [["kNN AUC", "0.500, 0.560"]]
    assert null_table(report, "resample").rows == []


def test_doses_are_sorted_by_the_least_severity_that_is_told(report):
    table = dose_table(report, DOSES)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[1] for row in rows] == ["dinov2_vits14", "mae_vitb16", "dinov2_vits14-random"]
    assert [row[3] for row in rows] == ["0.5", "1", "none"]
    assert rows[0][4] == "+0.300"  # (0.8 - 0.5) over a severity of 1
    assert [row[6] for row in rows] == ["yes", "yes", "NO"]
    assert table.rows[0][5].seeds == "p = 0.200"
    assert table.controls == [False, False, True]
    full = full_dose_table(report, DOSES)
    assert [name for name, _ in full.columns[2:]] == ["kNN AUC k20", "linear probe AUC"]
    assert [row[3].interval for row in table.rows[:2]] == ["[0.5, 0.5]", "[0.5, 1]"]
    cells = [[cell.text for cell in row[2:]] for row in full.rows]
    assert cells[0][0] == "0.5 [0.5, 0.5] (slope +0.300)"
    assert [each[1] for each in cells[1:]] == ["–", "–"]
    assert cells[1][0] == "none [none, none] (slope -0.080; severity 0 is not within chance)"
    assert cells[2][0] == "1 [0.5, 1] (slope +0.400)"
