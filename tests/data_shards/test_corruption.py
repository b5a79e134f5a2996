"""What is damaged is never trained on silently. 1,000 random trials: tests/benchmarks/bench_corruption.py."""

import importlib.util
import logging
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.command import InputError
from data_shards.loader import TrainingLoader, evaluation_batches
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample, SampleReader

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_corruption.py"
spec = importlib.util.spec_from_file_location("bench_corruption", BENCH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

pytestmark = pytest.mark.timeout(120)
SIZE = bench.SIZE


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """30 samples in shards of 8, 8, 8, 6."""
    return bench.make_set(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def damaged(clean, tmp_path) -> ShardSet:
    """Samples 3 and 12 each have one bit flipped in the middle of the image."""
    shutil.copytree(clean, tmp_path / "set")
    shards = ShardSet.open(tmp_path / "set")
    for index in (3, 12):
        file = shards.shard_path(shards.column("shard")[index])
        data = bytearray(file.read_bytes())
        data[shards.column("offset")[index] + shards.column("length")[index] // 2] ^= 4
        file.write_bytes(data)
    return shards


def loader(shards, **options) -> TrainingLoader:
    return TrainingLoader(shards, **{"batch_size": 6, "image_size": SIZE, "seed": 0, **options})


@pytest.mark.parametrize("damage", bench.KINDS, ids=lambda damage: damage.__name__)
def test_no_damage_is_silent(damage, clean, tmp_path):
    results = set()
    for seed in range(6):
        outcome = bench.trial(clean, damage, np.random.default_rng(seed), tmp_path)
        assert outcome.result != "SILENT", (seed, outcome)
        results.add(outcome.result)
    if damage.__name__ in ("swapped_images", "truncated_image", "stale_manifest"):  # always in an image's bytes
        assert results <= {"raised", "refused"}


def test_the_trials_would_notice_a_loader_that_checks_nothing(clean, tmp_path, monkeypatch):
    def unchecked(self, index):
        try:
            file = self._file(int(self._shard[index]))
            return bench.os.pread(file.descriptor, int(self._length[index]), int(self._offset[index]))
        except OSError as error:  # read ahead while the shard is being written
            raise self.corrupt(index, str(error)) from error

    monkeypatch.setattr(SampleReader, "read", unchecked)
    outcomes = [bench.trial(clean, bench.swapped_images, np.random.default_rng(s), tmp_path).result for s in range(6)]
    assert "SILENT" in outcomes


def test_the_error_names_shard_and_key(damaged):
    with pytest.raises(CorruptSample) as caught:
        list(evaluation_batches(damaged, batch_size=4, image_size=SIZE))
    assert Path(caught.value.shard).name == "shard-000000.tar"
    assert caught.value.key == damaged.column("key")[3]
    assert str(caught.value).endswith(f"shard-000000.tar: sample {caught.value.key!r}: {caught.value.reason}")
    assert "xxh3 differs" in caught.value.reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it may cross process borders


def test_training_stands_at_the_batch_that_failed(damaged):
    with loader(damaged) as batches:
        order = batches.order.take(0, 30)[0].tolist()
        first_bad = min(order.index(3), order.index(12)) // 6
        for _ in range(first_bad):
            next(batches)
        for _ in range(2):
            with pytest.raises(CorruptSample):
                next(batches)
            assert batches.position == 6 * first_bad


@pytest.mark.parametrize("world", [1, 2, 3])
def test_skip_leaves_out_the_bad_and_moves_nothing(damaged, world, caplog):
    ranks = [loader(damaged, rank=r, world_size=world, on_bad="skip", max_bad_share=0.5) for r in range(world)]
    order = ranks[0].order.take(0, 60)[0].reshape(10, 6)
    for expected in order:  # two epochs of five batches
        seen = np.concatenate([next(rank).index for rank in ranks])
        assert seen.tolist() == [i for i in expected if i not in (3, 12)]
    assert sum(rank.bad for rank in ranks) == 4
    assert ranks[0].position == 60
    assert len(re.findall(r"left out: .*shard-00000[01].tar: sample '", caplog.text)) >= 4
    for rank in ranks:
        rank.close()


def test_skip_is_bounded(damaged):
    # 2 of 30 samples are bad: a share of 0.0667.
    options = {"batch_size": 4, "image_size": SIZE, "on_bad": "skip"}
    kept = [i for batch in evaluation_batches(damaged, max_bad_share=0.07, **options) for i in batch.index.tolist()]
    assert kept == [i for i in range(30) if i not in (3, 12)]
    with pytest.raises(CorruptSample, match=r"xxh3 differs\); 2 of 30 samples are bad, above max_bad_share=0.06"):
        list(evaluation_batches(damaged, max_bad_share=0.06, **options))


@pytest.mark.parametrize("world", [1, 3])
def test_the_bound_is_of_different_samples_over_all_epochs(damaged, world):
    options = {"on_bad": "skip", "world_size": world}
    with loader(damaged, max_bad_share=0.07, **options) as batches:
        for _ in range(100):  # 20 epochs
            next(batches)
        assert batches.bad == 2 * 20 if world == 1 else 0 < batches.bad < 40
    with (
        loader(damaged, max_bad_share=0.05, **options) as batches,
        pytest.raises(CorruptSample, match="2 of 30 samples are bad"),
    ):
        for _ in range(100):  # one of three ranks meets both within a few epochs
            next(batches)


def test_a_batch_of_several_epochs_counts_every_place(damaged):
    with loader(damaged, batch_size=90, on_bad="skip", max_bad_share=0.07) as batches:
        assert len(next(batches)) == 90 - 3 * 2
        assert batches.bad == 6


def test_a_batch_of_bad_samples_only_is_empty(damaged, caplog):
    caplog.set_level(logging.CRITICAL)
    damaged.shard_path(1).unlink()  # samples 8 ... 15
    options = {"on_bad": "skip", "max_bad_share": 1.0}
    batches = list(evaluation_batches(damaged, batch_size=8, image_size=SIZE, **options))
    assert [len(batch) for batch in batches] == [7, 0, 8, 6]  # sample 3 is still bad
    assert batches[1].images.shape == (0, SIZE, SIZE, 3)


def test_what_the_loader_was_opened_on_may_not_change_below_it(clean, tmp_path):
    """Packing again in place, between opening and reading, with hashes that fit the new images."""
    shutil.copytree(clean, tmp_path / "set")
    shards = ShardSet.open(tmp_path / "set")
    for file in bench.make_set(tmp_path / "other", seed=5).iterdir():
        shutil.copy(file, tmp_path / "set" / file.name)
    with pytest.raises(InputError, match=r"index.parquet is not the one"):
        loader(shards)


@pytest.mark.parametrize(("damage", "names"), [("missing", "shard-000002.tar is missing"), ("cut", "shard-000002.tar")])
def test_opening_names_the_shard(clean, tmp_path, damage, names):
    shutil.copytree(clean, tmp_path / "set")
    shard = tmp_path / "set" / "shard-000002.tar"
    if damage == "missing":
        shard.unlink()
    else:
        bench.os.truncate(shard, 1000)
    with pytest.raises(InputError, match=names):
        ShardSet.open(tmp_path / "set")


def test_the_error_survives_the_loss_of_the_index(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "set")
    reader = SampleReader(ShardSet.open(tmp_path / "set"), image_size=SIZE)
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(
        CorruptSample, match=r"shard-000001.tar: sample 'number 1 of the shard': cannot be read: No such"
    ):
        reader.read(9)
