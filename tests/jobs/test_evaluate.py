"""What evaluation.json says of score files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.metrics import roc_auc_score

from data_shards.files import write_json
from jobs.evaluate import evaluate, read


def write_scores(run: Path, *, videos: bool) -> pa.Table:
    """Score files of a run: 12 sources, each with a real video and two fake ones of one method, 3 frames each."""
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(36), 3)
    label = (video % 3 > 0).astype(np.uint8)
    columns = {
        "label": label,
        "logit": label + rng.normal(size=36)[video] + rng.normal(size=108),
        "group": [f"g{number}" for number in video // 3],
        "method": np.where(label, "swap", "pristine"),
        **({"video": [f"v{number}" for number in video]} if videos else {}),
    }
    table = pa.table(columns)
    for name in ("train", "validation", "test"):
        (run / "scores").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, run / "scores" / f"{name}.parquet")
    return table


def test_auc_per_video_is_that_of_the_mean_logits(tmp_path):
    means = write_scores(tmp_path, videos=True).to_pandas().groupby("video")[["label", "logit"]].mean()
    slices = read(evaluate(tmp_path, replicates=20)).slices
    assert slices["test"]["per video"].value == pytest.approx(roc_auc_score(means["label"], means["logit"]), abs=1e-12)
    assert slices["test"]["per video"].n == 36  # not 24: the two fake videos of a source have one method


def test_without_videos_there_is_no_auc_per_video(tmp_path):
    write_scores(tmp_path, videos=False)
    assert read(evaluate(tmp_path, replicates=20)).slices == {"test": {}}


def test_delong_and_bootstrap_are_of_one_auc(tmp_path):
    write_scores(tmp_path, videos=False)
    scores = {score.name: score for score in read(evaluate(tmp_path, replicates=500)).detection["test"]}
    auc, delong = scores["auc"], scores["auc_delong"]
    assert delong.value == pytest.approx(auc.value, abs=1e-12)
    assert (delong.low, delong.high) == pytest.approx((auc.low, auc.high), abs=0.03)


def test_auc_within_the_values_of_a_column(tmp_path):
    table = write_scores(tmp_path, videos=False)
    low, only_fake = np.arange(108) % 2 == 0, (np.arange(108) % 9 == 3)
    quality = np.where(only_fake, "c99", np.where(low, "c40", "c23"))
    table = table.append_column("quality", pa.array(quality)).append_column("dataset", pa.array(["a"] * 108))
    parquet.write_table(table, tmp_path / "scores" / "test.parquet")
    slices = read(evaluate(tmp_path, replicates=20, subgroups=["quality"])).slices["test"]
    assert set(slices) == {"quality=c23", "quality=c40"}  # c99 has no real sample; one dataset is no subgroup
    within = table.to_pandas().query("quality == 'c40'")
    assert slices["quality=c40"].value == pytest.approx(roc_auc_score(within["label"], within["logit"]), abs=1e-12)
    assert slices["quality=c40"].n == len(within)
    mixed = table.set_column(table.column_names.index("dataset"), "dataset", pa.array(np.where(low, "a", "b")))
    parquet.write_table(mixed, tmp_path / "scores" / "test.parquet")
    assert {"dataset=a", "dataset=b"} <= set(read(evaluate(tmp_path, replicates=20)).slices["test"])


def test_a_file_of_an_earlier_version_is_made_again(tmp_path):
    write_scores(tmp_path, videos=True)
    path = evaluate(tmp_path, replicates=20)
    values = json.loads(path.read_text())
    written = path.stat().st_mtime_ns
    assert evaluate(tmp_path, replicates=20).stat().st_mtime_ns == written
    write_json(path, {**values, "inputs": "of another version", "slices": {}})
    assert json.loads(evaluate(tmp_path, replicates=20).read_text()) == values
