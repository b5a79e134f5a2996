"""What becomes of a row: finished, failed, given up, stopped. The launcher is a stand-in that treats the run directory
as fine-tuning does; real launches run in tests/trainer/test_launch.py and tests/slurm."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from data_shards.command import InputError, from_yaml
from jobs import local, plan, record
from jobs.experiment import Experiment
from jobs.run import TRY_AGAIN, Launch, RowFailed, main, run_row
from trainer import launch as launcher
from trainer import predict
from trainer.finetune import STOPPED

FAILS = "import sys; print('error: lost the weights at 0x7f', file=sys.stderr); sys.exit(1)"
STOPS = """
import json, signal, subprocess, sys, time
from pathlib import Path
run = Path({run!r})
Path({started!r}).touch()
while not (run / "stop").exists():
    time.sleep(0.02)
(run / "stopped.json").write_text("{{}}")
sys.exit(1)
"""


@pytest.fixture
def row(write_experiment, tmp_path):
    """The first row of a tiny experiment, and the plan's file."""
    file = plan.write(from_yaml(Experiment, write_experiment(tmp_path)))
    return plan.row(file, 0), file


def launched(monkeypatch, code: str) -> None:
    monkeypatch.setattr(launcher, "command", lambda *_, **__: [sys.executable, "-c", code])


def status_of(file: Path, **launch) -> int | str | None:
    try:
        main(Launch(plan=file, row=0, **launch))
    except SystemExit as end:
        return end.code
    return 0


def test_a_failure_is_on_record_and_the_second_like_it_is_the_last(row, monkeypatch, tmp_path, capfd):
    row, file = row
    log = tmp_path / "row.log"
    log.touch()
    launched(monkeypatch, FAILS)
    assert status_of(file, log=log) == TRY_AGAIN
    first = record.failure(row)
    assert (first.reason, first.status, first.attempts, first.given_up) == ("lost the weights at 0x7f", 1, 1, False)
    assert first.log == str(log)
    launched(monkeypatch, FAILS.replace("7f", "8e"))  # another address, the same failure
    assert status_of(file) == 1
    assert (record.failure(row).attempts, record.failure(row).given_up) == (2, True)
    launched(monkeypatch, "raise SystemExit('started again')")
    assert status_of(file) == 1
    assert record.failure(row).attempts == 2, "not tried again"
    assert "was given up: lost the weights" in capfd.readouterr().err
    record.clear_failure(row)  # what resubmit=failed does
    assert status_of(file) == TRY_AGAIN
    assert record.failure(row).reason == "started again" or record.failure(row).reason == "exit status 1"


def test_another_failure_gets_another_try(row, monkeypatch):
    row, file = row
    launched(monkeypatch, FAILS)
    assert status_of(file) == TRY_AGAIN
    launched(monkeypatch, "raise MemoryError('no room')")
    assert status_of(file) == TRY_AGAIN
    assert (record.failure(row).reason, record.failure(row).same) == ("MemoryError: no room", 1)


def test_a_row_that_never_gets_further_is_given_up(row, monkeypatch):
    row, file = row
    launched(monkeypatch, "import os; os.kill(os.getppid(), 15); import time; time.sleep(0.5); raise SystemExit(1)")
    monkeypatch.setattr(record, "STARTS", 2)
    statuses = [status_of(file) for _ in range(4)]
    assert statuses == [STOPPED, STOPPED, 1, 1]
    assert "without getting any further" in record.failure(row).reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_fine_tuning_through_the_file(row, monkeypatch, tmp_path, number):
    row, file = row
    started = tmp_path / "started"
    launched(monkeypatch, STOPS.format(run=str(row.run), started=str(started)))
    threading.Thread(target=_when, args=(started.exists, lambda: os.kill(os.getpid(), number))).start()
    with pytest.raises(RowFailed) as stopped:
        run_row(row, Launch(plan=file, row=0))
    assert stopped.value.status == STOPPED
    assert record.failure(row) is None, "to be stopped is no failure"


def test_a_signal_while_scoring_stops_at_once(row, monkeypatch, tmp_path):
    row, file = row
    row.run.mkdir(parents=True)
    (row.run / "result.json").write_text("{}")
    scoring = threading.Event()

    def score(*_, **__):
        scoring.set()
        time.sleep(100)

    monkeypatch.setattr(predict, "score", score)
    threading.Thread(target=_when, args=(scoring.is_set, lambda: os.kill(os.getpid(), signal.SIGUSR1))).start()
    began = time.monotonic()
    assert status_of(file) == STOPPED
    assert time.monotonic() - began < 50
    assert record.failure(row) is None


