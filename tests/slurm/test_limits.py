"""What a cluster does to rows, continued: those that take long."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_time_limit_comes_and_the_controller_restarts(cluster, tiny, undisturbed, row):
    plan, run = row
    job = tiny.submit_row(cluster, plan, "--time=60", "--signal=B:USR1@60")
    cluster.wait_until(lambda: tiny.updates(run) >= 10, timeout=300)
    training = [process for process in tiny.processes(plan) if _is_rank(process)]
    for process in training:  # however fast this machine is: not done before the limit
        process.suspend()
    minutes, seconds = map(int, cluster.squeue(f"--jobs={job}", "--format=%M").split(":")[-2:])
    # so that the controller, which looks each half minute, sends the signal before it finds that the time is over
    limit = minutes + (2 if seconds > 15 else 1)
    cluster.scontrol("update", f"JobId={job}_0", f"TimeLimit={limit}")
    cluster.wait_until((run / "stop").exists)
    cluster.scontrol("update", f"JobId={job}_0", "TimeLimit=60")  # of its next life, too
    for process in training:
        process.resume()
    cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 1, timeout=60)
    saved = json.loads((run / "stopped.json").read_text())["step"]
    cluster.wait_until(lambda: tiny.updates(run) >= saved + 20, timeout=300)
    cluster.restart_controller()
    assert cluster.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
    assert "to be continued" in tiny.log(plan)
    tiny.check_equal(run, undisturbed)
    assert tiny.logged_runs(plan.parents[1]) == [(run.name, "FINISHED")]


def test_preemption_with_grace_is_a_request_to_stop(cluster, tiny, undisturbed, row):
    plan, run = row
    job = tiny.submit_row(cluster, plan, "--partition=spot")
    cluster.wait_until(lambda: tiny.updates(run) >= 10, timeout=300)
    important = cluster.sbatch("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    assert cluster.wait(important) == {important: "COMPLETED"}
    assert cluster.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
    assert cluster.restarts(f"{job}_0") == 1
    assert re.search(r"resumed after update [1-9]", tiny.log(plan))
    tiny.check_equal(run, undisturbed)
    assert tiny.logged_runs(plan.parents[1]) == [(run.name, "FINISHED")]


def test_a_full_disk_is_said_and_when_there_is_room_again_the_row_goes_on(cluster, tiny, undisturbed, small_disk):
    settings = yaml.safe_load((undisturbed.parents[2] / "tiny.yaml").read_text()) | {"runs": str(small_disk / "runs")}
    experiment = small_disk / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(settings))
    plan = tiny.make_plan(experiment)
    run = plan.parent / undisturbed.name
    filler = small_disk / "filler"
    filler.touch()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    os.truncate(filler, 0)
    filler.write_bytes(bytes(free - 300_000))  # room for messages and marks, none for a state

    job = tiny.submit_row(cluster, plan)
    assert cluster.wait(job, timeout=300) == {f"{job}_0": "FAILED"}, tiny.log(plan)
    failure = json.loads((run / "failed.json").read_text())
    assert "No space left on device" in failure["reason"]
    assert (failure["given_up"], failure["same"]) == (True, 2)
    assert not list(run.rglob("*.partial"))
    assert not (run / "done.json").exists()

    filler.unlink()
    command = [sys.executable, "-m", "jobs.status", f"plan={plan}", "resubmit=failed"]
    said = subprocess.run(command, cwd=tiny.ROOT, env=cluster.env, capture_output=True, text=True, check=True).stdout
    assert re.search(r"0  failed .*No space left on device.* \(2 attempts, given up\)", said), said
    job = tiny.submit_row(cluster, plan)
    assert cluster.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
    tiny.check_equal(run, undisturbed)
    assert tiny.logged_runs(plan.parents[1]) == [(run.name, "FINISHED")]


def test_two_nodes_with_two_processes_each_equal_one_process(machines, tiny, tmp_path):
    """Up to the order of summation. A network without batch norm, whose statistics each process has for itself."""
    runs = {}
    for name, options in {"one": (), "four": ("--nodes=2", "--gpus-per-node=2")}.items():
        folder = tmp_path / name
        folder.mkdir()
        experiment = tiny.write_experiment(folder, architectures=["test_vit"], epochs=2, log_every=1)
        plan = tiny.make_plan(experiment)
        job = tiny.submit_row(machines, plan, *options)
        assert machines.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
        (done,) = plan.parent.glob("*/done.json")
        runs[name] = done.parent
    one, four = runs["one"], runs["four"]
    assert (tiny.world(one), tiny.world(four)) == (1, 4)
    assert [row["step"] for row in tiny.metrics(four)] == [row["step"] for row in tiny.metrics(one)]
    for ours, theirs in zip(tiny.metrics(four), tiny.metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert tiny.scores(four).keys() == tiny.scores(one).keys()
    for name, (index, logits) in tiny.scores(four).items():
        assert index == tiny.scores(one)[name][0], "every sample once"
        assert logits == pytest.approx(tiny.scores(one)[name][1], abs=1e-3)


def test_a_failure_on_the_second_node_is_on_record(machines, tiny, tmp_path):
    plan = tiny.make_plan(tiny.write_experiment(tmp_path, architectures=["test_vit"]))
    fails = """
