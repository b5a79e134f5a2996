import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from evaluation.detection import auc, balanced_threshold, detection, per_video, reliability, weighted_auc
from evaluation.score import Score


def sample(seed=0, n=400, shift=0.8, decimals=1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return label, rng.normal(shift * label - 0.4).round(decimals), rng.integers(0, n // 4, n)


def values(*arguments, **options):
    return {score.name: score.value for score in detection(*arguments, replicates=20, **options)}


@pytest.mark.parametrize("decimals", [0, 1, 12])  # many ties, some, none
def test_equals_scikit_learn(decimals):
    label, logit, group = sample(decimals=decimals)
    found = values(label, logit, group, threshold=0.3)
    called = logit >= 0.3
    probability = 1 / (1 + np.exp(-logit))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(label, logit), abs=1e-12)
    assert auc(label, logit) == pytest.approx(metrics.roc_auc_score(label, logit), abs=1e-12)
    assert found["ap"] == pytest.approx(metrics.average_precision_score(label, logit), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(label, called), abs=1e-12)
    assert found["f1"] == pytest.approx(metrics.f1_score(label, called), abs=1e-12)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(label, probability), abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(label, logit, drop_intermediate=False)
    for level, name in ((0.001, "0.1"), (0.01, "1"), (0.05, "5"), (0.1, "10")):
        assert found[f"tpr_at_fpr_{name}pct"] == pytest.approx(tpr[fpr <= level].max(), abs=1e-12)


def test_auc_is_exact_so_that_equal_orders_tie():
    label, logit, _ = sample(decimals=1)
    fakes, reals = logit[label == 1, None], logit[None, label == 0]
    in_order = int((2 * (fakes > reals) + (fakes == reals)).sum())
    assert auc(label, logit) == in_order / (2 * fakes.size * reals.size)
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))


def test_weighted_metrics_equal_repeated_samples():
    label, logit, _ = sample()
    weights = np.random.default_rng(1).integers(0, 4, (3, len(label)))
    expected = [metrics.roc_auc_score(label.repeat(w), logit.repeat(w)) for w in weights]
    assert weighted_auc(label, logit, weights) == pytest.approx(expected, abs=1e-12)


def test_three_definitions_of_the_equal_error_rate_differ():
    # Reals 3 2 2 1, fakes 3 3 2 2 1. From the highest score down the ROC goes through (FPR, TPR) =
    # (0, 0), (1/4, 2/5), (3/4, 4/5), (1, 1); FPR - FNR there is -1, -0.35, 0.55, 1.
    label, logit = [0] * 4 + [1] * 5, [3, 2, 2, 1, 3, 3, 2, 2, 1]
    fpr, tpr, _ = metrics.roc_curve(label, logit, drop_intermediate=False)
    nearest = np.argmin(np.abs(1 - tpr - fpr))
    fpr_at_nearest = fpr[nearest]  # DeepfakeBench
    mean_at_nearest = (fpr[nearest] + 1 - tpr[nearest]) / 2  # torchmetrics
    assert fpr_at_nearest == pytest.approx(0.25)
    assert mean_at_nearest == pytest.approx((0.25 + 0.6) / 2)
    # Ours: the crossing lies 0.35 / 0.9 along the second step: 1/4 + 1/2 * 7/18 = 4/9
    assert values(label, logit, range(9), threshold=2)["eer"] == pytest.approx(4 / 9, abs=1e-12)


def test_equal_error_rate_is_the_root_on_the_interpolated_curve():
    from scipy.optimize import brentq

    label, logit, group = sample(decimals=1)
    fpr, tpr, _ = metrics.roc_curve(label, logit)
    root = brentq(lambda x: 1 - x - np.interp(x, fpr, tpr), 0, 1, xtol=1e-14)
    assert values(label, logit, group, threshold=0)["eer"] == pytest.approx(root, abs=1e-10)


def test_calibration_error_by_hand():
    # 30 samples of distinct scores, 15 bins of two neighbours each. All logits are 0 +- tiny, so p = 1/2, and every bin
    # holds two fakes or two reals: |1/2 - y| = 1/2 in each.
    logit = np.linspace(-1e-9, 1e-9, 30)
    label = np.arange(30) // 2 % 2
    assert values(label, logit, np.arange(30), threshold=0)["ece"] == pytest.approx(0.5, abs=1e-6)
    # One real and one fake in every bin: perfectly calibrated.
    assert values(np.arange(30) % 2, logit, np.arange(30), threshold=0)["ece"] == pytest.approx(0, abs=1e-6)


