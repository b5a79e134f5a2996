import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.overfitting import auc_score, drop, gap, gap_between, independent_seeds, resampled_auc


def scored(seed, shift, n=500, groups=100):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return label, rng.normal(shift * label), rng.integers(0, groups, n)


def test_gap_is_the_difference_of_the_aucs():
    train, validation = scored(0, 2.0), scored(1, 1.0)
    score = gap("train_minus_validation", train, validation)
    assert score.value == pytest.approx(roc_auc_score(*train[:2]) - roc_auc_score(*validation[:2]), abs=1e-12)
    assert (score.name, score.n, score.higher_is_better) == ("train_minus_validation", 1000, False)
    assert 0 < score.low < score.value < score.high
    assert gap("train_minus_validation", train, validation) == score


def test_the_other_way_round_is_the_negative():
    a, b = scored(0, 1.0), scored(1, 0.9)
    forth, back = gap("g", a, b, replicates=4000), gap("g", b, a, replicates=4000)
    assert forth.value == -back.value
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), abs=0.005)


def test_both_sides_are_resampled_independently():
    # The same set on both sides has a gap of 0; resampled together its interval would be [0, 0]. Independent errors
    # add: the width is sqrt(2) that of one side.
    from evaluation.detection import detection

    side = scored(0, 1.0)
    score = gap("g", side, side, replicates=4000)
    auc = detection(*side, threshold=0.0, replicates=4000)[0]
    assert score.value == 0
    assert score.high - score.low == pytest.approx(2**0.5 * (auc.high - auc.low), rel=0.1)


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="both classes"):
        gap("g", scored(0, 1.0), ([1, 1], [0.0, 1.0], [0, 1]))


def test_a_drop_is_paired():
    label, before, group = scored(0, 1.0)
    after = before + np.random.default_rng(2).normal(scale=0.5, size=len(label))
    auc = {name: resampled_auc((label, logit, group)) for name, logit in (("before", before), ("after", after))}
    score = drop("test", auc["before"], auc["after"])
    assert score.value == pytest.approx(roc_auc_score(label, before) - roc_auc_score(label, after), abs=1e-12)
    assert score.low < score.value < score.high
    same = drop("test", auc["before"], auc["before"])
    assert (same.value, same.low, same.high) == (0, 0, 0)  # what is common cancels


def test_one_resampling_serves_the_auc_and_its_gaps():
    from evaluation.detection import detection

    a, b = scored(0, 2.0), scored(1, 1.0)
    first, second = (resampled_auc(side, seed=seed) for side, seed in zip((a, b), independent_seeds(2), strict=True))
    assert gap_between("g", first, second) == gap("g", a, b)
    bca = detection(*a, threshold=0.0)[0]
    assert auc_score(first).value == bca.value
    assert (auc_score(first).low, auc_score(first).high) == pytest.approx((bca.low, bca.high), abs=0.01)
