import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import bootstrap
from evaluation.checks import components


def test_ids_joined_with_a_bar_tie():
    # a-b and b-c tie a, b, c; d stands alone; e|f ties its two ids
    group = ["d", "a|b", "c|b", "e|f", "a", "f"]
    assert components(group, 6).tolist() == [1, 0, 0, 2, 0, 2]


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "a|b", "c|d", "b|c", "e"]), min_size=1, max_size=12), st.randoms())
def test_components_do_not_depend_on_the_order_of_samples(group, random):
    order = list(range(len(group)))
    random.shuffle(order)
    shuffled = components([group[i] for i in order], len(group))
    assert shuffled.tolist() == components(group, len(group))[order].tolist()


@pytest.mark.parametrize("group", [["a", ""], ["a", "b||c"], ["a", None], [0.5, 1.0]])
def test_a_missing_group_is_an_error(group):
    with pytest.raises(ValueError, match="group"):
        components(np.array(group), 2)


def test_whole_groups_are_drawn_and_as_many_as_there_are():
    group = np.array([7, 7, 3, 9, 9, 9])
    weights = bootstrap.group_weights(group, replicates=4000, seed=1)
    assert weights.shape == (4000, 6)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 5])
    assert (weights[:, 0].astype(int) + weights[:, 2] + weights[:, 3] == 3).all()
    # A multinomial count of 3 draws over 3 groups has mean 1 and variance 3 (1/3)(2/3) = 2/3: the mean of 4000 has
    # standard error 0.013, and 5 of them are the tolerance.
    assert weights[:, 2].mean() == pytest.approx(1, abs=0.065)
    assert np.array_equal(weights, bootstrap.group_weights(group, replicates=4000, seed=1))
    assert not np.array_equal(weights, bootstrap.group_weights(group, replicates=4000, seed=2))


def mean_of(x):
    return lambda weights: weights @ x / weights.sum(axis=1)


def test_bootstrap_of_a_mean_has_its_standard_error():
    x = np.random.default_rng(0).normal(size=400)
    draws = bootstrap.bootstrap(mean_of(x), np.arange(400), 4000, seed=0)
    # The ideal bootstrap's standard error of a mean is sd / sqrt(n); 4000 draws estimate it to 1.1 % (1/sqrt(2R)).
    assert draws.std() == pytest.approx(x.std() / 20, rel=0.06)


def test_jackknife_leaves_each_group_out():
    x, component = np.array([1.0, 2.0, 6.0]), np.array([0, 0, 1])
    assert bootstrap.jackknife(mean_of(x), component).tolist() == [6.0, 1.5]


def test_chunks_do_not_change_the_result(monkeypatch):
    x, component = np.arange(30.0), np.arange(30) // 3
    whole = bootstrap.bootstrap(mean_of(x), component, 50, seed=3)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 30)
    assert np.array_equal(bootstrap.bootstrap(mean_of(x), component, 50, seed=3), whole)


def test_intervals_of_known_replicates():
    replicates = np.arange(101.0)  # quantiles of 0..100 at 2.5 % and 97.5 % are 2.5 and 97.5
    assert bootstrap.percentile(replicates)[:2] == pytest.approx((2.5, 97.5))
    # mean 50 moves to the value 60: 2.5 + 10 and 97.5 + 10
    assert bootstrap.centred(60.0, replicates, (0, 200))[:2] == pytest.approx((12.5, 107.5))
    assert bootstrap.centred(60.0, replicates, (0, 100))[:2] == pytest.approx((12.5, 100))
    # The value is the median and the jackknife is symmetric: no bias, no acceleration, so BCa is the percentile.
    low, high, note = bootstrap.bca(50.0, replicates, np.array([-1.0, 0.0, 1.0]))
    assert (low, high) == pytest.approx((2.5, 97.5))
    assert "BCa" in note


def test_bca_equals_scipy():
    from scipy import stats

    x = np.random.default_rng(1).exponential(size=40)
    reference = stats.bootstrap(
        (x,), np.mean, n_resamples=999, method="BCa", rng=np.random.default_rng(0), vectorized=True
    )
    left_out = bootstrap.jackknife(mean_of(x), np.arange(40))
    low, high, _ = bootstrap.bca(x.mean(), reference.bootstrap_distribution, left_out)
    # scipy takes the nearest order statistic instead of interpolating: up to one step of 999 apart
    step = np.diff(np.sort(reference.bootstrap_distribution))[[20, -20]].max() * 20
    assert low == pytest.approx(reference.confidence_interval.low, abs=step)
    assert high == pytest.approx(reference.confidence_interval.high, abs=step)


def test_undefined_replicates_are_skipped_and_counted():
    low, high, note = bootstrap.percentile(np.array([1.0, np.nan, 1.0, 1.0]))
    assert (low, high) == (1, 1)
    assert "over 3" in note
    assert "1 more skipped" in note
    assert "all resamples agree" in note
    low, high, note = bootstrap.percentile(np.array([np.nan, np.nan, 1.0]))
    assert math.isnan(low)
    assert math.isnan(high)
    assert note.startswith("no interval: undefined in 2 of 3")
