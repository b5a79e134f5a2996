import dataclasses
import json
import math

import numpy as np
import pytest

from evaluation.coefficients import weighted_kendall
from evaluation.prediction import Predictor, predict
from evaluation.relation import Relation
from evaluation.score import Score


def test_relations_meet_the_right_outcomes(benchmark):
    found = predict(benchmark(9).backbones)
    assert found.too_few == ""
    pairs = {(each.data, each.outcome) for each in found.predictors}
    # A score on train against every outcome, a score on an unseen set against that set alone, and the baselines.
    assert pairs == {("train", "test"), ("train", "resample"), ("resample", "resample"), ("", "test"), ("", "resample")}
    assert found.ceilings == {}  # one seed tells nothing of its noise
    first = found.predictors[0]
    assert first.name == "knn_auc"
    assert first.relations[0].score.value == pytest.approx(1)
    assert first.is_declared
    assert math.isnan(first.p_holm)


def test_the_headline_is_tested_by_itself_and_all_other_scores_together(benchmark):
    found = [each for each in predict(benchmark(9).backbones).predictors if each.outcome == "resample"]
    assert [(each.name, each.data) for each in found if each.is_declared] == [("knn_auc", "train")]
    others = [each for each in found if each.data and not each.is_declared]
    assert len(others) == 11  # six more scores on train and five on the unseen set, its headline among them
    for (
        each
    ) in others:  # All are perfect, with the least p that 9,999 random orders give: Holm multiplies by their number.
        assert each.relations[0].p == pytest.approx(1e-4)
        assert each.p_holm == pytest.approx(11e-4)
    assert all(math.isnan(each.p_holm) for each in found if not each.data)


def test_seeds_give_a_ceiling_and_an_interval(benchmark):
    backbones = benchmark(9, seeds=(0, 1)).backbones
    # Half of the backbones lose their second seed: those with several give the noise of all.
    backbones = [dataclasses.replace(b, runs=b.runs[: 1 + i % 2]) for i, b in enumerate(backbones)]
    found = predict(backbones)
    assert 0.5 < found.ceilings["test"] < 1
    for each in found.predictors:
        if math.isfinite(each.relations[0].score.value):
            low, high = each.relations[0].seeds
            assert -1 <= low <= high <= 1
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_missing_baselines_are_named_with_the_reason(benchmark):
    backbones = [dataclasses.replace(b, imagenet_top1=70.0 + i) for i, b in enumerate(benchmark(9).backbones)]
    assert predict(backbones).missing_baselines == {"test": [], "resample": []}
    few = [dataclasses.replace(b, imagenet_top1=math.nan) if i > 1 else b for i, b in enumerate(backbones)]
    expected = "ImageNet top-1 (known for 2 of 8 backbones, a relation needs 4)"
    assert predict(few).missing_baselines == {"test": [expected], "resample": [expected]}
    alone = predict(benchmark(9, unseen=()).backbones)
    assert any(each.startswith("mean rank on other data sets (known for 0") for each in alone.missing_baselines["test"])


def test_a_score_that_is_better_when_lower_is_turned(benchmark):
    found = {(p.name, p.data, p.outcome): p for p in predict(benchmark(9).backbones).predictors}
    assert found["davies_bouldin", "train", "test"].relations[0].score.value == pytest.approx(1)


def test_baselines_look_at_no_feature(benchmark):
    backbones = [
        dataclasses.replace(each, imagenet_top1=top1)
        for each, top1 in zip(benchmark(9).backbones, (60, 70, 80, 90, math.nan, 50, 40, 30, 20), strict=True)
    ]
    found = {(p.name, p.outcome): p.relations[0].score for p in predict(backbones).predictors if not p.data}
    # The synthetic AUC on test and on the unseen set rise together over backbones.
    assert found["mean rank on other data sets", "test"].value == pytest.approx(1)
    assert found["mean rank on other data sets", "resample"].value == pytest.approx(1)
    assert found["ImageNet top-1", "test"].n == 7  # one is not known, one is the control
    assert found["number of features", "test"].n == 8


def test_result_is_json(benchmark):
    for count in (2, 9):
        assert json.dumps(predict(benchmark(count).backbones).to_dict(), allow_nan=False)


def test_nothing_was_measured():
    found = predict([])
    assert found.too_few.startswith("too few: 0")
    assert (found.claims, found.families, found.predictors) == ([], {}, [])


def test_weighted_tau_of_many_at_once():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 7)).round(1), rng.normal(size=7).round(1)
    assert weighted_kendall(x, y) == pytest.approx([float(weighted_kendall(row, y)) for row in x])
    assert np.isnan(weighted_kendall(np.ones(7), y))


def test_a_verdict_outlasts_the_correction():
    score = Score("weighted_kendall", 0.8, 0.1, 0.95, True, 6, "")
    tau = Relation(score, 0.01, 0.6, "supported")
    for p_holm, expected in ((0.04, "supported"), (0.2, "undecided")):
        assert Predictor("silhouette", "train", "test", [tau], False, p_holm).verdict == expected
    nothing = float("nan")
    assert Predictor("knn_auc", "train", "test", [tau], True, nothing).verdict == "supported"
    weak = dataclasses.replace(tau, p=0.06)
    assert Predictor("knn_auc", "train", "test", [weak], True, nothing).verdict == "undecided"
    assert Predictor("number of parameters", "", "test", [tau], False, nothing).verdict == "supported"
    against = Relation(score, 1.0, 0.6, "not supported")
    assert Predictor("silhouette", "train", "test", [against], False, 1.0).verdict == "not supported"
