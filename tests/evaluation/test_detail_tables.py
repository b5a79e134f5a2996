import dataclasses
import math

import pytest

from evaluation.detail_tables import (
    claim_table,
    difference_table,
    family_table,
    method_table,
    relation_note,
    relation_outcomes,
    relation_table,
    transferability_table,
    treatment_moves,
    treatment_table,
)
from evaluation.inversion import backbones_needed
from evaluation.score import Score
from evaluation.tables import headline_table, separability_table


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_p_of_the_null_stands_beside_the_scores(benchmark):
    report = benchmark()
    assert headline_table(report).rows[0][3].seeds == "p = 0.005"
    assert "199 permutations that respect groups reach 0.560 once in twenty" in headline_table(report).rows[0][3].hint
    first, second = separability_table(report, "train").rows[0][1:3]
    assert (first.seeds, second.seeds) == ("p = 0.005", "")  # the second score has no null


def test_differences_are_antisymmetric_and_marked(benchmark):
    table = difference_table(benchmark(), "train")
    assert [row[0].text for row in table.rows] == [
        "1 dinov2_vits14",
        "2 mae_vitb16",
        "3 imagenet_efficientnet_lite0",
        "4 dinov2_vits14-random",
    ]
    assert [name for name, _ in table.columns[1:]] == ["1", "2", "3", "4"]
    cells = texts(table)
    assert cells[0][1:3] == ["", "▲ +0.050"]  # 0.71 - 0.66
    assert cells[1][1] == "▼ -0.050"
    assert table.caption.startswith("6 of 6 pairs differ on train")


def test_a_panel_on_other_samples_is_left_out(benchmark):
    report = benchmark()
    odd = report.backbones[0].panels["train"]
    odd = dataclasses.replace(odd, scores=[dataclasses.replace(odd.scores[0], n=5), *odd.scores[1:]])
    backbones = [dataclasses.replace(report.backbones[0], panels={"train": odd}), *report.backbones[1:]]
    table = difference_table(dataclasses.replace(report, backbones=backbones), "train")
    assert table.rows[0][0].text == "1 mae_vitb16"
    assert len(table.rows) == 3


def test_nothing_measured_gives_no_rows(benchmark):
    for make in (difference_table, method_table, treatment_table, transferability_table):
        assert make(benchmark(), "resample").rows == []


def test_named_tables_show_every_column(benchmark):
    report = benchmark()
    assert [name for name, _ in method_table(report, "train").columns[1:]] == ["self blend", "swap"]
    assert texts(method_table(report, "train"))[0] == ["dinov2_vits14", "0.668", "0.752"]  # 0.5 + 0.21 * 0.8 and 1.2
    assert [name for name, _ in treatment_table(report, "train").columns[1:]] == ["centred", "whitened"]
    assert texts(transferability_table(report, "train"))[0][1:] == ["-0.790", "0.210"]


def test_moves_of_treatments_by_hand(benchmark):
    """Headlines of centred and whitened: .6 and .7 on one set, .5 and .46 on the other, of one backbone of two."""

    def measured(backbone, **sets):
        panels = {
            data: dataclasses.replace(
                backbone.panels["train"],
                by_treatment={
                    name: Score("knn_auc", value, value, value, True, 9, "")
                    for name, value in zip(("centred", "whitened"), values, strict=True)
                },
            )
            for data, values in sets.items()
        }
        return dataclasses.replace(backbone, panels=panels)

    report = benchmark()
    one, other, *_, control = report.backbones
    found = [measured(one, train=(0.6, 0.7), web=(0.5, 0.46)), measured(other, train=(0.7, math.nan))]
    table = treatment_moves(dataclasses.replace(report, backbones=[*found, measured(control, train=(0.5, 0.9))]))
    # Three pairs are centred, two of them whitened: +.1 and -.04; the control counts for nothing.
    assert texts(table) == [
        ["centred", "3", "0.600", "–", "–", "–"],
        ["whitened", "2", "0.580", "+0.030", "0.070", "+0.100"],
    ]
    assert table.rows[1][5].seeds == f"{one.name} on train"
    assert treatment_moves(dataclasses.replace(report, backbones=[])).rows == []


def test_relation_has_a_row_per_score_and_italic_baselines(benchmark):
    report = benchmark(9, seeds=(0, 1))
    assert relation_outcomes(report) == ["test", "resample"]
    table = relation_table(report, "test")
    # five scores and two of transferability on train; all backbones are of one size, which has no order
    baselines = ["number of parameters", "number of features", "mean rank on other data sets"]
    assert [row[0].text for row in table.rows][-3:] == baselines  # ImageNet top-1 is not known of any of them
    assert table.controls == [False] * 7 + [True] * 3
    assert texts(table)[0][0] == "kNN AUC"
    assert texts(table)[0][2] == "1.000"  # the AUC on test is 0.68 + level, the score 0.5 + level
    assert texts(table)[-2][2] == "–"
    note = relation_note(report, "test")
    assert f"a true correlation of 0.5 would need {backbones_needed(0.5)} backbones to be supported" in note
    assert "With 8 backbones, chance alone reaches a weighted tau of" in note
    assert "kNN AUC on train is the one score declared in advance, whatever the data, and is tested by itself" in note
    assert "itself; the 6 other scores are corrected" in note
    # Levels vary by .057, two seeds by .014, and so their mean by .01.
    assert "allows a perfect predictor a weighted tau of 0.90" in note
    assert "missing: ImageNet top-1 (known for 0 of 8 backbones, a relation needs 4)" in note
    assert table.rows[0][2].seeds.startswith("over seeds [0.")
    assert [row[4].text for row in table.rows[:2]] == ["declared", "< 0.001"]
    assert relation_table(benchmark(9), "test").rows[0][2].seeds == ""  # one seed


def test_claims_have_verdicts_and_families_means(benchmark):
    claims = claim_table(benchmark(9))
    by_claim = {(row[0].text, row[1].text): row for row in claims.rows}
    best = "minus the best other family"
    row = by_claim["Face recognition is closest", f"separability on train: face-recognition {best} (self-supervised)"]
    assert (row[2].text, row[4].interval) == ("undecided", "one backbone on a side")
    assert row[3].text == "needs at least two backbones of face-recognition"
    together = by_claim["Self-supervised wins after fine-tuning", "all measures together"]
    assert together[3].text == "0 of 2 measures support it; needs at least two backbones of language-supervised"
    ours = by_claim[
        "Self-supervised wins after fine-tuning",
        f"fine-tuned AUC on test: self-supervised {best} (language-supervised)",
    ]
    # levels .21, .16, .19 against .18: 0.1867 - 0.18
    assert (ours[2].text, ours[4].text) == ("undecided", "+0.007")
    gap = "… and overfits more, by the gap train − validation alone"
    ours = by_claim[gap, "AUC gap train − validation: self-supervised minus all others"]
    # .28 less the level, against .12, .08, .18, .10, .05: 0.106 - 0.1867
    assert (ours[2].text, ours[4].text) == ("not supported", "-0.081")
    family = {row[0].text: row for row in family_table(benchmark(9)).rows}["self-supervised"]
    assert (family[1].text, family[1].seeds) == ("0.687", "3 backbones")


def test_controls_take_no_part_in_relations(benchmark):
    report = benchmark(9)
    assert len(report.prediction.backbones) == 8
    assert not any(name.endswith("-random") for name in report.prediction.backbones)


@pytest.mark.parametrize("count", [2, 4])
def test_too_few_backbones_give_no_relation(benchmark, count):
    report = benchmark(count)
    assert report.prediction.predictors == []
    assert report.prediction.too_few.startswith("too few")
