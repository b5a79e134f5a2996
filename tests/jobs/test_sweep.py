"""Sweeps with a real Ray on two cores: what runs, what survives a kill, and what Ray may know."""

import copy
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from data_shards.command import InputError, from_dict, from_yaml
from jobs import trial
from jobs.search import grid, parse_space
from jobs.sweep import most_epochs, sweep
from jobs.sweep_plan import Journal, Sweep, best_auc, check, distinct, make_trial, maker
from tests.jobs.sweeping import ROOT, command, environment, planned, processes, run_sweep, sweep_values

ABSURD = 1e36
TINY = {"name": "tiny_resnet", "initialisation": "random"}


def three_rates(folder: Path, cards: Path, **changes) -> dict:
    """A sweep over three learning rates, of which the last one fails."""
    return sweep_values(folder, cards, **{"space": {"learning_rate": [1e-3, 3e-3, ABSURD]}, **changes})


def records(values: dict) -> list[tuple[dict, dict | None, Path]]:
    trials = planned(from_dict(Sweep, copy.deepcopy(values)))  # parsing makes paths of its texts
    return [(each.values, trial.read_record(each.row), each.row.run) for each in trials]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_cards):
    """A sweep of three trials that ran to its end: (values, process)."""
    folder = tmp_path_factory.mktemp("sweep")
    values = three_rates(folder, tiny_cards)
    process = run_sweep(folder, values)
    assert process.returncode == 0, process.stderr
    assert gone(folder)
    return values, process


def gone(folder: Path, seconds: float = 180) -> bool:
    """Whether no process of the folder's sweeps is left after a while."""
    deadline = time.monotonic() + seconds
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    return not processes(folder)


@pytest.mark.slow
def test_a_sweep_runs_and_a_failed_trial_does_not_stop_it(finished):
    values, process = finished
    ended = records(values)
    assert [record["status"] for _, record, _ in ended] == ["finished", "finished", "failed"]
    assert ended[2][0] == {"learning_rate": ABSURD}
    assert ended[2][1]["error"] == "NonFiniteLoss"
    assert "not finite at step" in ended[2][1]["reason"]
    for _, _, run in ended[:2]:
        assert {path.stem for path in (run / "scores").iterdir()} == {
            *("train", "validation", "test", "resample"),
            *("train-last", "validation-last", "test-last", "resample-last"),
        }
        assert set(json.loads((run / "evaluation.json").read_text())["detection"]) == set(
            ("train", "validation", "test", "resample")
        )
    # A log file gets a line at the start and one per failure: no bars, no chatter of Ray. (Libraries may warn.)
    lines = process.stderr.strip().splitlines()
    assert "tiny: 3 trials, 0 of them done before" in lines
    assert [line for line in lines if "failed" in line and "not finite at step" in line]
    for stream in (process.stderr, process.stdout):
        assert not re.search(r"^Trial |\d+%\||\(\w+ pid=\d+\)", stream, re.M), stream
    assert "report: " in process.stdout


@pytest.mark.slow
def test_ray_is_told_validation_only(finished):
    values, _ = finished
    [file] = (Path(values["runs"]) / "tiny" / "ray").glob("experiment_state*.json")
    told = [json.loads(state)["last_result"] for _, state in json.loads(file.read_text())["trial_data"]]
    assert {"auc", "epoch", "train_auc"} <= set(told[0])  # this is where Ray keeps what it knows
    assert not [key for result in told for key in result if "test" in key or "resample" in key]
    numbers = {value for result in told for value in result.values() if isinstance(value, float)}
    for _, _, run in records(values)[:2]:
        found = json.loads((run / "evaluation.json").read_text())["detection"]
        aucs = {name: next(s["value"] for s in scores if s["name"] == "auc") for name, scores in found.items()}
        assert any(abs(aucs["validation"] - number) < 1e-9 for number in numbers)
        assert not numbers & ({aucs["test"], aucs["resample"]} - {aucs["validation"], aucs["train"]})


