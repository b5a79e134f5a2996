"""One of the processes of a trial that jobs.launched starts: trainer/finetune.py on what the sweep's trials share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.path[0] == str(Path(__file__).parent):
    del sys.path[0]  # run as a file: our modules are jobs.plan and so on, never top-level "plan"

from data_shards.command import from_dict, run
from jobs.trial import Place
from trainer.config import FinetuneConfig


@dataclass
class Worker:
    """What jobs.launched writes for the processes of a trial."""

    finetune: dict[str, Any]
    """A complete FinetuneConfig."""
    place: Place | None = None
    """Of the sweep; null: nothing is shared."""
    processes: int = 1


def main(worker: Worker) -> None:
    from jobs import sweep_pictures
    from trainer.finetune import finetune

    config = from_dict(FinetuneConfig, {**worker.finetune, "processes": worker.processes})
    finetune(config, sweep_pictures.opener(config, worker.place))


if __name__ == "__main__":
    run(Worker, main)
