import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import metrics

from evaluation import bootstrap, clustering, probes
from evaluation.arrays import Compute, Host
from evaluation.checks import components
from evaluation.distances import normalised, tiles
from evaluation.geometry import centroid_scores, label_silhouette
from evaluation.null import separability_null
from evaluation.pairs import PairSums, Resamples
from evaluation.separability import distance_scores, separability, separability_by_method
from tests.evaluation.samples import OnTorch, by_label, faces, panel, values

# --- distances and silhouette


@pytest.mark.parametrize("offset", [0, 100])
def test_distances_equal_float64(offset):
    features, _, group = faces()
    features = (features + np.float32(offset)).astype(np.float64)
    features[5] = features[6]  # a pair at distance zero, where float32 terms cancel entirely
    features[7] = features[8] + 1e-3
    component = components(group, 300)
    found, same = np.full((300, 300), np.nan), np.zeros((300, 300), bool)
    rows = 0
    for tile in tiles(normalised(features), component, Compute(chunk=2000)):
        found[tile.rows, tile.start :] = tile.values
        same[tile.rows, tile.start :][tile.own] = True
        assert tile.values.size <= 2000
        rows += tile.square
    assert rows == 300
    upper = np.triu_indices(300)
    expected = cdist(features, features)
    expected /= np.sqrt(np.mean(np.sum((features - features.mean(0)) ** 2, axis=1)))
    assert found[upper] == pytest.approx(expected[upper], rel=2e-5, abs=1e-6)
    assert np.array_equal(same[upper], (component[:, None] == component)[upper])


@pytest.mark.parametrize("compute", [Compute(chunk=5000), OnTorch(chunk=5000)], ids=["cpu", "torch"])
def test_device_and_chunk_change_nothing(compute):
    """torch's code path runs here on the CPU; on a GPU it is the same."""
    features, label, group = faces(n=400, groups=120)
    features[300] = features[20]  # equal distances
    arguments = (features, label, group)
    found = separability(*arguments, replicates=20, compute=compute)
    for one, other in zip(found, separability(*arguments, replicates=20), strict=True):
        assert [one.value, one.low, one.high] == pytest.approx([other.value, other.low, other.high], abs=1e-6), one.name
    nulls = separability_null(*arguments, permutations=20, compute=compute)
    for one, other in zip(nulls, separability_null(*arguments, permutations=20), strict=True):
        assert [one.p, one.mean] == pytest.approx([other.p, other.mean], abs=1e-6), one.name


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("shift", [0, 1, 1000])  # at 1000, distances within a class are a thousandth of those between
def test_silhouette_equals_scikit_learn_in_float64(offset, shift):
    features, label, group = faces(shift=shift, n=400)
    features += np.float32(offset)
    found = panel(features, label, group)["silhouette"]
    assert found == pytest.approx(metrics.silhouette_score(features.astype(np.float64), label), abs=1e-7)


def test_silhouette_by_hand():
    # Reals at 0 and 2, fakes at 5 and 6. a = 2, 2, 1, 1; b = 5.5, 3.5, (5+3)/2 = 4, (6+4)/2 = 5.
    # s = 3.5/5.5, 1.5/3.5, 3/4, 4/5, of which the mean is 0.65373...
    expected = np.mean([3.5 / 5.5, 1.5 / 3.5, 3 / 4, 4 / 5])
    assert panel([[0.0], [2], [5], [6]], [0, 0, 1, 1], [0, 1, 2, 3])["silhouette"] == pytest.approx(expected, abs=1e-7)


def test_a_class_of_one_sample_has_silhouette_zero_for_it():
    features, label = np.array([[0.0], [1], [2], [9]]), np.array([0, 0, 0, 1])
    found = panel(features, label, [0, 1, 2, 3])["silhouette"]
    assert found == pytest.approx(metrics.silhouette_score(features, label), abs=1e-7)


