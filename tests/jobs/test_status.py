"""The table of rows, and running failed ones again."""

import os
import sys

import pytest

from data_shards.command import InputError, from_yaml
from jobs import plan, record, status
from jobs.experiment import Experiment
from trainer.lease import Lease


@pytest.fixture
def planned(write_experiment, tmp_path):
    file = write_experiment(tmp_path, seeds=[0, 1, 2])
    return plan.write(from_yaml(Experiment, file)), file


def test_every_state_is_told_from_the_others(planned, monkeypatch):
    file, _ = planned
    rows = plan.read(file)
    (rows[0].run / "scores").mkdir(parents=True)
    for name in ("result.json", "evaluation.json", *(f"scores/{name}.parquet" for name in rows[0].score)):
        (rows[0].run / name).write_text("{}")
    record.mark_done(rows[0])
    for _ in range(2):
        record.mark_failed(rows[1], "no room", 1, "/logs/row-1.log")
    rows[2].run.mkdir(parents=True)
    (rows[5].run / ".lease").mkdir(parents=True)
    (rows[5].run / ".lease" / "3.beat.77").touch()  # left by a crash: it does not change
    monkeypatch.setattr(status, "queued", lambda _: {4: "job 8_4, pending"})
    with Lease(rows[3].run, "job 8_3", "") as lease:
        found = status.statuses(file)
        assert not lease.lost
    assert [each.state for each in found] == ["done", "failed", "stopped", "running", "waiting", "stopped"]
    lines = status.table(found).splitlines()
    assert lines[1].split()[:2] == ["1", "failed"]
    assert lines[1].endswith("no room (2 attempts, given up)  log: /logs/row-1.log")
    assert lines[3].endswith("job 8_3")
    assert lines[4].endswith("job 8_4, pending")
    assert lines[-1] == "6 rows: 1 done, 1 running, 1 waiting, 2 stopped, 1 failed"


def test_resubmission_makes_failed_rows_runnable_and_says_how(planned, monkeypatch, tmp_path, capsys):
    file, experiment = planned
    for row in plan.read(file)[1:4]:
        record.mark_failed(row, "no room", 1, "", give_up=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    status.main(status.Status(experiment=experiment, resubmit="failed"))
    assert capsys.readouterr().out.splitlines()[-1] == f"{sys.executable} -m jobs.run plan={file} 'rows=[1, 2, 3]'"
    assert all(record.failure(row) is None for row in plan.read(file))
    status.main(status.Status(plan=file, resubmit="failed"))
    assert capsys.readouterr().out.splitlines()[-1] == "no failed rows: nothing to submit"
    (programs / "sbatch").write_text("#!/bin/sh\n")
    os.chmod(programs / "sbatch", 0o755)
    status.main(status.Status(plan=file, resubmit="unfinished"))
    assert capsys.readouterr().out.splitlines()[-1] == f"bash slurm/submit_rows.sh {file} 0-5"


def test_a_queue_that_does_not_answer_is_left_out(planned, monkeypatch, tmp_path, capsys):
    file, _ = planned
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    squeue = tmp_path / "squeue"
    for script, reason in (("exit 3", "exit status 3"), ("echo no controller >&2; exit 1", "no controller")):
        squeue.write_text(f"#!/bin/sh\n{script}\n")
        squeue.chmod(0o755)
        assert status.queued(file) == {}
        assert capsys.readouterr().err == f"squeue does not answer, the queue is left out: {reason}\n"


def test_a_plan_of_the_same_name_elsewhere_is_another_plan(planned, monkeypatch, tmp_path):
    file, _ = planned
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    other = "/other/" + "/".join(file.parts[-3:])
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho 7 1 PENDING slurm/finetune_row.sh {other} 2\n")
    squeue.chmod(0o755)
    assert status.queued(file) == {}
    squeue.write_text(f"#!/bin/sh\necho 7 1 PENDING slurm/finetune_row.sh {file.resolve()} 2\n")
    assert status.queued(file) == {3: "job 7_1, pending"}


def test_one_of_experiment_and_plan_is_needed():
    with pytest.raises(InputError, match="experiment file, or plan"):
        status.main(status.Status())
