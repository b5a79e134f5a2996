"""A sweep in MLflow: a run per backbone, below it one per trial that ended, however it did, and one with the report.

The record is on disk. A tracking server that is away costs a warning; the same sweep logs later what it missed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.command import to_dict
from evaluation.score import Score
from jobs import evaluate, overfit, plan, trial
from jobs.subset import KEYS
from trainer.card import get_card

if TYPE_CHECKING:
    from jobs.sweep_plan import Sweep, Trial

log = logging.getLogger(__name__)

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's words for how a trial ended."""
ARTIFACTS = ("config.yaml", "result.json", "evaluation.json", "overfitting.json", "trial.json")


def log_all(config: Sweep, trials: list[Trial], values: Callable[[Trial], dict[str, Any]]) -> None:
    """Log the trials that ended; ``values`` gives a trial's hyperparameters as tables show them."""
    from evaluation.tracking import TrackingError

    try:
        for backbone in range(len(config.backbones)):
            ended = [each for each in trials if each.backbone == backbone and trial.read_record(each.row)]
            parent = _log_parent(config, backbone, ended[0].row.tracking_uri) if ended else ""
            for each in ended:
                _log_trial(config.name, each, parent, values(each))
    except TrackingError as error:  # once for all: whoever is away for one trial is so for a thousand
        log.warning("%s: not all logged to MLflow (%s); the same command logs the rest", config.name, error)


def _log_parent(config: Sweep, backbone: int, tracking_uri: str) -> str:
    """The run that holds a backbone's trials; it says what was searched, so that it stays the same as trials come."""
    from evaluation.tracking import log_result

    searched = config.backbones[backbone]
    card = get_card(searched.name, config.cards)
    return log_result(
        tracking_uri,
        config.name,
        key=f"{config.name}: {searched.label}",
        params={
            "label": searched.label,
            "pretext_task": card.pretext_task,
            "family": card.family,
            "space": to_dict(config)["space"],
            "sampler": config.sampler,
            "scheduler": config.scheduler,
        },
        metrics={},
        tags={"directory": str(config.folder)},
    )


def _log_trial(sweep: str, each: Trial, parent: str, values: dict[str, Any]) -> None:
    """One that failed or was stopped has its curve, as far as it came, and the reason."""
    from evaluation.tracking import log_result

    row, record = trial.as_run(each.row), trial.read_record(each.row)
    config = row.config
    card = get_card(config.backbone, config.cards)
    log_result(
        row.tracking_uri,
        sweep,
        key=row.run.name,
        params={
            "label": row.backbone,
            "pretext_task": card.pretext_task,
            "family": card.family,
            **to_dict(config),
            "train_groups": "all",
            "flipped_labels": 0.0,
            **{key: values[key] for key in KEYS if key in values},
        },
        metrics=_metrics(row.run) if record["status"] == "finished" else {},
        curves=_curves(row),
        artifacts=[file for name in ARTIFACTS if (file := row.run / name).is_file()],
        tags={
            "directory": str(row.run),
            "mlflow.parentRunId": parent,
            "status": record["status"],
            "reason": record["reason"] or trial.out_of_memory(each.row),
        },
        status=STATUS[record["status"]],
    )


def _curves(row: plan.Row) -> list[dict[str, Any]]:
    """Without what is the same all along; heads share a process, whose use of the machine tells nothing of one."""
    left_out = ("validation/n", "system/") if row.config.features else ("validation/n",)
    return [{name: row[name] for name in row if not name.startswith(left_out)} for row in overfit.curve(row.run)]


def _metrics(run: Path) -> dict[str, float]:
    found, overfitting = evaluate.read(run / "evaluation.json"), overfit.read(run)
    metrics = _numbers("gap", found.gaps)
    for name, scores in found.detection.items():
        metrics |= _numbers(name, scores)
    for part, prefix in (("last_gaps", "gap_last"), ("drops", "drop"), ("curve", "overfitting")):
        metrics |= _numbers(prefix, overfitting[part])
    return metrics


def _numbers(prefix: str, scores: Iterable[Score]) -> dict[str, float]:
    """Values and ends of intervals by metric name; MLflow leaves out what is not a number."""
    numbers = {}
    for score in scores:
        name = f"{prefix}/{score.name}"
        numbers |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return numbers


def log_report(config: Sweep, trials: list[Trial], path: Path) -> None:
    """One more MLflow run: the report and its pictures."""
    from evaluation.tracking import TrackingError, log_result

    if not any(trial.read_record(each.row) for each in trials):
        return
    try:
        log_result(
            trials[0].row.tracking_uri,
            config.name,
            key=f"{config.name}: report",
            params={},
            metrics={},
            artifacts=[file for file in (path, path.parent / "figures", path.parent / "sweep.yaml") if file.exists()],
            tags={"directory": str(config.folder)},
        )
    except TrackingError as error:
        log.warning("%s: report not logged to MLflow (%s); the same command logs it later", config.name, error)
