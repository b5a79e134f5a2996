"""Commands that start others, run so that nothing of theirs outlives a test."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil


@contextlib.contextmanager
def started(line: list[str], **keys) -> Iterator[subprocess.Popen]:
    """A process that ends with the block, and all that it started with it: those that a launcher starts have sessions
    of their own, so that a signal to its group would not reach them."""
    with subprocess.Popen(line, text=True, **keys) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                launcher = psutil.Process(process.pid)
                for each in (launcher, *launcher.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()


def run(line: list[str], *, timeout: float = 500, **keys) -> subprocess.CompletedProcess:
    """``subprocess.run`` with captured text, and with a time limit for all that the command starts. Once more if
    another program has taken the port that a launcher had found free."""
    for _ in range(2):
        with started(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keys) as process:
            out, said = process.communicate(timeout=timeout)
        if process.returncode == 0 or "address already in use" not in said.lower():
            break
    return subprocess.CompletedProcess(line, process.returncode, out, said)


def wait_until(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s"
        time.sleep(0.05)


def error_line(said: str) -> str:
    """The only error in what a command said on stderr, where libraries may warn of other things: one line, no more."""
    lines = said.splitlines()
    (number,) = (n for n, line in enumerate(lines) if line.startswith("error: "))
    assert lines[number + 1 :] == []
    assert "Traceback" not in said
    return lines[number]
