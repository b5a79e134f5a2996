"""Learning curves against laws that were put in."""

import math

import numpy as np
import pytest

from evaluation.overfitting_scaling import power_law


def test_an_exact_law_is_found_exactly():
    size = np.array([10.0, 40, 160])
    fit = power_law(size, 0.8 * size**-0.5)  # 0.253, 0.126, 0.063
    assert fit.exponent.value == pytest.approx(0.5)
    assert fit.scale == pytest.approx(0.8)
    assert fit(640) == pytest.approx(0.8 / math.sqrt(640))
    assert math.isnan(fit.exponent.low)
    assert "one trial at each size" in fit.exponent.how


def test_the_fit_is_of_the_means_at_each_size():
    # Means 0.4, 0.2, 0.1 at 1, 2, 4: halved with every doubling, so the exponent is 1 and the scale 0.4.
    fit = power_law([1, 1, 2, 2, 4, 4], [0.3, 0.5, 0.15, 0.25, 0.05, 0.15])
    assert fit.exponent.value == pytest.approx(1.0)
    assert fit.scale == pytest.approx(0.4)
    assert fit.exponent.low < 1.0 < fit.exponent.high


def test_three_sizes_by_hand():
    # log2 size 0, 1, 2 and log2 value -1, -1, -2: slope ((-1)(-1 + 4/3) + (1)(-2 + 4/3)) / 2 = -1/2.
    fit = power_law([1, 2, 4], [0.5, 0.5, 0.25])
    assert fit.exponent.value == pytest.approx(0.5)
    assert fit.scale == pytest.approx(2 ** (-4 / 3 + 1 / 2))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random, covered = np.random.default_rng(0), 0
    size = np.repeat([20.0, 40, 80, 160], 12)
    for seed in range(100):
        value = 0.6 * size**-0.25 + random.normal(0, 0.02, len(size))
        fit = power_law(size, value, resamples=300, seed=seed)
        covered += fit.exponent.low <= 0.25 <= fit.exponent.high
    assert 85 <= covered <= 100  # 95 expected; 12 trials a size make percentile intervals a little short


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
