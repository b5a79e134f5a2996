"""The scripts of slurm/: checked as text, then run on a real Slurm with a stand-in for python, which records how it
was called. The real commands run in test_finetune_all.py."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
JOBS = [script for script in SCRIPTS if not re.match("env|submit[.]", script.name)]  # the others are only sourced


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


# A python that knows the three commands of jobs. It appends one JSON line for each call to calls.jsonl.
STAND_IN = """#!{python}
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path

home = Path({home!r})
command, *arguments = sys.argv[2:]
given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
if command == "jobs.arrays":  # the real one
    os.execve({python!r}, [{python!r}, *sys.argv[1:]], {{**os.environ, "PYTHONPATH": {root!r}}})
call = {{"command": command, "arguments": arguments, "host": socket.gethostname(), **given}}
with open(home / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(call) + "\\n")

if command == "jobs.plan":
    plan = home / "runs" / "standin" / "plan.jsonl"
    plan.parent.mkdir(parents=True, exist_ok=True)
    rows = int((home / "rows").read_text()) if (home / "rows").exists() else 3
    asks = json.loads((home / "asks").read_text()) if (home / "asks").exists() else {{}}
    rows = [json.dumps({{"row": row, "resources": asks.get(str(row), {{}})}}) + "\\n" for row in range(rows)]
    plan.write_text("".join(rows))
    print(plan)
elif command == "jobs.measure" and "backbone" not in given:
    print(2)
elif command == "jobs.run" and (home / "fail").exists() and given["row"] == "1":
    sys.exit(1)
elif command == "jobs.run" and (home / "fail-once").exists():
    (home / "fail-once").unlink()
    sys.exit(75)
elif command == "jobs.run" and (home / "wait").exists():
    checkpoint = home / f"checkpoint-{{given['row']}}"
    if checkpoint.exists():
        sys.exit(0)
    launcher = subprocess.Popen(["sleep", "100"])  # knows nothing of USR1, as accelerate's and torchrun's
    stopped = []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(True))
    (home / f"running-{{given['row']}}").touch()
    while not stopped and not (home / "release").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    assert launcher.poll() is None, "the signal has killed the launcher"
    launcher.kill()
    if stopped:
        checkpoint.touch()
    sys.exit(85 if stopped else 0)