def test_signals_to_everyone_leave_the_launcher_alone(row, monkeypatch, tmp_path):
    """As when a scheduler signals all processes of a job: the launcher must outlive it, or it leaves its own behind."""
    row, file = row
    started = tmp_path / "started"
    launched(monkeypatch, "import os\n" + STOPS.format(run=str(row.run), started=str(started)))

    def signal_all():
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        for pid in map(int, children.stdout.split()):
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"stopped.json" in command.read_bytes():
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=_when, args=(started.exists, signal_all)).start()
    with pytest.raises(RowFailed) as stopped:
        run_row(row, Launch(plan=file, row=0))
    assert stopped.value.status == STOPPED
    assert (row.run / "stopped.json").exists(), "it was killed before it could save"


def test_scoring_that_fails_is_on_record(row, monkeypatch):
    row, file = row
    row.run.mkdir(parents=True)
    (row.run / "result.json").write_text("{}")  # but no weights
    assert status_of(file) == TRY_AGAIN
    assert "not a finished run" in record.failure(row).reason


def test_without_room_on_the_disk_a_row_says_so_and_leaves_nothing_in_the_way(row, monkeypatch):
    row, file = row
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # every write to a file fails
        f"from jobs.run import *; main(Launch(plan=Path({str(file)!r}), row=0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: row 0 ({row.run.name}): OSError: [Errno 27] File too large")
    assert not [path for path in row.run.rglob("*") if path.is_file() and path.stat().st_size]
    launched(monkeypatch, FAILS)  # there is room again: it starts
    assert status_of(file) == TRY_AGAIN
    assert record.failure(row).reason == "lost the weights at 0x7f"


def test_a_finished_row_imports_nothing_heavy(row):
    row, file = row
    (row.run / "scores").mkdir(parents=True)
    for name in ("result.json", "evaluation.json", *(f"scores/{name}.parquet" for name in row.score)):
        (row.run / name).write_text("{}")
    made_of = {"data": {"train": _digest(row)}, "card": {"layer": "pooled"}}  # that of now, which is looked at
    (row.run / "result.json").write_text(json.dumps(made_of))
    (row.run / "failed.json").write_text("{}")
    record.mark_done(row)
    assert not (row.run / "failed.json").exists()
    code = f"import sys; from jobs.run import *; main(Launch(plan=Path({str(file)!r}), row=0)); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("row 0 is done already")
    assert not {"torch", "numpy", "pandas", "mlflow", "sklearn"} & set(said.split())
    (row.run / "scores" / "test.parquet").unlink()
    assert not record.is_done(row)


def test_a_row_whose_training_data_have_changed_is_not_done_and_says_so(row, capfd):
    row, file = row
    (row.run / "scores").mkdir(parents=True)
    for name in ("result.json", "evaluation.json", *(f"scores/{name}.parquet" for name in row.score)):
        (row.run / name).write_text("{}")
    record.mark_done(row)
    assert record.is_done(row)
    (row.run / "result.json").write_text('{"data": {"train": "that of the faces before they were packed again"}}')
    assert not record.is_done(row)
    with pytest.raises(InputError, match="is finished, but train of its data has changed from that of"):
        record.is_trained(row)
    assert local.run_rows(Launch(plan=file, rows=[0], train=False)) == 1
    assert status_of(file) == TRY_AGAIN
    assert "train of its data has changed" in record.failure(row).reason


def test_a_leak_is_found_before_anything_is_trained_or_scored(row, monkeypatch):
    row, file = row
    lines = file.read_text().splitlines()
    leaky = json.loads(lines[0])
    leaky["score"]["again"] = leaky["finetune"]["train"]
    file.write_text("\n".join([json.dumps(leaky), *lines[1:]]) + "\n")
    launched(monkeypatch, "raise SystemExit('it was trained')")
    assert status_of(file) == TRY_AGAIN
    assert "is in both 'train' and 'again', which would leak" in record.failure(row).reason


