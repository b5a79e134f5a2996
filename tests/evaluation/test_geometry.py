import numpy as np
import pytest
from scipy import stats
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn import metrics

from evaluation import bootstrap
from evaluation.arrays import Compute
from evaluation.checks import components
from evaluation.discrepancy import (
    energy_distance,
    frechet,
    gaussian_kernels,
    kernel_discrepancy,
    median_distance,
    sliced_wasserstein,
)
from evaluation.distances import normalised, tiles
from evaluation.geometry import centroid_scores
from evaluation.pairs import PairSums, Resamples
from tests.evaluation.samples import OnTorch


def sample(seed=0, n=200, d=6, groups=70, shift=0.5):
    """Normalised features, sorted labels and components."""
    rng = np.random.default_rng(seed)
    label = np.sort(rng.integers(0, 2, n))
    component = components(rng.integers(0, groups, n), n)
    return normalised(rng.normal(size=(n, d)) + shift * label[:, None]), label, component


def pair_sums(features, label, component, replicates=10, kernels=False, compute=Compute()):  # noqa: B008
    """Sums of distances or of kernels."""
    sums = PairSums(compute.arrays, Resamples(label, component, replicates, 3), each=not kernels)
    for tile in tiles(features, component, compute):
        sums.add(gaussian_kernels(tile, median_distance(features)) if kernels else tile)
    return sums


def mmd(features, label, component):
    return kernel_discrepancy(pair_sums(features, label, component, kernels=True)).score


def energy(features, label, component):
    return energy_distance(pair_sums(features, label, component)).score


def centroids(features, label, component):
    scores = centroid_scores(features, label, component, replicates=10, seed=0)
    return {score.name: score.value for score, _ in scores}


def test_davies_bouldin_and_calinski_harabasz_equal_scikit_learn():
    features, label, component = sample()
    found, x = centroids(features, label, component), features.astype(np.float64)
    assert found["davies_bouldin"] == pytest.approx(metrics.davies_bouldin_score(x, label), rel=1e-10)
    assert found["calinski_harabasz"] == pytest.approx(metrics.calinski_harabasz_score(x, label), rel=1e-10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(3))
def test_centroid_scores_of_duplicates_are_undefined_with_a_reason(seed):
    faces, label = np.random.default_rng(seed).normal(size=(20, 5)), np.repeat([0, 1], 20)
    twice = centroid_scores(normalised(np.tile(faces, (2, 1))), label, np.tile(np.arange(20), 2), replicates=9, seed=0)
    points = centroid_scores(normalised(np.eye(2)[label]), label, np.tile(np.arange(20), 2), replicates=9, seed=0)
    same = {each.score.name: each.score for each in twice}
    apart = {each.score.name: each.score for each in points}
    assert [name for name, score in same.items() if np.isnan(score.value)] == ["davies_bouldin"]
    assert "undefined: the class means coincide" in same["davies_bouldin"].how
    assert [name for name, score in apart.items() if np.isnan(score.value)] == ["fisher_ratio", "calinski_harabasz"]
    assert all(
        "undefined: no variance within the classes" in apart[n].how for n in ("fisher_ratio", "calinski_harabasz")
    )
    assert apart["davies_bouldin"].value == 0


def test_fisher_ratio_by_hand():
    # Reals 0 and 2, fakes 5 and 7, all in groups of their own. Products of pairs from different groups: real-real
    # 0*2 = 0, fake-fake 5*7 = 35, real-fake mean 1*6 = 6. 0 + 35 - 12 = 23 = (6 - 1)² - 1 - 1, where 1 = (variance 1) *
    # 2/(2-1)/2 is the bias of each squared mean. Covariances (divided by n) are 1 and 1: 23 / 2.
    x, label = np.array([[0.0], [2], [5], [7]]), np.array([0, 0, 1, 1])
    assert centroids(x, label, np.arange(4))["fisher_ratio"] == pytest.approx(11.5)


def test_fisher_ratio_does_not_depend_on_a_constant():
    features, label, component = sample()
    moved = centroids(features.astype(np.float64) + 3, label, component)["fisher_ratio"]
    # Products of pairs are not centred; counts of pairs differ between classes, so this holds only in expectation with
    # unequal groups, and exactly with groups of one.
    alone = np.arange(len(label))
    assert centroids(features, label, alone)["fisher_ratio"] == pytest.approx(
        centroids(features.astype(np.float64) + 3, label, alone)["fisher_ratio"], rel=1e-9
    )
    assert moved == pytest.approx(centroids(features, label, component)["fisher_ratio"], abs=0.5)


def test_energy_distance_equals_scipy_in_one_dimension():
    # scipy's is the square root of the V-statistic 2 E|X-Y| - E|X-X'| - E|Y-Y'| that counts a sample with itself; the
    # U-statistic divides the within sums by n (n - 1) instead of n².
    features, label, _ = sample(d=1)
    x, y = features[label == 0, 0].astype(float), features[label == 1, 0].astype(float)
    within = [cdist(v[:, None], v[:, None]).sum() / len(v) ** 2 for v in (x, y)]
    v_statistic = stats.energy_distance(x, y) ** 2
    correction = sum(w * (1 - len(v) / (len(v) - 1)) for w, v in zip(within, (x, y), strict=True))
    found = energy(features, label, np.arange(len(label))).value
    assert found == pytest.approx(v_statistic + correction, abs=1e-7)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("compute", [Compute(chunk=130), Compute(), OnTorch(chunk=130)], ids=["tiles", "one", "torch"])
