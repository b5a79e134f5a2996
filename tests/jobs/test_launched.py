"""Trials of several processes: a real Ray, a real launcher."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from data_shards.command import InputError, from_dict, to_dict
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from jobs import launched, trial
from jobs.sweep_plan import Sweep, prepare_shared
from tests.jobs.sweeping import ROOT, SAMPLE, damage, planned, run_sweep, sweep_values
from trainer.loop import NonFiniteLoss, Stopped

# Layer norm alone: batch statistics of two processes on the CPU are not those of one.
VIT = {"name": "tiny_vit", "initialisation": "random"}
FINETUNE = {"mode": "full", "epochs": 4, "batch_size": 16, "flip": False, "precision": "fp32"}


@pytest.fixture
def cards(tmp_path):
    card = {"name": "tiny_vit", "architecture": "test_vit", "pretext_task": "none", "family": "none"}
    card |= {"weights": {"file": "absent.safetensors"}, "input_size": 64, "licence": "none"}
    (tmp_path / "cards.yaml").write_text(json.dumps([card | {"mean": [0.5] * 3, "std": [0.5] * 3}]))
    return tmp_path / "cards.yaml"


def made(folder, cards, processes, **changes):
    finetune = {**FINETUNE, "processes": processes, **changes}
    return sweep_values(
        folder, cards, backbones=[VIT], space={"learning_rate": [1e-3]}, finetune=finetune, cpus_per_trial=1
    )


@pytest.mark.slow
def test_a_trial_of_two_processes_trains_as_one_of_one(tmp_path, cards):
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        values = made(folder, cards, processes)
        [only] = planned(from_dict(Sweep, copy.deepcopy(values)))
        if processes == 1:  # in this process
            trial.run_trial(only.row, lambda told: None)
        else:
            done = run_sweep(folder, values)
            assert done.returncode == 0, done.stderr
        assert trial.read_record(only.row)["status"] == "finished"
        results[processes] = json.loads((only.row.run / "result.json").read_text())
        assert (only.row.run / "scores" / "resample-last.parquet").is_file()
    assert [results[processes]["processes"] for processes in (1, 2)] == [1, 2]
    one, two = (results[processes]["selected"] for processes in (1, 2))
    assert one["validation/loss"] == pytest.approx(two["validation/loss"], abs=1e-5)
    # Ray heard of the evaluations as they came, and of validation alone.
    [file] = (tmp_path / "2" / "runs" / "tiny" / "ray").glob("experiment_state*.json")
    [told] = [json.loads(state)["last_result"] for _, state in json.loads(file.read_text())["trial_data"]]
    assert told["auc"] == two["validation/auc"]
    assert told["training_iteration"] == 4
    assert not [key for key in told if "test" in key or "resample" in key]


@pytest.mark.slow
def test_launched_processes_end_with_the_trial(tmp_path, cards):
    [only] = planned(from_dict(Sweep, made(tmp_path, cards, 2, epochs=500, checkpoint_steps=5)))
    code = "import json, sys; from jobs import plan, launched; row = plan.Row(**json.loads(sys.argv[1]));"
    code += "launched.fit(row, lambda found: None)"
    parent = subprocess.Popen([sys.executable, "-c", code, json.dumps(to_dict(only.row))], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (only.row.run / "state" / "latest").is_file():
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    trial._wait_until_free(only.row.run)
    deadline = time.monotonic() + 60
    while left := processes_of(only.row.run.name):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_a_scheduler_that_stops_a_trial_stops_its_processes(tmp_path, cards):
    values = made(tmp_path, cards, 2, epochs=500)
    values["data"]["train"] = str(tmp_path / "train")
    shutil.copytree(SAMPLE / "train", tmp_path / "train")
    config = from_dict(Sweep, values)
    [only] = planned(config)
    prepare_shared(config, [only])
    damage(tmp_path / "train", sample=1)  # the processes take the decoded pictures: else they would not get to stop

    def stop(found):
        raise SystemExit

    with pytest.raises(SystemExit):
        launched.fit(only.row, stop, config.place)
    assert not processes_of(only.row.run.name)


@pytest.mark.slow
def test_a_damaged_sample_is_recorded_and_not_tried_again_at_once(tmp_path, cards):
    values = made(tmp_path, cards, 2, epochs=1)
    values["data"]["train"] = str(tmp_path / "train")
    shutil.copytree(SAMPLE / "train", tmp_path / "train")
    damage(tmp_path / "train", sample=1)
    [only] = planned(from_dict(Sweep, values))
    trial.run_trial(only.row, lambda told: None)  # raises nothing: Ray would repeat it
    record = trial.read_record(only.row)
    assert (record["status"], record["error"]) == ("failed", "CorruptSample")
    assert str(ShardSet.open(tmp_path / "train").column("key")[1]) in record["reason"]


def processes_of(run: str) -> list[int]:
    running = psutil.process_iter(["cmdline"])
    return [each.pid for each in running if any(f"{run}.yaml" in word for word in each.info["cmdline"] or ())]


def test_reasons_that_have_a_name_keep_it():
    damaged = CorruptSample("shard-000000.tar", "a", "its sha256 is not the manifest's")
    last = "subprocess.CalledProcessError: returned non-zero exit status 1."  # of the launcher
    for line, kind in (
        ("error: loss is not finite at step 3", NonFiniteLoss),
        ("torch.OutOfMemoryError: CUDA out of memory.", torch.OutOfMemoryError),
        (f"error: {damaged}", CorruptSample),
        ("[rank0]: error: no shard set at absent", InputError),
        ("RuntimeError: NCCL error: unhandled system error", launched.LaunchFailed),
        ("no reason", launched.LaunchFailed),
    ):
        found = launched._error(1, ["before\n", f"{line}\n", f"{last}\n"])
        assert type(found) is kind
        assert str(found) in f"{line} exit status 1"
    assert isinstance(launched._error(85, []), Stopped)
