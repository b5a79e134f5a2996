import numpy as np
import pytest
from sklearn import metrics

from evaluation.clustering import clustering_scores
from evaluation.distances import normalised
from evaluation.partitions import METHODS, best_match_accuracy, cluster_auc, held_out_auc, partitions
from evaluation.probes import folds


def faces(shift, n=300, seed=0):
    rng = np.random.default_rng(seed)
    group, label = np.arange(n) // 2, rng.integers(0, 2, n)
    return rng.normal(size=(n, 10)) + shift * label[:, None] * (np.arange(10) < 4), label, group


def test_separated_classes_are_found_by_every_method_and_noise_by_none():
    good = {score.name: score for score in partitions(*faces(8.0), replicates=50)}
    null = {score.name: score for score in partitions(*faces(0.0), replicates=50)}
    names = [f"{m}_{s}_k{k}" for m in ("ward", "mixture", "spectral") for k in (2, 8) for s in ("ami", "ari")]
    assert list(good) == [*names, "kmeans_accuracy_k2", "kmeans_auc_k32"]
    for name, score in good.items():
        if name.endswith("k2"):
            assert score.value > 0.95
        # 300 samples without a difference: AMI and ARI within 0.05 of zero
        if "ami" in name or "ari" in name:
            assert null[name].value == pytest.approx(0, abs=0.05)
            assert null[name].low <= null[name].value <= null[name].high
    assert good["kmeans_auc_k32"].value > 0.95
    assert null["kmeans_auc_k32"].value == pytest.approx(0.5, abs=0.15)
    assert null["kmeans_accuracy_k2"].value < 0.6


@pytest.mark.parametrize("method", METHODS)
def test_clusters_do_not_depend_on_the_order_of_samples(method):
    space = normalised(faces(2.0)[0])
    order = np.random.default_rng(1).permutation(len(space))
    first, again = (METHODS[method](x, 8, 0) for x in (space, space[order]))
    assert metrics.adjusted_rand_score(first[order], again) == 1


def test_best_match_accuracy_by_hand():
    # Clusters agree with 1 of 5 labels, so naming them the other way round agrees with 4; the second run with 3.
    label = np.array([0, 0, 1, 1, 1])
    runs = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 1, 0]])
    found = best_match_accuracy(runs, label, np.arange(5), 10, 0).score
    assert found.value == pytest.approx((0.8 + 0.6) / 2)
    assert "0.600" in found.how


def test_cluster_auc_by_hand():
    # Clusters A and B, folds 0 and 1. Fold 1 has in A real, fake, fake and in B real: fold 0 scores 2/3 in A, 0 in B.
    # There A holds real, fake and B fake: 2/3 ties with 2/3 (0.5), 0 is below 2/3: 0.5 of 2 pairs. Fold 0 has in A 1 of
    # 2 and in B 1 of 1 fakes: in fold 1 both fakes in A (1/2) tie with A's real (0.5 each), B's (1) is above: 1 of 4.
    ids, label = np.array([[0, 0, 1, 0, 0, 0, 1]]), np.array([0, 1, 1, 0, 1, 1, 0])
    fold = np.array([0, 0, 0, 1, 1, 1, 1])
    found = cluster_auc(ids, 2, fold, label, np.arange(7), 10, 0).score
    assert found.name == "kmeans_auc_k2"
    assert found.value == pytest.approx((0.5 / 2 + 1 / 4) / 2)


def test_cluster_auc_of_a_cluster_that_the_other_folds_lack_is_their_share():
    # Fold 1 has no cluster 1: the fake there scores 1/2, like the reals in cluster 0. Fold 0 in turn gives cluster 0 no
    # fake: 0 against 0.
    ids, label, fold = np.array([0, 0, 1, 0, 0]), np.array([0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
    assert held_out_auc(ids, label, fold)(np.ones((1, 5)))[0] == 0.5
    # Without that fake fold 0 holds one class, and fold 1 alone counts; without a fake in either there is no AUC.
    assert held_out_auc(ids, label, fold)(np.array([[1.0, 1, 0, 1, 1], [1, 1, 0, 1, 0]])) == pytest.approx(
        [0.5, np.nan], nan_ok=True
    )


@pytest.mark.parametrize("k", [2, 8, 32])
def test_cluster_auc_of_a_label_without_meaning_is_one_half(k):
    # 300 labellings of 160 samples, two in each group: a standard error of about .047 / sqrt(300) = .003 for the mean.
    rng = np.random.default_rng(0)
    ids, component = rng.integers(0, k, (1, 160)), np.arange(160) // 2
    values = []
    for seed in range(300):
        label = rng.permutation(np.arange(160) % 2)
        values.append(cluster_auc(ids, k, folds(label, component, seed), label, component, 2, 0).score.value)
    assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / np.sqrt(300))


def test_an_identity_is_not_mistaken_for_the_label():
    # Clusters are groups, each of one class: all a cluster knows of other groups is nothing.
    group = np.repeat(np.arange(8), 10)
    found = cluster_auc(group[None], 8, folds(group % 2, group, 0), group % 2, group, 10, 0).score
    assert found.value == 0.5


def test_cluster_auc_says_why_it_is_undefined():
    # All fakes in one group: no two folds have both classes.
    label, group = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3])
    found = cluster_auc(label[None], 2, folds(label, group, 0), label, group, 10, 0).score
    assert np.isnan(found.value)
    assert "too few groups" in found.how
    assert np.isnan(held_out_auc(label, label, np.zeros(5, int))(np.ones((1, 5)))[0])


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="one group"):
        partitions(np.eye(4), [0, 1, 0, 1], [1, 1, 1, 1])


def test_several_runs_tell_their_spread():
    label, component = np.repeat([0, 1], 20), np.arange(40)
    clusterings = np.stack([label, np.tile([0, 1], 20)])  # the label itself, and one that is balanced across it
    _, ari = clustering_scores("kmeans", 2, clusterings, label, component, 10, 0)
    # Of 780 pairs, 380 are together in either; of both 180. Expected 380 x 380 / 780 = 185.1: ARI -5.1 / 194.9.
    assert ari.score.value == pytest.approx((1 - 5.1282 / 194.8718) / 2, abs=1e-6)
    assert "mean of 2 runs (here -0.026 to 1.000); 95 %" in ari.score.how
    _, one = clustering_scores("ward", 2, clusterings[:1], label, component, 10, 0)
    assert "mean of 1 runs; 95 %" in one.score.how
