import dataclasses
import json
import math

import numpy as np
import pytest

from evaluation.prediction import Predictor, predict
from evaluation.relation import Relation, backbones_per_side, weighted_kendall
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
    assert first.p_holm >= first.relations[0].p


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


def test_backbones_per_side_by_hand():
    # Pooled variance 1, difference 1: 2 (1.960 + 0.8416)² = 15.7.
    assert backbones_per_side([1, 2, 3], [0, 1, 2]) == 16
    assert backbones_per_side([1, 2], [1, 2]) is None  # no difference to show
    assert backbones_per_side([1], [2]) is None  # no spread to go by


def test_a_verdict_outlasts_the_correction():
    score = Score("weighted_kendall", 0.8, 0.1, 0.95, True, 6, "")
    tau = Relation(score, 0.01, 0.6, "supported")
    for p_holm, expected in ((0.04, "supported"), (0.2, "undecided")):
        assert Predictor("knn_auc", "train", "test", [tau], p_holm).verdict == expected
    assert Predictor("number of parameters", "", "test", [tau], float("nan")).verdict == "supported"
    against = Relation(score, 1.0, 0.6, "not supported")
    assert Predictor("knn_auc", "train", "test", [against], 1.0).verdict == "not supported"
