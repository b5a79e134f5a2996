"""Where the CPU time of a head-only sweep goes: ``python -m tests.benchmarks.bench_sweep [trials=200]``.

A random backbone's features of the embedded sample, heads of 100 epochs. CPU seconds of every process of the sweep are
sampled from /proc until it ends, and told apart by role. Then some of the trials run once more in this process, to see
which part of a trial is training (``trainer.loop.fit``) and not scoring and intervals.
"""

from __future__ import annotations

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


def measure(file: Path) -> tuple[Counter, float, str]:
    """CPU seconds by role, wall seconds, and what the sweep printed."""
    started, seen = time.monotonic(), {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-m", "jobs.sweep", str(file)]
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


def seconds_of_training(file: Path, trials: int) -> float:
    """CPU seconds in ``fit`` of a trial, on average over some trials of the sweep."""
    import torch

    from data_shards.command import from_yaml
    from jobs import trial
    from jobs.sweep_plan import Sweep, planned

    torch.set_num_threads(1)  # as in the sweep: a second one waits for the first for most of so small a step
    config = from_yaml(Sweep, file)
    place = config.place  # of the sweep, which has computed the features
    config.runs = config.runs.with_name("again")
    # One more, not counted: only the first trial of a process imports and reads.
    chosen, spent, fit = planned(config)[: trials + 1], [], trial._fit

    def timed(*arguments):
        began = time.process_time()
        result = fit(*arguments)
        spent.append(time.process_time() - began)
        return result

    trial._fit = timed
    trial.run_trials([each.row for each in chosen], lambda told: None, place)
    return sum(spent[1:]) / trials


def main() -> None:
    trials = int(next((a.removeprefix("trials=") for a in sys.argv[1:] if a.startswith("trials=")), 200))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        total, wall, printed = measure(sweep_file(folder, trials))
        finished = len(list(folder.glob("runs/overhead/*/overfitting.json")))
        training = trials * seconds_of_training(folder / "overhead.yaml", min(trials, 20))
    if finished != trials:
        sys.exit(f"{finished} of {trials} trials finished:\n{printed[-3000:]}")
    everything = sum(total.values())
    print(f"{trials} trials in {wall:.0f} s ({3600 * trials / wall:.0f} an hour), {everything:.0f} CPU seconds:")
    for name, seconds in total.most_common():
        print(f"  {name}: {seconds:.1f} s, {seconds / everything:.1%}")
    print(f"  of which training: {training:.1f} s, {training / everything:.1%}")


if __name__ == "__main__":
    main()
