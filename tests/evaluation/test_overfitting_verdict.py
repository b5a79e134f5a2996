"""The claim "does best but risks overfitting", on trials whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import t

from evaluation.overfitting_verdict import (
    _adjusted,
    _over_trials,
    at_equal_validation,
    expected,
    in_words,
    mean_difference,
)
from evaluation.score import Score
from tests.benchmarks.truth_overfitting import expected_holds, verdict_holds


def trials(gap_of_members: float, *, strength: float = 0.1, noise: float = 0.0, seed: int = 0):
    """Two members and three others, 20 trials each: gap = 2 (validation - 0.5) + ``gap_of_members``; the members
    reach a validation AUC that is higher by ``strength``."""
    random = np.random.default_rng(seed)
    names = np.repeat(["a", "b", "c", "d", "e"], 20)
    member = np.isin(names, ["a", "b"])
    validation = 0.55 + np.tile(np.linspace(0, 0.2, 20), 5) + strength * member
    gap = 2 * (validation - 0.5) + gap_of_members * member + noise * random.normal(size=len(names))
    return validation, gap, names, member


def test_a_stronger_model_is_not_blamed_for_being_stronger():
    validation, gap, names, member = trials(0.0)
    assert gap[member].mean() - gap[~member].mean() == pytest.approx(0.2)  # what a plain comparison would say
    found = at_equal_validation(validation, gap, names, member)
    assert (found.low, found.value, found.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_gap_of_its_own_is_found_and_its_interval_covers_it():
    validation, gap, names, member = trials(0.05, noise=0.02)
    found = at_equal_validation(validation, gap, names, member)
    assert found.value == pytest.approx(0.05, abs=0.015)
    assert found.low < 0.05 < found.high
    assert "mean of 2 backbones minus mean of 3; Welch's" in found.how


def test_by_hand_a_family_goes_by_its_backbones_and_not_by_their_trials():
    # Five trials each at x 0..4, slope 1 in all; a backbone's level is what it has at equal x: 1 and 3 of the members,
    # 0, 1 and 2 of the others. Means 2 and 1; variances 2 / 2 = 1 and 1 / 3, so the error is sqrt(4 / 3), with Welch's
    # freedom (4 / 3)^2 / (1 + (1 / 9) / 2) = 32 / 19.
    levels = {"a": 1, "b": 3, "c": 0, "d": 1, "e": 2}
    x = np.tile(np.arange(5.0), 5)
    names = np.repeat(list(levels), 5)
    y = x + np.repeat(list(levels.values()), 5)
    found = at_equal_validation(x, y, names, np.isin(names, ["a", "b"]))
    assert (found.value, found.n) == (pytest.approx(1.0), 25)
    assert found.high - found.value == pytest.approx(t.ppf(0.975, 32 / 19) * math.sqrt(4 / 3))
    alone = at_equal_validation(x, y, names, names == "b")
    assert alone.value == pytest.approx(2.0)  # 3 less the mean of 1, 0, 1 and 2
    assert math.isnan(alone.low)
    assert "one on a side, no interval" in alone.how


def test_by_hand_one_backbone_against_others_goes_by_trials():
    # Within backbones x is -1, 0, 1 about 0 (of "c" about 3) and y has slope 1 but for 1, -2, 1 added, twice that in
    # "b": slope 1, adjusted means 4, 0 and 2, 4 - (0 + 2) / 2 = 3. Variances of the means: 6 / 2 / 3 = 1, 4 and 1, of
    # which the difference has 1, 4 / 4 and 1 / 4 with two degrees of freedom each. The slope: squares 36 over 9 - 3 - 1
    # over the spread 6 is 1.2, times the difference of mean x squared, (0 - 1.5)^2.
    x = np.tile([-1.0, 0, 1], 3) + np.repeat([0, 0, 3], 3)
    odd = np.array([1.0, -2, 1])
    y = np.tile([-1.0, 0, 1], 3) + np.r_[odd + 4, 2 * odd, odd + 5]
    at = _adjusted(x, y, np.repeat(["a", "b", "c"], 3), ["a", "b", "c"])
    assert at.mean - at.mean[1] == pytest.approx([4, 0, 2])
    width = _over_trials(at, np.array([True, False, False]))
    parts, freedoms = np.array([1, 1, 1 / 4, 1.5**2 * 1.2]), np.array([2, 2, 2, 5])
    freedom = parts.sum() ** 2 / np.sum(parts**2 / freedoms)
    assert width == pytest.approx(t.ppf(0.975, freedom) * math.sqrt(parts.sum()))


@pytest.mark.parametrize(("members", "others"), [(2, 7), (3, 6)])
def test_the_interval_of_a_family_holds_the_truth_where_backbones_differ(members, others):
    # A percentile bootstrap over so few backbones held it in 80 and 82 %.
    inside = [verdict_holds(members, others, seed) for seed in range(1000)]
    assert np.mean(inside) > 0.9


def test_the_interval_of_one_backbone_holds_what_it_is_beyond_these_others():
    assert np.mean([verdict_holds(1, 8, seed) for seed in range(1000)]) == pytest.approx(0.95, abs=0.02)


def test_only_the_common_range_is_compared():
    # Others from 0 to 9, members from 5 to 14: common is 5 to 9, five trials a side. A gap that members have only
    # where no other gets does not count.
    x = np.r_[np.arange(5, 15), np.arange(10)].astype(float)
    member = np.r_[np.ones(10, bool), np.zeros(10, bool)]
    y = np.where(member & (x > 9), 100.0, x)
    found = at_equal_validation(x, y, np.where(member, "m", "o"), member)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert "5 trials against 5" in found.how
    apart = at_equal_validation(x, y, np.where(member, "m", "o"), x > 9)
    assert math.isnan(apart.value)


def test_the_mean_difference_by_hand():
    # Means 2 and 5, variances 2 / 2 = 1 and 8 / 2 = 4: error sqrt(5), Welch's freedom 25 / (1 + 16) = 1.4706.
    found = mean_difference([1, 3], [3, 7])
    assert found.value == pytest.approx(-3.0)
    assert found.high - found.value == pytest.approx(t.ppf(0.975, 25 / 17) * math.sqrt(5))
    assert math.isnan(mean_difference([1.0], [2.0, 3.0]).low)
    assert math.isnan(mean_difference([], [2.0]).value)


def test_the_expected_auc_is_that_of_the_best_few():
    validation = [0.9, 0.5, 0.8, 0.7, 0.6]
    unseen = [0.60, 0.9, 0.54, 0.51, 0.9]  # of the best three: mean 0.55, variance (25 + 1 + 16) / 2 / 1e4
    selected = Score("auc", 0.60, 0.57, 0.63, True, 400, "BCa")
    found = expected(validation, unseen, selected)
    assert found.value == pytest.approx(0.55)
    # One more like these three: Student's quantile with two degrees of freedom, 4.3027, on 1 + 1 / 3 of the variance.
    assert (found.high - found.low) / 2 == pytest.approx(math.hypot(0.03, 4.302653 * math.sqrt(21e-4 * 4 / 3)))
    assert found.n == 400
    assert math.isnan(expected([0.5], [0.4], selected).low)  # one trial says nothing about luck


@pytest.mark.parametrize("trials", [6, 44])
def test_the_interval_of_the_expected_auc_holds_that_of_the_setting_trained_again(trials):
    # Settings differ by .03, trainings of one by .02: 1.96 standard deviations of three trials held it in 86 and 79 %.
    assert np.mean([expected_holds(trials, 0.03, 0.02, seed) for seed in range(1000)]) > 0.93


@pytest.mark.parametrize(
    ("best", "overfits", "verdict"),
    [
        ((0.1, 0.2), (0.01, 0.02), "does better; overfits more"),
        ((-0.2, -0.1), (-0.02, -0.01), "does worse; overfits less"),
        ((-0.1, 0.1), (1, 2), "undecided whether it does better or worse; overfits more"),
        ((0.1, 0.2), (-0.07, 0.05), "does better; undecided whether it overfits more or less"),
    ],
)
def test_the_verdict_says_no_more_than_the_intervals(best, overfits, verdict):
    scores = [Score("d", sum(ends) / 2, *ends, True, 9, "") for ends in (best, overfits)]
    assert in_words(*scores) == verdict
    unknown = Score("d", 0.1, math.nan, math.nan, True, 3, "")
    assert in_words(unknown, scores[1]).startswith("too few backbones or trials")
    assert in_words(*scores, family=False) == f"{verdict} than these others"
