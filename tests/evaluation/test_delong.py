import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.delong import delong
from evaluation.detection import detection


def standard_error(score):
    """Back from the interval on the logit scale."""
    width = (math.log(score.high / (1 - score.high)) - math.log(score.low / (1 - score.low))) / 2
    return width / 1.959964 * score.value * (1 - score.value)


def test_independent_samples_by_the_definition_of_delong():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 150)
    logit = (label + rng.normal(size=150)).round(1)
    fakes, reals = logit[label == 1], logit[label == 0]
    wins = (fakes[:, None] > reals) + (fakes[:, None] == reals) / 2
    expected = np.sqrt(wins.mean(1).var(ddof=1) / len(fakes) + wins.mean(0).var(ddof=1) / len(reals))
    found = delong(label, logit, np.arange(150))
    assert found.value == pytest.approx(roc_auc_score(label, logit), abs=1e-12)
    # Obuchowski's covariance term between the classes of one group is zero here: no group holds both.
    assert standard_error(found) == pytest.approx(expected, rel=1e-6)


def test_groups_give_the_interval_of_the_group_bootstrap():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(150), 4)
    label = np.tile([0, 1, 1, 1], 150)
    logit = 0.8 * label + rng.normal(size=150)[group] + rng.normal(size=600)
    found = delong(label, logit, group)
    auc = detection(label, logit, group, threshold=0.0, replicates=4000)[0]
    assert found.value == pytest.approx(auc.value)
    assert standard_error(found) == pytest.approx((auc.high - auc.low) / 3.92, rel=0.08)
    # A group's offset hits its real and its fakes alike, and cancels: independent samples would be less certain.
    assert standard_error(found) < standard_error(delong(label, logit, np.arange(600)))


def test_without_an_interval_it_says_why():
    for arguments, reason in (
        (([0, 0, 1, 1], [0, 1, 2, 3], range(4)), "do not overlap"),
        (([0, 0, 1, 1], [0, 2, 1, 3], ["a", "b", "c", "c"]), "one group"),
    ):
        found = delong(*arguments)
        assert math.isnan(found.low)
        assert reason in found.how
