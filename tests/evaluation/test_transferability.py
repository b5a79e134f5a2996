import numpy as np
import pytest
from scipy import linalg, optimize, stats
from sklearn.linear_model import LinearRegression

from evaluation import transferability as t
from evaluation.bootstrap import block_jackknife


def sample(seed=0, n=200, d=12, shift=0.6):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    features = rng.normal(size=(n, d)) * np.linspace(2, 0.3, d) + shift * label[:, None] * (np.arange(d) < 3)
    return features - features.mean(axis=0), label, np.arange(n) // 2


@pytest.mark.parametrize(("n", "d"), [(200, 12), (40, 90)])  # more samples than features, and fewer
def test_logme_is_the_greatest_marginal_likelihood(n, d):
    # Marginally y ~ N(0, I/beta + X Xᵀ/alpha): the density of a multivariate normal, maximised by a general optimiser,
    # in the n - 1 directions that an intercept leaves.
    x, label, _ = sample(n=n, d=d, shift=1.0)
    contrasts = linalg.null_space(np.ones((1, n))).T
    x_c, y_c = contrasts @ x, contrasts @ label

    def loss(logs):
        alpha, beta = np.exp(logs)
        return -stats.multivariate_normal(cov=np.eye(n - 1) / beta + x_c @ x_c.T / alpha).logpdf(y_c) / (n - 1)

    best = min(
        (
            optimize.minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
            for start in ([3, 1], [5, 2])
        ),
        key=lambda found: found.fun,
    )
    assert t.logme(x, label) == pytest.approx(-best.fun, abs=1e-6)


def test_h_score_without_shrinkage_is_the_r_squared_of_a_regression():
    # For two classes tr(cov⁻¹ cov_classes) = p (1-p) dᵀ cov⁻¹ d, the squared multiple correlation of y with x.
    x, label, _ = sample()
    expected = LinearRegression().fit(x, label).score(x, label)
    assert t.between_ratio(x, label, 0.0) == pytest.approx(expected, abs=1e-10)


def test_h_score_with_shrinkage_by_its_definition():
    from sklearn.covariance import LedoitWolf

    x, label, _ = sample(n=40, d=60)
    fitted = LedoitWolf().fit(x)
    class_means = np.array([x[label == c].mean(axis=0) for c in label])
    expected = (1 - fitted.shrinkage_) * np.trace(np.linalg.inv(fitted.covariance_) @ np.cov(class_means.T, bias=True))
    assert t.h_score(x, label) == pytest.approx(expected, rel=1e-8)


def test_gbc_is_the_overlap_of_two_gaussians():
    # In one dimension the Bhattacharyya coefficient is the integral of sqrt(p q).
    x, label, _ = sample(d=1, shift=2)
    p, q = (stats.norm(x[label == c].mean(), x[label == c].std()).pdf for c in (0, 1))
    grid = np.linspace(-30, 30, 200001)
    expected = np.trapezoid(np.sqrt(p(grid) * q(grid)), grid)
    assert t.gbc(x, label) == pytest.approx(-expected, abs=1e-6)


def test_transrate_by_its_singular_values():
    # ½ log det(I + ZᵀZ/(n e)) = ½ sum log(1 + s²/(n e)), whichever of n and d is larger.
    for n, d in ((200, 12), (20, 50)):
        x, label, _ = sample(n=n, d=d)

        def rate(z):
            return np.sum(np.log1p(np.linalg.svd(z, compute_uv=False) ** 2 / (len(z) * 1e-4))) / 2

        expected = rate(x) - sum(np.mean(label == c) * rate(x[label == c]) for c in (0, 1))
        assert t.transrate(x, label) == pytest.approx(expected, abs=1e-6)


def test_transrate_sees_subspaces_and_not_a_shift():
    x, label, _ = sample()
    apart = x * np.where((np.arange(12) < 6) == label[:, None], 1, 0.05)
    assert t.transrate(apart, label) > 10 * t.transrate(x, label)
    shift = 50 * (label - label.mean())[:, None] * (np.arange(12) == 0)
    assert t.transrate(x + shift, label) == pytest.approx(t.transrate(x, label), abs=0.1)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (40, 60)])  # more samples than features, and fewer
def test_sfda_is_two_discriminant_analyses(n, d):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, label, _ = sample(n=n, d=d)
    x /= np.sqrt(np.mean(np.sum(x**2, axis=1)))  # as the panel scales them: the shrinkage depends on it
    within = sum(np.mean(label == c) * np.cov(x[label == c].T, bias=True) for c in (0, 1))
    shrinkage = np.exp(-5 * np.linalg.eigvalsh(within)[-1])

    def probabilities(values):
        return LinearDiscriminantAnalysis("eigen", shrinkage=shrinkage).fit(values, label).predict_proba(values)

    first = probabilities(x)
    soft = np.exp(first) / np.exp(first).sum(axis=1, keepdims=True)
    own = soft[np.arange(n), label][:, None]
    other = np.array([x[label == 1].mean(axis=0), x[label == 0].mean(axis=0)])[label]
    second = probabilities(own * x + (1 - own) * other)
    assert t.sfda(x, label) == pytest.approx(second[np.arange(n), label].mean(), abs=1e-6)


