import numpy as np
import pytest
from scipy import stats

from evaluation.null import exchange_units, permuted_labels, separability_null
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


def test_only_compositions_that_were_there_come_out():
    rng = np.random.default_rng(0)
    component = np.sort(rng.integers(0, 40, 150))
    component = np.unique(component, return_inverse=True)[1]
    label, size = rng.integers(0, 2, 150), np.bincount(component)

    def compositions(labels):
        fakes = np.bincount(component, labels)
        pure = (fakes == 0) | (fakes == size)
        return sorted(zip(size[~pure], fakes[~pure], strict=True)), pure.tolist(), int((fakes[pure] > 0).sum())

    permuted = permuted_labels(label, component, 100, seed=1)
    assert all(compositions(each) == compositions(label) for each in permuted)
    assert len(np.unique(permuted, axis=0)) == 100
    assert np.array_equal(permuted, permuted_labels(label, component, 100, seed=1))


def test_pure_groups_of_any_size_change_places():
    label, component = np.array([0, 1, 1, 1]), np.array([0, 1, 1, 1])
    assert {tuple(row) for row in permuted_labels(label, component, 50, seed=0)} == {(0, 1, 1, 1), (1, 0, 0, 0)}


def test_frames_of_a_video_change_their_label_together():
    # Two groups, each with a real video of 3 frames and two fake ones of 2 frames.
    component, video = np.repeat([0, 1], 7), np.repeat(np.arange(6), [3, 2, 2] * 2)
    label = np.repeat([0, 1, 1] * 2, [3, 2, 2] * 2)
    order = np.random.default_rng(0).permutation(14)
    permuted = np.empty((600, 14), int)
    permuted[:, order] = permuted_labels(label[order], component[order], 600, seed=0, unit=video[order])
    first = np.unique(video, return_index=True)[1]
    assert (permuted == permuted[:, first][:, video]).all()
    assert (permuted[:, first].reshape(600, 2, 3).sum(axis=2) == 2).all()
    # Each video is fake in 2 of 3 permutations: standard error sqrt(2/9 / 600) = 0.019
    assert permuted.mean(axis=0) == pytest.approx(np.full(14, 2 / 3), abs=0.08)


def test_units_of_one_sample_are_samples():
    label, component = np.tile([0, 1, 1, 0], 15), np.repeat(np.arange(20), 3)
    single = permuted_labels(label, component, 50, seed=3, unit=np.arange(60))
    assert np.array_equal(single, permuted_labels(label, component, 50, seed=3))


def test_without_videos_a_group_label_and_method_is_one_unit():
    group, label = np.array(list("aaaabb")), np.array([0, 0, 1, 1, 1, 1])
    method = np.array(["pristine", "pristine", "swap", "blend", "swap", "swap"])
    unit = exchange_units(label, group, method)
    assert [np.flatnonzero(unit == each).tolist() for each in np.unique(unit)] == [[0, 1], [3], [2], [4, 5]]
    video = np.array(list("uvwxyz"))
    assert exchange_units(label, group, method, video).tolist() == [0, 1, 2, 3, 4, 5]
    # A real and a fake block of unequal size change places, too.
    permuted = permuted_labels(np.array([0, 1, 1, 1]), np.zeros(4, int), 200, seed=0, unit=np.array([0, 1, 1, 1]))
    assert {tuple(row) for row in permuted} == {(0, 1, 1, 1), (1, 0, 0, 0)}


@pytest.mark.parametrize("unit", [[0, 0, 1, 2], [0, 1, 2, 0]], ids=["two labels", "two groups"])
def test_a_video_of_two_labels_or_groups_is_an_error(unit):
    with pytest.raises(ValueError, match="one label and lie in one group"):
        permuted_labels(np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1]), 5, seed=0, unit=np.array(unit))


