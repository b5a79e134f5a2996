"""What a cluster does to a row, with the real commands: each ends with results equal, bit by bit, to those of an
undisturbed run, every update trained once, and one run in MLflow."""

from __future__ import annotations

import json

import psutil
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_preempted_then_its_node_crashes(cluster, tiny, undisturbed, row):
    if not cluster.namespaces:
        pytest.skip("kill_node needs namespaces: run as root")
    plan, run = row
    job = tiny.submit_row(cluster, plan)
    cluster.wait_until(lambda: tiny.updates(run) >= 10, timeout=300)
    important = cluster.sbatch("--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 1")
    cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 1, timeout=60)
    assert cluster.wait(important) == {important: "COMPLETED"}
    saved = json.loads((run / "stopped.json").read_text())["step"]
    assert saved >= 10, "SIGTERM alone must be enough to save the state"

    cluster.wait_until(lambda: tiny.updates(run) >= saved + 60, timeout=300)
    node = cluster.squeue(f"--jobs={job}", "--format=%N")
    cluster.kill_node(node)
    try:
        cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=crashed")
        cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 2, timeout=60)
        assert cluster.wait(job, timeout=300) == {f"{job}_0": "COMPLETED"}, tiny.log(plan)
    finally:
        cluster.start_node(node)
        cluster.wait_idle()
    tiny.check_equal(run, undisturbed)
    assert tiny.logged_runs(plan.parents[1]) == [(run.name, "FINISHED")]


def test_two_incarnations_do_not_write_the_same_run(cluster, tiny, undisturbed, row):
    plan, run = row
    job = tiny.submit_row(cluster, plan)
    cluster.wait_until(lambda: tiny.updates(run) >= 10, timeout=300)
    old = tiny.processes(plan)
    assert old
    node = cluster.squeue(f"--jobs={job}", "--format=%N")
    cluster.kill_slurmd(node)
    try:
        # the controller sees the node no more and starts the row elsewhere; its processes live on
        cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        last = tiny.updates(run)
        cluster.wait_until(lambda: tiny.updates(run) >= last + 10, timeout=20)  # here they are: two incarnations soon
        cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 1, timeout=60)
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
