"""Features to measure, and short ways to do it."""

import numpy as np

from evaluation.arrays import Compute, Torch
from evaluation.separability import separability


class OnTorch(Compute):
    """What a GPU runs, on the CPU."""

    @property
    def arrays(self):
        return Torch("cpu")


def faces(seed=0, n=300, d=24, groups=90, shift=1.0):
    """Features in which a group shares an offset and the label moves a few directions."""
    rng = np.random.default_rng(seed)
    group, label = rng.integers(0, groups, n), rng.integers(0, 2, n)
    move = shift * (np.arange(d) < 4)
    features = rng.normal(size=(n, d)) + rng.normal(size=(groups, d))[group] + label[:, None] * move
    return features.astype(np.float32), label, group


def values(scores):
    return {score.name: score.value for score in scores}


def panel(features, label, group, **options):
    return values(separability(features, label, group, replicates=10, **options))


def by_label(features, label, group):
    order = np.argsort(label, kind="stable")
    return features[order], label[order], group[order]