def test_silhouette_of_resamples_follows_its_definition():
    # In a resample, pairs across groups count with the product of multiplicities, pairs within a group with one.
    features, label, group = by_label(*faces(n=60, groups=20))
    component = components(group, 60)
    resamples = Resamples(label, component, 25, seed=4)
    sums = PairSums(Host(), resamples, each=True)
    for tile in tiles(normalised(features), component, Compute(chunk=500)):
        sums.add(tile)
    draws = label_silhouette(sums).draws
    weights = bootstrap.group_weights(group, 25, seed=4).astype(float)
    distances = cdist(normalised(features), normalised(features))
    other = component[:, None] != component
    for replicate, w in enumerate(weights):
        seen = np.where(other, w[None, :], 1.0)
        sums, sizes = (np.stack([(m * seen)[:, label == c].sum(1) for c in (0, 1)]) for m in (distances, 1))
        rows = np.arange(60)
        size = sizes[label, rows] - 1
        inner = np.divide(sums[label, rows], size, where=size > 0, out=np.zeros(60))
        outer = sums[1 - label, rows] / sizes[1 - label, rows]
        s = np.where(size > 0, (outer - inner) / np.maximum(inner, outer), 0)
        expected = (w * s).sum() / w.sum()
        assert draws[replicate] == pytest.approx(expected, abs=1e-5)


# --- clusterings


@pytest.mark.parametrize("k", [2, 8, 32])
def test_ami_and_ari_equal_scikit_learn(k):
    features, label, group = faces()
    runs = clustering.kmeans_runs(normalised(features), k, seed=0)
    found = panel(features, label, group)
    ami = np.mean([metrics.adjusted_mutual_info_score(label, ids) for ids in runs])
    ari = np.mean([metrics.adjusted_rand_score(label, ids) for ids in runs])
    assert found[f"kmeans_ami_k{k}"] == pytest.approx(ami, abs=1e-10)
    assert found[f"kmeans_ari_k{k}"] == pytest.approx(ari, abs=1e-10)


def test_clusters_that_are_the_classes_score_one_and_a_single_cluster_zero():
    label, component = np.arange(20) % 2, np.arange(20)
    perfect = clustering.clustering_scores("kmeans", 4, label[None], label, component, 10, 0)
    single = clustering.clustering_scores("kmeans", 4, np.zeros((1, 20), int), label, component, 10, 0)
    assert [score.value for score, _ in perfect] == pytest.approx([1, 1])
    assert [score.value for score, _ in single] == pytest.approx([0, 0])


def test_k_is_limited_by_the_number_of_samples():
    features, label, group = faces(n=30, groups=30)
    assert [name for name in panel(features, label, group) if "ami" in name] == [f"kmeans_ami_k{k}" for k in (2, 4, 8)]


# --- linear probe


def test_probe_equals_scikit_learn_on_the_same_folds():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, label, group = faces()
    order = np.lexsort((label, group))
    x, y, g = features[order].astype(np.float64), label[order], group[order]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / 24, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    logits = cross_val_predict(model, x, y, groups=g, cv=folds, method="decision_function")
    expected = metrics.roc_auc_score(y, logits)
    assert panel(features, label, group)["linear_probe_auc"] == pytest.approx(expected, abs=1e-4)


def test_no_group_straddles_the_folds():
    # Features that name the group: a held-out group is unknown to the fit, its features are constant in training, so
    # all samples of a fold get one and the same logit.
    _, label, group = faces()
    logits = probes.cross_validated_logits(10 * np.eye(90)[group], label, probes.folds(label, group, seed=0))
    assert len(np.unique(logits.round(6))) <= 5


def test_probe_without_enough_groups_is_undefined_and_says_so():
    # All fakes are in one group: it is either in the training folds or held out.
    features, label, group = faces(n=40, groups=8)
    group[label == 1] = 99
    probes = separability(features, label, group, replicates=10)[-2:]
    assert [probe.name for probe in probes] == ["linear_probe_auc", "knn_probe_auc"]
    for probe in probes:
        assert np.isnan([probe.value, probe.low, probe.high]).all()
        assert "too few groups" in probe.how


# --- the panel


def test_names_order_and_intervals():
    features, label, group = faces(n=600, groups=150)
    steps = []
    scores = separability(features, label, group, replicates=200, progress=lambda *step: steps.append(step))
    ks = (2, 4, 8, 16, 32)
    assert [score.name for score in scores] == [
        *("knn_auc_k20", "knn_auc_k5", "knn_auc_k100", "silhouette"),
        *("fisher_ratio", "davies_bouldin", "calinski_harabasz"),
        *("energy_distance", "mmd2", "sliced_wasserstein", "frechet"),
        *(f"kmeans_ami_k{k}" for k in ks),
        *(f"kmeans_ari_k{k}" for k in ks),
        *("linear_probe_auc", "knn_probe_auc"),
    ]
    for score in scores:
        assert score.low < score.value < score.high
        assert score.higher_is_better == (score.name != "davies_bouldin")
        assert score.n == 600
        assert "95 %" in score.how
    assert [score.how.startswith("supervised reference") for score in scores[-3:]] == [False, True, True]
    assert [step[:2] for step in steps] == [(i, 8) for i in range(1, 9)]
    assert separability(features, label, group, replicates=200) == scores


