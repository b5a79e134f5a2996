import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from evaluation.arrays import Compute
from evaluation.distances import normalised, pass_over_pairs
from evaluation.null import separability_null
from evaluation.separability import separability

SMALL = Compute(chunk=3000)


@pytest.fixture(scope="module")
def sample():
    random = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    features = random.normal(size=(120, 8)) + label[:, None] * 0.5
    return features, label, np.arange(120) // 3


def test_takers_side_by_side_get_every_tile_in_order(sample):
    features, _, group = sample
    seen = {name: [] for name in "abc"}
    takers = [lambda tile, name=name: seen[name].append((tile.rows, tile.values.copy())) for name in seen]
    with threadpool_limits(2, "blas"):
        pass_over_pairs(normalised(features), group, SMALL, *takers)
    rows = [rows for rows, _ in seen["a"]]
    assert len(rows) > 3
    assert [each.start for each in rows] == [0, *(each.stop for each in rows[:-1])]
    assert rows[-1].stop == 120
    for name in "bc":
        assert [each for each, _ in seen[name]] == rows
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(seen["a"], seen[name], strict=True))


@pytest.mark.parametrize("compute", [SMALL, Compute()])
def test_scores_and_nulls_are_the_same_to_the_bit_on_any_number_of_cores(sample, compute):
    found = []
    for cores in (1, 2, 8):
        with threadpool_limits(cores, "blas"):
            scores = separability(*sample, replicates=50, compute=compute)
            nulls = separability_null(*sample, permutations=20, compute=compute)
        found.append(repr([scores, nulls]))
    assert found[0] == found[1] == found[2]


def test_an_error_of_a_taker_ends_the_pass(sample):
    def fails(tile):
        raise RuntimeError("enough")

    taken = []
    with threadpool_limits(2, "blas"), pytest.raises(RuntimeError, match="enough"):
        pass_over_pairs(normalised(sample[0]), sample[2], SMALL, fails, taken.append)
    assert len(taken) == 1
