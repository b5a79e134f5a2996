import math

import numpy as np
import pytest
from scipy import stats

from evaluation.relation import backbones_needed, claim, family_means, noise_ceiling, relation


def test_coefficients_equal_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20).round(1)  # with ties
    y = (x + rng.normal(size=20)).round(1)
    found = {r.score.name: r.score.value for r in relation(x, y, permutations=1)}
    assert found["weighted_kendall"] == pytest.approx(stats.weightedtau(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)


def test_a_strong_relation_is_supported_and_turns_with_the_direction():
    rng = np.random.default_rng(1)
    x = rng.normal(size=25)
    y = x + 0.4 * rng.normal(size=25)
    for forth, back in zip(relation(x, y), relation(-x, y, x_higher_is_better=False), strict=True):
        assert forth == back
        assert forth.verdict == "supported"
        assert 0 < forth.score.low < forth.score.value < forth.score.high < 1
        assert forth.p == 1 / 2000
        assert forth.null_high < forth.score.value
    assert {r.verdict for r in relation(-x, y)} == {"not supported"}


def test_null_quantile_of_the_weighted_tau_is_the_known_one():
    # Ranks of 20 shuffled backbones: the 95 % quantile of the weighted tau is .35.
    found = relation(np.arange(20.0), np.arange(20.0)[::-1], permutations=4000)[0]
    assert found.null_high == pytest.approx(0.35, abs=0.03)
    assert found.p == 1


def test_p_by_counting_all_orders():
    # Of the 4! = 24 orders of four backbones only one has Spearman's rho of 1: p is near 1/24.
    found = relation([1, 2, 3, 4], [1, 2, 3, 4], permutations=9999)[1]
    assert found.p == pytest.approx(1 / 24, abs=0.01)


def test_a_constant_side_is_undecided():
    for found in relation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5], permutations=9):
        assert math.isnan(found.score.value)
        assert found.verdict == "undecided"
        assert "constant" in found.score.how
        assert found.to_dict()["score"]["value"] is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1, 2, 3], [1, 2, 3], "four"), ([1, 2, 3, 4], [1, 2, 3], "shapes"), ([1, 2, 3, np.nan], [1, 2, 3, 4], "x holds")],
)
def test_misfits_are_errors(x, y, message):
    with pytest.raises(ValueError, match=message):
        relation(x, y)


def test_interval_covers_the_expected_coefficient():
    # Bivariate normal, rho = .6, 15 backbones; the expected coefficient is its mean over the sets themselves.
    rng, rows = np.random.default_rng(0), {}
    for _ in range(200):
        x = rng.normal(size=15)
        y = 0.6 * x + 0.8 * rng.normal(size=15)
        for found in relation(x, y, permutations=1):
            rows.setdefault(found.score.name, []).append((found.score.low, found.score.value, found.score.high))
    for name, found in rows.items():
        low, value, high = np.array(found).T
        inside = np.mean((low <= value.mean()) & (value.mean() <= high))
        assert 0.89 <= inside <= 1, name  # 95 % less four binomial standard deviations of 1.5 %


def test_noise_ceiling():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    assert noise_ceiling(np.stack([truth, truth, truth], axis=1)) == pytest.approx(1)
    # Two seeds with noise as large as the signal correlate by 1 / (1 + 1) = .5.
    noisy = truth[:, None] + rng.normal(size=(200, 2))
    assert noise_ceiling(noisy, "pearson") == pytest.approx(0.5, abs=0.15)
    with pytest.raises(ValueError, match="two seeds"):
        noise_ceiling(truth[:, None])


def test_family_means_by_hand():
    # 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(2) = 4.3027
    mim, single = family_means([1, 2, 3, 7], ["mim", "mim", "mim", "face"])[::-1]
    assert (mim.name, mim.value, mim.n) == ("mim", 2, 3)
    assert mim.high - mim.value == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert (single.name, single.value) == ("face", 7)
    assert math.isnan(single.low)


def test_claim_is_welchs_interval():
    a, b = [0.8, 0.82, 0.85, 0.81], [0.6, 0.7, 0.65]
    score, word = claim("self-supervised over supervised", a, b)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high))
    assert word == "supported"
    assert claim("c", b, a)[1] == "not supported"
    assert claim("c", [0.8], b)[1] == "undecided"
    with pytest.raises(ValueError, match="both sides"):
        claim("c", [], b)


def test_backbones_needed_is_the_textbook_number():
    assert backbones_needed(0.3) == 85  # e.g. Cohen's tables: 84-85 for r = .3 at 80 % power
    assert backbones_needed(0.5) == 30  # 29-30
    with pytest.raises(ValueError, match="between 0 and 1"):
        backbones_needed(0)
