import math

import numpy as np
import pytest
from scipy import stats

from evaluation.coefficients import COEFFICIENTS
from evaluation.inversion import backbones_needed, correlation_of, interval, power
from evaluation.relation import backbones_per_side, claim, family_means, noise_ceiling, relation


def test_coefficients_equal_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20).round(1)  # with ties
    y = (x + rng.normal(size=20)).round(1)
    found = {r.score.name: r.score.value for r in relation(x, y, permutations=1)}
    assert found["weighted_kendall"] == pytest.approx(stats.weightedtau(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)


def test_a_strong_relation_is_supported_and_turns_with_the_direction():
    rng = np.random.default_rng(3)
    x = rng.normal(size=20)
    y = x + 0.3 * rng.normal(size=20)
    for forth, back in zip(relation(x, y), relation(-x, y, x_higher_is_better=False), strict=True):
        assert forth == back
        assert forth.verdict == "supported"
        assert 0 < forth.score.low < forth.score.value < forth.score.high < 1
        assert forth.p == 1 / 10_000
        assert forth.null_high < forth.score.value
    assert {r.verdict for r in relation(-x, y)} == {"not supported"}


def test_null_quantile_of_the_weighted_tau_is_the_known_one():
    # Ranks of 20 shuffled backbones: the 95 % quantile of the weighted tau is .35.
    found = relation(np.arange(20.0), np.arange(20.0)[::-1], permutations=4000)[0]
    assert found.null_high == pytest.approx(0.35, abs=0.03)
    assert found.p == 1


@pytest.mark.parametrize(("m", "count"), [(4, 24), (5, 120), (7, 5040)])
def test_p_is_exact_where_all_orders_can_be_counted(m, count):
    for found in relation(np.arange(m), np.arange(m)):
        assert found.p == 1 / count  # of the m! orders only one is perfect
    for found in relation(np.arange(m), np.arange(m)[::-1]):
        assert found.p == 1


def test_p_of_more_orders_is_never_zero():
    assert relation(np.arange(8), np.arange(8))[0].p <= 2 / 10_000  # 1/8! is beyond 9,999 draws
    assert relation(np.arange(20), np.arange(20))[0].p == 1 / 10_000


def test_a_perfect_order_has_an_interval():
    # Two-sided and exact, a perfect order of four has p = 2/4! = .083, one of five 2/5! = .017.
    for x in ([1, 2, 3, 4], [4, 3, 2, 1]):
        for found in relation(x, [1, 2, 3, 4])[:2]:
            low, value, high = found.score.low, found.score.value, found.score.high
            assert min(low, value) < 0 < max(high, value)
            assert low <= value <= high
            assert found.verdict == "undecided"
    for found in relation(range(5), range(5))[:2]:
        assert 0 < found.score.low < 0.6
        assert (found.score.value, found.score.high) == pytest.approx((1, 1))
        assert found.verdict == "supported"
    tau = relation(range(12), range(12))[0].score
    assert 0.85 < tau.low < 1  # normal sides with a correlation below 1 have such an order, too


def test_a_nearly_perfect_order_is_not_less_sure_than_chance():
    # One exchange among the last of ten, which leaves no pair of the best in doubt.
    found = relation([1, 0, *range(2, 10)], range(10))[0]
    assert found.verdict == "supported"
    assert 0.7 < found.score.low < found.score.value < found.score.high < 1


def test_one_outlier_widens_the_interval_of_pearson():
    # Eleven unrelated backbones and one far off, which makes r high: the order says that there is little to it.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    x[0] = y[0] = 30
    tau, rho, r = relation(x, y, permutations=99)
    assert r.score.value > 0.9
    assert r.score.low < 0 < interval("pearson", 12, r.score.value)[0]  # that of normal data
    assert (tau.verdict, rho.verdict) == ("undecided", "undecided")


def test_interval_over_seeds():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=12)
    noisy = truth[:, None] + 0.3 * rng.normal(size=(12, 3))
    for found in relation(truth, noisy):
        low, high = found.seeds
        assert -1 <= low < high <= 1
    assert relation(truth, noisy)[0].seeds == relation(truth, noisy)[0].seeds  # seeded
    assert relation(truth, noisy.mean(axis=1))[0].seeds is None
    assert relation(truth, noisy)[0].score == relation(truth, noisy.mean(axis=1))[0].score
    same = relation(truth, [[t, t] for t in truth[:6]] + [[t] for t in truth[6:]])[2]
    assert same.seeds == pytest.approx((1, 1))  # seeds that agree move nothing


