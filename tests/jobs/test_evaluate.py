"""What evaluation.json says of score files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn import metrics

from data_shards.files import write_json
from evaluation.detection import balanced_threshold
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


def by_name(scores):
    return {score.name: score for score in scores}


def test_videos_have_all_metrics_of_their_mean_logits_at_their_own_threshold(tmp_path):
    table = write_scores(tmp_path, videos=True).to_pandas()
    # Validation of other logits than test: the thresholds are its own, that of videos is not that of frames.
    table["logit"] = np.where(table["label"], 2 * table["logit"] + np.arange(108) % 3, table["logit"])
    parquet.write_table(pa.Table.from_pandas(table), tmp_path / "scores" / "validation.parquet")
    found = read(evaluate(tmp_path, replicates=20))
    validation, test = (
        pd.read_parquet(tmp_path / "scores" / f"{name}.parquet").groupby("video")[["label", "logit"]].mean()
        for name in ("validation", "test")
    )
    assert found.video_threshold == balanced_threshold(validation["label"], validation["logit"]) != found.threshold
    scores = by_name(found.slices["test"]["per video"])
    assert list(scores) == list(by_name(found.detection["test"]))
    label, logit = test["label"], test["logit"]
    expected = {
        "auc": metrics.roc_auc_score(label, logit),
        "auc_delong": metrics.roc_auc_score(label, logit),
        "ap": metrics.average_precision_score(label, logit),
        "balanced_accuracy": metrics.balanced_accuracy_score(label, logit >= found.video_threshold),
        "f1": metrics.f1_score(label, logit >= found.video_threshold),
        "brier": metrics.brier_score_loss(label, 1 / (1 + np.exp(-logit))),
    }
    assert {name: scores[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert scores["auc"].n == 36  # not 24: the two fake videos of a source have one method
    assert scores["auc_delong"].low < scores["auc_delong"].value
    assert sum(count for _, _, count in found.slice_reliability["test"]["per video"]) == 36


def test_without_videos_there_is_nothing_per_video(tmp_path):
    write_scores(tmp_path, videos=False)
    found = read(evaluate(tmp_path, replicates=20))
    assert found.slices == {"test": {}}
    assert found.video_threshold == found.threshold


def test_delong_and_bootstrap_are_of_one_auc(tmp_path):
    write_scores(tmp_path, videos=False)
    scores = {score.name: score for score in read(evaluate(tmp_path, replicates=500)).detection["test"]}
    auc, delong = scores["auc"], scores["auc_delong"]
    assert delong.value == pytest.approx(auc.value, abs=1e-12)
    assert (delong.low, delong.high) == pytest.approx((auc.low, auc.high), abs=0.03)


def test_all_metrics_within_the_values_of_a_column(tmp_path):
    table = write_scores(tmp_path, videos=True)
    low, only_fake = np.arange(108) % 2 == 0, (np.arange(108) % 9 == 3)
    quality = np.where(only_fake, "c99", np.where(low, "c40", "c23"))
    table = table.append_column("quality", pa.array(quality)).append_column("dataset", pa.array(["a"] * 108))
    table = table.append_column("age", pa.array([None, *range(1, 108)], pa.float64()))  # some are not known
    parquet.write_table(table, tmp_path / "scores" / "test.parquet")
    found = read(evaluate(tmp_path, replicates=20, subgroups=["quality"]))
    slices = found.slices["test"]
    parts = ["quality=c23", "quality=c40", "quality=c99"]  # one dataset is no subgroup
    assert set(slices) == {"per video", *parts, *(f"{part}, per video" for part in parts[:2])}
    (undefined,) = slices["quality=c99"]
    assert math.isnan(undefined.value)
    assert undefined.how == "undefined: all of its samples are fake"
    within, scores = table.to_pandas().query("quality == 'c40'"), by_name(slices["quality=c40"])
    assert list(scores) == list(by_name(found.detection["test"]))
    assert scores["auc"].value == pytest.approx(metrics.roc_auc_score(within["label"], within["logit"]), abs=1e-12)
    f1 = metrics.f1_score(within["label"], within["logit"] >= found.threshold)
    assert scores["f1"].value == pytest.approx(f1, abs=1e-12)
    assert scores["auc_delong"].n == len(within)
    means = within.groupby("video")[["label", "logit"]].mean()
    auc = metrics.roc_auc_score(means["label"], means["logit"])
    assert by_name(slices["quality=c40, per video"])["auc"].value == pytest.approx(auc, abs=1e-12)
    mixed = table.set_column(table.column_names.index("dataset"), "dataset", pa.array(np.where(low, "a", "b")))
    parquet.write_table(mixed, tmp_path / "scores" / "test.parquet")
    assert {"dataset=a", "dataset=b"} <= set(read(evaluate(tmp_path, replicates=20)).slices["test"])
    ages = read(evaluate(tmp_path, replicates=2, subgroups=["age"])).slices["test"]
    assert len(ages) == 107 + 2 + 3  # ages, data sets, and the videos of these and of all; at no age two frames of one
    assert all(math.isnan(score.value) for part, (score, *_) in ages.items() if part.startswith("age="))


def test_a_method_of_several_has_all_metrics_too(tmp_path):
    table = write_scores(tmp_path, videos=True)
    method = np.where(np.arange(108) // 3 % 3 == 2, "blend", table["method"].to_numpy())
    table = table.set_column(table.column_names.index("method"), "method", pa.array(method))
    parquet.write_table(table, tmp_path / "scores" / "test.parquet")
    found = read(evaluate(tmp_path, replicates=20))
    assert set(found.slices["test"]) == {"per video", *(m + v for m in ("blend", "swap") for v in ("", ", per video"))}
    within = table.to_pandas().query("method != 'swap'")
    scores = by_name(found.slices["test"]["blend"])
    assert scores["ap"].value == pytest.approx(metrics.average_precision_score(within["label"], within["logit"]))
    assert by_name(found.slices["test"]["blend, per video"])["ap"].n == 24


def test_an_earlier_file_with_the_auc_of_parts_alone_is_read(tmp_path):
    write_scores(tmp_path, videos=True)
    values = json.loads(evaluate(tmp_path, replicates=20).read_text())
    of_videos = values["slices"]["test"]["per video"]
    for key in ("video_threshold", "slice_reliability"):
        del values[key]
    write_json(tmp_path / "evaluation.json", {**values, "slices": {"test": {"per video": of_videos[0]}}})
    found = read(tmp_path / "evaluation.json")
    assert [score.to_dict() for score in found.slices["test"]["per video"]] == of_videos[:1]
    assert math.isnan(found.video_threshold)


def test_a_file_of_an_earlier_version_is_made_again(tmp_path):
    write_scores(tmp_path, videos=True)
    path = evaluate(tmp_path, replicates=20)
    values = json.loads(path.read_text())
    written = path.stat().st_mtime_ns
    assert evaluate(tmp_path, replicates=20).stat().st_mtime_ns == written
    write_json(path, {**values, "inputs": "of another version", "slices": {}})
    assert json.loads(evaluate(tmp_path, replicates=20).read_text()) == values
