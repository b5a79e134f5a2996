"""What a cluster does to a row, with the real commands: each ends with results equal, bit by bit, to those of an
undisturbed run, every update trained once, and one run in MLflow."""

from __future__ import annotations

import contextlib
import json

import psutil
import pytest

from jobs import plan as plans

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_preempted_then_a_node_crashes(machines, tiny, undisturbed, row):
    """A plan of two rows, one on each node."""
    plan, run = row
    rows = [each.run for each in plans.read(plan)]
    job = tiny.submit_row(machines, plan, "--cpus-per-task=4", rows="0-1")
    machines.wait_until(lambda: all(tiny.updates(each) >= 10 for each in rows), timeout=300)
    important = machines.sbatch("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    machines.wait_until(lambda: machines.restarts(f"{job}_0") == machines.restarts(f"{job}_1") == 1)
    machines.wait_until((run / "stopped.json").exists)
    saved = json.loads((run / "stopped.json").read_text())["step"]
    assert saved >= 10, "SIGTERM alone must be enough to save the state"
    assert machines.wait(important) == {important: "COMPLETED"}

    machines.wait_until(lambda: tiny.updates(run) >= saved + 60, timeout=300)
    node = machines.squeue(f"--jobs={job}_0", "--format=%N")
    machines.kill_node(node)
    try:
        machines.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=crashed")
        machines.wait_until(lambda: machines.restarts(f"{job}_0") == 2)
    finally:
        machines.start_node(node)
    assert machines.wait(job, timeout=300) == {f"{job}_{row}": "COMPLETED" for row in (0, 1)}, tiny.log(plan)
    machines.wait_idle()
    for each in rows:
        tiny.check_equal(each, undisturbed.with_name(each.name))
    assert sorted(tiny.logged_runs(plan.parents[1])) == sorted((each.name, "FINISHED") for each in rows)


def test_two_incarnations_do_not_write_the_same_run(cluster, tiny, undisturbed, row):
    plan, run = row
    job = tiny.submit_row(cluster, plan)
    cluster.wait_until(lambda: tiny.updates(run) >= 10, timeout=300)
    old = tiny.processes(plan)
    assert old
    for process in old:  # however fast this machine is: not done before there are two incarnations
        process.suspend()
    node = cluster.squeue(f"--jobs={job}", "--format=%N")
    cluster.kill_slurmd(node)
    try:
        # the controller sees the node no more and starts the row elsewhere; its processes live on
        cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 1)
        cluster.wait_until((run / ".lease" / "2.json").exists)
        for process in old:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended already by its own supervisor
                process.resume()
        assert cluster.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
        _, alive = psutil.wait_procs(old, timeout=1)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    finally:
        cluster.start_node(node)
        cluster.wait_idle()
    (note,) = (run / ".lease").glob("*.json")
    assert json.loads(note.read_text())["holder"] == f"job {job}_0, start 1"
    tiny.check_equal(run, undisturbed)
    assert tiny.logged_runs(plan.parents[1]) == [(run.name, "FINISHED")]