def test_a_signal_that_follows_a_failure_does_not_hide_it(row, monkeypatch):
    row, file = row
    launched(monkeypatch, FAILS)
    reason = record.last_error

    def last_error(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # as srun does when another machine's process is gone
        return reason(*arguments)

    monkeypatch.setattr(record, "last_error", last_error)
    assert status_of(file) == TRY_AGAIN
    assert record.failure(row).reason == "lost the weights at 0x7f"


def test_a_process_that_stays_behind_holds_nothing_up(row, monkeypatch):
    row, file = row
    behind = "import subprocess; subprocess.Popen(['sleep', '40'], start_new_session=True)\n"
    launched(monkeypatch, behind + FAILS)
    began = time.monotonic()
    assert status_of(file) == TRY_AGAIN
    assert time.monotonic() - began < 30
    assert record.failure(row).reason == "lost the weights at 0x7f"


MACHINE = """
import sys
from jobs import run
from trainer import launch as launcher
run.GRACE = 0.5
launcher.command = lambda *_, **__: [sys.executable, "-c", {code!r}]
run.main(run.Launch(plan=run.Path({plan!r}), row=0, machines=2, machine_rank={rank}, head="here", port=1, holder="job"))
"""


def machine(file: Path, rank: int, code: str) -> subprocess.Popen:
    """One of two machines of row 0, whose launcher is ``code``."""
    command = [sys.executable, "-c", MACHINE.format(plan=str(file), rank=rank, code=code)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_failure_on_another_machine_is_put_on_record_by_the_first(row):
    row, file = row
    with machine(file, 0, "import time; time.sleep(60)") as first:  # waits for the other one
        _when((row.run / ".lock").exists, lambda: None)
        with machine(file, 1, "raise MemoryError('no room')") as second:
            assert second.wait(timeout=40) == 0, "or srun would end the first before it has written its record"
            assert "MemoryError: no room" in second.stderr.read()
        assert first.wait(timeout=40) == TRY_AGAIN
    assert "machine 1: MemoryError: no room" in record.failure(row).reason
    assert not list(row.run.glob("machine-*"))


def test_a_machine_whose_first_has_ended_ends_too(row):
    """srun ends it by a signal, which alone would be a request to stop after the next update."""
    _, file = row
    with machine(file, 1, "import time; open('/dev/null'); time.sleep(60)") as second:
        deadline = time.monotonic() + 30
        while not psutil.Process(second.pid).children() and time.monotonic() < deadline:
            time.sleep(0.05)
        second.terminate()
        assert second.wait(timeout=20) == 0


def test_what_the_last_error_is():
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: too small", "noise"]
    assert record.last_error(lines, 1) == "ValueError: too small"
    assert record.last_error([*lines, "torch.distributed.elastic.X.ChildFailedError: ", "error: ours"], 1) == "ours"
    assert record.last_error(["[rank0]: torch.OutOfMemoryError: CUDA out of memory"], 1).startswith("torch.OutOfMem")
    assert record.last_error(["nothing of the kind"], 9) == "exit status 9"


def test_evaluation_leaves_a_row_alone_that_another_one_runs(row, capsys):
    from trainer.lease import Lease

    row, file = row
    row.run.mkdir(parents=True)
    (row.run / "result.json").write_text("{}")  # trained, and being scored by the row itself
    with Lease(row.run, "job 7_0", "") as lease:
        assert local.run_rows(Launch(plan=file, rows="all", train=False)) == 0
        assert not lease.lost
    assert "1 rows are being run elsewhere" in capsys.readouterr().out
    assert not (row.run / "failed.json").exists()


def test_several_rows_on_this_machine(row, tmp_path):
    """Row 1 is finished, row 7 beyond the plan, row 0 fails twice in the same way: its shard set is gone."""
    _, file = row
    rows = plan.read(file)
    (rows[1].run / "scores").mkdir(parents=True)
    for name in ("result.json", "evaluation.json", *(f"scores/{name}.parquet" for name in rows[1].score)):
        (rows[1].run / name).write_text("{}")
    record.mark_done(rows[1])
    text = file.read_text().replace('"mode": "full"', '"mode": "full", "no_such_key": 1', 1)
    broken = file.with_name("broken.jsonl")
    broken.write_text(text)
    command = [sys.executable, "-m", "jobs.run", f"plan={broken}", "rows=[1,0,7]", "at_once=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    words = dict(line.split(" (")[0].split(": ") for line in done.stdout.splitlines())
    assert words == {"row 0": "failed", "row 1": "done", "row 7": "done"}
    assert "another version" in (file.parent / "logs" / "row-0.log").read_text()


def _digest(row: plan.Row) -> str:
    return json.loads((row.config.train / "manifest.json").read_text())["digest"]


def _when(condition, action) -> None:
    while not condition():
        time.sleep(0.02)
    time.sleep(0.1)
    action()
