"""Freed memory stays with the process."""

import subprocess
import sys

import pytest
import torch

FAULTS = """
import resource, sys
import torch
from trainer.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="without effect where a GPU computes")
def test_memory_that_was_freed_is_used_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    assert faults["keep"] < faults["give back"] / 100


GIVEN_BACK = """
import psutil, torch
from trainer.allocator import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
process = psutil.Process()
before = process.memory_info().rss
blocks = [torch.ones(1_000_000) for _ in range(100)]
last = torch.ones(1)  # lies behind them: their memory is no end of the heap that could just be cut off
del blocks
kept = process.memory_info().rss - before
give_back_freed_memory()
print(kept >> 20, process.memory_info().rss - before >> 20)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="without effect where a GPU computes")
def test_between_models_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    assert kept > 350  # MiB, of 381
    assert after < 50
