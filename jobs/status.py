"""How far the rows of a plan are: ``python -m jobs.status EXPERIMENT.yaml``, or ``plan=runs/NAME/plan.jsonl``.

Reads the run directories, and squeue where there is one. ``resubmit=failed`` makes failed rows runnable again and
prints the command that runs them; with ``submit=true`` it is run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_shards.command import InputError, from_yaml, run
from jobs import launcher, plan, record
from jobs.experiment import Experiment

STATES = ("done", "running", "waiting", "stopped", "failed", "to do")


@dataclass
class Status:
    """Which rows are done, running, waiting in the queue, stopped, failed or still to do."""

    experiment: Path | None = None
    """Experiment file; a bare FILE.yaml is taken for it."""
    plan: Path | None = None
    resubmit: Literal["failed", "unfinished"] | None = None
    """Rows to make runnable again: the failed ones, or all that are neither done, running nor waiting."""
    submit: bool = False
    """Run the command that ``resubmit`` prints."""


@dataclass(frozen=True)
class RowStatus:
    """Where a row stands."""

    row: plan.Row
    state: str
    """One of STATES."""
    detail: str
    """The job that runs it, or why it failed."""
    log: str


def statuses(plan_file: Path) -> list[RowStatus]:
    """The state of every row. Takes some seconds where rows may be running: signs of life are looked for twice."""
    from trainer.lease import owner

    rows = plan.read(plan_file)
    done = {row.number for row in rows if record.is_done(row)}
    alive = under_way([row for row in rows if row.number not in done])
    waiting = queued(plan_file)
    found = []
    for row in rows:
        failure = None if row.number in done else record.failure(row)
        if row.number in done:
            found.append(RowStatus(row, "done", "", ""))
        elif row.number in alive:
            found.append(RowStatus(row, "running", (owner(row.run) or {}).get("holder", ""), ""))
        elif row.number in waiting:
            found.append(RowStatus(row, "waiting", waiting[row.number], ""))
        elif failure:
            times = f" ({failure.attempts} attempts{', given up' if failure.given_up else ''})"
            found.append(RowStatus(row, "failed", failure.reason + times, failure.log))
        else:
            found.append(RowStatus(row, "stopped" if row.run.is_dir() else "to do", "", ""))
    return found


def under_way(rows: Iterable[plan.Row]) -> set[int]:
    """Numbers of the rows that somebody runs, on whatever machine."""
    from trainer.lease import HEARTBEAT, beats

    before = [(row, signs) for row in rows if (signs := beats(row.run))]
    if before:
        time.sleep(3 * HEARTBEAT)
    return {row.number for row, signs in before if beats(row.run) != signs}


def queued(plan_file: Path) -> dict[int, str]:
    """Rows that are in Slurm's queue, by number, with their job; empty where there is no Slurm."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--me", "--format=%F %K %T %o"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = next(iter(answer.stderr.splitlines()), f"exit status {answer.returncode}")
        print(f"squeue does not answer, the queue is left out: {reason}", file=sys.stderr)
        return {}
    rows = {}
    for line in answer.stdout.splitlines():
        job, index, state, script = line.split(maxsplit=3)
        match = re.search(r"\bfinetune_row[.]sh (.+) (\d+)$", script)  # slurm/submit_rows.sh: plan and first row
        if match and index.isdigit() and Path(match[1]).resolve() == plan_file.resolve():
            rows[int(match[2]) + int(index)] = f"job {job}_{index}, {state.lower()}"
    return rows


def table(found: Iterable[RowStatus]) -> str:
    """One line a row, and a last line with the counts."""
    lines, counts = [], Counter()
    for each in found:
        counts[each.state] += 1
        line = f"{each.row.number:>5}  {each.state:8} {each.row.run.name:56} {each.detail}"
        lines.append(f"{line.rstrip()}{f'  log: {each.log}' if each.log else ''}")
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return "\n".join([*lines, f"{sum(counts.values())} rows: {summary}"])


def resubmit(plan_file: Path, found: Iterable[RowStatus]) -> list[str] | None:
    """Clear the records of failure; returns the command that runs these rows, None if there are none."""
    numbers = []
    for each in found:
        record.clear_failure(each.row)
        numbers.append(each.row.number)
    if not numbers:
        return None
    return launcher.here().rows(plan_file, numbers)


def main(config: Status) -> None:
    if (config.experiment is None) == (config.plan is None):
        raise InputError("give an experiment file, or plan=FILE")
    plan_file = config.plan or from_yaml(Experiment, config.experiment).folder / "plan.jsonl"
    found = statuses(plan_file)
    print(table(found))
    if config.resubmit is None:
        return
    wanted = ("failed",) if config.resubmit == "failed" else ("failed", "stopped", "to do")
    command = resubmit(plan_file, [each for each in found if each.state in wanted])
    if command is None:
        print(f"no {config.resubmit} rows: nothing to submit")
        return
    print(shlex.join(command), flush=True)
    if config.submit:
        os.execvp(command[0], command)


if __name__ == "__main__":
    arguments = [f"experiment={word}" if re.fullmatch(r"[^=]+\.ya?ml", word) else word for word in sys.argv[1:]]
    run(Status, main, arguments)
