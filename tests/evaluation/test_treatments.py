import numpy as np
import pytest

from evaluation.treatments import TREATMENTS, WHITENED, treat


def features(n=200, d=80):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)) * np.linspace(5, 0.1, d) + 3


def test_what_each_treatment_promises():
    x = features()
    assert treat(x, "centred").mean(axis=0) == pytest.approx(np.zeros(80), abs=1e-5)
    assert np.linalg.norm(treat(x, "unit length"), axis=1) == pytest.approx(np.ones(200), abs=1e-6)
    assert treat(x, "standardised").std(axis=0) == pytest.approx(np.ones(80), abs=1e-5)
    white = treat(x, "whitened").astype(float)
    assert white.T @ white / 200 == pytest.approx(np.eye(20), abs=1e-4)
    assert treat(features(n=800), "whitened").shape == (800, WHITENED)


@pytest.mark.parametrize("n", [30, 200])  # fewer samples than features, and more
def test_whitening_equals_scikit_learn_up_to_signs(n):
    from sklearn.decomposition import PCA

    x = features(n)
    kept = n // 10
    expected = PCA(kept, whiten=True, svd_solver="full").fit_transform(x) * np.sqrt(n / (n - 1))
    assert treat(x, "whitened").shape == (n, kept)
    assert np.abs(treat(x, "whitened")) == pytest.approx(np.abs(expected), abs=1e-3)


def test_whitening_does_not_take_pairs_apart():
    # 60 faces and their fakes in 200 dimensions, which differ by a step far smaller than the noise around it: without
    # the limit on components, neighbours from other pairs tell them apart with an AUC of 1.
    from evaluation.separability import separability

    rng = np.random.default_rng(0)
    group, label = np.repeat(np.arange(60), 2), np.tile([0, 1], 60)
    x = 10 * rng.normal(size=(60, 200))[group] + 0.1 * rng.normal(size=(120, 200)) + 0.03 * label[:, None]
    found = {s.name: s.value for s in separability(treat(x, "whitened"), label, group, replicates=2)}
    assert found["knn_auc_k20"] < 0.7


def test_rows_and_columns_without_content():
    x = np.array([[0.0, 7, 0], [0, 7, 2], [0, 7, 5]])
    assert not treat(x, "standardised")[:, :2].any()
    assert not treat(np.zeros((1, 3)), "unit length").any()
    assert all(np.isfinite(treat(x, name)).all() for name in TREATMENTS)


def test_misfits_are_errors():
    with pytest.raises(ValueError, match="unknown treatment 'l3'; known: centred"):
        treat(features(), "l3")
    with pytest.raises(ValueError, match="NaN"):
        treat([[1.0, np.nan]], "centred")