def test_means_over_other_groups_and_their_resamples_follow_the_definition(kernels, compute):
    features, label, component = sample(n=50, groups=15)
    value, drawn = pair_sums(features, label, component, 8, kernels, compute).means()
    quantity = cdist(features.astype(float), features.astype(float))
    if kernels:
        widths = median_distance(features) * np.array([0.25, 0.5, 1, 2, 4])
        quantity = np.mean([np.exp(-(quantity**2) / (2 * width**2)) for width in widths], axis=0)
    other = component[:, None] != component
    weights = np.vstack([np.ones(50), bootstrap.group_weights(component, 8, seed=3)])
    for replicate, w in enumerate(weights):
        pairs = np.outer(w, w) * other
        for a in (0, 1):
            for b in (0, 1):
                block = np.ix_(label == a, label == b)
                expected = (pairs * quantity)[block].sum() / pairs[block].sum()
                actual = value[a, b] if replicate == 0 else drawn[a, b, replicate - 1]
                assert actual == pytest.approx(expected, rel=1e-5)


def test_mmd_equals_its_definition():
    # Gretton et al. 2012, eq. 3, with the mean of five Gaussian kernels.
    features, label, _ = sample()
    found, median = mmd(features, label, np.arange(len(label))), median_distance(features)
    distances = cdist(features.astype(float), features.astype(float))
    assert median == pytest.approx(np.median(distances[np.triu_indices(200, 1)]))
    kernel = np.mean([np.exp(-(distances**2) / (2 * (b * median) ** 2)) for b in (0.25, 0.5, 1, 2, 4)], axis=0)
    np.fill_diagonal(kernel, 0)
    m, n = np.bincount(label)
    expected = kernel[:m, :m].sum() / (m * (m - 1)) + kernel[m:, m:].sum() / (n * (n - 1))
    expected -= 2 * kernel[:m, m:].mean()
    assert found.value == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("distance", [energy, mmd])
def test_unbiased_distances_are_zero_on_average_without_a_difference(distance):
    # Groups of four with a strong shared offset, each of one class: pairs within groups would make them positive.
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        component = np.repeat(np.arange(20), 4)
        x = rng.normal(size=(20, 3))[component] + 0.3 * rng.normal(size=(80, 3))
        found.append(distance(normalised(x), (component >= 10).astype(int), component).value)
    error = np.std(found) / np.sqrt(60)
    assert abs(np.mean(found)) < 4 * error
    assert np.min(found) < 0


def test_sliced_wasserstein_in_one_dimension_is_scipys():
    features, label, component = sample(d=1)
    x, y = features[label == 0, 0], features[label == 1, 0]
    found = sliced_wasserstein(features, label, component, replicates=10, seed=0).score
    assert found.value == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-9)


def test_sliced_wasserstein_in_resamples_is_that_of_repeated_samples():
    features, label, component = sample(d=1, n=40)
    weights = bootstrap.group_weights(component, 20, seed=0)
    expected = [
        stats.wasserstein_distance(*(np.repeat(features[label == c, 0], w[label == c]) for c in (0, 1)))
        for w in weights
    ]
    found = sliced_wasserstein(features, label, component, replicates=20, seed=0).score
    assert found.high - found.low == pytest.approx(np.ptp(np.quantile(expected, [0.025, 0.975])), rel=1e-6)


def test_frechet_equals_the_formula_with_a_matrix_square_root():
    features, label, component = sample(d=5)
    x, y = (features[label == c].astype(float) for c in (0, 1))
    cx, cy = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)
    assert frechet(features, label, component, replicates=10, seed=0).score.value == pytest.approx(expected, rel=1e-7)


def test_frechet_of_two_gaussians_approaches_the_closed_form():
    # N(0, I) and N(m, 4 I) in three dimensions, |m|² = 9: 9 + tr(I + 4 I - 2 * 2 I) = 9 + 3 = 12. Normalisation divides
    # squared distances by the total variance, 3 * (1 + 4)/2 + 9/4 = 9.75.
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(20000, 3)), 2 * rng.normal(size=(20000, 3)) + [3, 0, 0]])
    label = np.repeat([0, 1], 20000)
    found = frechet(normalised(x), label, np.arange(40000), replicates=2, seed=0).score
    assert found.value == pytest.approx(12 / 9.75, rel=0.02)


def test_a_class_in_a_single_group_leaves_them_undefined_with_a_reason():
    features, label, component = sample()
    component = components(np.where(label == 1, 999, component), len(label))
    for score in (energy(features, label, component), mmd(features, label, component)):
        assert np.isnan([score.value, score.low, score.high]).all()
        assert "single group" in score.how
    assert np.isnan(centroids(features, label, component)["fisher_ratio"])
