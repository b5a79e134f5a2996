"""The loader on shard sets written by hand: order, memory, threads, every sample once."""

import gc
import itertools
import json
import os
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.command import InputError
from data_shards.loader import TrainingLoader, _Decoder, evaluation_batches
from data_shards.order import SampleOrder
from data_shards.reader import CorruptSample, SampleReader
from tests.data_shards.by_hand import SHARDS, SIZE


def check(batch, pixels, shards) -> None:
    """The batch's images and labels are those of its indices."""
    np.testing.assert_array_equal(batch.images.numpy(), pixels[batch.index.numpy()])
    np.testing.assert_array_equal(batch.labels.numpy(), batch.index.numpy() % 2)
    # write_set gives sample i the group g<i>, and the only method m; names are sorted as text
    names = sorted(f"g{i}" for i in range(len(shards)))
    assert [names[code] for code in batch.group.tolist()] == [f"g{i}" for i in batch.index.tolist()]
    assert shards.groups.names.tolist() == names
    assert (batch.method == 0).all()
    assert (batch.method.dtype, batch.group.dtype) == (torch.int64, torch.int64)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.float32)
    assert (batch.index.dtype, batch.epoch.dtype) == (torch.int64, torch.int64)


# --- training


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(SHARDS)), seed=st.integers(0, 3), batch_size=st.sampled_from([8, 24]))
def test_the_order_survives_changes_of_ranks_and_threads(sets, pixels, data, name, seed, batch_size):
    """Stop anywhere, continue with other ranks and threads: batch for batch the undisturbed, shuffled sequence."""
    shards = sets[name]
    position, batches = 0, 0
    state = None
    for _ in range(data.draw(st.integers(1, 4), label="runs")):
        world = data.draw(st.sampled_from([w for w in (1, 2, 3, 4, 8) if batch_size % w == 0]), label="ranks")
        threads = data.draw(st.integers(1, 3), label="threads")
        loaders = [
            TrainingLoader(
                shards, batch_size=batch_size, image_size=SIZE, seed=seed, rank=r, world_size=world, threads=threads
            )
            for r in range(world)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        for _ in range(data.draw(st.integers(0, 4), label="batches")):
            parts = [next(loader) for loader in loaders]
            expected, epoch = SampleOrder(SHARDS[name], seed, shards.digest).take(position, position + batch_size)
            np.testing.assert_array_equal(torch.cat([part.index for part in parts]), expected)
            np.testing.assert_array_equal(torch.cat([part.epoch for part in parts]), epoch)
            for part in parts:
                check(part, pixels, shards)
                assert len(part) == batch_size // world
            position, batches = position + batch_size, batches + 1
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        assert states[0]["position"] == position == loaders[0].position
        state = states[0]
        for loader in loaders:
            loader.close()


def test_load_state_dict_in_the_middle_forgets_what_was_prefetched(sets):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=3) as loader:
        first = [next(loader).index.tolist() for _ in range(5)]
        loader.load_state_dict({**loader.state_dict(), "position": 4})
        assert [next(loader).index.tolist() for _ in range(4)] == first[1:]
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, position=8) as loader:
        assert next(loader).index.tolist() == first[2]


@pytest.mark.parametrize("change", ["seed", "data"])
def test_a_position_of_another_sequence_is_refused(sets, change):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0) as loader:
        state = loader.state_dict()
    name, seed = ("uneven", 1) if change == "seed" else ("one shard", 0)
    with (
        TrainingLoader(sets[name], batch_size=4, image_size=SIZE, seed=seed) as loader,
        pytest.raises(InputError, match="seed was 0 and is 1" if change == "seed" else "digest was"),
    ):
        loader.load_state_dict(state)


def test_a_batch_belongs_to_the_caller(sets, pixels):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=4) as loader:
        held = [next(loader) for _ in range(20)]
    for batch in held:
        check(batch, pixels, sets["uneven"])


