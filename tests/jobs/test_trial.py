"""A trial of a sweep in its process, and what the search is told about it: without Ray."""

import json
import os

import pytest

from data_shards.command import from_dict
from jobs import sweep, trial
from jobs.search import Tpe, parse_space
from jobs.sweep_plan import Sweep
from tests.jobs.sweeping import planned, sweep_values


class ProcessLost(BaseException):
    """Takes the process along: nothing in it may catch this."""


@pytest.fixture
def rows(tmp_path, tiny_cards):
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space={"learning_rate": [1e-4, 1e-3, 1e-2]}))
    return [each.row for each in planned(config)]


def test_a_trial_that_takes_its_process_along_does_not_starve_the_others(rows, monkeypatch):
    poison, begun = rows[0], []

    def run_trial(row, *_, **__):
        begun.append(rows.index(row))
        if row is poison:
            raise ProcessLost
        trial.write_record(row, "finished")

    monkeypatch.setattr(trial, "run_trial", run_trial)

    def call_as_ray_does():
        for lost in range(10):
            try:
                trial.run_trials(rows, print, None)
            except ProcessLost:
                continue
            return lost
        raise AssertionError("it never ends")

    assert call_as_ray_does() == trial.LOST_PROCESSES + 1
    assert begun == [0, 1, 2, 0, 0]
    assert [trial.read_record(row)["status"] for row in rows] == ["failed", "finished", "finished"]
    assert trial.read_record(poison)["error"] == "Lost"
    assert not trial.ended(poison)  # the next call of the sweep tries it again, after all others
    assert trial.starts(poison) > 0
    trial.begin_anew(poison)
    assert (trial.starts(poison), trial.read_record(poison)) == (0, None)


def test_the_next_call_of_a_sweep_puts_what_was_begun_last(tmp_path, tiny_cards, monkeypatch):
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space={"learning_rate": [1e-4, 1e-3, 1e-2]}))
    first = planned(config)[0]
    monkeypatch.setattr(trial, "run_trial", lambda row, *_, **__: trial.write_record(row, "failed", "", "Lost"))
    trial.run_trials([first.row], print, None)
    order = []
    monkeypatch.setattr(sweep, "_tune", lambda config, source, *_: order.extend(source.next(9)))
    sweep.sweep(config)
    assert [values["learning_rate"] for _, values in order] == [1e-3, 1e-2, 1e-4]


def test_an_unknown_error_is_tried_a_few_times(rows, monkeypatch):
    def run_trial(row, *_, **__):
        trial.write_record(row, "failed", "ValueError: so", "ValueError")
        raise ValueError("so")

    monkeypatch.setattr(trial, "run_trial", run_trial)
    for _ in range(trial.LOST_PROCESSES + 1):
        with pytest.raises(ValueError, match="so"):
            trial.run_trials(rows, print, None)
    trial.run_trials(rows, print, None)
    assert trial.read_record(rows[0])["reason"] == "ValueError: so"


def test_what_an_earlier_version_measured_is_measured_anew(rows, monkeypatch):
    trial.write_record(rows[0], "finished")
    assert trial.ended(rows[0])
    monkeypatch.setattr(trial.overfit, "SCHEMA", trial.overfit.SCHEMA + 1)
    assert not trial.ended(rows[0])


def test_a_trial_without_gpus_sees_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.chdir(tmp_path)
    trial.enter(str(tmp_path), 0.5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"  # Ray has set it to those of the trial
    trial.enter(str(tmp_path), 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_the_search_is_told_the_validation_auc_of_a_stopped_trial(tmp_path, tiny_cards):
    from jobs.tune_parts import Proposals

    space = {"learning_rate": [1e-4, 1e-3, 1e-2]}
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space=space))
    made = {each.values["learning_rate"]: each for each in planned(config)}
    source = Tpe(parse_space(space), trials=[2], seed=0)

    def begin(_, values):
        return made[values["learning_rate"]]

    proposals = Proposals(source, begin, config.place, trials_per_task=1, room=2)
    for name, aucs, lost in (("a", (0.6, 0.8, 0.7), False), ("b", (0.9,), True)):
        row = proposals.suggest(name)["rows"][0]
        run = made[row["finetune"]["learning_rate"]].row.run
        run.mkdir(parents=True)
        lines = [{"step": step, "validation/auc": auc} for step, auc in enumerate(aucs)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        proposals.on_trial_complete(name, {"auc": aucs[-1]}, error=lost)  # its record comes after this
    told = source._studies[0].trials
    assert [(each.state.name, each.value) for each in told] == [("COMPLETE", 0.8), ("FAIL", None)]


def test_out_of_memory_in_scoring_halves_its_batches_and_trains_nothing_again(rows, monkeypatch):
    row, sizes = rows[0], []

    def fit(row, *_):
        row.run.mkdir(parents=True)
        (row.run / "result.json").write_text("{}")
        return {"selected": {"validation/auc": 0.5, "train/auc": 0.5}, "epoch": 1}

    def score(run, sets, checkpoint, *, batch_size, **_):
        sizes.append((checkpoint, batch_size))
        if batch_size > most:
            raise MemoryError

    monkeypatch.setattr(trial, "_fit", fit)
    monkeypatch.setattr("trainer.predict.score", score)
    monkeypatch.setattr(trial.overfit, "measure", lambda *_, **__: None)
    most = 16
    trial.run_trial(row, lambda told: None)
    assert sizes == [(each, size) for each in ("best", "last") for size in (64, 32, 16)]
    assert trial.read_record(row)["status"] == "finished"
    assert trial.as_run(row) is row
    most = 0  # not even one at a time
    monkeypatch.setattr(trial, "_fit", lambda *_: {"selected": {}, "epoch": 1})
    trial.run_trial(row, lambda told: None)
    assert trial.read_record(row)["error"] == "OutOfMemoryError"
    assert trial.as_run(row) is row


@pytest.mark.parametrize(
    ("finetune", "parts"),
    [
        ({"processes": 4, "batch_size": 16}, "a micro batch of 4 (no room); goes on with 2 and accumulation=2"),
        ({"processes": 4, "batch_size": 12}, ""),  # three each
        ({"mixup": 0.2, "batch_size": 4}, "a micro batch of 4 (no room); goes on with 2 and accumulation=2"),
        ({"mixup": 0.2, "batch_size": 2}, ""),  # a pair is the least
        ({"batch_size": 1}, ""),
    ],
)
def test_a_micro_batch_is_halved_only_where_every_process_can_halve_it(tmp_path, tiny_cards, finetune, parts):
    space = {"learning_rate": [1e-3]}
    config = from_dict(Sweep, sweep_values(tmp_path, tiny_cards, space=space, finetune=finetune))
    row = planned(config)[0].row
    row.run.mkdir(parents=True)
    assert trial._halve(row, MemoryError("no room")) == bool(parts)
    assert (parts in trial.out_of_memory(row)) if parts else trial.as_run(row) is row
    assert not trial._halve(row, MemoryError("no room"))  # once is all
    trial.as_run(row).config.rank_batch(row.config.processes or 1)