def test_parc_by_its_definition():
    x, label, _ = sample(n=60)
    pairs = np.triu_indices(60, 1)
    features = (1 - np.corrcoef(x))[pairs]
    labels = (1 - np.corrcoef(np.eye(2)[label]))[pairs]  # one-hot rows correlate by 1 or -1
    assert t.parc(x, label) == pytest.approx(stats.spearmanr(features, labels.round(9)).statistic, abs=1e-9)


def test_nearest_class_centre_by_hand():
    # Groups a: real 0, fake 1; b: real 2, fake 5; c: real 4, fake 6. Without the own group the centres are
    # a: real 3, fake 5.5; b: real 2, fake 3.5; c: real 1, fake 3. Squared distance to real minus to fake:
    # real 0: 9 - 30.25 = -21.25; fake 1: 4 - 20.25 = -16.25; real 2: 0 - 2.25 = -2.25; fake 5: 9 - 2.25 = 6.75;
    # real 4: 9 - 1 = 8; fake 6: 25 - 9 = 16. Fake above real: -16.25 beats one, 6.75 two, 16 all three: 6 / 9.
    x = np.array([[0.0], [1], [2], [5], [4], [6]])
    found = t.ncc_auc(x, np.array([0, 1] * 3), np.array([0, 0, 1, 1, 2, 2]))
    assert found == pytest.approx(6 / 9)
    assert np.isnan(t.ncc_auc(x, np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 2])))


def test_panel_rises_with_separation_and_is_invariant():
    features, label, group = sample()
    rng = np.random.default_rng(3)
    weak = {score.name: score for score in t.transferability(features, label, group)}
    strong = {
        score.name: score
        for score in t.transferability(features + 3 * label[:, None] * (np.arange(12) < 3), label, group)
    }
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    order = rng.permutation(len(label))
    moved = t.transferability((5 * features @ rotation + 10)[order], label[order], group[order])
    assert set(weak) == {"logme", "h_score", "gbc", "transrate", "sfda", "parc", "ncc_auc"}
    for score in moved:
        assert weak[score.name].low < weak[score.name].value < weak[score.name].high
        if score.name != "transrate":  # blind to a shift
            assert strong[score.name].value > weak[score.name].value
        if score.name != "parc":  # a correlation across features depends on their axes
            assert score.value == pytest.approx(weak[score.name].value, abs=1e-5)


def test_logme_of_a_label_without_noise_on_more_features_than_samples():
    # The evidence has its maximum at no noise at all, where y ~ N(0, X Xᵀ/alpha) and alpha = n / yᵀ(X Xᵀ)⁻¹y.
    rng = np.random.default_rng(0)
    label, contrasts = np.arange(10) % 2, linalg.null_space(np.ones((1, 10))).T
    x = rng.normal(size=(10, 50)) + 3 * label[:, None]
    covariance, y = contrasts @ x @ x.T @ contrasts.T, contrasts @ label
    alpha = 9 / (y @ np.linalg.solve(covariance, y))
    expected = stats.multivariate_normal(cov=covariance / alpha).logpdf(y) / 9
    assert t.logme(x, label) == pytest.approx(expected, abs=1e-6)


LABEL = np.arange(40) % 2
FACES = np.random.default_rng(0).normal(size=(20, 5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("features", "undefined"),
    [
        (np.repeat(FACES, 2, axis=0), set()),  # every fake is its real once more
        (np.column_stack([LABEL, 2 * LABEL, 0 * LABEL]), {"logme", "sfda"}),  # each class is one point
        (LABEL[:, None], {"logme", "sfda", "parc"}),
        (np.where(LABEL[:, None] == 1, 1.0, np.repeat(FACES, 2, axis=0)), set()),  # one class is one point
        (np.eye(40, 3), set()),
        (np.eye(40, 1) * [[1, 1, 1]], {"parc"}),  # one sample differs from the rest
    ],
)
def test_what_is_degenerate_is_undefined_with_a_reason_and_never_an_error(features, undefined):
    found = t.transferability(features, LABEL, np.arange(40) // 2)
    assert {score.name for score in found if np.isnan(score.value)} == undefined
    assert all(("undefined" in score.how) == np.isnan(score.low) for score in found)


@pytest.mark.filterwarnings("error")
def test_two_pairs_of_duplicates():
    found = {score.name: score for score in t.transferability(np.eye(4, 3)[[0, 1, 0, 1]], [0, 1, 0, 1], [0, 0, 1, 1])}
    assert "undefined: no variance within the classes" in found["sfda"].how
    assert found["gbc"].value == 0  # two points do not overlap


def test_misfits_are_errors():
    features, label, _ = sample()
    with pytest.raises(ValueError, match="one group"):
        t.transferability(features, label, np.zeros(len(label), int))
    with pytest.raises(ValueError, match="constant"):
        t.transferability(np.ones((4, 3)), [0, 1, 0, 1], range(4))


def test_block_jackknife_of_a_mean_is_the_classic_interval():
    # With one sample per block the jackknife error of a mean is sd / sqrt(n), here with Student's t on n - 1 degrees.
    x = np.random.default_rng(0).normal(size=15)
    value, width = block_jackknife(lambda kept: np.array([x[kept].mean()]), np.arange(15), seed=0)
    assert value[0] == pytest.approx(x.mean())
    assert width[0] == pytest.approx(stats.t.ppf(0.975, 14) * x.std(ddof=1) / np.sqrt(15))