import os, socket, sys
if socket.gethostname() == "n2" and "RANK" in os.environ:
    print("MemoryError: no room on this node", file=sys.stderr, flush=True)
    os._exit(1)
"""
    (tmp_path / "sitecustomize.py").write_text(fails)
    job = tiny.submit_row(machines, plan, "--nodes=2", PYTHONPATH=str(tmp_path))
    assert machines.wait(job, timeout=400) == {f"{job}_0": "FAILED"}, tiny.log(plan)
    assert machines.restarts(f"{job}_0") == 1, "a second try, and no third"
    (record,) = plan.parent.glob("*/failed.json")
    failure = json.loads(record.read_text())
    assert "machine 1: MemoryError: no room on this node" in failure["reason"]
    assert (failure["given_up"], failure["same"]) == (True, 2)


def test_a_subset_with_a_row_that_fails_ends_in_a_report_that_says_so(cluster, tiny, tmp_path):
    experiment = tiny.write_experiment(tmp_path)
    settings = yaml.safe_load(experiment.read_text())
    settings["backbones"][1]["finetune"] = {"mode": "last_blocks", "unfrozen_blocks": 99}  # is seen by training only
    settings["seeds"] = [0, 1]
    experiment.write_text(yaml.safe_dump(settings))
    job = cluster.sbatch(
        "slurm/finetune_all.sh", experiment, "--array=0,2", "--mem=2G", cwd=tiny.ROOT, env=tiny.ENVIRONMENT
    )
    cluster.wait(job)
    array, report = re.search(
        r"squeue --jobs=(\d+),\d+,(\d+)", (cluster.folder / f"job-{job}.log").read_text()
    ).groups()
    assert cluster.wait(report, timeout=300) == {report: "COMPLETED"}
    assert cluster.states(array) == {f"{array}_0": "COMPLETED", f"{array}_2": "FAILED"}
    assert cluster.restarts(f"{array}_2") == 1, "a second try, and no third"
    folder = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-m", "jobs.status", str(experiment)]
    said = subprocess.run(command, cwd=tiny.ROOT, env=cluster.env, capture_output=True, text=True, check=True).stdout
    lines = said.splitlines()
    assert [line.split()[1] for line in lines[:4]] == ["done", "to", "failed", "to"]
    assert "unfrozen_blocks=99: this backbone has" in lines[2]
    assert lines[2].endswith(f"log: {folder}/slurm/row-2-{array}.log")
    html = (folder / "report.html").read_text()
    assert "fine-tuning of tiny_test_efficientnet" in html, "the report says what is missing"
    (done,) = folder.glob("*/done.json")
    assert tiny.logged_runs(tmp_path / "runs") == [(done.parent.name, "FINISHED")]


def _is_rank(process: psutil.Process) -> bool:
    """Whether it trains; the others are launchers."""
    return "accelerate.commands.launch" not in " ".join(process.cmdline())
