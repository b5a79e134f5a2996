"""``sbatch slurm/finetune_all.sh`` with the real commands: a tiny experiment from submission to report."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_row_is_finished_once_and_reported(cluster, experiment):
    environment = {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    job = cluster.sbatch("slurm/finetune_all.sh", experiment, cwd=ROOT, env=environment)
    assert cluster.wait(job, timeout=120) == {job: "COMPLETED"}, cluster.logs()
    array, report = re.search(
        r"squeue --jobs=(\d+),\d+,(\d+)", (cluster.folder / f"job-{job}.log").read_text()
    ).groups()
    cluster.wait(report, timeout=300)

    folder = experiment.parent / "runs" / "tiny"
    logs = "\n".join(path.read_text() for path in sorted((folder / "slurm").iterdir()))
    assert cluster.states(report) == {report: "COMPLETED"}, logs
    assert cluster.states(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "COMPLETED"}, logs
    plan = [json.loads(line) for line in (folder / "plan.jsonl").read_text().splitlines()]
    assert [row["backbone"] for row in plan] == ["tiny_test_resnet-random", "tiny_test_efficientnet-random"]
    assert len(list(folder.glob("*/result.json"))) == len(list(folder.glob("*/evaluation.json"))) == 2
    scored = sorted(path.stem for path in folder.glob("*/scores/*.parquet"))
    assert scored == sorted(2 * ["train", "validation", "test", "other"])
    html = (folder / "report.html").read_text()
    assert all(row["backbone"] in html for row in plan)

    # again, and by one row more than the plan has: the finished rows find themselves, the one beyond has nothing to do
    before = {path: path.stat().st_mtime_ns for path in folder.glob("tiny_*/**/*")}
    arguments = ("--array=0-2", "slurm/finetune_row.sh", folder / "plan.jsonl")
    again = cluster.sbatch(*arguments, cwd=ROOT, env=environment)
    assert cluster.wait(again, timeout=120) == {f"{again}_{row}": "COMPLETED" for row in range(3)}, cluster.logs()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("tiny_*/**/*")} == before
    with contextlib.closing(sqlite3.connect(folder.parent / "mlflow.db")) as database:
        logged = database.execute("select name, status from runs").fetchall()
    assert len(logged) == 2, logged


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_on_two_nodes_stops_on_request_and_continues(machines, experiment):
    settings = yaml.safe_load(experiment.read_text())
    settings["finetune"] |= {"epochs": 60, "evaluate_every": 30, "log_every": 1}  # 180 updates: time to be stopped in
    experiment.write_text(yaml.safe_dump(settings))
    environment = {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    plan = subprocess.run(
        [sys.executable, "-m", "jobs.plan", "--config", experiment],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.strip()
    log = experiment.parent / "row.log"
    arguments = ("--nodes=2", "--array=0", f"--output={log}", "slurm/finetune_row.sh", plan)
    job = machines.sbatch(*arguments, cwd=ROOT, env=environment)

    machines.wait_until(lambda: list(Path(plan).parent.glob("*/metrics.jsonl")), timeout=120)
    machines.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    machines.wait_until(lambda: machines.restarts(f"{job}_0") == 1, timeout=60)
    assert machines.wait(job, timeout=240) == {f"{job}_0": "COMPLETED"}, log.read_text()
    assert re.search(r"180 updates.* resumed after update [1-9]", log.read_text())
    assert len(list(Path(plan).parent.glob("*/evaluation.json"))) == 1
