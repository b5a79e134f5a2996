"""What the driver of a sweep writes down about its trials, without Ray running."""

from types import SimpleNamespace

import pytest

from data_shards.command import from_dict
from jobs import trial, tune_parts
from jobs.search import Listed
from jobs.sweep_plan import Sweep, maker
from tests.jobs.sweeping import planned, sweep_values


@pytest.fixture
def rows(tmp_path, tiny_cards):
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space={"learning_rate": [1e-4, 1e-3]}))
    return [each.row for each in planned(config)]  # of 4 epochs


@pytest.fixture
def unseen(monkeypatch):
    """Runs whose record another node has written, but this one does not see yet: an NFS client remembers for a while
    that a file was not there."""
    runs, read = set(), trial.read_record
    monkeypatch.setattr(trial, "read_record", lambda row: None if row.run in runs else read(row))
    monkeypatch.setattr(tune_parts, "SECONDS_TO_APPEAR", 0.2)
    return runs


def books(rows, **options):
    return tune_parts.Books(lambda: len(rows), 0, lambda task: rows, **options)


def task(epoch=None):
    told = {} if epoch is None else {"epoch": epoch}
    return SimpleNamespace(status="TERMINATED", last_result=told, get_error=lambda: "ActorDiedError: so")


def test_what_the_scheduler_stopped_is_recorded(rows):
    books(rows[:1], stops=True).on_trial_complete(0, [], task(epoch=2.0))
    record = trial.read_record(rows[0])
    assert (record["status"], record["reason"]) == ("stopped", "stopped by the scheduler at epoch 2.0")
    assert trial.ended(rows[0])


@pytest.mark.parametrize(("stops", "epoch"), [(False, 2.0), (True, 4.1), (True, None)])
def test_nothing_is_said_to_be_stopped_without_a_scheduler_or_at_its_end(rows, unseen, stops, epoch):
    books(rows[:1], stops=stops).on_trial_complete(0, [], task(epoch))
    assert trial.read_record(rows[0]) is None


@pytest.mark.parametrize("stops", [False, True])
def test_a_record_that_is_not_seen_yet_is_kept(rows, unseen, stops):
    for row in rows:
        trial.write_record(row, "finished")
    unseen |= {row.run for row in rows}
    books(rows[:1], stops=stops).on_trial_complete(0, [], task(epoch=2.0))  # it lost patience: no more epochs came
    books(rows[1:]).on_trial_error(0, [], task())
    unseen.clear()
    assert [trial.read_record(row)["status"] for row in rows] == ["finished", "finished"]


def test_a_record_that_appears_late_counts(rows, unseen, monkeypatch):
    trial.write_record(rows[0], "finished")
    unseen.add(rows[0].run)
    looked = []
    monkeypatch.setattr(tune_parts.os, "listdir", lambda folder: (looked.append(folder), unseen.clear()))
    kept = books(rows)
    kept.on_trial_error(0, [], task())
    assert looked
    assert [trial.read_record(row)["status"] for row in rows] == ["finished", "failed"]
    assert trial.read_record(rows[1])["reason"] == f"{trial.LOST}: ActorDiedError: so"
    assert kept._counted == {row.run for row in rows}


def test_trials_of_several_processes_begin_when_there_is_room(tmp_path, tiny_cards):
    two = {"mode": "full", "batch_size": 16, "processes": 2}
    values = sweep_values(tmp_path, tiny_cards, finetune=two, space={"learning_rate": [1e-4, 1e-3, 1e-2]})
    config = from_dict(Sweep, values)
    trials = planned(config)
    source = Listed([(each.backbone, each.values) for each in trials])
    proposals = tune_parts.Proposals(source, maker(config), config.place, trials_per_task=1, room=4)
    assert [proposals.suggest(name)["launched"] for name in ("a", "b")] == [True, True]
    assert proposals.suggest("c") is None
    proposals.on_trial_complete("a")
    assert proposals.suggest("d")["rows"][0]["finetune"]["learning_rate"] == 1e-2
    proposals.on_trial_complete("b")
    assert proposals.suggest("e") == tune_parts.Searcher.FINISHED
