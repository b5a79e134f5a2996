import numpy as np
import pytest
from sklearn import metrics

from evaluation.distances import normalised
from evaluation.partitions import METHODS, best_match_accuracy, cluster_auc, partitions


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
    # One cluster of groups a (real, fake), b (fake) and c (real), another of d (fake) alone. Without the own group:
    # a sees 1 of 2 fakes, b 1 of 3, c 2 of 3, d nobody: 3 of all 5. Reals score 1/2, 2/3; fakes 1/2, 1/3, 3/5.
    # Fake above real: 1/2 ties with 1/2 (0.5); 3/5 beats 1/2 (1): 1.5 of 6 pairs.
    ids, label = np.array([[0, 0, 0, 0, 1]]), np.array([0, 1, 1, 0, 1])
    found = cluster_auc(ids, 2, label, np.array([0, 0, 1, 2, 3]), 10, 0).score
    assert found.name == "kmeans_auc_k2"
    assert found.value == pytest.approx(1.5 / 6)


def test_an_identity_is_not_mistaken_for_the_label():
    # Clusters are groups, each of one class: all a cluster knows of other groups is nothing.
    group = np.repeat(np.arange(8), 10)
    found = cluster_auc(group[None], 8, group % 2, group, 10, 0).score
    assert found.value == 0.5


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="one group"):
        partitions(np.eye(4), [0, 1, 0, 1], [1, 1, 1, 1])