@pytest.mark.parametrize(
    "part",
    [lambda images: images[1:], lambda images: images.numpy()[1:], lambda images: images.flatten().detach()[192:]],
)
def test_memory_is_used_again_only_when_no_part_of_the_batch_is_left(sets, pixels, part):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, prefetch=1) as loader:
        held, addresses = [], set()
        for step in range(60):
            batch = next(loader)
            addresses.add(batch.images.data_ptr())
            if step % 20 == 0:
                held.append((batch.index[1:].numpy(), part(batch.images)))
        del batch
    # Those held; the caller's last one, the one being returned, two ahead; one that each thread has yet to let go of.
    # Twice as many, as a busy machine lets go late; without any reuse they were 60.
    assert len(addresses) <= 2 * (3 + 4 + 2)
    for index, kept in held:
        np.testing.assert_array_equal(np.asarray(kept).reshape(3, SIZE, SIZE, 3), pixels[index])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_pinned_batches(sets, pixels):
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, pin_memory=True) as loader:
        batches = [next(loader) for _ in range(20)]
    for batch in batches:
        assert batch.images.is_pinned()
        check(batch, pixels, sets["uneven"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size=6 is not a multiple of the 4 ranks"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"position": -1}, "position=-1"),
        ({"threads": 0}, "threads=0"),
        ({"on_bad": "ignore"}, "on_bad='ignore'"),
        ({"max_bad_share": 2.0}, "max_bad_share=2.0"),
    ],
)
def test_wrong_options_name_the_remedy(sets, options, message):
    with pytest.raises(InputError, match=message):
        TrainingLoader(sets["uneven"], **{"batch_size": 4, "image_size": SIZE, "seed": 0, **options})


# --- threads


def decoding_threads() -> int:
    return sum(thread.name.startswith("data_shards") for thread in threading.enumerate())


@pytest.mark.timeout(30)
def test_threads_end(sets):
    gc.collect()  # of loaders that other tests dropped
    assert decoding_threads() == 0
    with TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0, threads=3) as loader:
        assert decoding_threads() == 0  # none before the first batch
        next(loader)
        assert 0 < decoding_threads() <= 3
    assert decoding_threads() == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    loader.close()  # again does nothing

    for batch in evaluation_batches(sets["uneven"], batch_size=4, image_size=SIZE):
        assert len(batch) == 4
        break
    gc.collect()  # an abandoned evaluation closes itself
    assert decoding_threads() == 0

    forgotten = TrainingLoader(sets["uneven"], batch_size=4, image_size=SIZE, seed=0)
    next(forgotten)
    del forgotten
    until = time.monotonic() + 10
    while decoding_threads() and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert decoding_threads() == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [MemoryError("no memory"), KeyError("a bug")])
def test_any_error_of_a_thread_reaches_the_caller_and_can_be_retried(sets, monkeypatch, error):
    broken = threading.Event()
    broken.set()
    decode = SampleReader.decode_into

    def failing(self, index, out):
        if broken.is_set() and index == 5:
            raise error
        decode(self, index, out)

    monkeypatch.setattr(SampleReader, "decode_into", failing)
    with TrainingLoader(sets["one shard"], batch_size=23, image_size=SIZE, seed=0) as loader:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                next(loader)
            assert "sample 5" in caught.value.__notes__[0]
            assert loader.position == 0
        broken.clear()
        assert sorted(next(loader).index.tolist()) == list(range(23))
        assert loader.position == 23


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_batch_that_cannot_be_begun_is_not_lost(sets, monkeypatch, at):
    """No memory for one of the batches ahead: the one asked for comes with the next call, and the order stays."""
    begin, calls = _Decoder._begin, itertools.count()

    def failing(self, *positions):
        if next(calls) == at:
            raise MemoryError
        return begin(self, *positions)

    options = {"batch_size": 4, "image_size": SIZE, "seed": 0}
    with TrainingLoader(sets["uneven"], **options) as loader:
        expected = [next(loader).index.tolist() for _ in range(10)]
    monkeypatch.setattr(_Decoder, "_begin", failing)
    seen, failures = [], 0
    with TrainingLoader(sets["uneven"], **options) as loader:
        while len(seen) < 10:
            try:
                seen.append(next(loader).index.tolist())
            except MemoryError:
                failures += 1
            assert loader.position == 4 * len(seen)
    assert failures == 1
    assert seen == expected


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
def test_the_system_is_told_what_is_read_next(sets, monkeypatch):
    """Of a folder: the shards of the next window in training, the next shard in evaluation."""
    told = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, *_: told.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    )
    shards = sets["more than a window"]  # 20 shards of 3: windows of 16 and 4
    order = SampleOrder(SHARDS["more than a window"], 0, shards.digest)
    expected = [shard["file"] for shard in (shards.shards[s] for s in order.next_window(0))]
    with TrainingLoader(shards, batch_size=4, image_size=SIZE, seed=0, prefetch=0) as loader:
        next(loader)
        while len(told) < 4:
            time.sleep(0.001)
    assert told == expected
    told.clear()
    batches = evaluation_batches(shards, batch_size=3, image_size=SIZE, prefetch=0)
    next(batches)
    while "shard-000002.tar" not in told:  # the batch that is begun is of shard 1
        time.sleep(0.001)
    batches.close()
    assert set(told) <= {"shard-000001.tar", "shard-000002.tar"}


