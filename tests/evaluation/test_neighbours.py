import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import metrics

from evaluation import bootstrap
from evaluation.arrays import Compute
from evaluation.checks import components
from evaluation.distances import normalised, pass_over_pairs, tiles
from evaluation.neighbours import OtherGroupNeighbours, vote_statistic
from tests.evaluation.samples import OnTorch, by_label, faces, panel


def test_neighbours_by_hand():
    # On a line: a real and its fake at 0 and 1 (group a), then at 10 and 12 (b), 20 and 23 (c): real first in each.
    # n = 6 allows k = 1 only. Nearest in another group: 0 and 1 -> 10 real, 10 -> 1 fake, 12 -> 20 real (8, not 11),
    # 20 -> 12 fake, 23 -> 12 fake. Shares: reals 0 1 1, fakes 0 0 1. Pairs fake > real: the fake 1 beats the real 0;
    # equal: fakes 0, 0 with real 0 (2), fake 1 with reals 1, 1 (2). AUC = (1 + 4/2) / 9 = 1/3.
    found = panel([[0.0], [1], [10], [12], [20], [23]], [0, 1] * 3, list("aabbcc"))
    assert found["knn_auc_k1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", [5, 20])
def test_neighbours_equal_a_search_without_the_own_group(k):
    features, label, group = faces()
    distances = cdist(features.astype(np.float64), features.astype(np.float64))
    distances[group[:, None] == group] = np.inf
    share = label[np.argsort(distances, axis=1)[:, :k]].mean(axis=1)
    assert panel(features, label, group)[f"knn_auc_k{k}"] == pytest.approx(
        metrics.roc_auc_score(label, share), abs=1e-12
    )


def two_points(n=400):
    """Images that a backbone maps to one of two points, at which 70 and 30 % are fake."""
    rng = np.random.default_rng(0)
    point = np.repeat([0, 1], n // 2)
    return np.eye(2)[point], (rng.random(n) < np.where(point == 0, 0.7, 0.3)).astype(int), np.arange(n)


def collapsed(n=600):
    """A layer whose output is zero for 75 % of the reals and 45 % of the fakes; all their distances to a face are
    equal, but for rounding."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, n)
    features = np.maximum(rng.normal(size=(n, 4)), 0) + 0.1
    features[rng.random(n) < np.where(label == 0, 0.75, 0.45)] = 0
    return features, label, np.arange(n)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_samples_at_equal_distances_no_class_comes_first(swapped):
    """Taken in the order of rows, which are sorted by label, they gave an AUC of .27 one way and .69 the other."""
    features, label, group = two_points()
    truth = metrics.roc_auc_score(label, features[:, 0])  # .69
    # 20 neighbours drawn at random from the 200 of a point: the share of fakes has a standard error of .1
    assert panel(features, label ^ swapped, group)["knn_auc_k20"] == pytest.approx(truth, abs=0.04)
    features, label, group = collapsed()
    found = panel(features, label ^ swapped, group)
    apart = panel(features + 1e-3 * np.random.default_rng(1).normal(size=features.shape), label, group)
    assert [found[f"knn_auc_k{k}"] for k in (20, 100)] == pytest.approx(
        [apart[f"knn_auc_k{k}"] for k in (20, 100)], abs=0.05
    )


@pytest.mark.parametrize("compute", [Compute(chunk=5000), Compute(chunk=70_000), OnTorch(chunk=5000), OnTorch()])
@pytest.mark.parametrize("sample", [two_points, collapsed])
def test_equal_distances_are_broken_alike_whatever_computes_them(sample, compute):
    features, label, group = by_label(*sample())
    expected, found = (OtherGroupNeighbours(label, group) for _ in range(2))
    for one, into in ((Compute(), expected), (compute, found)):
        pass_over_pairs(normalised(features), group, one, into.add)
    # Rounding may still tell equal distances apart that lie at the edge between two rounded values.
    assert np.mean((found.nearest != expected.nearest).any(axis=1)) < 0.02


def test_an_identity_is_not_mistaken_for_the_label():
    # Every group is a tight cluster far from the others and holds one class: neighbours from the own group would give
    # an AUC of 1, although nothing about the label carries over to another group.
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(100), 6)
    features, label = 10 * rng.normal(size=(100, 30))[group] + rng.normal(size=(600, 30)), group % 2
    found = panel(features, label, group)
    naive = panel(features, label, np.arange(600))
    assert naive["knn_auc_k5"] > 0.99
    for name in ("knn_auc_k5", "knn_auc_k20", "knn_auc_k100", "linear_probe_auc", "knn_probe_auc"):
        # 100 independent groups: the standard error of an AUC at 0.5 is about sqrt(201 / (12 * 50 * 50)) = 0.08
        assert found[name] == pytest.approx(0.5, abs=0.25)


def test_votes_in_a_resample_are_those_of_repeated_neighbours():
    features, label, group = faces(n=80, groups=40)
    component = components(group, 80)
    collector = OtherGroupNeighbours(label, component)
    for tile in tiles(normalised(features), component, Compute()):
        collector.add(tile)
    weights = bootstrap.group_weights(group, 3, seed=0)
    found = vote_statistic(collector.nearest[:, :5], label)(weights.astype(float))
    for w, auc in zip(weights, found, strict=True):
        votes = [label[near].repeat(w[near]) for near in collector.nearest[:, :5]]
        share = np.array([vote.mean() if len(vote) else 0.5 for vote in votes])
        # scores live in float32 products: compare ranks after rounding
        expected = metrics.roc_auc_score(label.repeat(w), share.astype(np.float32).repeat(w))
        assert auc == pytest.approx(expected, abs=1e-12)
