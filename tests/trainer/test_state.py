"""State: a run that was stopped or killed at any moment ends as if it had not been."""

import fcntl
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from data_shards.command import InputError, to_dict, write_yaml
from data_shards.files import sha256_file
from data_shards.manifest import ShardSet
from data_shards.pack import pack
from tests.trainer.launching import run
from trainer import lease, startup
from trainer.loop import Stopped
from trainer.state import Progress, RunDirectory, read_metrics

# Imports once, then forks one child per attempt, so that a kill costs a second and not ten. A child that gets
# `renames` dies at that rename of its own, before or after making it; one that gets `seconds` is killed after them.
ZYGOTE = """
import dataclasses, json, os, signal, sys, time
import torch, timm, sklearn.metrics, trainer.loop
from data_shards.command import parse
from trainer.config import FinetuneConfig
from trainer.distributed import build_accelerator

def child(config, renames, after):
    count, replace = 0, os.replace
    def dying(*paths):
        nonlocal count
        count += 1
        if count == renames and not after: os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        if count == renames: os.kill(os.getpid(), signal.SIGKILL)
    os.replace = dying
    torch.set_num_threads(1)
    trainer.loop.fit(config, build_accelerator(config))

config = parse(FinetuneConfig, ["--config", sys.argv[1]])
for number, attempt in enumerate(json.loads(sys.argv[2])):
    process = os.fork()
    if not process:
        try:
            child(dataclasses.replace(config, threads=1 + number % 3), attempt.get("renames"), attempt.get("after"))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if "seconds" in attempt:
        time.sleep(attempt["seconds"])
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(status, flush=True)
"""


