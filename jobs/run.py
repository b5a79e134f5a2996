"""One row of the plan: fine-tune through ``accelerate launch``, then score, evaluate and log.

``python -m jobs.run plan=runs/quickstart/plan.jsonl row=0``; several on this machine: ``rows='[0,2]' at_once=2`` or
``rows=all``. A finished row exits at once, as does a row beyond the plan (array jobs may be larger than the plan).

Exit status 85: stopped on request after a checkpoint; run it again. 75: failed, worth another try. 1: failed twice in
the same way and given up, or superseded by a newer incarnation. RUN/failed.json says why. On several machines the
status of machine 0 is the row's (jobs.machines).
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from data_shards.command import InputError, run
from data_shards.files import atomic
from jobs import evaluate, leaks, machines, plan, record
from trainer.finetune import STOPPED

TRY_AGAIN = os.EX_TEMPFAIL
"""Exit status 75 of a row that failed for the first time in this way."""
LATE = 30.0
"""Seconds that a file written on another machine may take to be seen here."""
GRACE = 10.0
"""Seconds that machine 0 has for its own error message when another machine has failed."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class Launch:
    """Which row to run, or which rows, and on what."""

    plan: Path
    row: int | None = None
    rows: list[int] | Literal["all"] | None = None
    """Several rows, each in a process of its own on this machine, with its messages in RUNS/NAME/logs/row-N.log."""
    at_once: int = 1
    """With rows: how many at the same time."""
    train: bool = True
    """false: score and evaluate what is trained already, and leave everything else alone."""
    processes: int | None = None
    """Processes on this machine; default: the experiment's."""
    machines: int = 1
    machine_rank: int = 0
    head: str | None = None
    """Address of machine 0 when there are several."""
    port: int | None = None
    """Rendezvous port; default: a free one."""
    holder: str | None = None
    """Who runs the row, for jobs.status: a scheduler's job id."""
    log: Path | None = None
    """Where the messages of this command go, for jobs.status; default: its standard output if that is a file."""


class RowFailed(RuntimeError):
    """The row ended with an error, which its log explains, or was asked to stop (status 85)."""

    def __init__(self, row: plan.Row, status: int, reason: str = ""):
        what = "was asked to stop; run it again to go on" if status == STOPPED else reason or f"exit status {status}"
        super().__init__(f"row {row.number} ({row.run.name}): {what}")
        self.status, self.reason = status, what


class _Stop(BaseException):
    """A stop request outside of fine-tuning; as with KeyboardInterrupt, no handler of errors may swallow it."""


def run_row(row: plan.Row, launch: Launch, then: Callable[[], None] = lambda: None) -> None:
    """Do what is missing of a row, and ``then``. All but fine-tuning belongs to machine 0. Raises RowFailed.

    SIGTERM and SIGUSR1 stop it: fine-tuning after its next update, everything else at once. Main thread only."""
    from trainer.lease import Lease

    with _signals() as requests:
        try:
            if launch.machine_rank != 0:
                _assist(row, launch, requests)
                return
            requests.lease = Lease(row.run, launch.holder or f"process {os.getpid()}", record.progress(row))
            with requests.lease:
                _bound_starts(row, launch, requests.lease.stuck)
                _work(row, launch, requests, then)
        except OSError as error:  # of the lease itself: a full disk
            raise RowFailed(row, 1, f"{type(error).__name__}: {error}") from error
        except _Stop:
            if requests.lease and requests.lease.lost:
                requests.lease.check()
            raise RowFailed(row, STOPPED) from None


def _assist(row: plan.Row, launch: Launch, requests: _Requests) -> None:
    """Fine-tune on machine 1 and above; machine 0 is told what goes wrong."""
    try:
        _finetune(row, launch, requests)
        return
    except RowFailed as error:
        failed = error
    except _Stop:
        failed = RowFailed(row, STOPPED)
    except Exception as error:
        failed = RowFailed(row, TRY_AGAIN, f"{type(error).__name__}: {error}")
    if not (row.run / "stopped.json").is_file():  # else all machines have ended, none waits for this one
        machines.tell(row.run, launch.machine_rank, launch.holder, failed.reason)
    raise failed


