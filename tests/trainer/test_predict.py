"""Scores of a finished run: complete, in order, of the checkpoint asked for, and made once."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from data_shards.command import InputError
from data_shards.manifest import ShardSet
from trainer import predict
from trainer.predict import read_provenance, score


@pytest.fixture
def finished(toy_config, train):
    """A finished run whose selected and last checkpoints differ, and its result."""
    config = toy_config(epochs=6, flip=False, patience=1)
    return config.directory, train(config)


def test_scores_are_those_of_the_run_and_name_each_sample(finished, toy_sets):
    run, result = finished
    files = score(run, {"validation": toy_sets["validation"], "other": toy_sets["test"]})
    assert files == {name: run / "scores" / f"{name}.parquet" for name in ("validation", "other")}
    table = pq.read_table(files["validation"])
    assert table.column_names == ["index", "label", "group", "method", "dataset", "logit"]
    shards = ShardSet.open(toy_sets["validation"])
    assert table["index"].to_pylist() == list(range(22))
    for name in ("group", "method", "dataset"):
        assert table[name].to_pylist() == shards.column(name).tolist()
    labels, logits = table["label"].to_numpy(), table["logit"].to_numpy()
    np.testing.assert_array_equal(labels, shards.labels)
    assert result["selected"]["validation/auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert read_provenance(files["other"])["data"] == ShardSet.open(toy_sets["test"]).digest


def test_scores_carry_further_columns(finished, toy_sets):
    run, _ = finished
    sets = {"test": toy_sets["test"]}
    bare = pq.read_table(score(run, sets)["test"])
    file = score(run, sets, columns=["path", "method"])["test"]
    table, made = pq.read_table(file), file.stat().st_mtime_ns
    assert table["path"].to_pylist() == ShardSet.open(toy_sets["test"]).column("path").tolist()
    assert table["logit"].to_pylist() == bare["logit"].to_pylist()
    assert score(run, sets, columns=["path", "method"])["test"].stat().st_mtime_ns == made
    with pytest.raises(InputError, match="no shard set has a column 'age'"):
        score(run, sets, columns=["age"])


def test_batch_size_and_threads_change_nothing(finished, toy_sets):
    run, _ = finished
    file = score(run, {"test": toy_sets["test"]})["test"]
    first = pq.read_table(file)["logit"].to_numpy()
    file.unlink()
    second = pq.read_table(score(run, {"test": toy_sets["test"]}, batch_size=5, threads=1)["test"])["logit"].to_numpy()
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)


def test_scores_are_made_once_per_checkpoint_and_data(finished, toy_sets):
    run, _ = finished
    sets = {"test": toy_sets["test"]}
    file = score(run, sets)["test"]
    made = file.stat().st_mtime_ns
    assert score(run, sets)["test"].stat().st_mtime_ns == made
    # Other data under the same name are scored anew, and the last checkpoint has a file of its own.
    assert score(run, {"test": toy_sets["validation"]})["test"].stat().st_mtime_ns != made
    assert pq.read_table(file).num_rows == 22
    last = score(run, sets, "last")["test"]
    assert last.name == "test-last.parquet"
    assert read_provenance(last)["checkpoint"] == "last"


def test_videos_are_handed_on_and_missing_ones_made_up_for(finished, toy_sets, monkeypatch):
    run, _ = finished
    sets = {"test": toy_sets["test"]}
    without = pq.read_table(score(run, sets)["test"])
    videos = np.array([f"v{row // 2}" for row in range(len(without))], dtype=object)
    monkeypatch.setattr(ShardSet, "videos", videos)  # a carried column: the digest of the set stays as it was
    table = pq.read_table(score(run, sets)["test"])
    assert table["video"].to_pylist() == videos.tolist()
    assert table.drop_columns("video").equals(without)


def test_where_the_last_checkpoint_is_the_selected_one_its_scores_are_copied(finished, toy_sets, monkeypatch):
    run, _ = finished
    shutil.copyfile(run / "best.safetensors", run / "last.safetensors")
    sets = {"test": toy_sets["test"]}
    selected = pq.read_table(score(run, sets)["test"])
    monkeypatch.setattr(predict, "load_run", None)  # no model is needed
    last = score(run, sets, "last")["test"]
    assert pq.read_table(last).equals(selected)
    assert read_provenance(last)["checkpoint"] == "last"
    assert score(run, sets, "last")["test"].stat().st_mtime_ns == last.stat().st_mtime_ns
    with pytest.raises(TypeError):  # other data: scored, not copied
        score(run, {"test": toy_sets["validation"]}, "last")


def test_an_unfinished_run_and_a_bad_name_are_the_users_mistake(finished, toy_sets):
    run, _ = finished
    with pytest.raises(InputError, match="'a/b' must be a plain file name"):
        score(run, {"a/b": toy_sets["test"]})
    (run / "result.json").unlink()
    with pytest.raises(InputError, match="is not a finished run"):
        score(run, {"test": toy_sets["test"]})
