"""A folder from which to submit the scripts of slurm/, with a stand-in for python that records how it was called."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A python that knows the three commands of jobs. It appends one JSON line for each call to calls.jsonl.
STAND_IN = """#!{python}
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path

home = Path({home!r})
if sys.argv[1] == "-c":  # sweep.sh asks Ray for its address
    print("127.0.0.1")
    sys.exit()
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
elif command == "jobs.sweep" and not (home / "swept").exists():
    (home / "swept").touch()
    time.sleep(100)
elif command == "jobs.run" and (home / "fail").exists() and given["row"] == "1":
    sys.exit(1)
elif command == "jobs.run" and (home / "fail-once").exists():
    (home / "fail-once").unlink()
    sys.exit(75)
elif command in ("jobs.run", "jobs.measure") and (home / "wait").exists():
    number = given["row"] if command == "jobs.run" else given["backbone"]
    checkpoint = home / f"checkpoint-{{number}}"
    if checkpoint.exists():
        sys.exit(0)
    launcher = subprocess.Popen(["sleep", "100"])  # knows nothing of USR1, as accelerate's and torchrun's
    stopped = []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(True))
    (home / f"running-{{number}}").touch()
    while not stopped and not (home / "release").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    assert launcher.poll() is None, "the signal has killed the launcher"
    launcher.kill()
    if stopped:
        checkpoint.touch()
    sys.exit(85 if stopped else 0)
"""


# A ray that only listens at the port that it is given.
RAY = """#!{python}
import socket, sys, time
given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv if "=" in argument)
with socket.create_server(("127.0.0.1", int(given["port"]))):
    time.sleep(100)
"""


class Workplace:
    """A folder with slurm/ of this repository and the stand-in as its python, from which to submit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slurm").symlink_to(ROOT / "slurm")
        (folder / "bin").mkdir()
        self.program("python", STAND_IN.format(python=sys.executable, home=str(folder), root=str(ROOT)))
        self.program("ray", RAY.format(python=sys.executable))
        facts = (
            "row_options=(--comment=from-env)\nfeature_options=()\nreport_options=()\n"
            "pack_options=()\nplan_options=(gpu_memory_gb=80)\n"
            f"export PATH={folder}/bin:$PATH\n"
        )
        (folder / "env-test.sh").write_text(facts)

    def program(self, name: str, text: str) -> None:
        """Put a program into the PATH of the jobs."""
        file = self.folder / "bin" / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def submit(self, cluster, *arguments: str) -> str:
        return cluster.sbatch(*arguments, cwd=self.folder, env={"CLUSTER_ENV": "env-test.sh"})

    def submit_all(self, cluster, *options: str) -> tuple[str, str]:
        """Run slurm/finetune_all.sh; returns the ids of the array and of the report."""
        job = self.submit(cluster, "--mem=2G", "slurm/finetune_all.sh", "mine.yaml", *options)
        cluster.wait(job)
        log = (cluster.folder / f"job-{job}.log").read_text()
        found = re.search(r"squeue --jobs=([\d,]+),(\d+),(\d+)", log)
        assert found, log
        self.evaluation = found[2]
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