# --- evaluation


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("world", range(1, 9))
def test_evaluation_sees_every_sample_once(sets, pixels, name, world):
    shards = sets[name]
    seen = []
    for rank in range(world):
        mine = list(evaluation_batches(shards, batch_size=4, image_size=SIZE, rank=rank, world_size=world))
        for batch in mine:
            check(batch, pixels, shards)
            assert (batch.epoch == 0).all()
            assert 1 <= len(batch) <= 4
        assert all(len(batch) == 4 for batch in mine[:-1])
        seen.append(np.concatenate([np.empty(0, int), *(batch.index for batch in mine)]))
    assert np.concatenate(seen).tolist() == list(range(shards.samples))  # contiguous ranges, in the order of the ranks
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@pytest.mark.parametrize("first", [1, 8, 32, 33, 40])
def test_evaluation_goes_on_where_it_is_told_to(sets, first):
    options = {"batch_size": 4, "image_size": SIZE, "world_size": 2, "first": first}
    ranks = (evaluation_batches(sets["uneven"], rank=rank, **options) for rank in range(2))
    seen = [i for batches in ranks for batch in batches for i in batch.index]
    assert seen == list(range(first, sets["uneven"].samples))


@pytest.mark.parametrize("world", range(1, 9))
def test_what_evaluation_leaves_out_is_bounded_whatever_the_world(sets, monkeypatch, world):
    """A tenth of the samples is bad, evenly; 9 % are too many for one rank, and so for some of any number of them."""
    shards = sets["more than a window"]  # 60 samples
    decode = SampleReader.decode_into

    def failing(self, index, out):
        if index % 10 == 5:
            raise self.corrupt(index, "a test")
        decode(self, index, out)

    monkeypatch.setattr(SampleReader, "decode_into", failing)

    def left_out(share):
        """Samples that no rank gave, or None if one of them raised."""
        seen = []
        for rank in range(world):
            options = {"on_bad": "skip", "max_bad_share": share, "rank": rank, "world_size": world}
            seen += [i for b in evaluation_batches(shards, batch_size=4, image_size=SIZE, **options) for i in b.index]
        return 60 - len(seen)

    with pytest.raises(CorruptSample, match=r"samples are bad, above max_bad_share=0\.09"):
        left_out(0.09)
    assert left_out(0.2) == 6


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("name", SHARDS)
def test_one_epoch_of_training_sees_every_sample_once(sets, name, world):
    """Two epochs; a global batch is one sample per rank, so that epochs end anywhere in it."""
    samples, seen = sum(SHARDS[name]), []
    for rank in range(world):
        options = {"batch_size": world, "rank": rank, "world_size": world, "threads": 1}
        with TrainingLoader(sets[name], image_size=SIZE, seed=0, **options) as loader:
            batches = [next(loader) for _ in range(-(-2 * samples // world))]
        seen += [(int(batch.epoch), int(batch.index)) for batch in batches]
    assert sorted(pair for pair in seen if pair[0] < 2) == [(e, i) for e in (0, 1) for i in range(samples)]
