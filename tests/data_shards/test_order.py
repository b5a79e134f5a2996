import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.order import SampleOrder, permutation

shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


def splitmix64(state: int, n: int) -> list[int]:
    """The published generator, one output at a time."""
    outputs = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def test_permutation_sorts_the_published_generator():
    # First output of SplitMix64 with state 0, as in the reference implementation's known vector.
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]
    for key in (0, 1, 2**64 - 1):
        outputs = splitmix64(key, 50)
        assert permutation(50, key).tolist() == sorted(range(50), key=outputs.__getitem__)


def test_the_order_never_changes():
    # A run that was started with an earlier version must continue on the same sequence.
    index, epoch = SampleOrder([3, 1, 4, 2], seed=7, digest="abc", window=2).take(0, 25)
    assert index.tolist() == [6, 9, 4, 5, 7, 8, 2, 3, 0, 1, 6, 5, 9, 8, 7, 4, 3, 1, 0, 2, 1, 0, 8, 2, 9]
    assert epoch.tolist() == [0] * 10 + [1] * 10 + [2] * 5


@given(shard_sizes, st.integers(), st.integers(1, 14), st.data())
def test_any_cut_of_the_sequence_is_the_sequence(sizes, seed, window, data):
    whole, epochs = SampleOrder(sizes, seed, "digest", window).take(0, 3 * sum(sizes))
    for epoch in range(3):
        assert sorted(whole[epochs == epoch]) == list(range(sum(sizes)))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    order = SampleOrder(sizes, seed, "digest", window)
    for _ in range(2):  # the second time from the order's memory of its last window
        index, epoch = order.take(start, stop)
        np.testing.assert_array_equal(index, whole[start:stop])
        np.testing.assert_array_equal(epoch, epochs[start:stop])


@given(shard_sizes, st.integers(1, 4))
def test_reads_stay_inside_a_window_of_shards(sizes, window):
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_of[SampleOrder(sizes, 0, "digest", window).take(0, sum(sizes))[0]]
    # Walk the epoch: a new window may begin only when every sample of the open shards has been seen.
    opened, left = set(), 0
    for shard in shards:
        if shard not in opened and (left == 0 or len(opened) == window):
            assert left == 0
            opened = set()
        if shard not in opened:
            opened.add(shard)
            left += sizes[shard]
        left -= 1
        assert len(opened) <= window


@given(shard_sizes, st.integers(1, 4))
def test_the_next_window_is_what_is_read_next(sizes, window):
    sizes = [size + 1 for size in sizes]
    n, order = sum(sizes), SampleOrder(sizes, 0, "d", window)
    whole = SampleOrder(sizes, 0, "d", window).take(0, 3 * n)[0]
    shard = np.repeat(np.arange(len(sizes)), sizes)[whole]
    began, coming = n, order.next_window(n - 1)  # over the end of an epoch
    while began < 2 * n:
        end = began + sum(sizes[s] for s in coming)
        assert set(shard[began:end].tolist()) == set(coming)
        after = [order.next_window(position) for position in range(began, end)]
        assert all(shards == after[0] for shards in after)
        np.testing.assert_array_equal(order.take(began, end)[0], whole[began:end])  # looking ahead changes nothing
        began, coming = end, after[0]
    assert began == 2 * n


def test_seed_digest_and_epoch_change_the_order():
    def first_epoch(seed, digest):
        return SampleOrder([50, 50], seed, digest).take(0, 100)[0].tolist()

    two = SampleOrder([50, 50], 0, "a").take(0, 200)[0].tolist()
    orders = [first_epoch(0, "a"), first_epoch(1, "a"), first_epoch(-1, "a"), first_epoch(0, "b"), two[100:]]
    assert two[:100] == orders[0]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_position_does_not_tell_the_index_nor_the_next_epochs_position():
    # 64 shards of 50, 4 together. Shards move as blocks, so one epoch's correlation has the spread of 64 exchangeable
    # things, 1/8; the mean of 200 epochs has 1/8/sqrt(200) = 0.009. Four times that is the bound.
    order = SampleOrder([50] * 64, seed=3, digest="d", window=4)
    positions = np.array([np.argsort(order.take(e * 3200, (e + 1) * 3200)[0]) for e in range(200)])
    with_index = [np.corrcoef(np.arange(3200), position)[0, 1] for position in positions]
    with_next = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(positions)]
    assert abs(np.mean(with_index)) < 0.036
    assert abs(np.mean(with_next)) < 0.036
    assert 0.08 < np.std(with_index) < 0.18  # as derived: a broken shuffle of shards would show here
    # With all shards in one window every sample is exchangeable: spread 1/sqrt(3200) = 0.018 for a single epoch.
    full = SampleOrder([50] * 64, seed=3, digest="d", window=64).take(0, 3200)[0]
    assert abs(np.corrcoef(np.arange(3200), full)[0, 1]) < 4 * 0.018


def test_every_place_of_a_small_permutation_is_equally_likely():
    # 6,000 epochs of 6 samples in one window: each (sample, place) count is Binomial(6000, 1/6), mean 1,000,
    # standard deviation 28.9; 36 cells stay within 4.5 of them (probability 2.4e-4 of failing, once, for a fixed seed).
    index = SampleOrder([2, 2, 2], seed=1, digest="d", window=3).take(0, 36_000)[0].reshape(6000, 6)
    counts = np.array([np.bincount(index[:, place], minlength=6) for place in range(6)])
    assert np.abs(counts - 1000).max() < 4.5 * 28.9


def test_batches_are_as_diverse_in_groups_as_a_true_shuffle():
    # 800 videos of 16 frames, shuffled once over all shards as packing does, then read with 4 of 64 shards together.
    groups = np.repeat(np.arange(800), 16)
    stored = np.random.default_rng(0).permutation(groups)
    read = np.concatenate([stored[SampleOrder([200] * 64, s, "d", window=4).take(0, 12_800)[0]] for s in range(20)])
    diversity = np.mean([len(np.unique(batch)) for batch in read.reshape(-1, 64)])
    # A true shuffle misses a given video with C(12800 - 16, 64) / C(12800, 64), very nearly (1 - 64/12800)^16.
    expected = 800 * (1 - (1 - 64 / 12_800) ** 16)
    assert diversity == pytest.approx(expected, rel=0.005)


def test_a_billion_samples_cost_one_window():
    order = SampleOrder([10_000] * 100_000, seed=0, digest="d")
    index, epoch = order.take(3 * 10**9 + 12_345, 3 * 10**9 + 12_601)
    assert (epoch == 3).all()
    assert len(np.unique(index // 10_000)) <= 16
    assert order._window[2].nbytes == 16 * 10_000 * 8


@pytest.mark.parametrize(("sizes", "window"), [([], 1), ([0, 0], 1), ([3, -1], 1), ([3], 0)])
def test_nonsense_is_refused(sizes, window):
    with pytest.raises(ValueError, match="expected"):
        SampleOrder(sizes, 0, "d", window)


def test_a_range_that_runs_backwards_is_refused():
    with pytest.raises(ValueError, match=r"take\(5, 3\)"):
        SampleOrder([3], 0, "d").take(5, 3)
