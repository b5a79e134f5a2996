"""Trials of several processes: a real Ray, and Ray Train's workers."""

import copy
import json
import os
import shutil
import signal
import time

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from data_shards.command import InputError, from_dict, to_dict
from data_shards.manifest import ShardSet
from data_shards.reader import CorruptSample
from jobs import launched, plan, ray_session, ray_train, trial
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


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A Ray of two CPUs, joined by this process."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_session.SETTINGS.items() | {
            ("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}'),
            ("RAY_worker_niceness", "0"),
            ("OMP_NUM_THREADS", "1"),
        }:
            patch.setenv(name, value)
        patch.chdir(ROOT)
        ray_session._start("/tmp/ray-test-launched")
        yield ray
        ray.shutdown()
        shutil.rmtree("/tmp/ray-test-launched")


def made(folder, cards, processes, **changes):
    finetune = {**FINETUNE, "processes": processes, **changes}
    return sweep_values(
        folder, cards, backbones=[VIT], space={"learning_rate": [1e-3]}, finetune=finetune, cpus_per_trial=1
    )


@pytest.fixture
def two_nodes():
    """The address of a Ray of two nodes with a CPU each, whose processes inherit an outer launcher's variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "SLURM_PROCID", "PMI_RANK"):
            patch.setenv(name, "7")
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_a_trial_of_two_processes_on_two_nodes_trains_as_one_of_one(tmp_path, cards, two_nodes):
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        values = made(folder, cards, processes)
        [only] = planned(from_dict(Sweep, copy.deepcopy(values)))
        if processes == 1:  # in this process
            trial.run_trial(only.row, lambda told: None)
        else:
            done = run_sweep(folder, {**values, "address": two_nodes})
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
def test_more_processes_than_there_is_room_for_are_refused(tmp_path, cards, two_nodes):
    done = run_sweep(tmp_path, {**made(tmp_path, cards, 4), "address": two_nodes})
    assert done.returncode == 2
    assert "for each of 4 processes, but Ray has 2 CPUs on 2 nodes, room for 2; ask for less" in done.stderr


@pytest.mark.slow
@pytest.mark.compiler
def test_what_a_killed_trial_held_is_free_for_the_next(tmp_path, cards, ray):
    config = from_dict(Sweep, made(tmp_path, cards, 2, epochs=500, checkpoint_steps=5))
    [only] = planned(config)

    @ray.remote(num_cpus=0)
    class Trial:
        def process(self):
            return os.getpid()

        def run(self, row, place):
            launched.run(plan.Row(**row), lambda found: None, trial.Place.of(place))

    killed = Trial.remote()
    process = ray.get(killed.process.remote())
    killed.run.remote(to_dict(only.row), to_dict(config.place))
    wait_for(lambda: (only.row.run / "state" / "latest").is_file(), seconds=180)
    assert ray.available_resources().get("CPU", 0) == 0
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not processes_of(only.row.run.name) and ray.available_resources().get("CPU") == 2)

    [after] = planned(from_dict(Sweep, made(tmp_path, cards, 2, epochs=1, deepspeed_stage=2)))
    result = launched.run(after.row, lambda found: None, config.place)
    assert (result["processes"], result["deepspeed_stage"]) == (2, 2)
    wait_for(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.slow
def test_a_scheduler_that_stops_a_trial_stops_its_processes(tmp_path, cards, ray):
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
        launched.run(only.row, stop, config.place)
    assert not processes_of(only.row.run.name)
    wait_for(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.slow
def test_a_damaged_sample_is_recorded_and_not_tried_again_at_once(tmp_path, cards, ray):
    values = made(tmp_path, cards, 2, epochs=1)
    values["data"]["train"] = str(tmp_path / "train")
    shutil.copytree(SAMPLE / "train", tmp_path / "train")
    damage(tmp_path / "train", sample=1)
    config = from_dict(Sweep, values)
    [only] = planned(config)
    trial.run_trial(only.row, lambda told: None, config.place)  # raises nothing: Ray would repeat it
    record = trial.read_record(only.row)
    assert (record["status"], record["error"]) == ("failed", "CorruptSample")
    assert str(ShardSet.open(tmp_path / "train").column("key")[1]) in record["reason"]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes_of(run: str) -> list[int]:
    running = psutil.process_iter(["cmdline"])
    return [each.pid for each in running if any(f"{run}.yaml" in word for word in each.info["cmdline"] or ())]


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteLoss("loss is not finite at step 3"),
        torch.OutOfMemoryError("CUDA out of memory."),
        CorruptSample("shard-000000.tar", "a", "its sha256 is not the manifest's"),
        InputError("no shard set at absent"),
        Stopped("stopped after update 3"),
    ],
)
def test_reasons_that_have_a_name_keep_it(tmp_path, error):
    lost_touch = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    told = ray_train.cause({0: lost_touch, 1: error})
    assert told is error
    (tmp_path / "error.json").write_text(json.dumps(ray_train.told(error)))
    found = launched._error(tmp_path / "error.json", "exit status 1")
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_reasons_without_a_name_are_told_as_they_are(tmp_path):
    first, second = RuntimeError("NCCL error: unhandled system error"), RuntimeError("Connection closed by peer")
    assert ray_train.cause({1: second, 0: first}) is first
    (tmp_path / "error.json").write_text(json.dumps(ray_train.told(first)))
    found = launched._error(tmp_path / "error.json", "exit status 1")
    assert isinstance(found, launched.LaunchFailed)
    assert str(found) == "RuntimeError: NCCL error: unhandled system error"
    assert str(launched._error(tmp_path / "absent.json", "no reason")) == "no reason"