def attempts(tmp_path: Path, config, plan: list[dict]) -> list[int]:
    """Exit status of each attempt at the same run: 0 finished, -9 killed. None may fail otherwise."""
    file = tmp_path / "attempts.yaml"
    write_yaml(file, to_dict(config))
    command = [sys.executable, "-c", ZYGOTE, str(file), json.dumps(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run(command, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    statuses = [int(line) for line in done.stdout.split()]
    assert set(statuses) <= {0, -signal.SIGKILL}, done.stderr
    return statuses


def seconds(directory: Path) -> float:
    """How long a finished run trained."""
    return json.loads((directory / "result.json").read_text())["seconds"]


def outcome(directory: Path) -> tuple:
    """Everything about a finished run that does not depend on time."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith(("speed", "memory", "system", "time"))}
        for row in read_metrics(directory)
    ]
    result = json.loads((directory / "result.json").read_text())
    weights = [sha256_file(directory / f"{name}.safetensors") for name in ("best", "last")]
    return rows, weights, result["selected"], result["checkpoints"]


KEYS = {"backbone": "tiny_vit", "drop_path": 0.2, "epochs": 2.4, "checkpoint_steps": 2, "augmentation": 0.5}


@pytest.mark.slow
def test_a_run_killed_around_every_rename_ends_bit_equal(toy_config, tmp_path):
    reference = toy_config(**KEYS, experiment="whole")
    killed = toy_config(**KEYS, experiment="killed")
    # Die before the 1st rename, after the 1st, before the 2nd ... Later attempts have less to do, so that the last
    # ones finish, and those after them find nothing left to rename.
    plan = [{"renames": 1 + number // 2, "after": number % 2} for number in range(20)]
    assert attempts(tmp_path, reference, [{}]) == [0]
    statuses = attempts(tmp_path, killed, plan)
    assert set(statuses) == {-signal.SIGKILL, 0}
    assert statuses.count(-signal.SIGKILL) >= 8
    assert outcome(killed.directory) == outcome(reference.directory)
    assert sorted(path.name for path in killed.directory.iterdir() if not path.name.startswith(".")) == [
        *("best.safetensors", "config.yaml", "last.safetensors", "metrics.jsonl", "result.json")
    ]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_equal(toy_config, tmp_path):
    keys = {**KEYS, "epochs": 8, "backbone": "tiny_resnet", "drop_path": 0.0}
    reference, killed = toy_config(**keys, experiment="whole"), toy_config(**keys, experiment="killed")
    assert attempts(tmp_path, reference, [{}]) == [0]
    longest = seconds(reference.directory) / 2
    moments = [{"seconds": random.uniform(longest / 10, longest)} for _ in range(6)]
    statuses = attempts(tmp_path, killed, [*moments, {}])
    assert statuses[-1] == 0, (moments, statuses)
    assert -signal.SIGKILL in statuses, (moments, statuses)
    assert outcome(killed.directory) == outcome(reference.directory), moments


def test_stop_file_and_signal_save_and_resume(toy_config, train):
    """Stopped twice, by file and by signal, a run logs the rows and selects the weights of an uninterrupted one."""
    whole = toy_config(experiment="whole")
    train(whole)
    config = toy_config(experiment="stopped")

    def stop_by_file(row):
        (config.directory / "stop").touch()

    def stop_by_signal(row):
        os.kill(os.getpid(), signal.SIGUSR1)

    # Rows come after updates 2, 3 (evaluation), 4 ...; a request made there is seen in the next update.
    for ask, step in ((stop_by_file, 3), (stop_by_signal, 5)):
        with pytest.raises(Stopped, match=f"stopped at step {step}"):
            train(config, ask)
        assert json.loads((config.directory / "stopped.json").read_text()) == {"step": step}
        assert (config.directory / "state" / "latest").read_text() == f"step-{step:08d}\n"
    train(config)
    assert outcome(config.directory) == outcome(whole.directory)
    assert not (config.directory / "stop").exists()
    assert not (config.directory / "stopped.json").exists()


def test_rows_after_the_resumed_state_are_cut_even_a_half_written_one(toy_config, train):
    config = toy_config(checkpoint_steps=4)

    class Killed(Exception):
        pass

    def die(row):
        if row["step"] == 6:
            raise Killed

    with pytest.raises(Killed):
        train(config, die)
    with open(config.directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "tr')
    assert [row["step"] for row in read_metrics(config.directory)] == [2, 3, 4, 5, 6]
    train(config)
    assert [row["step"] for row in read_metrics(config.directory)] == [2, 3, 4, 5, 6, 8, 8, 10, 10]


def test_states_are_pruned_and_selected_weights_kept_as_long_as_needed(toy_config, train):
    config, seen = toy_config(checkpoint_steps=1, epochs=8), []

    def look(row):
        seen.append(sorted(path.name for path in (config.directory / "state").glob("*")))

    train(config, look)
    assert max(sum(name.startswith("step-") for name in names) for names in seen) == 2
    assert max(sum(name.startswith("best-") for name in names) for names in seen) <= 3


def test_another_config_in_the_directory_is_named(toy_config, train):
    config = toy_config(experiment="a")
    directory = RunDirectory(config)
    directory.claim()
    directory.release()
    saved = yaml.safe_load((config.directory / "config.yaml").read_text())
    (config.directory / "config.yaml").write_text(yaml.safe_dump({**saved, "weight_decay": 0.5, "threads": 9}))
    with pytest.raises(InputError, match=r"weight_decay \(0.5, now 0.01\); move the folder away"):
        train(config)
    (config.directory / "config.yaml").write_text(yaml.safe_dump(saved))
    RunDirectory(config).claim()  # the refused one has let go of it


def test_other_data_under_the_same_path_are_refused(toy_config, toy_sets, train, tmp_path):
    shards = ShardSet.open(toy_sets["train"])
    columns = ["path", "label", "method", "group", "dataset"]
    faces = pd.DataFrame({name: shards.column(name) for name in columns}).iloc[:-1].assign(split="train")
    other = pack(faces, toy_sets["train"].parents[1], tmp_path / "other", workers=1)
    link = tmp_path / "train"
    link.symlink_to(toy_sets["train"])
    config = toy_config(checkpoint_steps=1)
    config = type(config)(**{**config.__dict__, "train": link})

    def stop(row):
        (config.directory / "stop").touch()

    with pytest.raises(Stopped):
        train(config, stop)
    link.unlink()
    link.symlink_to(other["train"])
    with pytest.raises(InputError, match=r"training data was .* restore it or start a new run"):
        train(config)


def test_two_processes_cannot_train_one_run(toy_config, train):
    config = toy_config()
    config.directory.mkdir(parents=True)
    with open(config.directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training"):
            train(config)
    train(config)


def test_a_stop_file_older_than_the_process_is_not_meant_for_it(toy_config, train):
    config = toy_config(epochs=1.2)
    config.directory.mkdir(parents=True)
    (config.directory / "stop").touch()
    os.utime(config.directory / "stop", (1, 1))
    assert train(config)["steps"] == 3
    assert not (config.directory / "stop").exists()


def test_a_stop_file_younger_than_the_command_is_meant_for_the_process_it_starts(toy_config, train, monkeypatch):
    """A launcher was told to stop while the process that trains was still on its way."""
    config = toy_config()
    config.directory.mkdir(parents=True)
    (config.directory / "stop").touch()
    began = startup.process_start()
    monkeypatch.setenv(startup.VARIABLE, str(began - 10))
    os.utime(config.directory / "stop", (began - 5, began - 5))
    with pytest.raises(Stopped, match="stopped at step 1;"):
        train(config)


def stopped_with_two_states(config, train) -> Path:
    """The states of a run that has just saved its second."""

    def stop(row):
        (config.directory / "stop").touch()

    with pytest.raises(Stopped, match="at step 3"):
        train(config, stop)
    return config.directory / "state"


def damage_length(state: Path) -> None:
    file = state / "optimizer.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def damage_notes(state: Path) -> None:
    (state / "state.json").write_text("")


def damage_generators(state: Path) -> None:
    (state / "random-00000.safetensors").unlink()


def damage_all(state: Path) -> None:
    shutil.rmtree(state)


@pytest.mark.parametrize("damage", [damage_length, damage_notes, damage_generators, damage_all])
def test_after_a_damaged_state_comes_the_one_before(toy_config, train, capfd, damage):
    whole, config = toy_config(experiment="whole", checkpoint_steps=2), toy_config(checkpoint_steps=2)
    train(whole)
    states = stopped_with_two_states(config, train)
    assert {path.name for path in states.glob("step-*")} == {"step-00000002", "step-00000003"}
    damage(states / "step-00000003")
    train(config)
    assert f"step-00000003 is damaged; going on from {states / 'step-00000002'}" in capfd.readouterr().err
    assert outcome(config.directory) == outcome(whole.directory)


def test_a_state_of_before_the_processes_were_counted_is_resumed(toy_config, train):
    config = toy_config(checkpoint_steps=2)
    for state in stopped_with_two_states(config, train).glob("step-*"):
        saved = json.loads((state / "state.json").read_text())
        assert saved.pop("processes") == 1
        (state / "state.json").write_text(json.dumps(saved))
        damage_generators(state)
    assert train(config)["steps"] == 10


def test_without_a_whole_state_a_run_does_not_begin_anew_by_itself(toy_config, train):
    config = toy_config(checkpoint_steps=2)
    states = stopped_with_two_states(config, train)
    for state in states.glob("step-*"):
        damage_length(state)
    with pytest.raises(InputError, match="is damaged, and there is no other whole state"):
        train(config)


def test_a_state_is_on_the_disk_before_latest_names_it(toy_config, train, monkeypatch):
    """Renames too, which are only lasting when their folder has been written."""
    config, done = toy_config(epochs=1, checkpoint_steps=1), []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: (replace(*paths), done.append(Path(paths[1]).name)))
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (fsync(number), done.append("disk: " + Path(os.readlink(f"/proc/self/fd/{number}")).name)),
    )
    train(config)
    first = done.index("step-00000001")
    assert done[first - 1 : first + 2] == ["disk: .step-00000001.partial", "step-00000001", "disk: state"]
    latest = done.index("latest")
    assert first < latest
    assert done[latest + 1] == "disk: state"


def test_a_superseded_incarnation_deletes_and_writes_nothing(toy_config, tmp_path, monkeypatch):
    """Its weights, too, would be in the place of those that the newer one selects."""
    directory = RunDirectory(toy_config())
    with lease.Lease(directory.path, "first", "") as first:
        monkeypatch.setenv(lease.VARIABLE, str(first.term))
    for file in ("best-00000004.safetensors", ".step-00000004.partial", "step-00000002/state.json"):
        (directory.states / file).parent.mkdir(parents=True, exist_ok=True)
        (directory.states / file).write_text("the newer one's")
    rank_zero = SimpleNamespace(is_main_process=True, process_index=0)  # for it, all ends before a collective
    with lease.Lease(directory.path, "second", ""):
        before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("[!.]*") if path.is_file()}
        assert len(before) > 1
        for write in (
            lambda: directory.save(rank_zero, None, Progress(step=6), {}),
            lambda: directory.rewind(Progress()),
            lambda: directory.save_weights(directory.best_weights(6), {}, {}),
            lambda: directory.save_weights(directory.path / "last.safetensors", {}, {}),
            lambda: directory.publish_best(4),
            lambda: directory.finish({}),
        ):
            with pytest.raises(lease.Superseded):
                write()
        assert {path: path.stat().st_mtime_ns for path in directory.path.rglob("[!.]*") if path.is_file()} == before
        assert (directory.states / ".step-00000004.partial").exists()


def test_half_written_states_are_never_read(toy_config, tmp_path):
    directory = RunDirectory(toy_config())
    (directory.states / ".step-00000004.partial").mkdir(parents=True)
    (directory.states / "step-00000009").mkdir()  # renamed, but `latest` had not moved yet
    assert directory.latest() is None
    directory.rewind(Progress())
    assert list(directory.states.iterdir()) == []