def test_threshold_by_hand():
    # reals 0 1 2, fakes 1.5 3 4. Calling >= 2.5 fake: TPR 2/3, TNR 1. Calling >= 1.25: TPR 1, TNR 2/3. Both give 5/6;
    # the gap 2..3 is wider than 1..1.5.
    assert balanced_threshold([0, 0, 0, 1, 1, 1], [0, 1, 2, 1.5, 3, 4]) == 2.5
    # Equal gaps: the lowest wins. reals 0 2, fakes 1 3: >= 0.5 gives 1/2 + 1/4, >= 2.5 gives 1/4 + 1/2.
    assert balanced_threshold([0, 1, 0, 1], [0, 1, 2, 3]) == 0.5
    # A reversed detector is never better than chance: everything is called fake.
    assert balanced_threshold([1, 1, 0, 0], [0, 1, 2, 3]) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=30))
def test_no_threshold_is_better(pairs):
    label, logit = np.array(pairs).T
    if len(np.unique(label)) < 2:
        return
    chosen = metrics.balanced_accuracy_score(label, logit >= balanced_threshold(label, logit))
    others = [metrics.balanced_accuracy_score(label, logit >= t) for t in np.arange(-5, 5.5, 0.5)]
    assert chosen >= max(others) - 1e-12


def test_threshold_between_neighbouring_floats_still_separates():
    low = 1.0
    high = np.nextafter(low, 2)
    threshold = balanced_threshold([0, 1], [low, high])
    assert low < threshold <= high


def test_intervals_cover_reproduce_and_widen_with_groups():
    rng = np.random.default_rng(5)
    alone, paired = np.arange(600), np.arange(600) // 20
    label = paired % 2
    logit = label + rng.normal(size=30)[paired] + rng.normal(size=600)  # half of the variance is shared by a group
    narrow = {s.name: s for s in detection(label, logit, alone, threshold=0.0)}
    wide = {s.name: s for s in detection(label, logit, paired, threshold=0.0)}
    assert detection(label, logit, paired, threshold=0.0) == list(wide.values())
    for name in ("auc", "ap", "balanced_accuracy", "brier"):
        assert narrow[name].low < narrow[name].value < narrow[name].high
        assert wide[name].low < wide[name].value < wide[name].high
        # Of a group's mean, the variance is 1 + 1/20 instead of 2/20: intervals should be sqrt(10.5) as wide.
        assert wide[name].high - wide[name].low > 2 * (narrow[name].high - narrow[name].low)
    assert Score.from_dict(wide["auc"].to_dict()) == wide["auc"]


def test_interval_width_agrees_with_the_formula_of_hanley_and_mcneil():
    # Independent samples: the standard error of the AUC from its closed form (Hanley and McNeil 1982, exact U-statistic
    # variance by the placement values of DeLong 1988).
    label, logit, _ = sample(n=1000, decimals=8)
    reals, fakes = logit[label == 0], logit[label == 1]
    wins = fakes[:, None] > reals[None, :]
    error = np.sqrt(wins.mean(1).var(ddof=1) / len(fakes) + wins.mean(0).var(ddof=1) / len(reals))
    auc = detection(label, logit, np.arange(1000), threshold=0.0, replicates=4000)[0]
    assert (auc.high - auc.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)


def test_resamples_without_a_class_are_skipped_and_counted():
    # Two groups of one class each: a draw of two groups misses one class with probability 1/2.
    scores = detection([0, 0, 1, 1, 1], [0, 1, 1, 2, 3], ["a", "a", "b", "b", "c"], threshold=0.5, replicates=400)
    # Three groups, a is the only real one: missing when a is never drawn, (2/3)^3 = 0.30, or always, 1/27 = 0.04.
    skipped = int(scores[0].how.split("(")[1].split(" more skipped")[0])
    assert skipped == pytest.approx(400 * (8 / 27 + 1 / 27), abs=5 * math.sqrt(400 * 0.333 * 0.667))


def test_perfect_separation_says_that_the_interval_is_blind():
    auc = detection([0, 1] * 20, [0, 1] * 20, np.arange(40), threshold=0.5, replicates=50)[0]
    assert (auc.value, auc.low, auc.high) == (1, 1, 1)
    assert "cannot show the uncertainty" in auc.how