def faces(seed, shift, n=160, paired=False):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n // 2), 2)
    label = np.arange(n) % 2 if paired else rng.permutation(n // 2)[group] % 2
    features = rng.normal(size=(n // 2, 5))[group] + rng.normal(size=(n, 5)) + shift * label[:, None]
    return features, label, group


def one_or_two_fakes(seed):
    """Three groups of four have a real and two fake samples, the fourth a real and a fake one."""
    rng = np.random.default_rng(seed)
    size = np.array([3, 3, 3, 2] * 8)
    group = np.repeat(np.arange(len(size)), size)
    label = np.concatenate([[0, 1, 1][:each] for each in size])
    return 2 * rng.normal(size=(len(size), 6))[group] + rng.normal(size=(len(group), 6)), label, group


@pytest.mark.parametrize("paired", [False, True])
def test_values_are_those_of_the_panel_and_a_signal_is_found(paired):
    found = {null.name: null for null in separability_null(*faces(0, 1.0, paired=paired), permutations=199)}
    panel = {score.name: score.value for score in separability(*faces(0, 1.0, paired=paired), replicates=2)}
    assert set(found) == {
        name for name in panel if name.startswith(("knn_auc", "kmeans", "silhouette", "energy", "mmd2"))
    }
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
@pytest.mark.parametrize(
    "drawn",
    [lambda seed: faces(seed, 0.0, n=60), lambda seed: faces(seed, 0.0, n=60, paired=True), one_or_two_fakes],
    ids=["pure groups", "pairs", "one or two fakes"],
)
def test_p_values_are_uniform_when_the_label_means_nothing(drawn, monkeypatch):
    """With shares rounded to whole samples, p of the distances of the last ones would hardly ever be small."""
    monkeypatch.setattr("evaluation.null.CLUSTERS", (4,))
    ps = {}
    for seed in range(150):
        for null in separability_null(*drawn(seed), permutations=99, seed=seed):
            ps.setdefault(null.name, []).append(null.p)
    # p takes the values 1/100 … 1: moved to the middle of its step it is uniform on (0, 1). Six scores are asked.
    for name, found in ps.items():
        assert stats.kstest(np.array(found) - 0.005, "uniform").pvalue > 0.01 / 6, name


def frames(seed, shift, sources=20, per_video=6):
    """A real and a fake video of each source; frames share what is peculiar to their video, whatever its label."""
    rng = np.random.default_rng(seed)
    video = np.repeat(np.arange(2 * sources), per_video)
    group, label = video // 2, video % 2
    peculiar = rng.normal(size=(sources, 5))[group] + 1.5 * rng.normal(size=(2 * sources, 5))[video]
    return peculiar + rng.normal(size=(len(video), 5)) + shift * label[:, None], label, group, video


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["with videos", "without"])
def test_p_values_are_uniform_with_several_frames_per_video(named, monkeypatch):
    """With labels exchanged among samples, p <= .05 in 20 % (kNN) to 96 % (silhouette) of these sets."""
    monkeypatch.setattr("evaluation.null.CLUSTERS", (4,))
    ps = {}
    for seed in range(100):
        features, label, group, video = frames(seed, 0.0)
        unit = exchange_units(label, group, label, video if named else None)
        for null in separability_null(features, label, group, unit, permutations=99, seed=seed):
            ps.setdefault(null.name, []).append(null.p)
    assert {"knn_auc_k20", "silhouette", "energy_distance", "mmd2", "kmeans_ami_k4"} <= set(ps)
    for name, found in ps.items():
        # Of 100, five are expected; twelve or more would come by chance once in 230 times.
        assert np.mean(np.array(found) <= 0.05) < 0.12, name
        assert stats.kstest(np.array(found) - 0.005, "uniform").pvalue > 0.01 / len(ps), name


def test_a_difference_between_real_and_fake_videos_is_found(monkeypatch):
    monkeypatch.setattr("evaluation.null.CLUSTERS", (4,))
    features, label, group, video = frames(0, 2.0)
    found = separability_null(features, label, group, exchange_units(label, group, label, video), permutations=199)
    assert all(null.p <= 0.02 for null in found), found