def test_translation_rotation_scale_and_order_change_nothing():
    features, label, group = faces(n=400)
    found = panel(features, label, group)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    order = rng.permutation(400)
    rotated = panel(features @ rotation, label, group)
    assert rotated.pop("linear_probe_auc") == pytest.approx(found["linear_probe_auc"], abs=0.05)  # it standardises
    assert rotated.pop("sliced_wasserstein") == pytest.approx(found["sliced_wasserstein"], rel=0.1)  # other directions
    assert rotated == pytest.approx({name: found[name] for name in rotated}, abs=1e-6, rel=1e-6)
    for other in (
        panel(features.astype(np.float64) + 100, label, group),
        panel(features * 1e-20, label, group),
        panel(features.astype(np.float64) * 1e200, label, group),
        panel(features[order], label[order], group[order]),
        panel(features, label, [f"video {g:03}" for g in group]),
    ):
        assert other == pytest.approx(found, abs=1e-6, rel=1e-6)
    # In float32 an offset of 100 costs the last digits of the input itself.
    assert panel(features + np.float32(100), label, group) == pytest.approx(found, abs=2e-3, rel=1e-4)


def test_each_method_is_separated_from_all_real_samples():
    features, label, group = faces()
    method = np.where(label == 0, "pristine", np.where(group % 2 == 0, "swap", "blend"))
    features[method == "swap", 5] += 5
    found = separability_by_method(features, label, group, method, replicates=10)
    assert list(found) == ["blend", "swap"]
    kept = method != "blend"
    assert found["swap"] == separability(features[kept], label[kept], group[kept], replicates=10)
    assert values(found["swap"])["knn_auc_k20"] > values(found["blend"])["knn_auc_k20"] + 0.1
    with pytest.raises(ValueError, match="method must have shape"):
        separability_by_method(features, label, group, method[:5])


def test_swapping_real_and_fake_changes_nothing():
    features, label, group = faces()
    assert panel(features, 1 - label, group) == pytest.approx(panel(features, label, group), abs=1e-6, rel=1e-6)


def test_separated_classes_score_high_and_shuffled_labels_do_not():
    features, label, group = faces(n=600, groups=300, shift=8)
    good = panel(features, label, group)
    for name in ("knn_auc_k20", "kmeans_ami_k2", "kmeans_ari_k2", "linear_probe_auc", "knn_probe_auc"):
        assert good[name] > 0.95
    # Variances 2 in 24 dimensions, classes 8 apart in 4 of them: a = sqrt(2 * 48) = 9.8, b = sqrt(96 + 256) = 18.8,
    # 1 - a/b = 0.48.
    assert good["silhouette"] == pytest.approx(0.48, abs=0.02)
    null = panel(features, np.random.default_rng(0).permutation(label), group)
    # Standard errors at 600 samples: AUC sqrt(601 / (12 * 300 * 300)) = 0.024; AMI, ARI and silhouette below 0.005
    assert null["knn_auc_k20"] == pytest.approx(0.5, abs=0.1)
    assert [null["linear_probe_auc"], null["knn_probe_auc"]] == pytest.approx([0.5, 0.5], abs=0.1)
    assert [null["kmeans_ami_k2"], null["kmeans_ari_k2"], null["silhouette"]] == pytest.approx([0, 0, 0], abs=0.02)


def test_duplicate_and_constant_columns_are_fine():
    features, label, group = faces()
    wide = np.hstack([features, np.full((300, 3), 7, np.float32)])
    found, expected = panel(wide, label, group), panel(features, label, group)
    # A constant column moves no distance; the probe's penalty 10/d and the directions know the width.
    assert found.pop("linear_probe_auc") == pytest.approx(expected["linear_probe_auc"], abs=0.02)
    assert found.pop("sliced_wasserstein") == pytest.approx(expected["sliced_wasserstein"], rel=0.2)
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6, rel=1e-6)
    twice = panel(np.repeat(features, 2, axis=0), np.repeat(label, 2), np.repeat(group, 2))
    assert np.isfinite(list(twice.values())).all()


