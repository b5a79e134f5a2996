"""The planner's figures against what the sample order really gives."""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from data_shards.command import InputError
from data_shards.manifest import ShardSet, content_digest, shard_name
from data_shards.order import SampleOrder
from data_shards.plan import PlanConfig, evaluation_reads, memory, plan_command, touched, training_reads


def read_by(samples, batch_size, ranks):
    """Samples and shards of each rank in the first epoch, counted in the order itself, as the loader slices it."""
    total = int(samples.sum())
    index, _ = SampleOrder(samples, 0, "d").take(0, total)
    rank = np.arange(total) % batch_size // (batch_size // ranks)
    shard = np.repeat(np.arange(len(samples)), samples)[index]
    return np.bincount(rank, minlength=ranks), np.array([len(set(shard[rank == r])) for r in range(ranks)])


@pytest.mark.parametrize(
    ("samples", "batch_size", "ranks"),
    [([20] * 64, 64, 16), ([20] * 64, 64, 64), ([5, 40, 11, 30] * 20, 48, 12), ([7], 4, 4)],
)
def test_training_is_what_the_order_gives(samples, batch_size, ranks):
    samples = np.array(samples)
    reads = training_reads(samples, 1000 * samples, batch_size=batch_size, ranks=ranks)
    counted, shards = read_by(samples, batch_size, ranks)
    np.testing.assert_array_equal(reads.samples, counted)
    np.testing.assert_allclose(reads.bytes, 1000 * counted)
    # The mean over ranks of a count that varies by a few shards: within 3 %, or 5 % where sizes are mixed in windows.
    assert reads.shards.mean() == pytest.approx(shards.mean(), rel=0.05 if len(set(samples)) > 1 else 0.03)


def test_a_shard_is_missed_with_the_hypergeometric_probability():
    # Two shards of 2 in one window of 4; a reader of half of it takes 2 of 4. It misses a shard if both are of the
    # other one: C(2, 2) / C(4, 2) = 1/6. So it opens 2 * 5/6 shards, of 10 and 30 bytes: 40 * 5/6.
    shards, size = touched(np.array([2, 2]), np.array([10, 30]), 0.5)
    assert shards == pytest.approx(10 / 6)
    assert size == pytest.approx(40 * 5 / 6)


def test_evaluation_by_hand():
    # 10 samples in shards of 4, 1, 5 with 10, 20, 30 bytes a sample, over 4 ranks: [0, 2), [2, 5), [5, 7), [7, 10).
    reads = evaluation_reads(np.array([4, 1, 5]), np.array([40, 20, 150]), ranks=4)
    assert reads.samples.tolist() == [2, 3, 2, 3]
    assert reads.shards.tolist() == [1, 2, 1, 1]
    assert reads.bytes.tolist() == [20, 40, 60, 90]


def test_more_ranks_than_samples():
    reads = evaluation_reads(np.array([2]), np.array([10]), ranks=4)
    assert reads.samples.sum() == 2
    assert reads.shards.tolist() == reads.samples.tolist()
    assert training_reads(np.array([2]), np.array([10]), batch_size=4, ranks=4).samples.tolist() == [1, 1, 0, 0]


def test_memory_is_that_of_the_arrays(shared_sets):
    from data_shards.loader import TrainingLoader

    shards = ShardSet.open(shared_sets["train"])
    samples = np.array([shard["samples"] for shard in shards.shards])
    with TrainingLoader(shards, batch_size=8, image_size=32, seed=0) as loader:
        decoder, reader = loader._decoder, loader._decoder._reader
        held = (reader._shard, reader._offset, reader._length, reader._xxh3, decoder._labels, shards.labels)
        index = sum(column.nbytes for column in (*held, decoder._methods, decoder._groups))
        batch = next(loader)
    parts = memory(samples, batch_size=8, ranks=1, image_size=32, prefetch=2)
    assert parts["index"] == index
    assert parts["batches"] == 4 * batch.images.nbytes  # the caller's, the one given out, two ahead


def test_command(shared_sets, capsys):
    plan_command(PlanConfig(shards=str(shared_sets["train"]), ranks=4, batch_size=8))
    out = capsys.readouterr().out
    assert "72 samples in 11 shards" in out
    assert "| bytes of tar |" in out
    assert (
        "| training, an epoch | 18 | 9 | 79.4 kB |" in out
    )  # a quarter of 317,440 bytes; 72 / 4; of 10 shards of 7 each is missed with about 0.75^7 = 0.13


@pytest.mark.parametrize("samples", [10**6, 10**9])
def test_a_thousand_ranks_in_a_second(samples):
    began = time.process_time()
    plan_command(PlanConfig(samples=samples, ranks=1024))
    assert time.process_time() - began < 1


def test_the_command_takes_a_second_for_a_manifest_of_a_million_samples(tmp_path):
    """Beyond what starting Python and importing takes. CPU time, as other work on the machine does not count in it."""
    sha256 = [f"{number:064x}" for number in range(1000)]
    shard = {"samples": 1000, "bytes": 16_000_000, "labels": {"fake": 500, "real": 500}, "methods": {"m": 1000}}
    manifest = {
        **{"schema": 1, "split": "train", "samples": 10**6, "bytes": 16 * 10**9, "labels": {}, "methods": {}},
        **{"datasets": {}, "groups": 1, "seed": 0, "plan": "", "index": {"file": "index.parquet", "sha256": ""}},
        "shards": [{**shard, "file": shard_name(n), "sha256": sha256[n]} for n in range(1000)],
        "digest": content_digest("train", sha256),
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    def seconds(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "data_shards.plan", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return result.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    out, taken = seconds(f"shards={tmp_path}", "ranks=1024")
    assert "1,000,000 samples in 1,000 shards" in out
    assert taken - seconds("--help")[1] < 1


def test_only_the_manifest_is_read(shared_sets, tmp_path, capsys):
    (tmp_path / "manifest.json").write_bytes((shared_sets["train"] / "manifest.json").read_bytes())
    plan_command(PlanConfig(shards=str(tmp_path), ranks=2))
    assert "72 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either shards"),
        ({"shards": "x", "samples": 3}, "either shards"),
        ({"samples": 10, "ranks": 3, "batch_size": 4}, "not a multiple of the 3 ranks"),
        ({"samples": 10, "ranks": 0}, "ranks=0"),
    ],
)
def test_wrong_options_name_the_remedy(options, message):
    with pytest.raises(InputError, match=message):
        plan_command(PlanConfig(**options))


def test_from_the_command_line():
    command = [sys.executable, "-m", "data_shards.plan", "samples=1000", "ranks=3", "batch_size=4"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: batch_size=4 is not a multiple of the 3 ranks")
