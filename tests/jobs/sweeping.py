"""Tiny sweeps on the embedded sample, run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from data_shards.manifest import ShardSet
from jobs.sweep_plan import Sweep, Trial, check, listed

ROOT = Path(__file__).parents[2]
MARK = "SWEEP_OF_A_TEST"
SAMPLE = ROOT / "data_shards" / "sample"


def sweep_values(folder: Path, cards: Path, **changes) -> dict:
    """The keys of a sweep file whose results lie in ``folder``."""
    return {
        "name": "tiny",
        "data": {
            "train": str(SAMPLE / "train"),
            "validation": str(SAMPLE / "validation"),
            "test": str(SAMPLE / "test"),
            "unseen": {"resample": str(SAMPLE / "unseen")},
        },
        "backbones": [{"name": "tiny_resnet", "initialisation": "random"}],
        "finetune": {"mode": "full", "epochs": 4, "batch_size": 16, "checkpoint_steps": 4, "clip": None},
        "cpus_per_trial": 2,
        "cards": str(cards),
        "runs": str(folder / "runs"),
        "replicates": 50,
        **changes,
    }


def planned(sweep: Sweep) -> list[Trial]:
    """The trials of a grid or of random draws."""
    return listed(sweep, check(sweep))


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.sweep", str(file)]


def environment(folder: Path) -> dict[str, str]:
    """As an outer launcher leaves it: a trial that believed it would wait for a second rank. All processes of the sweep
    carry its folder."""
    launched = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "1"}
    patient = {"RAY_worker_niceness": "0"}  # Ray's own 15 would starve on a busy machine
    two_cores = {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'
    }  # whatever the machine has: cpus_per_trial=2 runs one at a time
    return {
        **os.environ,
        **launched,
        **patient,
        **two_cores,
        "SLURM_PROCID": "1",
        "OMP_NUM_THREADS": "1",
        MARK: str(folder),
    }


def run_sweep(folder: Path, values: dict) -> subprocess.CompletedProcess:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    return subprocess.run(
        command(file), cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=500, check=False
    )


def damage(path: Path, sample: int) -> None:
    """Flip a bit in the middle of an image of the shard set at ``path``."""
    shards = ShardSet.open(path)
    file = shards.shard_path(int(shards.column("shard")[sample]))
    data = bytearray(file.read_bytes())
    data[int(shards.column("offset")[sample] + shards.column("length")[sample] // 2)] ^= 1
    file.write_bytes(data)


def processes(folder: Path) -> set[int]:
    """Processes of the sweeps of a folder, Ray's among them."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if f"{MARK}={folder}".encode() in variables.split(b"\0"):
            found.add(int(entry.name))
    return found