def test_two_distinct_rows_are_enough():
    found = panel([[0.0, 1], [1, 0]] * 20, [0, 1] * 20, np.arange(40))
    assert found["kmeans_ami_k2"] == pytest.approx(1)
    assert found["silhouette"] == pytest.approx(1)
    assert found["knn_auc_k5"] == 1


@pytest.mark.parametrize(
    ("features", "label", "group", "message"),
    [
        (np.ones((4, 3)), [0, 0, 1, 1], range(4), "constant"),
        (np.full((4, 3), 0.1, np.float32), [0, 0, 1, 1], range(4), "constant"),
        (np.eye(4), [1, 1, 1, 1], range(4), "both classes"),
        (np.eye(4), [0, 1, 2, 1], range(4), "label must be 0"),
        (np.eye(4), [0, 1, 0, 1], [1, 1, 1, 1], "one group"),
        (np.eye(4), [0, 1, 0, 1], ["a|b", "b|c", "c", "a"], "one group"),
        (np.eye(4), [0, 1, 0, 1], range(3), "group must have shape"),
        (np.eye(3), [0, 1, 0, 1], range(4), "features must have 2 dimension"),
        (np.ones(4), [0, 1, 0, 1], range(4), "features must have 2 dimension"),
        (np.diag([1, np.nan, 1, np.inf]), [0, 1, 0, 1], range(4), "2 NaN or infinite.*row 1"),
    ],
)
def test_misfits_are_errors(features, label, group, message):
    with pytest.raises(ValueError, match=message):
        separability(features, label, group)


@pytest.mark.slow
def test_intervals_cover_the_expected_score():
    # Grouped Gaussian sets; the truth of each score is its mean over the simulated sets themselves. For the
    # clusterings, which intervals hold fixed, a fixed partition of the space stands in for k-means.
    trials, found = 120, {}
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        group = np.repeat(np.arange(80), 4)
        label = np.tile([0, 1], 160) if trial % 2 else group % 2
        features = 0.7 * rng.normal(size=(80, 12))[group] + rng.normal(size=(320, 12))
        features += 0.5 * label[:, None] * (np.arange(12) < 4)
        features, label, group = by_label(features, label, group)
        cells = ((features[:, 0] > 0.2) * 2 + (features[:, 1] > 0.2))[None]
        scores = list(clustering.clustering_scores("kmeans", 4, cells, label, group, 200, trial))
        space = normalised(features)
        scores += distance_scores(space, label, group, replicates=200, seed=trial)
        scores += centroid_scores(space, label, group, replicates=200, seed=trial)
        for score, _ in scores:
            found.setdefault((score.name, trial % 2), []).append((score.low, score.value, score.high))
    assert len(found) == 2 * 10
    for name, rows in found.items():
        low, value, high = np.array(rows).T
        inside = np.sum((low <= value.mean()) & (value.mean() <= high))
        # 57 of 60 are expected; P(X < 51) = 0.005 at 95 %. These intervals err on the wide side: no upper bound.
        assert inside >= 51, name
        assert np.mean(high - low) < 2.2 * 3.92 * value.std(), name  # but not uselessly wide


def test_leaving_samples_out_of_the_probe_is_a_fit_without_them():
    """The Newton steps of a refit end where scikit-learn's fit on the kept samples ends."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    label = random.integers(0, 2, 300)
    features = random.normal(size=(300, 40)) + 0.3 * label[:, None]
    fold = np.arange(300) % 5
    probe = probes._probes(features, label, fold)[2]
    kept = np.flatnonzero(np.arange(300) % 19 != 3)
    train, held_out = kept[fold[kept] != 2], kept[fold[kept] == 2]
    fit = LogisticRegression(C=probes.PENALTY / 40, tol=1e-9, max_iter=10_000).fit(probe.x[train, :-1], label[train])
    expected = fit.decision_function(probe.x[held_out, :-1])
    assert probe.held_out_logits(kept) == pytest.approx(expected, abs=1e-4)
    assert abs(probe.held_out_logits(np.arange(300))[: len(expected)] - expected).max() > 1e-3  # it did leave out