@pytest.mark.slow
def test_mlflow_has_a_parent_per_backbone_and_a_child_per_trial(finished):
    values, _ = finished
    code = (
        "import sys, json; from mlflow import MlflowClient; c = MlflowClient(sys.argv[1]);"
        "e = c.get_experiment_by_name('tiny');"
        "print(json.dumps([[r.info.run_id, r.data.tags.get('mlflow.parentRunId'), r.data.params.get('learning_rate'),"
        " r.info.run_name] for r in c.search_runs([e.experiment_id])]))"
    )
    uri = f"sqlite:///{values['runs']}/mlflow.db"
    out = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True).stdout
    runs = json.loads(out.splitlines()[-1])
    tops = {name: run_id for run_id, above, _, name in runs if above is None}
    assert set(tops) == {"tiny: tiny_resnet-random", "tiny: report"}
    parent = tops["tiny: tiny_resnet-random"]
    assert sorted(rate for _, above, rate, _ in runs if above == parent) == ["0.001", "0.003", str(ABSURD)]


def killed(folder: Path, values: dict, victims: Callable[[str], bool]) -> tuple[subprocess.Popen, float]:
    """A sweep of which some processes, chosen by their command lines, were killed in its second trial; and when."""
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    driver = subprocess.Popen(command(file), cwd=ROOT, env=environment(folder), stderr=subprocess.PIPE, text=True)
    first, second = (run for _, _, run in records(values)[:2])
    while not (second / "state" / "latest").is_file():  # the first is over, the second under way
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.01)
    lines = {}
    for process in processes(folder):
        with suppress(OSError):
            lines[process] = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    chosen = [process for process, line in lines.items() if victims(line)]
    assert chosen, lines
    for process in chosen:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    killed_at = time.time()
    assert (first / "trial.json").is_file()
    assert not (second / "trial.json").exists()
    return driver, killed_at