def _work(row: plan.Row, launch: Launch, requests: _Requests, then: Callable[[], None]) -> None:
    """Fine-tune, score, evaluate; what goes wrong is put on record."""
    from trainer import predict

    try:
        leaks.check_row(row)  # the plan may be older than the shard sets
        _finetune(row, launch, requests)
        predict.score(row.run, {name: Path(path) for name, path in row.score.items()}, columns=row.subgroups)
        evaluate.evaluate(row.run, replicates=row.replicates, subgroups=row.subgroups)
        then()
    except RowFailed:
        raise
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        requests.lease.check()
        raise _failed(row, launch, f"{type(error).__name__}: {error}", 1) from error
    record.mark_done(row)


def _finetune(row: plan.Row, launch: Launch, requests: _Requests) -> None:
    from data_shards.command import write_yaml
    from trainer import launch as launcher

    if record.is_trained(row):
        return
    config = row.run.parent / "rows" / f"{row.run.name}.yaml"
    with atomic(config) as temporary:
        write_yaml(temporary, row.finetune)
    command = launcher.command(
        config,
        processes=launch.processes or row.processes,
        machines=launch.machines,
        machine_rank=launch.machine_rank,
        head=launch.head,
        port=launch.port,
        deepspeed_stage=row.config.deepspeed_stage,
    )
    if requests.lease:
        _outwait_orphans(row.run)
        (row.run / "stopped.json").unlink(missing_ok=True)  # else a launcher that fails would read as stopped
    with requests.deferred():
        status, messages = _supervise(command, row, launch, requests)
        asked = bool(requests.came)  # what comes from here on may be the consequence of a failure
        status = _seen_late(row.run, status, launch)
        if requests.lease:
            requests.lease.check()
        if status not in (0, STOPPED) and not asked:
            raise _failed_to_train(row, launch, record.last_error(messages, status), status)
        if launch.machine_rank == 0:
            machines.forget(row.run)
    if requests.came or status == STOPPED:
        raise RowFailed(row, STOPPED)


def _failed_to_train(row: plan.Row, launch: Launch, reason: str, status: int) -> RowFailed:
    """Put it on record, with what the other machines have to say; on these, say it to machine 0 alone."""
    if launch.machine_rank != 0:
        return RowFailed(row, TRY_AGAIN, reason)
    others = machines.wait(row.run, launch.machines, launch.holder, LATE)
    machines.forget(row.run)
    return _failed(row, launch, "; ".join([reason, *others]), status)


def _supervise(command: list[str], row: plan.Row, launch: Launch, requests: _Requests) -> tuple[int, list[str]]:
    """Run a launcher to its end; returns its exit status and the end of what it said on stderr.

    A stop request goes to the processes through the file that all ranks agree on. The launchers themselves must not
    hear of it: one that dies leaves its processes behind."""
    from trainer import lease

    terminal = sys.stderr.isatty()
    environment = {**os.environ, **({lease.VARIABLE: str(requests.lease.term)} if requests.lease else {})}
    stderr = None if terminal else subprocess.PIPE
    last: deque[str] = deque(maxlen=200)
    # ignoring is inherited through exec, unlike a handler
    process = subprocess.Popen(command, env=environment, stderr=stderr, preexec_fn=_ignore_signals)
    # Left to itself: a process that stays behind may hold the other end open, and closing ours would wait for that.
    copier = threading.Thread(target=_copy, args=(process.stderr, last), daemon=True)
    copier.start()
    try:
        _watch(process, row, launch, requests)
    except BaseException:  # Ctrl-C
        _kill_tree(process)
        raise
    copier.join(timeout=5)
    return process.returncode, list(last)


def _watch(process: subprocess.Popen, row: plan.Row, launch: Launch, requests: _Requests) -> None:
    """Wait for a launcher. A stop request is repeated, since a process that starts later takes it for one to its
    predecessor. All processes end at once when the lease is lost, and when they wait for a machine in vain."""
    deadline = None
    while process.poll() is None:
        if deadline is None and _left_alone(row, launch, requests):
            deadline = time.monotonic() + (0 if launch.machine_rank else GRACE)
        if (requests.lease and requests.lease.lost) or (deadline and time.monotonic() >= deadline):
            _kill_tree(process)
        elif requests.came:
            row.run.mkdir(parents=True, exist_ok=True)
            (row.run / "stop").touch()
        time.sleep(0.2)