@pytest.mark.parametrize("seeds", [2, 3])
def test_interval_over_seeds_is_as_wide_as_other_seeds_make_it(seeds):
    # Pearson's r of the same backbones, far from 1, over sets of other seeds: its spread is known from simulation.
    rng, x = np.random.default_rng(0), np.linspace(-1, 1, 12)
    sets = (x + rng.normal(size=12))[:, None] + 0.2 * rng.normal(size=(500, 12, seeds))
    spread = np.std([COEFFICIENTS["pearson"](x, y.mean(axis=-1)) for y in sets])
    widths = [np.subtract(*relation(x, y, permutations=1)[2].seeds[::-1]) / (2 * 1.96) for y in sets[:60]]
    assert np.median(widths) == pytest.approx(spread, rel=0.15)


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


@pytest.mark.parametrize(("m", "correlation"), [(6, 0.8), (9, 0.5), (9, 0.8), (13, 0.8)])
def test_interval_covers_the_expected_coefficient_and_is_no_wider_than_it_must(m, correlation):
    # Bivariate normal; the expected coefficient is its mean over ten times as many sets.
    rng = np.random.default_rng(m)
    x, noise = rng.normal(size=(2, 4000, m))
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    for name in ("weighted_kendall", "spearman"):
        values = COEFFICIENTS[name](x, y)
        low, high = np.array([interval(name, m, value) for value in values[:400]]).T
        inside = np.mean((low <= values.mean()) & (values.mean() <= high))
        assert 0.91 <= inside <= 0.985, name  # 95 % and four binomial standard deviations of 1.1 %
    # That of normal theory for r: Fisher's z with variance 1 / (m - 3).
    value = correlation
    z, half = math.atanh(value), 1.96 / math.sqrt(m - 3)
    low, high = interval("pearson", m, value)
    assert high - low == pytest.approx(math.tanh(z + half) - math.tanh(z - half), rel=0.1)


def test_a_strong_relation_of_nine_backbones_is_mostly_found():
    rng, found, chance = np.random.default_rng(0), 0, 0
    for _ in range(100):
        x, noise = rng.normal(size=(2, 9))
        found += relation(x, 0.8 * x + 0.6 * noise, permutations=199)[0].verdict == "supported"
        chance += relation(x, noise, permutations=199)[0].verdict == "supported"
    assert found / 100 == pytest.approx(power("weighted_kendall", 9, 0.8), abs=0.15)  # three standard deviations
    assert 0.55 < power("weighted_kendall", 9, 0.8) < 0.7  # that of the permutation test is .6
    assert chance <= 8


@pytest.mark.parametrize("counts", [[3] * 10, [3] * 6 + [1] * 4])
def test_noise_ceiling_is_what_a_perfect_predictor_reaches(counts):
    """Seeds vary by half of what backbones do; with three seeds each a predictor without noise has a tau of .85."""
    rng, noise = np.random.default_rng(0), 0.5
    truth = rng.normal(size=(4000, len(counts)))
    means = truth + noise * rng.normal(size=truth.shape) / np.sqrt(counts)
    for name, coefficient in COEFFICIENTS.items():
        reached = coefficient(truth, means).mean()
        if name == "weighted_kendall" and min(counts) == 3:
            assert reached == pytest.approx(0.85, abs=0.005)
        benchmarks = ([t + noise * rng.normal(size=s) for t, s in zip(row, counts, strict=True)] for row in truth[:150])
        assert np.mean([noise_ceiling(each, name) for each in benchmarks]) == pytest.approx(reached, abs=0.04)


