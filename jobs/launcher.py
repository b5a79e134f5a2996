"""Who runs the rows of a plan: this machine, or Slurm through the scripts of slurm/. Both are asked in the same way."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from data_shards.command import InputError
from jobs.arrays import ranges


class Launcher(Protocol):
    """Gives the commands; whoever asks prints or runs them, in the repository's root."""

    def rows(self, plan: Path, numbers: Sequence[int]) -> list[str]:
        """Run these rows of a plan."""

    def benchmark(self, experiment: Path, options: Sequence[str] = (), *, dry_run: bool = False) -> list[str]:
        """Run a whole experiment: features, rows and report. ``options`` are the launcher's own, for the rows."""


class Local:
    """One row after the other on this machine."""

    def rows(self, plan: Path, numbers: Sequence[int]) -> list[str]:
        return [sys.executable, "-m", "jobs.run", f"plan={plan}", f"rows={list(numbers)}"]

    def benchmark(self, experiment: Path, options: Sequence[str] = (), *, dry_run: bool = False) -> list[str]:
        if options or dry_run:
            raise InputError("sbatch= and dry_run=true are for launcher=slurm")
        return [sys.executable, "-m", "jobs.benchmark", "--config", str(experiment)]


class Slurm:
    """Job arrays; ``options`` are those of sbatch."""

    def rows(self, plan: Path, numbers: Sequence[int]) -> list[str]:
        return ["bash", "slurm/submit_rows.sh", str(plan), ranges(numbers)]

    def benchmark(self, experiment: Path, options: Sequence[str] = (), *, dry_run: bool = False) -> list[str]:
        if not Path("slurm/benchmark.sh").is_file():
            raise InputError("no slurm/benchmark.sh here; launcher=slurm works in the repository's root")
        if not dry_run and shutil.which("sbatch") is None:
            raise InputError("no sbatch on this machine; run this on a login node of the cluster, or with dry_run=true")
        return ["bash", "slurm/benchmark.sh", *(["--dry-run"] if dry_run else []), str(experiment), *options]


def here() -> Launcher:
    """Slurm where there is one, else this machine."""
    return Slurm() if shutil.which("sbatch") else Local()