def checkpoints(values: dict) -> list[dict]:
    """Of the two trials that do not fail."""
    ended = records(values)
    assert [record["status"] for _, record, _ in ended] == ["finished", "finished", "failed"]
    return [json.loads((run / "result.json").read_text())["checkpoints"] for _, _, run in ended[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["driver and all", "raylet"])
def test_after_a_kill_the_same_command_goes_on_to_equal_results(what, finished, tmp_path, tiny_cards):
    values = three_rates(tmp_path, tiny_cards)
    # Driver and workers at once: a worker alone would finish its trial.
    victims = {"driver and all": lambda line: True, "raylet": lambda line: "/raylet --" in line}[what]
    driver, killed_at = killed(tmp_path, values, victims)
    _, printed = driver.communicate(timeout=120)
    if what == "raylet":  # Ray itself would wait for ever
        assert driver.returncode == 1
        assert "error: Ray's raylet was lost (killed, or out of memory); the same command goes on" in printed
        assert gone(tmp_path)
    first = records(values)[0][2]

    process = run_sweep(tmp_path, values)
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("tiny: 3 trials, 1 of them done before")
    assert (first / "trial.json").stat().st_mtime < killed_at  # not repeated
    assert checkpoints(values) == checkpoints(finished[0])


@pytest.mark.slow
def test_a_trial_whose_process_was_killed_goes_on_in_another(finished, tmp_path, tiny_cards):
    values = three_rates(tmp_path, tiny_cards)
    driver, _ = killed(tmp_path, values, lambda line: line.startswith("ray::ImplicitFunc"))
    _, printed = driver.communicate(timeout=400)
    assert driver.returncode == 0, printed
    assert checkpoints(values) == checkpoints(finished[0])


@pytest.mark.slow
def test_asha_stops_what_validates_worse_and_says_so(finished, tmp_path, tiny_cards):
    # Trials run one after the other; ASHA's first rung is epoch 1, and its cutoff there the median of those before: so
    # the second trial is stopped at its first evaluation if that is worse than the first one's.
    first_auc = {}
    for values, _, run in records(finished[0])[:2]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first_auc[values["learning_rate"]] = next(row["validation/auc"] for row in rows if "validation/auc" in row)
    better_first = sorted(first_auc, key=first_auc.get, reverse=True)
    assert len(set(first_auc.values())) == 2
    values = three_rates(tmp_path, tiny_cards, space={"learning_rate": better_first}, scheduler="asha")
    process = run_sweep(tmp_path, values)
    assert process.returncode == 0, process.stderr
    kept, stopped = (record for _, record, _ in records(values))
    assert kept["status"] == "finished"
    assert stopped["status"] == "stopped"
    assert stopped["reason"].startswith("stopped by the scheduler at epoch 1")
    run = records(values)[1][2]
    assert not (run / "scores").exists()


@pytest.mark.slow
def test_tpe_over_a_small_space_comes_to_its_end(tmp_path, tiny_cards):
    # Two runs, five trials: three of them can only be repeats.
    finetune = {"mode": "full", "epochs": 1, "batch_size": 16, "clip": None}
    space = {"learning_rate": [1e-3, 3e-3]}
    values = three_rates(tmp_path, tiny_cards, space=space, finetune=finetune, sampler="tpe", trials=5)
    process = run_sweep(tmp_path, values)
    assert process.returncode == 0, process.stderr
    config = from_dict(Sweep, copy.deepcopy(values))
    proposed = Journal(config).proposals()
    assert len(proposed) == 5
    assert [trial.read_record(each.row)["status"] for each in distinct(proposed)] == ["finished"] * 2
    again = run_sweep(tmp_path, values)
    assert again.returncode == 0, again.stderr
    assert "trials, " not in again.stderr  # nothing is left
    edited = run_sweep(tmp_path, {**values, "space": {"learning_rate": [1e-3, 4e-3]}})
    assert (edited.returncode, len(edited.stderr.strip().splitlines())) == (2, 1), edited.stderr


@pytest.mark.slow
def test_a_finished_sweep_starts_no_ray(finished):
    values, _ = finished
    process = run_sweep(Path(values["runs"]).parent, values)
    assert process.returncode == 0, process.stderr
    assert "trials, " not in process.stderr  # said when there is something to do
    assert "report: " in process.stdout


def test_reports_of_a_trial_hold_validation_alone_and_come_from_before_scoring(tmp_path, tiny_cards):
    """What a scheduler or a search can see is what ``report`` is given."""
    values = three_rates(tmp_path, tiny_cards, space={"learning_rate": [1e-3]})
    [only] = planned(from_dict(Sweep, values))
    reports = []
    trial.run_trial(only.row, lambda told: reports.append((dict(told), (only.row.run / "scores").exists())))
    rows = [json.loads(line) for line in (only.row.run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "validation/auc" in row]
    assert [set(told) for told, _ in reports] == [{"auc", "epoch", "train_auc"}] * len(evaluated)
    assert [told["auc"] for told, _ in reports[:-1]] == [row["validation/auc"] for row in evaluated[:-1]]
    # Only the last report comes after test and unseen sets were opened, and it repeats the selected evaluation.
    assert [scored for _, scored in reports] == [*[False] * (len(reports) - 1), True]
    selected = json.loads((only.row.run / "result.json").read_text())["selected"]
    assert reports[-1][0] == {
        "auc": selected["validation/auc"],
        "train_auc": selected["train/auc"],
        "epoch": evaluated[-1]["epoch"],
    }
    assert trial.ended(only.row)


def test_a_users_mistake_inside_a_trial_is_recorded_and_tried_again(tmp_path, tiny_cards):
    values = three_rates(tmp_path, tiny_cards, data={**three_rates(tmp_path, tiny_cards)["data"], "train": "absent"})
    only = planned(from_dict(Sweep, values))[0]
    trial.run_trial(only.row, lambda told: None)
    record = trial.read_record(only.row)
    assert (record["status"], record["error"]) == ("failed", "InputError")
    assert "absent" in record["reason"]
    assert not trial.ended(only.row)
    trial.write_record(only.row, "failed", "loss is not finite", "NonFiniteLoss")
    assert trial.ended(only.row)  # the hyperparameters' own fault: again it would be the same


def test_out_of_memory_halves_the_micro_batch_once_and_says_so(tmp_path, tiny_cards, monkeypatch):
    from trainer.distributed import Engine

    def forward_within(most):
        real = Engine.forward

        def forward(self, images):
            if len(images) > most:
                raise torch.OutOfMemoryError(f"CUDA out of memory for {len(images)} images")
            return real(self, images)

        monkeypatch.setattr(Engine, "forward", forward)

    values = three_rates(tmp_path, tiny_cards, space={"learning_rate": [1e-3, 2e-3]})
    first, second = planned(from_dict(Sweep, values))
    forward_within(8)  # of 16
    trial.run_trial(first.row, lambda told: None)
    assert trial.read_record(first.row)["status"] == "finished"
    run = trial.as_run(first.row)
    assert (run.config.batch_size, run.config.accumulation, first.row.config.accumulation) == (16, 2, 1)
    assert (run.run / "result.json").is_file()
    assert "micro batch of 16" in trial.out_of_memory(first.row)
    assert trial.ended(first.row)
    forward_within(4)  # once is all
    trial.run_trial(second.row, lambda told: None)
    record = trial.read_record(second.row)
    assert (record["status"], record["error"]) == ("failed", "OutOfMemoryError")
    assert "for 8 images" in record["reason"]


def test_launch_variables_are_forgotten(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    trial.clear_launch_variables()
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "ACCELERATE_USE_CPU"} & set(os.environ)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"learning_rat": [1.0]}}, "did you mean 'learning_rate'"),
        ({"space": {"epochs": [1, 2]}}, "both space and finetune"),
        ({"space": {"warmup": [0.1, 1.5]}}, "warmup=1.5"),
        ({"space": {"warmup": [0.1, 1.5, 0.2]}}, "warmup=1.5"),  # in the middle of a list, too
        ({"space": {"mode": ["full", "heda", "head"]}, "finetune": {}, "sampler": "tpe", "trials": 2}, "heda"),
        ({"space": {"seed": [0.5]}}, "seed=0.5 must be an integer"),
        ({"backbones": [{**TINY, "finetune": {"learning_rate": 1e-4}}]}, "finetune of backbone tiny_resnet-random"),
        ({"trials": 3}, "trials belongs to"),
        ({"sampler": "random"}, "needs trials"),
        ({"backbones": []}, "backbones is empty"),
        ({"finetune": {"processes": 3, "batch_size": 16}}, "batch_size=16 is no multiple of 3 processes"),
        ({"gpus_per_trial": 0.5, "finetune": {"processes": 2}}, "each process has a GPU of its own"),
        ({"space": {"features": [None, "f"]}}, "space.features changes nothing"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial=1.5: a process has a share of one GPU or whole ones"),
        ({"backbones": [{**TINY, "finetune": {"processes": 2, "features": "f", "mode": "head"}}]}, "is one process"),
        ({"sampler": "random", "trials": 1, "budget": {"tiny_rasnet": 3}}, "did you mean 'tiny_resnet-random'"),
        ({"space": {"learning_rate": {"low": 1e-4, "high": 1e-3}}}, "sampler=random"),
    ],
)
def test_mistakes_in_the_sweep_file_are_named_before_anything_runs(tmp_path, tiny_cards, changes, message):
    with pytest.raises(InputError, match=message):
        planned(from_dict(Sweep, three_rates(tmp_path, tiny_cards, **changes)))


