import numpy as np
import pytest

from evaluation.bootstrap import sampled
from evaluation.comparison import difference, differences, holm_adjusted
from evaluation.separability import separability_draws


def backbones(seed=0, n=300):
    """Three feature sets of the same samples: strong, weak, and a copy of weak with fresh noise."""
    rng = np.random.default_rng(seed)
    group, label = np.repeat(np.arange(n // 3), 3), rng.integers(0, 2, n)
    shared = rng.normal(size=(n, 8))
    move = label[:, None] * (np.arange(8) < 2)
    sets = {"strong": shared + 2 * move, "weak": shared + 0.7 * move}
    sets["copy"] = sets["weak"] + 0.05 * rng.normal(size=(n, 8))
    panels = {name: separability_draws(x, label, group, replicates=300) for name, x in sets.items()}
    return {name: {d.score.name: d for d in panel} for name, panel in panels.items()}


def test_differences_between_backbones():
    panels = backbones()
    found = differences({name: panel["knn_auc_k20"] for name, panel in panels.items()})
    assert [(d.a, d.b) for d in found] == [("strong", "weak"), ("strong", "copy"), ("weak", "copy")]
    strong, _, copy = found
    assert strong.score.value == panels["strong"]["knn_auc_k20"].score.value - panels["weak"]["knn_auc_k20"].score.value
    assert 0 < strong.score.low < strong.score.value < strong.score.high
    assert strong.p < 1e-6  # far below the 1/301 at which counting 300 resamples would end
    assert strong.p_holm <= 3 * strong.p
    assert copy.score.low < 0 < copy.score.high
    assert copy.p > 0.05
    # Pairing pays: what both share cancels.
    a, b = panels["weak"]["silhouette"], panels["copy"]["silhouette"]
    paired = difference(a, b)
    assert paired.high - paired.low < 0.5 * np.hypot(a.score.high - a.score.low, b.score.high - b.score.low)


def test_unlike_scores_are_not_compared():
    one, other = (sampled("silhouette", 0.1, np.arange(10.0), n=n, how="{interval}") for n in (5, 6))
    with pytest.raises(ValueError, match="same samples"):
        difference(one, other)


def test_an_undefined_score_stays_undefined():
    a, b = (sampled("s", value, np.full(10, value), n=5, how="{interval}") for value in (np.nan, 1.0))
    (found,) = differences({"a": a, "b": b})
    assert np.isnan([found.score.value, found.p, found.p_holm]).all()


def test_p_of_a_difference_by_hand():
    # Differences of the draws -1, 0, 1 have the standard deviation 1; a difference of 1.96 is 1.96 of them: p = 0.05.
    a = sampled("s", 2.96, np.array([-1.0, 0, 1]), n=5, how="{interval}")
    b = sampled("s", 1.0, np.zeros(3), n=5, how="{interval}")
    (found,) = differences({"a": a, "b": b})
    assert found.p == pytest.approx(0.05, abs=1e-4)
    (same,) = differences({"b": b, "again": b})
    assert same.p == 1


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04, which may not fall: 0.03, 0.06, 0.06.
    assert holm_adjusted(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm_adjusted(np.array([0.5, np.nan, 0.9])) == pytest.approx([1, np.nan, 1], nan_ok=True)