def _left_alone(row: plan.Row, launch: Launch, requests: _Requests) -> bool:
    """Whether another machine has failed; for machine 1 and above, whether machine 0 has ended, whereupon a signal
    comes."""
    from trainer import lease

    if launch.machine_rank == 0:
        return bool(machines.told(row.run, launch.machines, launch.holder))
    return bool(requests.came) and not lease.beats(row.run)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _copy(source: IO[bytes] | None, last: deque[str]) -> None:
    for line in source or ():
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        last.append(line.decode(errors="replace"))


def _outwait_orphans(run_directory: Path) -> None:
    """Processes whose supervisor was killed stop by themselves when they find that the lease is not theirs any more;
    until then they hold the lock of the run."""
    deadline = time.monotonic() + LATE
    run_directory.mkdir(parents=True, exist_ok=True)
    with open(run_directory / ".lock", "a") as lock:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.5)


def _kill_tree(process: subprocess.Popen) -> None:
    import psutil

    processes = psutil.Process(process.pid).children(recursive=True)
    for each in (*processes, process):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
    process.wait()


def _seen_late(run_directory: Path, status: int, launch: Launch) -> int:
    """The outcome by the files of machine 0's rank 0, which on a network file system another machine sees late."""
    from trainer import launch as launcher

    deadline = time.monotonic() + (LATE if launch.machine_rank and not status else 0)
    while (outcome := launcher.exit_status(run_directory, status)) == 1 and time.monotonic() < deadline:
        time.sleep(0.5)
    return outcome


def _failed(row: plan.Row, launch: Launch, reason: str, status: int, *, give_up: bool = False) -> RowFailed:
    """Put a failure on record; returns the exception to raise."""
    try:
        failure = record.mark_failed(row, reason, status, _log(launch), give_up=give_up)
    except OSError as error:  # a full disk, likely: no place for a record, without which tries would have no end
        return RowFailed(row, 1, f"{reason} (not on record: {error})")
    return RowFailed(row, 1 if failure.given_up else TRY_AGAIN, reason)


def _bound_starts(row: plan.Row, launch: Launch, stuck: int) -> None:
    if stuck and stuck % record.STARTS == 0:
        reason = f"started {record.STARTS} times without getting any further"
        raise _failed(row, launch, reason, 1, give_up=True)


def _log(launch: Launch) -> str:
    target = launch.log or Path("/proc/self/fd/1").resolve()
    return str(target) if target.is_file() else ""


class _Requests:
    """Stop requests that came, and the lease under which this process works."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.lease = None
        self.defer = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While fine-tuning: its supervisor sees to the request, nothing is raised."""
        self.defer = True
        try:
            yield
        finally:
            self.defer = False


@contextmanager
def _signals() -> Iterator[_Requests]:
    requests = _Requests()

    def ask(number: int, _: object) -> None:
        first = not requests.came
        requests.came.append(number)
        if first and not requests.defer:
            raise _Stop

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complete(row: plan.Row) -> None:
    from jobs import collect

    collect.log_row(row)
    print(f"row {row.number} done: {row.run}")


def main(launch: Launch) -> None:
    if (launch.row is None) == (launch.rows is None):
        raise InputError("give row=NUMBER, or rows='[NUMBER, …]' or rows=all")
    if launch.rows is not None:
        from jobs import local

        sys.exit(local.run_rows(launch))
    row = plan.row(launch.plan, launch.row)
    if row is None:
        print(f"row {launch.row} is beyond the plan of {plan.count(launch.plan)} rows: nothing to do")
        return
    if record.is_done(row):
        print(f"row {row.number} is done already: {row.run}")
        return
    if not launch.train and not record.is_trained(row):
        print(f"row {row.number} is not trained yet: nothing to score")
        return
    failure = record.failure(row)
    if failure and failure.given_up:
        if launch.machine_rank == 0:
            again = f"python -m jobs.status plan={launch.plan} resubmit=failed"
            print(f"error: row {row.number} ({row.run.name}) was given up: {failure.reason}", file=sys.stderr)
            print(f"its log: {failure.log or 'not kept'}; to try it again: {again}", file=sys.stderr)
        sys.exit(1)
    try:
        run_row(row, launch, then=lambda: _complete(row))
    except RowFailed as failed:
        print(f"error: {failed}", file=sys.stderr)
        sys.exit(0 if launch.machine_rank else failed.status)  # machine 0 says what becomes of the row


if __name__ == "__main__":
    run(Launch, main)
