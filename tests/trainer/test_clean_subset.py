"""The fixed part of the training data that every evaluation scores without augmentation."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data_shards.manifest import ShardSet
from trainer.clean_subset import clean_subset
from trainer.predict import score
from trainer.state import read_metrics


def test_the_subset_is_fixed_stratified_and_rare_classes_are_in_it():
    labels = np.zeros(1000, dtype=np.uint8)
    labels[:3] = 1
    subset = clean_subset(labels, 100)
    # 100 of 1000: a tenth of 997 real ones is 100 (rounded), of 3 fakes 0 (rounded), hence one at least.
    assert (len(subset), labels[subset].sum()) == (101, 1)
    assert np.array_equal(subset, clean_subset(labels, 100))
    assert (np.diff(subset) > 0).all()
    assert np.array_equal(clean_subset(labels, 5000), np.arange(1000))
    assert set(clean_subset(labels, 50)) <= set(subset)  # a smaller one lies in a larger one


def test_every_evaluation_has_the_auc_of_the_clean_subset(toy_config, train):
    config = toy_config(train_subset=1000, augmentation=1.0, evaluate_every=2)
    result = train(config)
    rows = [row for row in read_metrics(config.directory) if "validation/auc" in row]
    assert len(rows) == 2
    assert all({"train/auc", "train/clean_loss"} <= set(row) for row in rows)
    # At the selected checkpoint the subset (here all 40 samples) is what predict makes of the training set.
    import pyarrow.parquet as parquet

    table = parquet.read_table(score(config.directory, {"train": config.train})["train"])
    auc = roc_auc_score(ShardSet.open(config.train).labels, table["logit"].to_numpy())
    assert result["selected"]["train/auc"] == pytest.approx(auc, abs=1e-9)


def test_the_subset_leaves_training_as_it_is(toy_config, train, tmp_path):
    results = [
        train(toy_config(train_subset=samples, runs=tmp_path / str(samples), drop_path=0.2)) for samples in (4, 40)
    ]
    assert results[0]["checkpoints"] == results[1]["checkpoints"]
