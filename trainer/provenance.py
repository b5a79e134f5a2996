"""What a result says about the code and the machine that made it."""

from __future__ import annotations

import platform
import resource
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "deepspeed", "numpy", "simplejpeg")


@cache
def versions() -> dict[str, Any]:
    """Git commit of this code (None outside a checkout; ``-dirty`` with local changes), Python and library versions.
    Of the first call: a process goes on with the code that it has loaded, whatever the checkout becomes."""
    return {
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a file system that hangs: not worth a run
        return None
    return answer.stdout.strip() or None


def peak_memory() -> dict[str, float]:
    """Peak memory of this process so far, in MiB: resident, and on its GPU if it has one."""
    memory = {"memory/peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        memory["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return memory
