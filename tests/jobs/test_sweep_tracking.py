"""A sweep in MLflow, in this process: trials that finished, failed and were stopped; a server that is away."""

import json

import pytest

from data_shards.command import from_dict
from data_shards.files import write_json
from evaluation.score import Score
from jobs import sweep_report, trial
from jobs.sweep_plan import Sweep
from tests.jobs.sweeping import planned, sweep_values

DEAD = "http://127.0.0.1:9"  # the port of the discard service: nobody answers


def score(name, value):
    return Score(name, value, value - 0.1, value + 0.1, True, 10, "how").to_dict()


def ended(config):
    """Trials as their processes would leave them: one finished, one stopped by a scheduler, one failed."""
    trials = planned(config)
    for each, status in zip(trials, ("finished", "stopped", "failed"), strict=True):
        each.row.run.mkdir(parents=True)
        curve = {"step": 3, "epoch": 1.0, "validation/auc": 0.8, "train/auc": 0.9, "time": 1.7e9}
        (each.row.run / "metrics.jsonl").write_text(json.dumps(curve) + "\n")
        trial.write_record(each.row, status, "" if status == "finished" else f"{status} for a reason")
    run = trials[0].row.run
    detection = {name: [score("auc", 0.7)] for name in trials[0].row.score}
    write_json(run / "evaluation.json", {"threshold": 0, "detection": detection, "gaps": [score("a − b", 0.1)]})
    curve = [score("first_overfit_epoch", 2.0), score("overfitting_area", 0.3), score("memorisation", 0.6)]
    parts = {"curve": curve, "last_gaps": [score("a − b", 0.2)], "drops": [score("test", 0.05)]}
    write_json(run / "overfitting.json", {"inputs": "", **parts})
    return trials


def logged(uri):
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return client, {run.info.run_name: run for run in found}


@pytest.fixture
def config(tmp_path, tiny_cards):
    space = {"learning_rate": [1e-4, 1e-3, 1e-2]}
    return from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space=space, tracking_uri=f"sqlite:///{tmp_path}/m.db"))


def test_every_trial_that_ended_is_there_with_how_it_ended(config):
    trials = ended(config)
    sweep_report.log_all(config, trials)
    client, runs = logged(config.tracking_uri)
    parent = runs.pop("tiny: tiny_resnet-random")
    finished, stopped, failed = (runs.pop(each.row.run.name) for each in trials)
    assert runs == {}
    for run, status, word in (
        (finished, "finished", "FINISHED"),
        (stopped, "stopped", "KILLED"),
        (failed, "failed", "FAILED"),
    ):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["status"], run.info.status) == (status, word)
        assert (run.data.params["train_groups"], run.data.params["flipped_labels"]) == ("all", "0.0")
        assert client.get_metric_history(run.info.run_id, "curve/validation/auc")[0].value == 0.8
    assert failed.data.tags["reason"] == "failed for a reason"
    found = finished.data.metrics
    assert (found["gap/a - b"], found["gap_last/a - b"], found["drop/test"]) == (0.1, 0.2, 0.05)
    assert (found["overfitting/first_overfit_epoch"], found["overfitting/overfitting_area"]) == (2.0, 0.3)
    assert (found["overfitting/memorisation"], found["overfitting/memorisation_high"]) == (0.6, 0.7)
    assert found["resample/auc"] == 0.7


def test_a_dead_server_loses_nothing(config, caplog):
    trials, alive = ended(config), config.tracking_uri
    config.tracking_uri = DEAD
    sweep_report.log_all(config, planned(config))
    assert len(caplog.records) == 1  # not one for each trial
    assert "the same command logs the rest" in caplog.text
    config.tracking_uri = alive
    sweep_report.log_all(config, trials[:2])  # dies half-way
    sweep_report.log_all(config, trials)
    _, runs = logged(alive)
    assert set(runs) == {"tiny: tiny_resnet-random", *(each.row.run.name for each in trials)}
