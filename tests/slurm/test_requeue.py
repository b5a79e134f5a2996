"""slurm/requeue.sh under bash alone, with a scontrol that records what it is asked. On a real Slurm: test_limits.py."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOB = """set -euo pipefail
source slurm/requeue.sh
run_or_requeue bash -c 'trap "exit $1" USR1; touch running; for _ in {1..600}; do sleep .05; done' command "$1"
"""


@pytest.fixture
def job(tmp_path):
    """Start a job whose command ends with a status when it is asked to stop: (its process, what scontrol was asked)."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    started = []

    def start(status: int, **variables: str) -> tuple[subprocess.Popen, Path]:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
        process = subprocess.Popen(
            ["bash", "-c", JOB, "job", str(status)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return process, tmp_path / "asked"

    yield start
    for process in started:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen) -> tuple[int, str]:
    process.send_signal(signal.SIGUSR1)
    _, complaint = process.communicate(timeout=60)
    return process.returncode, complaint


def test_what_stopped_is_requeued(job):
    process, asked = job(85)
    assert stop(process) == (85, "")
    assert asked.read_text() == "requeue 7\n"


def test_a_task_of_an_array_is_requeued_alone(job):
    process, asked = job(85, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2")
    stop(process)
    assert asked.read_text() == "requeue 5_2\n"


def test_not_for_ever(job):
    process, asked = job(85, SLURM_RESTART_COUNT="20")
    status, complaint = stop(process)
    assert status == 85
    assert "stopped after 20 restarts, and not requeued again" in complaint
    assert not asked.exists()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_what_ended_is_not_requeued_even_if_it_was_asked_to_stop(job, status):
    process, asked = job(status)
    assert stop(process) == (status, "")
    assert not asked.exists()
