"""Limits that a row meets: of time, of priority, of the disk. Each ends as an undisturbed run does, bit by bit."""

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


def _is_rank(process: psutil.Process) -> bool:
    """Whether it trains; the others are launchers."""
    return "accelerate.commands.launch" not in " ".join(process.cmdline())
