"""A run that was started by hand reaches MLflow from its record: stopped, finished, and again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_shards.command import InputError
from jobs.track import Track, track
from trainer.config import FinetuneConfig
from trainer.distributed import build_accelerator
from trainer.loop import Stopped, fit

SAMPLE = Path(__file__).parents[2] / "data_shards" / "sample"


@pytest.fixture
def config(tmp_path, tiny_cards) -> FinetuneConfig:
    """Three updates, each of which is logged."""
    return FinetuneConfig(
        backbone="tiny_resnet",
        initialisation="random",
        cards=tiny_cards,
        train=SAMPLE / "train",
        validation=SAMPLE / "validation",
        runs=tmp_path / "runs",
        batch_size=20,
        epochs=0.27,
        log_every=1,
        train_subset=20,
    )


def test_a_run_is_one_run_in_mlflow_however_often_it_is_fed(config, tmp_path):
    def stop(row):
        (config.directory / "stop").touch()

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")

    def logged():
        return client.search_runs([client.get_experiment_by_name("default").experiment_id])

    began = time.time()
    with pytest.raises(Stopped):
        fit(config, build_accelerator(config), stop)
    track(Track(run=config.directory))
    [stopped] = logged()
    assert stopped.info.status == "KILLED"
    result = fit(config, build_accelerator(config))
    ids = {track(Track(run=config.directory)) for _ in range(2)}
    [run] = logged()
    assert ids == {run.info.run_id}
    assert (run.info.status, run.info.run_name) == ("FINISHED", config.directory.name)
    assert run.data.params["train_digest"] == result["data"]["train"]
    assert run.data.params["weights_sha256"] == result["weights"]["sha256"]
    assert run.data.tags.get("mlflow.source.git.commit") == result["commit"]
    rows = [json.loads(line) for line in (config.directory / "metrics.jsonl").read_text().splitlines()]
    losses = client.get_metric_history(run.info.run_id, "curve/train/loss")
    assert [point.value for point in losses] == [row["train/loss"] for row in rows if "train/loss" in row]
    assert [point.step for point in losses] == list(range(1, result["steps"] + 1))
    assert all(began <= point.timestamp / 1000 <= time.time() for point in losses)
    assert len(client.get_metric_history(run.info.run_id, "system/cpu_share")) == len(rows)
    assert run.data.metrics["system/memory_mib"] > 100


def test_a_folder_that_is_no_run_and_a_server_that_is_away(config, tmp_path):
    with pytest.raises(InputError, match="there is no run"):
        track(Track(run=tmp_path))
    fit(config, build_accelerator(config))
    with pytest.raises(InputError, match="no MLflow server answers"):
        track(Track(run=config.directory, tracking_uri="http://127.0.0.1:9"))
