"""The lease of a run directory: one owner, the newest; the older one is told, and cannot save."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trainer import lease

# An incarnation in a process of its own: says "mine", then works until it is told that it has lost the lease. The file
# "order" shows who was at work when.
INCARNATION = """
import signal, sys, time
from pathlib import Path
from trainer.lease import Lease
with Lease(Path(sys.argv[1]), sys.argv[2], "step 7") as lease:
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit("lost" if lease.lost else "signal"))
    order = open(Path(sys.argv[1]) / "order", "a", buffering=1)
    print("begin", lease.term, file=order)
    try:
        print("mine", lease.term, lease.stuck, flush=True)
        time.sleep(60)
    finally:
        print("end", lease.term, file=order)
"""


def start(run, holder):
    command = [sys.executable, "-c", INCARNATION, str(run), holder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_newer_one_gets_the_run_when_the_older_has_stopped(tmp_path):
    with start(tmp_path, "old") as old:
        assert old.stdout.readline() == "mine 1 0\n"
        with start(tmp_path, "new") as new:
            assert new.stdout.readline() == "mine 2 1\n"  # one incarnation before it began where it begins
            assert (tmp_path / "order").read_text().splitlines() == ["begin 1", "end 1", "begin 2"]
            assert old.communicate(timeout=100)[1] == "lost\n"
            assert lease.owner(tmp_path)["holder"] == "new"
            new.kill()
    assert [path.name for path in (tmp_path / ".lease").glob("*.json")] == ["2.json"]


def test_a_dead_one_is_not_waited_for_on_its_own_host(tmp_path):
    with start(tmp_path, "old") as old:
        old.stdout.readline()
        old.kill()
    began = time.monotonic()
    with lease.Lease(tmp_path, "new", "step 8") as mine:
        assert (mine.term, mine.stuck) == (2, 0)  # another progress: not stuck
        assert time.monotonic() - began < lease.PATIENCE
        assert lease.beats(tmp_path) != set()
    assert lease.beats(tmp_path) == set()


def test_a_silent_one_elsewhere_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 1.5)
    with start(tmp_path, "old") as old:
        old.stdout.readline()
        os.kill(old.pid, signal.SIGSTOP)  # frozen: alive for the kernel, silent for the others
        began = time.monotonic()
        with lease.Lease(tmp_path, "new", "step 7"):
            assert time.monotonic() - began > 1.4
            os.kill(old.pid, signal.SIGCONT)
            assert old.communicate(timeout=100)[1] == "lost\n", "it wakes up and must notice"


def test_fencing_stops_whoever_writes_for_an_older_term(tmp_path, monkeypatch):
    lease.check(tmp_path)  # without a lease nothing is checked
    with lease.Lease(tmp_path, "first", "") as first:
        monkeypatch.setenv(lease.VARIABLE, str(first.term))
        lease.check(tmp_path)
    with lease.Lease(tmp_path, "second", ""), pytest.raises(lease.Superseded, match="newer incarnation"):
        lease.check(tmp_path)
