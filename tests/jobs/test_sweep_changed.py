"""Sweeps whose file changed after trials had ended, without Ray: what is done again, and what is kept."""

import json

import pytest

from data_shards.command import from_dict
from jobs import sweep, sweep_report, trial
from jobs.sweep_plan import Journal, Sweep, maker
from tests.jobs.sweeping import SAMPLE, planned, sweep_values

SHORT = {"mode": "full", "epochs": 2, "batch_size": 16, "threads": 1}


def made(folder, cards, **changes):
    """The sweep and its trials."""
    values = sweep_values(folder, cards, **{"space": {"learning_rate": [1e-3]}, "finetune": SHORT, **changes})
    config = from_dict(Sweep, values)
    return config, planned(config)


def run(trials):
    for each in trials:
        if not trial.ended(each.row):
            trial.run_trial(each.row, lambda told: None)
        assert trial.read_record(each.row)["status"] == "finished"


def test_a_set_that_is_no_longer_in_the_sweep_file_is_in_no_number(tmp_path, tiny_cards):
    config, trials = made(tmp_path, tiny_cards)
    data = sweep_values(tmp_path, tiny_cards)["data"]
    two_unseen = {**data, "unseen": {"foreign": str(SAMPLE / "unseen"), **data["unseen"]}}
    run(made(tmp_path, tiny_cards, data=two_unseen)[1])
    run_directory = trials[0].row.run
    assert (run_directory / "scores" / "foreign-last.parquet").is_file()
    assert "foreign" in (run_directory / "overfitting.json").read_text()

    config, trials = made(tmp_path, tiny_cards, space={"learning_rate": [1e-3, 2e-3]})  # and one more trial
    run(trials)
    for file in ("evaluation.json", "overfitting.json"):
        assert "foreign" not in (run_directory / file).read_text()
    gaps = ["train − validation", "validation − test", "test − resample"]
    for found in sweep_report.build(config, trials).trials:
        assert [gap.name for gap in found.gaps] == [gap.name for gap in found.last_gaps] == gaps
    path, _ = sweep_report.write(config, trials)
    assert "foreign" not in path.read_text()


def curve(row):
    lines = [json.loads(line) for line in (row.run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["validation/auc"], line["train/auc"]) for line in lines if "validation/auc" in line]


@pytest.mark.parametrize("state", [{"checkpoint_steps": 5}, {}], ids=["from its state", "anew"])
def test_what_a_scheduler_stopped_goes_on_when_there_is_none_any_more(tmp_path, tiny_cards, state, monkeypatch):
    from mlflow import MlflowClient

    finetune = {**SHORT, **state}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    asha, [stopped] = made(tmp_path, tiny_cards, finetune=finetune, scheduler="asha", tracking_uri=uri)

    def stop(told):
        raise SystemExit  # as Ray ends a trial

    with pytest.raises(SystemExit):
        trial.run_trial(stopped.row, stop)
    trial.write_record(stopped.row, "stopped", "stopped by the scheduler at epoch 1", replace=False)
    assert (stopped.row.run / "state" / "latest").is_file() == bool(state)
    sweep_report.log_all(asha, [stopped])
    assert trial.ended(stopped.row, "asha")

    handed_out = []
    monkeypatch.setattr(sweep, "_tune", lambda config, source, *_: handed_out.extend(source.next()))
    assert sweep.sweep(asha)
    assert handed_out == []
    full, [again] = made(tmp_path, tiny_cards, finetune=finetune, tracking_uri=uri)
    assert sweep.sweep(full)
    assert handed_out == [(0, again.values)]
    trial.begin_anew(again.row)
    run([again])
    _, [never_stopped] = made(tmp_path / "other", tiny_cards, finetune=finetune)
    run([never_stopped])
    assert curve(again.row) == curve(never_stopped.row)
    assert len(curve(again.row)) == SHORT["epochs"]

    sweep_report.log_all(full, [again])
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    name = again.row.run.name
    [logged] = [each for each in client.search_runs([experiment]) if each.info.run_name == name]
    assert (logged.info.status, logged.data.tags["status"]) == ("FINISHED", "finished")
    assert len(client.get_metric_history(logged.info.run_id, "curve/validation/auc")) == SHORT["epochs"]


def test_a_budget_that_was_lowered_takes_no_trials_from_other_backbones(tmp_path, tiny_cards, monkeypatch):
    two = [{"name": name, "initialisation": "random"} for name in ("tiny_resnet", "tiny_efficientnet")]
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    options = {"backbones": two, "space": space, "sampler": "tpe"}

    def with_budget(**budget):
        values = sweep_values(tmp_path, tiny_cards, finetune=SHORT, **options, **budget)
        return from_dict(Sweep, values)

    journal, make = Journal(with_budget(trials=4)), maker(with_budget(trials=4))
    for rate in (1e-3, 2e-3, 3e-3, 4e-3):  # one backbone's, all but the last finished
        proposed = make(0, {"learning_rate": rate})
        journal.note(0, proposed.values)
        if rate < 4e-3:
            trial.write_record(proposed.row, "finished")
    numbers, handed_out = [], []

    def tune(config, source, some, total, left):
        numbers.append((total, left))
        while found := source.next():
            handed_out.extend(found)

    monkeypatch.setattr(sweep, "_tune", tune)
    sweep.sweep(with_budget(trials=2, budget={"tiny_resnet-random": 1}))
    assert numbers == [(4 + 2, 1 + 2)]
    assert sorted(backbone for backbone, _ in handed_out) == [0, 1, 1]
    assert (0, {"learning_rate": 4e-3}) in handed_out
