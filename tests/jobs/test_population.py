"""Population based training with a real Ray."""

import copy
import json
from pathlib import Path

import pytest

from data_shards.command import InputError, from_dict
from jobs import population, trial
from jobs.search import parse_space
from jobs.sweep_plan import Sweep, check
from tests.jobs.sweeping import run_sweep, sweep_values

SPACE = {"learning_rate": {"low": 1e-9, "high": 1e-2, "log": True}}


def population_values(folder, cards, **changes):
    changes = {"space": SPACE, "scheduler": "pbt", "sampler": "random", "trials": 2, "cpus_per_trial": 1, **changes}
    return sweep_values(folder, cards, **changes)


@pytest.mark.slow
def test_the_worst_member_goes_on_from_a_state_of_the_best(tmp_path, tiny_cards):
    finetune = {"mode": "full", "epochs": 2, "batch_size": 16, "clip": None}
    values = population_values(tmp_path, tiny_cards, finetune=finetune)
    process = run_sweep(tmp_path, values)
    assert process.returncode == 0, process.stderr
    config = from_dict(Sweep, copy.deepcopy(values))
    members = population.members(config, parse_space(config.space), 0)
    assert [trial.read_record(each.row)["status"] for each in members] == ["finished"] * 2
    # After the first of two epochs the worse of the two took over from the better, and both have the same past since.
    lineages = [population.lineage(each.row.run.parent) for each in members]
    [taker] = [place for place, notes in enumerate(lineages) if len(notes) == 2]
    first, then = lineages[taker]
    donor = members[1 - taker].row.run
    assert (first["from"], then["from"]) == (None, str(donor))
    assert then["values"] != lineages[1 - taker][0]["values"]
    assert SPACE["learning_rate"]["low"] <= then["values"]["learning_rate"] <= SPACE["learning_rate"]["high"]
    assert past(members[taker].row.run, then["epoch"]) == past(donor, then["epoch"])
    assert past(members[taker].row.run, 9) != past(donor, 9)
    # Validation alone was compared: test and unseen scores came when training was over.
    for each in members:
        scored = min(file.stat().st_mtime for file in (each.row.run / "scores").iterdir())
        assert scored >= (each.row.run / "result.json").stat().st_mtime

    again = run_sweep(tmp_path, values)
    assert again.returncode == 0, again.stderr
    assert "trials, " not in again.stderr  # nothing to do


def past(run: Path, epoch: float) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["epoch"] <= epoch and "validation/auc" in row]
    assert kept
    return kept


def test_a_state_is_taken_over_whole_and_the_former_run_is_gone(tmp_path, tiny_cards):
    config = from_dict(Sweep, population_values(tmp_path, tiny_cards))
    donor = population.member_trial(config, 0, 0, {"learning_rate": 1e-3})
    now = population.member_trial(config, 0, 1, {"learning_rate": 2e-3})
    old = population.member_trial(config, 0, 1, {"learning_rate": 1e-8})
    for run, text in ((donor.row.run, "good"), (old.row.run, "bad")):
        (run / "state").mkdir(parents=True)
        (run / "state" / "latest").write_text(text)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "epoch": 1.5}) + "\n")
    population.take_note(old, source=None, epoch=0.0)
    population.take_note(old, source=None, epoch=0.0)  # again after a kill: no second start
    taken = tmp_path / "taken"
    taken.mkdir()
    population.snapshot(donor.row.run, taken)
    population.adopt(now, taken)
    assert (now.row.run / "state" / "latest").read_text() == "good"
    assert sorted(path.name for path in now.row.run.parent.iterdir()) == sorted([now.row.run.name, "lineage.jsonl"])
    assert population.lineage(now.row.run.parent) == [
        {"values": {"learning_rate": 1e-8}, "from": None, "epoch": 0.0},
        {"values": {"learning_rate": 2e-3}, "from": str(donor.row.run), "epoch": 1.5},
    ]
    assert [each.values["learning_rate"] for each in population.members(config, parse_space(SPACE), 0)][1] == 2e-3
    # Its own checkpoint, after a pause: the run directory is at least as far.
    population.snapshot(now.row.run, tmp_path / "own")
    (now.row.run / "state" / "latest").write_text("further")
    population.adopt(now, tmp_path / "own")
    assert (now.row.run / "state" / "latest").read_text() == "further"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"warmup": [0.1, 0.2]}}, "warmup cannot change while a run goes on"),
        ({"trials": 1}, "at least 2"),
        ({"sampler": "tpe"}, "needs sampler=random"),
    ],
)
def test_what_a_population_cannot_do_is_said_first(tmp_path, tiny_cards, changes, message):
    config = from_dict(Sweep, population_values(tmp_path, tiny_cards, **changes))
    with pytest.raises(InputError, match=message):
        check(config)


def test_perturbed_values_stay_in_their_range():
    explored = population.scheduler(parse_space(SPACE))._custom_explore_fn({"values": {"learning_rate": 0.012}})
    assert explored == {"values": {"learning_rate": 0.01}}