@pytest.mark.parametrize(
    ("label", "logit", "message"),
    [
        ([0, 1, 2], [0.0, 1, 2], "label must be 0"),
        ([1, 1, 1], [0.0, 1, 2], "both classes"),
        ([0, 1, 1], [0.0, np.nan, 2], "NaN or infinite.*row 1"),
        ([0, 1, 1], [0.0, 2], "rows like the labels"),
    ],
)
def test_misfits_are_errors(label, logit, message):
    with pytest.raises(ValueError, match=message):
        detection(label, logit, range(len(label)), threshold=0.0)
    with pytest.raises(ValueError, match=message):
        balanced_threshold(label, logit)


def test_a_threshold_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="threshold"):
        detection([0, 1], [0, 1], [0, 1], threshold=math.nan)


def test_videos_are_means_of_their_frames_whatever_the_order():
    # Group a holds a real video (logits 0, 2) and two fake ones of one method (4, 6 and 9); group b a real video (1).
    label, logit = np.array([0, 0, 1, 1, 1, 0]), np.array([0.0, 2, 4, 6, 9, 1])
    group, video = np.array(list("aaaaab")), np.array(["r", "r", "f1", "f1", "f2", "s"])
    for order in (np.arange(6), np.array([5, 3, 1, 4, 0, 2])):
        found = per_video(label[order], logit[order], group[order], video[order])
        videos = sorted(zip(*(column.tolist() for column in found), strict=True))
        assert videos == [(0, 1.0, 0), (0, 1.0, 1), (1, 5.0, 0), (1, 9.0, 0)]
    with pytest.raises(ValueError, match="must have shape"):
        per_video(label, logit, group, video[:3])
    with pytest.raises(ValueError, match="video a has more than one label"):
        per_video(label, logit, group, group)
    with pytest.raises(ValueError, match="video r has more than one group"):
        per_video(label, logit, list("bcaaaa"), video)


def test_a_video_of_tied_groups_is_one():
    found = per_video([0, 0, 1], [0.0, 2, 5], ["a", "a|b", "b"], ["r", "r", "f"])
    assert [column.tolist() for column in found] == [[1, 0], [5.0, 1.0], [0, 0]]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(40)))
def test_video_level_metrics_do_not_depend_on_the_order(order):
    label, logit, group = sample(n=40, decimals=12)
    label[:2] = 0, 1
    columns = (label, logit, group, 2 * group + label)  # in a group, the real samples are a video and so are the fakes
    first = per_video(*columns)
    again = per_video(*(column[list(order)] for column in columns))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.slow
def test_interval_of_the_auc_covers_the_truth():
    # Grouped Gaussian scores: a group shares an offset of sd 0.5, samples add sd 1, fakes are shifted by 1. Across
    # groups the difference fake - real is N(1, 2 (1 + 0.25)), so AUC = Phi(1 / sqrt(2.5)) = 0.7365; pairs within a
    # group (1/60 of all) move the expectation by less than 0.001, against a standard error of 0.03.
    from scipy.stats import norm

    rng, truth, trials, inside = np.random.default_rng(0), norm.cdf(1 / math.sqrt(2.5)), 300, 0
    group = np.repeat(np.arange(60), 4)
    for trial in range(trials):
        label = np.tile([0, 1, 0, 1], 60) if trial % 2 else rng.permutation(np.tile([0, 0, 1, 1], 60))
        logit = label + rng.normal(size=60)[group] * 0.5 + rng.normal(size=240)
        auc = detection(label, logit, group, threshold=0.5, replicates=400, seed=trial)[0]
        inside += auc.low <= truth <= auc.high
    # 95 % of 300 is 285; three binomial standard deviations are 11.3, and 1 % is granted to the method itself.
    assert 285 - 14 <= inside <= 285 + 12


def test_reliability_of_a_calibrated_and_of_an_overconfident_model():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=30_000) * 2
    label = (rng.random(30_000) < 1 / (1 + np.exp(-logit))).astype(int)
    curve = np.array(reliability(label, logit))
    assert curve[:, 2].sum() == 30_000
    assert curve[:, 2] == pytest.approx(np.full(15, 2000), abs=1)
    # Standard error of a share of 2000 samples is at most 0.011
    assert curve[:, 1] == pytest.approx(curve[:, 0], abs=0.05)
    confident = np.array(reliability(label, 3 * logit))
    assert confident[0, 0] < confident[0, 1] - 0.01
    assert confident[-1, 0] > confident[-1, 1] + 0.01
