"""The plan of an experiment: strict, the same every time, and quick for thousands of rows."""

import json
import time
from dataclasses import replace

import pytest

from data_shards.command import InputError, from_yaml
from jobs import plan, status
from jobs.experiment import Experiment


def own_seeds(experiment):
    first, *others = experiment.backbones
    return [replace(first, seeds=[7]), *others]


def test_a_row_holds_all_that_its_run_needs(write_experiment, tmp_path):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, seeds=[0, 5]))
    assert [row.config.seed for row in plan.make(replace(experiment, backbones=own_seeds(experiment)))] == [7, 0, 5]
    frozen = [replace(each, seeds=[]) for each in experiment.backbones[:1]]  # measured, not fine-tuned
    alone = plan.make(replace(experiment, backbones=[*frozen, *experiment.backbones[1:]]))
    assert {row.backbone for row in alone} == {"tiny_efficientnet-random"}
    rows = plan.make(experiment)
    assert [(row.number, row.config.backbone, row.config.seed) for row in rows] == [
        (0, "tiny_resnet", 0),
        (1, "tiny_resnet", 5),
        (2, "tiny_efficientnet", 0),
        (3, "tiny_efficientnet", 5),
    ]
    assert [row.config.learning_rate for row in rows] == [1e-4, 1e-4, 0.001, 0.001]  # the backbone's own wins
    assert all("test" not in row.finetune["train"] + row.finetune["validation"] for row in rows)
    file = plan.write(experiment)
    assert plan.read(file) == rows
    assert (plan.row(file, 2), plan.row(file, 4), plan.count(file)) == (rows[2], None, 4)
    before = file.stat().st_mtime_ns
    assert plan.write(experiment) == file
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("finetune", "message"),
    [({"learning_rat": 1}, "learning_rate"), ({"seed": 3}, "set by the experiment"), ({"epochs": "many"}, "epochs")],
)
def test_mistakes_in_the_settings_are_told(write_experiment, tmp_path, finetune, message):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, finetune=finetune))
    with pytest.raises(InputError, match=message):
        plan.make(experiment)


def test_no_password_gets_into_a_plan(write_experiment, tmp_path):
    for uri in (
        "http://me:geheim@host:5000",
        "postgresql://me:geheim@host/db",
        "postgresql://me@host/db?password=geheim",
    ):
        with pytest.raises(InputError, match="holds a password") as refused:
            from_yaml(Experiment, write_experiment(tmp_path, tracking_uri=uri))
        assert "geheim" not in str(refused.value)
    from_yaml(Experiment, write_experiment(tmp_path, tracking_uri="postgresql://me@host/db"))


def test_a_plan_of_another_version_says_so(write_experiment, tmp_path):
    file = plan.write(from_yaml(Experiment, write_experiment(tmp_path)))
    row = json.loads(file.read_text().splitlines()[0])
    row["finetune"]["option_of_tomorrow"] = 1
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="another version"):
        plan.row(file, 0)
    with pytest.raises(InputError, match="rows count from 0"):
        plan.row(file, -1)


def test_rows_that_are_queued_keep_their_numbers(write_experiment, tmp_path, monkeypatch):
    experiment = from_yaml(Experiment, write_experiment(tmp_path))
    file = plan.keep(experiment)
    monkeypatch.setattr(status, "queued", lambda _: {1: "job 7_1, pending"})
    with pytest.raises(InputError, match=r"row 1 of .* is queued or running"):
        plan.keep(replace(experiment, backbones=experiment.backbones[::-1]))
    assert plan.read(file) == plan.make(experiment)
    assert from_yaml(Experiment, file.with_name("experiment.yaml")) == experiment
    plan.write(replace(experiment, replicates=60))  # the same runs
    monkeypatch.setattr(status, "queued", lambda _: {0: "job 7_0, pending"})
    plan.write(replace(experiment, backbones=experiment.backbones[:1]))  # row 0 stays what it is


def test_the_experiment_is_kept_beside_its_plan(write_experiment, tmp_path):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, seeds=[3]))
    plan.keep(replace(experiment, title="As it was"))
    kept = from_yaml(Experiment, experiment.folder / "experiment.yaml")
    assert kept == replace(experiment, title="As it was")
    assert plan.make(kept) == plan.make(experiment)


def test_ten_thousand_rows_are_planned_and_listed_in_seconds(write_experiment, tmp_path):
    experiment = from_yaml(Experiment, write_experiment(tmp_path, seeds=list(range(5000))))
    began = time.process_time()
    file = plan.write(experiment)
    found = status.statuses(file)
    assert time.process_time() - began < 15, "of processor time; parsed strictly, each row alone takes 0.02 s and more"
    assert len(found) == len({each.row.run for each in found}) == 10_000
    assert status.table(found).endswith("10000 rows: 10000 to do")
    began = time.process_time()
    command = status.resubmit(file, found)
    assert time.process_time() - began < 5
    assert sum(map(len, command)) < 100_000, "a command line that the system takes"
