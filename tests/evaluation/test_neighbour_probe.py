"""The k-NN probe against scikit-learn, and what it may not see."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.neighbors import KNeighborsClassifier

from evaluation.arrays import Compute
from evaluation.bootstrap import group_weights
from evaluation.neighbour_probe import CHOICES, knn_probe_auc
from evaluation.neighbours import vote_statistic
from evaluation.probes import folds


def faces(n=240, groups=80, shift=1.2, seed=0):
    """Groups of reals and fakes around a common place, and two clouds."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % groups
    label = rng.permutation(np.arange(n) % 2)
    x = rng.normal(size=(groups, 6))[group] + rng.normal(size=(n, 6)) + shift * label[:, None] * (np.arange(6) < 2)
    return (x - x.mean(axis=0)).astype(np.float32), label, group


def shares(x, label, train, asked, k):
    return KNeighborsClassifier(k).fit(x[train], label[train]).predict_proba(x[asked])[:, 1]


def by_scikit_learn(x, label, fold):
    """Out-of-fold shares, and the k of each fold, chosen by the AUC within the others."""
    found, chosen, choices = np.empty(len(label)), [], [k for k in CHOICES if k <= len(label) // 5]
    for out in np.unique(fold):
        quality = {}
        for k in choices:
            inner = np.empty(len(label))
            for number in set(fold.tolist()) - {out}:
                inner[fold == number] = shares(x, label, ~np.isin(fold, (out, number)), fold == number, k)
            quality[k] = metrics.roc_auc_score(label[fold != out], inner[fold != out])
        chosen.append(max(choices, key=lambda k: (quality[k], k)))
        found[fold == out] = shares(x, label, fold != out, fold == out, chosen[-1])
    return found, chosen


def test_it_is_scikit_learns_classifier_with_k_chosen_within_the_training_folds():
    x, label, group = faces()
    expected, chosen = by_scikit_learn(x, label, folds(label, group, seed=0))
    score, draws = knn_probe_auc(x, label, group, replicates=100, seed=0)
    assert len(set(chosen)) > 1  # the folds do not agree, so that one choice for all would be seen
    assert f"(here {', '.join(map(str, chosen))})" in score.how
    assert score.value == pytest.approx(metrics.roc_auc_score(label, expected), abs=1e-12)
    assert score.low < score.value < score.high
    assert (score.n, draws.shape, score.higher_is_better) == (240, (100,), True)


def test_chunks_change_nothing():
    x, label, group = faces()
    expected = knn_probe_auc(x, label, group, replicates=10, seed=0)
    found = knn_probe_auc(x, label, group, replicates=10, seed=0, compute=Compute(chunk=300))
    assert found.score == expected.score
    np.testing.assert_array_equal(found.draws, expected.draws)


def test_neither_the_own_group_nor_the_held_out_labels_are_seen():
    # Each group is a tight cluster of one class, far from all others: only its own members would tell.
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 5)
    x, label = (10 * rng.normal(size=(60, 20))[group] + rng.normal(size=(300, 20))).astype(np.float32), group % 2
    value = knn_probe_auc(x, label, group, replicates=2, seed=0).score.value
    # 60 independent groups: the standard error of an AUC at 0.5 is about sqrt(121 / (12 * 60 * 30)) = 0.075 x sqrt(2)
    assert value == pytest.approx(0.5, abs=0.3)
    alone = knn_probe_auc(x, label, np.arange(300), replicates=2, seed=0).score.value
    assert alone > 0.9


def test_votes_in_a_resample_are_those_of_repeated_neighbours():
    rng = np.random.default_rng(0)
    label, group = np.arange(30) % 2, np.arange(30) // 2
    nearest = np.array([rng.permutation(30)[:4] for _ in range(30)])
    nearest[::3, 2:] = -1  # fewer neighbours in some folds
    weights = group_weights(group, 3, seed=0)
    for w, auc in zip(weights, vote_statistic(nearest, label)(weights.astype(float)), strict=True):
        votes = [label[near[near >= 0]].repeat(w[near[near >= 0]]) for near in nearest]
        share = np.array([vote.mean() if len(vote) else 0.5 for vote in votes])
        expected = metrics.roc_auc_score(label.repeat(w), share.astype(np.float32).repeat(w))
        assert auc == pytest.approx(expected, abs=1e-12)


def test_too_few_groups_are_undefined_and_say_so():
    x, label, _ = faces(n=40, groups=20)
    score, draws = knn_probe_auc(
        x, label, np.arange(40) % 2, replicates=7, seed=0
    )  # two folds: k has none to choose in
    assert np.isnan([score.value, score.low, score.high]).all()
    assert "too few groups for three folds" in score.how
    assert np.isnan(draws).tolist() == [True] * 7
    group = np.where(label == 1, 99, np.arange(40))  # all fakes in one group
    assert np.isnan(knn_probe_auc(x, label, group, replicates=7, seed=0).score.value)


def test_few_samples_of_many_folds_have_as_many_neighbours_as_there_are():
    x, label, group = faces(n=12, groups=6)
    score = knn_probe_auc(x, label, group, replicates=5, seed=0).score
    assert "(here 2, 2" in score.how  # n/5
    assert 0 <= score.value <= 1
