"""Treatments of features before they are compared: a factor of every separability score, not a constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.checks import finite

WHITENED = 64

Array = NDArray[np.float64]


def centred(x: Array) -> Array:
    """Mean zero. Changes no distance: what the separability scores do by themselves."""
    return x - x.mean(axis=0)


def unit_length(x: Array) -> Array:
    """Every row of length 1, so that distances rank like cosines. A row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def standardised(x: Array) -> Array:
    """Every column of mean zero and variance one; constant columns become zero."""
    spread = x.std(axis=0)
    flat = spread <= 1e-12 * (np.abs(x).max(axis=0) + 1e-300)
    return np.where(flat, 0, (x - x.mean(axis=0)) / np.where(flat, 1, spread))


def whitened(x: Array) -> Array:
    """The first 64 principal components, at most n/10 of them, each of variance one.

    With more components than that, faces and their own fakes can be told apart without any skill: components of all
    samples first span what pairs share, then only how they differ, and whitening blows that up.
    """
    most = max(1, min(WHITENED, len(x) // 10))
    moved = centred(x)
    wide = x.shape[1] > len(x)
    variance, vectors = np.linalg.eigh(moved @ moved.T if wide else moved.T @ moved)
    variance, vectors = variance[::-1][:most], vectors[:, ::-1][:, :most]
    kept = variance > 1e-10 * variance[0]
    scores = vectors * np.sqrt(len(x)) if wide else moved @ vectors / np.sqrt(np.maximum(variance, 1e-300) / len(x))
    return scores[:, kept]


TREATMENTS: Mapping[str, Callable[[Array], Array]] = {
    "centred": centred,
    "unit length": unit_length,
    "standardised": standardised,
    "whitened": whitened,
}


def treat(features: ArrayLike, treatment: str) -> NDArray[np.float32]:
    """``(n, d')`` float32 features after one of ``TREATMENTS``, none of which sees the label."""
    if treatment not in TREATMENTS:
        raise ValueError(f"unknown treatment {treatment!r}; known: {', '.join(TREATMENTS)}")
    features = np.asarray(features)
    return TREATMENTS[treatment](finite("features", features, len(features), ndim=2)).astype(np.float32)
