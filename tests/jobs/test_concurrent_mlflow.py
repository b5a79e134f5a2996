"""Sixteen rows log to one MLflow server at once, which is killed in the middle and started again: nothing is lost."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_mlflow.py"


def need_postgresql() -> None:
    """Skip without it; in CI, which installs it, that is a failure."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin")) or importlib.util.find_spec("psycopg") is None:
        reason = "no PostgreSQL: apt-get install postgresql; pip install 'model-separability[postgres]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_a_server_that_is_killed_while_sixteen_rows_log_loses_nothing(store):
    if store == "postgresql":
        need_postgresql()
    command = [sys.executable, str(BENCH), f"stores=[{store}]", "rows=16", "results=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("| 0 |")
