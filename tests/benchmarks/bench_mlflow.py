"""Sixteen rows that log to one MLflow server at once, which is killed in the middle and started again.

``python tests/benchmarks/bench_mlflow.py stores='[sqlite,postgresql]'``. Afterwards every result is logged once more,
as jobs.report does. Ends with a table, and status 1 unless the server then holds each run once, with all it should
hold. For PostgreSQL: Debian's package postgresql, and psycopg[binary].
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from data_shards.command import InputError, run

POINTS = 400


@dataclass
class Concurrency:
    """MLflow under concurrent rows."""

    stores: list[Literal["sqlite", "postgresql"]] = field(default_factory=lambda: ["sqlite", "postgresql"])
    rows: int = 16
    results: int = 3
    """How often each row logs: other content each time, which replaces the run."""
    kill: bool = True
    """Kill the server with SIGKILL when a third of all is logged, and start it again two seconds later."""


class Server:
    """An MLflow server on a free port; ``kill`` takes all its workers along."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        self.command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "2",
        ]
        self.command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.2)
        raise RuntimeError(f"the server does not start:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def content(row: int, result: int) -> dict:
    curves = [{"step": step, "time": 1.7e9 + step, "split": "train", "loss": row + result / step} for step in steps()]
    return {"params": {"row": row, "result": result}, "metrics": {"auc": row / 100 + result}, "curves": curves}


def steps() -> range:
    return range(1, POINTS + 1)


def log_row(uri: str, row: int, results: int, barrier, logged, missed) -> None:
    """What a row does when it has ended, some times; a server that is away is left for later."""
    from evaluation.tracking import TrackingError, log_result

    barrier.wait()
    for result in range(results):
        try:
            log_result(uri, "concurrent", f"row-{row}", **content(row, result), artifacts=[Path(__file__)])
        except TrackingError:
            missed.value += 1
        logged.value += 1


def trial(store: str, folder: Path, config: Concurrency) -> tuple[str, list[str]]:
    """One line of the table, and what is wrong."""
    import mlflow  # noqa: F401  (before the processes are forked, or each would import it)

    from evaluation.tracking import log_result

    context = get_context("fork")
    server = Server(store, folder)
    server.start()
    try:
        barrier, lock = context.Barrier(config.rows + 1), context.Lock()
        logged, missed = context.Value("i", 0, lock=lock), context.Value("i", 0, lock=lock)
        arguments = [(server.uri, row, config.results, barrier, logged, missed) for row in range(config.rows)]
        rows = [context.Process(target=log_row, args=each) for each in arguments]
        for process in rows:
            process.start()
        barrier.wait()
        began = time.monotonic()
        if config.kill:
            while logged.value < config.rows * config.results / 3:
                time.sleep(0.01)
            server.kill()
            time.sleep(2)
            server.start()
        for process in rows:
            process.join()
        seconds = time.monotonic() - began
        for row in range(config.rows):  # what jobs.report does in the end: costs little for what is there
            values = content(row, config.results - 1)
            log_result(server.uri, "concurrent", f"row-{row}", **values, artifacts=[Path(__file__)])
        problems = [f"row {row} crashed" for row, process in enumerate(rows) if process.exitcode]
        problems += check(server.uri, config)
    finally:
        server.kill()
    cells = (store.split(":")[0], config.rows, config.rows * config.results, "yes" if config.kill else "no")
    return f"| {' | '.join(map(str, cells))} | {seconds:.0f} s | {missed.value} | {len(problems)} |", problems


def check(uri: str, config: Concurrency) -> list[str]:
    """Each run once, finished, with its parameters, metrics, whole curve and artifact."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("concurrent").experiment_id])
    names = sorted(run.info.run_name for run in found)
    problems = []
    if names != sorted(f"row-{row}" for row in range(config.rows)):
        problems.append(f"runs: {names}")
    for each in found:
        row, last = int(each.info.run_name.removeprefix("row-")), config.results - 1
        wanted = content(row, last)
        curve = sorted((p.step, p.value) for p in client.get_metric_history(each.info.run_id, "curve/train/loss"))
        whole = (
            each.info.status == "FINISHED"
            and each.data.params == {name: str(value) for name, value in wanted["params"].items()}
            and each.data.metrics["auc"] == wanted["metrics"]["auc"]
            and curve == [(point["step"], point["loss"]) for point in wanted["curves"]]
            and [file.path for file in client.list_artifacts(each.info.run_id)] == [Path(__file__).name]
        )
        if not whole:
            problems.append(f"{each.info.run_name} is not what was logged")
    return problems


@contextlib.contextmanager
def database(store: str, folder: Path) -> Iterator[str]:
    """Address of an empty database."""
    if store == "sqlite":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise InputError("no PostgreSQL: apt-get install -y --no-install-recommends postgresql")
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    data, sockets = folder / "data", folder / "sockets"
    for path in (folder, data, sockets):
        path.mkdir(exist_ok=True)
        if user:
            shutil.chown(path, "postgres")
    folder.chmod(0o755)
    control = [*user, str(programs[-1] / "pg_ctl"), "--pgdata", str(data), "--silent"]
    subprocess.run([*control, "init", "-o", "--username=mlflow --auth=trust"], check=True, stdout=subprocess.DEVNULL)
    # no TCP port: reached through a socket in the folder alone
    settings = f"-c listen_addresses= -c unix_socket_directories={sockets}"
    subprocess.run([*control, "start", "--wait", "--log", str(data / "log"), "-o", settings], check=True)
    try:
        yield f"postgresql://mlflow@/postgres?host={sockets}"
    finally:
        subprocess.run([*control, "stop", "--mode", "immediate"], check=True)


def main(config: Concurrency) -> None:
    print("| store | rows at once | results | server killed | all rows done after | not taken at first | wrong |")
    print("|---|---|---|---|---|---|---|")
    problems = []
    for store in config.stores:
        with tempfile.TemporaryDirectory(prefix=f"mlflow-{store}-") as name, database(store, Path(name)) as address:
            line, found = trial(address, Path(name), config)
        print(line, flush=True)
        problems += found
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    run(Concurrency, main)
