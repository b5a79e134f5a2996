"""Random faults against a real Slurm for some minutes: ``python tests/benchmarks/chaos.py minutes=20 seed=0``.

Rows of a tiny plan run on three virtual nodes while nodes crash, lose their slurmd or are taken by more important jobs,
with and without grace, rows are asked to stop or come to their time limit, the disk is full for a while, and the
controller is restarted. When all rows of a plan have ended, they are compared with an
undisturbed run, and the next plan is started. Ends with a table; exit status 1 if a result differs or is missing.
Needs root (namespaces) and Debian's packages slurmctld slurmd slurm-client munge.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_shards.command import InputError, run
from jobs import plan as plans
from jobs import record

HERE = Path(__file__).resolve().parent
UPDATES = 300
LOG_ROWS = """
import sys
from pathlib import Path
from jobs import collect, plan
for row in plan.read(Path(sys.argv[1])):
    collect.log_row(row)
"""
MOST_RESUBMISSIONS = 10
"""Of a plan of four rows; more can only be the same failure again and again."""


@dataclass
class Chaos:
    """For how long, and which faults: equal seeds give equal faults, at times that differ."""

    minutes: float = 20.0
    seed: int = 0


def load(name: str):
    """A module of tests/slurm."""
    spec = importlib.util.spec_from_file_location(name, HERE.parent / "slurm" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Faults:
    """The faults; each leaves the cluster such that rows can go on."""

    def __init__(self, cluster, disk: Path, seed: int) -> None:
        self.cluster, self.disk, self.random, self.counts = cluster, disk, random.Random(seed), Counter()
        self.array = ""

    def one(self) -> None:
        kinds = (self.stop_request, self.time_limit, self.preemption, self.node_crash, self.slurmd_killed)
        kind = self.random.choice((*kinds, self.controller_restart, self.full_disk))
        if kind():
            self.counts[kind.__name__.replace("_", " ")] += 1

    def stop_request(self) -> bool:
        task = self._running()
        if task:
            subprocess.run(["scancel", "--signal=USR1", "--batch", task], env=self.cluster.env, check=False)
        return bool(task)

    def time_limit(self) -> bool:
        """Brought so near that the row gets its signal at the controller's next look, each half minute."""
        task = self._running()
        if not task:
            return False
        before = self.cluster.restarts(task)
        minutes = int(self.cluster.squeue(f"--jobs={task}", "--format=%M").split(":")[-2])
        self._limit(task, minutes + 1)
        over = time.monotonic() + 60
        while time.monotonic() < over and self.cluster.restarts(task) == before:
            time.sleep(1)
        self._limit(task, 60)  # of its next life
        return self.cluster.restarts(task) > before

    def full_disk(self) -> bool:
        filler = self.disk / "filler"
        free = os.statvfs(self.disk).f_bavail * os.statvfs(self.disk).f_frsize
        with contextlib.suppress(OSError):  # somebody else has taken some of it meanwhile
            filler.write_bytes(bytes(max(0, free - 300_000)))
        time.sleep(self.random.uniform(1, 10))
        filler.unlink()
        return True

    def _running(self) -> str | None:
        running = [task for task, state in self.cluster.states(self.array).items() if state == "RUNNING"]
        return self.random.choice(running) if running else None

    def _limit(self, task: str, minutes: int) -> None:
        command = ["scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}"]
        subprocess.run(command, env=self.cluster.env, check=False)  # it may have ended

    def preemption(self) -> bool:
        node = self.random.choice(self.cluster.nodes)
        arguments = ("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap", "sleep 2")
        self.cluster.wait(self.cluster.sbatch(*arguments), timeout=120)
        return True

    def node_crash(self) -> bool:
        return self._lose(self.cluster.kill_node)

    def slurmd_killed(self) -> bool:
        return self._lose(self.cluster.kill_slurmd)

    def controller_restart(self) -> bool:
        self.cluster.restart_controller()
        return True

    def _lose(self, kill) -> bool:
        node = self.random.choice(self.cluster.nodes)
        kill(node)
        self.cluster.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=chaos")
        time.sleep(self.random.uniform(1, 25))  # until then its rows start elsewhere, where there is room
        self.cluster.start_node(node)
        self.cluster.wait_until(lambda: "DOWN" not in self._state(node), timeout=60)
        return True

    def _state(self, node: str) -> str:
        return self.cluster.scontrol("show", "node", "--oneliner", node).split("State=")[1].split()[0]


