"""Features and separability of one backbone of an experiment: ``python -m jobs.measure EXPERIMENT.yaml backbone=0``.

For clusters, where each backbone is a job of its own; jobs.benchmark does the same for all. What is there is not done
again. A number beyond the list of backbones has nothing to do. SIGUSR1 and SIGTERM end it at once with exit status 85:
what was computed is kept, and the same command goes on.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_shards.command import InputError, from_yaml, run
from jobs.experiment import Experiment


@dataclass
class Measure:
    """Features and separability of one backbone."""

    experiment: Path
    """Experiment file; a bare FILE.yaml is taken for it."""
    backbone: int | None = None
    """Its place in the experiment's list, from 0. Without it, only the number of backbones is printed."""


def main(config: Measure) -> None:
    experiment = from_yaml(Experiment, config.experiment)
    if config.backbone is None:
        print(len(experiment.backbones))
        return
    if config.backbone < 0:
        raise InputError(f"backbone={config.backbone}: backbones count from 0")
    if config.backbone >= len(experiment.backbones):
        print(f"backbone {config.backbone} is beyond the {len(experiment.backbones)} of the experiment: nothing to do")
        return
    from jobs import benchmark

    backbone = experiment.backbones[config.backbone]
    with _ended_by_signals():
        benchmark.check(experiment)
        if config.backbone == 0:  # what all backbones share is done by one of them, first: it needs no weights
            benchmark.measure_pixels(experiment)
            benchmark.draw_thumbnails(experiment)
        benchmark.measure(experiment, backbone)
    print(f"backbone {config.backbone} done: {backbone.label}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    from jobs.run import SIGNALS
    from trainer.finetune import STOPPED

    before = {number: signal.signal(number, lambda *_: sys.exit(STOPPED)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    arguments = [f"experiment={word}" if re.fullmatch(r"[^=]+\.ya?ml", word) else word for word in sys.argv[1:]]
    run(Measure, main, arguments)
