"""Several rows of a plan on this machine, some at a time, each in a process of its own: ``jobs.run rows=…``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.command import InputError
from jobs import plan, record
from jobs.status import under_way
from trainer.finetune import STOPPED

if TYPE_CHECKING:
    from jobs.run import Launch

PAUSE = 0.2


def run_rows(launch: Launch) -> int:
    """Run ``launch.rows``, ``launch.at_once`` at a time, but those that are done already; a row that fails for the
    first time gets a second try.

    Returns 0, 1 if a row failed, or 85 if asked to stop (SIGTERM, SIGUSR1, Ctrl-C), which each row is then, too."""
    from jobs.run import SIGNALS, TRY_AGAIN

    waiting = _to_do(launch)
    if launch.at_once < 1:
        raise InputError(f"at_once={launch.at_once}: must be above 0")
    if launch.machines > 1:
        raise InputError("rows= is for one machine; for several give row=NUMBER on each of them")
    running: dict[int, subprocess.Popen] = {}
    asked: list[int] = []
    failed: list[int] = []
    before = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in (*SIGNALS, signal.SIGINT)}
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < launch.at_once and not asked:
                number = waiting.pop(0)
                running[number] = _start(launch, number)
            if asked:
                for process in running.values():
                    process.terminate()
            for number in [number for number, process in running.items() if process.poll() is not None]:
                status = running.pop(number).returncode
                if status == TRY_AGAIN and not asked:
                    waiting.append(number)
                elif status not in (0, STOPPED):
                    failed.append(number)
                print(f"row {number}: {_words(status)} ({_log(launch.plan, number)})", flush=True)
            time.sleep(PAUSE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return STOPPED
    return 1 if failed else 0


def _to_do(launch: Launch) -> list[int]:
    """Numbers of the rows to start, a process each: none for those where it would only find that nothing is to do, and
    without training none that somebody else runs, who would have to stop for it."""
    asked = list(range(plan.count(launch.plan))) if launch.rows == "all" else list(dict.fromkeys(launch.rows))
    try:
        rows = dict(enumerate(plan.read(launch.plan)))
    except InputError:  # of one row, perhaps: each will see for itself
        return asked

    def wanted(row: plan.Row | None) -> bool:
        try:
            return row is None or not (record.is_done(row) or (not launch.train and not record.is_trained(row)))
        except InputError:  # its data have changed: the row itself will say so
            return True

    found = [number for number in asked if wanted(rows.get(number))]
    if len(found) < len(asked):
        what = "done already" if launch.train else "done already or not trained yet"
        print(f"{len(asked) - len(found)} of {len(asked)} rows: {what}", flush=True)
    if not launch.train and (busy := under_way(rows[number] for number in found if number in rows)):
        print(f"{len(busy)} rows are being run elsewhere and are left alone", flush=True)
        found = [number for number in found if number not in busy]
    return found


def _start(launch: Launch, number: int) -> subprocess.Popen:
    log = _log(launch.plan, number)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs.run", f"plan={launch.plan}", f"row={number}", f"log={log}"]
    if not launch.train:
        command.append("train=false")
    if launch.processes:
        command.append(f"processes={launch.processes}")
    with open(log, "ab") as output:  # a session of its own: Ctrl-C reaches the row through us, as a request to stop
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


def _log(plan_file: Path, number: int) -> Path:
    return plan_file.parent / "logs" / f"row-{number}.log"


def _words(status: int) -> str:
    from jobs.run import TRY_AGAIN

    return {0: "done", STOPPED: "stopped, to be continued", TRY_AGAIN: "failed, once more"}.get(status, "failed")
