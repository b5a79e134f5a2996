import numpy as np
import pytest
from scipy import stats

from evaluation.null import permuted_labels, separability_null
from evaluation.separability import separability


def test_pure_groups_of_one_size_change_their_label_as_a_whole():
    component = np.repeat(np.arange(10), 3)
    label = (component < 4).astype(int)
    permuted = permuted_labels(label, component, 500, seed=0)
    assert (permuted.reshape(500, 10, 3) == permuted.reshape(500, 10, 3)[:, :, :1]).all()
    assert (permuted.sum(axis=1) == 12).all()
    # Each group is fake in 4 of 10 permutations: standard error sqrt(.24 / 500) = 0.022
    assert permuted.mean(axis=0) == pytest.approx(np.full(30, 0.4), abs=0.11)


def test_a_real_and_its_fakes_exchange_labels_within_their_group():
    component = np.repeat(np.arange(20), 3)
    permuted = permuted_labels(np.tile([0, 1, 1], 20), component, 500, seed=0)
    assert (permuted.reshape(500, 20, 3).sum(axis=2) == 2).all()
    assert permuted.mean(axis=0) == pytest.approx(np.full(60, 2 / 3), abs=0.11)


def test_groups_of_different_size_keep_the_number_of_fakes_on_average():
    rng = np.random.default_rng(0)
    component = np.sort(rng.integers(0, 40, 150))
    component = np.unique(component, return_inverse=True)[1]
    label = rng.integers(0, 2, 150)
    permuted = permuted_labels(label, component, 2000, seed=1)
    # A share that does not depend on size: expected fakes of a group are its size times the mean share.
    share = (np.bincount(component, label) / np.bincount(component)).mean()
    assert permuted.mean() == pytest.approx(share, abs=0.01)
    assert np.array_equal(permuted, permuted_labels(label, component, 2000, seed=1))


def faces(seed, shift, n=160, paired=False):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n // 2), 2)
    label = np.arange(n) % 2 if paired else rng.permutation(n // 2)[group] % 2
    features = rng.normal(size=(n // 2, 5))[group] + rng.normal(size=(n, 5)) + shift * label[:, None]
    return features, label, group


@pytest.mark.parametrize("paired", [False, True])
def test_values_are_those_of_the_panel_and_a_signal_is_found(paired):
    found = {null.name: null for null in separability_null(*faces(0, 1.0, paired=paired), permutations=199)}
    panel = {score.name: score.value for score in separability(*faces(0, 1.0, paired=paired), replicates=2)}
    assert set(found) == {name for name in panel if name.startswith(("knn", "kmeans", "silhouette", "energy", "mmd2"))}
    for name, null in found.items():
        assert null.value == pytest.approx(panel[name], abs=1e-6)
        assert null.mean < null.high
    for name in ("silhouette", "energy_distance", "mmd2", "knn_auc_k20"):
        assert found[name].p == 1 / 200


def test_names_that_differ_only_by_seed_are_reproducible():
    first = separability_null(*faces(0, 0.2), permutations=20, seed=5)
    assert first == separability_null(*faces(0, 0.2), permutations=20, seed=5)
    assert first != separability_null(*faces(0, 0.2), permutations=20, seed=6)


def test_one_group_is_an_error():
    with pytest.raises(ValueError, match="two independent groups"):
        separability_null(np.eye(4), [0, 1, 0, 1], [1, 1, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
def test_p_values_are_uniform_when_the_label_means_nothing(paired, monkeypatch):
    monkeypatch.setattr("evaluation.null.CLUSTERS", (4,))
    ps = {}
    for seed in range(150):
        for null in separability_null(*faces(seed, 0.0, n=60, paired=paired), permutations=99, seed=seed):
            ps.setdefault(null.name, []).append(null.p)
    # p takes the values 1/100 … 1: moved to the middle of its step it is uniform on (0, 1). Six scores are asked.
    for name, found in ps.items():
        assert stats.kstest(np.array(found) - 0.005, "uniform").pvalue > 0.01 / 6, name
