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
