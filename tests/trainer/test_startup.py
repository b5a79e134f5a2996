"""Where the time to the first update goes."""

import os
import re
import subprocess
import sys
import time

import pytest

from data_shards.command import to_dict, write_yaml
from tests.trainer.launching import run
from trainer import startup
from trainer.startup import Startup


def test_parts_by_hand(monkeypatch):
    now = iter([103.0, 103.5, 109.0])
    monkeypatch.setenv(startup.VARIABLE, "98.0")
    monkeypatch.setattr(startup, "process_start", lambda: 100.0)
    monkeypatch.setattr(startup.time, "time", lambda: next(now))
    parts = Startup()
    assert parts.mark("imports")
    assert parts.mark("first batch")
    assert not parts.mark("imports")  # the first time counts
    assert parts.mark("first update")
    spent = "launcher 2.00 s, imports 3.00 s, first batch 0.50 s, first update 5.50 s"
    assert str(parts) == f"first update 11.00 s after the command: {spent}"


def test_a_process_knows_when_it_started():
    code = "from trainer.startup import process_start; print(process_start())"
    before = time.time()
    printed = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert before - 0.05 <= printed <= time.time()


@pytest.mark.slow
def test_profile_is_printed_once_and_adds_up(toy_config, tmp_path):
    config = toy_config(epochs=1.2, profile=True)
    write_yaml(tmp_path / "config.yaml", to_dict(config))
    line = [sys.executable, "-m", "trainer.launch", f"finetune={tmp_path / 'config.yaml'}"]
    done = run(line, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    (printed,) = re.findall(r"first update ([\d.]+) s after the command: (.*)", done.stderr)
    parts = dict(re.findall(r"([A-Za-z ]+) ([\d.]+) s", printed[1]))
    assert [name.strip() for name in parts] == [
        *("launcher", "Python and config", "imports", "processes"),
        *("data sets", "weights", "engine", "first batch", "first update"),
    ]
    assert sum(map(float, parts.values())) == pytest.approx(float(printed[0]), abs=0.06)
