"""The test cluster behaves as a cluster: the scripts' tests stand on this."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm]


def test_an_array_runs_every_task_once(cluster, tmp_path):
    job = cluster.sbatch("--array=0-5", "--wrap", f"echo $SLURM_ARRAY_TASK_ID >> {tmp_path}/seen")
    assert cluster.wait(job) == {f"{job}_{task}": "COMPLETED" for task in range(6)}
    assert sorted((tmp_path / "seen").read_text().split()) == list("012345")


def test_two_nodes_have_their_own_names_and_gpus(machines):
    report = 'echo "$SLURM_NODEID $(hostname) $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES"'
    job = machines.sbatch("--nodes=2", "--gpus-per-node=2", "--wrap", f"srun --ntasks-per-node=1 bash -c '{report}'")
    machines.wait(job)
    lines = (machines.folder / f"job-{job}.log").read_text().splitlines()
    assert sorted(lines) == ["0 n1 2 0,1", "1 n2 2 0,1"]


def test_a_signalled_job_requeues_itself(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        "trap 'scontrol requeue $SLURM_JOB_ID' USR1\n"
        'if [[ ${SLURM_RESTART_COUNT:-0} == 0 ]]; then touch "$1/waiting"; while :; do sleep 0.1; done; fi\n'
        'touch "$1/second-life"\n'
    )
    job = cluster.sbatch("--requeue", script, tmp_path)
    cluster.wait_until((tmp_path / "waiting").exists)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_until((tmp_path / "second-life").exists, timeout=30)
    assert cluster.wait(job) == {job: "COMPLETED"}
    assert cluster.restarts(job) == 1


def test_a_crashed_node_takes_its_job_down_and_slurm_requeues_it(machines, tmp_path):
    job = machines.sbatch("--requeue", "--nodelist=n2", "--wrap", f"{_HEARTBEAT} {tmp_path}/beat 30")
    machines.wait_until((tmp_path / "beat").exists)
    machines.kill_node("n2")
    try:
        assert _stands_still(machines, tmp_path / "beat")
        # Slurm would notice by itself after SlurmdTimeout; saying so is faster
        machines.scontrol("update", "NodeName=n2", "State=DOWN", "Reason=crashed")
        machines.wait_until(lambda: machines.restarts(job) == 1)
        assert machines.states(job) == {job: "PENDING"}
    finally:
        machines.run("scancel", job)
        machines.start_node("n2")
        machines.wait_idle()


def test_a_job_outlives_its_slurmd(cluster, tmp_path):
    job = cluster.sbatch("--nodelist=n2", "--wrap", f"{_HEARTBEAT} {tmp_path}/beat 3")
    cluster.wait_until((tmp_path / "beat").exists)
    cluster.kill_slurmd("n2")
    try:
        before = (tmp_path / "beat").stat().st_size
        cluster.wait_until(lambda: (tmp_path / "beat").stat().st_size > before, timeout=5)
    finally:
        cluster.start_node("n2")
    assert cluster.wait(job) == {job: "COMPLETED"}
    cluster.wait_idle()


# COMMAND FILE SECONDS: append to the file ten times a second
_HEARTBEAT = "bash -c 'for ((i = 0; i < 10 * $1; i++)); do echo >> $0; sleep 0.1; done'"


def _stands_still(cluster, path: Path) -> bool:
    """The file does not grow for half a second: nobody is left who writes it."""
    before = path.stat().st_size
    time.sleep(0.5)
    return path.stat().st_size == before
