"""Learning curves against laws that were put in."""

import math

import numpy as np
import pytest
from scipy.stats import t

from evaluation.overfitting_scaling import power_law
from tests.benchmarks.truth_overfitting import exponent_holds


def test_an_exact_law_is_found_exactly():
    size = np.array([10.0, 40, 160])
    fit = power_law(size, 0.8 * size**-0.5)  # 0.253, 0.126, 0.063
    assert fit.exponent.value == pytest.approx(0.5)
    assert fit.scale == pytest.approx(0.8)
    assert fit(640) == pytest.approx(0.8 / math.sqrt(640))
    assert math.isnan(fit.exponent.low)
    assert "one trial at a size, no interval" in fit.exponent.how
    mixed = power_law([10, 10, 40, 40, 160], [0.3, 0.2, 0.2, 0.1, 0.06])
    assert math.isnan(mixed.exponent.low)  # what a single trial may vary by is unknown


def test_the_fit_is_of_the_means_at_each_size():
    # Means 0.4, 0.2, 0.1 at 1, 2, 4: halved with every doubling, so the exponent is 1 and the scale 0.4.
    fit = power_law([1, 1, 2, 2, 4, 4], [0.3, 0.5, 0.15, 0.25, 0.05, 0.15])
    assert fit.exponent.value == pytest.approx(1.0)
    assert fit.scale == pytest.approx(0.4)
    # Variances of the means .01, .0025 and .0025, over their squares 1/16, 1/16 and 1/4; in the exponent the first and
    # the last mean count, each over 2 log 2, with one degree of freedom each: (5/16)^2 / (1/16^2 + 1/4^2) = 25/17.
    width = t.ppf(0.975, 25 / 17) * math.sqrt(5 / 16) / (2 * math.log(2))
    assert (fit.exponent.low, fit.exponent.high) == pytest.approx((1 - width, 1 + width))


def test_three_sizes_by_hand():
    # log2 size 0, 1, 2 and log2 value -1, -1, -2: slope ((-1)(-1 + 4/3) + (1)(-2 + 4/3)) / 2 = -1/2.
    fit = power_law([1, 2, 4], [0.5, 0.5, 0.25])
    assert fit.exponent.value == pytest.approx(0.5)
    assert fit.scale == pytest.approx(2 ** (-4 / 3 + 1 / 2))


@pytest.mark.parametrize("trials", [2, 3, 5, 9])
def test_the_interval_holds_the_truth_with_few_trials_too(trials):
    # A percentile bootstrap held it in 66, 84, 85 and 90 %.
    assert 0.93 < np.mean([exponent_holds(trials, seed) for seed in range(1000)]) < 0.995


@pytest.mark.parametrize(
    ("size", "value", "why"),
    [([1, 2], [0.4, 0.2], "fewer than 3 sizes"), ([1, 2, 4], [0.4, 0.2, -0.1], "not above 0")],
)
def test_where_there_is_no_law_it_says_so(size, value, why):
    fit = power_law(size, value)
    assert math.isnan(fit.exponent.value)
    assert why in fit.exponent.how


@pytest.mark.parametrize(
    ("size", "value"), [([1, 2], [0.1]), ([0, 1], [0.1, 0.1]), ([1, 2], [0.1, math.nan]), ([], [])]
)
def test_misfits_are_refused(size, value):
    with pytest.raises(ValueError, match=r"one value per trial|above 0"):
        power_law(size, value)