def test_noise_ceiling_by_hand():
    # Means 0, 2, 4, 6 vary by 20/3; seeds at -1 and +1 of them have variance 2, and their means 2/2 = 1.
    assert noise_ceiling([[-1, 1], [1, 3], [3, 5], [5, 7]], "pearson") == pytest.approx(math.sqrt(1 - 3 / 20))
    # Two of the four have one seed: the noise is (1 + 1 + 2 + 2) / 4 on average.
    assert noise_ceiling([[-1, 1], [1, 3], [4], [6]], "pearson") == pytest.approx(math.sqrt(1 - 1.5 * 3 / 20))
    assert noise_ceiling([[0, 0], [1, 1], [2, 2], [3]]) == pytest.approx(1)  # without noise
    assert noise_ceiling([[-1, 1]] * 4) == 0  # without signal
    for too_few in ([[1], [2], [3], [4]], [[1, 2], [2], [3], [4]], [[1, 2], [2, 3], [3, 4]]):
        assert math.isnan(noise_ceiling(too_few))


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


def test_backbones_needed_is_the_textbook_number_for_pearson():
    # Cohen's tables, 80 % power: 29 for r = .5; ((1.96 + .84) / atanh .74)² + 3 = 11.7.
    assert backbones_needed(0.5, name="pearson") == pytest.approx(29, abs=1)
    assert backbones_needed(0.74, name="pearson") == pytest.approx(12, abs=1)
    for wrong in (0, 1, -1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            backbones_needed(wrong)


def test_backbones_needed_are_those_of_the_weighted_tau():
    needed = backbones_needed(0.74)
    assert power("weighted_kendall", needed - 1, 0.74) < 0.8 <= power("weighted_kendall", needed, 0.74)
    assert needed > backbones_needed(0.74, name="pearson")  # most of the weight is on a few of the best
    assert backbones_needed(-0.74) == pytest.approx(needed, abs=3)  # as many to be called not supported
    assert backbones_needed(0.1, name="pearson") is None  # 782
    # The mean of benchmarks with a correlation leads back to it.
    mean = np.mean(COEFFICIENTS["weighted_kendall"](*normal(13, 0.74)))
    assert correlation_of("weighted_kendall", 13, mean) == pytest.approx(0.74, abs=0.02)


def normal(m, correlation):
    x, noise = np.random.default_rng(0).normal(size=(2, 2000, m))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def test_backbones_per_side_go_by_welch():
    # Two and two that have just failed: variances 1.125e-4 and 2e-6, so hardly more than one degree of freedom.
    a, b = [0.565, 0.550], [0.605, 0.603]
    assert claim("c", a, b)[1] == "undecided"
    assert backbones_per_side(a, b) == 3
    # Equal variances of 1 and a difference of 1: the usual 17 per side for d = 1 and 80 %.
    assert backbones_per_side([1, 2, 3], [0, 1, 2]) == 17
    assert backbones_per_side([1, 2], [1, 2]) is None  # no difference to show
    assert backbones_per_side([1], [2]) is None  # no spread to go by
    assert backbones_per_side([1, 2], [3]) is None
    assert backbones_per_side([0, 1], [0.001, 1.001]) is None  # beyond a thousand


def test_an_undecided_claim_always_needs_more_than_there_is():
    rng, asked = np.random.default_rng(0), 0
    for _ in range(120):
        a = rng.normal(0, 0.02, rng.integers(2, 4))
        b = rng.normal(0.03, 0.02 * rng.uniform(0.2, 1), rng.integers(2, 5))
        needed = backbones_per_side(a, b)
        if claim("c", a, b)[1] == "undecided" and needed is not None:
            asked += 1
            assert needed > min(len(a), len(b))
    assert asked > 40


@pytest.mark.parametrize("spread", [(0.02, 0.02), (0.035, 0.005)])
def test_backbones_per_side_have_the_power(spread):
    rng, sides = np.random.default_rng(0), [np.array([-1, 1]) / math.sqrt(2) * s for s in spread]
    needed = backbones_per_side(sides[0], sides[1] + 0.05)
    sets = [claim("c", rng.normal(0, spread[0], needed), rng.normal(0.05, spread[1], needed))[1] for _ in range(400)]
    assert 0.75 < sets.count("not supported") / 400 < 0.95  # a whole number of backbones is rather more than enough