class Rounds:
    """Plans of four rows, one after the other."""

    def __init__(self, tiny, cluster, folder: Path, disk: Path) -> None:
        self.tiny, self.cluster, self.folder, self.disk = tiny, cluster, folder, disk
        self.done = self.restarts = self.resubmitted = 0
        self.submissions = 0  # of this plan
        self.problems: list[str] = []
        steps = {"epochs": UPDATES / 3, "evaluate_every": 50, "log_every": 1, "checkpoint_steps": 25}
        self.experiment = tiny.write_experiment(folder, **steps)
        settings = yaml.safe_load(self.experiment.read_text()) | {"seeds": [0, 1]}
        self.experiment.write_text(yaml.safe_dump(settings))
        self.undisturbed = tiny.make_plan(self.experiment)
        command = [sys.executable, "-m", "jobs.run", f"plan={self.undisturbed}", "rows=all"]
        subprocess.run(command, cwd=tiny.ROOT, check=True, env=os.environ | tiny.ENVIRONMENT)

    def start(self) -> str:
        settings = yaml.safe_load(self.experiment.read_text()) | {"runs": str(self.disk / f"round-{self.done}")}
        experiment = self.folder / "round.yaml"
        experiment.write_text(yaml.safe_dump(settings))
        self.plan = self.tiny.make_plan(experiment)
        self.submissions = 0
        return self._submit("0-3")

    def ended(self, array: str) -> bool:
        return self.cluster.ENDED.issuperset(self.cluster.states(array).values())

    def go_on(self, array: str) -> str | None:
        """After the end of an array: submit what is missing, as a user would, once; None if nothing is to be done."""
        self.restarts += sum(self.cluster.restarts(task) for task in self.cluster.states(array))
        missing = [row.number for row in plans.read(self.plan) if not record.is_done(row)]
        if not missing or self.problems:
            return None
        for number in missing:
            found = record.failure(plans.row(self.plan, number))
            print(f"row {number} is submitted again: {found.reason if found else 'it was cut off'}", flush=True)
            record.clear_failure(plans.row(self.plan, number))
        self.resubmitted += len(missing)
        self.submissions += 1
        if self.submissions > MOST_RESUBMISSIONS:
            self.problems.append(f"round {self.done}: rows {missing} do not end")
            return None
        return self._submit(",".join(map(str, missing)))

    def check(self) -> None:
        rows, undisturbed = plans.read(self.plan), plans.read(self.undisturbed)
        # As jobs.report does: what MLflow missed, its database being on the full disk, comes now. In a process of its
        # own, since MLflow keeps a database open, which would go on filling the disk after the round.
        subprocess.run([sys.executable, "-c", LOG_ROWS, self.plan], cwd=self.tiny.ROOT, check=True)
        for row, wanted in zip(rows, undisturbed, strict=True):
            try:
                self.tiny.check_equal(row.run, wanted.run)
            except AssertionError as error:
                self.problems.append(f"round {self.done}, row {row.number}: {error}")
        logged = sorted(self.tiny.logged_runs(self.plan.parents[1]))
        if logged != sorted((row.run.name, "FINISHED") for row in rows):
            self.problems.append(f"round {self.done}: MLflow holds {logged}")
        self.done += 1
        if not self.problems:
            shutil.rmtree(self.plan.parents[1])

    def partition(self) -> str:
        """By turns: rows of `spot` get their signal before they lose their node."""
        return "--partition=" + ("main", "spot")[self.done % 2]

    def _submit(self, rows: str) -> str:
        options = (f"--array={rows}", "--mem=1G", self.partition(), f"--output={self.folder}/row-%a.log")
        return self.cluster.sbatch(
            *options, "slurm/finetune_row.sh", self.plan, cwd=self.tiny.ROOT, env=self.tiny.ENVIRONMENT
        )


def main(config: Chaos) -> None:
    cluster_module, tiny = load("cluster"), load("tiny")
    if missing := cluster_module.missing_programs():
        raise InputError(f"not installed: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o755)  # munged wants its socket to be within reach of everyone
    (folder / "slurm").mkdir()
    (folder / "disk").mkdir()
    if os.geteuid() != 0:
        raise InputError("only root may cut nodes off and mount a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder / "disk"], check=True)
    try:
        problems = chaos(config, cluster_module, tiny, folder)
    finally:
        subprocess.run(["umount", "--lazy", folder / "disk"], check=True)
    if problems:
        sys.exit("\n".join([*problems, f"everything is in {folder}"]))
    shutil.rmtree(folder)


def chaos(config: Chaos, cluster_module, tiny, folder: Path) -> list[str]:
    """Run, print the table, and return what is wrong."""
    with cluster_module.SlurmCluster(folder / "slurm" / "c", nodes=3, cpus=2) as cluster:
        disk = folder / "disk"
        rounds, faults = Rounds(tiny, cluster, folder, disk), Faults(cluster, disk, config.seed)
        began = time.monotonic()
        array = faults.array = rounds.start()
        while array:
            over = time.monotonic() - began > 60 * config.minutes
            if rounds.ended(array):
                array = rounds.go_on(array)
                if array is None:
                    rounds.check()
                    array = None if over or rounds.problems else rounds.start()
                faults.array = array or ""
            elif not over:
                faults.one()
            time.sleep(faults.random.uniform(1, 15) if not over else 1)
    minutes = (time.monotonic() - began) / 60
    if rounds.problems:
        shutil.copytree(disk, folder / "kept")
    print(table(rounds, faults, minutes))
    return rounds.problems


def table(rounds: Rounds, faults: Faults, minutes: float) -> str:
    """What happened and how it ended, in Markdown."""
    lines = ["| fault | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(faults.counts.items())]
    equal = "differences, see below" if rounds.problems else "all equal to the undisturbed run, bit by bit"
    lines.append(f"\n{minutes:.0f} minutes, {rounds.done} plans of 4 rows, {rounds.restarts} restarts by Slurm, ")
    lines[-1] += f"{rounds.resubmitted} rows submitted again: {equal}."
    return "\n".join(lines)


if __name__ == "__main__":
    run(Chaos, main)
