"""The scripts of slurm/: checked as text, then run on a real Slurm with a stand-in for python, which records how it
was called. The real commands run in test_finetune_all.py."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
JOBS = [
    script for script in SCRIPTS if not re.match("env|submit[.]|requeue", script.name)
]  # the others are only sourced


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_parse_it(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        reason = "no shellcheck: apt-get install -y --no-install-recommends shellcheck"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", JOBS, ids=lambda script: script.name)
def test_a_job_is_strict_and_names_no_cluster(script):
    text = script.read_text()
    assert "\nset -euo pipefail\n" in text
    assert not re.search(r"#SBATCH .*--(partition|account|qos|gres|constraint|reservation)", text)
    assert os.access(script, os.X_OK)


@pytest.mark.slurm
def test_one_submission_runs_all_rows_and_then_the_report(cluster, workplace):
    (workplace.folder / "fail").touch()  # row 1 fails; the others and the report go on
    array, report = workplace.submit_all(cluster, "--nodes=2", "--gpus-per-node=2", "--mem=1G")
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert cluster.states(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "FAILED", f"{array}_2": "COMPLETED"}

    kept = f"{workplace.folder}/runs/standin/experiment.yaml"  # what comes after uses the experiment as it was
    plans = [call["arguments"] for call in workplace.calls("jobs.plan")]
    assert plans == [["--config", file, "gpu_memory_gb=80"] for file in ("mine.yaml", kept)]
    assert [call["arguments"] for call in workplace.calls("jobs.report")] == [["--config", kept]]
    assert workplace.last_call() == "jobs.report"
    assert "Comment=from-env" in cluster.scontrol("show", "job", "--oneliner", f"{array}_0")

    rows = workplace.calls("jobs.run")
    started = [(call["row"], call["machine_rank"]) for call in rows]
    # of the row that fails, Slurm may end one machine's task before it has written its call
    assert sorted(start for start in started if start[0] != "1") == [(r, m) for r in "02" for m in "01"]
    assert len(started) == len(set(started)) >= 5
    for call in rows:
        assert (call["machines"], call["processes"]) == ("2", "2")
        if cluster.namespaces:
            assert call["head"] == "n1"
            assert call["host"] == ("n1", "n2")[int(call["machine_rank"])]
    ports = {call["row"]: {other["port"] for other in rows if other["row"] == call["row"]} for call in rows}
    assert all(len(used) == 1 for used in ports.values()), "the machines of a row meet at one port"
    assert len(set.union(*ports.values())) == 3, "rows that may share a node do not share a port"

    logs = workplace.folder / "runs" / "standin" / "slurm"
    assert sorted(path.name for path in logs.iterdir()) == [
        f"evaluate_all-{workplace.evaluation}.log",
        f"report-{report}.log",
        *(f"row-{row}-{array}.log" for row in range(3)),
    ]


@pytest.mark.slurm
def test_a_subset_of_the_rows_can_be_submitted(cluster, workplace):
    _, report = workplace.submit_all(cluster, "--array=0,2%1")
    cluster.wait(report)
    assert sorted(call["row"] for call in workplace.calls("jobs.run")) == ["0", "2"]
    assert len(workplace.calls("jobs.report")) == 1


@pytest.mark.slurm
def test_a_plan_larger_than_an_array_goes_into_several(cluster, workplace):
    (workplace.folder / "rows").write_text("8")  # the cluster's MaxArraySize is 6
    arrays, report = workplace.submit_all(cluster, "--array=1-6,7%3")
    cluster.wait(report)
    first, second = arrays.split(",")
    assert set(cluster.states(first)) == {f"{first}_{task}" for task in range(1, 6)}
    assert set(cluster.states(second)) == {f"{second}_0", f"{second}_1"}
    assert sorted(int(call["row"]) for call in workplace.calls("jobs.run")) == [1, 2, 3, 4, 5, 6, 7]
    assert workplace.last_call() == "jobs.report"
    logs = {path.name for path in (workplace.folder / "runs" / "standin" / "slurm").glob("row-*")}
    assert {f"row-1-{first}.log", f"row-6+1-{second}.log"} <= logs


@pytest.mark.slurm
def test_rows_that_wait_are_found_in_the_queue(cluster, workplace):
    plan = workplace.folder / "runs" / "waits" / "plan.jsonl"
    plan.parent.mkdir(parents=True)
    plan.touch()
    command = ("bash", "slurm/submit_rows.sh", plan, "0,4-7", "--hold")
    submitted = cluster.run(*command, cwd=workplace.folder, env={"CLUSTER_ENV": "env-test.sh"})
    first, second = submitted.split()
    code = f"from jobs import status; print(status.queued(status.Path({str(plan)!r})))"
    found = ast.literal_eval(cluster.run(sys.executable, "-c", code, cwd=ROOT))
    assert found == {row: f"job {first}_{row}, pending" for row in (0, 4, 5)} | {
        row: f"job {second}_{row - 6}, pending" for row in (6, 7)
    }


@pytest.mark.slurm
def test_the_benchmark_is_shards_features_rows_evaluation_and_a_report(cluster, workplace):
    large = {"nodes": 2, "gpus": 2, "memory_gb": 1.5, "hours": 0.5}
    (workplace.folder / "asks").write_text(json.dumps({"0": {"gpus": 0, "cpus": 1}, "1": large}))
    pack = ("--pack", "faces=faces.csv out=shards")
    job = workplace.submit(cluster, "slurm/benchmark.sh", *pack, "mine.yaml", "--mem=1G")
    cluster.wait(job)
    log = (cluster.folder / f"job-{job}.log").read_text()
    shards = re.search(r"shards   job (\d+)", log)[1]
    features = re.search(r"features job (\d+), for 2 backbones", log)[1]
    evaluation, report = re.search(r"squeue --jobs=.*,(\d+),(\d+)", log).groups()
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert cluster.states(shards) == {shards: "COMPLETED"}
    assert cluster.states(evaluation) == {evaluation: "COMPLETED"}
    assert cluster.states(features) == {f"{features}_0": "COMPLETED", f"{features}_1": "COMPLETED"}
    measured = [call for call in workplace.calls("jobs.measure") if "backbone" in call]
    kept = f"{workplace.folder}/runs/standin/experiment.yaml"
    assert sorted((call["experiment"], call["backbone"]) for call in measured) == [(kept, "0"), (kept, "1")]
    order = workplace.order()
    assert order[-1] == "jobs.report"
    assert order.index("data_shards.pack") < order.index("jobs.run") < order.index("evaluation")
    (packed,) = workplace.calls("data_shards.pack")
    assert packed["arguments"] == ["faces=faces.csv", "out=shards"]
    started = sorted((call["row"], call["machines"], call.get("processes")) for call in workplace.calls("jobs.run"))
    assert started == [("0", "1", None), ("1", "2", "2"), ("1", "2", "2"), ("2", "1", None)]


@pytest.mark.slurm
def test_without_shards_nothing_waits_for_ever(cluster, workplace):
    python = workplace.folder / "bin" / "python"
    python.write_text(python.read_text().replace("if command == \"jobs.plan\"", "if command == \"data_shards.pack\":\n"
                                                 "    sys.exit(2)\nelif command == \"jobs.plan\""))  # fmt: skip
    job = workplace.submit(cluster, "slurm/benchmark.sh", "--pack", "faces=none.csv", "mine.yaml")
    cluster.wait(job)
    report = re.search(r"report   job (\d+)", (cluster.folder / f"job-{job}.log").read_text())[1]
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert not [call for call in workplace.calls("jobs.measure") if "backbone" in call]
    assert not workplace.calls("jobs.run")


@pytest.mark.slurm
def test_a_dry_run_prints_what_would_be_submitted_and_submits_nothing(cluster, workplace):
    (workplace.folder / "asks").write_text(json.dumps({"2": {"gpus": 8}}))
    before = set(cluster.states())
    command = ["bash", "slurm/benchmark.sh", "--dry-run", "--pack", "out=s", "mine.yaml", "--array=0,2%4", "--mem=1G"]
    done = subprocess.run(
        command,
        cwd=workplace.folder,
        env=cluster.env | {"CLUSTER_ENV": "env-test.sh"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(cluster.states()) == before
    shards, features, rows, large, evaluation, report = done.stderr.replace("\\", "").splitlines()
    assert shards.endswith(" slurm/pack_shards.sh out=s")
    assert features.startswith("sbatch --job-name=features --array=0-1 --output=")
    after = "--dependency=afterok:ID(pack_shards) --kill-on-invalid-dep=yes"
    assert features.endswith(f" {after} slurm/features_all.sh {workplace.folder}/runs/standin/experiment.yaml")
    plan = f"{workplace.folder}/runs/standin/plan.jsonl"
    assert rows.startswith("sbatch --job-name=standin+0 --array=0%4 --output=")
    assert rows.endswith(f" --comment=from-env {after} --mem=1G slurm/finetune_row.sh {plan} 0")
    assert large.startswith("sbatch --job-name=standin+0 --array=2%4 --output=")
    assert f" --comment=from-env --gpus-per-node=8 {after}" in large
    assert "--dependency=afterany:ID(standin+0):ID(standin+0)" in evaluation
    assert "--dependency=afterany:ID(evaluate_all):ID(features)" in report


@pytest.mark.slurm
def test_separability_alone_has_no_rows(cluster, workplace):
    (workplace.folder / "rows").write_text("0")
    job = workplace.submit(cluster, "slurm/benchmark.sh", "mine.yaml")
    cluster.wait(job)
    report = re.search(r"report   job (\d+)", (cluster.folder / f"job-{job}.log").read_text())[1]
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert workplace.order()[-1] == "jobs.report"
    assert not workplace.calls("jobs.run")


@pytest.mark.slurm
def test_without_gpus_the_experiment_says_how_many_processes(cluster, workplace):
    job = workplace.submit(cluster, "--array=0", "slurm/finetune_row.sh", "plan.jsonl")
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}
    (call,) = workplace.calls("jobs.run")
    assert (call["plan"], call["machines"], call["machine_rank"]) == ("plan.jsonl", "1", "0")
    assert "processes" not in call


@pytest.mark.slurm
@pytest.mark.parametrize("last", ["finetune_row.sh", "report.sh"])
def test_what_cannot_be_submitted_as_a_whole_is_cancelled(cluster, workplace, last):
    (workplace.folder / "rows").write_text("8")  # two arrays
    sbatch = shutil.which("sbatch", path=cluster.env["PATH"])
    refuse = (
        f"for word; do [[ $word == */{last} ]] && [[ -e {workplace.folder}/once || {last} == report.sh ]] && exit 1;"
    )
    refuse += f" [[ $word == */{last} ]] && touch {workplace.folder}/once; done\n"
    workplace.program("sbatch", f'#!/bin/bash\n{refuse}exec {sbatch} "$@"\n')
    before = set(cluster.states())
    done = subprocess.run(
        ["bash", "slurm/benchmark.sh", "mine.yaml", "--hold"],
        cwd=workplace.folder,
        env=cluster.env | {"CLUSTER_ENV": "env-test.sh"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    submitted = {job: state for job, state in cluster.states().items() if job not in before}
    assert submitted
    said = re.search("error: not everything could be submitted; cancelled again: ([0-9 ]+)$", done.stderr, re.M)[1]
    assert {job.split("_")[0] for job in submitted} == set(said.split())
    cluster.wait_until(lambda: cluster.ENDED.issuperset(cluster.states()[job] for job in submitted))
    assert not workplace.calls("jobs.run")
    assert not workplace.calls("jobs.report")


@pytest.mark.slurm
def test_a_plan_that_cannot_be_made_submits_nothing(cluster, workplace):
    (workplace.folder / "bin" / "python").write_text("#!/bin/bash\necho 'error: no experiment' >&2\nexit 2\n")
    before = set(cluster.states())
    job = workplace.submit(cluster, "slurm/finetune_all.sh", "missing.yaml")
    assert cluster.wait(job) == {job: "FAILED"}
    assert set(cluster.states()) - before == {job}
    assert (cluster.folder / f"job-{job}.log").read_text() == "error: no experiment\n"