def test_a_share_of_a_gpu_is_for_trials_of_one_process(tmp_path, tiny_cards):
    for gpus, at_once in ((0.5, 1), (0, 2), (1, 2), (2.0, 2), (2, 1)):
        finetune = {"processes": at_once, "batch_size": 16}
        values = three_rates(tmp_path, tiny_cards, gpus_per_trial=gpus, finetune=finetune)
        check(from_dict(Sweep, values))


def test_equal_runs_are_run_once_and_backbones_take_turns(tmp_path, tiny_cards):
    # unfrozen_blocks has no effect with mode=full.
    two = [{"name": name, "initialisation": "random"} for name in ("tiny_resnet", "tiny_efficientnet")]
    space = {"unfrozen_blocks": [1, 2], "seed": [0, 1]}
    config = from_dict(Sweep, three_rates(tmp_path, tiny_cards, backbones=two, space=space))
    trials = planned(config)
    assert [(each.backbone, each.values["seed"]) for each in trials] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [each.row.config.seed for each in trials] == [0, 0, 1, 1]


def test_every_backbone_has_its_budget(tmp_path, tiny_cards):
    two = [{"name": name, "initialisation": "random"} for name in ("tiny_resnet", "tiny_efficientnet")]
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    budget = {"sampler": "random", "trials": 2, "budget": {"tiny_efficientnet-random": 3}}
    trials = planned(from_dict(Sweep, three_rates(tmp_path, tiny_cards, backbones=two, space=space, **budget)))
    assert [each.backbone for each in trials] == [0, 1, 0, 1, 1]


