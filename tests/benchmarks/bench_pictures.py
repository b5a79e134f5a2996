"""What it saves that a sweep's trials share decoded pictures: ``python -m tests.benchmarks.bench_pictures``.

First the loader alone, one thread, from the tars and from the mapped array of the same set. Then sweeps over full
fine-tuning, with and without shared pictures: CPU seconds of all their processes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import yaml

from data_shards import decoded
from data_shards.loader import TrainingLoader
from data_shards.manifest import ShardSet
from tests.benchmarks.bench_sweep import SAMPLE, measure

IMAGES, BATCH, ROUNDS = 4000, 32, 3
WITHOUT = "from jobs import sweep, sweep_pictures as p; p.SHARE_OF_MEMORY = 0; sweep.run(sweep.Sweep, sweep.main)"
TRIALS, EPOCHS = 6, 3


def speed(shards: ShardSet, size: int) -> tuple[float, float]:
    """Images per second, and CPU microseconds per image."""
    with TrainingLoader(shards, batch_size=BATCH, image_size=size, seed=0, threads=1) as loader:
        for _ in range(len(shards) // BATCH):
            next(loader)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(IMAGES // BATCH):
            next(loader)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return IMAGES / wall, 1e6 * cpu / IMAGES


def loaders(folder: Path) -> None:
    shards = ShardSet.open(SAMPLE / "train")
    for size in (64, 112, 224):
        decoded.lay_out(shards, size, folder, threads=1, progress=lambda count: None)
        mapped = replace(shards, decoded=decoded.find(shards, size, folder))
        rounds = [(speed(shards, size), speed(mapped, size)) for _ in range(ROUNDS)]
        for name, place in (("decoded from the tars", 0), ("from the mapped array", 1)):
            per_second, cost = max(each[place][0] for each in rounds), min(each[place][1] for each in rounds)
            print(f"{size} px, {name}: {per_second:.0f} images/s, {cost:.0f} µs of CPU time each (best of {ROUNDS})")


def sweep_file(folder: Path, architecture: str, size: int) -> Path:
    card = {"name": "small", "architecture": architecture, "pretext_task": "none", "family": "none", "licence": "none"}
    card |= {"weights": {"file": "absent.safetensors"}, "input_size": size, "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "cards.yaml").write_text(json.dumps([card]))
    values = {
        "name": "pictures",
        "data": {
            **{split: str(SAMPLE / split) for split in ("train", "validation", "test")},
            "unseen": {"resample": str(SAMPLE / "unseen")},
        },
        "backbones": [{"name": "small", "initialisation": "random"}],
        "space": {"learning_rate": [1e-4 * 2**place for place in range(TRIALS)]},
        "finetune": {"mode": "full", "epochs": EPOCHS, "batch_size": 16, "threads": 1},
        "cards": str(folder / "cards.yaml"),
        "replicates": 50,
        "runs": str(folder / "runs"),
    }
    file = folder / "pictures.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def sweeps(architecture: str, size: int) -> None:
    for name, program in (("each trial decodes", ("-c", WITHOUT)), ("shared pictures", ("-m", "jobs.sweep"))):
        with tempfile.TemporaryDirectory() as folder:
            total, wall, printed = measure(sweep_file(Path(folder), architecture, size), program)
            finished = len(list(Path(folder).glob("runs/pictures/*/overfitting.json")))
        if finished != TRIALS:
            sys.exit(f"{finished} of {TRIALS} trials finished:\n{printed[-3000:]}")
        parts = ", ".join(f"{role} {seconds:.1f}" for role, seconds in total.most_common())
        print(f"{architecture} at {size} px, {name}: {sum(total.values()):.1f} CPU seconds ({parts}), {wall:.0f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaders(Path(folder))
    for architecture, size in (("test_resnet", 64), ("mobilenetv3_small_100", 112)):
        sweeps(architecture, size)


if __name__ == "__main__":
    main()
