"""Feeds a run directory into MLflow from its record: ``python -m jobs.track run=runs/NAME/RUN``.

For runs that were started by hand; jobs.benchmark, jobs.report and jobs.sweep do it for theirs. While a run goes on,
after it has stopped and when it is finished, as often as one likes: it is one MLflow run, as the record then stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_shards.command import InputError
from data_shards.command import run as run_command
from jobs import collect


@dataclass
class Track:
    """Log a fine-tuning run, finished or not, to MLflow; again whenever there is more."""

    run: Path
    """Run directory."""
    tracking_uri: str | None = None
    """MLflow tracking server or database; default: SQLite file mlflow.db two folders above the run, as jobs.benchmark
    has it."""


def track(config: Track) -> str:
    """Log the run as it stands; returns the id of its MLflow run. InputError if MLflow cannot be reached: the same
    command logs it later."""
    from evaluation.tracking import TrackingError

    run = config.run.resolve()
    if not (run / "config.yaml").is_file():
        raise InputError(f"run={config.run}: there is no run, which has a config.yaml")
    try:
        return collect.log_run(config.run, config.tracking_uri or f"sqlite:///{run.parents[1] / 'mlflow.db'}")
    except TrackingError as error:
        raise InputError(str(error)) from None


def main(config: Track) -> None:
    print(f"{config.run}: MLflow run {track(config)}")


if __name__ == "__main__":
    run_command(Track, main)