def test_the_journal_keeps_what_was_proposed(tmp_path, tiny_cards):
    config = from_dict(Sweep, three_rates(tmp_path, tiny_cards))
    journal, trials = Journal(config), planned(config)
    for place in (1, 0, 1):
        journal.note(0, trials[place].values)
    found = Journal(config).proposals()
    assert [each.row.run for each in found] == [trials[place].row.run for place in (1, 0, 1)]
    assert [each.row.run for each in distinct(found)] == [trials[1].row.run, trials[0].row.run]
    assert best_auc(trials[0]) is None
    edited = from_dict(Sweep, three_rates(tmp_path, tiny_cards, space={"learning_rate": [1e-3, 4e-3]}))
    with pytest.raises(InputError, match=r"had learning_rate=0\.003, which space\.learning_rate no longer holds"):
        Journal(edited).proposals()
    others = from_dict(Sweep, three_rates(tmp_path, tiny_cards, space={"weight_decay": [0.1]}))
    assert Journal(others).proposals() == []


def test_quick_making_gives_what_strict_making_gives(tmp_path, tiny_cards):
    space = {
        "learning_rate": [1, 1e-3],
        "flip": [False, True],
        "clip": [None, 1],
        "train_groups": [None, 20],
        "seed": [0, 3],
        "precision": ["fp32", "bf16"],
    }
    finetune = {"mode": "full", "flipped_labels": 0.2}
    config = from_dict(Sweep, three_rates(tmp_path, tiny_cards, space=space, finetune=finetune))
    check(config)
    make = maker(config)
    for values in grid(parse_space(space)):
        quick, strict = make(0, values).row, make_trial(config, 0, values).row
        assert (quick.config, quick.run) == (strict.config, strict.run)
        assert replace(quick, finetune={}) == replace(strict, finetune={})  # the sets to score, and all else


def test_asha_lets_the_longest_trial_end(tmp_path, tiny_cards):
    """A trial that has ASHA's most epochs is stopped before it is scored."""
    finetune = {"mode": "full", "batch_size": 16}

    def most(space, **more):
        values = three_rates(tmp_path, tiny_cards, space=space, finetune={**finetune, **more}, scheduler="asha")
        return most_epochs(from_dict(Sweep, values))

    assert most({"learning_rate": [1e-3]}, epochs=2.4) == 3
    assert most({"epochs": [2.5, 30.0, 4.0]}) == 30
    assert most({"epochs": {"low": 2.0, "high": 12.5}}) == 13
    assert most({"learning_rate": [1e-3]}) == 10  # the default


def test_a_leak_is_found_before_anything_runs(tmp_path, tiny_cards):
    values = three_rates(tmp_path, tiny_cards)
    values["data"]["unseen"]["again"] = values["data"]["validation"]
    config = from_dict(Sweep, values)
    with pytest.raises(InputError, match="is in both 'validation' and 'again', which would leak"):
        sweep(config)
    assert not config.folder.exists()


def test_two_drivers_of_one_sweep_are_one_too_many(tmp_path, tiny_cards):
    config = from_dict(Sweep, three_rates(tmp_path, tiny_cards))
    config.folder.mkdir(parents=True)
    with open(config.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process runs the sweep in"):
            sweep(config)


def test_the_resolved_sweep_is_written(finished):
    values, _ = finished
    config = from_dict(Sweep, copy.deepcopy(values))
    assert from_yaml(Sweep, config.folder / "sweep.yaml") == config
    page = (config.folder / "report.html").read_text()
    assert f"python -m jobs.sweep {config.folder / 'sweep.yaml'}" in page  # the report's own way to itself
