import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.embedding import pca, tsne, umap


def clusters(n=60, d=80, distance=30.0, seed=0):
    """Two Gaussian clouds of n / 2 samples each, ``distance`` standard deviations apart along the first axis."""
    features = np.random.default_rng(seed).normal(size=(n, d))
    features[n // 2 :, 0] += distance
    return features


def test_pca_of_points_on_a_line_is_their_position_on_it():
    # Points t * (3, 4) / 5: the unit direction (0.6, 0.8) has all the variance, so the first component is t - mean(t)
    # up to sign and the second is 0.
    t = np.array([0.0, 1.0, 2.0, 5.0])
    points = pca(t[:, None] * np.array([[0.6, 0.8, 0.0]]))
    assert np.abs(points[:, 0]) == pytest.approx(np.abs(t - 2.0), abs=1e-12)
    assert points[:, 1] == pytest.approx(0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 30), st.integers(2, 20))
def test_pca_equals_the_singular_value_decomposition(seed, n, d):
    features = np.random.default_rng(seed).normal(size=(n, d))
    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    assert np.abs(pca(features)) == pytest.approx(np.abs(left[:, :2] * values[:2]), abs=1e-8)


def test_pca_of_float32_far_from_the_origin_is_unharmed():
    features = clusters(d=4)
    assert np.abs(pca((features + 100).astype(np.float32))) == pytest.approx(np.abs(pca(features)), abs=1e-3)


def test_tsne_separates_two_clouds_and_reruns_are_equal():
    features = clusters()
    points = tsne(features, seed=3)
    assert points.shape == (60, 2)
    assert np.array_equal(points, tsne(features, seed=3))
    centres = points[:30].mean(axis=0), points[30:].mean(axis=0)
    radius = max(np.linalg.norm(points[:30] - centres[0], axis=1).max(),
                 np.linalg.norm(points[30:] - centres[1], axis=1).max())  # fmt: skip
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * radius


@pytest.mark.parametrize(("n", "d"), [(5, 3), (7, 1), (12, 400)])
def test_tsne_of_few_samples_or_features(n, d):
    points = tsne(np.random.default_rng(0).normal(size=(n, d)))
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()


def test_tsne_of_identical_samples_puts_them_at_one_point():
    assert np.array_equal(tsne(np.full((8, 3), 7.1)), np.zeros((8, 2)))


@pytest.mark.parametrize(
    ("function", "features", "message"),
    [
        (tsne, np.zeros((4, 3)), "at least 5 samples, got 4"),
        (pca, np.zeros((1, 3)), r"2 principal components .* shape \(1, 3\)"),
        (pca, np.zeros(3), r"shape \(n, d\)"),
        (tsne, np.zeros((0, 3)), r"shape \(n, d\)"),
        (pca, np.array([[0.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]), "1 of 3 samples"),
    ],
)
def test_what_cannot_be_drawn_says_why(function, features, message):
    with pytest.raises(ValueError, match=message):
        function(features)


UMAP = """
import numpy as np
from evaluation.embedding import umap
features = np.random.default_rng(0).normal(size=(30, 80))
features[15:, 0] += 30
points = umap(features, seed=3)
assert np.array_equal(points, umap(features, seed=3))
centres = points[:15].mean(axis=0), points[15:].mean(axis=0)
assert np.ptp(points[:15], axis=0).max() < np.linalg.norm(centres[0] - centres[1])
"""


@pytest.mark.slow
def test_umap_separates_two_clouds_and_reruns_are_equal():
    # In a process of its own, which compiles nothing: that alone would take half a minute.
    subprocess.run([sys.executable, "-c", UMAP], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)


def test_umap_of_four_samples_says_why():
    with pytest.raises(ValueError, match="at least 5"):
        umap(np.zeros((4, 3)))
