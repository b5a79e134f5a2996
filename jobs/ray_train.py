"""Training of a trial of several processes by Ray Train: ``python -m jobs.ray_train FILE.yaml``.

jobs.launched writes the file and starts the command. It joins the sweep's Ray as a job of its own, because Ray frees
what a job holds however the job ends. As the sweep's own, the placement group of Ray Train's workers would outlive a
trial that is killed or stopped, and what came next would wait for it without end (Ray 2.60 without its dashboard).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.command import InputError, run, to_dict
from data_shards.files import write_json
from data_shards.reader import CorruptSample
from jobs import plan, ray_session, trial

WORLD = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "ACCELERATE_TORCH_DEVICE",
)
"""By which Ray Train tells its workers what they are; what else they inherit is of whoever started Ray."""


@dataclass
class Training:
    """One trial's training and scoring, on workers of Ray Train."""

    row: dict[str, Any]
    """Of a plan."""
    place: trial.Place
    address: str
    """Of the Ray to join."""
    root: Path
    """Where the workers' paths begin."""
    error: Path
    """File for what went wrong."""


def train(training: Training) -> None:
    """Run ``work`` on Ray Train's workers to its end. What goes wrong in it is written to ``error``."""
    os.environ.update(ray_session.SETTINGS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray's processes ignore it, and so do those they start
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs import ray_train  # not of __main__: the workers import what they run
    from trainer.distributed import WAIT

    row, place = plan.Row(**training.row), training.place
    # Ray leaves all GPUs visible to a worker that asks for none.
    hidden = {} if place.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    ray.init(
        address=training.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": hidden},
    )
    trainer = TorchTrainer(
        ray_train.work,
        train_loop_config=to_dict(training),
        scaling_config=ScalingConfig(
            num_workers=row.config.processes or 1,
            use_gpu=place.gpus > 0,
            resources_per_worker={"CPU": place.cpus} | ({"GPU": place.gpus} if place.gpus else {}),
        ),
        torch_config=TorchConfig(timeout_s=int(WAIT.total_seconds())),
        run_config=RunConfig(
            name=row.run.name,
            storage_path=str(place.folder.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=0),  # who comes again, and how often, the trial knows
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        write_json(training.error, told(cause(getattr(error, "worker_failures", {0: error}))))
        sys.exit(1)


def work(values: dict[str, Any]) -> None:
    """One of the processes, which Ray Train has connected: train as trainer/finetune.py does, then score on rank 0."""
    trial.clear_launch_variables(keep=WORLD)
    os.chdir(values["root"])
    row, place = plan.Row(**values["row"]), trial.Place.of(values["place"])
    from jobs import sweep_pictures
    from trainer.distributed import build_accelerator, close
    from trainer.loop import Stopped, fit

    accelerator = build_accelerator(row.config)
    try:
        fit(row.config, accelerator, open_shards=sweep_pictures.opener(row.config, place))
    except Stopped:
        close(accelerator)
        raise
    # After any other failure the processes would wait for each other: they end with Ray Train's workers.
    first = accelerator.is_main_process
    close(accelerator)
    if first:
        trial.score(row, place)


def cause(failures: Mapping[int, Exception]) -> Exception:
    """Of what the ranks' workers failed by, what the trial fails by: one that we know by name before those of others,
    which lost touch with it, and the lowest rank's before those of higher ranks."""
    return min(failures.items(), key=lambda each: (not is_foreseen(each[1]), each[0]))[1]


def told(error: Exception) -> dict[str, Any]:
    """What jobs.launched makes it of again."""
    return {"kind": type(error).__name__, "arguments": list(map(str, error.args))}


def is_foreseen(error: Exception) -> bool:
    from trainer.loop import NonFiniteLoss, Stopped

    return isinstance(error, (InputError, CorruptSample, NonFiniteLoss, Stopped)) or trial.is_out_of_memory(error)


if __name__ == "__main__":
    run(Training, train)
