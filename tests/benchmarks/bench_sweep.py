"""Where the CPU time of a head-only sweep goes: ``python -m tests.benchmarks.bench_sweep [trials=200]``.

A random backbone's features of the embedded sample, heads of 100 epochs. CPU seconds of every process of the sweep are
sampled from /proc until it ends, and told apart by role. Which part of a trial is training (``trainer.loop.fit``), not
scoring and intervals, its own record says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data_shards" / "sample"


def sweep_file(folder: Path, trials: int) -> Path:
    values = {
        "name": "overhead",
        "data": {
            **{split: str(SAMPLE / split) for split in ("train", "validation", "test")},
            "unseen": {"resample": str(SAMPLE / "unseen")},
        },
        "backbones": [{"name": "imagenet_mobilenetv2", "initialisation": "random"}],
        "sampler": "random",
        "trials": trials,
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
        },
        "finetune": {"mode": "head", "features": str(folder / "features"), "flip": False, "epochs": 100}
        | {"evaluate_every": 5, "batch_size": 16, "threads": 1},
        "replicates": 200,
        "runs": str(folder / "runs"),
    }
    file = folder / "overhead.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def role(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    line = " ".join(process.cmdline())
    return "trials" if line.startswith("ray::") and "Agent" not in line else "Ray's own processes"


def measure(file: Path, program: tuple[str, ...] = ("-m", "jobs.sweep")) -> tuple[Counter, float, str]:
    """CPU seconds by role, wall seconds, and what the sweep printed."""
    started, seen = time.monotonic(), {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, *program, str(file)]
        sweep = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        top = psutil.Process(sweep.pid)
        while sweep.poll() is None:
            try:
                for process in [top, *top.children(recursive=True)]:
                    times = process.cpu_times()
                    known = seen.get(process.pid, ("", 0.0))[0]
                    name = known if known == "trials" else role(process, sweep.pid)
                    seen[process.pid] = name, times.user + times.system
            except psutil.Error:
                pass
            time.sleep(0.5)
        output.seek(0)
        printed = output.read()
    total = Counter()
    for name, seconds in seen.values():
        total[name] += seconds
    return total, time.monotonic() - started, printed


def seconds_of_training(run: Path) -> float:
    """CPU seconds of ``trainer.loop.fit`` in a trial, from its own record: each row of metrics.jsonl has the time and
    the share of the cores that the process has used since the row before."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows]
    times.insert(0, times[-1] - json.loads((run / "result.json").read_text())["seconds"])  # when it began
    return psutil.cpu_count() * sum(
        row["system/cpu_share"] * max(0.0, now - before)
        for row, before, now in zip(rows, times, times[1:], strict=False)
    )


def main() -> None:
    trials = int(next((a.removeprefix("trials=") for a in sys.argv[1:] if a.startswith("trials=")), 200))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        total, wall, printed = measure(sweep_file(folder, trials))
        finished = [file.parent for file in folder.glob("runs/overhead/*/overfitting.json")]
        training = sum(map(seconds_of_training, finished))
    if len(finished) != trials:
        sys.exit(f"{len(finished)} of {trials} trials finished:\n{printed[-3000:]}")
    everything = sum(total.values())
    print(f"{trials} trials in {wall:.0f} s ({3600 * trials / wall:.0f} an hour), {everything:.0f} CPU seconds:")
    for name, seconds in total.most_common():
        print(f"  {name}: {seconds:.1f} s, {seconds / everything:.1%}")
    print(f"  of which training: {training:.1f} s, {training / everything:.1%}")


if __name__ == "__main__":
    main()
