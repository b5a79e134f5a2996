"""The claim "does best but risks overfitting", on trials whose truth is known."""

import math

import numpy as np
import pytest

from evaluation.overfitting_verdict import at_equal_validation, expected, in_words, mean_difference
from evaluation.score import Score


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
    found = at_equal_validation(validation, gap, names, member, resamples=200)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert found.low <= 1e-12
    assert found.high >= -1e-12


def test_a_gap_of_its_own_is_found_and_its_interval_covers_it():
    validation, gap, names, member = trials(0.05, noise=0.02)
    found = at_equal_validation(validation, gap, names, member, resamples=500)
    assert found.value == pytest.approx(0.05, abs=0.015)
    assert 0 < found.low < 0.05 < found.high
    assert "2 backbones against 3" in found.how


def test_by_hand():
    # x 0..4 on both sides, y = x + 1 for members and y = x for others: the difference is 1, the slope 1.
    x = [0, 1, 2, 3, 4] * 2
    y = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    found = at_equal_validation(x, y, ["m"] * 5 + ["o"] * 5, [True] * 5 + [False] * 5, resamples=50)
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))
    assert "the luck of its choice" in found.how


def test_only_the_common_range_is_compared():
    # Others from 0 to 9, members from 5 to 14: common is 5 to 9, five trials a side. A gap that members have only
    # where no other gets does not count.
    x = np.r_[np.arange(5, 15), np.arange(10)].astype(float)
    member = np.r_[np.ones(10, bool), np.zeros(10, bool)]
    y = np.where(member & (x > 9), 100.0, x)
    found = at_equal_validation(x, y, np.where(member, "m", "o"), member, resamples=50)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert "5 trials against 5" in found.how
    apart = at_equal_validation(x, y, np.where(member, "m", "o"), x > 9, resamples=50)
    assert math.isnan(apart.value)


def test_the_mean_difference_by_hand():
    # Means 2 and 5, variances 2 / 2 = 1 and 8 / 2 = 4: error sqrt(5), Welch's freedom 25 / (1 + 16) = 1.4706.
    found = mean_difference([1, 3], [3, 7])
    assert found.value == pytest.approx(-3.0)
    from scipy.stats import t

    assert found.high - found.value == pytest.approx(t.ppf(0.975, 25 / 17) * math.sqrt(5))
    assert math.isnan(mean_difference([1.0], [2.0, 3.0]).low)
    assert math.isnan(mean_difference([], [2.0]).value)


def test_the_expected_auc_is_that_of_the_best_few():
    validation = [0.9, 0.5, 0.8, 0.7, 0.6]
    unseen = [0.60, 0.9, 0.54, 0.51, 0.9]  # of the best three: mean 0.55, variance (25 + 1 + 16) / 2 / 1e4
    selected = Score("auc", 0.60, 0.57, 0.63, True, 400, "BCa")
    found = expected(validation, unseen, selected)
    assert found.value == pytest.approx(0.55)
    assert (found.high - found.low) / 2 == pytest.approx(math.hypot(0.03, 1.959964 * math.sqrt(21e-4)))
    assert found.n == 400
    assert math.isnan(expected([0.5], [0.4], selected).low)  # one trial says nothing about luck


@pytest.mark.parametrize(
    ("best", "overfits", "verdict"),
    [
        ((0.1, 0.2), (0.01, 0.02), "does better; overfits more"),
        ((-0.2, -0.1), (-0.02, -0.01), "does worse; overfits less"),
        ((-0.1, 0.1), (-0.1, 0.1), "not shown that it does better or worse; not shown that it overfits more or less"),
    ],
)
def test_the_verdict_says_no_more_than_the_intervals(best, overfits, verdict):
    scores = [Score("d", sum(ends) / 2, *ends, True, 9, "") for ends in (best, overfits)]
    assert in_words(*scores) == verdict
    unknown = Score("d", 0.1, math.nan, math.nan, True, 3, "")
    assert in_words(unknown, scores[1]).startswith("too few backbones or trials")
