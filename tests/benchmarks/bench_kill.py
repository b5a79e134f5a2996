"""Kills at random moments: N times SIGKILL, then equality to the bit with a run that nobody touched.

    python tests/benchmarks/bench_kill.py [--kills 100] [--backbone test_resnet] [--seed 0]

The big brother of tests/trainer/test_state.py, and made of its parts. A run that saves its state after every second
update is killed again and again, each attempt with another number of decoding threads, and at last left to end; then
the next run begins, until all kills are spent. Weights, logged rows and the selected checkpoint of every one must be
those of the reference. Kills that come while Python is still importing are not among them: a process that has imported
everything forks the attempts. Prints Markdown; exit status 1 if any run differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SAMPLE = ROOT / "data_shards" / "sample"
IN_A_ROW = 16
"""Kills of one run before it may end."""
SHARE = 1 / 3
"""Longest life of an attempt, in lives of a run that nobody touched: it takes several to the end."""


def parts() -> ModuleType:
    """The test module with the killer and the comparison."""
    place = ROOT / "tests" / "trainer" / "test_state.py"
    spec = importlib.util.spec_from_file_location("test_state", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    from bench_training import write_card

    from trainer.config import FinetuneConfig

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--backbone", default="test_resnet", help="an architecture of timm, small")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    killing, moments, killed, differing, runs = parts(), random.Random(options.seed), 0, [], 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def config(experiment: str) -> FinetuneConfig:
            return FinetuneConfig(
                backbone="bench",
                initialisation="random",
                cards=write_card(folder, options.backbone, 64),
                train=SAMPLE / "train",
                validation=SAMPLE / "validation",
                runs=folder / "runs",
                experiment=experiment,
                batch_size=16,
                epochs=options.epochs,
                augmentation=0.5,
                checkpoint_steps=2,
            )

        reference = config("reference")
        assert killing.attempts(folder, reference, [{}]) == [0]
        longest = SHARE * killing.seconds(reference.directory)
        while killed < options.kills:
            runs += 1
            one = config(f"killed-{runs}")
            count = min(IN_A_ROW, options.kills - killed)
            plan = [{"seconds": moments.uniform(longest / 10, longest)} for _ in range(count)]
            statuses = killing.attempts(folder, one, [*plan, {}])
            hits = statuses.count(-signal.SIGKILL)
            if not hits or statuses[-1] != 0 or killing.outcome(one.directory) != killing.outcome(reference.directory):
                differing.append((runs, plan, statuses))
            killed += hits
            print(f"run {runs}: {hits} kills, {killed} of {options.kills}", file=sys.stderr, flush=True)
    print("| kills | runs | runs that differ | seconds |\n|---|---|---|---|")
    print(f"| {killed} | {runs} | {len(differing)} | {time.monotonic() - began:.0f} |")
    for run in differing:
        print("differs:", *run)
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
