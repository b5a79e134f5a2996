"""Requests to stop and second tries, on a real Slurm with a stand-in for python (standin.py)."""

from __future__ import annotations

import shutil

import pytest


@pytest.mark.slurm
def test_a_first_failure_is_tried_again(cluster, workplace):
    (workplace.folder / "fail-once").touch()
    job = workplace.submit(cluster, "--array=0", "slurm/finetune_row.sh", "plan.jsonl")
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}
    assert cluster.restarts(f"{job}_0") == 1
    calls = workplace.calls("jobs.run")
    assert [call["holder"] for call in calls] == [f"job {job}_0, start 0", f"job {job}_0, start 1"]
    assert len({call["port"] for call in calls}) == 2
    assert all(call["log"] == f"{cluster.folder}/job-{job}.log" for call in calls)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_row_that_was_asked_to_stop_is_requeued_and_no_other(cluster, workplace):
    (workplace.folder / "wait").touch()
    array, report = workplace.submit_all(cluster, "--array=0-1", "--nodes=2")
    for row in "01":
        cluster.wait_until((workplace.folder / f"running-{row}").exists)
    # the task whose job id is the array's own id: `scontrol requeue` of that id would requeue the whole array
    show = {row: cluster.scontrol("show", "job", "--oneliner", f"{array}_{row}") for row in "01"}
    (asked,) = [row for row in "01" if show[row].startswith(f"JobId={array} ")]
    other = "10"[int(asked)]

    cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_{asked}")
    cluster.wait_until(lambda: cluster.restarts(f"{array}_{asked}") == 1)
    assert cluster.states(array)[f"{array}_{other}"] == "RUNNING"
    (workplace.folder / "release").touch()  # the other ends while the one asked waits for its second life
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert cluster.states(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "COMPLETED"}
    assert (cluster.restarts(f"{array}_{asked}"), cluster.restarts(f"{array}_{other}")) == (1, 0)
    lives = {row: sum(call["row"] == row for call in workplace.calls("jobs.run")) for row in "01"}
    assert lives == {asked: 4, other: 2}, "two machines, and two lives of the one that was asked to stop"
    assert workplace.last_call() == "jobs.report"


@pytest.mark.slurm
def test_a_request_to_stop_before_there_is_a_step_is_not_lost(cluster, workplace):
    (workplace.folder / "wait").touch()
    facts = workplace.folder / "env-test.sh"
    facts.write_text(facts.read_text() + f"touch {workplace.folder}/starting; sleep 2\n")
    job = workplace.submit(cluster, "--array=0", "slurm/finetune_row.sh", "plan.jsonl")
    cluster.wait_until((workplace.folder / "starting").exists)
    cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    cluster.wait_until(lambda: cluster.restarts(f"{job}_0") == 1, timeout=60)
    (workplace.folder / "release").touch()  # whether or not it listened yet, and so had a checkpoint
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}


@pytest.mark.slurm
def test_a_controller_that_is_away_is_asked_again(cluster, workplace):
    (workplace.folder / "fail-once").touch()
    scontrol = shutil.which("scontrol", path=cluster.env["PATH"])
    away = f"[[ $1 == requeue && ! -e {workplace.folder}/back ]] && touch {workplace.folder}/back && exit 1\n"
    workplace.program("scontrol", f'#!/bin/bash\n{away}exec {scontrol} "$@"\n')
    job = workplace.submit(cluster, "--array=0", "slurm/finetune_row.sh", "plan.jsonl")
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}
    assert (workplace.folder / "back").exists()
    assert cluster.restarts(f"{job}_0") == 1


@pytest.mark.slurm
def test_a_sweep_is_requeued_before_its_time_limit_and_not_when_it_is_cancelled(cluster, workplace):
    running = workplace.folder / "swept"
    job = workplace.submit(cluster, "--requeue", "--cpus-per-task=1", "--mem=1G", "slurm/sweep.sh", "sweep.yaml")
    cluster.wait_until(running.exists)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_until(lambda: cluster.restarts(job) == 1)
    assert cluster.wait(job) == {job: "COMPLETED"}, cluster.logs()
    running.unlink()
    job = workplace.submit(cluster, "--requeue", "--cpus-per-task=1", "--mem=1G", "slurm/sweep.sh", "sweep.yaml")
    cluster.wait_until(running.exists)
    cluster.run("scancel", job)
    assert cluster.wait(job) == {job: "CANCELLED"}
    assert cluster.restarts(job) == 0
    assert "to be continued" not in (cluster.folder / f"job-{job}.log").read_text()


@pytest.mark.slurm
def test_features_are_requeued_before_their_time_limit_and_no_other_task(cluster, workplace):
    (workplace.folder / "wait").touch()
    options = ("--array=0-1", "--cpus-per-task=1", "--mem=1G")
    array = workplace.submit(cluster, *options, "slurm/features_all.sh", "mine.yaml")
    for task in "01":
        cluster.wait_until((workplace.folder / f"running-{task}").exists)
    show = {task: cluster.scontrol("show", "job", "--oneliner", f"{array}_{task}") for task in "01"}
    (asked,) = [task for task in "01" if show[task].startswith(f"JobId={array} ")]  # see above
    other = "10"[int(asked)]
    cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_{asked}")
    cluster.wait_until(lambda: cluster.restarts(f"{array}_{asked}") == 1)
    (workplace.folder / "release").touch()
    assert cluster.wait(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "COMPLETED"}
    assert cluster.restarts(f"{array}_{other}") == 0
    lives = [call["backbone"] for call in workplace.calls("jobs.measure")]
    assert sorted(lives) == sorted([asked, asked, other])