"""


class Workplace:
    """A folder with slurm/ of this repository and the stand-in as its python, from which to submit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slurm").symlink_to(ROOT / "slurm")
        (folder / "bin").mkdir()
        python = folder / "bin" / "python"
        python.write_text(STAND_IN.format(python=sys.executable, home=str(folder), root=str(ROOT)))
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        facts = (
            "row_options=(--comment=from-env)\nfeature_options=()\nreport_options=()\n"
            "pack_options=()\nplan_options=(gpu_memory_gb=80)\n"
            f"export PATH={folder}/bin:$PATH\n"
        )
        (folder / "env-test.sh").write_text(facts)

    def submit(self, cluster, *arguments: str) -> str:
        return cluster.sbatch(*arguments, cwd=self.folder, env={"CLUSTER_ENV": "env-test.sh"})

    def submit_all(self, cluster, *options: str) -> tuple[str, str]:
        """Run slurm/finetune_all.sh; returns the ids of the array and of the report."""
        job = self.submit(cluster, "--mem=2G", "slurm/finetune_all.sh", "mine.yaml", *options)
        cluster.wait(job)
        log = (cluster.folder / f"job-{job}.log").read_text()
        found = re.search(r"squeue --jobs=([\d,]+),(\d+),(\d+)", log)
        assert found, log
        return found[1], found[3]

    def last_call(self) -> str:
        return json.loads((self.folder / "calls.jsonl").read_text().splitlines()[-1])["command"]

    def calls(self, command: str) -> list[dict]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        calls = [call for call in map(json.loads, lines) if call["command"] == command]
        return [call for call in calls if "rows" not in call]  # rows=all is the evaluation's

    def order(self) -> list[str]:
        """What was called, in order, each once."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        calls = [("evaluation" if "rows" in call else call["command"]) for call in map(json.loads, lines)]
        return list(dict.fromkeys(calls))


@pytest.fixture
def workplace(tmp_path):
    return Workplace(tmp_path)


@pytest.mark.slurm
def test_one_submission_runs_all_rows_and_then_the_report(cluster, workplace):
    (workplace.folder / "fail").touch()  # row 1 fails; the others and the report go on
    array, report = workplace.submit_all(cluster, "--nodes=2", "--gpus-per-node=2", "--mem=1G")
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert cluster.states(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "FAILED", f"{array}_2": "COMPLETED"}

    assert [call["arguments"] for call in workplace.calls("jobs.plan")] == 2 * [
        ["--config", "mine.yaml", "gpu_memory_gb=80"]  # evaluate_all.sh makes it again: the shard sets may be others
    ]
    assert [call["arguments"] for call in workplace.calls("jobs.report")] == [["--config", "mine.yaml"]]
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
        f"evaluate_all-{int(report) - 1}.log",
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
    assert sorted((call["experiment"], call["backbone"]) for call in measured) == [
        ("mine.yaml", "0"),
        ("mine.yaml", "1"),
    ]
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
    assert features.endswith(f" {after} slurm/features_all.sh mine.yaml")
    plan = f"{workplace.folder}/runs/standin/plan.jsonl"
    assert rows.startswith("sbatch --job-name=standin+0 --array=0%4 --output=")
    assert rows.endswith(f" --comment=from-env {after} --mem=1G slurm/finetune_row.sh {plan} 0")
    assert large.startswith("sbatch --job-name=standin+0 --array=2%4 --output=")
    assert f" --comment=from-env --gpus-per-node=8 {after}" in large
    assert "--dependency=afterany:ID(standin+0):ID(standin+0)" in evaluation
    assert "--dependency=afterany:ID(evaluate_all):ID(features)" in report


def test_the_tracking_server_is_closed_to_others_unless_it_asks_for_a_password(workplace):
    def serve(**settings):
        env = os.environ | {"CLUSTER_ENV": "env-test.sh", "RUNS": str(workplace.folder / "r"), **settings}
        command = ["bash", "slurm/mlflow_server.sh"]
        return subprocess.run(command, cwd=workplace.folder, env=env, capture_output=True, text=True, check=False)

    assert serve().returncode == 0
    arguments = workplace.calls("mlflow")[-1]["arguments"]
    assert arguments[:3] == ["server", "--host", "127.0.0.1"]
    assert f"sqlite:///{workplace.folder}/r/mlflow.db" in arguments
    refused = serve(MLFLOW_BIND="0.0.0.0")
    assert (refused.returncode, len(workplace.calls("mlflow"))) == (2, 1)
    assert "can be reached by others" in refused.stderr
    assert "holds a password" in serve(MLFLOW_STORE="postgresql://me:secret@host/db").stderr
    secret = {"MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "very secret"}
    open_to_all = serve(MLFLOW_BIND="0.0.0.0", MLFLOW_STORE="postgresql://host/db", **secret)
    assert open_to_all.returncode == 0, open_to_all.stderr
    call = workplace.calls("mlflow")[-1]["arguments"]
    assert call[-2:] == ["--app-name", "basic-auth"]
    assert "very secret" not in " ".join(call) + open_to_all.stdout + open_to_all.stderr


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
def test_without_gpus_the_experiment_says_how_many_processes(cluster, workplace):
    job = workplace.submit(cluster, "--array=0", "slurm/finetune_row.sh", "plan.jsonl")
    assert cluster.wait(job) == {f"{job}_0": "COMPLETED"}
    (call,) = workplace.calls("jobs.run")
    assert (call["plan"], call["machines"], call["machine_rank"]) == ("plan.jsonl", "1", "0")
    assert "processes" not in call


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
def test_a_plan_that_cannot_be_made_submits_nothing(cluster, workplace):
    (workplace.folder / "bin" / "python").write_text("#!/bin/bash\necho 'error: no experiment' >&2\nexit 2\n")
    before = set(cluster.states())
    job = workplace.submit(cluster, "slurm/finetune_all.sh", "missing.yaml")
    assert cluster.wait(job) == {job: "FAILED"}
    assert set(cluster.states()) - before == {job}
    assert (cluster.folder / f"job-{job}.log").read_text() == "error: no experiment\n"
